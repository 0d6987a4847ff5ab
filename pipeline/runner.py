"""Run stages: make what is missing before one, leave what is fresh, never replace silently."""

from __future__ import annotations

import json
import platform
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from deskpro.cache.files import write_aside
from deskpro.pipeline import config, staleness
from deskpro.pipeline.stages import STAGES, Request, Stage, evaluate, labels
from deskpro.stages.base import ranks
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log, summary
from deskpro.stages.base.run_folder import RunFolder, read_json

_ANOTHER = "it isn't what the stage's record speaks of"


def run_stage(
    stage: Stage | str,
    options: Options,
    folder: RunFolder,
    *,
    force: bool = False,
    chain: bool = False,
    deep: bool = False,
) -> None:
    """Run a stage, making what is missing before it.

    A fresh output is left as it is unless `force`. A stale one is never replaced silently:
    InputError says why it is stale and what to type. `chain` brings everything before the stage up
    to date, not only what is missing (for `all`). `deep` reads every image again, whatever its
    time of change.
    """
    stage = STAGES[stage] if isinstance(stage, str) else stage
    name, folder = stage.name, stage.home(options, folder)
    if deep:
        folder.file_index.unlink(missing_ok=True)
    before = stage.upstream(options, folder)
    if before is not None:
        exists = before.output(options, folder).exists()
        if not exists:
            log(f"{name} needs {before.output(options, folder)}: running {before.name} first")
        if chain or not exists:
            run_stage(before, options, folder, chain=chain)
        _refuse_stale_upstream(before, options, folder, deep)

    output = stage.output(options, folder)
    stale = why_stale(stage, options, folder, deep) if output.exists() else []
    unrecorded = _unrecorded(stage, stale, options, folder)
    harmless = unrecorded or _grows(stage, stale, options, folder)
    again = deep and stage.quick_again and not stale
    if output.exists() and not (force or harmless or again):
        if not stale:
            log(f"{name}: {output} is fresh (FORCE=1 or --force runs it anyway)")
            return
        raise InputError(
            f"{name}: {output} is stale: {'; '.join(stale)}. It is not replaced silently. Type "
            f"make {name} FORCE=1 (or deskpro {name} … --force) to replace it, or set RUN or tag "
            "to keep it"
        )
    if unrecorded and stage.differences is None and not force:
        _run_again(stage, options, folder)
    else:
        _run(stage, options, folder, force)


def evaluate_alone(
    options: Options, network: Path, folder: RunFolder, *, force: bool, deep: bool
) -> None:
    """Evaluate a weights file on a data root: no cache, no teacher, no earlier stage is needed.

    Raises InputError where the file isn't there, or the folder is that of a training.
    """
    if not network.is_file():
        raise InputError(f"{network}: no such file. --checkpoint takes a weights file")
    if any(folder.manifest(name).exists() for name in STAGES if name != "eval"):
        raise InputError(
            f"{folder.path}: holds other stages of a run. Type make eval for its own student, or "
            "give another folder with --run"
        )
    plain = STAGES["eval"]
    alone = replace(
        plain,
        before=lambda options, folder: None,
        files=lambda options, folder: {"the network": network} | labels(options),
        # A teacher sees HR faces.
        images=(*plain.images, ("hr_face", "query"), ("hr_face", "gallery")),
        run=lambda options, folder, asked: evaluate(options, network, folder, kind=None),
    )
    run_stage(alone, options, folder, force=force, deep=deep)


def _run_again(stage: Stage, options: Options, folder: RunFolder) -> None:
    """Make an output again that lacks its record, and keep what was there if it was another."""
    output = stage.output(options, folder)
    if ranks.rank() > 0:
        _run(stage, options, folder, replace=False)
        return
    kept = output.with_name(output.name + ".unrecorded")
    while kept.exists():
        kept = kept.with_name(kept.name + "+")
    log(f"{stage.name}: {output} has no record; until it is made again it is kept as {kept}")
    output.rename(kept)
    _run(stage, options, folder, replace=False)
    if _identity(kept) == _identity(output):
        kept.unlink()
    else:
        log(f"{stage.name}: {kept} is kept: it was another one")


def why_stale(stage: Stage, options: Options, folder: RunFolder, deep: bool = False) -> list[str]:
    """Why a stage's existing output isn't what it would make now; empty when it is.

    deep: where the output knows the content of its images, compare that in any case.
    """
    record = folder.read_manifest(stage.name)
    output = stage.output(options, folder)
    if record is not None and output.exists() and record.get("output") != _identity(output):
        return [_ANOTHER]
    inputs = stage.inputs(options, folder)
    reasons = staleness.reasons(record, staleness.relevant(options, stage.options), inputs)
    if stage.changed is None or not output.exists():
        return reasons
    # By size and time of change some image is another one; the output itself knows which.
    vague = {staleness.changed(role) for role in stage.folders(options)}
    if not deep and not vague & {*reasons}:
        return reasons
    return [why for why in reasons if why not in vague] + stage.changed(options, folder)


def _grows(stage: Stage, stale: list[str], options: Options, folder: RunFolder) -> bool:
    """Whether an output is stale only for lacking what a larger option adds to it."""
    record = folder.read_manifest(stage.name)
    if record is None or stage.grows is None or len(stale) != 1:
        return False
    before = record["options"].get(stage.grows)
    now = staleness.relevant(options, [stage.grows])[stage.grows]
    return stale[0].startswith(f"{stage.grows} was ") and now > before


def _unrecorded(stage: Stage, stale: list[str], options: Options, folder: RunFolder) -> bool:
    """Whether an output is what would be made now, though its record doesn't say so: a kill came
    between the two. It is then made again, which costs little: from the last checkpoint, say."""
    if stale not in ([staleness.NO_RECORD], [_ANOTHER]):
        return False
    if stage.differences is not None:
        return not stage.differences(options, folder)
    begun = read_json(folder.begun(stage.name))
    now = staleness.relevant(options, stage.options), stage.inputs(options, folder)
    return begun is not None and not staleness.reasons(begun, *now)


def _refuse_stale_upstream(
    stage: Stage | None, options: Options, folder: RunFolder, deep: bool
) -> None:
    """Everything before must be what the options say, as far as it is still there to be asked.

    An output without a record was brought from elsewhere: it is taken as it is.
    """
    while stage is not None:
        home = stage.home(options, folder)
        output = stage.output(options, home)
        if stage.standing and not output.exists():
            raise InputError(
                f"{output}: missing, so {stage.name} was never done, or stopped half-way. "
                f"Type make {stage.name}"
            )
        if output.exists() and home.read_manifest(stage.name) is not None:
            stale = why_stale(stage, options, home, deep)
            if stage.lasting and {*stale} <= {staleness.changed(r) for r in stage.folders(options)}:
                for why in stale:
                    log(f"{output} is used as it is, though {why}")
            elif stale and not _unrecorded(stage, stale, options, home):
                force = "" if _grows(stage, stale, options, home) else " FORCE=1"
                raise InputError(
                    f"{output} is stale: {'; '.join(stale)}. Type make {stage.name}{force} to "
                    "bring it up to date, or set the options back"
                )
        stage = stage.upstream(options, folder)


def _identity(output: Path) -> str | None:
    """The content of an output, as its record names it: a crash or a copy can part the two."""
    return staleness.digests({"output": output}, {})["output"]


def _run(stage: Stage, options: Options, folder: RunFolder, replace: bool) -> None:
    if ranks.size() > 1 and not stage.parallel:
        raise InputError(
            f"{stage.name} runs in one process, {ranks.size()} were started. Run it without "
            "torchrun first"
        )
    inputs = stage.inputs(options, folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    asked = {"options": staleness.relevant(options, stage.options), "inputs": inputs}
    if ranks.rank() == 0:
        with write_aside(folder.begun(stage.name)) as aside:
            aside.write_text(json.dumps(asked) + "\n")
    provenance = {**asked["options"], **asked["inputs"]}
    try:
        facts = stage.run(options, folder, Request(replace, provenance))
    except BaseException:
        folder.begun(stage.name).unlink(missing_ok=True)
        raise
    if ranks.rank() > 0:
        _meet()
        return
    seconds = time.monotonic() - started
    with write_aside(folder.path / "config.yaml") as aside:
        aside.write_text(config.dump(options))
    folder.write_manifest(
        stage.name,
        {
            "stage": stage.name,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            **asked,
            "output": _identity(stage.output(options, folder)),
            "config": options.model_dump(mode="json"),
            "facts": dict(facts),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("deskpro", "torch", "zarr", "numpy", "pillow")},
        },
    )
    folder.begun(stage.name).unlink(missing_ok=True)
    if stage.scratch is not None:
        shutil.rmtree(stage.scratch(folder), ignore_errors=True)
    _meet()
    summary(f"{stage.name}: done in {_duration(seconds)}", facts)


def _meet() -> None:
    """Wait for the other processes: none looks for what the first hasn't written yet."""
    with ranks.join() as team:
        team.share(None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
