"""The teacher of a batch of views: the network itself, or the targets it left in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from deskpro.stages.targets.provenance import TeacherFiles, kinds_seen


def open_teacher(
    options: Options, weights: Path, store: Path, names: Sequence[str], device: torch.device
) -> LiveTeachers | CachedTeacher | ClassTeacher:
    """What gives the targets of these names to a student of these options.

    weights: of the recipe's own teacher. Each is the `Targets` of `training.recipe`.
    """
    every = all_targets(options)
    targets = {name: every[name] for name in names}
    if options.train_student.live_teacher:
        return LiveTeachers(TeacherFiles(options, weights), store, targets, device)
    budget, plain = options.cache.memory * 1e9, options.train_student.fresh_views
    cached = CachedTeacher(store, targets, device, budget=budget, plain=plain)
    return ClassTeacher(cached, store) if options.kd_loss.class_means else cached


class LiveTeacher:
    """Computes targets of one teacher, or of none, by the network itself, as the store's were."""

    def __init__(
        self,
        targets: Mapping[str, Target],
        settings: Settings,
        networks: Sequence[nn.Module],
        device: torch.device,
    ) -> None:
        """networks: of the teacher, none for targets of none; outputs of several are averaged."""
        self.targets = dict(targets)
        self.sees = kinds_seen(targets.values())
        self.settings, self.device = settings, device
        self.image = next((t.sees[0] for t in targets.values() if t.teacher), "")
        """The kind of image that the networks see."""
        self.networks = [
            network.to(device).to(memory_format=torch.channels_last) for network in networks
        ]

    @classmethod
    def load(
        cls, files: TeacherFiles, targets: Mapping[str, Target], device: torch.device
    ) -> LiveTeacher:
        """The teacher of these targets, with its networks."""
        name = next((target.teacher for target in targets.values() if target.teacher), "")
        networks = files.networks(name) if name else ()
        return cls(targets, files.settings(name), networks, device)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """As computed: float32, logits of the autocast type if another."""
        moved = {kind: batch[kind].to(self.device, non_blocking=True) for kind in self.sees}
        output = None
        if self.networks:
            dtype = _dtype(self.settings.precision)
            images = images_of({**batch, **moved}, self.image, self.device)
            seen = [images, images.flip(3)] if self.settings.mirror else [images]
            with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
                output = mean_output([net(each) for net in self.networks for each in seen])
        return {n: t.compute(moved, output, self.settings) for n, t in self.targets.items()}


def mean_output(outputs: Sequence[Output]) -> Output:
    """The mean of what the heads give: logits, and features after and before the BNNeck."""
    if len(outputs) == 1:
        return outputs[0]
    found = [torch.stack(t).float().mean(0) for t in zip(*(o[:3] for o in outputs), strict=True)]
    return outputs[0]._replace(logits=found[0], features=found[1], before_neck=found[2])


class LiveTeachers:
    """Computes targets of any teachers, each as `LiveTeacher` does."""

    location = "the live teacher"

    def __init__(
        self,
        files: TeacherFiles,
        store: Path,
        targets: Mapping[str, Target],
        device: torch.device,
    ) -> None:
        """store: tells which samples have the targets."""
        for name, target in targets.items():
            if target.teacher and target.teacher not in files.paths:
                raise InputError(
                    f"train_student.live_teacher: the weights of the teacher of {name} aren't "
                    "here; a live teacher needs them"
                )
        self.teachers = [
            LiveTeacher.load(
                files,
                {name: target for name, target in targets.items() if target.teacher == teacher},
                device,
            )
            for teacher in dict.fromkeys(target.teacher for target in targets.values())
        ]
        self.sees = kinds_seen(targets.values())
        self.valid: Mapping[str, torch.Tensor] = _valid(_open(store, targets))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
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
        self.readers = _open(store, targets)
        self.device, self.plain = device, plain
        self.valid: Mapping[str, torch.Tensor] = _valid(self.readers)
        self.bytes = sum(all_bytes(reader) for reader in self.readers.values())
        self.resident: dict[str, dict[str, torch.Tensor]] | None = None
        """Whole groups, by target and field [samples, views, …]."""
        self.location = "mapped files"
        if self.bytes <= budget:
            on_gpu = device.type == "cuda" and 2 * self.bytes < torch.cuda.mem_get_info(device)[0]
            self.location = "GPU memory" if on_gpu else "memory"
            place = device if on_gpu else torch.device("cpu")
            self.resident = {
                name: {
                    field: torch.from_numpy(read_all(reader, field)).to(place)
                    for field in reader.schema.fields
                }
                for name, reader in self.readers.items()
            }

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Logits and embeddings float16 (float32 if stored as int8), parsing uint8."""
        rows, views = batch["row"], batch["view"]
        if self.plain:
            views = torch.zeros_like(views)
        return {
            name: target.decode(self._rows(name, rows, views))
            for name, target in self.targets.items()
        }

    def _rows(self, name: str, rows: torch.Tensor, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """A target's arrays of samples and views: of view 0 where a view isn't stored."""
        views = torch.where(views < self.readers[name].schema.views, views, 0)
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

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
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


def _open(store: Path, targets: Mapping[str, Target]) -> dict[str, MappedReader]:
    """The group of each target, without the hashes of its pixels."""
    found = {}
    for name, target in targets.items():
        fields = [f for f in MappedReader(store, target.group).schema.fields if f != "pixels"]
        found[name] = MappedReader(store, target.group, fields)
    return found


def _valid(readers: Mapping[str, MappedReader]) -> dict[str, torch.Tensor]:
    """Of targets that some samples lack: who has it, bool [N]."""
    return {
        name: torch.from_numpy(reader.valid)
        for name, reader in readers.items()
        if not reader.valid.all()
    }


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found
