"""Arrays in files that another program wrote: .npz and .parquet. Nothing in them is run."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deskpro.cache.files import open_file
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.extras import one_line, optional

_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, struct.error)

_NAMED = 3
"""Names in a message; the others are counted."""


class FileArrays(NamedTuple):
    """What is in a file."""

    arrays: dict[str, np.ndarray]
    """Those that are wanted, by name."""
    others: list[str]
    """The names of the others."""
    metadata: Mapping[bytes, bytes] = {}
    """Of the schema, in parquet."""


@contextmanager
def refusing(file: Path) -> Iterator[None]:
    """Turn what libraries raise for a file that they can't read into one line."""
    try:
        yield
    except (*_DAMAGED, NotImplementedError, RuntimeError, OverflowError) as error:
        if isinstance(error, OSError) and error.filename not in (None, str(file)):
            raise
        why = one_line(getattr(error, "strerror", None) or error)
        raise InputError(f"{file}: can't be read: {why}") from None
    except MemoryError:
        raise InputError(f"{file}: its arrays are larger than the memory") from None


def chosen(names: Collection[str], wanted: Collection[str] | None) -> tuple[list[str], list[str]]:
    """The names of wanted arrays, or of all, and those of others, sorted."""
    known = [name for name in names if wanted is None or name in wanted]
    return known, sorted({*names} - {*known})


def read_npz(file: Path, wanted: Collection[str] | None = None) -> FileArrays:
    """The arrays of an .npz file; wanted: their names, all unless given.

    Raises what `refusing` turns into one line.
    """
    with open_file(file) as opened:
        if not zipfile.is_zipfile(opened):
            raise ValueError("not a zip archive, as numpy.savez writes it, or its end is missing")
        opened.seek(0)
        members = Counter(zipfile.ZipFile(opened).namelist())
        if twice := [name for name, count in members.items() if count > 1]:
            raise ValueError(f"it has {', '.join(twice)} twice")
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as found:
            names, others = chosen(found.files, wanted)
            arrays = {name: numbers_or_text(name, _load(found, name)) for name in names}
            return FileArrays(arrays, others)


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


def numbers_or_text(name: str, array: np.ndarray) -> np.ndarray:
    """The array. Raises ValueError unless it holds numbers or text."""
    if array.dtype.kind not in "biufSUT":
        raise ValueError(f"{name} is {array.dtype}; it must be numbers or text")
    return array


def read_parquet(file: Path, wanted: Collection[str], *, lists: bool = False) -> FileArrays:
    """The wanted columns as arrays.

    lists: columns of lists are wanted, too, and a list that is null becomes zeros.

    Raises what `refusing` turns into one line; InputError where pyarrow isn't installed.
    """
    optional("pyarrow", f"{file}: .parquet", "parquet")
    from pyarrow import parquet

    with open_file(file) as opened:
        source = parquet.ParquetFile(opened)
        types = {field.name: str(field.type) for field in source.schema_arrow}
        of_lists = [name for name in types if lists and _lists(types[name])]
        names, others = chosen(types, [*wanted, *of_lists])
        table = source.read(columns=names)
    read = _with_nulls if lists else _from_arrow
    found = {name: read(name, table.column(name).chunks) for name in names}
    return FileArrays(found, others, source.schema_arrow.metadata or {})


def _lists(kind: str) -> bool:
    return "list" in kind.partition("<")[0] or "tensor" in kind


def _with_nulls(name: str, chunks: list[Any]) -> np.ndarray:
    """A column, [rows, …], whose lists that are null are 0."""
    if not any(_lists(str(chunk.type)) and chunk.null_count for chunk in chunks):
        return _from_arrow(name, chunks)
    there = np.concatenate([chunk.is_valid().to_numpy(zero_copy_only=False) for chunk in chunks])
    values = _from_arrow(name, [part for chunk in chunks if len(part := chunk.drop_null())])
    found = np.zeros((len(there), *values.shape[1:]), values.dtype)
    found[there] = values
    return found


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
        raise ValueError(f"{name} has nulls; leave such rows out")
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if "string" in str(array.type):
        return np.asarray(array.to_pylist(), str).reshape(shape)
    return numbers_or_text(name, array.to_numpy(zero_copy_only=False)).reshape(shape)


def texts(name: str, array: np.ndarray) -> list[str]:
    """An array of text as a list. Raises InputError where bytes are not UTF-8."""
    try:
        return [one.decode() if isinstance(one, bytes) else str(one) for one in array.tolist()]
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8: {error}") from None


def some(names: Iterable[str], most: int = _NAMED) -> str:
    """The first names, and how many follow."""
    found = [name if name.isprintable() else ascii(name) for name in names]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
