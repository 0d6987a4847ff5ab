"""Where each known dataset keeps its images and how it names them. No torch, no pandas.

To add a dataset: a row in `LAYOUTS`. Facts are those of the datasets' own pages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.files import list_images
from deskpro.stages.base.names import Name, require_groups
from deskpro.stages.data.listings import (
    CCVID_LISTS,
    MEVID_LISTS,
    OWN_LIST,
    SPLITS,
    Listing,
    Read,
    read_ccvid,
    read_mevid,
    read_own_list,
)

KINDS = ("imgs", "lr_face", "hr_face", "mask")
"""The four images of a sample, by the name of their folder."""
Files = str | tuple[str, ...]
"""Of a folder: a pattern, or paths, below it."""
PREPARED = {
    "train": "bounding_box_train/*",
    "query": "query/*",
    "gallery": "bounding_box_test/*",
}
RAW = {"train": "train/*", "query": "query/*", "gallery": "gallery/*"}


class Counts(NamedTuple):
    """The published size of a dataset, to check a copy by."""

    train: tuple[int, int]
    """Identities, images."""
    query: int
    gallery: int


def stem(path: str) -> str:
    """What the images of a sample have in common: the path without the extension."""
    return path.rpartition(".")[0]


def _name(pattern: str) -> tuple[re.Pattern[str], ...]:
    """The rule of a dataset whose file names say everything, each split in one folder."""
    return (re.compile(rf"[^/]+/{pattern}\.\w+"),)


_BY_CAMERA = _name(r"(?P<pid>\d+)_c(?P<camid>\d{1,9})_[^/]*")


@dataclass(frozen=True)
class Layout:
    """A dataset's folders and naming rule.

    files: split → glob below the root (below `imgs/` where it is prepared). rules: one of them must
    match the path from there, never the full path: a parent folder that looks like an id must not
    be read as one. Groups: pid, and where known other fields of `Name`; camid is a number, or A, B,
    C for 1, 2, 3.
    """

    example: str = "<pid>_c<camid>_<frame>.jpg"
    rules: tuple[re.Pattern[str], ...] = _BY_CAMERA
    files: Mapping[str, str] = field(default_factory=lambda: PREPARED)
    below_split: bool = False
    """Whether a rule must match the path below the folder of the split."""
    always_prepared: bool = False
    """Exists in the prepared layout alone."""
    junk: frozenset[str] = frozenset()
    """pids that stand for nobody and are dropped."""
    outfits: Mapping[int, str] = field(default_factory=dict)
    """camid → clothes, where the camera says them."""
    shared_clothes: bool = False
    """Whether a label of clothes is one outfit, whoever wears it; else it counts by person."""
    scenes: Mapping[str, str] = field(default_factory=dict)
    """split → a list below the root with lines `image,scene`, where names don't say it."""
    listing: Read | None = None
    """Reads which images are of which split, where the dataset's own lists say it; `files` are then
    all images."""
    lists: tuple[str, ...] = ()
    """The files that `listing` reads, below the root."""
    counts: Counts | None = None
    protocols: tuple[str, ...] = ("market",)
    """What it is scored by where a recipe doesn't say (stages/metrics/protocols.py)."""

    def prepared(self, root: Path) -> bool:
        """Whether the root has lr_face/, hr_face/ and mask/ beside imgs/, not bodies only."""
        return self.always_prepared or (root / "imgs").is_dir()

    def bodies_only(self, root: Path) -> bool:
        """Whether there is no folder of faces or masks beside one of body images."""
        return not self.prepared(root) or not any((root / kind).is_dir() for kind in KINDS[1:])

    def bodies(self, root: Path) -> Path:
        """The folder below which the paths of body images are counted."""
        return root / "imgs" if self.prepared(root) else root

    def place(self, root: Path, split: str) -> Path:
        """The folder of a split's body images, or the one above several."""
        return self.bodies(root) / re.split(r"[*[]", self.files[split])[0].rpartition("/")[0]

    def read_lists(self, root: Path, splits: Collection[str]) -> Listing | None:
        """What its own lists say of some splits, where they say which images these are."""
        return self.listing and self.listing(root, self.bodies(root), splits)

    def images(
        self, root: Path, split: str, kind: str = "imgs", lists: Listing | None = None
    ) -> list[str]:
        """The images of a kind, sorted: paths below `bodies(root)`, or below `root / kind`.

        lists: what `read_lists` gave; read where not given.
        """
        prepared = self.prepared(root)
        if kind != "imgs" and not prepared:
            return []
        lists = lists or self.read_lists(root, [split])
        if lists is None:
            return list_images(root / kind if prepared else root, self.files[split])
        if kind == "imgs":
            return [*lists.images[split]]
        stems = {stem(image) for image in lists.images[split]}
        found = list_images(root / kind, self.files[split])
        return [image for image in found if stem(image) in stems]

    @property
    def side_files(self) -> tuple[str, ...]:
        """Files beside the images that say something of them, if there are any; below the root."""
        return "clothes.csv", *self.scenes.values(), *self.lists

    def places(
        self, root: Path, kinds: Sequence[str], splits: Sequence[str]
    ) -> dict[tuple[str, str], tuple[Path, Files]]:
        """Kind and split → where the images lie: a folder, and their pattern below it, or, where
        this is of no fixed depth, their paths."""
        prepared, deep = self.prepared(root), any("**" in self.files[split] for split in splits)
        lists = self.read_lists(root, splits) if deep else None
        return {
            (kind, split): (
                root / kind if prepared else root,
                tuple(self.images(root, split, kind, lists)) if deep else self.files[split],
            )
            for kind in kinds
            for split in splits
            if prepared or kind == "imgs"
        }

    def parse(self, path: str, lists: Listing | None = None) -> Name | None:
        """What the lists, or else a path below `bodies`, say; None where it doesn't follow the
        rule."""
        known = lists.facts.get(path, {}) if lists else {}
        if "pid" in known:
            return Name(**known)
        text = path.partition("/")[2] if self.below_split else path
        match = next(filter(None, (rule.fullmatch(text) for rule in self.rules)), None)
        if match is None:
            return None
        groups = match.groupdict()
        no_camera, camera = "camid" not in groups, groups.pop("camid", None)
        if camera is not None and re.fullmatch("[A-Z]", camera):
            camera = str(ord(camera) - ord("A") + 1)
        if not groups["pid"] or not (no_camera or re.fullmatch(r"\d{1,9}", camera or "")):
            return None
        name = Name(**groups, camid=None if camera is None else int(camera))
        if name.clothes is None and name.camid is not None:
            name = name._replace(clothes=self.outfits.get(name.camid))
        return name


_CELEB = Counts((632, 20_208), 2_972, 11_006)
_CELEB_LIGHT = Counts((490, 9_021), 887, 934)
_PRCC = Counts((150, 17_896), 3_873 + 3_543, 3_384)
_MARKET = _name(r"(?P<pid>-?\d+)_c(?P<camid>\d{1,9})(?:s\d+)?_[^/]*")
_NO_CAMERA = _name(r"(?P<pid>\d+)_(?P<scene>\d)\d*_\d+")
_DEEPCHANGE = r"P(?P<pid>[^_/]+)_C(?P<camid>\d{1,9})_"
_DAY, _CLOCK = r"20\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])", r"(?:[01]\d|2[0-3])[0-5]\d[0-5]\d"
_CHANGING = ("market", "cloth-changing")
_CLOTHES_RULES = (*_CHANGING, "same-clothes")
_CELEB_RULES = ("celeb-plain", "celeb-official")

LAYOUTS: dict[str, Layout] = {
    "benchmark": Layout(always_prepared=True, shared_clothes=True, protocols=_CHANGING),
    "celeb": Layout(always_prepared=True, counts=_CELEB),
    "celeb-light": Layout(
        "<pid>_<camid>_<frame>.jpg",
        _name(r"(?P<pid>\d+)_(?P<camid>\d{1,9})_[^/]*"),
        always_prepared=True,
        counts=_CELEB_LIGHT,
    ),
    "prcc": Layout(always_prepared=True, counts=_PRCC),
    "own": Layout(
        rules=_name(r"(?P<pid>[^/]+?)_c(?P<camid>\d{1,9})_[^/]*"),
        always_prepared=True,
        protocols=_CHANGING,
    ),
    "csv": Layout(
        f"a row of {OWN_LIST}",
        (),
        dict.fromkeys(SPLITS, "**/*"),
        listing=read_own_list,
        lists=(OWN_LIST,),
        protocols=_CHANGING,
    ),
    "celeb-raw": Layout("<pid>_<n>_0.jpg", _NO_CAMERA, RAW, counts=_CELEB, protocols=_CELEB_RULES),
    "celeb-light-raw": Layout(
        "<pid>_<n>_0.jpg", _NO_CAMERA, RAW, counts=_CELEB_LIGHT, protocols=_CELEB_RULES
    ),
    "prcc-raw": Layout(
        "rgb/train/<pid>/<A|B|C>*.jpg, rgb/test/<A|B|C>/<pid>/*.jpg",
        (
            re.compile(r"rgb/train/(?P<pid>\d+)/(?P<camid>[ABC])[^/]*"),
            re.compile(r"rgb/test/(?P<camid>[ABC])/(?P<pid>\d+)/[^/]*"),
        ),
        {"train": "rgb/train/*/*", "query": "rgb/test/[BC]/*/*", "gallery": "rgb/test/A/*/*"},
        outfits={1: "AB", 2: "AB", 3: "C"},
        counts=_PRCC,
        protocols=(
            "prcc-cloth-changing",
            "prcc-same-clothes",
            "prcc-cloth-changing-single-shot",
            "prcc-same-clothes-single-shot",
        ),
    ),
    "ltcc": Layout(
        "<pid>_<clothes>_c<camid>_*.png",
        _name(r"(?P<pid>\d+)_(?P<clothes>\d+)_c(?P<camid>\d{1,9})_[^/]*"),
        {"train": "train/*", "query": "query/*", "gallery": "test/*"},
        protocols=_CLOTHES_RULES,
    ),
    "vcclothes": Layout(
        "<pid>-<camid>-<clothes>-<n>.jpg",
        _name(r"(?P<pid>\d+)-(?P<camid>\d{1,9})-(?P<clothes>\d+)-\d+"),
        RAW,
        protocols=(
            "market",
            "vcclothes-same-clothes",
            "vcclothes-cloth-changing",
            "vcclothes-same-clothes-by-id",
            "vcclothes-cloth-changing-by-id",
        ),
    ),
    "deepchange": Layout(
        "P<pid>_C<camid>_<date>_<time of day>_*.jpg",
        # Times as public code reads them; a name that has none is read without.
        (
            *_name(rf"{_DEEPCHANGE}(?P<time>{_DAY}_{_CLOCK})_[^/]*"),
            *_name(rf"{_DEEPCHANGE}[^/]*"),
        ),
        {"train": "train-set/*", "query": "test-set-query/*", "gallery": "test-set-gallery/*"},
        scenes={
            "train": "train-set-bbox.txt",
            "query": "test-set-query-bbox.txt",
            "gallery": "test-set-gallery-bbox.txt",
        },
        protocols=("deepchange",),
    ),
    "ccvid": Layout(
        "session<n>/<pid>_<camid>/*.jpg, as train.txt, query.txt and gallery.txt list them",
        (re.compile(r"session\d+/(?P<pid>\d+)_(?P<camid>\d{1,4})/[^/]+\.\w+"),),
        dict.fromkeys(SPLITS, "session*/*/*"),
        listing=read_ccvid,
        lists=CCVID_LISTS,
        protocols=_CLOTHES_RULES,
    ),
    "mevid": Layout(
        "bbox_<train|test>/<pid>/<pid>O<clothes>C<camid>T<tracklet>F<frame>.jpg",
        (re.compile(r"bbox_(?:train|test)/\d+/(?P<pid>\d+)O\d+C(?P<camid>\d{1,9})T\d+F\d+\.\w+"),),
        {"train": "bbox_train/*/*", "query": "bbox_test/*/*", "gallery": "bbox_test/*/*"},
        listing=read_mevid,
        lists=MEVID_LISTS,
        protocols=_CLOTHES_RULES,
    ),
    "last": Layout(
        "train/<pid>/*.jpg, test/query/*.jpg, test/gallery/<pid>/*.jpg; <pid>_*_<clothes>.jpg",
        (re.compile(r"(?:[^/]+/)+(?P<pid>\d+)(?:_[^/_]*)*_(?P<clothes>[^/_]+)\.\w+"),),
        {"train": "train/*/*", "query": "test/query/*", "gallery": "test/gallery/*/*"},
        protocols=("last",),
    ),
    "market1501": Layout(
        "<pid>_c<camid>s<sequence>_*.jpg",
        _MARKET,
        junk=frozenset({"-1"}),
        counts=Counts((751, 12_936), 3_368, 15_913),
    ),
    "dukemtmc": Layout("<pid>_c<camid>_*.jpg", _MARKET, junk=frozenset({"-1"})),
}


_FOLDERS = {
    "train": ("train", "bounding_box_train"),
    "query": ("query",),
    "gallery": ("gallery", "bounding_box_test"),
}


def layout_of(root: Path, dataset: str) -> Layout:
    """How the images of a folder are read: as its dataset.csv says, where it has one.

    Args:
        root: the folder; it need not exist.
        dataset: a name in `LAYOUTS`, or a regular expression (`data.name`) that the path of an
            image below the folder of its split must match.

    Raises:
        InputError: it is neither; there are a dataset.csv and an expression; or there are two
            folders of one split.
    """
    name, folder = dataset_name(root, dataset), root / "imgs" if (root / "imgs").is_dir() else root
    if name != dataset and dataset not in LAYOUTS:
        raise InputError(
            f"{root}: has {OWN_LIST}, and data.name is {dataset}; only one of them can say how "
            "images are read. Move the list away, or --set data.name=null; where it is of "
            "data.test_root alone, --set data_test=csv"
        )
    if name in LAYOUTS:
        return LAYOUTS[name]
    try:
        rule = re.compile(require_groups(name, Name._fields[1:], "(?P<pid>.+)_.*"))
    except ValueError as error:
        known = ", ".join(LAYOUTS)
        raise InputError(f"dataset {name!r} is none of {known}, and no rule: {error}") from None
    files = dict[str, str]()
    for split, names in _FOLDERS.items():
        found = [name for name in names if (folder / name).is_dir()] or [names[0]]
        if len(found) > 1:
            raise InputError(f"{folder}: has both {' and '.join(found)}; merge them, or rename one")
        files[split] = f"{found[0]}/**/*"
    example = f"data.name {name} (camid: digits, or one letter A to Z)"
    return Layout(example, (rule,), below_split=True, files=files, protocols=_CHANGING)


def dataset_name(root: Path, dataset: str) -> str:
    """What says how the images of a folder are read: `csv` where it has a dataset.csv, or
    `dataset`."""
    return "csv" if os.path.lexists(root / OWN_LIST) else dataset


def image_folders(
    root: Path, dataset: str, kinds: Sequence[str], splits: Sequence[str]
) -> dict[str, tuple[Path, Files]]:
    """Where the images of some kinds and splits lie, and the lists that say which these are.

    By role, a folder, and a pattern of images or the paths below it.
    """
    layout = layout_of(root, dataset)
    return {name: (root, (name,)) for name in layout.lists} | {
        f"{kind} of {split}": place
        for (kind, split), place in layout.places(root, kinds, splits).items()
    }


def require_bodies(root: Path, dataset: str) -> None:
    """Raise InputError where a set that is evaluated has no folder of body images of a split."""
    layout = layout_of(root, dataset)
    for place in (root, *(layout.place(root, split) for split in ("query", "gallery"))):
        if not place.is_dir():
            what = "no such folder of body images. Set data.test_root, or data.root"
            raise InputError(f"{place}: {what}")


def unfinished(root: Path) -> bool:
    """Whether the preparation of a set is under way or was interrupted."""
    return any((root / ".prepare").glob("*.jsonl")) and not (root / "prepare.csv").exists()
