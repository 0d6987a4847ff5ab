"""Everything that the pipeline says: reasons, refusals, summaries, and the next command to type."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deskpro.stages.base.progress import table
from deskpro.stages.base.stage import Reason, Result, Stage

if TYPE_CHECKING:
    import pandas as pd

Facts = dict[str, object]


@dataclass
class Invocation:
    """The options of the user's own command that every stage takes."""

    config: Path | None = None
    run: Path | None = None
    source: Path | None = None
    overrides: tuple[str, ...] = ()


INVOCATION = Invocation()
"""Of this process; the command line fills it in."""


def command(stage: str) -> str:
    """A stage with options to add → the whole command, with the user's own options."""
    name, *add = stage.split()
    words = ["deskpro", name]
    for option, value in (
        ("--config", INVOCATION.config),
        ("--run", INVOCATION.run),
        ("--from", INVOCATION.source),
    ):
        words += [] if value is None else [option, str(value)]
    for override in INVOCATION.overrides:
        words += ["--set", override]
    return shlex.join([*words, *add])


def reason(reason: Reason, stage: str) -> str:
    """Why an output is not fresh."""
    if reason.kind == "no-record":
        return "has no manifest"
    if reason.kind == "store":
        return reason.name
    if reason.kind == "out":
        return "differs from its recorded digest"
    if reason.kind == "param":
        if reason.before is None:
            return f"{reason.name} is new: {_short(reason.now)}"
        if reason.now is None:
            return f"{reason.name} is no longer used"
        return f"{reason.name} was {_short(reason.before)}, is {_short(reason.now)}"
    if reason.before is None:
        return f"{reason.name} is new"
    if reason.now is None:
        return f"{reason.name} is no longer used"
    return f"{reason.name} changed since {stage} ran"


def reasons(stage: Stage, found: Iterable[Reason]) -> str:
    return "; ".join(reason(each, stage.name) for each in found)


def output(stage: Stage) -> Path:
    """The output that messages name."""
    return stage.outs()[0]


def fresh(stage: Stage) -> str:
    return f"{stage.name}: {output(stage)} is fresh (--force or FORCE=1 runs it again)"


def stale(stage: Stage, found: Iterable[Reason]) -> str:
    return (
        f"{output(stage)} is stale: {reasons(stage, found)}. Left unchanged; restore the options, "
        "choose another --run, or rebuild it (deskpro all --update rebuilds whatever is stale)"
    )


def updates(stage: Stage, found: Iterable[Reason]) -> str:
    return f"{stage.name}: {output(stage)} is rebuilt: {reasons(stage, found)}"


def used_although(stage: Stage, found: Reason) -> str:
    return f"warning: using {output(stage)} although {reason(found, stage.name)}"


def saved_as(stage: Stage, path: Path, kept: Path) -> str:
    return f"{stage.name}: {path} has no manifest; saved as {kept} during the rebuild"


def content_differs(stage: Stage, kept: Path) -> str:
    return f"{stage.name}: {kept} is kept: its content differs"


def runs_first(stage: Stage, before: Stage) -> str:
    return f"{stage.name} needs {output(before)}: running {before.name} first"


def never_done(stage: Stage) -> str:
    return f"{output(stage)}: missing, {stage.name} has not finished"


def one_process(stage: str, processes: int) -> str:
    return (
        f"{stage} runs in one process, torchrun started {processes}. Run it first without "
        "torchrun; --set launch.workers=N shares its work among processes"
    )


def done(stage: Stage, seconds: float) -> str:
    return f"{stage.name}: done in {duration(seconds)}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def facts(stage: Stage, result: Result) -> Facts:
    """What a stage did, for its summary: in its own words, or as the fields of its result."""
    words = SUMMARIES.get(stage.name)
    if words is not None:
        return words(result)
    return {name.replace("_", " "): value for name, value in vars(result).items()}


def _teacher(result: Any) -> Facts:
    return _data(result.data) | _training(result.training) | {"teacher": result.path}


def _cache(result: Any) -> Facts:
    found = _data(result.data)
    found["views"] = f"{result.views} of each sample" + ", the first plain" * result.plain_view
    for target, kept in result.kept.items():
        if kept:
            found[target] = f"{kept} of {result.chunks} (block, view) were there"
    return found | {"cache": f"{result.path} ({result.bytes / 1e6:.1f} MB)"}


def _student(result: Any) -> Facts:
    used = f"{result.samples} samples of {result.identities} identities, from {result.source}"
    found: Facts = {"used": used}
    if result.targets:
        found["targets"] = f"from {result.targets}"
    found |= _training(result.training)
    found["size"] = f"{result.parameters / 1e6:.2f} M parameters"
    found["cost"] = f"{result.macs / 1e6:.0f} M multiply-adds a sample"
    return found | {"student": result.path}


def _training(training: Mapping[str, Any]) -> Facts:
    """What the training of either network did."""
    found: Facts = {}
    identities, images = training["batch"]
    if training["short_identities"]:
        short = training["short_identities"]
        found["repeated"] = f"{short} identities have fewer than {images} images"
    if training["start"] is not None:
        start = training["start"]
        found["started from"] = f"{start['path']}, {start['loaded']} tensors"
        found["fresh"] = f"{start['fresh']} tensors: {', '.join(start['modules']) or 'none'}"
        found["not loaded"] = ", ".join(start["unused"]) or "nothing"
    found["steps"] = f"{training['steps']}, {identities}×{images} samples each"
    losses = training["losses"].items()
    return found | {"last loss": "  ".join(f"{name} {value:.3f}" for name, value in losses)}


def _eval(result: Any) -> Facts:
    none = "no face stream"
    return {
        "rules": "; ".join(result.rules),
        "features": f"{result.kept} of {result.blocks} blocks were there: {result.features}",
        "without face": "  ".join(f"{k} {v}" for k, v in result.without_face.items()) or none,
        "skipped": "  ".join(f"{name} {count} queries" for name, count in result.skipped.items()),
        "metrics": f"{result.metrics}; metrics, queries, breakdown, ranked.csv; cmc.png",
    }


def _data(data: Mapping[str, Any]) -> Facts:
    """Which samples were used."""
    found: Facts = {"used": f"{data['samples']} samples of {data['identities']} identities"}
    if data["left_out"]:
        found["left out"] = f"{data['left_out']} samples, listed in {data['listing']}"
    if data["vanished"]:
        found["vanished"] = "identities without a sample left: " + ", ".join(data["vanished"])
    return found


def _short(value: object) -> str:
    """Long digests by their beginning."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def _prepare(result: Any) -> Facts:
    found = dict(result.summary)
    if result.left_out:
        found["left out"] = f"{result.left_out} images, listed in {result.listing}"
    if result.removed:
        found["removed"] = f"{result.removed} images that are no longer in the raw dataset"
    if result.skipped:
        counts = sorted(result.skipped.items(), key=lambda pair: (-pair[1], pair[0]))
        found["skipped"] = "not images: " + ", ".join(f"{n} {suffix}" for suffix, n in counts)
    if result.enlarged:
        found["note"] = "HR faces are bicubic enlargements: nothing was restored"
    return found | {"listing": result.listing, "contact sheet": result.page}


SUMMARIES: dict[str, Callable[[Any], Facts]] = {
    "prepare": _prepare,
    "train-teacher": _teacher,
    "teacher-cache": _cache,
    "train-student": _student,
    "eval": _eval,
}
"""Stage → the facts of its summary."""


def demo_table(
    found: pd.DataFrame,
) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """Title, columns and lines of the demonstration's result."""
    result = {(row["variant"], row["stream"]): row for row in found.to_dict("records")}
    lines: list[tuple[str, ...]] = []
    for stream in ("face", "body", "all"):
        plain, both = result["plain", stream], result["both", stream]
        cells = []
        for measure in ("mAP", "rank1"):
            gain = both[measure] - plain[measure]
            cells += [f"{plain[measure]:.1f}", f"{both[measure]:.1f}", f"{gain:+.1f}"]
        lines.append((stream, *cells))
    teacher = result["teacher", "face"]
    numbers = [f"{teacher[measure]:.1f}" for measure in ("mAP", "rank1")]
    lines.append(("teacher, HR face", "", numbers[0], "", "", numbers[1], ""))
    return (
        "LR student without and with the teacher's cached targets (%, Market rule)",
        ("stream", "mAP plain", "mAP distilled", "", "rank-1 plain", "rank-1 distilled", ""),
        lines,
    )


def ablation_table(rows: pd.DataFrame, found: pd.DataFrame, base: str, command: str) -> str:
    """The table of an ablation as Markdown; printed too."""
    columns = ("variant", "stream", "seeds", "mAP %", "rank-1 %", f"mAP over {base}")
    lines = [
        (
            row["variant"],
            row["stream"],
            str(row["seeds"]),
            _spread(row["mAP"], row["mAP_sd"]),
            _spread(row["rank1"], row["rank1_sd"]),
            "" if row["variant"] in (base, "teacher") else verdict(row),
        )
        for row in found.to_dict("records")
    ]
    table("ablation", columns, lines)
    seeds = ", ".join(map(str, sorted(set(rows.loc[rows["variant"] != "teacher", "seed"]))))
    text = [
        f"Mean ± standard deviation over the seeds {seeds}; Market rule; made by `{command}`.",
        "A gain helps (harms) where it exceeds twice the pooled standard deviation. The teacher",
        "sees HR faces: an upper reference for `face`, from one seed.",
        "",
        *("| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *lines)),
    ]
    return "\n".join(text) + "\n"


def verdict(row: Mapping[Any, Any]) -> str:
    """What a gain over the base is worth, measured by the spread over seeds."""
    if math.isnan(row["gain"]):
        return ""
    if math.isnan(row["pooled_sd"]):
        return f"{row['gain']:+.1f} (one seed: no spread)"
    clear = abs(row["gain"]) > 2 * row["pooled_sd"]
    word = ("helps" if row["gain"] > 0 else "harms") if clear else "no clear effect"
    return f"{row['gain']:+.1f} ({word}; pooled sd {row['pooled_sd']:.1f})"


def sweep_table(found: pd.DataFrame) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and lines of a sweep."""
    columns = ("combination", "stream", "seeds", "mAP %", "rank-1 %", "size", "cost", "minutes")
    return columns, [
        (
            row["combination"],
            row["stream"],
            str(row["seeds"]),
            _spread(row["mAP"], row["mAP_sd"]),
            _spread(row["rank1"], row["rank1_sd"]),
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['macs'] / 1e6:.0f} M MACs",
            f"{row['minutes']:.1f}",
        )
        for row in found.to_dict("records")
    ]


def _spread(mean: float, sd: float) -> str:
    """A mean over seeds with its standard deviation; alone where there is one seed."""
    return f"{mean:.1f}" if math.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"
