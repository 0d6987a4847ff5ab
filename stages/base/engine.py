"""Independent items mapped by one worker here, by processes, or by a Ray cluster.

Workers return arrays; the driver alone writes. Importing this module loads neither torch nor ray.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import multiprocessing
import os
import pickle
import platform
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.log_file import printed
from deskpro.stages.base.options import Launch
from deskpro.stages.base.progress import BarState, Event, Printed, forwarded, replay
from deskpro.stages.base.workers import Died, Workers

MakeWorker = Callable[[], Callable[[Any], Any]]
Outcome = tuple[Any, Exception | None]
Listen = Callable[[Any, Event], object]
Pool = tuple[Callable[[int, Any], None], Callable[[], tuple[int, Outcome | Event]]]
"""submit(number, item) gives an item to a worker; ready() waits for the next (number, outcome), or
for what a worker tells while it works."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What numerical libraries read when they load."""
_GRACE = 30
"""Seconds for a worker to stop by itself."""
_RESUME = "What is finished is kept; run the same command to resume"


def map_items(
    launch: Launch,
    make_worker: MakeWorker,
    items: Iterable[Any],
    listen: Listen | None = None,
    count: int | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Each item with its result, in any order; a worker has one item at a time.

    No result depends on engine and number of workers at equal threads. Workers print nothing: this
    process shows what they send (Ray: no bars), and writes a log of each into the run folder.

    Args:
        launch: Which workers, and how many.
        make_worker: Picklable. Called once in each worker, it returns a function from an item to
            its result, which must be picklable too.
        items: Picklable; the next is read when a worker is free.
        listen: Is given an item and what its worker tells of it. Otherwise lines are logged, and
            the only worker of this process prints by itself.
        count: How many items there are, where they have no length.

    Raises:
        InputError: A worker raised it, or died. Other exceptions of a worker are raised too, with
            its traceback as a note.
    """
    if launch.engine == "local" and launch.workers == 1:
        yield from _map_here(launch.threads, make_worker(), items, listen)
        return
    threads = launch.threads or max(1, (os.cpu_count() or 1) // launch.workers)
    start_workers = _ray if launch.engine == "ray" else _processes
    waiting, running = iter(items), dict[int, Any]()
    count = len(items) if count is None and isinstance(items, Sized) else count
    workers, listen = Workers(launch.workers, count), listen or replay

    def start(number: int) -> None:
        for item in itertools.islice(waiting, 1):
            submit(number, item)
            running[number] = item
            workers.start(number, item)

    with start_workers(launch, make_worker, threads) as (submit, ready):
        for number in range(launch.workers):
            start(number)
        while running:
            number, message = ready()
            if isinstance(message, Event):
                workers.receive(number, message)
                if not isinstance(message, Printed):
                    listen(running[number], message)
                continue
            result, error = message
            if error is not None:
                raise workers.failure(number, error)
            done = running.pop(number)
            workers.end(number)
            start(number)
            yield done, result


def _map_here(
    threads: int | None,
    worker: Callable[[Any], Any],
    items: Iterable[Any],
    listen: Listen | None,
) -> Iterator[tuple[Any, Any]]:
    """Items with their results, by the only worker: this process."""
    with torch_threads(threads):
        for item in items:
            with nullcontext() if listen is None else forwarded(partial(listen, item)):
                result = worker(item)
            yield item, result


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """So many CPU threads of torch while the block runs; None changes nothing."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Worker:
    """Makes the worker when the first item comes, so that errors there are outcomes too."""

    def __init__(self, make_worker: bytes, threads: int) -> None:
        self._make, self._threads = make_worker, threads
        self._worker: Callable[[Any], Any] | None = None

    def run(self, item: Any) -> Outcome:
        try:
            if self._worker is None:
                print(f"process {os.getpid()} of {platform.node()}")  # for its log
                self._worker = pickle.loads(self._make)()
                if "torch" in sys.modules:  # one that loads later reads the environment
                    sys.modules["torch"].set_num_threads(self._threads)
            return self._worker(item), None
        except Exception as error:  # noqa: BLE001 - the driver raises it
            if not isinstance(error, InputError):
                error.add_note(traceback.format_exc())
            return None, error


class _Actor(_Worker):
    """A worker of Ray."""

    def run_and_tell(self, item: Any) -> tuple[list[Event], Outcome]:
        """The outcome, and before it the lines."""
        events = list[Event]()
        with _telling(events.append):
            outcome = self.run(item)
        lines: list[Event] = [event for event in events if not isinstance(event, BarState)]
        return lines, outcome  # bars would come too late


@contextmanager
def _telling(tell: Callable[[Event], object]) -> Iterator[None]:
    """While the block runs, lines, bars and whatever is printed are sent as events.

    A loader's process, which is a fork of this one, prints as before: it has no way to the driver.
    """
    own = os.getpid()

    def tell_printed(text: str) -> None:
        if os.getpid() == own:
            tell(Printed(text))
        elif sys.__stderr__ is not None:
            sys.__stderr__.write(f"{text}\n")

    with forwarded(tell), printed(tell_printed):
        yield


@contextmanager
def _processes(launch: Launch, make_worker: MakeWorker, threads: int) -> Iterator[Pool]:
    """Processes with a pipe each; LOCAL_RANK of a worker is the number of its GPU.

    `ProcessPoolExecutor` waits forever for a worker that is killed while it sends a result, and
    leaves its workers behind when the driver is killed.
    """
    context, made = multiprocessing.get_context("spawn"), pickle.dumps(make_worker)
    pipes, processes = list[Connection](), list[SpawnProcess]()

    def submit(number: int, item: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # ready() reports that it is dead
            pipes[number].send(item)

    def ready() -> tuple[int, Outcome | Event]:
        number = pipes.index(wait(pipes)[0])  # type: ignore[arg-type]
        try:
            return number, pipes[number].recv()
        except (EOFError, ConnectionResetError):
            processes[number].join()
            code = processes[number].exitcode
            died = (
                f"worker {number} died with exit code {code} (-9: killed, often for lack of memory)"
            )
            return number, (None, Died(f"{died}. {_RESUME}"))

    try:
        for number in range(launch.workers):
            mine, theirs = context.Pipe()
            gpu = int(number * launch.gpus_per_worker + 1e-9)
            process = context.Process(target=_serve, args=(theirs, gpu, made, threads))
            process.start()
            atexit.register(process.kill)  # multiprocessing would wait for it
            theirs.close()
            pipes.append(mine)
            processes.append(process)
        yield submit, ready
    finally:
        for process in processes:
            process.terminate()  # one that trains writes a checkpoint first
        for process, pipe in zip(processes, pipes, strict=True):
            process.join(_GRACE)
            process.kill()
            process.join()
            atexit.unregister(process.kill)
            pipe.close()


def _serve(pipe: Connection, gpu: int, make_worker: bytes, threads: int) -> None:
    """Life of a worker process: it ends with the driver, which alone decides about Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ |= dict.fromkeys(_THREADS, str(threads)) | {"LOCAL_RANK": str(gpu)}
    threading.Thread(target=_end_with_driver, daemon=True).start()
    worker, lock = _Worker(make_worker, threads), threading.Lock()

    def send(message: Outcome | Event) -> None:
        with lock:
            pipe.send(message)

    with suppress(EOFError, BrokenPipeError):
        while True:
            item = pipe.recv()
            with _telling(send):
                outcome = worker.run(item)
            send(outcome)


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


@contextmanager
def _ray(launch: Launch, make_worker: MakeWorker, threads: int) -> Iterator[Pool]:
    """Actors on the nodes of a cluster; Ray restarts a dead one and repeats its item."""
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError("launch.engine ray needs: pip install 'deskpro[cluster]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    running, messages = dict[Any, int](), deque[tuple[int, Outcome | Event]]()

    def submit(number: int, item: Any) -> None:
        running[actors[number].run_and_tell.remote(item)] = number

    def ready() -> tuple[int, Outcome | Event]:
        if not messages:
            done = ray.wait([*running])[0][0]
            number = running.pop(done)
            try:
                events, outcome = ray.get(done)
            except ray.exceptions.RayError as error:
                text = f"ray: {' '.join(str(error).split())}. {_RESUME}"
                events, outcome = [], (None, Died(text))
            messages.extend((number, each) for each in [*events, outcome])
        return messages.popleft()

    if launch.address:  # Ray would try for minutes
        host, _, port = launch.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), 10).close()
        except OSError as error:
            raise InputError(f"launch.address {launch.address}: no Ray cluster: {error}") from None
    try:
        ray.init(launch.address or "local", log_to_driver=False, logging_level=logging.ERROR)
        gpus = ray.cluster_resources().get("GPU", 0)
        actor = ray.remote(_Actor).options(
            num_gpus=min(launch.gpus_per_worker, int(100 * gpus / launch.workers) / 100),
            max_restarts=launch.max_restarts,
            max_task_retries=-1,  # by each try to reach a node that is gone, one would be used up
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": dict.fromkeys(_THREADS, str(threads))},
        )
        made = pickle.dumps(make_worker)
        actors: list[Any] = [actor.remote(made, threads) for _ in range(launch.workers)]
        yield submit, ready
    finally:
        ray.shutdown()
