"""What a teacher says of a batch of views: asked live, stored, or read from the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from deskpro.cache.reader import TargetReader, all_bytes, open_reader, read_all
from deskpro.cache.schema import Field
from deskpro.stages.base.device import PRECISION
from deskpro.stages.base.errors import InputError
from deskpro.stages.data.loader import images_of
from deskpro.stages.data.views import attention_target
from deskpro.stages.models.lmbn import HEADS
from deskpro.stages.models.teacher import Teacher

Targets = dict[str, torch.Tensor]
"""`logits` [B, 7, C] and `attention` [B, 1, h, w] in 0..1, on the student's device."""


class LiveTeacher:
    """Asks the teacher itself; the batch holds `hr_face` and `mask` under its views."""

    kinds = ("hr_face", "mask")
    location = "the live teacher"

    def __init__(
        self,
        teacher: Teacher,
        attention_size: tuple[int, int],
        precision: str,
        device: torch.device,
    ) -> None:
        self.teacher = teacher.to(device).to(memory_format=torch.channels_last)
        self.attention_size = attention_size
        self.dtype, self.device = PRECISION[precision], device

    def __call__(self, batch: Mapping[str, Any]) -> Targets:
        """Both float32 (logits of the autocast type, if another), as computed."""
        faces = images_of(batch, "hr_face", self.device)
        lower = self.dtype is not torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=lower):
            logits = self.teacher(faces).logits
        mask = batch["mask"].to(self.device, non_blocking=True)
        return {"logits": logits, "attention": attention_target(mask, self.attention_size)}


def stored_fields(classes: int, attention_size: tuple[int, int], dtype: str) -> dict[str, Field]:
    """The arrays that targets are stored in; dtype: of the logits, float16 or int8."""
    logits = "the teacher's raw logits, before any temperature"
    fields = {}
    if dtype == "int8":
        fields["logits_scale"] = Field(
            (len(HEADS),), "float32", ("head",), "1", "logits = this × the int8 numbers"
        )
        logits += ", divided by logits_scale"
    return {
        "logits": Field((len(HEADS), classes), dtype, ("head", "class"), "1", logits),
        **fields,
        "attention": Field(
            (1, *attention_size),
            "uint8",
            ("channel", "height", "width"),
            "1/255",
            "what the student's spatial attention should be, 0..255 for 0..1",
        ),
        "pixels": Field(
            (), "uint64", (), "1", "hash of the HR face and mask pixels that the targets are about"
        ),
    }


def encode(targets: Targets, dtype: str) -> dict[str, np.ndarray]:
    """Targets as they are stored: logits as `dtype` (int8 with a scale per head), attention uint8.

    Raises InputError where the logits aren't finite, or too large for float16.
    """
    logits = targets["logits"].float()
    if not torch.isfinite(logits).all() or logits.abs().max() > torch.finfo(torch.float16).max:
        raise InputError(
            "the teacher's logits are not finite, or too large for float16: these weights are "
            "broken. Train it anew: make train-teacher FORCE=1"
        )
    attention = {"attention": (targets["attention"] * 255).round().byte().cpu().numpy()}
    if dtype == "float16":
        return {"logits": logits.half().cpu().numpy(), **attention}
    scale = logits.abs().amax(dim=2).clamp(min=torch.finfo(torch.float16).tiny) / 127
    whole = (logits / scale[..., None]).round().to(torch.int8)
    return {"logits": whole.cpu().numpy(), "logits_scale": scale.cpu().numpy(), **attention}


def decode(stored: Mapping[str, torch.Tensor]) -> Targets:
    """What `encode` stored: logits float16, or float32 from int8; attention float32."""
    logits = stored["logits"]
    if "logits_scale" in stored:
        logits = logits.float() * stored["logits_scale"][..., None]
    return {"logits": logits, "attention": stored["attention"] / 255}


def divergence(logits: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(softmax(logits/T) ‖ softmax(other/T)) of [B, H, C] logits, in nats: float64 [H], a sum
    over the batch."""
    ours = (logits.double() / temperature).log_softmax(2)
    theirs = (other.double() / temperature).log_softmax(2)
    return (ours.exp() * (ours - theirs)).sum((0, 2))


class CachedTeacher:
    """Reads what the teacher said when the cache was made.

    Where all targets fit the memory that `budget` (bytes) allows they are held there: on the
    student's device, if it is a GPU and has twice that free, else in RAM. Otherwise rows are copied
    out of the mapped files, into pinned memory for a GPU.
    """

    kinds = ()

    def __init__(
        self,
        reader: TargetReader,
        device: torch.device,
        *,
        budget: float = 0.0,
        plain: bool = False,
    ) -> None:
        """plain: the targets of view 0, whichever view is shown."""
        fields = [name for name in reader.schema.fields if name != "pixels"]
        self.reader, self.device, self.plain = open_reader(reader.path, fields), device, plain
        self.bytes = all_bytes(self.reader)
        self.resident: dict[str, torch.Tensor] | None = None
        self.location = "mapped files"
        if self.bytes <= budget:
            on_gpu = device.type == "cuda" and 2 * self.bytes < torch.cuda.mem_get_info(device)[0]
            self.location = "GPU memory" if on_gpu else "memory"
            self.resident = self._hold(device if on_gpu else torch.device("cpu"))
        self._pinned: list[dict[str, torch.Tensor]] = []
        self._copied: list[torch.cuda.Event] = []
        self._turn = 0

    def __call__(self, batch: Mapping[str, Any]) -> Targets:
        """Logits float16 (float32 if stored as int8), attention float32."""
        rows, views = batch["row"], batch["view"]
        if self.plain:
            views = torch.zeros_like(views)
        if self.resident is not None:
            place = next(iter(self.resident.values())).device
            rows, views = rows.to(place), views.to(place)
            found = {name: resident[rows, views] for name, resident in self.resident.items()}
        elif self.device.type == "cuda":
            return decode(self._through_pinned(rows.tolist(), views.tolist()))
        else:
            read = self.reader.read(rows.tolist(), views.tolist())
            found = {name: torch.from_numpy(values) for name, values in read.items()}
        return decode({name: v.to(self.device, non_blocking=True) for name, v in found.items()})

    def _hold(self, device: torch.device) -> dict[str, torch.Tensor]:
        schema, resident = self.reader.schema, {}
        for name, field in schema.fields.items():
            values = np.empty((schema.samples, schema.views, *field.shape), field.dtype)
            read_all(self.reader, name, values)
            resident[name] = torch.from_numpy(values).to(device)
        return resident

    def _through_pinned(self, rows: list[int], views: list[int]) -> dict[str, torch.Tensor]:
        """Two buffers in turn: one is filled while the other's copy to the GPU is under way."""
        if not self._pinned or len(self._pinned[0]["logits"]) < len(rows):
            torch.cuda.synchronize(self.device)
            self._pinned = [
                {
                    name: torch.empty(
                        (len(rows), *field.shape),
                        dtype=getattr(torch, field.dtype),
                        pin_memory=True,
                    )
                    for name, field in self.reader.schema.fields.items()
                }
                for _ in range(2)
            ]
            self._copied = [torch.cuda.Event() for _ in range(2)]
        self._turn = 1 - self._turn
        self._copied[self._turn].synchronize()
        buffer = {name: full[: len(rows)] for name, full in self._pinned[self._turn].items()}
        self.reader.read(rows, views, {name: part.numpy() for name, part in buffer.items()})
        found = {name: part.to(self.device, non_blocking=True) for name, part in buffer.items()}
        self._copied[self._turn].record(torch.cuda.current_stream(self.device))
        return found
