"""Names are words of the field: those of before the rebuild don't come back."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.house.tree import MODULES, check, parse

PRIVATE = {
    "lesson": "TrainingSet", "said": "targets", "told": "targets", "says": "the value's own name",
    "heard": "target_inputs", "watched": "metrics", "watcher": "Logger", "look": "view_params",
    "looks": "render_views", "ledger": "Journal", "memo": "file_index", "describer": "Extractor",
    "asked": "query_mask, query_…", "answerable": "has_positive", "lacking": "missing",
    "strangers": "foreign_files", "twofold": "duplicate_ids", "scarce": "short_identities",
    "opinion": "prediction", "portions": "batched", "mend": "fix", "photographs": "images_of",
    "teaching": "targets",
}  # fmt: skip
"""A word that nobody outside knows → what the field says."""


def names(tree: ast.AST) -> Iterator[str]:
    """Every name that code gives to a variable, argument, attribute, function or class."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name


def words(name: str) -> set[str]:
    return {*name.lower().split("_")}


def test_names_are_those_of_the_field() -> None:
    check("words", {
        f"{module}: {name} ({PRIVATE[word]})"
        for module in MODULES for name in names(parse(module)) for word in words(name) & {*PRIVATE}
    })  # fmt: skip


@pytest.mark.parametrize("code", ["def f(asked): ...", "x.told = 1", "class Lesson: ...", "_said"])
def test_private_words_are_found(code: str) -> None:
    assert any(words(name) & {*PRIVATE} for name in names(ast.parse(code)))
