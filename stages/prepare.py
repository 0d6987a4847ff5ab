"""From a raw dataset to the prepared layout: bodies, label maps, masks, LR and HR faces."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import write_bytes, write_text
from deskpro.stages.base.engine import map_items
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.prepare_options import STEPS, Prepare
from deskpro.stages.base.progress import bar
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Dep, Job, Result, Stage
from deskpro.stages.data.index import Problem
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.preparation import contact_sheet, listing
from deskpro.stages.preparation.bodies import Bodies
from deskpro.stages.preparation.methods import METHODS
from deskpro.stages.preparation.record import (
    Prepared,
    Record,
    Records,
    digests,
    images_by_stem,
    unfinished,
)
from deskpro.stages.preparation.samples import (
    KINDS,
    Sample,
    companions,
    find_samples,
    is_own_folder,
)
from deskpro.stages.preparation.step import Outcome, Step

_LISTED = 40
"""Problems in one error message; prepare.csv lists all images that were left out."""


_NETWORK_FILES = (
    "config.json", "preprocessor_config.json", "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin",
)  # fmt: skip
"""Of a folder in the format of transformers; those that it lacks don't count."""


@dataclass(frozen=True)
class PrepareResult(Result):
    """summary: counts by name, as `listing.summary` gives; skipped: suffix → files that are no
    images; removed: images that are no longer in the raw dataset."""

    summary: Mapping[str, object]
    left_out: int
    removed: int
    skipped: Mapping[str, int]
    enlarged: bool
    listing: Path
    page: Path


class PrepareData(Stage):
    """Prepares every image of the raw dataset; files that are up to date are kept."""

    name = "prepare"
    params = ("data_train", "prepare")
    incremental = True
    required = True

    @property
    def settings(self) -> Prepare:
        return self.options.prepare or Prepare()

    @property
    def home(self) -> RunFolder:
        return RunFolder(self.options.data.root / ".prepare")

    def check(self) -> None:
        if self.options.prepare is None:
            raise InputError(
                "the recipe has no section prepare, which names the raw dataset. Set prepare.root; "
                "deskpro prepare --explain shows the other options"
            )

    def deps(self) -> list[Dep]:
        settings = self.settings
        found = []
        if settings.root is not None:
            layout = LAYOUTS[self.options.data_train]
            if is_own_folder(settings.root, self.options.data_train):
                found.append(Dep("the raw images", settings.root, "**/*"))
            else:
                bodies = layout.bodies(settings.root)
                for split, pattern in layout.files.items():
                    found.append(Dep(f"the raw images of {split}", bodies, pattern))
            for name in ("clothes.csv", *layout.scenes.values()):
                found.append(Dep(name, settings.root / name))
        if settings.parsing.method == "labels" and settings.parsing.labels is not None:
            found.append(Dep("the label maps", settings.parsing.labels, "**/*"))
        if settings.parsing.model is not None:
            for name in _NETWORK_FILES:
                found.append(
                    Dep(f"prepare.parsing.model, {name}", Path(settings.parsing.model) / name)
                )
        restoration = settings.restoration
        if restoration.method == "pictures" and restoration.pictures is not None:
            found.append(Dep("the HR images", restoration.pictures, "**/*"))
        models = {"face": settings.face.model, "restoration": restoration.model}
        found += [Dep(f"prepare.{step}.model", path) for step, path in models.items() if path]
        return found

    def outs(self) -> list[Path]:
        return [self.options.data.root / "prepare.csv"]

    def run(self, job: Job) -> Result:
        """Each step runs on all images before the next.

        Raises:
            InputError: images cannot be used and `prepare.unusable` is "refuse"; all others are
                done.
        """
        settings, root = self.settings, self.options.data.root
        found = find_samples(settings.root or root, self.options.data_train, settings.own)
        _refuse(found.problems)
        steps = _steps(settings, root, self.options.device)
        outputs = Outputs(root / "prepare.csv", root / "prepare.html")
        records = {name: Records(root, name) for name in ("body", *STEPS)}
        resident = images_by_stem(root)
        made = records["body"].ids() | {sample.id for sample in found.samples}
        _refuse_foreign_files(settings, resident, {root / "imgs" / id_ for id_ in made}, outputs)
        outputs.listing.unlink(missing_ok=True)  # it exists only while the set is complete
        remove_partials(root)
        _copy_companions(self.options, settings, found.samples, job.index)
        before = [records[name] for name in records.keys() - {step.name for step in steps}]
        images = [Prepared(sample) for sample in found.samples]
        for image in images:
            for earlier in before:
                image.facts |= earlier.facts(image.sample.id)
        for step in steps:
            usable = [image for image in images if image.problem is None]
            todo = unfinished(step, usable, records[step.name], resident, job.index)
            _perform(step, images, todo, records[step.name], self.options)
        images.sort(key=lambda image: image.sample.id)
        removed = _finish(self.options, steps, images, records, job.index, outputs)
        return PrepareResult(
            summary=listing.summary(images),
            left_out=sum(image.problem is not None for image in images),
            removed=removed,
            skipped=found.skipped,
            enlarged="restoration" in settings.steps and settings.restoration.method == "bicubic",
            listing=outputs.listing,
            page=outputs.page,
        )


class Outputs(NamedTuple):
    """listing: prepare.csv in the prepared set, written last; page: the contact sheet."""

    listing: Path
    page: Path


def _steps(settings: Prepare, root: Path, device: str) -> list[Step]:
    methods = [METHODS[name][getattr(settings, name).method] for name in settings.steps]
    if settings.root is not None:
        methods.insert(0, Bodies)
    return [method(settings, root, device) for method in methods]


def _perform(
    step: Step, images: Sequence[Prepared], todo: set[str], records: Records, options: Options
) -> None:
    """Run a step on the images `todo`, in batches; only this process writes.

    The records of a batch are on disk before its files: after a crash in between, the files that
    exist are known, and the others are written by the same command.
    """
    by_id = {image.sample.id: image for image in images}
    size, launch = (options.prepare or Prepare()).batch, options.launch
    batches = [images[i : i + size] for i in range(0, len(images), size)]
    items = [
        tuple(replace(p.sample, facts=p.facts) for p in batch if p.sample.id in todo)
        for batch in batches
    ]
    with bar(f"prepare {step.name}", len(todo), "images") as progress, ThreadPoolExecutor() as pool:
        for samples, outcomes in map_items(launch, step.worker, filter(None, items)):
            paths = [step.path(step.writes, sample) for sample in samples]
            new = []
            for sample, path, outcome in zip(samples, paths, outcomes, strict=True):
                image = by_id[sample.id]
                image.facts |= outcome.facts
                image.problem = outcome.problem
                key = image.keys[step.name]
                new.append(Record.of(sample.id, key, records.name(path), outcome))
            records.add(new)
            list(pool.map(_write, paths, [outcome.content for outcome in outcomes]))
            progress.advance(len(samples))


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_bytes(path, content)


def _finish(
    options: Options,
    steps: Sequence[Step],
    images: Sequence[Prepared],
    records: Mapping[str, Records],
    file_index: FileIndex,
    outputs: Outputs,
) -> int:
    """Delete what is no longer wanted, write page and listing; the number of vanished images."""
    settings, root = options.prepare or Prepare(), options.data.root
    _refuse_unusable(images, settings)
    vanished: set[str] = set()
    for step in steps:
        own = records[step.name]
        good = {p.sample.id: p.keys[step.name] for p in images if p.problem is None}
        for id_ in own.ids() - good.keys():
            own.withdraw(id_, file_index)
        vanished |= own.ids() - {image.sample.id for image in images}
        own.compact(good)
    table = listing.table(images, settings.root or root)
    contact_sheet.write(outputs.page, table, settings, root, options.data_train)
    write_text(outputs.listing, table.to_csv(index=False))
    return len(vanished)


def _refuse_unusable(images: Sequence[Prepared], settings: Prepare) -> None:
    bad = [image for image in images if image.problem is not None]
    _refuse([Problem(p.sample.source, str(p.problem)) for p in bad if p.foreign])
    hint = "--set prepare.unusable=leave-out prepares the others"
    if settings.root is None:
        hint = "move the image out of imgs/"
    if settings.unusable == "refuse" or settings.root is None:
        _refuse([Problem(p.sample.source, f"{p.problem}. Fix it, or {hint}") for p in bad])
    if len(bad) == len(images):
        first = Problem(bad[0].sample.source, str(bad[0].problem))
        raise InputError(f"none of {len(bad)} images can be prepared; {first}")


def _refuse(problems: Sequence[Problem]) -> None:
    if not problems:
        return
    count = f"{len(problems)} image{'s' * (len(problems) > 1)}"
    lines = [f"{count} can't be prepared:", *map(str, problems[:_LISTED])]
    if len(problems) > _LISTED:
        lines.append(f"… and {len(problems) - _LISTED} more")
    raise InputError("\n  ".join(lines))


def _refuse_foreign_files(
    settings: Prepare,
    resident: Mapping[Path, Sequence[Path]],
    bodies: Collection[Path],
    outputs: Outputs,
) -> None:
    """Refuse to mix with images, or replace pages, that prepare did not write."""
    root = outputs.listing.parent
    images = [path for same in resident.values() for path in same]
    foreign = sorted(p for p in images if p.is_relative_to(root / "imgs") and p not in bodies)
    if settings.root is not None and foreign:
        raise InputError(
            f"{root / 'imgs'}: {len(foreign)} images were not written by prepare, e.g. "
            f"{foreign[0].name}. Set data.root to another folder"
        )
    if not [*(root / ".prepare").glob("*.jsonl")]:
        for path in (outputs.listing, outputs.page):
            if path.exists():
                raise InputError(f"{path}: was not written by prepare. Move or delete it")


def remove_partials(root: Path) -> None:
    """Remove what an interruption left half-written."""
    paths = [*root.glob(".*.partial*")]
    for folder in (*KINDS, ".prepare"):
        paths += (root / folder).rglob(".*.partial*")
    for path in paths:
        path.unlink(missing_ok=True)


def _copy_companions(
    options: Options, settings: Prepare, samples: Sequence[Sample], file_index: FileIndex
) -> None:
    """Copy the lists beside the raw images; write clothes.csv for clothes that names contain."""
    if settings.root is None:
        return
    root = options.data.root
    files = {root / p.name: p.read_bytes() for p in companions(settings.root, options.data_train)}
    worn = [(sample.id, sample.clothes) for sample in samples if sample.clothes]
    if worn:
        table = pd.DataFrame(sorted(worn), columns=["path", "clothes"])
        files[root / "clothes.csv"] = table.to_csv(index=False, lineterminator="\n").encode()
    records = Records(root, "companions")
    for path, digest in digests(files, file_index).items():
        record = Record.of(path.name, "", path.name, Outcome(files[path]))
        same = digest == record.files[path.name]
        if path.exists() and not same and not records.owns(path.name, path, digest):
            raise InputError(f"{path}: was not written by prepare. Move or delete it")
        records.add([record])
        write_bytes(path, files[path])
    for name in records.ids() - {path.name for path in files}:
        records.withdraw(name, file_index)
    records.compact({path.name: "" for path in files})
