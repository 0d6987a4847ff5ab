"""What breaks a rule of the house today: rule → place → reason. Nothing else may.

An entry that is no longer needed fails its test, so that the list only shrinks.
"""

from __future__ import annotations

PLANNED = "more than planned in the design; its features are all in use"

EXCEPTIONS: dict[str, dict[str, str]] = {
    "imports by string": {"stages/base/extras.py": "the libraries of the extras"},
    "work at import": {},
    "module size": {},
    "function size": {
        "stages/targets/comparison.py: compare": PLANNED,
    },
    "room size": dict.fromkeys(
        ("cache", "pipeline", "stages", "stages/base", "stages/data", "stages/evaluation",
         "stages/losses", "stages/metrics", "stages/models", "stages/preparation",
         "stages/reporting", "stages/targets", "stages/training"),
        PLANNED,
    ),
}  # fmt: skip
