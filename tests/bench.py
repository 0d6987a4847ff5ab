"""Timings as ratios, both sides measured in one run: `make bench`. Not part of the tests."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import write_aside
from deskpro.cache.reader import MappedReader
from deskpro.cache.schema import Column, Field, Schema
from deskpro.cache.writer import GroupWriter
from deskpro.pipeline import runner, students
from deskpro.pipeline.config import load as load_config
from deskpro.pipeline.config import override
from deskpro.stages import teacher_cache
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log, table
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Job, Stage
from deskpro.stages.data.benchmark import BenchmarkOptions, make_benchmark
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.data.loader import ImageDataset, batched, load
from deskpro.stages.data.views import MEAN, STD, DrawnViews, StoredViews
from deskpro.stages.evaluation.feature_store import GROUP, FeatureStore
from deskpro.stages.metrics.fusion import Fusion
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.metrics.ranking import rank_gallery
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.teacher import Teacher
from deskpro.stages.models.weights import ModelInfo, save
from deskpro.stages.serving.encoder import Features
from deskpro.stages.serving.export import WRITERS, ExportedStream
from deskpro.stages.serving.gallery_search import Comparison, search
from deskpro.stages.serving.gallery_table import PictureTable
from deskpro.stages.targets.kinds import TARGETS, stored_fields
from deskpro.stages.targets.plan import settings_for
from deskpro.stages.targets.teachers import LiveTeacher
from deskpro.stages.teacher_cache import TeacherCache
from deskpro.stages.train_student import TrainStudent
from tests import scale as scaling

OUT = Path("runs/bench/bench.json")


@dataclass(frozen=True)
class Row:
    """One comparison: `ratio` is the median of ours over that of theirs, both in `unit`.

    runs: how often each side was measured, in turn; spread: (max − min) / median of the ratios of
    neighbouring measurements.
    """

    name: str
    ratio: float
    ours: float
    theirs: float
    unit: str
    runs: int
    spread: float


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> Row:
    """Time two ways of doing the same, taking turns, so that a busy machine slows both."""
    times: list[tuple[float, float]] = []
    for _ in range(runs):
        pair = []
        for work in (ours, theirs):
            started = time.perf_counter()
            work()
            pair.append(time.perf_counter() - started)
        times.append((pair[0], pair[1]))
    return row(name, times, "s")


def row(name: str, pairs: list[tuple[float, float]], unit: str) -> Row:
    mine, others = (float(np.median(side)) for side in zip(*pairs, strict=True))
    ratios = [a / b for a, b in pairs]
    spread = (max(ratios) - min(ratios)) / float(np.median(ratios))
    return Row(name, mine / others, mine, others, unit, len(pairs), spread)


def write_store(path: Path, samples: int, views: int, classes: int) -> dict[str, np.ndarray]:
    """A store of random targets of full-size images; returns its arrays."""
    settings = settings_for(Options(), classes)
    rng = np.random.default_rng(0)
    names = np.asarray([f"bounding_box_train/{i:05d}_c1_0000.jpg" for i in range(samples)], object)
    known = {
        "sample_id": Column(names, ("sample",)),
        "label": Column(np.arange(samples), ("sample",)),
        "views": Column(
            rng.random((samples, views, 9)).astype(np.float32), ("sample", "view", "parameter")
        ),
        **{
            name: Column(rng.integers(0, 256, (samples, 32)).astype(np.uint8), ("sample", "byte"))
            for name in ("hr_face_sha256", "mask_sha256")
        },
    }
    arrays: dict[str, np.ndarray] = {name: column.values for name, column in known.items()}
    for name, target in TARGETS.items():
        fields = stored_fields(target, settings)
        schema = Schema(samples, views, 256, fields)
        for field, each in fields.items():
            values = rng.integers(0, 256, (samples, views, *each.shape))
            arrays[f"{name}/{field}"] = values.astype(each.dtype)
        depends = ["sample_id", "views"]
        with GroupWriter(path, target.group, schema, known, {}, depends=depends) as writer:
            for block in writer.missing:
                rows = schema.rows(block)
                writer.write(block, {field: arrays[f"{name}/{field}"][rows] for field in fields})
            writer.seal()
    return arrays


def cache_read(folder: Path) -> Iterator[Row]:
    """32 random (sample, view), every target, warm: time / numpy's memory maps."""
    samples, views = 2048, 4
    arrays = write_store(folder / "read.zarr", samples, views, 632)
    plain = {}
    for name in TARGETS:
        np.save(folder / f"{name}.npy", arrays[f"{name}/{name}"])
        plain[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, samples, 32), rng.integers(0, views, 32)) for _ in range(50)]
    readers = [
        MappedReader(folder / "read.zarr", target.group, [name]) for name, target in TARGETS.items()
    ]

    def ours() -> None:
        for rows, seen in pairs:
            for reader in readers:
                reader.read(rows.tolist(), seen.tolist())

    def theirs() -> None:
        for rows, seen in pairs:
            for array in plain.values():
                np.array(array[rows, seen])

    ours(), theirs()
    yield compare("cache_read", ours, theirs, 15)


def store_size(folder: Path) -> Iterator[Row]:
    """Bytes on disk of 20,000 samples, one view and eight, 150 identities / of the raw arrays."""
    for views in (1, 8):
        path = folder / f"size{views}.zarr"
        arrays = write_store(path, 20_000, views, 150)
        raw = sum(
            sum(len(name.encode()) for name in array) if array.dtype == object else array.nbytes
            for array in arrays.values()
        )
        stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        yield row(f"store_size_v{views}", [(stored / 1e6, raw / 1e6)], "MB")


def prepared(
    folder: Path, samples: int, face: int, body: tuple[int, int], lr_face: int = 56
) -> Path:
    """A training set of noise in the prepared layout: images are links to a few files.

    Sizes are those that the networks see for every other image, smaller for the rest, but for LR
    faces, which are all of one size.
    """
    root = folder / f"data{samples}"
    rng = np.random.default_rng(0)
    for kind, size in (("imgs", body), ("mask", body), ("lr_face", (lr_face, lr_face)),
                       ("hr_face", (face, face))):  # fmt: skip
        for split in ("bounding_box_train", "query", "bounding_box_test"):
            (root / kind / split).mkdir(parents=True)
        for i in range(8):
            noise = rng.integers(0, 256, (max(size[0] // 8, 1), max(size[1] // 8, 1), 3))
            smaller = 0.7 if i % 2 and kind != "lr_face" else 1
            width, height = round(size[1] * smaller), round(size[0] * smaller)
            resample = Image.Resampling.BICUBIC
            if kind == "mask":
                noise, resample = 255 * (noise > 127), Image.Resampling.NEAREST
            image = Image.fromarray(noise.astype(np.uint8)).resize((width, height), resample)
            image.save(root / kind / f"{i}.jpg", quality=90)
        for i in range(samples):
            name = f"{i // 10:04d}_c{i % 3}_{i:05d}.jpg"
            (root / kind / "bounding_box_train" / name).hardlink_to(root / kind / f"{i % 8}.jpg")
        for split in ("query", "bounding_box_test"):
            (root / kind / split / "0000_c1_0.jpg").hardlink_to(root / kind / "0.jpg")
    return root


def recipe(root: Path, face: int, body: tuple[int, int], **more: Any) -> Options:
    return Options.model_validate(
        {
            "device": "cpu",
            "data_train": "celeb",
            "data": {"root": str(root), "face_size": [face, face], "body_size": [*body],
                     "workers": 1},
            **more,
        }
    )  # fmt: skip


def random_teacher(path: Path, classes: int, face: int, **network: Any) -> Teacher:
    torch.manual_seed(0)
    net = LMBN(classes, **network)
    names = [f"{i:04d}" for i in range(classes)]
    save(path, net, ModelInfo("teacher", network, classes, names, (face, face), None))
    return Teacher(net)


def run_alone(stage: Stage) -> None:
    """A stage without what comes before it, and without its manifest."""
    stage.folder.path.mkdir(parents=True, exist_ok=True)
    stage.run(Job(FileIndex()))


def teacher_stage(folder: Path) -> Iterator[Row]:
    """Stage one, full-size teacher, 96 samples × 4 views: time / bare decoding and forward."""
    samples, count, face, body = 96, 4, 224, (384, 128)
    root = prepared(folder, samples, face, body)
    network = {"width": 1.0, "block": "osnet", "feature_dim": 512}
    weights = folder / "full.safetensors"
    teacher = random_teacher(weights, -(-samples // 10), face, **network)
    options = recipe(root, face, body, cache={"views": count, "batch": 16}, pre_train=str(weights))
    table_, _ = read_index(root, LAYOUTS["celeb"], ("train",))
    images = ImageDataset(
        table_, {"hr_face": (face, face), "mask": body},
        DrawnViews(options.views, table_["sample_id"].tolist(), plain_view=True),
    )  # fmt: skip
    settings = settings_for(options, -(-samples // 10))
    teach = LiveTeacher(TARGETS, settings, [teacher], torch.device("cpu"))
    runs = iter(range(1000))

    def ours() -> None:
        run_alone(TeacherCache(options, RunFolder(folder / f"stage{next(runs)}")))

    def theirs() -> None:
        for part in batched(range(samples), 16):
            rendered = [images.__getitems__([(i, view) for view in range(count)]) for i in part]
            for view in range(count):
                teach({k: torch.stack([one[k][view] for one in rendered]) for k in rendered[0]})

    yield compare("teacher_stage", ours, theirs, 2)


class PlainLoader(Dataset[dict[str, torch.Tensor]]):
    """Images as most training code loads them: PIL, then torchvision's transforms."""

    def __init__(self, index: pd.DataFrame, sizes: dict[str, tuple[int, int]]) -> None:
        self.paths = {kind: index[kind].tolist() for kind in sizes}
        self.transforms = {
            kind: transforms.Compose(
                [
                    transforms.Resize(size),
                    transforms.ToTensor(),
                    transforms.Normalize(MEAN, STD),
                ]
            )
            for kind, size in sizes.items()
        }

    def __len__(self) -> int:
        return len(next(iter(self.paths.values())))

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        sample = {}
        for kind, transform in self.transforms.items():
            with Image.open(self.paths[kind][row]) as image:
                sample[kind] = transform(image.convert("RGB"))
        return sample


def loader(folder: Path) -> Iterator[Row]:
    """Samples per second on one core: stage two's loader, the views of a cache / PIL's of four and
    of two images, plain resize / decoding alone."""
    samples, face, body = 256, 224, (384, 128)
    root = prepared(folder, samples, face, body, lr_face=face)
    index, _ = read_index(root, LAYOUTS["celeb"], ("train",))
    sizes = {"imgs": body, "lr_face": (face, face), "hr_face": (face, face), "mask": body}
    two = {kind: sizes[kind] for kind in ("imgs", "lr_face")}
    views = DrawnViews(recipe(root, face, body).views, index["sample_id"].tolist()).table(1)
    images = ImageDataset(index, two, StoredViews(views), quick=[*two])
    batches = [[(row, 0) for row in part] for part in batched(range(samples), 32)]

    def drain(batches: Iterable[object]) -> None:
        for _ in batches:
            pass

    def decode() -> None:
        for kind in two:
            for path in index[kind]:
                torch.ops.image.decode_image(torch.ops.image.read_file(path), 3, False)

    def ours() -> None:
        drain(load(images, batches, 0, torch.device("cpu")))

    sides: dict[str, Callable[[], object]] = {
        "loader_four": lambda: drain(DataLoader(PlainLoader(index, sizes), 32)),
        "loader_two": lambda: drain(DataLoader(PlainLoader(index, two), 32)),
        "loader_decode": decode,
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    ours()
    for name, theirs in sides.items():
        timed = compare(name, ours, theirs, 7)
        speeds = samples / timed.ours, samples / timed.theirs
        yield Row(name, timed.theirs / timed.ours, *speeds, "samples/s", timed.runs, timed.spread)
    torch.set_num_threads(before)


def training(folder: Path) -> Iterator[Row]:
    """A full-size student's step with cached targets / without any; the same with embeddings, too;
    an epoch with cached targets / with the live teacher and four images per sample. Batches of 8;
    the second epoch of two, 5 steps each."""
    samples, face, body = 40, 224, (384, 128)
    root = prepared(folder, samples, face, body, lr_face=face)
    weights = folder / "full.safetensors"
    network = {"width": 1.0, "block": "osnet", "feature_dim": 512}
    random_teacher(weights, -(-samples // 10), face, **network)
    student = {"epochs": 2, "warmup_epochs": 1}
    options = recipe(root, face, body, batchid=4, batchimage=2,
                     cache={"views": 2, "targets": [*TARGETS]},
                     train_student=student, tensorboard={"enable": False},
                     pre_train=str(weights))  # fmt: skip
    run_alone(TeacherCache(options, RunFolder(folder)))
    runs = iter(range(1000))

    def seconds_a_step(changes: dict[str, object]) -> float:
        changed = override(options, changes)
        run = RunFolder(folder / f"run{next(runs)}", folder)
        run_alone(TrainStudent(changed, run))
        return 8 / float(pd.read_csv(run.history("student"))["images_per_s"].iloc[1])

    plain: dict[str, object] = {"kd_loss.enable": False, "mse.mse_weight": 0.0}
    live: dict[str, object] = {"train_student.live_teacher": True}
    every: dict[str, object] = {"embedding.weight": 10.0}
    sides = (plain, {}, every, live)
    turns = [tuple(seconds_a_step(changes) for changes in sides) for _ in range(3)]
    yield row("student_step", [(cached, without) for without, cached, _, _ in turns], "s/step")
    yield row("step, all targets", [(whole, without) for without, _, whole, _ in turns], "s/step")
    yield row("epoch", [(cached, online) for _, cached, _, online in turns], "s/step")


def peak_memory(folder: Path) -> Iterator[Row]:
    """Peak memory of stage one on 5,000 samples / on 500, narrow teacher, 2 views."""
    peaks = []
    weights = folder / "narrow.safetensors"
    random_teacher(weights, 500, 32, width=0.25, block="osnet", feature_dim=16)
    for samples in (5000, 500):
        root = prepared(folder, samples, 32, (64, 32))
        options = recipe(root, 32, (64, 32), cache={"views": 2})
        config = folder / f"{samples}.yaml"
        config.write_text(yaml.safe_dump(options.model_dump(mode="json")))
        where = ["--config", config, "--run", folder / f"run{samples}"]
        command = ["teacher-cache", *where, "--set", f"pre_train={weights}"]
        program = Path(sys.executable).with_name("deskpro")
        process = subprocess.Popen([program, *command], stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, f"stage one failed on {samples} samples"
        peaks.append(usage.ru_maxrss / 1e3)
    yield row("peak_memory", [(peaks[0], peaks[1])], "MB")


def people(random: np.random.Generator, count: int, pids: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample_id": [f"{i:07d}" for i in range(count)],
            "pid": random.integers(0, pids, count).astype(str),
            "camid": random.integers(0, 6, count),
        }
    )


def ranking(folder: Path) -> Iterator[Row]:
    """3,368 × 15,913 given distances, as Market-1501's: speed-up over sorting every row."""
    rng = np.random.default_rng(0)
    queries, gallery = 3368, 15_913
    query, others = people(rng, queries, 750), people(rng, gallery, 1500)
    # Without equal distances, which the two sides count differently.
    distances = rng.permuted(np.tile(np.float32(range(gallery)), (queries, 1)), axis=1)

    def counting() -> float:
        return rank_gallery(query, others, lambda rows: distances[rows], PROTOCOLS["market"]).mAP

    def sorting() -> float:
        order = np.argsort(distances, axis=1, kind="stable")
        pids, cams = others["pid"].to_numpy(), others["camid"].to_numpy()
        aps = []
        for i, (pid, cam) in enumerate(zip(query["pid"], query["camid"], strict=True)):
            hits, near = pids[order[i]] == pid, cams[order[i]] == cam
            found = np.flatnonzero(hits[~(hits & near)]) + 1
            if len(found):
                aps.append((np.arange(1, len(found) + 1) / found).mean())
        return float(np.mean(aps))

    assert abs(counting() - sorting()) < 1e-9
    timed = compare("ranking", counting, sorting, 3)
    yield replace(timed, ratio=timed.theirs / timed.ours)


def million(folder: Path) -> Iterator[Row]:
    """3,000 × 1,000,000 features of 512, float16, from their store: seconds and peak memory of
    ranking by the Market rule, both / those of the bare products, a block of queries at a time."""
    queries, gallery = 3000, 1_000_000
    schema = Schema(queries + gallery, 1, 4096, {
        "features": Field((1, 512), "float16", ("head", "feature"))
    })  # fmt: skip
    store, rng = folder / "features.zarr", np.random.default_rng(0)
    names = np.asarray([f"{i:07d}" for i in range(schema.samples)], object)
    columns = {"sample_id": Column(names, ("sample",))}
    with GroupWriter(store, GROUP, schema, columns, {}, depends=[*columns]) as writer:
        for block in writer.missing:
            rows = schema.rows(block)
            values = rng.standard_normal((rows.stop - rows.start, 1, 1, 512), np.float32)
            writer.write(block, {"features": (values / 512**0.5).astype(np.float16)})
        writer.seal()
    pairs = []
    for side in ("rank", "products"):
        command = [sys.executable, "-m", "tests.bench", f"--{side}", str(store)]
        started = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        pairs.append((time.perf_counter() - started, usage.ru_maxrss / 1e3))
    (ours, memory), (theirs, bare) = pairs
    yield row("million", [(ours, theirs)], "s")
    yield row("million_memory", [(memory, bare)], "MB")


def of_million(side: str, store: Path) -> None:
    """One side of `million`, in a process of its own."""
    queries, rng = 3000, np.random.default_rng(1)
    stored = FeatureStore(store, torch.device("cpu"), 0)
    count = stored.reader.schema.samples - queries
    everything = range(queries + count)
    distances = stored.distances(everything[:queries], everything[queries:], torch.ones(1))
    if side == "products":
        for start in range(0, queries, 64):
            distances(slice(start, min(start + 64, queries)))
        return
    query, gallery = people(rng, queries, 20_000), people(rng, count, 100_000)
    log(f"mAP {rank_gallery(query, gallery, distances, PROTOCOLS['market']).mAP:.2e}")


def serving(folder: Path) -> Iterator[Row]:
    """Images a second of an exported body stream by onnxruntime / by torch, channels last, one
    thread each: 128 × 64 at width 0.25, and full size."""
    import onnxruntime

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    sizes = {"serving_small": ((128, 64), 0.25, 64), "serving_full": ((384, 128), 1.0, 16)}
    for name, (size, width, batch) in sizes.items():
        torch.manual_seed(0)
        network = ExportedStream(LMBN(2, width=width, attention=True), inside=False).eval()
        content = WRITERS["onnx"](network, torch.zeros(2, 3, *size), {})
        session = onnxruntime.InferenceSession(content, settings)
        images = torch.randn(batch, 3, *size)
        last, first = images.contiguous(memory_format=torch.channels_last), images.numpy()

        @torch.inference_mode()
        def theirs(network: torch.nn.Module = network, images: torch.Tensor = last) -> None:
            network(images)

        def ours(session: Any = session, images: np.ndarray = first) -> None:
            session.run(["heads"], {"images": images})

        ours(), theirs()
        timed = compare(name, ours, theirs, 9)
        speeds = batch / timed.ours, batch / timed.theirs
        yield Row(name, timed.theirs / timed.ours, *speeds, "images/s", timed.runs, timed.spread)
    torch.set_num_threads(before)


def help_start(folder: Path) -> Iterator[Row]:
    """CPU seconds of `deskpro --help` / of a Python that imports click."""
    program = Path(sys.executable).with_name("deskpro")

    def seconds(*command: object) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    pairs = [
        (seconds(program, "--help"), seconds(sys.executable, "-c", "import click"))
        for _ in range(9)
    ]
    yield row("help_start", pairs, "CPU s")


def gallery(folder: Path, count: int = 100_000) -> Iterator[Row]:
    """1 and 100 queries in a gallery of 100,000 descriptors of 512 in two parts, float16: time of
    the exact search / torch's float32 products over the same rows of its database, in blocks."""
    rng, length = np.random.default_rng(0), 256
    parts = {"face": slice(0, length), "body": slice(length, 2 * length)}
    fusion = Fusion.fixed(0.5)

    def similarity(a: Features, b: Features) -> np.ndarray:
        face, body = (a.vectors[:, part] @ b.vectors[:, part].T for part in parts.values())
        return fusion.scores(face, body, a.has_face[:, None] & b.has_face)

    table = PictureTable(folder / "gallery", dict.fromkeys(parts, length), create=True)
    for some in batched(range(count), 50_000):
        vectors = rng.standard_normal((len(some), 2, length), np.float32) / length**0.5
        has_face = rng.random(len(some)) < 0.7
        vectors[~has_face, 0] = 0
        names, nothing = [f"{i:07d}" for i in some], [None] * len(some)
        table.write({
            "number": np.asarray(some), "path": names, "sha256": names, "person": nothing,
            "camera": nothing, "time": nothing, "face_path": nothing, "has_face": has_face,
            "face": vectors[:, 0], "body": vectors[:, 1],
        })  # fmt: skip
    for queries in (1, 100):
        vectors = rng.standard_normal((queries, 2 * length), np.float32) / length**0.5
        asked, given = Features(vectors, np.ones(queries, bool)), torch.from_numpy(vectors)

        def ours(asked: Features = asked) -> None:
            search(table, Comparison(parts, fusion, similarity), asked, 10)

        def theirs(given: torch.Tensor = given) -> None:
            query = table.table.search().select([*parts])
            for batch in query.to_batches(batch_size=8192):
                halves = [batch.column(name).flatten().to_numpy() for name in parts]
                block = np.concatenate([half.reshape(-1, length) for half in halves], 1)
                _ = given @ torch.from_numpy(block).float().T

        ours()
        yield compare(f"gallery, {queries} of {count:,}", ours, theirs, 5)


def demonstration(folder: Path, size: BenchmarkOptions) -> tuple[Options, RunFolder]:
    """The demonstration on a benchmark drawn here, as far as a teacher that hardly trained: one
    thread, one process."""
    make_benchmark(folder / "benchmark", size)
    changes: dict[str, object] = {"data.root": folder / "benchmark", "launch.threads": 1}
    changes |= {"train_teacher.max_steps": 2, "device": "cpu"}
    options = override(load_config(Path("configs/demo.yaml")), changes)
    run = RunFolder(folder / "run")
    runner.run_stage("train-teacher", options, run)
    return options, run


def item_seconds(options: Options, weights: Path, folder: Path, **launch: object) -> float:
    """Stage one, one thread for each worker: seconds an item takes once all workers have one done.

    So nothing counts of the start of Ray, of processes, and of networks.
    """
    changes: dict[str, object] = {f"launch.{name}": value for name, value in launch.items()}
    options = override(options, {**changes, "pre_train": weights})
    computed, times = teacher_cache._computed, list[float]()

    def timed(*arguments: Any) -> Iterator[Any]:
        for pair in computed(*arguments):
            times.append(time.perf_counter())
            yield pair

    with mock.patch.object(teacher_cache, "_computed", timed):
        run_alone(TeacherCache(options, RunFolder(folder)))
    first = options.launch.workers - 1
    return (times[-1] - times[first]) / (len(times) - 1 - first)


def workers(folder: Path, size: BenchmarkOptions | None = None) -> Iterator[Row]:
    """Stage one of the demonstration: time by a Ray worker / by this process; speed-up of two
    local workers over one. One thread each; the start of workers is left out."""
    options, run = demonstration(folder, size or BenchmarkOptions())
    before, runs = torch.get_num_threads(), iter(range(1000))
    torch.set_num_threads(1)

    def seconds(block: int, **launch: object) -> float:
        changed = override(options, {"cache.block": block})
        return item_seconds(changed, run.teacher, folder / f"stage{next(runs)}", **launch)

    turns = [(seconds(256, engine="ray"), seconds(256)) for _ in range(3)]
    yield row("teacher-cache, Ray worker", turns, "s/item")
    turns = [(seconds(64, workers=2), seconds(64)) for _ in range(3)]
    timed = row("teacher-cache, two workers", turns, "s/item")
    yield replace(timed, ratio=timed.theirs / timed.ours)
    torch.set_num_threads(before)


def several_students(folder: Path, size: BenchmarkOptions | None = None) -> Iterator[Row]:
    """Speed-up of two local workers over one, a thread each, at six students of the demonstration
    of two epochs each. The start of workers counts."""
    options, run = demonstration(folder, size or BenchmarkOptions())
    runs = iter(range(1000))
    runner.run_stage("teacher-cache", options, run)
    shorter = override(options, {"train_student.epochs": 2, "train_student.warmup_epochs": 1})

    def students_by(jobs: int) -> None:
        number = next(runs)
        tasks = [
            students.StudyTask(
                f"seed {seed}",
                override(shorter, {"train_student.seed": seed}),
                RunFolder(folder / f"students{number}" / f"{seed}", run.path),
            )
            for seed in range(6)
        ]
        make_worker = partial(students.trainer, students.Mode())
        assert len([*students.run_tasks(tasks, make_worker, shorter.launch, jobs, "bench")]) == 6

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    timed = compare("students, two workers", partial(students_by, 2), partial(students_by, 1), 2)
    torch.set_num_threads(before)
    yield replace(timed, ratio=timed.theirs / timed.ours)


def scale(folder: Path) -> Iterator[Row]:
    """A store of 400,000 samples × 4 views / 4 times one of 100,000, teacher and images null."""
    pairs = [(scaling.measure(400_000), scaling.measure(100_000)) for _ in range(3)]
    for part in scaling.PARTS:
        for what, unit in (("first", "s"), ("peak", "GB")):
            found = [(large[part][what], 4 * small[part][what]) for large, small in pairs]
            yield row(f"scale, {part}, {what}", found, unit)


ROWS: dict[str, Callable[[Path], Iterator[Row]]] = {
    part.__name__: part
    for part in (
        cache_read,
        store_size,
        teacher_stage,
        peak_memory,
        loader,
        training,
        ranking,
        million,
        serving,
        gallery,
        workers,
        several_students,
        scale,
        help_start,
    )
}


def main() -> None:
    """Measure the rows named on the command line, or all; the others keep their last figures."""
    if sys.argv[1:2] in (["--rank"], ["--products"]):
        of_million(sys.argv[1][2:], Path(sys.argv[2]))
        return
    wanted = sys.argv[1:] or list(ROWS)
    unknown = sorted(set(wanted) - set(ROWS))
    if unknown:
        sys.exit(f"bench: no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    rows = {}
    if OUT.is_file():
        rows = {each["name"]: Row(**each) for each in json.loads(OUT.read_text())}
    for name in wanted:
        log(f"bench: {ROWS[name].__doc__}")
        with tempfile.TemporaryDirectory() as folder:
            for measured in ROWS[name](Path(folder)):
                rows[measured.name] = measured
                log(f"bench: {measured.name}: {measured.ratio:.3f}")
                with write_aside(OUT) as aside:
                    found = [asdict(each) for each in rows.values()]
                    aside.write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        (r.name, f"{r.ratio:.3f}", f"{r.ours:.4g} {r.unit}", f"{r.theirs:.4g} {r.unit}",
         str(r.runs), f"{100 * r.spread:.0f} %")
        for r in rows.values()
    ]  # fmt: skip
    table("bench", ("what", "ratio", "ours", "theirs", "runs", "spread"), lines)


if __name__ == "__main__":
    main()
