"""Targets that another program made, matched with the samples and views of a cache.

Rows are matched by path and view, never by their order. Plain functions of arrays: what is wrong
is an InputError that names it; nothing is written here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.foreign import some, texts
from deskpro.stages.targets.foreign import HASHES, TARGETS

Arrays = Mapping[str, np.ndarray]


def require_arrays(arrays: Arrays, others: Sequence[str]) -> None:
    """Refuse a file without paths or targets, and arrays of other lengths or types."""
    there = ", ".join([*arrays, *others]) or "nothing"
    if "path" not in arrays:
        raise InputError(f"no path for each row; found {there}")
    if not any(name in arrays for name in TARGETS):
        raise InputError(f"neither {' nor '.join(TARGETS)}; found {there}")
    if "logits" in arrays and "classes" not in arrays:
        raise InputError("logits need classes, the identities' names in the order of the logits")
    rows = len(arrays["path"]) if arrays["path"].ndim else 0
    if not rows:
        raise InputError("path has no rows")
    types = {"path": "SUT", "view": "iu", "valid": "b", **dict.fromkeys(HASHES, "SUT")}
    types |= {"classes": "SUT", **dict.fromkeys(TARGETS, "fiu")}
    words = {"SUT": "text", "iu": "whole numbers", "b": "booleans", "fiu": "numbers"}
    for name, array in arrays.items():
        if array.dtype.kind not in types[name]:
            raise InputError(f"{name} is {array.dtype}, must be {words[types[name]]}")
        dimensions = (2, 3) if name in TARGETS else (1,)
        if array.ndim not in dimensions:
            shape = "[rows, numbers] or [rows, heads, numbers]" if name in TARGETS else "[rows]"
            raise InputError(f"{name} has the shape {[*array.shape]}, must be {shape}")
        if name != "classes" and len(array) != rows:
            raise InputError(f"{name} has {len(array)} rows, path has {rows}")
        if name in TARGETS and 0 in array.shape[1:]:
            raise InputError(f"{name} has the shape {[*array.shape]}, which holds no numbers")


def find_samples(arrays: Arrays, sample_ids: Sequence[str]) -> np.ndarray:
    """The sample of each row, int64 [rows]; paths may begin with ./ or imgs/.

    Raises InputError for a path that no sample has.
    """
    known = {sample_id: row for row, sample_id in enumerate(sample_ids)}
    paths = texts("path", arrays["path"])
    found = np.array([known.get(p, known.get(_below_imgs(p), -1)) for p in paths], np.int64)
    unknown = [path for path, sample in zip(paths, found, strict=True) if sample < 0]
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(paths)} paths are of no sample of the cache: "
            f"{some(unknown)}. They must be as {sample_ids[0]}; leave other rows out"
        )
    return found


def _below_imgs(path: str) -> str:
    """A path below the folder of body images."""
    return path.replace("\\", "/").removeprefix("./").removeprefix("imgs/")


def place_rows(
    arrays: Arrays, samples: np.ndarray, sample_ids: Sequence[str], views: int
) -> np.ndarray:
    """The row of each sample and view: int64 [N, V'], -1 for a sample without targets.

    V' is the number of views in the file, at most `views`. Raises InputError: a row comes twice, a
    view is none of the cache, or a sample has some views and lacks others.
    """
    view = arrays.get("view", np.zeros(len(samples), np.int64))
    valid = _valid(arrays, len(samples))
    if outside := sorted({*view[(view < 0) | (view >= views)].tolist()}):
        allowed = f"0 to {views - 1}" if views > 1 else "0"
        raise InputError(f"view {outside[0]} is none of the cache, which has {allowed}")
    keys, counts = np.unique(samples * views + view.astype(np.int64), return_counts=True)
    if (counts > 1).any():
        twice = [f"{sample_ids[key // views]}, view {key % views}" for key in keys[counts > 1]]
        raise InputError(f"{len(twice)} images have several rows: {some(twice)}")
    if not valid.any():
        raise InputError("valid is false in every row: there are no targets")
    width = int(view[valid].max()) + 1
    place = np.full((len(sample_ids), width), -1, np.int64)
    place[samples[valid], view[valid]] = np.flatnonzero(valid)
    partial = (place < 0) & (place >= 0).any(axis=1, keepdims=True)
    if partial.any():
        holes = [f"{sample_ids[row]}, view {column}" for row, column in np.argwhere(partial)]
        raise InputError(
            f"{len(holes)} views are missing of samples that have others: {some(holes)}. A sample "
            f"needs a target for each of the views 0 to {width - 1}, or for none"
        )
    return place


def _valid(arrays: Arrays, rows: int) -> np.ndarray:
    """Which rows have targets, bool [rows]; all where the file doesn't say."""
    return arrays.get("valid", np.ones(rows, bool))


def require_hashes(
    name: str,
    arrays: Arrays,
    samples: np.ndarray,
    sample_ids: Sequence[str],
    wanted: np.ndarray,
) -> None:
    """Refuse rows whose hash is not that of the sample's image: wanted, uint8 [N, 32]."""
    given = [text.strip().lower() for text in texts(name, arrays[name])]
    rows = np.flatnonzero(_valid(arrays, len(samples)))
    known = [row.tobytes().hex() for row in np.ascontiguousarray(wanted)]
    for row in rows:
        if len(given[row]) != 64 or not set(given[row]) <= set("0123456789abcdef"):
            raise InputError(f"{name}: {given[row]!r} is no SHA-256, which has 64 hex digits")
    others = [i for i in rows if given[i] != known[samples[i]]]
    if others:
        named = some(dict.fromkeys(sample_ids[samples[row]] for row in others))
        raise InputError(f"{name} of {len(others)} rows is that of another image: {named}")


def class_positions(names: Sequence[str], count: int, classes: Sequence[str]) -> np.ndarray:
    """Where each of the cache's classes is among `count` logits of these names, int64 [C].

    Raises InputError: not the same identities, one twice, or another number of logits.
    """
    if len(names) != count:
        raise InputError(f"classes names {len(names)} identities, logits has {count}")
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise InputError(f"classes names {some(twice)} several times")
    place = {name: i for i, name in enumerate(names)}
    if missing := [name for name in classes if name not in place]:
        raise InputError(
            f"classes lacks {len(missing)} of the cache's {len(classes)} identities: "
            f"{some(missing)}; the cache names them as {classes[0]}"
        )
    if more := sorted(place.keys() - {*classes}):
        raise InputError(f"classes has {len(more)} identities that the cache lacks: {some(more)}")
    return np.array([place[name] for name in classes], np.int64)


def as_stored(name: str, arrays: Arrays, paths: Sequence[str]) -> np.ndarray:
    """A target as float16 [rows, H, L]; rows that are not valid are 0.

    Raises InputError: a number is not finite, or one is beyond float16.
    """
    values = arrays[name]
    valid = _valid(arrays, len(values))
    largest = np.finfo(np.float16).max
    stored = np.zeros(values.shape, np.float16)
    for start in range(0, len(values), 4096):
        rows = start + np.flatnonzero(valid[start : start + 4096])
        part = values[rows]
        wrong = ~np.isfinite(part) if part.dtype.kind == "f" else np.zeros(part.shape, bool)
        wrong |= (part > largest) | (part < -largest)
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            raise InputError(
                f"{name} of {paths[rows[at[0]]]} has the value {part[at]}; allowed is a finite "
                f"number up to ±{largest:g}, as it is stored in float16"
            )
        stored[rows] = part
    return stored if stored.ndim == 3 else stored[:, None]


def block_of(values: np.ndarray, place: np.ndarray, views: Sequence[int]) -> np.ndarray:
    """Values [rows, H, L] as a block is stored: [samples, len(views), H, L].

    place: of the block's samples (`place_rows`); those without targets are 0.
    """
    rows = place[:, views]
    found = values[rows]
    found[rows < 0] = 0
    return found
