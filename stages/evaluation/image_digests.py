"""Whether images are those of an evaluation: by what `metrics.json` says of their contents."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deskpro.cache.file_index import FileIndex
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import Name
from deskpro.stages.data.index import content_hashes, read_index
from deskpro.stages.data.layouts import layout_of

LABELS = "labels"
"""The digest of what the names of images say."""


def evaluate_again(run: Path) -> str:
    """The command that replaces the evaluation of a run folder."""
    return shlex.join(["eval", "--run", str(run), "--force"])


def labels_digest(images: pd.DataFrame) -> str:
    """SHA-256 of the names of images and of what is known by them; images: by their names."""
    # Without times the digest is that of before they could be known.
    facts = [name for name in Name._fields if name != "time" or images[name].notna().any()]
    return hashlib.sha256(images[["sample_id", *facts]].to_csv(index=False).encode()).hexdigest()


def contents_digest(contents: np.ndarray) -> str:
    """SHA-256 of the contents of images, uint8 [N, bytes], in their order."""
    return hashlib.sha256(contents.tobytes()).hexdigest()


def evaluated_images(metrics: Mapping[str, Any], root: Path) -> tuple[pd.DataFrame, str]:
    """The table of query and gallery below `root`; without rows where they aren't those of
    metrics.json, and then what is wrong with them."""
    data, nothing = metrics["data"], pd.DataFrame({"split": [], "pid": []})
    try:
        layout = layout_of(root, data["dataset"])
        table = read_index(root, layout, ("query", "gallery"))[0]
    except InputError:
        return nothing, f"are not found at {root}"
    if changed := [*_differing(table.sort_values("sample_id"), data["digests"])]:
        return nothing, f"at {root} are not those that were evaluated ({', '.join(changed)} differ)"
    return table, ""


def _differing(images: pd.DataFrame, recorded: Mapping[str, str]) -> Iterator[str]:
    """Kinds of images whose digest isn't the recorded one, and `LABELS`."""
    if labels_digest(images) != recorded.get(LABELS):
        yield LABELS
        return
    index = FileIndex()
    for kind in [kind for kind in recorded if kind in images]:
        try:
            found = contents_digest(content_hashes(images[kind].tolist(), index))
        except InputError:
            found = "an image can't be read"
        if found != recorded[kind]:
            yield kind
