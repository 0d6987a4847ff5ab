"""Images of people whom nobody named: a student learns a teacher's targets from them alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from deskpro.stages.base.files import list_images
from deskpro.stages.base.names import Name
from deskpro.stages.data.index import Problem, by_stem, is_text, to_table
from deskpro.stages.data.layouts import KINDS, stem

UNLABELLED = "unlabelled"
"""Their split, and the beginning of their sample_id."""


def read_unlabelled(root: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """The table of the images below `root/imgs`, in any folders, and its problems.

    Rows are as `read_index` gives them, of the split `UNLABELLED` and without pid; sample_id is
    unlabelled/ and the path below imgs. Other kinds are found by the same path, whatever its
    extension; they may be absent.
    """
    bodies, problems = list_images(root / "imgs", "**/*"), list[Problem]()
    if not bodies:
        problems.append(Problem(root / "imgs", "no images without labels: set data.unlabelled"))
    found = dict[str, dict[str, str]]()
    for kind in KINDS:
        found[kind], ambiguous = by_stem(root / kind, list_images(root / kind, "**/*"))
        problems += ambiguous
    rows = list[dict[str, object]]()
    for path in bodies:
        if not is_text(path):
            problems.append(Problem(root / "imgs" / path, "its name isn't UTF-8; rename it"))
            continue
        row: dict[str, object] = {"split": UNLABELLED, "sample_id": f"{UNLABELLED}/{path}"}
        row |= dict.fromkeys(Name._fields) | {"camid": -1}
        rows.append(row | {kind: paths.get(stem(path)) for kind, paths in found.items()})
    return to_table(rows), problems
