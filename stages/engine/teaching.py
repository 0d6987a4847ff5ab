"""What a teacher says of a batch of views: asked live, or read from the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cache.reader import TargetReader
from stages.data.loader import photographs
from stages.data.views import attention_target
from stages.engine.loop import PRECISION
from stages.models.teacher import Teacher

Targets = dict[str, torch.Tensor]
"""`logits` [B, 7, C] and `attention` [B, 1, h, w] in 0..1, on the student's device."""


class LiveTeacher:
    """Asks the teacher itself; the batch holds `hr_face` and `mask` under its views."""

    kinds = ("hr_face", "mask")

    def __init__(
        self,
        teacher: Teacher,
        attention_size: tuple[int, int],
        precision: str,
        device: torch.device,
    ) -> None:
        self.teacher, self.attention_size = teacher.to(device), attention_size
        self.dtype, self.device = PRECISION[precision], device

    def __call__(self, batch: Mapping[str, Any]) -> Targets:
        """Both float32 (logits of the autocast type, if another), as computed."""
        faces = photographs(batch, "hr_face", self.device)
        lower = self.dtype is not torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=lower):
            logits = self.teacher(faces).logits
        mask = batch["mask"].to(self.device, non_blocking=True)
        return {"logits": logits, "attention": attention_target(mask, self.attention_size)}


class CachedTeacher:
    """Reads what the teacher said when the cache was made."""

    kinds = ()

    def __init__(self, reader: TargetReader, device: torch.device, *, plain: bool = False) -> None:
        """plain: the targets of view 0, whichever view is shown."""
        self.reader, self.device, self.plain = reader, device, plain

    def __call__(self, batch: Mapping[str, Any]) -> Targets:
        """Logits float16, attention float32, as stored."""
        rows = batch["row"].tolist()
        views = [0] * len(rows) if self.plain else batch["view"].tolist()
        read = {
            name: torch.from_numpy(values).to(self.device, non_blocking=True)
            for name, values in self.reader.read(rows, views).items()
        }
        return {"logits": read["logits"], "attention": read["attention"] / 255}
