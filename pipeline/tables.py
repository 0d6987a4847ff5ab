"""The tables of studies: for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from deskpro.stages.reporting import cells

if TYPE_CHECKING:
    import pandas as pd

CHANCE, CLOTHES, TEACHER = "chance", "clothes reader", "teacher, HR face"
REFERENCES = (CHANCE, CLOTHES, TEACHER)
"""Variants that others are held against, and nothing to choose: a random order, who knows what
everyone wears and nothing else, and the teacher on HR faces."""

LEVEL, GAIN = 0.01, 2.0
"""What a verdict asks for: p below the one, a mean difference of at least the other, in points."""


class Cell(NamedTuple):
    """Lines of text; the first is bold where the value is the best of its column."""

    lines: Sequence[str]
    best: bool = False


class Table(NamedTuple):
    """What it shows, its columns and its rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def study_table(
    found: pd.DataFrame,
    base: str,
    heads: Mapping[str, Sequence[object]],
    columns: Sequence[str] = ("variant",),
    costs: Mapping[str, Callable[[Mapping[Any, Any]], str]] | None = None,
    over: str = "replicates",
) -> Table:
    """A row per variant, a column per stream: mAP, and below it the paired difference from `base`.

    Args:
        found: what `summaries.summarise` returns.
        heads: variant → its first cells, under `columns`.
        costs: the lines of a last column, each of a row of `found`.
        over: what is repeated.
    """
    streams = [*dict.fromkeys(found["stream"])]
    parts = {stream: found[found["stream"] == stream].set_index("variant") for stream in streams}
    highest = {
        (stream, variant): is_best
        for stream, part in parts.items()
        for choice in [part["mAP"].drop([*REFERENCES], errors="ignore")]
        for variant, is_best in zip(choice.index, cells.best([*choice]), strict=True)
    }
    rows = []
    for variant, head in heads.items():
        row = [Cell([str(value)]) for value in head]
        for stream, part in parts.items():
            known = variant in part.index
            lines = _result(part.loc[variant].to_dict()) if known else []
            row.append(Cell(lines, highest.get((stream, variant), False)))
        if costs:
            record = found[found["variant"] == variant].iloc[0].to_dict()
            row.append(Cell([words(record) for words in costs.values()]))
        rows.append(row)
    last = ["\n".join(costs)] if costs else []
    return Table(_title(found, base, over), [*columns, *streams, *last], rows)


def _result(row: Mapping[Any, Any]) -> list[str]:
    """The lines of a variant's cell."""
    lines = [cells.spread(row["mAP"], row["mAP_sd"])]
    change, low, high, p = (row[name] for name in ("difference", "low", "high", "p"))
    if math.isnan(change):
        return lines
    if change == 0 and math.isnan(low) and math.isnan(p):
        return [*lines, "same"]  # by construction
    lines += [cells.difference(change, low, high)]
    return lines if math.isnan(p) else [*lines, f"{verdict(change, p)} (p {_probability(p)})"]


def _probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _title(found: pd.DataFrame, base: str, over: str) -> str:
    count = int(found["replicates"].max())
    mean = f", mean ± standard deviation over {count} {over}" * (count > 1)
    return (
        f"mAP %, {found['protocol'].iat[0]} (n = {found['queries'].max()} queries){mean}; below it "
        f"the paired difference from {base} and its 95 % interval over "
        + (
            f"{over} (Student's t), and p, adjusted for the number of differences (Holm)"
            if count > 1
            else f"identities (bootstrap); one {over.removesuffix('s')}, so no test"
        )
    )


def ablation_table(found: pd.DataFrame, base: str) -> Table:
    """The table of a study whose differences are from the variant `base`."""
    return study_table(found, base, {str(name): [name] for name in found["variant"].unique()})


def sweep_table(
    found: pd.DataFrame, base: str, variants: Mapping[str, Mapping[str, object]]
) -> Table:
    """The table of a sweep: a column per swept option."""
    heads = {name: [*changes.values()] for name, changes in variants.items()}
    keys = [*next(iter(variants.values()))]
    costs: dict[str, Callable[[Mapping[Any, Any]], str]] = {
        "MACs": lambda row: f"{row['macs'] / 1e6:.0f} M",
        "params": lambda row: f"{row['parameters'] / 1e6:.2f} M",
        "min": lambda row: f"{row['minutes']:.1f}",
    }
    named = labels(variants)
    columns = [*short_names(keys).values()]
    return study_table(found, named[base], heads, columns, costs, over="seeds")


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Options by their last word where that tells them apart."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: word if [*last.values()].count(word) == 1 else key for key, word in last.items()}


def labels(variants: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """Combination → the values of its options that vary, as in `T=2, width=0.5`."""
    keys = [*next(iter(variants.values()))]
    vary = [key for key in keys if len({str(each[key]) for each in variants.values()}) > 1] or keys
    short = short_names(keys)
    return {
        name: ", ".join(f"{short[key]}={changes[key]}" for key in vary)
        for name, changes in variants.items()
    }


def terminal(table: Table) -> tuple[str, Sequence[str], list[list[Text]]]:
    """The arguments of `progress.table`."""
    rows = [[cells.stacked(cell.lines, cell.best) for cell in row] for row in table.rows]
    return table.title, table.columns, rows


def ablation_page(table: Table, facts: Mapping[str, str], findings: Sequence[str]) -> str:
    """The table of an ablation as Markdown, with what a reader must know.

    Args:
        facts: how it was made, by name.
        findings: sentences on what the table itself doesn't show.
    """

    def text(cell: Cell) -> str:
        first, *others = [*cell.lines] or [""]
        return "<br>".join([f"**{first}**" if cell.best else first, *others])

    rows = [[text(cell) for cell in row] for row in table.rows]
    return "\n".join(
        [
            f"{table.title}. "
            + "; ".join(f"{name}: {value}" for name, value in facts.items())
            + ".",
            f"A variant helps (harms) where p < {LEVEL:g} and the mean gain (loss) is at least "
            f"{GAIN:g} points.",
            "`same` is no test: the stream is that of the variant with which it would be compared.",
            "References have no difference: chance is a random order, the clothes reader knows",
            "what everyone wears and nothing else, and the teacher sees HR faces.",
            "",
            cells.markdown(table.columns, rows),
            "",
            *(f"* {finding}" for finding in findings),
            *([""] if findings else []),
        ]
    )


def verdict(difference: float, p: float) -> str:
    """What a mean difference in points of mAP is worth, by its adjusted p."""
    if p >= LEVEL or abs(difference) < GAIN:
        return "no clear effect"
    return "helps" if difference > 0 else "harms"
