"""Find the problems of a dataset before a stage does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deskpro.cache.files import write_text
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.check import CheckedData, check_data
from deskpro.stages.data.identities import Identities
from deskpro.stages.data.index import Problem
from deskpro.stages.data.layouts import KINDS, layout_of
from deskpro.stages.losses.terms import targets_needed
from deskpro.stages.targets.kinds import needs_teacher


def run(
    options: Options, folder: RunFolder
) -> tuple[list[Problem], dict[str, object], CheckedData]:
    """Every problem of `data.root`, the facts of its splits beside the published counts, and what
    was checked.

    Raises:
        InputError: the recipe prepares the dataset, and that has not been done.
    """
    root, layout = options.data.root, layout_of(options.data.root, options.train_set)
    if options.prepare is not None and not (root / ".prepare").exists():
        raise InputError(f"{root}: not prepared yet", command="prepare")
    prepared = not layout.bodies_only(root)
    checked = check_data(
        root,
        options.train_set,
        needs=KINDS if prepared else ("imgs",),
        test_needs=("imgs", "lr_face") if prepared else ("imgs",),
        incomplete=options.data.incomplete,
        identities=Identities(*options.data.chosen),
        unlabelled=options.data.unlabelled,
    )
    problems = [*checked.problems, *_too_few(options, checked)]
    checked.write_left_out(folder.left_out)
    data = checked.facts(folder.left_out)
    facts: dict[str, object] = {
        "used": f"{data['samples']} samples of {data['identities']} identities"
    }
    if data["held_out"]:
        facts["held out"] = f"{data['held_out']} identities, for validation"
    facts |= {"without labels": f"{data['unlabelled']} images"} if data["unlabelled"] else {}
    facts |= {"left out": data["left_out"]} if data["left_out"] else {}
    facts |= {"vanished": data["vanished"]} if data["vanished"] else {}
    if checked.unused:
        found = _listed(checked.unused, folder.left_out.with_name("unused.csv"))
        facts["not used"] = f"{len(checked.unused)} files or rows of lists, {found}"
    if checked.leaks:
        found = _listed(checked.leaks, folder.left_out.with_name("leaks.csv"))
        facts["on two sides"] = f"{len(checked.leaks)} people or images, {found}"
    for split in ("query", "gallery"):
        rows = checked.split(split)
        faceless = int(rows["lr_face"].isna().sum())
        facts[split] = (
            f"{len(rows)} images of {rows['pid'].nunique()} identities, {faceless} without a face"
        )
    if not prepared:
        facts["prepared"] = (
            "not yet: body images alone. For faces and masks give the recipe a section prepare "
            "(configs/README.md), then type make prepare"
        )
    if layout.counts is not None:
        identities, images = layout.counts.train
        facts["published"] = (
            f"train {images:,} images of {identities} identities, query {layout.counts.query:,}, "
            f"gallery {layout.counts.gallery:,}"
        )
    return problems, facts, checked


def _too_few(options: Options, checked: CheckedData) -> list[Problem]:
    """Batches of more identities than there are."""
    train = checked.split("train")
    of_student = train if "body" in options.streams else train[train["lr_face"].notna()]
    found = {"batchid": of_student["pid"].nunique()}
    taught = targets_needed(options, options.streams) and needs_teacher(options)
    if taught and options.pre_train is None:
        found["train_teacher.batchid"] = train.loc[train["hr_face"].notna(), "pid"].nunique()
    batch = {"batchid": options.batchid, "train_teacher.batchid": options.train_teacher.batchid}
    few = dict.fromkeys(found, "training needs two")
    if not found.get("train_teacher.batchid", 1):
        few["train_teacher.batchid"] = (
            "no image has the HR face that the teacher sees. The body alone, with the attention of "
            "masks, is trained by --set forward_mode=body --set 'cache.targets=[parsing]'"
        )
    return [
        Problem(
            options.data.root,
            f"{count} training identities make no batch of {name} {batch[name]}: "
            + (f"--set {name}={count} or less" if count > 1 else few[name]),
        )
        for name, count in found.items()
        if count < batch[name]
    ]


def _listed(found: Sequence[Problem], path: Path) -> str:
    """Where a CSV lists all of them, and the first."""
    import pandas as pd

    table = pd.DataFrame(found, columns=["path", "reason"]).to_csv(index=False)
    write_text(path, table.encode(errors="backslashreplace").decode())  # names may be no UTF-8
    return f"listed in {path}, e.g. {found[0]}"
