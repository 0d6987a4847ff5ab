"""Tables for papers."""

from __future__ import annotations

from deskpro.stages.reporting.paper import PaperTable, as_latex, as_markdown

TABLE = PaperTable("50 % of a_b & “c” ± 1", ["run", "x|y"], [["one\\two", "1.0"], ["#3", "−2"]])


def test_what_latex_reads_otherwise_is_escaped() -> None:
    text = as_latex([TABLE])
    assert r"\caption{50 \% of a\_b \& ``c'' $\pm$ 1}" in text
    assert r"one\textbackslash{}two & 1.0 \\" in text
    assert r"\#3 & $-$2 \\" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_a_table_of_markdown_has_as_many_cells_in_each_row() -> None:
    lines = as_markdown([TABLE, TABLE]).splitlines()
    assert lines[2] == "| run | x\\|y |"
    assert lines[3] == "| --- | ---: |"
    assert lines[:6] == lines[7:13] or lines[:6] == lines[6:12]
