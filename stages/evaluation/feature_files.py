"""Features of images in files that another program wrote; their rows are found by path.

Nothing in a file is run. What is wrong is an InputError that names it.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import pandas as pd

from deskpro.cache.files import open_file, read_text
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.files import list_images
from deskpro.stages.base.foreign import (
    FileArrays,
    numbers_or_text,
    read_npz,
    read_parquet,
    refusing,
    some,
    texts,
)
from deskpro.stages.base.names import FACE_HR
from deskpro.stages.base.progress import working
from deskpro.stages.data.index import read_table, stem

FORMATS = (
    "an .npz or .parquet file, a .csv file beside an .npy file of the same name, or a folder of "
    ".npy files"
)
PATHS = ("path", "paths")
"""Names of the array that says of which image a row is."""
ALONE = "features"
"""The part of a format that has one without a name."""
LARGEST = 1e30
"""A number of this size squared, and summed over a feature, is finite."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,59}", re.ASCII)


class FeatureFile(NamedTuple):
    """What a file holds."""

    paths: list[str]
    parts: dict[str, np.ndarray]
    """Part of the feature → numbers [rows, D], as they are stored."""
    others: list[str]
    """What else is in it, and not used."""
    stems: bool = False
    """Whether paths may lack the extension of their image."""


def sources(file: Path) -> list[tuple[Path, str | None]]:
    """The files that a features file consists of: paths, or a folder with a pattern."""
    if file.is_dir():
        return [(file, "**/*.npy")]
    if file.suffix.lower() in (".csv", ".npy"):
        return [(file.with_suffix(".csv"), None), (file.with_suffix(".npy"), None)]
    return [(file, None)]


def require_file(file: Path) -> None:
    """Raise InputError where nothing is there."""
    if not file.exists():
        raise InputError(f"{file}: no such file. It must be {FORMATS}")


def read_features(file: Path) -> FeatureFile:
    """A file with its arrays in memory.

    Raises:
        InputError: it is not there, of another format, damaged, holds pickles or objects, has no
            paths or no features, or arrays of other lengths.
    """
    require_file(file)
    with working("read"), refusing(file):
        if file.is_dir():
            return _read_folder(file)
        suffix = file.suffix.lower()
        if suffix == ".npz":
            return _checked(file, read_npz(file))
        if suffix == ".parquet":
            return _checked(file, read_parquet(file, PATHS, lists=True))
        if suffix in (".csv", ".npy"):
            return _checked(file, _read_csv(file.with_suffix(".csv")))
    raise InputError(f"{file}: {suffix or 'no suffix'} is no format; it must be {FORMATS}")


def _read_csv(file: Path) -> FileArrays:
    for one in (file, file.with_suffix(".npy")):
        if not one.exists():
            other = "the features" if one.suffix == ".npy" else "their paths"
            raise InputError(f"{one}: no such file; it must have {other}")
    table = read_table(read_text(file))
    paths = {name: table[name].to_numpy(str) for name in PATHS if name in table}
    if not paths:
        raise InputError(f"{file}: no column path; found {some(map(str, table.columns))}")
    with refusing(file.with_suffix(".npy")):
        return FileArrays({**paths, ALONE: _read_npy(file.with_suffix(".npy"))}, [])


def _read_npy(file: Path) -> np.ndarray:
    with open_file(file) as opened:
        try:
            found = np.lib.format.read_array(opened, allow_pickle=False)
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            raise ValueError("an array of objects, which are pickles and never loaded") from None
    return numbers_or_text("the array", found)


def _read_folder(folder: Path) -> FeatureFile:
    files = [folder / name for name in list_images(folder, "**/*", (".npy",))]
    if not files:
        raise InputError(f"{folder}: no .npy files in it; it must be {FORMATS}")
    rows, lengths = list[np.ndarray](), dict[int, Path]()
    for file in files:
        with refusing(file):
            row = _read_npy(file)
        if row.ndim == 0 or row.size != row.shape[-1]:
            raise InputError(f"{file}: has the shape {[*row.shape]}, must be [numbers]")
        _require_numbers(str(file), row)
        rows.append(row.reshape(-1))
        lengths.setdefault(row.size, file)
    if len(lengths) > 1:
        (one, first), (two, second), *_ = lengths.items()
        raise InputError(
            f"{folder}: features have several lengths: {first.relative_to(folder)} has {one} "
            f"numbers, {second.relative_to(folder)} {two}"
        )
    paths = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    return FeatureFile(paths, {ALONE: np.stack(rows)}, [], stems=True)


def _checked(file: Path, found: FileArrays) -> FeatureFile:
    """The arrays told apart: paths, parts [rows, numbers] and others."""
    named = [name for name in PATHS if name in found.arrays]
    there = some(f"{name} {[*array.shape]}" for name, array in found.arrays.items()) or "nothing"
    if len(named) != 1:
        what = "path and paths, one is enough" if named else "no path for each row"
        raise InputError(f"{file}: {what}; found {there}")
    array = found.arrays[named[0]]
    if array.dtype.kind not in "SUT" or array.ndim != 1:
        raise InputError(
            f"{file}: {named[0]} is {array.dtype} {[*array.shape]}, must be text [rows]"
        )
    if not len(array):
        raise InputError(f"{file}: {named[0]} has no rows")
    parts = {name: found.arrays[name] for name in found.arrays if found.arrays[name].ndim == 2}
    if not parts:
        raise InputError(
            f"{file}: no features, which are an array [rows, numbers] for each part; found {there}"
        )
    for name, values in parts.items():
        _require_numbers(f"{file}: {name}", values)
        if len(values) != len(array):
            raise InputError(
                f"{file}: {name} has {len(values)} rows, {named[0]} has {len(array)}. Give each a "
                "row for each path, and leave other arrays out"
            )
    others = {name: array for name, array in found.arrays.items() if name not in parts}
    unused = [f"{n} {[*a.shape]}" for n, a in others.items() if n not in named]
    return FeatureFile(texts(named[0], array), parts, [*unused, *found.others])


def _require_numbers(what: str, values: np.ndarray) -> None:
    if values.dtype.kind not in "fiu":
        raise InputError(f"{what} is {values.dtype}, must be numbers")
    if not values.shape[-1]:
        raise InputError(f"{what} has the shape {[*values.shape]}, which holds no numbers")


def require_names(file: Path, names: Iterable[str], reserved: Collection[str]) -> None:
    """Refuse parts that can't be the name of a stream. reserved: columns of the table of images."""
    for name in names:
        if not _NAME.fullmatch(name) or name in (*reserved, "all", FACE_HR, *PATHS, "row"):
            raise InputError(
                f"{file}: an array can't be the part {name!r}: it has another meaning here, or "
                "more than letters, digits and ._-. Rename it, such as to features, face or body"
            )


def match_rows(
    file: Path, found: FeatureFile, images: pd.DataFrame, root: Path, bodies: Path
) -> tuple[np.ndarray, list[str]]:
    """The row of each image of query and gallery, int64 [N], and the paths that are none of them.

    A path is that of an image below `root`, with or without it, or below `bodies`, its folder of
    body images; else the end of an image's path that no other image has, such as its name; or it
    ends with the path of an image.

    Args:
        images: the table of query and gallery.

    Raises:
        InputError: a path leads elsewhere, an image has no row, or several.
    """
    ids = images["sample_id"].tolist()
    known, ends = _keys(ids, found.stems)
    tops = [*dict.fromkeys(_tops(bodies) + _tops(root))]
    rows, extra = defaultdict[int, list[int]](list), list[str]()
    for row, path in enumerate(found.paths):
        below = _below(file, path, tops, root)
        image = _image_of(below, known, ends, bodies)
        if image is None:
            extra.append(path)
        else:
            rows[image].append(row)
    if twice := [image for image, several in rows.items() if len(several) > 1]:
        both = " and ".join(repr(found.paths[row]) for row in rows[twice[0]][:2])
        raise InputError(
            f"{file}: {len(twice)} images have several rows: {some(ids[i] for i in twice)}; the "
            f"first by {both}. Leave one of each"
        )
    if missing := [i for i in range(len(ids)) if i not in rows]:
        counts = images["split"].iloc[missing].value_counts()
        split = " and ".join(f"{n} of {name}" for name, n in sorted(counts.items(), reverse=True))
        known_as = f"; {len(extra)} paths are none of them: {some(extra)}" if extra else ""
        raise InputError(
            f"{file}: {len(missing)} of {len(ids)} images have no row ({split}): "
            f"{some(ids[i] for i in missing)}{known_as}. Give a feature for every image of query "
            f"and gallery of {root}"
        )
    return np.array([rows[i][0] for i in range(len(ids))], np.int64), extra


def _keys(ids: Sequence[str], stems: bool) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Path below the folder of bodies → image; name → those of the paths that end with it."""
    known, ends = {id_: i for i, id_ in enumerate(ids)}, defaultdict[str, list[str]](list)
    if stems:
        known |= {short: i for i, id_ in enumerate(ids) if (short := stem(id_)) not in known}
    for key in known:
        ends[PurePath(key).name].append(key)
    return known, ends


def _tops(folder: Path) -> list[str]:
    """A folder as paths may begin with it."""
    return [f"{form}/" for form in (os.path.abspath(folder), folder.resolve(), folder)]  # noqa: PTH100


def _below(file: Path, path: str, tops: Sequence[str], root: Path) -> str:
    """A path below a folder of images; InputError for one that leads elsewhere."""
    plain = posixpath.normpath(path.replace("\\", "/"))
    for top in tops:
        if plain.startswith(top):
            return plain.removeprefix(top)
    if posixpath.isabs(plain) or re.match("[A-Za-z]:/", plain) or plain.startswith("../"):
        raise InputError(
            f"{file}: the path {path!r} is not below {root}. Paths must be as below it, or image "
            "names"
        )
    return plain.removeprefix("imgs/")


def _image_of(
    path: str, known: Mapping[str, int], ends: Mapping[str, list[str]], bodies: Path
) -> int | None:
    if path in known:
        return known[path]
    # Such as an image for training of equal name; os.path takes names that can't be, too.
    if "/" in path and os.path.exists(bodies / path):  # noqa: PTH110
        return None
    named = [
        key
        for key in ends.get(PurePath(path).name, [])
        if f"/{key}".endswith(f"/{path}") or f"/{path}".endswith(f"/{key}")
    ]
    return known[named[0]] if len(named) == 1 else None


def used_values(
    file: Path, part: str, values: np.ndarray, rows: np.ndarray, paths: Sequence[str]
) -> np.ndarray:
    """The features of some rows, float64 [n, D].

    Raises:
        InputError: a number isn't finite or is too large, or all are 0.
    """
    found = values[rows].astype(np.float64)
    wrong = ~(np.abs(found) <= LARGEST)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"{file}: {part} of {paths[rows[row]]} has the value {found[row, column]:g}; allowed "
            f"is a finite number up to ±{LARGEST:g} ({wrong.any(1).sum()} images have others)"
        )
    if not found.any():
        raise InputError(f"{file}: {part} is 0 for every image of query and gallery")
    return found + 0.0  # −0 is 0
