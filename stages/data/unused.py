"""Files and rows of lists that belong to no image: what isn't used is said."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path, PurePath

from deskpro.stages.base.files import IMAGE_SUFFIXES, list_images
from deskpro.stages.data.index import Problem, read_clothes, read_scenes
from deskpro.stages.data.layouts import KINDS, SPLITS, Layout, stem
from deskpro.stages.data.listings import Listing

Unused = tuple[list[Problem], list[Problem]]
"""What isn't used, and what is wrong: where nothing at all is used, names differ by mistake."""

NOT_USED = "files or rows of lists are not used"
_LITTER = {"Thumbs.db", "desktop.ini"}
"""Files that a file manager leaves behind."""


def find_unused(root: Path, layout: Layout, splits: Iterable[str]) -> Unused:
    """What isn't used of a dataset.

    Files of faces and masks without a body image; files that aren't images, and folders, among
    images; rows of `clothes.csv` and lines of the lists of scenes without an image. A row of an
    image that exists in another split is used there.
    """
    unused, problems, ids, splits = list[Problem](), list[Problem](), set[str](), [*splits]
    # Where lists say the splits, these share folders.
    lists = layout.read_lists(root, SPLITS)
    listed = {*map(stem, lists.facts)} if lists else set[str]()
    for split in splits:
        images = layout.images(root, split, lists=lists)
        ids.update(images)
        parts = [_files_without_body(root, layout, split, images, lists, listed)]
        if listing := layout.scenes.get(split):
            scenes = read_scenes(root, listing)[0]
            names = {PurePath(image).name: image for image in images}
            parts.append(rows_without_image(root / listing, scenes, names))
        for idle, wrong in parts:
            unused += idle
            problems += wrong
    folder = layout.bodies(root)
    if layout.below_split and {*splits} == {*SPLITS}:
        known = {pattern.partition("/")[0] for pattern in layout.files.values()} | {*KINDS}
        others = {path.partition("/")[0] for path in list_images(folder, "**/*")} - known
        what = "neither train, query nor gallery; images in it are not read"
        unused += [Problem(folder / name, what) for name in sorted(others)]
    path = root / "clothes.csv"
    idle, wrong = rows_without_image(path, read_clothes(path)[0], ids, partial(is_file, folder))
    return [*dict.fromkeys(unused), *idle], problems + wrong


def rows_without_image(
    path: Path,
    rows: Collection[str],
    images: Collection[str],
    exists: Callable[[str], bool] = lambda name: False,
) -> Unused:
    """The rows of a list that name no image.

    images: that are known, as the list should name them; exists: whether another one is there.
    """
    idle = [name for name in rows if name not in images and not exists(name)]
    if idle and images and len(idle) == len(rows):
        example = min(images)
        what = f"none of its {len(idle)} rows names an image: {idle[0]} must be as {example}"
        return [], [Problem(path, what)]
    return [Problem(path, f"{name}: no such image") for name in idle], []


def is_file(folder: Path, name: str) -> bool:
    """Whether a list's name is that of a file: any text, too long a one for `Path.is_file`, too."""
    return os.path.isfile(folder / name)  # noqa: PTH113


def _files_without_body(
    root: Path,
    layout: Layout,
    split: str,
    images: Collection[str],
    lists: Listing | None,
    listed: Collection[str],
) -> Unused:
    """listed: stems of all images that lists name, whatever their split."""
    unused, problems = list[Problem](), list[Problem]()
    stems, prepared = {stem(image) for image in images}, layout.prepared(root)
    for kind in KINDS if prepared else KINDS[:1]:
        folder = root / kind if prepared else root
        files = [*images] if kind == "imgs" else layout.images(root, split, kind, lists)
        idle = [name for name in files if stem(name) not in stems]
        if idle and images and len(idle) == len(files):
            what = f"none of its {len(idle)} files has the name of a body image"
            problems.append(Problem((folder / idle[0]).parent, f"{what}, e.g. {idle[0]}"))
        else:
            unused += [
                Problem(folder / name, "there is no body image of this name") for name in idle
            ]
        others = {*list_images(folder, layout.files[split], suffixes=("",))} - {*files}
        others -= {*layout.side_files}
        for name in sorted(others):
            if PurePath(name).name not in _LITTER and stem(name) not in listed:
                what = f"not an image file ({', '.join(IMAGE_SUFFIXES)})"
                if name.lower().endswith(IMAGE_SUFFIXES):
                    what = "an image that no list names"
                if (folder / name).is_dir():
                    what = "a folder among the images; what is in it is not read"
                unused.append(Problem(folder / name, what))
    return unused, problems
