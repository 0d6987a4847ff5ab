"""Which pictures are to be added to a gallery or asked for, and what is known of each."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from deskpro.cache.files import read_bytes, read_text
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.files import IMAGE_SUFFIXES, list_images
from deskpro.stages.base.images import UNREADABLE, read_image

COLUMNS = ("path", "person", "camera", "time", "face")
"""Of a CSV file; all but the first may be left out."""


class Picture(NamedTuple):
    """A picture, and what is known of it."""

    path: Path
    """Absolute."""
    face: Path | None = None
    """Its face crop."""
    person: str | None = None
    camera: str | None = None
    time: str | None = None
    """As `moment` writes it."""


def moment(text: str, what: str) -> str:
    """A time by ISO 8601 as text whose order is that of time: UTC, with microseconds.

    A time without an offset is UTC; a date is its midnight. what: where it was given.

    Raises:
        InputError: it is no such time.
    """
    try:
        if not re.match(r"\d{4}-\d\d-\d\d", text):  # not 20240501, which may be a number
            raise ValueError
        time = datetime.fromisoformat(text)
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError(
            f"{what}: {text!r} is no time; must be ISO 8601, as 2024-05-01 or "
            "2024-05-01T12:30:00+02:00"
        ) from None
    return time.isoformat(timespec="microseconds")


def absolute(path: Path) -> Path:
    """The one name of a file, from whichever folder it is given: without `..`; links stay."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def collect(
    given: Sequence[Path], faces: Path | None = None, known: Picture | None = None
) -> list[Picture]:
    """The pictures of files and folders, each once; those of a folder in the order of their names.

    Args:
        faces: a folder with face crops of the same names, whatever their extension, below it as
            pictures lie below theirs.
        known: what is known of all of them.

    Raises:
        InputError: a path is missing, a folder has no picture, or `faces` has a crop of none or
            one of two.
    """
    names: dict[Path, Path] = {}
    for path in given:
        if path.is_dir():
            below = list_images(path, "**/*")
            if not below:
                raise InputError(f"{path}: no picture; must be {', '.join(IMAGE_SUFFIXES)}")
            names |= {absolute(path / name): Path(name) for name in below}
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        else:
            names[absolute(path)] = Path(path.name)
    pictures = [(known or Picture(Path()))._replace(path=path) for path in names]
    return pictures if faces is None else _with_faces(pictures, [*names.values()], faces)


def _with_faces(pictures: list[Picture], names: list[Path], folder: Path) -> list[Picture]:
    if not folder.is_dir():
        raise InputError(f"--faces {folder}: no such folder; must be one of face crops, or detect")
    crops = dict[Path, Path]()
    for crop in map(Path, list_images(folder, "**/*")):
        if (first := crops.setdefault(crop.with_suffix(""), crop)) != crop:
            raise InputError(
                f"--faces {folder}: {first} and {crop} differ in the extension alone; delete one"
            )
    found = [crops.get(name.with_suffix("")) for name in names]
    if not any(found):
        raise InputError(f"--faces {folder}: has no file {names[0]}, nor a face of another picture")
    faced, owners = list[Picture](), dict[Path, Path]()
    for picture, face in zip(pictures, found, strict=True):
        if face is None or picture.face is not None:
            faced.append(picture)
            continue
        if (owner := owners.setdefault(face, picture.path)) != picture.path:
            raise InputError(
                f"--faces {folder}: {face} would be the face of {owner} and of {picture.path}; add "
                "each folder by a command of its own, or list them in --csv, with a column face"
            )
        faced.append(picture._replace(face=absolute(folder / face)))
    return faced


def read_csv(file: Path, faces: Path | None = None) -> list[Picture]:
    """The pictures of a CSV file with the columns COLUMNS; paths are relative to its folder.

    Raises:
        InputError: it can't be read, lacks `path`, or has another column, a bad time or a
            picture twice.
    """
    try:
        rows = list(
            csv.DictReader(io.StringIO(read_text(file).removeprefix("\ufeff")), strict=True)
        )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: can't be read ({error}); must be a CSV file") from None
    if not rows:
        raise InputError(f"{file}: no rows; must have the column path and a row for each picture")
    found = [name for name in rows[0] if name is not None]
    unknown = [name for name in found if name not in COLUMNS]
    if unknown or "path" not in found:
        problem = f"unknown column {unknown[0]!r}" if unknown else "no column path"
        raise InputError(f"{file}: {problem}; its columns may be {', '.join(COLUMNS)}")
    pictures: dict[Path, Picture] = {}
    for line, row in enumerate(rows, 2):
        where = f"{file}: row {line}"
        if None in row or None in row.values():
            raise InputError(f"{where}: must have {len(found)} cells, one for each column")
        cells = {name: text.strip() or None for name, text in row.items()}
        if cells["path"] is None:
            raise InputError(f"{where}: no path")
        path, face = (
            absolute(file.parent / cell) if (cell := cells.get(name)) else None
            for name in ("path", "face")
        )
        assert path is not None
        if path in pictures:
            raise InputError(f"{where}: {cells['path']} stands twice; must stand once")
        time = cells.get("time")
        pictures[path] = Picture(
            path, face, cells.get("person"), cells.get("camera"),
            None if time is None else moment(time, f"{where}, time"),
        )  # fmt: skip
    listed = [*pictures.values()]
    if faces is None:
        return listed
    return _with_faces(listed, [Path(picture.path.name) for picture in listed], faces)


def load(path: Path, digest: str | None = None) -> tuple[Image.Image, str]:
    """A picture, RGB, and the SHA-256 of its file.

    digest: what that must be, if given.

    Raises:
        InputError: it can't be read, or has changed.
    """
    try:
        content = read_bytes(path)
        image = read_image(io.BytesIO(content))
    except UNREADABLE as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: unreadable picture: {' '.join(why.split())}") from None
    found = hashlib.sha256(content).hexdigest()
    if digest not in (None, found):
        raise InputError(f"{path}: changed while it was being read. Type the same command again")
    return image, found


def examine(pictures: Iterable[Picture]) -> list[str]:
    """The SHA-256 of each, in their order; all, and their faces, are decoded.

    Raises:
        InputError: some can't be read, one line each.
    """

    def one(picture: Picture) -> tuple[str, list[str]]:
        digest, problems = "", []
        for path in filter(None, (picture.face, picture.path)):
            try:
                digest = load(path)[1]
            except InputError as error:
                problems.append(str(error))
        return digest, problems

    with ThreadPoolExecutor() as pool:
        found = [*pool.map(one, pictures)]
    problems = [problem for _, some in found for problem in some]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(
            f"{len(problems)} of {len(found)} pictures can't be read. Replace these files, or "
            f"leave them out:\n{lines}"
        )
    return [digest for digest, _ in found]
