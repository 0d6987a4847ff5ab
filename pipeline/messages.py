"""The wording of the pipeline: reasons, refusals, summaries, and the next command to type."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from deskpro.stages.base.params import LEAVES
from deskpro.stages.base.stage import Reason, Result, Stage
from deskpro.stages.reporting import cells

Facts = dict[str, object]

OPTIONS: list[str] = []
"""The options of the user's own command that every stage takes; the command line fills it in."""


def command(stage: str) -> str:
    """A stage with options to add → the whole command, with the user's own options."""
    name, *add = shlex.split(stage)
    return shlex.join(["deskpro", name, *OPTIONS, *add])


def reason(reason: Reason, stage: str) -> str:
    """Why an output is not fresh."""
    match reason:
        case Reason("no-record"):
            return "has no manifest"
        case Reason("store", name):
            return name
        case Reason("out", name):
            return f"{name} differs from its recorded digest"
        case Reason("param", name) if name in LEAVES:  # None is a value of it
            pass
        case Reason(kind, name, None, now):
            return f"{name} is new" + f": {_short(now)}" * (kind == "param")
        case Reason(_, name, _, None):
            return f"{name} is no longer used"
        case Reason("dep", name):
            return f"the content of {name} has changed since {stage} ran"
    return f"{reason.name} was {_short(reason.before)}, is {_short(reason.now)}"


def _short(value: object) -> str:
    """Long digests by their beginning."""
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def reasons(stage: Stage, found: Iterable[Reason]) -> str:
    return "; ".join(reason(each, stage.name) for each in found)


def fresh(stage: Stage) -> str:
    return f"{stage.name}: {stage.output} is fresh (--force or FORCE=1 runs it again)"


def stale(stage: Stage, found: Iterable[Reason], *, of_source: bool = False) -> str:
    """of_source: it is of the run that `--from` names, and others may use it, too."""
    rest = "choose another --run, or rebuild it (deskpro all --update rebuilds whatever is stale)"
    if of_source:
        rest = "or choose another --run, without --from, which makes its own"
    why = reasons(stage, found)
    return f"{stage.output} is stale: {why}. Left unchanged; restore the options, {rest}"


def updates(stage: Stage, found: Iterable[Reason]) -> str:
    return f"{stage.name}: {stage.output} is rebuilt: {reasons(stage, found)}"


def used_although(stage: Stage, found: Iterable[Reason]) -> str:
    return f"using {stage.output} although {reasons(stage, found)}"


def saved_as(stage: Stage, path: Path, kept: Path) -> str:
    return f"{stage.name}: {path} has no manifest; saved as {kept} during the rebuild"


def content_differs(stage: Stage, kept: Path) -> str:
    return f"{stage.name}: {kept} is kept: its content differs"


def runs_first(stage: Stage, before: Stage) -> str:
    return f"{stage.name} needs {before.output}: running {before.name} first"


def never_done(stage: Stage) -> str:
    return f"{stage.output}: missing, {stage.name} has not finished"


def one_process(stage: str, processes: int) -> str:
    return (
        f"{stage} runs in one process, torchrun started {processes}. Run it first without "
        "torchrun; --set launch.workers=N shares its work among processes"
    )


def done(stage: Stage, seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{stage.name}: done in " + f"{minutes} min " * (minutes > 0) + f"{rest} s"


def facts(stage: Stage, result: Result) -> Facts:
    """What a stage did, for its summary: in its own words, or as the fields of its result."""
    words = SUMMARIES.get(stage.name)
    if words is None:
        return {name.replace("_", " "): value for name, value in vars(result).items()}
    return {name: value for name, value in words(result).items() if value}


def _prepare(result: Any) -> Facts:
    left_out, removed = result.left_out, result.removed
    counts = sorted(result.skipped.items(), key=lambda pair: (-pair[1], pair[0]))
    skipped = ", ".join(f"{count} {suffix}" for suffix, count in counts)
    return {
        **{name: str(count) for name, count in result.summary.items()},
        "left out": left_out and f"{left_out} images, listed in {result.listing}",
        "removed": removed and f"{removed} images that are no longer in the raw dataset",
        "skipped": skipped and f"not images: {skipped}",
        "note": result.enlarged and "HR faces are bicubic enlargements: nothing was restored",
        "listing": result.listing,
        "contact sheet": result.page,
    }


def _data(data: Mapping[str, Any]) -> Facts:
    """Which samples were used."""
    return {
        "used": f"{data['samples']} samples of {data['identities']} identities",
        "unlabelled": data.get("unlabelled") and f"{data['unlabelled']} images without labels",
        "held out": data["held_out"] and f"{data['held_out']} identities, for validation",
        "left out": data["left_out"],
        "vanished": data["vanished"],
    }


def _training(training: Mapping[str, Any]) -> Facts:
    """What the training of either network did."""
    identities, images = training["batch"]
    short, start, losses = (training[k] for k in ("short_identities", "start", "losses"))
    held_out = "  ".join(f"{name} {100 * v:.1f}" for name, v in training["mAP"].items())
    return {
        "repeated": short and f"{short} identities have fewer than {images} images",
        "started from": start and f"{start['path']}, {start['loaded']} tensors",
        "fresh": start and f"{start['fresh']} tensors: {', '.join(start['modules']) or 'none'}",
        "not loaded": start and (", ".join(start["unused"]) or "nothing"),
        "steps": f"{training['steps']}, {identities}×{images} samples each",
        "mAP": held_out and f"{held_out} % on held-out identities",
        "last loss": "  ".join(f"{name} {value:.3f}" for name, value in losses.items()),
    }


def _teacher(result: Any) -> Facts:
    return {**_data(result.data), **_training(result.training), "teacher": result.path}


def _cache(result: Any) -> Facts:
    return {
        **_data(result.data),
        "views": f"{result.views} of each sample" + ", the first plain" * result.plain_view,
        **{
            target: kept and f"{kept} of {result.chunks} (block, view) were there"
            for target, kept in result.kept.items()
        },
        "cache": f"{result.path} ({result.bytes / 1e6:.1f} MB)",
    }


def _student(result: Any) -> Facts:
    return {
        "used": f"{result.samples} samples of {result.identities} identities, from {result.source}",
        "targets": result.targets and f"from {result.targets}",
        **_training(result.training),
        "size": f"{result.parameters / 1e6:.2f} M parameters",
        "cost": f"{result.macs / 1e6:.0f} M multiply-adds a sample",
        "student": result.path,
    }


def _blocks(kept: int, blocks: int, features: Path) -> str:
    return f"{kept} of {blocks} blocks were there: {features}"


def _eval(result: Any) -> Facts:
    own = _of_features(result) if hasattr(result, "parts") else _of_networks(result)
    return {
        "rules": "; ".join(result.rules),
        **own,
        "skipped": "  ".join(f"{name} {count} queries" for name, count in result.skipped.items()),
        "metrics": f"{result.metrics}; metrics, queries, breakdown, ranked.csv; cmc.png, cmc.svg",
    }


def _of_networks(result: Any) -> Facts:
    none, of_teacher = "no face stream", result.of_teacher
    return {
        "features": _blocks(result.kept, result.blocks, result.features),
        "teacher": of_teacher and _blocks(*(of_teacher[k] for k in ("kept", "blocks", "features"))),
        "attention": result.attention and _attention(result.attention),
        "without face": "  ".join(f"{k} {v}" for k, v in result.without_face.items()) or none,
        "without HR face": of_teacher and f"gallery {of_teacher['without_face']}",
    }


def _attention(found: Mapping[str, Any]) -> str:
    if "refused" in found:
        return f"head IoU not measured: {found['refused']}"
    return (
        f"head IoU {cells.within(found['head_iou'], *found['interval'])} % on {found['queries']} "
        f"queries with a mask; {cells.percent(found['uniform_iou'])} if it were the same everywhere"
    )


def _of_features(result: Any) -> Facts:
    parts = {name: f"{length} numbers" for name, (length, _) in result.parts.items()}
    absent = {name: without for name, (_, without) in result.parts.items() if without}
    return {
        "features": f"{result.file}: " + ", ".join(f"{k} of {v}" for k, v in parts.items()),
        "not there": ", ".join(f"{name} of {count} images" for name, count in absent.items()),
        "thresholds": "of test pairs alone: features of a file have no calibration",
        "not used": result.extra and f"{result.extra} rows of no image of query or gallery",
    }


SUMMARIES: dict[str, Callable[[Any], Facts]] = {
    "prepare": _prepare,
    "train-teacher": _teacher,
    "teacher-cache": _cache,
    "train-student": _student,
    "eval": _eval,
}
"""Stage → the facts of its summary; what is empty is left out."""


def student_result(name: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """What was measured of one student, whose rows these are."""
    records = [*rows]
    first, found = records[0], ", ".join(f"{r['stream']} {100 * r['mAP']:.1f}" for r in records)
    return f"{name}: mAP {found} % ({first['protocol']}), {first['minutes']:.1f} min"


def gain(distilled: Mapping[Any, Any], plain: Mapping[Any, Any], chance: float) -> str:
    """What distillation adds, of rows of `summaries.summarise`."""
    change, low, high = (distilled[name] for name in ("difference", "low", "high"))
    return (
        f"gain: {change:+.1f} points of mAP in `{distilled['stream']}` (95 % interval over "
        f"identities {low:.1f} to {high:.1f}): {distilled['mAP']:.1f} with the teacher's targets, "
        f"{plain['mAP']:.1f} without, {chance:.1f} by chance"
    )
