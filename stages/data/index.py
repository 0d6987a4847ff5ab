"""One table of a dataset's images: who, which camera, which clothes, which files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from deskpro.cache.file_index import FileIndex
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import bar
from deskpro.stages.data.layouts import IMAGE_SUFFIXES, Layout

SPLITS = ("train", "query", "gallery")
KINDS = ("imgs", "lr_face", "hr_face", "mask")
"""The four images of a sample, by the name of their folder."""


class Problem(NamedTuple):
    """A thing about the data that has to be mended before it can be used."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def read_index(
    root: Path, layout: Layout, splits: Iterable[str] = SPLITS
) -> tuple[pd.DataFrame, list[Problem]]:
    """The table of the images under `root`, sorted by split and path, and its problems.

    Columns: `split`; `sample_id` (path below the folder of body images, unique); `pid` (string);
    `camid` (int; a number of its own for each image where no camera exists); `clothes` (string,
    or None where neither the name nor a `clothes.csv` in the root says); `scene` (string or None,
    what a dataset's own protocol takes for the camera); and for each of `imgs`,
    `lr_face`, `hr_face`, `mask` the path as a string, or None where the file is absent.

    Problems: an empty split, a name that the layout's rule doesn't parse (such a file gets no
    row), a mistake in `clothes.csv`. Nothing is opened but that one file. Raises InputError where
    `root` itself is no folder.
    """
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder. Set data.root to a folder of images in the layout of "
            "data_train, or make one: deskpro make-benchmark"
        )
    splits = tuple(splits)
    clothes, problems = read_clothes(root / "clothes.csv")
    scenes: dict[str, dict[str, str]] = {}
    for split in splits:
        if split in layout.scenes:
            scenes[split], wrong = _read_scenes(root / layout.scenes[split])
            problems += wrong
    bodies = layout.bodies(root)
    rows: list[dict[str, object]] = []
    for split in splits:
        companions = _Companions(root) if layout.prepared(root) else None
        images = list(layout.images(root, split))
        if not images:
            folder = bodies / layout.files[split].split("*")[0].split("[")[0]
            problems.append(Problem(folder, f"empty split: no {split} images"))
        for body in images:
            sample_id = body.relative_to(bodies).as_posix()
            if not is_text(sample_id):
                problems.append(Problem(body, f"its name isn't UTF-8 ({sample_id!r}); rename it"))
                continue
            name = layout.parse(sample_id)
            if name is None:
                problems.append(Problem(body, f"name doesn't parse as {layout.example}"))
            elif name.pid not in layout.junk:
                rows.append(
                    {
                        "split": split,
                        "sample_id": sample_id,
                        "pid": name.pid,
                        "camid": len(rows) if name.camid is None else name.camid,
                        "clothes": name.clothes or clothes.get(sample_id),
                        "scene": name.scene or scenes.get(split, {}).get(body.name),
                        "imgs": str(body),
                        **{
                            kind: companions.find(kind, sample_id) if companions else None
                            for kind in KINDS[1:]
                        },
                    }
                )
    problems += duplicate_ids({str(row["pid"]) for row in rows}, bodies)
    columns = ["split", "sample_id", "pid", "camid", "clothes", "scene", *KINDS]
    table = pd.DataFrame(rows, columns=columns).astype({"camid": "int64"})
    for column in ("clothes", "scene", *KINDS):  # None, never a float NaN, stands for absent
        table[column] = table[column].astype(object).where(table[column].notna(), None)
    return table, problems


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


class _Companions:
    """The other images of a body image: same folder and stem, any image's extension."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[Path, dict[str, str]] = {}

    def find(self, kind: str, sample_id: str) -> str | None:
        folder = (self.root / kind / sample_id).parent
        if folder not in self._listed:
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            self._listed[folder] = {
                path.stem: str(path) for path in files if path.suffix.lower() in IMAGE_SUFFIXES
            }
        return self._listed[folder].get(Path(sample_id).stem)


def read_clothes(path: Path) -> tuple[dict[str, str], list[Problem]]:
    """Path → clothes of a `clothes.csv`, and what is wrong with it; nothing where there is none."""
    if not path.is_file():
        return {}, []
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        worn = table["clothes"].str.strip()
        known = worn != ""
        return dict(zip(table["path"][known], worn[known], strict=True)), []
    except (ValueError, KeyError, UnicodeDecodeError) as error:
        what = f"must be a CSV with the columns path and clothes ({error})"
        return {}, [Problem(path, what)]


def _read_scenes(path: Path) -> tuple[dict[str, str], list[Problem]]:
    """Lines `image,scene`, the image by its name or path."""
    scenes = {}
    try:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            image, comma, scene = line.strip().rpartition(",")
            if not comma or not scene.strip():
                return {}, [Problem(path, f"line {number} must be image,scene: {line!r}")]
            scenes[Path(image.strip()).name] = scene.strip()
    except (OSError, UnicodeDecodeError) as error:
        return {}, [Problem(path, f"must list the scene of every image ({error})")]
    return scenes, []


def is_text(name: str) -> bool:
    """Whether a file's name can be written down."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def duplicate_ids(pids: set[str], folder: Path) -> list[Problem]:
    """Identities that are one number written in two ways: 7 and 0007 would count as two people."""
    written: dict[int, list[str]] = {}
    for pid in sorted(pids):
        if pid.isdecimal():
            written.setdefault(int(pid), []).append(pid)
    return [
        Problem(folder, f"identities {' and '.join(ways)} are one number; write it in one way")
        for ways in written.values()
        if len(ways) > 1
    ]
