"""The project's modules, as its tests of structure read them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache

from tests.conftest import REPOSITORY
from tests.house.exceptions import EXCEPTIONS

MODULES = sorted(
    str(path.relative_to(REPOSITORY))
    for place in ("deskpro/*.py", "pipeline/**/*.py", "stages/**/*.py", "cache/**/*.py")
    for path in REPOSITORY.glob(place)
)
"""Paths below the repository; the links in deskpro/ are not followed."""


@cache
def parse(module: str) -> ast.Module:
    return ast.parse((REPOSITORY / module).read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that code imports, also inside functions, and torch.distributed's use."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (node.module or "")
            yield from (f"{package}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield "torch.distributed"


def room(module: str) -> str:
    """The room that a module belongs to: its folder, or the module itself directly below stages."""
    folders = module.removesuffix(".py").removesuffix("/__init__").split("/")
    if folders[0] == "stages":
        return "/".join(folders[:2])
    return folders[0]


def within(name: str, packages: Iterable[str]) -> bool:
    """Whether a dotted name is one of some packages, or below one."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def check(rule: str, found: Iterable[str]) -> None:
    """Fail unless what breaks a rule is exactly what the list of exceptions names."""
    broken, known = {*found}, EXCEPTIONS.get(rule, {})
    assert broken <= known.keys(), f"{rule}: {sorted(broken - known.keys())}"
    over = sorted(known.keys() - broken)
    assert not over, f"{rule}: no longer an exception, take it off the list: {over}"
