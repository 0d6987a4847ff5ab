"""One table of a dataset's images: who, which camera, which clothes, which files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import read_text
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import Name
from deskpro.stages.base.progress import bar, log, warn
from deskpro.stages.data.layouts import KINDS, SPLITS, Layout, stem
from deskpro.stages.data.listings import Listing, separator
from deskpro.stages.data.times import read_times

_LISTED = 40
"""Problems in one error message."""
_SHOWN = 3
"""Problems in one warning."""


class Problem(NamedTuple):
    """What is wrong with a file or folder, and must be fixed before the data can be used."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def refuse(problems: Sequence[Problem], what: str = "", more: str = "") -> None:
    """Raise InputError with a line for each of the first problems, where there are any.

    what: is wrong with so many images; more: how to see the other problems.
    """
    if problems:
        count = f"{len(problems)} image{'s' * (len(problems) > 1)}"
        lines = [f"{count} {what}:"] if what else []
        lines += map(str, problems[:_LISTED])
        if len(problems) > _LISTED:
            lines.append(f"… and {len(problems) - _LISTED} more{more}")
        raise InputError("\n  ".join(lines))


def warn_of(found: Sequence[Problem], what: str, more: str = "") -> None:
    """Log how many there are of what may stay as it is, and the first; more: how to see all."""
    if found:
        shown = "; ".join(map(str, found[:_SHOWN]))
        rest = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        warn(f"{len(found)} {what}: {shown}{rest}{more}")


def read_index(
    root: Path, layout: Layout, splits: Iterable[str] = SPLITS
) -> tuple[pd.DataFrame, list[Problem]]:
    """The table of the images under `root`, sorted by split and path, and its problems.

    Returns:
        A table with the columns `split`; `sample_id` (path below the folder of body images,
        unique); the fields of `Name`, None where unknown, with camid a number of its own for each
        image where no camera exists, and time in microseconds; and for each of `KINDS` the path as
        a string, or None where the file is absent. Problems: an empty split, a name that the
        layout's rule doesn't parse (such a file gets no row), a mistake in a list beside the
        images, times that can't be read.

    Raises:
        InputError: `root` is no folder.
    """
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder. Set data.root to a folder of images in the layout of "
            "data_train (configs/README.md); deskpro make-benchmark draws a synthetic one"
        )
    folder, rows = layout.bodies(root), list[dict[str, Any]]()
    clothes, problems = read_clothes(root / "clothes.csv")
    splits = [*splits]
    lists = layout.read_lists(root, splits)
    if lists is not None:
        problems += [Problem(*problem) for problem in lists.problems]
        if lists.about:
            log(f"{root}: {lists.about}")
    for split in splits:
        scenes, wrong = read_scenes(root, layout.scenes.get(split))
        problems += wrong
        files = {}
        for kind in KINDS[1:]:
            files[kind], ambiguous = by_stem(root / kind, layout.images(root, split, kind, lists))
            problems += ambiguous
        images = layout.images(root, split, lists=lists)
        problems += by_stem(folder, images)[1]
        if not images:
            problems.append(_no_images(root, layout, split))
        for sample_id, name in read_names(layout, images, lists, clothes, scenes):
            if not is_text(sample_id):
                what = f"its name isn't UTF-8 ({sample_id!r}); rename it"
                problems.append(Problem(folder / sample_id, what))
            elif name is None:
                what = f"name doesn't parse as {layout.example}"
                problems.append(Problem(folder / sample_id, what))
            elif name.pid not in layout.junk:
                name = name._replace(camid=len(rows) if name.camid is None else name.camid)
                paths = {kind: found.get(stem(sample_id)) for kind, found in files.items()}
                row = {"split": split, "sample_id": sample_id, **name._asdict()}
                rows.append(row | {"imgs": f"{folder}/{sample_id}"} | paths)
    if not rows:
        problems += _elsewhere(root, layout, splits)
    problems += duplicate_ids({row["pid"] for row in rows}, folder)
    ids, texts = [row["sample_id"] for row in rows], [row["time"] for row in rows]
    times, bad_times = read_times(ids, texts)
    problems += [Problem(folder, bad_times)] * bool(bad_times)
    return to_table([r | {"time": time} for r, time in zip(rows, times, strict=True)]), problems


def _no_images(root: Path, layout: Layout, split: str) -> Problem:
    place = layout.place(root, split)
    what = "empty split" if place.is_dir() else "no such folder"
    return Problem(place, f"{what}: no {split} images")


def _elsewhere(root: Path, layout: Layout, splits: Sequence[str]) -> Iterator[Problem]:
    """The folder below or above one without any image that has the folders of all splits."""
    above = root.absolute().parents[:2]
    for near in (*sorted(path for path in root.iterdir() if path.is_dir()), *above):
        places = {layout.place(near, split) for split in splits} - {layout.bodies(near)}
        if places and all(place.is_dir() for place in places):
            yield Problem(root, f"not the folder of the dataset, which seems to be {near}")
            return


def to_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as the table of `read_index`: its columns, None where nothing is known."""
    columns = ["split", "sample_id", *Name._fields, *KINDS]
    table = pd.DataFrame(rows, columns=columns, dtype=object).astype({"camid": "int64"})
    return table.where(table.notna(), None)


def has_cameras(table: pd.DataFrame) -> bool:
    """Whether a dataset knows cameras; else each image of `read_index` has a number of its own."""
    return bool(table["camid"].duplicated().any())


def tracklet_key(table: pd.DataFrame) -> list[str]:
    """The columns in which images of one tracklet are equal."""
    return ["split", "pid", *(["camid"] if has_cameras(table) else []), "tracklet"]


def read_names(
    layout: Layout,
    images: Iterable[str],
    lists: Listing | None,
    clothes: Mapping[str, str],
    scenes: Mapping[str, str],
) -> Iterator[tuple[str, Name | None]]:
    """Images with what their names say, and lists beside them; None where no rule reads one."""
    for sample_id in images:
        name = layout.parse(sample_id, lists)
        if name is not None:
            facts = lists.facts.get(sample_id, {}) if lists else {}
            own = {key: value for key, value in name._asdict().items() if value not in (None, "")}
            # The camera of a list is finer than that of the name.
            camera = {"camid": facts["camid"]} if "camid" in facts else {}
            name = Name(**{"clothes": clothes.get(sample_id), **facts, **own, **camera})
            scene = name.scene or scenes.get(PurePath(sample_id).name)
            # A list of scenes is one of tracklets (DeepChange).
            name = name._replace(scene=scene, tracklet=name.tracklet or scene)
        yield sample_id, name


def content_hashes(
    paths: Sequence[str | None], files: FileIndex, *, deep: bool = False
) -> np.ndarray:
    """SHA-256 of each file's content, uint8 [N, 32]; zeros where the path is None.

    deep: files are read again even where the index knows them. Raises InputError for one that
    can't be read.
    """
    named = [path for path in paths if path is not None]
    with bar("hash", len(named), "images") as progress:
        known = files.probe(named, deep=deep, advance=progress.advance)
    found = np.zeros((len(paths), 32), np.uint8)
    for row, path in enumerate(paths):
        if path is not None:
            facts = known[path]
            if facts.problem is not None:
                raise InputError(f"{path}: unreadable image: {facts.problem}")
            found[row] = np.frombuffer(bytes.fromhex(facts.sha256), np.uint8)
    return found


def class_order(pids: Iterable[str]) -> list[str]:
    """Identities in the order of the class index: sorted as strings, "10" before "2".

    A teacher's logits mean something only with the order it was trained with, and this is the
    published one.
    """
    return sorted(set(pids))


def by_stem(folder: Path, images: Iterable[str]) -> tuple[dict[str, str], list[Problem]]:
    """Stem → path, as a sample's images are found; two of one stem are a problem."""
    found, problems = dict[str, str](), list[Problem]()
    for image in images:
        path = f"{folder}/{image}"
        if (first := found.setdefault(stem(image), path)) != path:
            what = f"differs from {PurePath(first).name} in the extension alone; delete one of them"
            problems.append(Problem(Path(path), what))
    return found, problems


def read_clothes(path: Path) -> tuple[dict[str, str], list[Problem]]:
    """Path → clothes of a `clothes.csv`, and what is wrong with it; nothing where there is none."""
    try:
        table = read_table(read_text(path))[["path", "clothes"]]
        table = table.apply(lambda column: column.str.strip())
        table["path"] = table["path"].str.replace("\\", "/").str.removeprefix("./")
        table["path"] = table["path"].str.removeprefix("imgs/")
    except FileNotFoundError:
        if not path.is_symlink():
            return {}, []
        return {}, [Problem(path, "broken link")]
    except (OSError, ValueError, KeyError) as error:
        what = f"must be a CSV with the columns path and clothes ({' '.join(str(error).split())})"
        return {}, [Problem(path, what)]
    known = table[table["clothes"] != ""].drop_duplicates()
    twice = known[known["path"].duplicated()]
    problems = [Problem(path, f"{name}: two kinds of clothes") for name in twice["path"].unique()]
    return dict(zip(known["path"], known["clothes"], strict=True)), problems


def read_table(text: str) -> pd.DataFrame:
    """The table of a CSV as strings, by the separator of its head; what a row lacks is empty.

    A spreadsheet writes a byte-order mark, and may end every row with a separator.

    Raises:
        ValueError: it has no head, a column twice, or a row with more than its columns.
    """
    text = text.removeprefix("\ufeff")
    try:
        rows = [*csv.reader(io.StringIO(text, None), delimiter=separator(text), strict=True)]
    except csv.Error as error:
        raise ValueError(str(error)) from None
    names, *rows = [row for row in rows if row] or [[]]
    names = [name.strip() for name in names]
    if not any(names) or len({*filter(None, names)}) < sum(map(bool, names)):
        raise ValueError(f"columns are {names}")
    if wide := next((row for row in rows if any(row[len(names) :])), None):
        raise ValueError(f"{len(names)} columns, but {len(wide)} cells in the row {wide}")
    filled = [[*row, *[""] * len(names)][: len(names)] for row in rows]
    return pd.DataFrame(filled, columns=names, dtype=str).drop(columns="", errors="ignore")


def read_scenes(root: Path, listing: str | None) -> tuple[dict[str, str], list[Problem]]:
    """Name → scene by the lines `image,scene` of a listing, the image by its name or path."""
    if listing is None:
        return {}, []
    path, scenes = root / listing, {}
    try:
        for number, line in enumerate(read_text(path).splitlines(), 1):
            image, comma, scene = line.strip().rpartition(",")
            if not comma or not scene.strip():
                return {}, [Problem(path, f"line {number} must be image,scene: {line!r}")]
            scenes[Path(image.strip()).name] = scene.strip()
    except (OSError, UnicodeDecodeError) as error:
        return {}, [Problem(path, f"must list the scene of every image ({error})")]
    return scenes, []


def is_text(name: str) -> bool:
    """Whether a file's name can be written down: it has no bytes that are not UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def duplicate_ids(pids: set[str], folder: Path) -> list[Problem]:
    """Identities that differ only in leading zeros: 7 and 0007 would count as two people."""
    written: dict[int, list[str]] = {}
    for pid in sorted(pids):
        if pid.isdecimal():
            written.setdefault(int(pid), []).append(pid)
    return [
        Problem(folder, f"identities {' and '.join(ways)} differ only in leading zeros; rename one")
        for ways in written.values()
        if len(ways) > 1
    ]
