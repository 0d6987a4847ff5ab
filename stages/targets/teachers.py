"""The teacher of a batch of views: the network itself, or the targets it left in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from deskpro.cache.reader import MappedReader, all_bytes, read_all
from deskpro.cache.store import TargetStore
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.data.loader import images_of
from deskpro.stages.models.lmbn import Output
from deskpro.stages.targets.kinds import Settings, Target, all_targets
from deskpro.stages.targets.provenance import TeacherFiles

Targets = dict[str, torch.Tensor]
"""By name, as in TARGETS: values of the batch on the student's device."""


class Source(NamedTuple):
    """Where targets come from: a network's weights, or a store that was made with them."""

    options: Options
    weights: Path
    store: Path


class Teacher(Protocol):
    """Gives the targets that it was opened for."""

    sees: tuple[str, ...]
    """The kinds of images that a batch must hold for it."""
    location: str
    """Where the targets come from, for the summary."""
    valid: Mapping[str, torch.Tensor]
    """Target → bool [N], on the CPU: the samples that have it; all if absent."""

    def __call__(self, batch: Mapping[str, Any]) -> Targets: ...


class LiveTeacher:
    """Computes targets of one teacher, or of none, by the network itself, as the store's were."""

    def __init__(
        self,
        targets: Mapping[str, Target],
        settings: Settings,
        networks: Sequence[nn.Module],
        device: torch.device,
    ) -> None:
        """networks: of the teacher, not needed for targets that are of none; the outputs of several
        are averaged."""
        self.targets = dict(targets)
        self.sees = tuple(dict.fromkeys(k for target in targets.values() for k in target.sees))
        self.settings, self.device = settings, device
        self.image = next((t.sees[0] for t in targets.values() if t.teacher), "")
        """The kind of image that the networks see."""
        self.networks = [
            network.to(device).to(memory_format=torch.channels_last)
            for network in networks
            if self.image
        ]

    def __call__(self, batch: Mapping[str, Any]) -> Targets:
        """As computed: float32, logits of the autocast type if another."""
        moved = {kind: batch[kind].to(self.device, non_blocking=True) for kind in self.sees}
        output = None
        if self.networks:
            dtype = _dtype(self.settings.precision)
            images = images_of({**batch, **moved}, self.image, self.device)
            seen = [images, images.flip(3)] if self.settings.mirror else [images]
            with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
                output = _mean([net(each) for net in self.networks for each in seen])
        return {n: t.compute(moved, output, self.settings) for n, t in self.targets.items()}


def _mean(outputs: Sequence[Output]) -> Output:
    """The mean of logits and features."""
    if len(outputs) == 1:
        return outputs[0]
    logits = torch.stack([output.logits.float() for output in outputs]).mean(0)
    features = torch.stack([output.features.float() for output in outputs]).mean(0)
    return outputs[0]._replace(logits=logits, features=features)


class LiveTeachers:
    """Computes targets of any teachers, each as `LiveTeacher` does."""

    location = "the live teacher"

    def __init__(self, source: Source, names: Sequence[str], device: torch.device) -> None:
        files = TeacherFiles(source.options, source.weights)
        every = all_targets(source.options)
        targets = {name: every[name] for name in names}
        for name, target in targets.items():
            if target.teacher and target.teacher not in files.paths:
                raise InputError(
                    f"train_student.live_teacher: the weights of the teacher of {name} aren't "
                    "here; a live teacher needs them"
                )
        self.teachers = [
            LiveTeacher(
                {name: target for name, target in targets.items() if target.teacher == teacher},
                files.settings(teacher),
                files.networks(teacher) if teacher else (),
                device,
            )
            for teacher in dict.fromkeys(target.teacher for target in targets.values())
        ]
        self.sees = tuple(dict.fromkeys(kind for each in self.teachers for kind in each.sees))
        self.valid: Mapping[str, torch.Tensor] = _valid(
            {name: _open(source.store, target.group) for name, target in targets.items()}
        )

    def __call__(self, batch: Mapping[str, Any]) -> Targets:
        """As computed: float32, or of the autocast type; parsing uint8, as stored."""
        return {name: value for each in self.teachers for name, value in each(batch).items()}


class CachedTeacher:
    """Reads the targets that were stored.

    Targets that fit into `budget` bytes are resident in memory: the student's GPU's, if that has
    twice as much free, else RAM. Others are copied out of the mapped files, for a GPU by way of
    pinned memory.
    """

    sees: tuple[str, ...] = ()

    def __init__(
        self,
        store: Path,
        targets: Mapping[str, Target],
        device: torch.device,
        *,
        budget: float = 0.0,
        plain: bool = False,
    ) -> None:
        """plain: the targets of view 0, whichever view is seen."""
        self.targets = dict(targets)
        self.readers = {name: _open(store, target.group) for name, target in targets.items()}
        self.device, self.plain = device, plain
        self.valid: Mapping[str, torch.Tensor] = _valid(self.readers)
        self.bytes = sum(all_bytes(reader) for reader in self.readers.values())
        self.resident: dict[str, dict[str, torch.Tensor]] | None = None
        self.location = "mapped files"
        if self.bytes <= budget:
            on_gpu = device.type == "cuda" and 2 * self.bytes < torch.cuda.mem_get_info(device)[0]
            self.location = "GPU memory" if on_gpu else "memory"
            place = device if on_gpu else torch.device("cpu")
            self.resident = {name: _load(reader, place) for name, reader in self.readers.items()}

    @classmethod
    def open(cls, source: Source, names: Sequence[str], device: torch.device) -> CachedTeacher:
        options = source.options
        budget, plain = options.cache.memory * 1e9, options.train_student.fresh_views
        every = all_targets(options)
        targets = {name: every[name] for name in names}
        return cls(source.store, targets, device, budget=budget, plain=plain)

    def __call__(self, batch: Mapping[str, Any]) -> Targets:
        """Logits and embeddings float16 (float32 if stored as int8), parsing uint8."""
        rows, views = batch["row"], batch["view"]
        if self.plain:
            views = torch.zeros_like(views)
        return {
            name: target.decode(self._rows(name, rows, self._stored(name, views)))
            for name, target in self.targets.items()
        }

    def _stored(self, name: str, views: torch.Tensor) -> torch.Tensor:
        """The views, but view 0 for those that a target isn't stored of."""
        return torch.where(views < self.readers[name].schema.views, views, 0)

    def _rows(self, name: str, rows: torch.Tensor, views: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.resident is not None:
            fields = self.resident[name]
            place = next(iter(fields.values())).device
            rows, views = rows.to(place), views.to(place)
            found = {field: values[rows, views] for field, values in fields.items()}
        else:
            # torch keeps pinned memory for a later call, until the copy to the GPU is done.
            pinned = self.device.type == "cuda"
            found = {
                field: torch.empty((len(rows), *f.shape), dtype=_dtype(f.dtype), pin_memory=pinned)
                for field, f in self.readers[name].schema.fields.items()
            }
            out = {field: values.numpy() for field, values in found.items()}
            self.readers[name].read(rows.tolist(), views.tolist(), out)
        return {field: v.to(self.device, non_blocking=True) for field, v in found.items()}


class ClassTeacher:
    """The cached teacher, but for logits the mean over all views of the sample's identity.

    A control: a student that learns as much from it learns nothing else from the logits.
    """

    def __init__(self, cached: CachedTeacher, store: Path) -> None:
        self.cached = cached
        self.sees, self.location, self.valid = cached.sees, cached.location, cached.valid
        self.labels = torch.from_numpy(TargetStore(store).column("label").astype(np.int64))
        self.means = self._means() if "logits" in cached.readers else None

    @classmethod
    def open(cls, source: Source, names: Sequence[str], device: torch.device) -> ClassTeacher:
        return cls(CachedTeacher.open(source, names, device), source.store)

    def __call__(self, batch: Mapping[str, Any]) -> Targets:
        """As cached; logits float32."""
        found = self.cached(batch)
        if self.means is not None:
            found["logits"] = self.means[self.labels[batch["row"]].to(self.cached.device)]
        return found

    def _means(self) -> torch.Tensor:
        """The mean logits of each class, float32 [classes, H, C], of the samples that have any."""
        valid = self.valid.get("logits", torch.ones(len(self.labels), dtype=torch.bool))
        valid = valid & (self.labels >= 0)
        views = self.cached.readers["logits"].schema.views
        sums: dict[int, torch.Tensor] = {}
        for row in valid.nonzero().flatten():
            batch = {"row": row.repeat(views), "view": torch.arange(views)}
            logits, label = self.cached(batch)["logits"].double(), int(self.labels[row])
            sums[label] = sums.get(label, 0) + logits.sum(0)
        counts = torch.bincount(self.labels[valid], minlength=int(self.labels.max()) + 1) * views
        like = next(iter(sums.values()))
        nothing = torch.zeros_like(like)  # of somebody without a face; masked wherever it is used
        table = torch.stack([sums.get(label, nothing) for label in range(len(counts))])
        return (table / counts.clamp(min=1).to(table.device)[:, None, None]).float()


def _open(store: Path, group: str) -> MappedReader:
    """A target's group, without the hashes of its pixels."""
    fields = [field for field in MappedReader(store, group).schema.fields if field != "pixels"]
    return MappedReader(store, group, fields)


def _valid(readers: Mapping[str, MappedReader]) -> dict[str, torch.Tensor]:
    """Of targets that some samples lack: who has it, bool [N]."""
    return {
        name: torch.from_numpy(reader.valid)
        for name, reader in readers.items()
        if not reader.valid.all()
    }


def _load(reader: MappedReader, device: torch.device) -> dict[str, torch.Tensor]:
    """A whole group, by field [samples, views, …]."""
    schema, resident = reader.schema, {}
    for name, field in schema.fields.items():
        values = np.empty((schema.samples, schema.views, *field.shape), field.dtype)
        read_all(reader, name, values)
        resident[name] = torch.from_numpy(values).to(device)
    return resident


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


TEACHERS: dict[str, Callable[[Source, Sequence[str], torch.device], Teacher]] = {
    "live": LiveTeachers,
    "cached": CachedTeacher.open,
    "class means": ClassTeacher.open,
}
"""To add a teacher: its class, and a row."""
