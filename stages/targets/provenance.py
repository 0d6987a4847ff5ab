"""What each group of targets depends on, and how that differs from what is here now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deskpro.cache.errors import CacheError
from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import sha256
from deskpro.cache.fingerprint import differences, sample_differences
from deskpro.cache.reader import MappedReader
from deskpro.cache.store import TargetStore
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.training_options import OWN_TEACHER
from deskpro.stages.data import views as view_module
from deskpro.stages.data.identities import Identities, training_index
from deskpro.stages.data.index import KINDS, content_hashes
from deskpro.stages.models.backbones import map_size
from deskpro.stages.models.teacher import Teacher
from deskpro.stages.models.timm_teacher import TimmTeacher, load_timm_teacher
from deskpro.stages.models.weights import (
    ModelInfo,
    load_other_teacher,
    load_teacher,
    read_metadata,
)
from deskpro.stages.targets.kinds import (
    TARGETS,
    Settings,
    Target,
    all_targets,
    is_imported,
    stored_targets,
)


def settings_of(
    options: Options, classes: int = 0, embedding_dim: int = 0, heads: Iterable[str] = ()
) -> Settings:
    """What targets depend on, of the options and of a teacher with so many identities, and with
    features of this length of each of these heads."""
    data, cache = options.data, options.cache
    return Settings(
        classes=classes,
        face_size=data.face_size,
        body_size=data.body_size,
        map_size=map_size(options.student.backbone, data.body_size),
        precision=cache.precision,
        logits_dtype=cache.logits_dtype,
        embedding_dtype=cache.embedding_dtype,
        embedding_dim=embedding_dim,
        heads=tuple(heads),
        mirror=cache.mirror,
    )


class TeacherFiles:
    """The weights of a recipe's teachers that are here, and what is known of each.

    Attributes:
        paths: name → its files; several are checkpoints whose outputs are averaged.
    """

    def __init__(self, options: Options, own: Path) -> None:
        """own: the weights of the recipe's own teacher."""
        self.options, self._lengths = options, dict[str, int]()
        others = {name: t.weights for name, t in options.teachers.items() if t.weights is not None}
        every = {OWN_TEACHER: (own, *options.cache.checkpoints)}
        every |= {name: (path,) for name, path in others.items()}
        self.paths = {name: files for name, files in every.items() if all(map(Path.is_file, files))}

    def settings(self, name: str) -> Settings:
        """What the targets of a teacher depend on; of no teacher where the name is empty."""
        classes, length, heads = 0, 0, list[str]()
        if name in self.paths:
            info = self._info(name)
            classes, length = info.num_classes, info.network["feature_dim"]
            heads = (info.heads or {}).get(self._stream(name), [])
        if name in self.options.teachers:  # its heads are one
            length, heads = length * len(heads), ["joined"]
        return settings_of(self.options, classes, length, heads)

    def facts(self, name: str) -> dict[str, Any]:
        """What tells a teacher from others, as JSON: the SHA-256 of its weights, its network, its
        class order if its file has one and its logits are used; empty where its file isn't here."""
        if name not in self.paths:
            return {}
        info, (first, *more) = self._info(name), self.paths[name]
        teacher: dict[str, Any] = {"weights": sha256(first), "network": info.network}
        if more:
            teacher["checkpoints"] = [sha256(path) for path in more]
        if name != OWN_TEACHER:
            return {"teacher": teacher, "heads": ["joined"]}
        class_order = {} if info.classes is None else {"classes": info.classes}
        return {"teacher": teacher, "heads": (info.heads or {}).get("face", [])} | class_order

    def networks(self, name: str) -> list[Teacher] | list[TimmTeacher]:
        """Its networks, loaded; a checkpoint with other identities or sizes is refused."""
        if name != OWN_TEACHER:
            backbone = self.options.teachers[name].backbone
            if backbone is not None:
                return [self._of_timm(name, backbone)]
            return [load_other_teacher(self.paths[name][0], self._stream(name))[0]]
        found = [load_teacher(path) for path in self.paths[name]]
        kinds = [(i.classes, i.num_classes, i.network["feature_dim"]) for _, i in found]
        for path, kind in zip(self.paths[name], kinds, strict=True):
            if kind != kinds[0]:
                raise InputError(
                    f"cache.checkpoints: {path} has other identities or another feature_dim than "
                    f"{self.paths[name][0]}; allowed are checkpoints of one teacher"
                )
        return [network for network, _ in found]

    def _of_timm(self, name: str, backbone: str) -> TimmTeacher:
        network = backbone.partition(":")[2]
        return load_timm_teacher(network, self.paths[name][0], view_module.MEAN, view_module.STD)

    def _stream(self, name: str) -> str:
        """The stream whose images a teacher sees."""
        other = self.options.teachers.get(name)
        return "body" if other is not None and other.input == "imgs" else "face"

    def _info(self, name: str) -> ModelInfo:
        first = self.paths[name][0]
        backbone = None if name == OWN_TEACHER else self.options.teachers[name].backbone
        if backbone is not None:
            if name not in self._lengths:
                self._lengths[name] = self._of_timm(name, backbone).length
            facts = {"backbone": backbone, "feature_dim": self._lengths[name]}
            heads = {self._stream(name): ["pooled"]}
            return ModelInfo("teacher", facts, 1, None, None, None, heads)
        return read_metadata(first, "teacher" if name == OWN_TEACHER else None)


def fingerprint(target: Target, options: Options, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """What the values of a target depend on besides its columns, as JSON.

    teacher: the facts of its teacher, as `TeacherFiles` gives them. Of imported targets, only the
    views that they are about.
    """
    versions = {"version": view_module.VERSION, "plain_view": options.cache.plain_view}
    views = {"views": options.views.model_dump(mode="json") | versions}
    if is_imported(target, options):
        return views
    settings = settings_of(options)
    sizes = {field: getattr(settings, field) for field in target.depends}
    mirrored = {"mirror": True} if target.teacher and options.cache.mirror else {}
    return {
        **teacher,
        **views,
        **{field: [*v] if isinstance(v, tuple) else v for field, v in sizes.items()},
        **mirrored,
    }


@contextmanager
def remedies(store: Path, options: Options) -> Iterator[None]:
    """Errors about a target advise the command that fixes it: a new import, or a rebuild that names
    it where the recipe alone would not compute it."""
    try:
        yield
    except CacheError as error:
        for name, target in all_targets(options).items():
            if error.path is None or not error.path.is_relative_to(store / target.group):
                continue
            if is_imported(target, options):
                raise CacheError(
                    f"{error}. Import them again: deskpro cache import FILE --teacher "
                    f"{target.teacher} --force"
                ) from None
            if name in TARGETS and name not in stored_targets(options):
                error.command = f"teacher-cache --add {name} --force"
        raise


def columns(target: Target) -> list[str]:
    """The root columns that a target's chunks depend on."""
    return ["sample_id", "views", *(f"{kind}_sha256" for kind in target.sees)]


def valid(table: pd.DataFrame, target: Target) -> np.ndarray:
    """Which samples of a table have the images that a target is computed from, bool [N]."""
    found: np.ndarray = table[list(target.sees)].notna().all(axis=1).to_numpy(copy=True)
    return found


def kinds_seen(targets: Iterable[Target]) -> tuple[str, ...]:
    """The kinds of images that targets are computed from."""
    return tuple(dict.fromkeys(kind for target in targets for kind in target.sees))


def option_differences(
    store: Path,
    options: Options,
    weights: Path,
    targets: Iterable[Target],
    *,
    may_grow: bool = False,
) -> list[str]:
    """How the options, and the teachers that are here, differ from those of the stored targets,
    a line each.

    may_grow: more views than are stored, and targets that are not, are no difference.
    """
    teachers = TeacherFiles(options, weights)
    found: list[str] = []
    for target in targets:
        if may_grow and target.group not in TargetStore(store).groups():
            continue
        with remedies(store, options):
            reader = MappedReader(store, target.group)
        wanted = fingerprint(target, options, teachers.facts(target.teacher))
        imported = is_imported(target, options)
        unknown = [*reader.fingerprint] if imported else ["teacher", "heads", "classes"]
        found += differences(reader.fingerprint, wanted, unknown)
        before, now = reader.schema.views, options.cache.views
        other = now < before or (now > before and not may_grow)
        if other and not imported:
            found += differences({"cache.views": before}, {"cache.views": now})
    return [*dict.fromkeys(found)]


def training_images(options: Options, *, unlabelled: bool = True) -> pd.DataFrame:
    """Every image that is here of the identities that a recipe trains on.

    unlabelled: and of its folder of images without labels, if it has one; their pid is None.
    """
    data, others = options.data, options.data.unlabelled if unlabelled else None
    return training_index(data.root, options.train_set, Identities(*data.chosen), others)


def image_differences(
    store: TargetStore,
    options: Options,
    index: pd.DataFrame,
    targets: Iterable[Target],
    files: FileIndex,
    *,
    deep: bool = False,
    used: np.ndarray | None = None,
    exact: Collection[str] = (),
) -> list[str]:
    """How the training images differ from those of the stored targets, by sample, a line each.

    index: every training image that is here (`training_images`). Images that targets are computed
    from and that aren't here can't be compared and don't count. A sample is new where its images
    are here (all of them, if incomplete ones are left out) and its identity, if it has one, has
    another. used: bool [N], the stored samples that count; all unless given. exact: kinds of images
    that must be here as they were, whatever targets are computed from, where the store has them.
    """
    every = store.column("sample_id")
    chosen = np.flatnonzero(np.ones(len(every), bool) if used is None else used)
    sample_ids = every[chosen].tolist()
    here = index[index["sample_id"].isin(sample_ids)].reset_index(drop=True)
    row_of = dict(zip(sample_ids, chosen.tolist(), strict=True))
    rows = [row_of[sample_id] for sample_id in here["sample_id"]]
    needed = [*KINDS] if options.data.incomplete == "leave-out" else ["imgs"]
    complete = index.dropna(subset=needed)
    several = complete.groupby("pid")["pid"].transform("size") > 1
    complete = complete[several | complete["pid"].isna()]
    new = complete.loc[~complete["sample_id"].isin(sample_ids), "sample_id"].tolist()
    wanted = {"sample_id": np.asarray([*here["sample_id"], *new], object)}
    for kind in dict.fromkeys((*kinds_seen(targets), *exact)):
        if f"{kind}_sha256" not in store.columns:  # of a store that no target of it was in
            continue
        hashes = content_hashes(here[kind].tolist(), files, deep=deep)
        stored = store.column(f"{kind}_sha256")[rows]
        unknown = ~stored.any(axis=1) if kind in exact else here[kind].isna().to_numpy()
        hashes[unknown] = stored[unknown]
        blank = np.zeros((len(new), 32), np.uint8)
        wanted[f"{kind}_sha256"] = np.concatenate([hashes, blank])
    before = {name: store.column(name)[chosen] for name in wanted}
    return sample_differences(before, wanted)
