"""Files of targets that another program wrote: .npz, zarr, .parquet. Nothing in them is run."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deskpro.cache.files import open_file, sha256
from deskpro.cache.foreign import array_names, folder_digest, read_array
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import bar
from deskpro.stages.targets.kinds import OF_TEACHERS

TARGETS = tuple(sorted(OF_TEACHERS))
HASHES = ("sha256", "hr_face_sha256", "mask_sha256")
COLUMNS = ("path", "view", "valid", "classes", *HASHES, *TARGETS)
"""What is read of a file."""
FORMATS = "an .npz file, a .parquet file, or a folder that is a zarr store"

_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, struct.error)


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
    with bar("read", 0, ""), _refusing(file):
        digest = folder_digest(file) if file.is_dir() else sha256(file)
        return Foreign(digest, *read(file))


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """Turn what libraries raise for a file that they can't read into one line."""
    try:
        yield
    except (*_DAMAGED, NotImplementedError, RuntimeError, OverflowError) as error:
        if isinstance(error, OSError) and error.filename not in (None, str(file)):
            raise
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{file}: can't be read: {_one_line(why) or repr(error)}") from None
    except MemoryError:
        raise InputError(f"{file}: its arrays are larger than the memory") from None


def _one_line(text: str) -> str:
    """The first lines of an error as one, as far as a line is readable."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:300] + "…"


def _chosen(names: Collection[str]) -> tuple[list[str], list[str]]:
    return [n for n in names if n in COLUMNS], sorted(n for n in names if n not in COLUMNS)


def _read_npz(file: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    with open_file(file) as opened:
        if not zipfile.is_zipfile(opened):
            raise ValueError("not a zip archive, as numpy.savez writes it, or its end is missing")
        opened.seek(0)
        members = Counter(zipfile.ZipFile(opened).namelist())
        if twice := [name for name, count in members.items() if count > 1]:
            raise ValueError(f"it has {', '.join(twice)} twice")
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as found:
            names, others = _chosen(found.files)
            return {name: _numbers_or_text(name, _load(found, name)) for name in names}, others


def _load(found: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(found[name])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"{name} is an array of objects, which are pickles and never loaded. Save text as "
            "numpy.array(…, dtype=str) and numbers as float32"
        ) from None


def _numbers_or_text(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biufSUT":
        raise ValueError(f"{name} is {array.dtype}; it must be numbers or text")
    return array


def _read_zarr(folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    names, others = _chosen(array_names(folder))
    if not names:
        raise ValueError(f"a folder without arrays of these names; it must be {FORMATS}")
    found = {name: read_array(folder, name, whole=name in TARGETS) for name in names}
    return {name: _numbers_or_text(name, array) for name, array in found.items()}, others


def _read_parquet(file: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns as arrays; `classes`, a JSON list, from the metadata of the schema."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{file}: .parquet needs the package pyarrow: {error}. Type: pip install '.[parquet]'"
        ) from None
    with open_file(file) as opened:
        source = parquet.ParquetFile(opened)
        names, others = _chosen([n for n in source.schema_arrow.names if n != "classes"])
        table = source.read(columns=names)
    found = {name: _from_arrow(name, table.column(name).chunks) for name in names}
    if text := (source.schema_arrow.metadata or {}).get(b"classes"):
        classes = json.loads(text)
        if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
            raise ValueError("classes in its metadata must be a JSON list of texts")
        found["classes"] = np.asarray(classes, str)
    return found, others


def _from_arrow(name: str, chunks: list[Any]) -> np.ndarray:
    """A column, [rows, …]: lists in lists become axes."""
    if not chunks:
        return np.empty(0)
    parts = [_unnested(name, chunk) for chunk in chunks]
    if len({part.shape[1:] for part in parts}) > 1:
        raise ValueError(f"the lists of {name} have several lengths")
    return np.concatenate(parts)


def _unnested(name: str, array: Any) -> np.ndarray:
    import pyarrow

    if hasattr(array, "to_numpy_ndarray"):  # tensors of a fixed shape
        return np.asarray(array.to_numpy_ndarray())
    shape, types = [len(array)], pyarrow.types
    while not array.null_count and "list" in str(array.type).partition("<")[0]:
        if types.is_fixed_size_list(array.type):
            lengths = [array.type.list_size]
        else:
            lengths = array.value_lengths().unique().to_pylist()
        if len(lengths) > 1:
            raise ValueError(f"the lists of {name} have several lengths: {sorted(lengths)[:4]}")
        shape.append(lengths[0] if lengths else 0)
        array = array.flatten()
    if array.null_count:
        raise ValueError(f"{name} has nulls; leave such rows out, or set valid to false")
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if "string" in str(array.type):
        return np.asarray(array.to_pylist(), str).reshape(shape)
    return _numbers_or_text(name, array.to_numpy(zero_copy_only=False)).reshape(shape)


_READERS: dict[str, Callable[[Path], tuple[dict[str, np.ndarray], list[str]]]] = {
    ".npz": _read_npz,
    ".parquet": _read_parquet,
}
