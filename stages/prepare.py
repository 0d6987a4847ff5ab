"""From a raw dataset to the prepared layout: bodies, label maps, masks, LR and HR faces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import ASIDE, write_bytes, write_text
from deskpro.stages.base.engine import map_items
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.prepare_options import STEPS, Prepare
from deskpro.stages.base.progress import bar, start
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Dep, Job, Result, Stage
from deskpro.stages.data.index import Problem, refuse
from deskpro.stages.data.layouts import SPLITS, layout_of
from deskpro.stages.data.listings import OWN_LIST
from deskpro.stages.preparation import contact_sheet, listing
from deskpro.stages.preparation.bodies import Bodies
from deskpro.stages.preparation.methods import METHODS
from deskpro.stages.preparation.record import FOREIGN, Records, images_below, outdated
from deskpro.stages.preparation.samples import Sample, find_samples, is_own_folder
from deskpro.stages.preparation.step import Outcome, Step, require_files

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
    params = ("data_train", "data.name", "prepare")
    incremental = True
    required = True

    @property
    def settings(self) -> Prepare:
        return self.options.prepare or Prepare()

    @property
    def root(self) -> Path:
        """The prepared set."""
        return self.options.data.root

    @property
    def home(self) -> RunFolder:
        return RunFolder(self.root / ".prepare")

    def check(self) -> None:
        if self.options.prepare is None:
            raise InputError(
                "the recipe has no section prepare, which names the raw dataset. Set prepare.root; "
                "deskpro prepare --explain shows the other options"
            )

    def deps(self) -> list[Dep]:
        settings, dataset = self.settings, self.options.train_set
        raw, parsing, restoration = settings.root, settings.parsing, settings.restoration
        places = list[tuple[str, Path | None, str | tuple[str, ...] | None]]()
        if raw is not None and is_own_folder(raw, dataset):
            places += [("the raw images", raw, "**/*")]
        elif raw is not None:
            found = layout_of(raw, dataset).places(raw, ("imgs",), SPLITS)
            places += [(f"the raw images of {split}", *at) for (_, split), at in found.items()]
        if raw is not None:
            places += [(name, raw / name, None) for name in layout_of(raw, dataset).side_files]
        if parsing.method == "labels":
            places += [("the label maps", parsing.labels, "**/*")]
        if parsing.model is not None:
            folder, role = Path(parsing.model), "prepare.parsing.model"
            places += [(f"{role}, {name}", folder / name, None) for name in _NETWORK_FILES]
        if restoration.method == "pictures":
            places += [("the HR images", restoration.pictures, "**/*")]
        places += [("prepare.face.model", settings.face.model, None)]
        places += [("prepare.restoration.model", restoration.model, None)]
        return [Dep(role, path, pattern) for role, path, pattern in places if path is not None]

    def outs(self) -> list[Path]:
        return [self.root / "prepare.csv"]

    def run(self, job: Job) -> Result:
        """Each step runs on all images before the next.

        Raises:
            InputError: images cannot be used and `prepare.unusable` is "refuse"; all others are
                done.
        """
        settings, root = self.settings, self.root
        methods = [METHODS[name][getattr(settings, name).method] for name in settings.steps]
        require_files(methods, settings)
        found = find_samples(settings.root or root, self.options.train_set, settings.own)
        refuse(found.problems, "can't be prepared")
        samples, page, [out] = found.samples, root / "prepare.html", self.outs()
        if settings.root is not None:
            methods.insert(0, Bodies)
        steps = [method(settings, root, self.options.device) for method in methods]
        records = {name: Records(root, name, job.index) for name in ("body", *STEPS)}
        self._refuse_foreign_files(records["body"].ids() | {sample.id for sample in samples})
        out.unlink(missing_ok=True)  # it exists only while the set is complete
        for partial in [*root.rglob(ASIDE)]:
            partial.unlink()
        self._copy_lists(samples, job.index)
        for name in records.keys() - {step.name for step in steps}:
            for sample in samples:
                sample.facts |= records[name].facts(sample.id)
        names = ", ".join(step.name for step in steps)
        start(self.name, device=self.options.device, samples=len(samples), steps=names, output=root)
        for step in steps:
            usable = [sample for sample in samples if sample.problem is None]
            todo = outdated(step, usable, records[step.name])
            self._perform(step, samples, todo, records[step.name])
        samples.sort(key=lambda sample: sample.id)
        self._refuse_unusable(samples)
        if any(sample.problem is not None for sample in samples):
            self._copy_lists(samples, job.index)  # a list must not name what was left out
        removed = set()
        for own in (records[step.name] for step in steps):
            removed |= own.ids() - {sample.id for sample in samples}
            own.keep([sample.id for sample in samples if sample.problem is None])
        table = listing.table(samples, settings.root or root)
        contact_sheet.write(page, table, settings, root, self.options.train_set)
        write_text(out, table.to_csv(index=False))
        return PrepareResult(
            summary=listing.summary(samples),
            left_out=int(table["problem"].notna().sum()),
            removed=len(removed),
            skipped=found.skipped,
            enlarged="restoration" in settings.steps and settings.restoration.method == "bicubic",
            listing=out,
            page=page,
        )

    def _perform(
        self, step: Step, samples: Sequence[Sample], todo: set[str], records: Records
    ) -> None:
        """Run a step on the images `todo`, in batches; only this process writes.

        The records of a batch are on disk before its files: after a crash in between, the files
        that exist are known, and the others are written by the same command.
        """
        size = self.settings.batch
        batches = (samples[i : i + size] for i in range(0, len(samples), size))
        items = [[sample for sample in batch if sample.id in todo] for batch in batches]
        title, launch = f"prepare {step.name}", self.options.launch
        with bar(title, len(todo), "images") as progress, ThreadPoolExecutor() as pool:
            for done, outcomes in map_items(launch, step.worker, [*filter(None, items)]):
                paths = [step.path(step.writes, sample) for sample in done]
                records.add([sample.id for sample in done], paths, outcomes)
                list(pool.map(_write, paths, [outcome.content for outcome in outcomes]))
                for sample, outcome in zip(done, outcomes, strict=True):
                    sample.facts |= outcome.facts
                    sample.problem = outcome.problem
                progress.advance(len(done))

    def _refuse_unusable(self, samples: Sequence[Sample]) -> None:
        bad = [sample for sample in samples if sample.problem is not None]
        hint = ", or --set prepare.unusable=leave-out prepares the others"
        if self.settings.root is None:
            hint = ", or move the image out of imgs/"
        if len(bad) == len(samples):  # then there are no others
            hint = ""
        if self.settings.unusable == "refuse" or self.settings.root is None:
            problems = [Problem(s.source, f"{s.problem}. Fix it{hint}") for s in bad]
            refuse(problems, "can't be prepared")
        if len(bad) == len(samples):
            first = f"{bad[0].source}: {bad[0].problem}"
            raise InputError(f"none of {len(bad)} images can be prepared; {first}")

    def _refuse_foreign_files(self, known: set[str]) -> None:
        """Refuse to mix with images, or replace pages, that prepare did not write.

        known: the ids of images that it wrote, or will write.
        """
        imgs = self.root / "imgs"
        foreign = [p for p in images_below(imgs) if p.relative_to(imgs).as_posix() not in known]
        if self.settings.root is not None and foreign:
            raise InputError(
                f"{imgs}: {len(foreign)} images were not written by prepare, e.g. "
                f"{foreign[0].name}. Set data.root to another folder"
            )
        pages = [self.root / name for name in ("prepare.csv", "prepare.html")]
        written = any((self.root / ".prepare").glob("*.jsonl"))
        refuse([Problem(path, FOREIGN) for path in pages if path.exists() and not written])

    def _copy_lists(self, samples: Sequence[Sample], index: FileIndex) -> None:
        """Copy the lists beside the raw images; write clothes.csv for clothes in names."""
        raw, dataset, files = self.settings.root, self.options.train_set, dict[Path, bytes]()
        if raw is None:
            return
        if not is_own_folder(raw, dataset):
            layout = layout_of(raw, dataset)
            names = [name for name in layout.side_files if (raw / name).is_file()]
            files = {self.root / Path(name).name: (raw / name).read_bytes() for name in names}
            good = [sample for sample in samples if sample.problem is None]
            if OWN_LIST in names and len(good) < len(samples):
                lists = layout.read_lists(raw, SPLITS)
                facts = lists.facts if lists else {}
                rows = [{"path": s.id, "split": s.split, **facts[s.id]} for s in good]
                files[self.root / OWN_LIST] = pd.DataFrame(rows).to_csv(index=False).encode()
        worn = sorted((sample.id, sample.clothes) for sample in samples if sample.clothes)
        if worn:
            table = pd.DataFrame(worn, columns=["path", "clothes"]).to_csv(index=False)
            files[self.root / "clothes.csv"] = table.encode()
        records = Records(self.root, "companions", index)
        for path, digest in records.digests(files).items():
            name, made = path.name, Outcome(files[path])
            same = made.files(name) == {name: digest}
            if path.exists() and not same and not records.owns(name, digest):
                raise InputError(f"{path}: {FOREIGN}")
            records.add([name], [path], [made])
            write_bytes(path, files[path])
        records.keep({path.name for path in files})


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_bytes(path, content)
