"""Tables for papers and issues: LaTeX with booktabs, and Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from deskpro.stages.reporting import cells

_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "“": "``", "”": "''", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "–": "--",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


class PaperTable(NamedTuple):
    """A table with its caption; the first column holds names."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def as_latex(tables: Sequence[PaperTable]) -> str:
    """Each as a floating table; needs the package booktabs."""
    return "\n".join(map(_latex, tables))


def as_markdown(tables: Sequence[PaperTable]) -> str:
    """Each as a table of GitHub's Markdown below its caption."""
    return "\n".join(map(_markdown, tables))


def _latex(table: PaperTable) -> str:
    lines = [" & ".join(map(_escape, row)) + r" \\" for row in (table.columns, *table.rows)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escape(table.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _markdown(table: PaperTable) -> str:
    return f"{table.caption}\n\n{cells.markdown(table.columns, table.rows, '---:')}\n"


def _escape(text: str) -> str:
    return re.sub(".", lambda found: _SPECIAL.get(found[0], found[0]), text)
