"""The tables of studies: for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.markup import escape

from deskpro.stages.reporting import cells

if TYPE_CHECKING:
    import pandas as pd

TEACHER = "teacher, HR face"
"""The variant that is an upper reference of `face`, and nothing to choose."""


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
) -> Table:
    """A row per variant, a column per stream: mAP, and below it the paired difference from `base`.

    Args:
        found: what `studies.summarise` returns.
        heads: variant → its first cells, under `columns`.
        costs: the lines of a last column, each of a row of `found`.
    """
    streams = [*dict.fromkeys(found["stream"])]
    parts = {stream: found[found["stream"] == stream].set_index("variant") for stream in streams}
    highest = {
        (stream, variant): is_best
        for stream, part in parts.items()
        for choice in [part["mAP"].drop(TEACHER, errors="ignore")]
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
    return Table(_title(found, base), [*columns, *streams, *last], rows)


def _result(row: Mapping[Any, Any]) -> list[str]:
    """The lines of a variant's cell."""
    lines = [cells.spread(row["mAP"], row["mAP_sd"])]
    change, low, high = (row[name] for name in ("difference", "low", "high"))
    if not math.isnan(change):
        lines += [cells.difference(change, low, high)]
        lines += [verdict(low, high)] if row["seeds"] > 1 else []  # one seed can't tell
    return lines


def _title(found: pd.DataFrame, base: str) -> str:
    seeds = int(found["seeds"].max())
    mean = f", mean ± standard deviation over {seeds} seeds" * (seeds > 1)
    return (
        f"mAP %, {found['protocol'].iat[0]} (n = {found['queries'].max()} queries){mean}; below it "
        f"the paired difference from {base} and its 95 % interval over "
        + ("seeds (Student's t)" if seeds > 1 else "identities (bootstrap); one seed")
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
    return study_table(found, named[base], heads, [*short_names(keys).values()], costs)


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


def terminal(table: Table) -> tuple[str, Sequence[str], list[list[str]]]:
    """The arguments of `progress.table`, with rich's markup."""

    def text(cell: Cell) -> str:
        first, *others = [*map(escape, cell.lines)] or [""]
        return "\n".join([cells.bold(first, cell.best), *others])

    return (
        escape(table.title),
        [*map(escape, table.columns)],
        [[text(cell) for cell in row] for row in table.rows],
    )


def ablation_page(table: Table, seeds: Iterable[int], command: str) -> str:
    """The table of an ablation as Markdown, with what a reader must know."""

    def text(cell: Cell) -> str:
        first, *others = [*cell.lines] or [""]
        return "<br>".join([f"**{first}**" if cell.best else first, *others])

    lines = (table.columns, ["---"] * len(table.columns), *(map(text, row) for row in table.rows))
    return "\n".join(
        [
            f"{table.title}. Seeds: {', '.join(map(str, seeds))}; made by `{command}`.",
            "A variant helps (harms) where the interval lies above (below) 0. The teacher sees HR",
            "faces: an upper reference for `face`, from one seed.",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
        ]
    )


def verdict(low: float, high: float) -> str:
    """What a difference is worth, by its interval."""
    return "helps" if low > 0 else "harms" if high < 0 else "no clear effect"
