"""The image files of a folder. No torch, no pandas."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def list_images(
    folder: Path, pattern: str, suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> list[str]:
    """The image files of a folder that match a pattern: paths below it, sorted part by part.

    Each part of the pattern matches one part of the path; `**`, which only `*` may follow, any
    number. Links are followed, hidden files and folders are passed over.
    """
    part, _, rest = pattern.partition("/")
    if part == "**":
        below = (path.relative_to(folder).as_posix() for path in walk(folder))
        images = (path for path in below if path.lower().endswith(suffixes))
        return sorted(images, key=lambda path: path.split("/"))
    try:
        found = sorted(name for name in os.listdir(folder) if fnmatchcase(name, part))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = [name for name in found if not name.startswith(".")]
    if rest:
        inside = {name: list_images(folder / name, rest, suffixes) for name in names}
        return [f"{name}/{below}" for name, files in inside.items() for below in files]
    return [name for name in names if name.lower().endswith(suffixes)]


def walk(folder: Path) -> Iterator[Path]:
    """Every file that isn't hidden, sorted; links to folders are followed, each folder once."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = sorted(name for name in folders if name[0] != "." and real not in seen)
        if real not in seen:
            yield from (Path(parent, name) for name in sorted(files) if name[0] != ".")
        seen.add(real)
