"""Find everything that is wrong with a dataset before any work starts, and report it together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from deskpro.cache.file_index import Facts, FileIndex
from deskpro.cache.files import write_text
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.images import read_image
from deskpro.stages.base.progress import bar
from deskpro.stages.data import masks
from deskpro.stages.data.identities import EVERYBODY, HELD_OUT, Identities
from deskpro.stages.data.index import Problem, read_index, refuse, warn_of
from deskpro.stages.data.layouts import KINDS, SPLITS, layout_of, unfinished
from deskpro.stages.data.leaks import find_leaks
from deskpro.stages.data.unlabelled import UNLABELLED, read_unlabelled
from deskpro.stages.data.unused import NOT_USED, find_unused

_WORDS = {
    "all": "samples",
    "body": "samples of the attention (no mask)",
    "face": "samples of the face stream (no face)",
}
"""Stream → what isn't trained on."""
LEFT_OUT = ["sample_id", "pid", "stream", "reason"]
"""The columns of left_out.csv."""


@dataclass(frozen=True)
class CheckedData:
    """The samples that can be used, those that can't and why, and what must be fixed."""

    table: pd.DataFrame
    """As `read_index` gives it; a training row has what some stream is trained on."""
    left_out: pd.DataFrame
    """What isn't used for training: sample_id, pid, stream (face, body, or all of a sample that
    isn't in the table), reason."""
    problems: list[Problem]
    unused: list[Problem]
    """Files, and rows of lists, that belong to no image."""
    leaks: list[Problem]
    """People and images on two sides of a split."""

    def split(self, name: str) -> pd.DataFrame:
        """The rows of one split, numbered from 0."""
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def facts(self, listing: Path) -> dict[str, Any]:
        """What was used: samples, identities; unlabelled: images without labels; held_out:
        identities for validation; in words, what wasn't: left_out, vanished.

        listing: where `write_left_out` lists it.
        """
        train, held_out = self.split("train"), self.split(HELD_OUT)
        counts = self.left_out["stream"].value_counts().sort_index()
        words = [f"{count} {_WORDS[str(stream)]}" for stream, count in counts.items()]
        vanished = sorted({*self.left_out["pid"]} - {*self.table["pid"]})
        return {
            "samples": len(train),
            "identities": train["pid"].nunique(),
            "unlabelled": len(self.split(UNLABELLED)),
            "held_out": held_out["pid"].nunique(),
            "left_out": ", ".join([*words, f"listed in {listing}"]) if words else "",
            "vanished": ", ".join(vanished) and f"no sample is left of {', '.join(vanished)}",
        }

    def write_left_out(self, listing: Path) -> None:
        """Write the table `left_out` as CSV; only the header where all was used."""
        write_text(listing, self.left_out.to_csv(index=False))

    def require(self) -> CheckedData:
        """Itself, or InputError with a line per problem. A warning names what isn't used."""
        more = "; deskpro check-data lists all"
        refuse(self.problems, more=more)
        warn_of(self.unused, NOT_USED, more)
        warn_of(self.leaks, "people or images are on two sides of a split", more)
        return self


def check_data(
    root: Path,
    dataset: str,
    *,
    splits: Iterable[str] = SPLITS,
    needs: Sequence[str] = KINDS,
    test_needs: Sequence[str] = ("imgs", "lr_face"),
    gallery_needs: Sequence[str] = (),
    incomplete: str = "refuse",
    training: bool = True,
    identities: Identities = EVERYBODY,
    unlabelled: Path | None = None,
    index: FileIndex | None = None,
) -> CheckedData:
    """Read the index of `root` and decode the images of the kinds in `needs`, or `test_needs`.

    Where the training split is for `training`, a sample with none of the needed face files is one
    whose face wasn't found: the body stream alone is trained on it. One with only some of the face
    files, or without a mask, and an identity with one image are a problem, unless `incomplete` is
    "leave-out" (any sample that lacks a file is left out whole, and so are such identities) or
    "keep" (a sample is used for whatever its files allow; such identities are left out). Images
    must decode to the end, and a mask must have the size of its body image; some of the masks must
    have a head. Test samples may lack any face file; `gallery_needs` adds kinds for the gallery.
    `identities` says who is of the split "train" in the end, and who of "validation". Images of the
    folder `unlabelled` are of a split of its name, and may lack any file but that of the body.
    Images that `index` knows (this user's file index, if not given) aren't read again.
    """
    layout = layout_of(root, dataset)
    if training and root.is_dir() and layout.bodies_only(root) and set(needs) - {"imgs"}:
        raise InputError(
            f"{root}: has body images only, {', '.join(needs[1:])} would be needed beside imgs/, "
            "under the same paths. Prepare them (make prepare), or train the body stream alone",
            command="train-student --set forward_mode=body --set kd_loss.enable=false "
            "--set mse.mse_weight=0",
        )
    splits = [*splits]
    table, problems = read_index(root, layout, splits)
    people = table.loc[table["split"] == "train", "pid"].unique()
    unused, unmatched = find_unused(root, layout, splits)
    problems += [*unmatched, *_unfinished(root)]
    roots, left_out = [root], pd.DataFrame(columns=LEFT_OUT)
    if training:
        table, left_out, missing = _complete(table, root, needs, incomplete)
        problems += missing
    trained = {"train", UNLABELLED} if training else set()
    if unlabelled is not None:
        others, wrong = read_unlabelled(unlabelled)
        table, problems, roots = pd.concat([table, others]), problems + wrong, [root, unlabelled]
    kinds = {s: needs if s in trained else test_needs for s in (*splits, UNLABELLED)}
    kinds |= {"gallery": (*test_needs, *gallery_needs)}
    files, unreadable = _read(_paths(table, kinds), roots, index or FileIndex())
    problems += unreadable
    if training and "mask" in needs:
        masked = table[table["split"].isin(trained) & table["mask"].notna()]
        problems += _mask_problems(masked, files, root)
    leaks = find_leaks(table, {path: facts.sha256 for path, facts in files.items()})
    table = identities.choose(table, people)
    left_out = identities.choose(left_out.assign(split="train"), people)[LEFT_OUT]
    problems += [Problem(root, what) for what in identities.lacks(table)]
    return CheckedData(table, left_out, problems, unused, leaks)


def check_masks(masked: pd.DataFrame, root: Path, index: FileIndex) -> list[Problem]:
    """What is wrong with the masks of images that all have one: of each that can't be read, or
    isn't of the size of its body image; or of their folder alone, where almost none has a head."""
    files, unreadable = _read([*masked["imgs"], *masked["mask"]], [root], index)
    if lack := masks.lack_of_heads(files[path].note for path in masked["mask"]):
        return [Problem(root / "mask", lack)]
    return [*unreadable, *_mismatched_masks(masked, files)]


def _unfinished(root: Path) -> list[Problem]:
    what = "its preparation is not complete: run prepare again"
    return [Problem(root, what)] if unfinished(root) else []


def _paths(table: pd.DataFrame, kinds: Mapping[str, Sequence[str]]) -> list[str]:
    """The files of a table; kinds: split → those that are looked at."""
    parts = [table.loc[table["split"] == split, [*wanted]] for split, wanted in kinds.items()]
    return [path for part in parts for kind in part for path in part[kind].dropna()]


def _read(
    paths: Sequence[str], roots: Sequence[Path], index: FileIndex
) -> tuple[dict[str, Facts], list[Problem]]:
    """The facts of each image, and those that can't be read."""
    problems = []
    with bar("check-data", len(paths), "images") as progress:
        folders = [Path(os.path.abspath(root / "mask")) for root in roots]  # noqa: PTH100
        read = partial(decode, masks_below=folders)
        files = index.probe(paths, read, advance=progress.advance)
    for name, facts in files.items():
        path, what = Path(name), f"unreadable image: {facts.problem}"
        if facts.problem is not None:
            broken = path.is_symlink() and not path.exists()
            problems.append(Problem(path, "broken link" if broken else what))
    return files, problems


class Lack(NamedTuple):
    """Why a training sample isn't used for a stream, or not at all."""

    sample_id: str
    stream: str
    """face, body or all."""
    reason: str
    file: Path | None = None
    """What is missing and should be there; None where nobody can tell."""


def _complete(
    table: pd.DataFrame, root: Path, needs: Sequence[str], incomplete: str
) -> tuple[pd.DataFrame, pd.DataFrame, list[Problem]]:
    """Split off the training rows that no stream is trained on; what isn't used, with the reason.

    The body stream uses every body image, if it is asked for more than faces.
    """
    train = table[table["split"] == "train"]
    lacks = [lack for row in train.to_dict("records") for lack in _lacks(row, root, needs)]
    if incomplete == "leave-out":
        by_sample = groupby(lacks, key=attrgetter("sample_id"))
        lacks = [_of_whole([*group]) for _, group in by_sample]
    bare = [root / kind for kind in needs if train[kind].isna().all()]
    whole = {lack.sample_id for lack in lacks if lack.stream == "all"}
    usable = train[~train["sample_id"].isin(whole)]
    for row in usable[~usable["pid"].duplicated(keep=False)].to_dict("records"):
        reason = f"identity {row['pid']} has one image; training needs two"
        lacks.append(Lack(row["sample_id"], "all", reason, Path(row["imgs"])))
        whole.add(row["sample_id"])
    pids = dict(zip(train["sample_id"], train["pid"], strict=True))
    rows = [(lack.sample_id, pids[lack.sample_id], lack.stream, lack.reason) for lack in lacks]
    problems = [*dict.fromkeys(_absence(x.file, x.reason, bare) for x in lacks if x.file)]
    left_out = pd.DataFrame(rows, columns=LEFT_OUT)
    kept = table[~table["sample_id"].isin(whole)]
    return kept, left_out, problems if incomplete == "refuse" else []


def _absence(file: Path, reason: str, bare: Sequence[Path]) -> Problem:
    """That a file is missing; or that all are in its folder, where this is one of `bare`."""
    for folder in bare:
        if folder in file.parents:
            what = f"{reason}, of every image; --set data.incomplete=keep uses what there is"
            return Problem(folder, what)
    hint = "; --set data.incomplete=leave-out trains without it, keep uses what it has"
    return Problem(file, reason + hint)


def _lacks(row: Mapping[Any, Any], root: Path, needs: Sequence[str]) -> Iterator[Lack]:
    """What a training sample lacks, by stream."""
    id_, faces = row["sample_id"], [kind for kind in needs if kind.endswith("face")]
    absent = [kind for kind in needs if row[kind] is None]
    no_face = faces and {*faces} <= {*absent}
    if no_face:
        yield Lack(id_, "face", "no face was found: it has no " + ", ".join(faces))
    elif missing := [kind for kind in faces if kind in absent]:
        reason = "missing " + " and ".join(missing) + " in training"
        yield Lack(id_, "face", reason, root / missing[0] / id_)
    if "mask" in absent:
        file = None if no_face else root / "mask" / id_
        yield Lack(id_, "body", "no mask" if no_face else "missing mask in training", file)


def _of_whole(lacks: Sequence[Lack]) -> Lack:
    """Of a sample that is left out whole."""
    files = [lack.file for lack in lacks if lack.file is not None]
    reason = "; ".join(lack.reason for lack in lacks)
    return Lack(lacks[0].sample_id, "all", reason, next(iter(files), None))


def decode(path: Path, masks_below: Sequence[Path]) -> tuple[int, int, str | None]:
    """Width, height and, of a mask, what it has; masks_below: their folders."""
    image = read_image(path)
    is_mask = any(path.is_relative_to(folder) for folder in masks_below)
    return *image.size, masks.content(image) if is_mask else None


def _mask_problems(
    masked: pd.DataFrame, files: Mapping[str, Facts], root: Path
) -> Iterator[Problem]:
    """Masks whose size is not that of their body image; masks for training without any head."""
    train = masked[masked["split"] == "train"]
    if lack := masks.lack_of_heads(files[path].note for path in train["mask"]):
        yield Problem(root / "mask", lack)
    yield from _mismatched_masks(masked, files)


def _mismatched_masks(masked: pd.DataFrame, files: Mapping[str, Facts]) -> Iterator[Problem]:
    """Masks whose size is not that of their body image."""
    for image, mask in zip(masked["imgs"], masked["mask"], strict=True):
        body, own = files[image], files[mask]
        readable = body.problem is None and own.problem is None
        if readable and (body.width, body.height) != (own.width, own.height):
            what = f"mask of {own.width}×{own.height} pixels, its body image has"
            yield Problem(Path(mask), f"{what} {body.width}×{body.height}")
