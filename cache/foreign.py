"""Arrays of a zarr store that another program wrote, v2 or v3: those directly below its folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr

from deskpro.cache.files import read_json, sha256

_METADATA = ("zarr.json", ".zarray")
_CODECS = ("codecs", "filters", "compressor", "dtype", "data_type")
"""Keys of the metadata that say how chunks are decoded."""


def folder_digest(folder: Path) -> str:
    """SHA-256 of every file's path and content, as hex digits.

    Raises:
        ValueError: something in it is neither a file nor a folder; links count as neither.
        OSError: a file can't be read.
    """
    digest = hashlib.sha256()
    for file in sorted(_files(folder)):
        name = file.relative_to(folder).as_posix()
        digest.update(f"{len(name)} {name} {sha256(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
        else:
            raise ValueError(f"{entry.name} is a link or no file; copy the store without it")


def array_names(folder: Path) -> list[str]:
    """The names of the arrays directly below a folder, sorted."""
    return sorted(path.name for path in folder.iterdir() if _metadata(path))


def read_array(folder: Path, name: str, *, whole: bool = False) -> np.ndarray:
    """An array below a folder, in memory. Nothing in it is executed.

    whole: every chunk must be there; zarr gives the fill value for one that isn't.

    Raises:
        ValueError: it is no array of numbers or text, a chunk is damaged, or one is missing.
        OSError: a file can't be read.
    """
    for file in _metadata(folder / name):
        if "pickle" in _codecs(file):
            raise ValueError(f"{name} may hold pickles, which are never loaded")
    try:
        # By its own metadata: a group's consolidated copy may tell of another codec.
        array = zarr.open_array(folder / name, mode="r")
        if whole and array.nchunks_initialized < array.nchunks:
            there = f"{array.nchunks_initialized} of {array.nchunks}"
            raise ValueError(f"{there} chunks of {name} are there")
        return np.asarray(array[...])
    except (KeyError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"{name}: {error}") from None


def _metadata(folder: Path) -> list[Path]:
    return [file for each in _METADATA if (file := folder / each).is_file()]


def _codecs(file: Path) -> str:
    """How the chunks of an array are decoded, as text in small letters."""
    found = read_json(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file.parent.name}/{file.name} is no metadata of zarr")
    return json.dumps([found.get(key) for key in _CODECS]).lower()
