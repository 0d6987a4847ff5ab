"""Compare evaluated runs: tables, charts, and a paired test of each difference."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import starmap
from pathlib import Path
from typing import Any

import pandas as pd

from deskpro.cache.files import write_aside, write_text
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import log, table, warn
from deskpro.stages.evaluation.image_digests import evaluated_images
from deskpro.stages.evaluation.paired import LEVEL, common, compared, differences, open_run
from deskpro.stages.metrics.intervals import holm
from deskpro.stages.reporting import cells, figures, results
from deskpro.stages.reporting.disagreements import disagreements
from deskpro.stages.reporting.paper import PaperTable, as_latex, as_markdown
from deskpro.stages.reporting.record import Run

WIDEST = "widest"
"""What the stream that sees most is called where runs have no stream of one name."""


def run(
    folders: Sequence[Path], out: Path, *, formats: Collection[str] = (), anyway: bool = False
) -> dict[str, object]:
    """Compare every run with the first; write compare.csv and charts into `out`.

    Streams are those of one name; of runs without any, the widest of each.

    A difference is the mean of the differences by query, with a 95 % bootstrap interval over
    identities and the two-sided p of random signs of identities, adjusted for the number of
    differences in its table (Holm). Both generalise to other people, not to other trainings of the
    same recipe.

    Args:
        formats: of `FORMATS`, what else is written.
        anyway: compare runs whose protocols or data differ on the protocols and queries that all
            of them have, instead of refusing.

    Raises:
        InputError: a run has no evaluation, or the runs have no queries in common.
    """
    runs = [
        open_run(folder, name, anyway=anyway)
        for folder, name in zip(folders, _names(folders), strict=True)
    ]
    if not set.intersection(*({stream for _, stream in run.queries} for run in runs)):
        runs = [*map(_widest, runs)]
    first, *others = runs
    differing = [line for other in others for line in differences(first, other)]
    shared = [pair for pair in first.queries if common(runs, *pair)]
    if not shared or (differing and not anyway):
        advice = ", or compare what they share: --anyway" if shared else "; they share no query"
        why = "; ".join(differing) or "no queries"
        raise InputError(
            f"these runs cannot be compared: {why}. Evaluate them on the same data by the same "
            f"protocols{advice}"
        )
    for line in differing + [line for other in others for line in _settings(first, other)]:
        log(f"compare: {line}")
    rows = pd.DataFrame([row for pair in shared for row in compared(runs, *pair)])
    tests = rows.groupby(["protocol", "measure"])["p"]  # a table each
    rows["p_holm"] = tests.transform(lambda values: holm(values.to_numpy()))
    with write_aside(out / "compare.csv") as aside:
        rows.to_csv(aside, index=False)
    for name in FORMATS:  # no tables or page of another comparison beside these numbers
        (out / f"compare.{name}").unlink(missing_ok=True)
    _draw(rows, out, first.name)
    _show(rows)
    for name in formats:
        write_text(out / f"compare.{name}", FORMATS[name](rows, runs))
    rules = [first.report["protocols"][name]["rule"] for name in rows["protocol"].unique()]
    return {
        "rules": "; ".join(rules),
        "note": "each run is one training; what another seed would give: deskpro sweep --seeds",
        "written": f"{out / 'compare.csv'}, compare.png, differences.png; .svg of both"
        + "".join(f"; compare.{name}" for name in formats),
    }


def _widest(run: Run) -> Run:
    """A run of which the stream alone counts that sees most: streams of another network may have
    other names."""
    stream = results.widest(dict.fromkeys(stream for _, stream in run.queries))
    log(f"compare: {run.name}: {stream} is the widest stream")
    queries = {(p, WIDEST): part for (p, s), part in run.queries.items() if s == stream}
    return replace(run, queries=queries)


def _names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders if they differ, otherwise their paths."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _settings(one: Run, other: Run) -> list[str]:
    """Options of the evaluation that differ; they may be what is compared."""
    found = [(run.name, run.report | {"gallery_network": _gallery(run)}) for run in (one, other)]
    (name, own), (other_name, theirs) = found
    return [
        f"{what} is {own.get(what)} in {name}, {theirs.get(what)} in {other_name}"
        for what in ("flip", "face_weight", "metric", "weights", "gallery_network")
        if own.get(what) != theirs.get(what)
    ]


def _gallery(run: Run) -> str:
    """Whose features the gallery has."""
    teacher = run.report.get("gallery_network")
    return f"teacher {teacher['sha256'][:12]}" if teacher else "student"


def _merged(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows by protocol; protocols with the same rows are one, with joined names."""
    found: list[tuple[list[str], pd.DataFrame]] = []
    for protocol, part in rows.groupby("protocol", sort=False):
        part = part.drop(columns="protocol").reset_index(drop=True)
        same = next((names for names, other in found if other.equals(part)), None)
        if same is not None:
            same.append(str(protocol))
        else:
            found.append(([str(protocol)], part))
    return {", ".join(names): part for names, part in found}


def _intervals(rows: pd.DataFrame, label: str, columns: Sequence[str]) -> list[figures.Interval]:
    """mAP, a group for each stream under each protocol.

    label: of a group, with the names of columns in braces; columns: of a value and its ends.
    """
    return [
        figures.Interval(
            label.format(protocol=protocol, stream=row["stream"], queries=row["queries"]),
            row["run"], row["stream"], *(100 * row[column] for column in columns),
        )
        for protocol, part in _merged(rows[rows["measure"] == "mAP"]).items()
        for row in part.to_dict("records")
    ]  # fmt: skip


def _draw(rows: pd.DataFrame, out: Path, first: str) -> None:
    """Draw mAP of every run, and its difference of every other run from the first."""
    label = "{stream} · {protocol} (n = {queries} queries)"
    drawn = _intervals(rows, label, ("value", "low", "high"))
    chart = figures.intervals(drawn, "mAP and its 95 % interval over identities")
    figures.write_figure(chart, out / "compare")
    label, ends = "{stream} · {protocol}, {queries} queries", ("difference_low", "difference_high")
    drawn = _intervals(rows[rows["p"].notna()], label, ("difference", *ends))
    title = f"mAP, paired difference from {first}, 95 % interval over identities"
    chart = figures.intervals(drawn, title, "difference, points", zero=True)
    figures.write_figure(chart, out / "differences")


def _show(rows: pd.DataFrame) -> None:
    """Print a table for each protocol and measure: a row per run, a column per stream."""
    for shown in paper_tables(rows, cells.stacked):
        table(*shown)


def _in_one_line(lines: list[str], is_best: bool) -> str:
    return "; ".join(lines)


def paper_tables(
    rows: pd.DataFrame, cell: Callable[[list[str], bool], Any] = _in_one_line
) -> list[PaperTable]:
    """A table for each protocol and measure: a row per run, a column per stream.

    cell: makes one text of value, difference and p; it is told whether the value is the highest.
    """
    found = []
    for protocol, part in _merged(rows).items():
        for measure, mine in part.groupby("measure", sort=False):
            # A run may be named twice: rows are told apart by their place.
            streams = {
                str(stream): [*starmap(cell, _cells(of_stream.to_dict("records")))]
                for stream, of_stream in mine.groupby("stream", sort=False)
            }
            names = mine.loc[mine["stream"] == mine["stream"].iat[0], "run"]
            caption = (
                f"{measure} (%), {protocol}: {mine['queries'].max()} queries of "
                f"{mine['identities'].max()} identities, 95 % intervals over identities; then the "
                f"paired difference from {names.iat[0]}, p adjusted for their number (Holm), and "
                f"“better” or “worse” where it is below {LEVEL:g}"
            )
            lines = [*zip(names, *streams.values(), strict=True)]
            found.append(PaperTable(caption, ["run", *streams], lines))
    return found


def _cells(rows: Sequence[Mapping[Any, Any]]) -> Iterator[tuple[list[str], bool]]:
    """The cells of a stream: each run's value, the difference from the first, p and verdict; and
    whether the value is the highest."""
    highest = cells.best([row["value"] for row in rows])
    for row, is_best in zip(rows, highest, strict=True):
        lines = [cells.within(*(row[end] for end in ("value", "low", "high")))]
        if not pd.isna(row["p"]):
            ends = (row["difference"], row["difference_low"], row["difference_high"])
            verdict = "better" if row["difference"] > 0 else "worse"
            marked = f", {verdict}" if row["p_holm"] < LEVEL else ""
            gap = cells.difference(*(100 * end for end in ends))
            lines += [gap, f"p {row['p_holm']:.3g}{marked}"]
        yield lines, is_best


def _page(runs: Sequence[Run]) -> str:
    """The page, with the images of the first run that has them still."""
    paths = dict[str, str]()
    for run in runs:
        images, why = evaluated_images(run.report, Path(run.report["data"]["root"]))
        if not why:
            paths = dict(zip(images["sample_id"], images["imgs"], strict=True))
            break
        warn(f"{run.name}: its images {why}")
    if not paths:
        warn("compare.html has no pictures")
    return disagreements(runs, paths)


FORMATS: dict[str, Callable[[pd.DataFrame, Sequence[Run]], str]] = {
    "tex": lambda rows, _: as_latex(paper_tables(rows)),
    "md": lambda rows, _: as_markdown(paper_tables(rows)),
    "html": lambda _, runs: _page(runs),
}
"""Suffix → the text of compare.SUFFIX."""
