"""Stage one: compute the targets of every view of every training sample, and store them.

One pass over the images fills all groups of targets that lack chunks. The work is a list of items
that a worker computes in any process; this process alone writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deskpro.cache.errors import CacheError
from deskpro.cache.sealed import INDEX
from deskpro.stages.base import distributed
from deskpro.stages.base.engine import map_items, torch_threads
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar, start
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Dep, Digests, Job, Reason, Result, Stage
from deskpro.stages.base.training_options import OWN_TEACHER
from deskpro.stages.data.layouts import KINDS, image_folders
from deskpro.stages.targets.kinds import Target, needs_teacher, stored_targets

if TYPE_CHECKING:
    import pandas as pd

    from deskpro.cache.schema import Column
    from deskpro.cache.writer import GroupWriter
    from deskpro.stages.targets.worker import Item, ItemTarget, Worker


@dataclass(frozen=True)
class TeacherCacheResult(Result):
    """data: what was used, as `CheckedData.facts` gives it; kept: target → chunks that were
    there, of `chunks`; bytes: of the whole store."""

    data: Mapping[str, Any]
    views: int
    plain_view: bool
    kept: Mapping[str, int]
    chunks: int
    bytes: int
    path: Path


class TeacherCache(Stage):
    """Stores every target of every view of every training sample that has the target's images."""

    name = "teacher-cache"
    params = (
        "data_train",
        "data.name",
        "data.incomplete",
        "data.validation",
        "data.identities",
        "data.face_size",
        "data.body_size",
        "views",
        "cache.views",
        "cache.plain_view",
        "cache.block",
        "cache.precision",
        "cache.logits_dtype",
        "cache.embedding_dtype",
        "cache.mirror",
        "teachers.*.input",
        "teachers.*.backbone",
        "student.backbone",
    )

    @property
    def home(self) -> RunFolder:
        return RunFolder(self.folder.upstream)

    @property
    def teacher(self) -> Path:
        """The weights: `pre_train` where given, else those of train-teacher."""
        return self.options.pre_train or self.folder.teacher

    def upstream(self) -> str | None:
        options = self.options
        if options.pre_train is None and self.home.given() is None and needs_teacher(options):
            return "train-teacher"
        return None if self.options.prepare is None else "prepare"

    def _images(self) -> list[Dep]:
        options = self.options
        folders = image_folders(options.data.root, options.train_set, KINDS, ("train",))
        if (root := options.data.unlabelled) is not None:
            folders |= {f"{kind} without labels": (root / kind, "**/*") for kind in KINDS}
        return [Dep(role, *place) for role, place in folders.items()]

    def deps(self) -> list[Dep]:
        own = [Dep("the teacher", self.teacher)] if needs_teacher(self.options) else []
        return [*own, *self._given, *self._images()]

    @property
    def _given(self) -> list[Dep]:
        """The weights that options name, besides those of the recipe's own teacher."""
        options = self.options
        more = enumerate(options.cache.checkpoints)
        return [
            *(Dep(f"cache.checkpoints[{number}]", path) for number, path in more),
            *(
                Dep(f"teachers.{name}.weights", teacher.weights)
                for name, teacher in options.teachers.items()
                if teacher.weights is not None
            ),
        ]

    def outs(self) -> list[Path]:
        targets = stored_targets(self.options).values()
        return [self.folder.targets / target.group / INDEX for target in targets]

    @property
    def output(self) -> Path:
        return self.folder.targets

    def check(self) -> None:
        for dep in self._given:
            if not dep.path.is_file():
                raise InputError(f"{dep.role} {dep.path}: no such file; allowed is a weights file")

    def stale(self, record: Mapping[str, Any] | None, digests: Digests) -> list[Reason]:
        """As the manifest says; where that is not enough, as the store itself knows.

        A store without a manifest is complete if it was made of these options and images: its
        stage was killed in between. One that was unpacked here is fresh if it has all views, too.
        Images that changed are named by sample. More views, and more targets, are added; targets
        that this recipe doesn't need may lie beside its own.
        """
        outs = self.out_digests(digests)
        if record is not None and outs.items() <= record["outs"].items():
            record = {**record, "outs": outs}
        found = [r for r in super().stale(record, digests) if not self._of_no_teacher(r)]
        if {reason.kind for reason in found} & {"no-record", "out"}:
            given = self.home.given() is not None
            if given and not self._differences(digests, may_grow=False):
                return []
            return self._differences(digests) or [found[0]._replace(effect="extend")]
        images = {dep.role for dep in self._images()}
        if any(reason.name in images for reason in found) or (digests.deep and not found):
            found = [reason for reason in found if reason.name not in images]
            found += self._changed_images(digests)
        if added := _new_teachers(found):  # their targets are stored beside those that are there
            found = [reason for reason in found if not reason.name.startswith(added)]
            found += self._differences(digests)
        return [_more_views(reason) for reason in found]

    def _of_no_teacher(self, reason: Reason) -> bool:
        """Whether it is about a teacher that the recipe has no more, or whose targets are imported:
        what is stored stays as it is."""
        section, _, rest = reason.name.partition(".")
        teacher = self.options.teachers.get(rest.partition(".")[0])
        return section == "teachers" and (teacher is None or teacher.weights is None)

    def _differences(self, digests: Digests, *, may_grow: bool = True) -> list[Reason]:
        """How options, teacher and images differ from those of the stored targets."""
        from deskpro.stages.targets import provenance

        targets = stored_targets(self.options).values()
        try:
            differing = provenance.option_differences(
                self.folder.targets, self.options, self.teacher, targets, may_grow=may_grow
            )
        except CacheError as error:  # damaged: it is rebuilt, not resumed
            return [Reason("out", str(error.path or self.folder.targets))]
        reasons = [Reason("store", difference) for difference in differing]
        return reasons + self._changed_images(digests)

    def _changed_images(self, digests: Digests) -> list[Reason]:
        from deskpro.cache.store import TargetStore
        from deskpro.stages.targets import provenance

        options = self.options
        differing = provenance.image_differences(
            TargetStore(self.folder.targets),
            options,
            provenance.training_images(options),
            stored_targets(options).values(),
            digests.index,
            deep=digests.deep,
        )
        return [Reason("store", difference) for difference in differing]

    def run(self, job: Job) -> Result:
        from deskpro.stages.data.check import check_data
        from deskpro.stages.data.identities import Identities
        from deskpro.stages.data.views import DrawnViews
        from deskpro.stages.targets import samples
        from deskpro.stages.targets.worker import Worker

        options, data, settings = self.options, self.options.data, self.options.cache
        incomplete, dataset = data.incomplete, options.train_set
        checked = check_data(
            data.root,
            dataset,
            incomplete=incomplete,
            identities=Identities(*data.chosen),
            unlabelled=data.unlabelled,
            index=job.index,
        ).require()
        classes = _classes(checked.split("train"), options, self.teacher)
        train = samples.with_unlabelled(checked)
        drawn = DrawnViews(options.views, train["sample_id"].tolist(), settings.plain_view)
        views = drawn.table(settings.views)
        columns = samples.columns(train, classes, views, job.index)
        targets = stored_targets(options)
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(self._writer(target, train, columns, classes, job))
                for name, target in targets.items()
            }
            make_worker = partial(Worker, options, self.teacher, train, views)
            start(
                self.name,
                device=distributed.device_type(options.device),
                samples=len(train),
                views=f"{settings.views} of each",
                output=self.folder.targets,
            )
            passes = {name: target.teacher for name, target in targets.items()}
            _fill(writers, passes, make_worker, options)
            for writer in writers.values():
                writer.seal()
        checked.write_left_out(self.folder.left_out)
        files = [file for file in self.folder.targets.rglob("*") if file.is_file()]
        return TeacherCacheResult(
            data=checked.facts(self.folder.left_out),
            views=settings.views,
            plain_view=settings.plain_view,
            kept={name: writer.there for name, writer in writers.items()},
            chunks=next(iter(writers.values())).schema.blocks * settings.views,
            bytes=sum(file.stat().st_size for file in files),
            path=self.folder.targets,
        )

    def _writer(
        self,
        target: Target,
        train: pd.DataFrame,
        columns: dict[str, Column],
        classes: list[str],
        job: Job,
    ) -> GroupWriter:
        """The writer of a target's group."""
        from deskpro.cache.schema import Schema
        from deskpro.cache.writer import GroupWriter
        from deskpro.stages.targets import provenance
        from deskpro.stages.targets.kinds import stored_fields

        options, settings = self.options, self.options.cache
        teachers = provenance.TeacherFiles(options, self.teacher)
        fields = stored_fields(target, teachers.settings(target.teacher))
        order = {"classes": classes} if target.teacher == OWN_TEACHER else {}
        return GroupWriter(
            self.folder.targets,
            target.group,
            Schema(len(train), settings.views, settings.block, fields),
            columns,
            provenance.fingerprint(target, options, teachers.facts(target.teacher)) | order,
            depends=provenance.columns(target),
            valid=provenance.valid(train, target),
            replace=job.replaces,
            reuse=settings.reuse,
        )


def _new_teachers(reasons: Iterable[Reason]) -> tuple[str, ...]:
    """`teachers.NAME.` of each teacher that the recipe did not have: its input was none."""
    inputs = (r.name for r in reasons if r.name.endswith(".input") and not r.before)
    return tuple(name.removesuffix("input") for name in inputs if name.startswith("teachers."))


def _more_views(reason: Reason) -> Reason:
    """More views are added to the cache."""
    grows = reason.name == "cache.views" and isinstance(reason.before, int)
    if grows and int(str(reason.now)) > int(str(reason.before)):
        return reason._replace(effect="extend")
    return reason


def _fill(
    writers: Mapping[str, GroupWriter],
    teachers: Mapping[str, str],
    make_worker: Callable[[], Worker],
    options: Options,
) -> None:
    """Compute what the groups lack; each item is written while the next is computed.

    teachers: target → the name of its teacher.
    """
    items = _items(writers, teachers)
    total = sum(len(item.rows) * len(item.views) for item in items)
    writing: Future[None] | None = None
    with bar("teacher-cache", total, "views") as progress, ThreadPoolExecutor(1) as background:
        for item, results in _computed(items, make_worker, options, progress.advance):
            if writing is not None:
                writing.result()  # a full disk is noticed here
            writing = background.submit(_write, writers, item, results)
        if writing is not None:
            writing.result()


def _computed(
    items: list[Item],
    make_worker: Callable[[], Worker],
    options: Options,
    advance: Callable[[int], None],
) -> Iterator[tuple[Item, Mapping[str, ItemTarget]]]:
    """Each item with its targets; by this process in one stream, which loads images ahead."""
    launch = options.launch
    if not items:
        return
    if launch.engine == "local" and launch.workers == 1:
        with torch_threads(launch.threads):
            yield from zip(items, make_worker().run(items, advance), strict=True)
        return
    for item, results in map_items(launch, make_worker, items):
        advance(len(item.rows) * len(item.views))
        yield item, results


def _items(writers: Mapping[str, GroupWriter], teachers: Mapping[str, str]) -> list[Item]:
    """What the groups lack: one item for targets of a block that lack the same views, of one
    teacher; those of no teacher go with the recipe's own."""
    from deskpro.stages.targets.worker import Item

    missing: dict[tuple[int, tuple[int, ...], str], list[str]] = {}
    for name, writer in writers.items():
        for block, views in writer.missing.items():
            key = block, tuple(views), teachers[name] or OWN_TEACHER
            missing.setdefault(key, []).append(name)
    schema = next(iter(writers.values())).schema
    items = [
        Item(block, range(*schema.rows(block).indices(schema.samples)), views, tuple(names))
        for (block, views, _), names in missing.items()
    ]
    return sorted(items, key=lambda item: (item.names, item.block))


def _write(
    writers: Mapping[str, GroupWriter], item: Item, results: Mapping[str, ItemTarget]
) -> None:
    for name, result in results.items():
        facts = {
            view: {fact: [float(f"{value:.6g}") for value in means] for fact, means in each.items()}
            for view, each in result.facts.items()
        }
        writers[name].write(item.block, result.arrays, facts)


def _classes(train: pd.DataFrame, options: Options, weights: Path) -> list[str]:
    """The class order of the teacher's logits; it must know every identity, where it is needed.

    A published checkpoint doesn't name its identities: theirs is then the order of the training
    set, which must have as many.
    """
    from deskpro.stages.data.index import class_order
    from deskpro.stages.models.weights import read_metadata

    found = class_order(train["pid"])
    if not needs_teacher(options):
        return found
    teacher = read_metadata(weights, "teacher")
    if teacher.classes is None:
        if len(found) != teacher.num_classes:
            raise InputError(
                f"{weights}: trained on {teacher.num_classes} identities, the training set has "
                f"{len(found)}. Set data.root to the set that the teacher was trained on"
            )
        return found
    unknown = sorted(set(found) - set(teacher.classes))
    if unknown:
        raise InputError(
            f"{weights}: doesn't know {len(unknown)} of the {len(found)} training identities: "
            f"{', '.join(unknown[:10])}{', …' if len(unknown) > 10 else ''}. Train a teacher on "
            "this set",
            command="train-teacher --force",
        )
    return teacher.classes
