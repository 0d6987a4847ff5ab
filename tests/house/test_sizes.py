"""Modules and functions that fit on a screen or two, and rooms that don't grow unnoticed."""

from __future__ import annotations

import ast
from collections import Counter

from tests.conftest import REPOSITORY
from tests.house.tree import MODULES, check, parse

MODULE, FUNCTION = 400, 60
"""Lines, blank ones and documentation counted."""

ROOMS = {
    "deskpro": 40, "cache": 1060, "pipeline": 1240, "stages": 1475, "stages/base": 1050,
    "stages/training": 640, "stages/targets": 450, "stages/evaluation": 410, "stages/losses": 195,
    "stages/metrics": 565, "stages/models": 910, "stages/data": 1020, "stages/preparation": 1320,
    "stages/reporting": 520,
}  # fmt: skip
"""Lines that a room is planned to have, without the folders in it."""


def lines(module: str) -> int:
    return len((REPOSITORY / module).read_text().splitlines())


def test_no_module_is_long() -> None:
    check("module size", {module for module in MODULES if lines(module) > MODULE})


def test_no_function_is_long() -> None:
    check("function size", {
        f"{module}: {node.name}"
        for module in MODULES for node in ast.walk(parse(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION
    })  # fmt: skip


def test_no_room_is_larger_than_planned() -> None:
    sizes: Counter[str] = Counter()
    for module in MODULES:
        sizes[module.rpartition("/")[0]] += lines(module)
    check("room size", {room for room, planned in ROOMS.items() if sizes[room] > planned})


def test_the_top_level_is_fixed() -> None:
    rooms = {module.split("/")[0] for module in MODULES}
    assert rooms == {"deskpro", "pipeline", "stages", "cache"}
    folders = {module.rpartition("/")[0] for module in MODULES}
    assert folders - ROOMS.keys() <= {"stages/data/benchmark", "stages/serving"}
