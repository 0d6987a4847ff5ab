"""Files of targets that another program wrote: .npz, zarr, .parquet. Nothing in them is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deskpro.cache.files import sha256
from deskpro.cache.foreign import array_names, folder_digest, read_array
from deskpro.stages.base import foreign
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.foreign import FileArrays
from deskpro.stages.base.progress import working
from deskpro.stages.targets.kinds import OF_TEACHERS

TARGETS = tuple(sorted(OF_TEACHERS))
HASHES = ("sha256", "hr_face_sha256", "mask_sha256")
COLUMNS = ("path", "view", "valid", "classes", *HASHES, *TARGETS)
"""What is read of a file."""
FORMATS = "an .npz file, a .parquet file, or a folder that is a zarr store"


class Foreign(NamedTuple):
    """The arrays of a file by name, those of `COLUMNS` that it has."""

    sha256: str
    """Of the file, or of every path and content in the folder."""
    arrays: dict[str, np.ndarray]
    others: list[str]
    """Names in it that mean nothing here."""


def read_foreign(file: Path) -> Foreign:
    """A file with its arrays in memory.

    Raises InputError: it is not there, of another format, damaged, or holds pickles or objects.
    """
    if not file.exists():
        raise InputError(f"{file}: no such file. It must be {FORMATS}")
    read = _read_zarr if file.is_dir() else _READERS.get(file.suffix.lower())
    if read is None:
        raise InputError(f"{file}: {file.suffix or 'no suffix'} is no format; it must be {FORMATS}")
    with working("read"), foreign.refusing(file):
        digest = folder_digest(file) if file.is_dir() else sha256(file)
        found = read(file)
        return Foreign(digest, found.arrays, found.others)


def _read_zarr(folder: Path) -> FileArrays:
    names, others = foreign.chosen(array_names(folder), COLUMNS)
    if not names:
        raise ValueError(f"a folder without arrays of these names; it must be {FORMATS}")
    found = {name: read_array(folder, name, whole=name in TARGETS) for name in names}
    arrays = {name: foreign.numbers_or_text(name, array) for name, array in found.items()}
    return FileArrays(arrays, others)


def _read_parquet(file: Path) -> FileArrays:
    """Columns as arrays; `classes`, a JSON list, from the metadata of the schema."""
    found = foreign.read_parquet(file, {*COLUMNS} - {"classes"})
    if text := found.metadata.get(b"classes"):
        classes = json.loads(text)
        if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
            raise ValueError("classes in its metadata must be a JSON list of texts")
        found.arrays["classes"] = np.asarray(classes, str)
    others = [name for name in found.others if name != "classes"]
    return found._replace(others=others)


_READERS: dict[str, Callable[[Path], FileArrays]] = {
    ".npz": partial(foreign.read_npz, wanted=COLUMNS),
    ".parquet": _read_parquet,
}
