"""From a raw dataset to the prepared layout: bodies, label maps, masks, LR and HR faces."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from deskpro.cache.files import write_aside
from deskpro.cache.lock import BuildLock
from deskpro.stages.base import device as devices
from deskpro.stages.base import ranks
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.prepare_options import STEPS, Prepare
from deskpro.stages.base.progress import bar
from deskpro.stages.data.file_index import FileIndex
from deskpro.stages.data.index import Problem
from deskpro.stages.data.layouts import IMAGE_SUFFIXES
from deskpro.stages.preparation import contact_sheet as contact_sheet
from deskpro.stages.preparation import listing
from deskpro.stages.preparation.bodies import Bodies
from deskpro.stages.preparation.faces import BOXES, Box
from deskpro.stages.preparation.listing import Prepared
from deskpro.stages.preparation.masks import MASKS
from deskpro.stages.preparation.parsing import PARSERS
from deskpro.stages.preparation.record import Entry, Ledger, Siblings, perform
from deskpro.stages.preparation.restoration import RESTORERS
from deskpro.stages.preparation.samples import Places, Sample, companions, find_samples
from deskpro.stages.preparation.schemes import SCHEMES
from deskpro.stages.preparation.step import Step

_LISTED = 40
"""Problems in one error message; prepare.csv lists all that were left out."""


@dataclass(frozen=True)
class Inputs:
    """file_index: file that remembers the content of files, by size and time of change."""

    file_index: Path


@dataclass(frozen=True)
class Outputs:
    """listing: prepare.csv in the prepared set, written last; page: the contact sheet."""

    listing: Path
    page: Path


def run(options: Options, inputs: Inputs, outputs: Outputs) -> dict[str, object]:
    """Prepare every image of the raw dataset; what is done already is left as it is.

    Each image goes through the steps in turn; its files are complete or absent. Of several
    processes each prepares batches of its own. Raises InputError, after all that can be done is
    done, where images can't be used and `prepare.unusable` is "refuse". Returns the facts for the
    summary.
    """
    settings = options.prepare or Prepare()
    root = options.data.root
    found = find_samples(settings.root or root, options.data_train, settings.own)
    _refuse(found.problems)
    samples = found.samples
    ledgers: dict[str, Ledger] = {}
    steps = _steps(options, settings, ledgers)
    with ranks.join() as team, ExitStack() as held:
        if team.rank == 0:
            held.callback(BuildLock(root / ".prepare" / "set").release)
            _refuse_foreign_files(options, settings, samples, outputs)
            outputs.listing.unlink(missing_ok=True)  # until all is done there is none
            remove_partials(root)
            _copy_companions(options, settings, samples)
        team.share(None)
        siblings = Siblings(root)
        for step in steps:
            ledgers[step.name] = Ledger(root, step.name, team.rank)
        file_index = FileIndex(inputs.file_index if team.rank == 0 else None)
        batches = [samples[i : i + settings.batch] for i in range(0, len(samples), settings.batch)][
            team.rank :: team.size
        ]
        done: list[Prepared] = []
        with bar("prepare", sum(map(len, batches)), "images") as progress:
            for batch in batches:
                done += _through(steps, batch, ledgers, siblings, file_index)
                progress.advance(len(batch))
        everyone = [each for part in team.gather(done) for each in part]
        if team.rank == 0:
            file_index.save()
            everyone.sort(key=lambda each: each.sample.id)
            removed = _finish(options, settings, steps, everyone, inputs, outputs)
        # The others learn what went wrong with theirs from the first, which speaks for all.
        removed = team.share(removed if team.rank == 0 else 0)
    facts = listing.facts(everyone)
    if any(image.problem for image in everyone):
        left_out = sum(image.problem is not None for image in everyone)
        facts["left out"] = f"{left_out} images, listed in {outputs.listing}"
    if removed:
        facts["removed"] = f"{removed} images that are no longer in {settings.root}"
    if found.passed_over:
        facts["passed over"] = f"no images: {listing.counted(found.passed_over)}"
    if "restoration" in settings.steps and settings.restoration.method == "bicubic":
        facts["note"] = "HR faces are bicubic enlargements: nothing was restored"
    return facts | {"listing": outputs.listing, "contact sheet": outputs.page}


def _refuse_foreign_files(
    options: Options, settings: Prepare, samples: Sequence[Sample], outputs: Outputs
) -> None:
    """Refuse to mix with images, or replace pages, that prepare didn't make."""
    root = options.data.root
    made = {*Ledger(root, "body").ids(), *(sample.id for sample in samples)}
    foreign_files = [
        path
        for path in sorted((root / "imgs").rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.relative_to(root / "imgs").as_posix() not in made
    ]
    if settings.root is not None and foreign_files:
        raise InputError(
            f"{root}: {len(foreign_files)} images in imgs/ weren't made by prepare, such as "
            f"{foreign_files[0].name}. Set data.root to a folder of its own"
        )
    if not [*(root / ".prepare").glob("*.jsonl")]:
        for path in (outputs.listing, outputs.page):
            if path.exists():
                raise InputError(f"{path}: isn't what prepare wrote. Move or delete it")


def _steps(options: Options, settings: Prepare, ledgers: dict[str, Ledger]) -> list[Step]:
    places = Places(options.data.root)
    scheme = SCHEMES[settings.parsing.scheme]
    device = str(devices.pick(options.device))

    def box(id_: str) -> Box | None:
        faces = ledgers.get("face") or ledgers.setdefault("face", Ledger(places.root, "face"))
        entry = faces.latest(id_)
        if entry is None or entry.facts.get("left") is None:
            return None
        return Box(entry.facts["left"], entry.facts["top"], entry.facts["side"])

    makers = {
        "parsing": lambda: PARSERS[settings.parsing.method](
            settings.parsing, places, settings.root, device
        ),
        "mask": lambda: MASKS[settings.mask.method](places, scheme),
        "face": lambda: BOXES[settings.face.method](settings.face, places, scheme),
        "restoration": lambda: RESTORERS[settings.restoration.method](
            settings.restoration, places, settings.root, device, box
        ),
    }
    bodies = [Bodies(places)] if settings.root is not None else []
    return [*bodies, *(makers[name]() for name in settings.steps)]


def _through(
    steps: Sequence[Step],
    batch: Sequence[Sample],
    ledgers: dict[str, Ledger],
    siblings: Siblings,
    file_index: FileIndex,
) -> list[Prepared]:
    """A batch through every step; an image with a problem goes no further."""
    images = [Prepared(sample) for sample in batch]
    for step in steps:
        going = [image for image in images if image.problem is None]
        taken = [image.sample for image in going]
        made = perform(step, taken, ledgers[step.name], siblings, file_index)
        for image, (key, outcome) in zip(going, made, strict=True):
            image.take(step, key, outcome)
    return images


def _finish(
    options: Options,
    settings: Prepare,
    steps: Sequence[Step],
    images: Sequence[Prepared],
    inputs: Inputs,
    outputs: Outputs,
) -> int:
    """What only the first process does, after all are done; how many images went away since."""
    bad = [image for image in images if image.problem is not None]
    _refuse([Problem(p.sample.source, str(p.problem)) for p in bad if p.foreign])
    if settings.root is None:
        hint = "; mend it, or move the image out of imgs/"
    else:
        hint = "; mend it, or --set prepare.unusable=leave-out goes on without"
    if settings.unusable == "refuse" or settings.root is None:
        _refuse([Problem(p.sample.source, f"{p.problem}{hint}") for p in bad])
    if len(bad) == len(images):
        first = Problem(bad[0].sample.source, str(bad[0].problem))
        raise InputError(f"none of {len(bad)} images can be prepared; {first}")
    root, file_index = options.data.root, FileIndex(inputs.file_index)
    gone: set[str] = set()
    for step in steps:
        ledger = Ledger(root, step.name)
        good = {p.sample.id: p.keys[step.name] for p in images if p.problem is None}
        for id_ in {*ledger.ids()} - good.keys():
            ledger.withdraw(id_, file_index)
        gone |= {*ledger.ids()} - {image.sample.id for image in images}
        ledger.seal(good)
    done = {step.name for step in steps}
    listing.recall(images, [Ledger(root, name) for name in ("body", *STEPS) if name not in done])
    table = listing.table(images, settings.root or root)
    contact_sheet.write(outputs.page, table, Places(root), settings, options.data_train)
    with write_aside(outputs.listing) as aside:
        table.to_csv(aside, index=False)
    return len(gone)


def _refuse(problems: Sequence[Problem]) -> None:
    if not problems:
        return
    lines = [f"{len(problems)} images can't be prepared:", *map(str, problems[:_LISTED])]
    if len(problems) > _LISTED:
        lines.append(f"… and {len(problems) - _LISTED} more")
    raise InputError("\n  ".join(lines))


def remove_partials(root: Path) -> None:
    """Remove what a kill left half-written."""
    for folder in ("imgs", "labels", "mask", "lr_face", "hr_face", ".prepare", ""):
        here = root / folder
        for path in here.rglob(".*.partial*") if folder else here.glob(".*.partial*"):
            path.unlink(missing_ok=True)


def _copy_companions(options: Options, settings: Prepare, samples: Sequence[Sample]) -> None:
    """Lists beside the raw images go with them; clothes that names say are listed."""
    if settings.root is None:
        return
    root = options.data.root
    files = {path.name: path.read_bytes() for path in companions(settings.root, options.data_train)}
    worn = [(sample.id, sample.clothes) for sample in samples if sample.clothes]
    if worn:
        table = pd.DataFrame(sorted(worn), columns=["path", "clothes"])
        files["clothes.csv"] = table.to_csv(index=False, lineterminator="\n").encode()
    ledger, file_index = Ledger(root, "companions"), FileIndex(None)
    for name, content in files.items():
        path = root / name
        if (
            path.exists()
            and path.read_bytes() != content
            and not ledger.owns(name, path, file_index)
        ):
            raise InputError(f"{path}: isn't what prepare wrote. Move or delete it")
        ledger.add([Entry(name, "", {name: hashlib.sha256(content).hexdigest()})])
        with write_aside(path) as aside:
            aside.write_bytes(content)
    for name in {*ledger.ids()} - files.keys():
        ledger.withdraw(name, file_index)
    ledger.seal(dict.fromkeys(files, ""))
