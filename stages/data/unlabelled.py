"""Images of people whom nobody named: a student learns a teacher's targets from them alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from deskpro.stages.base.names import Name
from deskpro.stages.data.files import list_images
from deskpro.stages.data.index import Problem, is_text, stem
from deskpro.stages.data.layouts import KINDS

UNLABELLED = "unlabelled"
"""Their split, and the beginning of their sample_id."""


def read_unlabelled(root: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """The table of the images below `root/imgs`, in any folders, and its problems.

    Rows are as `read_index` gives them, of the split `UNLABELLED` and without pid; sample_id is
    unlabelled/ and the path below imgs. Other kinds are found by the same path, whatever its
    extension; they may be absent.
    """
    paths = {kind: list_images(root / kind, "**/*") for kind in KINDS}
    problems = [
        Problem(root / kind / path, f"differs from {files[stem(path)]} in the extension alone")
        for kind, images in paths.items()
        if (files := {stem(path): path for path in images})
        for path in images
        if files[stem(path)] != path
    ]
    if not paths["imgs"]:
        problems.append(Problem(root / "imgs", "no images without labels: set data.unlabelled"))
    found = {kind: {stem(path): path for path in images} for kind, images in paths.items()}
    rows = list[dict[str, object]]()
    for path in paths["imgs"]:
        if not is_text(path):
            problems.append(Problem(root / "imgs" / path, "its name isn't UTF-8; rename it"))
            continue
        beside = {kind: found[kind].get(stem(path)) for kind in KINDS}
        row: dict[str, object] = {"split": UNLABELLED, "sample_id": f"{UNLABELLED}/{path}"}
        row |= dict.fromkeys(Name._fields) | {"camid": -1}
        rows.append(row | {k: file and f"{root}/{k}/{file}" for k, file in beside.items()})
    columns = ["split", "sample_id", *Name._fields, *KINDS]
    table = pd.DataFrame(rows, columns=columns, dtype=object).astype({"camid": "int64"})
    return table.where(table.notna(), None), problems
