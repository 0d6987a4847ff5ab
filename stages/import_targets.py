"""Put targets that any program made into a finished target cache, beside its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deskpro.cache.errors import BUILD, REBUILD, CacheError
from deskpro.cache.file_index import FileIndex
from deskpro.cache.lock import hold
from deskpro.cache.schema import Column, Field, Schema
from deskpro.cache.store import Group, TargetStore
from deskpro.cache.writer import GroupWriter
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.foreign import texts
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar
from deskpro.stages.base.training_options import require_teacher_name
from deskpro.stages.data.index import class_order, content_hashes
from deskpro.stages.data.layouts import layout_of
from deskpro.stages.targets import importing
from deskpro.stages.targets.foreign import HASHES, TARGETS, Foreign, read_foreign
from deskpro.stages.targets.kinds import OF_TEACHERS
from deskpro.stages.targets.provenance import training_images
from deskpro.stages.targets.samples import NO_LABEL

_TEXT = {
    "embedding": "features of another program's network",
    "logits": "raw logits of another program's network",
}


def require_name(name: str) -> None:
    """Refuse what can't be the name of another teacher, here as in a recipe."""
    try:
        require_teacher_name(name)
    except ValueError as error:
        raise InputError(f"--teacher: {error}") from None


class FinishedCache:
    """What a finished cache says about imported targets."""

    def __init__(self, root: Path, options: Options | None, name: str) -> None:
        """options: those that it was made with, where its run folder has them; name: of the teacher
        whose targets may be replaced.

        Raises CacheError: it is not there, damaged, or has no finished group.
        """
        self.store, self.options = TargetStore(root), options
        groups = [g for g in self.store.groups() if not g.startswith(f"teachers/{name}/")]
        found = [Group.load(root / group) for group in groups if self.store.sealed(group)]
        if not found:
            raise CacheError(f"{root}: no target is finished", command=BUILD)
        found.sort(key=lambda group: "imported" in group.fingerprint.get("teacher", {}))
        self.views_made = dict(found[0].fingerprint["views"])
        self.block = found[0].schema.block
        self.columns: Mapping[str, Column] = self.store.load_columns()
        self.sample_ids: list[str] = self.columns["sample_id"].values.tolist()
        self.views = self.columns["views"].values.shape[1]
        self._classes = [f.fingerprint["classes"] for f in found if "classes" in f.fingerprint]

    def classes(self) -> list[str]:
        """Identities in the order of the cache's logits; sorted, where it has none.

        Raises InputError: nothing says who is on the images.
        """
        if self._classes:
            return list(self._classes[0])
        if self.options is None:
            raise InputError(
                f"{self.store.root}: does not name its identities; give its run folder with --run"
            )
        root = self.options.data.root
        layout = layout_of(root, self.options.train_set)
        lists = layout.read_lists(root, ("train",))
        labels = self.columns["label"].values.tolist()
        rows = zip(self.sample_ids, labels, strict=True)
        names = [layout.parse(sample_id, lists) for sample_id, label in rows if label != NO_LABEL]
        return class_order(name.pid for name in names if name is not None)

    def hashes(self, kind: str) -> np.ndarray | None:
        """SHA-256 of each sample's image of a kind, uint8 [N, 32].

        Those of the cache where it has them, else those of the files; None where these are gone.
        """
        if f"{kind}_sha256" in self.columns:
            return self.columns[f"{kind}_sha256"].values
        if self.options is None or not self.options.data.root.is_dir():
            return None
        here = training_images(self.options).set_index("sample_id").reindex(self.sample_ids)[kind]
        return content_hashes(here.where(here.notna(), None).tolist(), FileIndex())


def run(
    file: Path, name: str, root: Path, options: Options | None, *, force: bool
) -> tuple[dict[str, object], list[str]]:
    """Import a file's targets as those of the teacher `name` into the cache `root`.

    options: those that the cache was made with, where known. force: replace targets of that name.
    The same file again resumes an import that was interrupted, and else changes nothing. Gives
    facts for the summary, and warnings.

    Raises:
        InputError: the file can't be used, or the name is taken. Nothing is written.
        CacheError: the cache can't be used, or another process writes to it.
    """
    require_name(name)
    TargetStore(root)  # before a lock is made beside it
    with hold(root, f"importing {name}"), ExitStack() as stack:
        known, found = FinishedCache(root, options, name), read_foreign(file)
        with _naming(file):
            plan = Import(name, known, found)
        writers = {
            target: stack.enter_context(plan.writer(target, force=force)) for target in plan.values
        }
        there = [target for target, writer in writers.items() if writer.sealed]
        total = sum(map(len, (writer.missing for writer in writers.values())))
        with bar("cache import", total, "blocks") as progress:
            for target, writer in writers.items():
                for block, views in writer.missing.items():
                    rows = writer.schema.rows(block)
                    values = importing.block_of(plan.values[target], plan.place[rows], views)
                    writer.write(block, {target: values})
                    progress.advance()
                writer.seal()
    return plan.facts(file, there), plan.warnings(file)


class Import:
    """A file's targets as they will be stored.

    Attributes:
        place: the file's row of each sample and view, int64 [N, V'].
        values: target → float16 [rows, H, L].
    """

    def __init__(self, name: str, known: FinishedCache, found: Foreign) -> None:
        """Raises InputError: the file's content does not fit the cache."""
        self.name, self.known, self.found = name, known, found
        arrays = found.arrays
        importing.require_arrays(arrays, found.others)
        if "view" not in arrays and not known.views_made["plain_view"]:
            raise InputError(
                "no view for each row, and view 0 of this cache is an augmented one "
                "(cache.plain_view=false). Render the views (deskpro cache render) and give view"
            )
        samples = importing.find_samples(arrays, known.sample_ids)
        self.place = importing.place_rows(arrays, samples, known.sample_ids, known.views)
        self.valid: np.ndarray = self.place[:, 0] >= 0
        self.classes = known.classes() if "logits" in arrays else []
        self.compared, self.uncompared = list[str](), list[str]()
        for key in [key for key in HASHES if key in arrays]:
            kind = key.removesuffix("sha256").rstrip("_") or "imgs"
            wanted = known.hashes(kind)
            if wanted is None:
                self.uncompared.append(key)
                continue
            importing.require_hashes(key, arrays, samples, known.sample_ids, wanted)
            self.compared.append(f"{kind}_sha256")
        order: Any = slice(None)
        if "logits" in arrays:
            names = texts("classes", arrays["classes"])
            order = importing.class_positions(names, arrays["logits"].shape[-1], self.classes)
        paths = [known.sample_ids[sample] for sample in samples]
        self.values = {
            target: importing.as_stored(target, arrays, paths)
            for target in TARGETS
            if target in arrays
        }
        if "logits" in arrays:
            self.values["logits"] = self.values["logits"][:, :, order]

    def writer(self, target: str, *, force: bool) -> GroupWriter:
        """The writer of a target's group. Raises InputError where it has other targets."""
        known, dim, text = self.known, OF_TEACHERS[target].dim, _TEXT[target]
        teacher = {"imported": self.found.sha256, "name": self.name}
        classes = {"classes": self.classes} if target == "logits" else {}
        field = Field(self.values[target].shape[1:], "float16", ("head", dim), "1", text)
        group = f"teachers/{self.name}/{target}"
        # A target whose source was compared with the cache's hash is stale when the hash changes.
        hashes = [column for column in self.compared if column in known.columns]
        with _replaceable(known.store.root / group):
            return GroupWriter(
                known.store.root,
                group,
                Schema(len(known.sample_ids), self.place.shape[1], known.block, {target: field}),
                known.columns,
                {"teacher": teacher, "views": known.views_made, **classes},
                depends=["sample_id", "views", *hashes],
                valid=self.valid,
                replace=force,
            )

    def facts(self, file: Path, there: Sequence[str]) -> dict[str, object]:
        """What the summary shows."""
        samples, views = self.place.shape
        has, absent = int(self.valid.sum()), int((~self.valid).sum())
        groups = [
            f"teachers/{self.name}/{target} {[samples, views, *values.shape[1:]]}"
            + " was there" * (target in there)
            for target, values in self.values.items()
        ]
        facts: dict[str, object] = {
            "targets": ", ".join(groups),
            "samples": f"{has} of {samples}; {absent} have no target",
            "views": f"{views} of the cache's {self.known.views}",
        }
        if self.compared:
            facts["compared"] = ", ".join(self.compared)
        return facts | {"file": f"{file}, SHA-256 {self.found.sha256[:12]}…"}

    def warnings(self, file: Path) -> list[str]:
        """What may be wrong although it was imported."""
        views, most, found = self.place.shape[1], self.known.views, []
        if "view" not in self.found.arrays:
            found.append(
                f"{file} names no view: its targets are those of view 0, the plain image, alone"
            )
        if views < most:
            found.append(
                f"the cache has {most} views, {self.name} has targets of the first {views} alone; "
                "deskpro cache render writes the images of all"
            )
        if self.uncompared:
            found.append(
                f"{', '.join(self.uncompared)} is not compared: the cache has no such hash, and "
                "the images are not here"
            )
        if self.found.others:
            found.append(f"{file}: not used: {', '.join(self.found.others)}")
        return found


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Errors of a file's content begin with its name."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(file)):
            raise
        raise InputError(f"{file}: {error}", command=error.command) from None


@contextmanager
def _replaceable(folder: Path) -> Iterator[None]:
    """A refusal of the writer that --force of the import, not of the cache, answers."""
    try:
        yield
    except CacheError as error:
        what = str(error).partition(". Restore")[0]
        if error.command != REBUILD or not what.startswith(str(folder)):
            raise
        raise InputError(
            f"{what}. Give another name with --teacher, or replace them with --force"
        ) from None
