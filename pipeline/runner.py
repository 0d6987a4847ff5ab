"""Run stages: first what is missing before one; fresh output is kept, stale output refused."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import sha256, write_text
from deskpro.cache.lock import hold
from deskpro.pipeline import config, messages, stages
from deskpro.pipeline.commit import commit
from deskpro.stages.base import distributed
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log, summary, warn, working
from deskpro.stages.base.run_folder import RunFolder, read_json, read_manifest
from deskpro.stages.base.stage import Digests, Job, Reason, Result, Stage

_UNRECORDED = ".unrecorded"
"""Suffix of an output without a manifest while it is made again."""
_VERSIONS = ("deskpro", "torch", "zarr", "numpy", "pillow")


def run_stage(
    stage: Stage | str,
    options: Options,
    folder: RunFolder,
    *,
    force: bool = False,
    chain: bool = False,
    update: bool = False,
    digests: Digests | None = None,
) -> None:
    """Run a stage, and before it what is missing.

    Args:
        stage: a stage, or its name.
        options: of the whole recipe.
        folder: the run.
        force: run it although its output is fresh, and replace the output.
        chain: bring every stage before it up to date, not only what is missing.
        update: run it where its output is stale; with `chain` those before it, too.
        digests: contents of files, shared by the stages of one command.

    Raises:
        InputError: the output is stale and neither force nor update is given, a stage before it is
            stale, another process runs a stage on this folder, or the input cannot be used.
    """
    stage = stages.make(stage, options, folder) if isinstance(stage, str) else stage
    digests = digests or Digests(FileIndex())
    if distributed.world_size() > 1 and not stage.distributed:
        raise InputError(messages.one_process(stage.name, distributed.world_size()))
    stage.check()
    before, main = _upstream(stage), distributed.is_main()
    with distributed.shared_errors():
        if before is not None:
            if missing := not _exists(before):
                log(messages.runs_first(stage, before))
            if chain or missing:
                run_stage(before, options, folder, chain=chain, update=update, digests=digests)
        with hold(stage.home.path, stage.name) if main else nullcontext(), working(stage.name):
            action = None
            if main:  # the others would see what this one has written since
                _refuse_stale_upstream(before, digests)
                action = _decide(stage, digests, force, update), _inputs(stage, digests)
            how, inputs = distributed.broadcast_object(action)
            if how == "fresh":
                if main and stage.home.started(stage.name).exists():
                    _tidy(stage)  # it was killed after its manifest was written
                if main and stage.home.path == folder.path:
                    folder.write_source()  # it may have moved
                log(messages.fresh(stage))
                return
            if how == "resume" and main:
                _set_aside(stage)
            provenance = {**inputs["params"], **inputs["deps"]}
            job = Job(digests.index, how == "force", force, digests.deep, provenance)
            _run(stage, digests, job, inputs)


def stale_reasons(stage: Stage, digests: Digests) -> list[Reason]:
    """Why the existing output of a stage is not what it would make now."""
    return stage.stale(read_manifest(stage.home.manifest(stage.name)), digests)


def refuse_stale(stage: Stage, digests: Digests) -> None:
    """Raise InputError where the output of a stage is there and stale, as `run_stage` would."""
    _decide(stage, digests, force=False, update=False)


def _decide(
    stage: Stage, digests: Digests, force: bool, update: bool
) -> Literal["fresh", "run", "resume", "force"]:
    """What to do with the stage; raises where its output is stale and may not be replaced."""
    if force:
        return "force"
    if not _exists(stage):
        return "run"
    reasons = stale_reasons(stage, digests)
    kinds, effects = {reason.kind for reason in reasons}, {reason.effect for reason in reasons}
    if effects == {"extend"} or (kinds == {"dep"} and digests.deep and stage.incremental):
        return "run"
    if reasons and _interrupted(stage, reasons, digests):
        return "resume"
    if _stopped(stage, digests):
        return "force"
    if not reasons:
        return "fresh"
    if not update:
        raise _stale(stage, reasons, " --force")
    log(messages.updates(stage, reasons))
    return "force"


def _set_aside(stage: Stage) -> None:
    """Rename an output that has no manifest and is about to be made again: it may be another's."""
    for path in stage.outs():
        kept = path.with_name(path.name + _UNRECORDED)
        while kept.exists():
            kept = kept.with_name(f"{kept.name}+")
        log(messages.saved_as(stage, path, kept))
        path.rename(kept)


def _tidy(stage: Stage) -> None:
    """Once the manifest is written, remove what only a stage under way needs.

    What --force started with other params or deps is kept: it may be resumed.
    """
    started, done = read_json(stage.home.started(stage.name)), stage.home.manifest(stage.name)
    if started and (manifest := read_manifest(done)) and not started.items() <= manifest.items():
        return
    for path in stage.outs():
        for kept in sorted(path.parent.glob(f"{path.name}{_UNRECORDED}*")):
            if sha256(kept) == sha256(path):
                kept.unlink()
            else:
                log(messages.content_differs(stage, kept))
    for folder in stage.scratch():
        shutil.rmtree(folder, ignore_errors=True)
    stage.home.started(stage.name).unlink(missing_ok=True)


def _upstream(stage: Stage) -> Stage | None:
    name = stage.upstream()
    return None if name is None else stages.make(name, stage.options, stage.folder)


def _exists(stage: Stage) -> bool:
    return all(path.exists() for path in stage.outs())


def _stamps(stage: Stage) -> list[tuple[int, int]]:
    """What tells the files of an output that are there from others in their place."""
    found = [path.stat() for path in stage.outs() if path.exists()]
    return [(status.st_ino, status.st_mtime_ns) for status in found]


def _interrupted(stage: Stage, reasons: list[Reason], digests: Digests) -> bool:
    """Whether a kill came between the output and its manifest, of these very params and deps.

    The stage is then run again, which costs little: from its last checkpoint, for one.
    """
    kinds = {reason.kind for reason in reasons}
    return kinds <= {"no-record", "out"} and _started(stage, digests)


def _stopped(stage: Stage, digests: Digests) -> bool:
    """Whether --force started it with these very params and deps, and left what it goes on from."""
    return _has_scratch(stage) and _started(stage, digests)


def _has_scratch(stage: Stage) -> bool:
    return any(folder.exists() for folder in stage.scratch())


def _started(stage: Stage, digests: Digests) -> bool:
    """Whether what is under way, or was when it ended early, is of these very params and deps."""
    return read_json(stage.home.started(stage.name)) == _inputs(stage, digests)


def _inputs(stage: Stage, digests: Digests) -> dict[str, Any]:
    """The params and deps of a stage, as the manifest has them."""
    return {"params": stage.param_values(), "deps": stage.digests(digests)}


def _refuse_stale_upstream(stage: Stage | None, digests: Digests) -> None:
    """Raise where what is left of the output of an earlier stage is not what the options give.

    An output without a manifest was brought from elsewhere and is used.
    """
    while stage is not None:
        exists = _exists(stage)
        if stage.required and not exists:
            raise InputError(messages.never_done(stage), command=stage.name)
        if exists and stage.home.manifest(stage.name).is_file():
            reasons = stale_reasons(stage, digests)
            effects = {reason.effect for reason in reasons}
            if effects == {"notice"}:
                warn(messages.used_although(stage, reasons))
            elif reasons and not _interrupted(stage, reasons, digests):
                resumes = effects == {"extend"} or _stopped(stage, digests)
                raise _stale(stage, reasons, "" if resumes else " --force")
        stage = _upstream(stage)


def _stale(stage: Stage, reasons: list[Reason], add: str) -> InputError:
    """No command is advised that replaces what other students learn from: that of `--from`."""
    of_source = stage.home.path == stage.folder.source
    command = "" if add and of_source else stage.name + add
    return InputError(messages.stale(stage, reasons, of_source=of_source), command=command)


def _run(stage: Stage, digests: Digests, job: Job, inputs: Mapping[str, Any]) -> None:
    main, start = distributed.is_main(), time.monotonic()
    started, new = stage.home.started(stage.name), not stage.home.path.exists()
    before = _stamps(stage)
    code = commit() if main else None  # it may be another one when a long stage ends
    if main:
        write_text(started, json.dumps(inputs) + "\n")
        # A command on the folder then resumes this run.
        if not _recipe_folder(stage).config.exists():
            record_recipe(stage.options, stage.folder, _recipe_folder(stage))
    try:
        result = stage.run(job)
    except BaseException:
        # New output without a manifest is made again by the same command, as after a kill; what is
        # left to go on from is resumed by it.
        if not _has_scratch(stage) and (not _exists(stage) or _stamps(stage) == before):
            started.unlink(missing_ok=True)
        stage.home.remove_empty(whole=new)
        raise
    digests.forget()
    if main:
        seconds = time.monotonic() - start
        _write_manifest(stage, result, seconds, inputs, digests, code)
        _tidy(stage)
        summary(messages.done(stage, seconds), messages.facts(stage, result))
    distributed.barrier()


def _recipe_folder(stage: Stage) -> RunFolder:
    """Whose recipe it is that the stage runs by."""
    return stage.folder if stage.home.path == stage.folder.upstream else stage.home


def record_recipe(options: Options, folder: RunFolder, home: RunFolder | None = None) -> None:
    """Write down the resolved options, and whose targets are used.

    home: where the recipe lies; that folder where not given.
    """
    write_text((home or folder).config, config.dump(options))
    folder.write_source()


def _write_manifest(
    stage: Stage,
    result: Result,
    seconds: float,
    inputs: Mapping[str, Any],
    digests: Digests,
    code: str | None,
) -> None:
    """The manifest is written last: without it the output is not known to be finished.

    code: the commit that the stage started with, if it is known; it makes nothing stale.
    """
    record_recipe(stage.options, stage.folder, _recipe_folder(stage))
    versions = {name: version(name) for name in _VERSIONS} | ({"commit": code} if code else {})
    manifest = {
        "stage": stage.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "processes": distributed.world_size(),
        **inputs,
        "outs": stage.out_digests(digests),
        "config": stage.options.model_dump(mode="json"),
        "result": asdict(result),
        "versions": {"python": platform.python_version(), **versions},
    }
    text = json.dumps(manifest, indent=1, default=str) + "\n"
    write_text(stage.home.manifest(stage.name), text)
