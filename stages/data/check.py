"""Find everything that is wrong with a dataset before any work starts, and report it together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from deskpro.cache.file_index import Facts, FileIndex
from deskpro.cache.files import write_text
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.images import read_image
from deskpro.stages.base.progress import bar
from deskpro.stages.data import masks
from deskpro.stages.data.index import Problem, read_index, refuse
from deskpro.stages.data.layouts import KINDS, LAYOUTS, SPLITS, unfinished
from deskpro.stages.data.unused import find_unused, warn_of_unused


@dataclass(frozen=True)
class CheckedData:
    """The samples that can be used, those that can't and why, and what must be fixed."""

    table: pd.DataFrame
    """As `read_index` gives it; training rows are complete in all the kinds asked for."""
    left_out: pd.DataFrame
    """Training rows that aren't used: sample_id, pid, reason."""
    problems: list[Problem]
    unused: list[Problem]
    """Files, and rows of lists, that belong to no image."""

    def split(self, name: str) -> pd.DataFrame:
        """The rows of one split, numbered from 0."""
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def facts(self, listing: Path) -> dict[str, Any]:
        """What was used and left out: samples, identities, left_out, vanished, listing.

        vanished: training identities of which no sample is left. `listing` gets a CSV of sample_id,
        pid, reason (only the header where all was used).
        """
        write_text(listing, self.left_out.to_csv(index=False))
        train = self.split("train")
        return {
            "samples": len(train),
            "identities": train["pid"].nunique(),
            "left_out": len(self.left_out),
            "vanished": sorted({*self.left_out["pid"]} - {*train["pid"]}),
            "listing": listing,
        }

    def require(self) -> CheckedData:
        """Itself, or InputError with a line per problem. A warning names what isn't used."""
        refuse(self.problems, more="; deskpro check-data lists all")
        warn_of_unused(self.unused, "; deskpro check-data lists all")
        return self


def check_data(
    root: Path,
    dataset: str,
    *,
    splits: Iterable[str] = SPLITS,
    needs: Sequence[str] = KINDS,
    test_needs: Sequence[str] = ("imgs", "lr_face"),
    incomplete: str = "refuse",
    training: bool = True,
    index: FileIndex | None = None,
) -> CheckedData:
    """Read the index of `root` and decode the images of the kinds in `needs`, or `test_needs`.

    Where the training split is for `training`, it must be complete: a sample with none of the
    needed face files and mask is one whose face wasn't found: it is left out. One with only some of
    them, or an identity with one image, is a problem, or left out where `incomplete` is
    "leave-out". Images must decode to the end, and a mask must have the size of its body image;
    some of the masks must have a head. Test samples may lack any face file.

    Images that `index` knows (this user's file index, if not given) aren't read again; one reading
    gives it digest, size and problem of the others.
    """
    layout = LAYOUTS[dataset]
    if training and not layout.prepared(root) and set(needs) - {"imgs"}:
        raise InputError(
            f"{dataset} brings body images only, {', '.join(needs[1:])} would be needed. Prepare "
            "faces and masks for it (make prepare), or train the body stream without targets",
            command="train-student --set forward_mode=body --set kd_loss.enable=false "
            "--set mse.mse_weight=0",
        )
    splits = [*splits]
    table, problems = read_index(root, layout, splits)
    unused, unmatched = find_unused(root, layout, splits)
    problems += unmatched
    if unfinished(root):
        problems.append(Problem(root, "its preparation is not complete. Type: make prepare"))
    left_out = pd.DataFrame(columns=["sample_id", "pid", "reason"])
    if training:
        table, left_out, missing = _complete(table, root, needs, incomplete)
        problems += missing

    kinds = {split: needs if split == "train" and training else test_needs for split in splits}
    paths = [
        path
        for split, wanted in kinds.items()
        for kind in wanted
        for path in table.loc[table["split"] == split, kind].dropna()
    ]
    files, unreadable = _read(paths, root, index or FileIndex())
    problems += unreadable
    if training and "mask" in needs:
        train = table[table["split"] == "train"]
        problems += _mismatched_masks(train, files)
        if lack := masks.lack_of_heads(files[path].note for path in train["mask"]):
            problems.append(Problem(root / "mask", lack))
    return CheckedData(table, left_out, problems, unused)


def _read(
    paths: Sequence[str], root: Path, index: FileIndex
) -> tuple[dict[str, Facts], list[Problem]]:
    """The facts of each image, and those that can't be read."""
    problems = []
    with bar("check-data", len(paths), "images") as progress:
        read = partial(decode, masks_below=Path(os.path.abspath(root / "mask")))  # noqa: PTH100
        files = index.probe(paths, read, advance=progress.advance)
    for name, facts in files.items():
        path, what = Path(name), f"unreadable image: {facts.problem}"
        if facts.problem is not None:
            broken = path.is_symlink() and not path.exists()
            problems.append(Problem(path, "broken link" if broken else what))
    return files, problems


def _complete(
    table: pd.DataFrame, root: Path, needs: Sequence[str], incomplete: str
) -> tuple[pd.DataFrame, pd.DataFrame, list[Problem]]:
    """Split off the training rows that can't be used, with the reason."""
    wanted = [kind for kind in needs if kind != "imgs"]
    faces = {"lr_face", "hr_face"} & {*wanted}
    train = table[table["split"] == "train"]
    reasons, refused = dict[str, str](), dict[str, Path]()
    for row in train.to_dict("records"):
        id_, absent = row["sample_id"], [kind for kind in wanted if row[kind] is None]
        if absent and {*absent} >= faces:
            reasons[id_] = "no face was found: it has no " + ", ".join(absent)
        elif absent:
            reasons[id_] = "missing " + " and ".join(absent) + " in training"
            refused[id_] = root / absent[0] / id_
    usable = train[~train["sample_id"].isin([*reasons])]
    for row in usable[~usable["pid"].duplicated(keep=False)].to_dict("records"):
        reasons[row["sample_id"]] = f"identity {row['pid']} has one image; training needs two"
        refused[row["sample_id"]] = Path(row["imgs"])
    unusable = table["sample_id"].isin([*reasons])
    left_out = table.loc[unusable, ["sample_id", "pid"]].reset_index(drop=True)
    left_out["reason"] = [reasons[id_] for id_ in left_out["sample_id"]]
    hint = "; --set data.incomplete=leave-out trains without it"
    problems = [Problem(path, reasons[id_] + hint) for id_, path in refused.items()]
    return table[~unusable], left_out, problems if incomplete == "refuse" else []


def decode(path: Path, masks_below: Path) -> tuple[int, int, str | None]:
    """Width, height and, of a mask, what it has; masks_below: their folder."""
    image = read_image(path)
    return *image.size, masks.content(image) if path.is_relative_to(masks_below) else None


def _mismatched_masks(train: pd.DataFrame, files: Mapping[str, Facts]) -> Iterator[Problem]:
    """Masks whose size is not that of their body image."""
    for image, mask in zip(train["imgs"], train["mask"], strict=True):
        body, own = files[image], files[mask]
        readable = body.problem is None and own.problem is None
        if readable and (body.width, body.height) != (own.width, own.height):
            what = f"mask of {own.width}×{own.height} pixels, its body image has"
            yield Problem(Path(mask), f"{what} {body.width}×{body.height}")
