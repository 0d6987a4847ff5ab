"""Datasets whose own lists say which images are of which split: tracklets of videos.

Facts are those of the datasets' own pages (CCVID: Gu et al., "Clothes-changing person
re-identification with RGB modality only", CVPR 2022; MEVID: Davila et al., WACV 2023).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from deskpro.cache.files import read_text
from deskpro.stages.base.files import IMAGE_SUFFIXES, list_images
from deskpro.stages.data.times import READABLE, is_time

SPLITS = ("train", "query", "gallery")

_MEVID = "annotation/mevid-v1-annotation-data"
CCVID_LISTS = tuple(f"{split}.txt" for split in SPLITS)
_MEVID_NAMES = ("train_name", "track_train_info", "test_name", "track_test_info", "query_IDX")
MEVID_LISTS = tuple(f"{place}{name}.txt" for place in (f"{_MEVID}/", "") for name in _MEVID_NAMES)
"""Where they are published; at the root where the images were unpacked beside them, or prepared."""

OWN_LIST = "dataset.csv"
"""At the root of a dataset of one's own: which images there are, in the place of names."""
_NEEDED = ("path", "split", "pid")
_FACTS = ("camid", "clothes", "tracklet", "time")
_COLUMNS = f"its columns must be path, split, pid and, where known, {', '.join(_FACTS)}"


class Listing(NamedTuple):
    """What the lists of a dataset say.

    images: split → paths below the folder of body images, tracklet by tracklet. facts: path → what
    a path doesn't say itself (`names.Name`). problems: file, and what is wrong with it. about: what
    had to be decided in reading.
    """

    images: Mapping[str, Sequence[str]]
    facts: Mapping[str, Mapping[str, Any]]
    problems: Sequence[tuple[Path, str]]
    about: str = ""


Read = Callable[[Path, Path, Collection[str]], Listing]
"""(root, folder of body images, splits) → what the lists of these splits say; others are empty, and
need not exist."""


class _WrongError(Exception):
    """A list, and what is wrong with it."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        self.problem = path, what


def read_ccvid(root: Path, folder: Path, splits: Collection[str]) -> Listing:
    """CCVID: lines `session3/037_04 037 u10_l6` of {train,query,gallery}.txt: the folder of a
    tracklet's frames, identity, clothes. Clothes are counted by person; cameras of session 3 are
    other ones than those of the same number before."""
    images, problems = {split: list[str]() for split in SPLITS}, list[tuple[Path, str]]()
    facts = dict[str, Mapping[str, Any]]()
    for split in [split for split in SPLITS if split in splits]:
        try:
            for path, place, line in _lines(root / f"{split}.txt"):
                tracklet, fact = _ccvid_tracklet(path, place, line)
                frames = _images(folder, tracklet)
                if not frames:
                    problems.append((path, f"{place}: no images in {folder / tracklet}"))
                _add(facts, frames, fact, path, place)
                images[split] += frames
        except _WrongError as error:
            problems.append(error.problem)
    return Listing(images, facts, problems)


def _ccvid_tracklet(path: Path, place: str, line: str) -> tuple[str, dict[str, Any]]:
    parts = line.split()
    match = re.fullmatch(r"session(\d+)/(\d+)_(\d{1,4})", parts[0])
    if len(parts) < 3 or match is None:
        raise _WrongError(path, f"{place}; must be like session3/037_04 037 u10_l6")
    if match[2] != parts[1]:
        raise _WrongError(path, f"{place}: identity {parts[1]} in a folder of {match[2]}")
    camera = int(match[3]) + 12 * (match[1] == "3")
    return parts[0], {"camid": camera, "clothes": f"{parts[1]}_{parts[2]}", "tracklet": parts[0]}


def read_own_list(root: Path, folder: Path, splits: Collection[str]) -> Listing:
    """dataset.csv: a row for each image, with its path below the root or below imgs/.

    Each row that can't be used is a problem of its own. The images of other splits than `splits`
    need not exist.
    """
    path, seen = root / OWN_LIST, dict[str, str]()
    images = {split: list[str]() for split in SPLITS}
    facts, problems = dict[str, Mapping[str, Any]](), list[tuple[Path, str]]()
    there = dict[str, set[str]]()
    try:
        for place, row, wrong in _own_rows(path):
            image = PurePosixPath(row["path"].replace("\\", "/")).as_posix()
            image = image if folder == root else image.removeprefix("imgs/")
            parent, wanted = image.rpartition("/")[0], row["split"] in splits
            wrong += _wrong_in(row, image)
            if image in seen:
                wrong.append(f"the path is that of {seen[image]}, too")
            if wanted and not wrong:
                there[parent] = there.get(parent) or {*_images(folder, parent)}
                if image not in there[parent]:
                    wrong.append(f"{folder / image} is missing")
            seen.setdefault(image, place.partition(":")[0])
            if wrong:
                problems.append((path, f"{place}: {'; '.join(wrong)}"))
                facts.setdefault(image, {})  # it is listed, though not used
            elif wanted:
                images[row["split"]].append(image)
                known = {k: row[k] for k in ("pid", *_FACTS[1:]) if row.get(k)}
                facts[image] = known | ({"camid": int(row["camid"])} if "camid" in row else {})
    except _WrongError as error:
        problems.append(error.problem)
    by_part = {name: sorted(found, key=lambda i: i.split("/")) for name, found in images.items()}
    return Listing(by_part, facts, problems)


def _own_rows(path: Path) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """The rows of a dataset.csv: where they are in it, their cells by column, what is wrong.

    A spreadsheet writes a byte-order mark.
    """
    columns, sign = list[str](), ","
    for _, place, line in _lines(path):
        if not columns:
            head = line.removeprefix("\ufeff")
            sign = separator(head)
            columns = [cell.strip() for cell in next(csv.reader([head], delimiter=sign))]
            lacks = [name for name in _NEEDED if name not in columns]
            extra = {
                name
                for name in columns
                if name not in (*_NEEDED, *_FACTS) or columns.count(name) > 1
            }
            if lacks or extra:
                what = [f"column {name!r} is unknown or there twice" for name in sorted(extra)]
                what += [f"column {name!r} is missing" for name in lacks]
                raise _WrongError(path, f"{place}: {'; '.join(what)}; {_COLUMNS}")
            continue
        try:
            quoted = csv.reader([line], delimiter=sign, strict=True)
            cells = [cell.strip() for cell in next(quoted)]
        except csv.Error as error:
            rule = "quotes must close at the end of a cell, on the same line"
            raise _WrongError(path, f"{place}: {error}; {rule}") from None
        # Tabs at the end of a line are gone with its spaces.
        row = dict(zip_longest(columns, cells[: len(columns)], fillvalue=""))
        beyond = len(cells) > len(columns)
        yield place, row, [f"{len(cells)} cells, {len(columns)} columns"] * beyond
    if not columns:
        raise _WrongError(path, f"has no rows; {_COLUMNS}")


def separator(text: str) -> str:
    """What separates the cells of a CSV, by its head, the first line that isn't blank.

    A spreadsheet writes semicolons where the comma is the decimal sign, or tabs.
    """
    head = next(filter(str.strip, text.splitlines()), "")
    return next((sign for sign in ",;\t" if sign in head), ",")


def _wrong_in(row: Mapping[str, str], image: str) -> list[str]:
    """What is wrong with the cells of a row of dataset.csv."""
    camera, split, found = row.get("camid", "0"), row["split"], list[str]()
    if image.startswith("/") or ".." in image.split("/") or "\0" in image:
        found.append(f"path {row['path']!r} must be below the folder of dataset.csv")
    elif not image.lower().endswith(IMAGE_SUFFIXES):
        found.append(f"path {row['path']!r} is no image file ({', '.join(IMAGE_SUFFIXES)})")
    if split not in SPLITS:
        found.append(f"split {split!r} must be train, query or gallery")
    if not row["pid"]:
        found.append("pid is empty")
    if not (camera.isascii() and camera.isdecimal() and len(camera) < 10):
        found.append(f"camid {camera!r} must be a whole number from 0, of at most 9 digits")
    if row.get("time") and not is_time(row["time"]):
        found.append(f"time {row['time']!r} must be {READABLE}")
    return found


def read_mevid(root: Path, folder: Path, splits: Collection[str]) -> Listing:
    """MEVID: the names of all crops, and for each tracklet the first and last of its names, which
    count from 0, identity, outfit and camera; and which test tracklets are queries."""
    images = {split: list[str]() for split in SPLITS}
    facts, about = dict[str, Mapping[str, Any]](), ""
    wanted = {"train" if split == "train" else "test" for split in splits}
    try:
        for part in sorted(wanted):
            tracks = [*_mevid_tracks(root, folder, part)]
            queries = set[int]()
            if part == "test":
                queries, about = _mevid_queries(_find(root, "query_IDX.txt"), len(tracks))
            for row, (path, place, frames, fact) in enumerate(tracks):
                _add(facts, frames, fact, path, place)
                split = "query" if row in queries else "gallery"
                split = "train" if part == "train" else split
                images[split] += frames if split in splits else []
    except _WrongError as error:
        return Listing(images, facts, [error.problem], about)
    return Listing(images, facts, [], about)


def _mevid_tracks(
    root: Path, folder: Path, part: str
) -> Iterator[tuple[Path, str, list[str], dict[str, Any]]]:
    """Of each tracklet where it is listed, the paths of its frames, and what is known of it."""
    names = _find(root, f"{part}_name.txt")
    crops, there = [crop for _, _, crop in _lines(names)], dict[str, set[str]]()
    for path, place, line in _lines(_find(root, f"track_{part}_info.txt")):
        values = _whole_numbers(line)
        if len(values) != 5 or not 0 <= values[0] <= values[1] < len(crops):
            raise _WrongError(
                path,
                f"{place}; must be first and last frame, identity, outfit, camera; frames are "
                f"rows of {names.name}, 0 to {len(crops) - 1}",
            )
        first, last, *who = values
        frames, tracklets = list[str](), set[str]()
        for crop in crops[first : last + 1]:
            match = _CROP.fullmatch(crop)
            if match is None or [int(match[name]) for name in ("pid", "clothes", "camid")] != who:
                raise _WrongError(path, f"{place}: its frame {crop} is of others, or no crop")
            person = f"bbox_{part}/{match['pid']}"
            if person not in there:
                there[person] = {*_images(folder, person)}
            frames.append(f"{person}/{crop}")
            if frames[-1] not in there[person]:
                raise _WrongError(path, f"{place}: {folder / frames[-1]} is missing")
            tracklets.add(match["tracklet"])
        if len(tracklets) > 1:
            raise _WrongError(path, f"{place}: its frames are of tracklets {sorted(tracklets)}")
        tracklet = f"bbox_{part}/{crops[first].rpartition('F')[0]}"
        yield path, place, frames, {"clothes": f"{who[0]}_{who[1]}", "tracklet": tracklet}


_CROP = re.compile(
    r"(?P<pid>\d{4})O(?P<clothes>\d+)C(?P<camid>\d+)T(?P<tracklet>\d+)F\d+\.(?:jpg|png)"
)


def _mevid_queries(path: Path, tracks: int) -> tuple[set[int], str]:
    """Rows of queries among the test tracklets, from 0, and from where the list counts them.

    MEVID counts from 0, a set of the same form from 1: a 0 says the first, the number of rows the
    second. A list with neither is read as MEVID's is, and that is said.
    """
    rows = set[int]()
    for _, place, line in _lines(path):
        found = _whole_numbers(line)
        if len(found) != 1 or not 0 <= found[0] <= tracks:
            raise _WrongError(path, f"{place}; must be the row of a tracklet, 0 to {tracks - 1}")
        rows.add(found[0])
    if {0, tracks} <= rows:
        what = f"has both 0 and {tracks}; rows count from 0 or from 1, there are {tracks}"
        raise _WrongError(path, what)
    if tracks in rows:
        return {row - 1 for row in rows}, f"{path.name} counts rows from 1"
    known = "" if 0 in rows else ", as MEVID's does; nothing in it says so"
    return rows, f"{path.name} counts rows from 0{known}"


def _whole_numbers(line: str) -> list[int]:
    """The numbers of a line, which may be in scientific notation; empty where one isn't whole."""
    try:
        values = [float(text) for text in line.split()]
        return [int(value) for value in values] if all(v == int(v) for v in values) else []
    except (ValueError, OverflowError):
        return []


def _find(root: Path, name: str) -> Path:
    """A list of MEVID, where it is published, or beside a prepared set."""
    published = root / _MEVID / name
    return published if published.exists() or not (root / name).exists() else root / name


def _lines(path: Path) -> Iterator[tuple[Path, str, str]]:
    """The lines of a list that aren't blank: the list, where the line is in it, and the line."""
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        raise _WrongError(path, "missing; it says which images are of which split") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _WrongError(path, f"cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield path, f"line {number}: {line.strip()!r}", line.strip()


def _add(
    facts: dict[str, Mapping[str, Any]],
    frames: Sequence[str],
    fact: Mapping[str, Any],
    path: Path,
    place: str,
) -> None:
    for frame in frames:
        if facts.setdefault(frame, fact) is not fact:
            raise _WrongError(path, f"{place}: {frame} is of another tracklet, too")


def _images(folder: Path, below: str) -> list[str]:
    """The images in a folder below another, sorted: paths below the first."""
    try:
        return [f"{below}/{name}" for name in list_images(folder / below, "*")]
    except OSError:  # no name of a folder at all
        return []
