"""Find everything that is wrong with a dataset before any work starts, and report it together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, UnidentifiedImageError

from deskpro.cache.file_index import Facts, FileIndex
from deskpro.cache.files import write_text
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import bar
from deskpro.stages.data.index import Problem, read_index
from deskpro.stages.data.layouts import KINDS, LAYOUTS, SPLITS, unfinished

_REPORTED = 40
"""Problems in one error message; `check-data` lists all."""


@dataclass(frozen=True)
class CheckedData:
    """The samples that can be used, those that can't and why, and what must be fixed."""

    table: pd.DataFrame
    """As `read_index` gives it; training rows are complete in all the kinds asked for."""
    left_out: pd.DataFrame
    """Training rows that aren't used: sample_id, pid, reason."""
    problems: list[Problem]

    def split(self, name: str) -> pd.DataFrame:
        """The rows of one split, numbered from 0."""
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def vanished(self) -> list[str]:
        """Training identities of which no sample is left."""
        return sorted(set(self.left_out["pid"]) - set(self.split("train")["pid"]))

    def facts(self, listing: Path) -> dict[str, Any]:
        """What was used and left out: samples, identities, left_out, vanished, listing.

        `listing` gets a CSV of sample_id, pid, reason (only the header where all was used).
        """
        write_text(listing, self.left_out.to_csv(index=False))
        train = self.split("train")
        return {
            "samples": len(train),
            "identities": train["pid"].nunique(),
            "left_out": len(self.left_out),
            "vanished": self.vanished(),
            "listing": listing,
        }

    def require(self) -> CheckedData:
        """Itself, or InputError with a line per problem."""
        if not self.problems:
            return self
        lines = [str(problem) for problem in self.problems[:_REPORTED]]
        if len(self.problems) > _REPORTED:
            lines.append(
                f"… and {len(self.problems) - _REPORTED} more; deskpro check-data lists all"
            )
        raise InputError("\n".join(lines))


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
    "leave-out". Images must decode to the end, and a mask must have the size of its body image.
    Test samples may lack any face file.

    Images that `index` knows (this user's file index, if not given) aren't read again; one reading
    gives it digest, size and problem of the others.
    """
    layout = LAYOUTS[dataset]
    if training and not layout.prepared(root) and set(needs) - {"imgs"}:
        raise InputError(
            f"{dataset} brings body images only, {', '.join(needs[1:])} would be needed. Train "
            "the body stream without targets: --set forward_mode=body --set kd_loss.enable=false "
            "--set mse.mse_weight=0; or prepare faces and masks for it: make prepare"
        )
    table, problems = read_index(root, layout, splits)
    if unfinished(root):
        problems.append(Problem(root, "its preparation is not complete. Type: make prepare"))
    left_out = table.iloc[:0].assign(reason="")[["sample_id", "pid", "reason"]]
    if training:
        table, left_out, missing = _complete(table, root, needs, incomplete)
        problems += missing

    kinds = {split: needs if split == "train" and training else test_needs for split in splits}
    paths = [
        path
        for split, wanted in kinds.items()
        for kind in wanted
        for path in table.loc[table["split"] == split, kind]
        if path is not None
    ]
    with bar("check-data", len(paths), "images") as progress:
        files = (index or FileIndex()).probe(paths, image_size, advance=progress.advance)
    problems += [
        Problem(Path(path), _unreadable(path, facts.problem))
        for path, facts in files.items()
        if facts.problem is not None
    ]
    if training and "mask" in needs:
        problems += _mismatched_masks(table[table["split"] == "train"], files)
    return CheckedData(table, left_out, problems)


def _complete(
    table: pd.DataFrame, root: Path, needs: Sequence[str], incomplete: str
) -> tuple[pd.DataFrame, pd.DataFrame, list[Problem]]:
    """Split off the training rows that can't be used, with the reason."""
    problems: list[Problem] = []
    reasons: dict[str, str] = {}
    wanted = [kind for kind in needs if kind != "imgs"]
    hint = "; --set data.incomplete=leave-out trains without it"

    def refuse(sample_id: str, path: Path, what: str) -> None:
        reasons[sample_id] = what
        if incomplete == "refuse":
            problems.append(Problem(path, what + hint))

    train = table[table["split"] == "train"]
    for row in train.to_dict("records"):
        absent = [kind for kind in wanted if row[kind] is None]
        if absent and {*absent} >= {"lr_face", "hr_face"} & {*wanted}:
            reasons[row["sample_id"]] = "no face was found: it has no " + ", ".join(absent)
        elif absent:
            path = root / absent[0] / row["sample_id"]
            refuse(row["sample_id"], path, "missing " + " and ".join(absent) + " in training")
    usable = train[~train["sample_id"].isin(list(reasons))]
    alone = usable[usable.groupby("pid")["pid"].transform("size") == 1]
    for row in alone.to_dict("records"):
        what = f"identity {row['pid']} has one image; training needs two"
        refuse(row["sample_id"], Path(row["imgs"]), what)
    unusable = train["sample_id"].isin(list(reasons))
    left_out = train.loc[unusable, ["sample_id", "pid"]].reset_index(drop=True)
    left_out["reason"] = [reasons[sample_id] for sample_id in left_out["sample_id"]]
    return table.drop(train.index[unusable]), left_out, problems


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, decoded to its end.

    Raises:
        OSError, SyntaxError, ValueError: It doesn't decode.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image.size
    except UnidentifiedImageError:
        raise ValueError("not an image file") from None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None


def _unreadable(path: str, problem: str) -> str:
    if Path(path).is_symlink() and not Path(path).exists():
        return "broken link"
    return f"unreadable image: {problem}"


def _mismatched_masks(train: pd.DataFrame, files: Mapping[str, Facts]) -> list[Problem]:
    """Masks whose size is not that of their body image."""
    problems = []
    for image, mask in zip(train["imgs"], train["mask"], strict=True):
        (_, *wanted, unreadable), (_, *found, broken) = files[image], files[mask]
        if not unreadable and not broken and wanted != found:
            what = f"mask of {found[0]}×{found[1]} pixels, its body image has"
            problems.append(Problem(Path(mask), f"{what} {wanted[0]}×{wanted[1]}"))
    return problems
