"""Student beside teacher on some training samples: where it looks, and whom each takes it for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from deskpro.cache.reader import MappedReader
from deskpro.cache.store import TargetStore
from deskpro.stages.base.errors import InputError
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import layout_of
from deskpro.stages.data.loader import ImageDataset, images_of
from deskpro.stages.data.overlay import overlay
from deskpro.stages.data.views import StoredViews
from deskpro.stages.losses.attention import attention_target
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import load_student
from deskpro.stages.targets.kinds import TARGETS, tensors

_SHOWN = 256
"""Body images are shown about so high, pixels, in whole multiples of what the student sees."""

Prediction = list[tuple[str, float]]
"""Identities with their probability, the likeliest first."""


@dataclass(frozen=True)
class ComparedSample:
    """A training sample under view 0 of the cache; images are uint8 [3, H, W].

    Attention images, `difference` (mean absolute difference of the student's attention from its
    target, 0..1) and predictions are None where the student lacks that stream.
    """

    sample_id: str
    pid: str
    body: np.ndarray
    attention: np.ndarray | None
    target: np.ndarray
    difference: float | None
    lr_face: np.ndarray | None
    hr_face: np.ndarray | None
    teacher: Prediction
    student: Prediction | None


def compare(
    cache: Path,
    weights: Path,
    root: Path,
    dataset: str,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    samples: int,
    floor: float,
) -> list[ComparedSample]:
    """Run the student on up to `samples` of the cache, their identities spread over the classes.

    sizes: (height, width) of face and body; floor: of the attention's target. Runs on the CPU. A
    prediction is the mean of the softmax over the face heads, at temperature 1. Raises InputError
    or CacheError where cache, student or images are missing or do not belong together.
    """
    store = TargetStore(cache)
    readers = {name: MappedReader(cache, TARGETS[name].group) for name in ("logits", "parsing")}
    student, info = load_student(weights)
    classes = list(readers["logits"].fingerprint["classes"])
    if info.num_classes != len(classes) or info.classes not in (None, classes):
        raise InputError(f"{weights}: its training identities differ from those of {cache}")
    index, _ = read_index(root, layout_of(root, dataset), ("train",))
    sample_ids = store.column("sample_id").tolist()
    rows = _choose(sample_ids, store.column("label"), index, samples)
    if not rows:
        raise InputError(f"{root}: none of the training images of {cache} is in this folder")

    table = index.set_index("sample_id", drop=False).reindex([sample_ids[row] for row in rows])
    sizes = info.face_size or sizes[0], info.body_size or sizes[1]
    rendered, shown = _render(table, StoredViews(store.column("views")[rows]), *sizes)
    logits, attention = _ask(student, rendered)
    targets = {
        name: TARGETS[name].decode(tensors(reader.read(rows, [0] * len(rows))))
        for name, reader in readers.items()
    }
    wanted, heads = attention_target(targets["parsing"], floor), student.heads.get("face")
    teacher = _predictions(targets["logits"], classes)
    predicted = None if heads is None else _predictions(logits[:, heads], classes)
    target = overlay(shown, wanted).numpy()
    seen = None if attention is None else overlay(shown, attention).numpy()
    apart = None if attention is None else (attention - wanted).abs().mean((1, 2, 3)).tolist()
    return [
        ComparedSample(
            sample_id=str(row.sample_id),
            pid=str(row.pid),
            body=shown[i].numpy(),
            attention=None if seen is None else seen[i],
            target=target[i],
            difference=None if apart is None else apart[i],
            lr_face=None if row.lr_face is None else rendered["lr_face"][i].numpy(),
            hr_face=None if row.hr_face is None else rendered["hr_face"][i].numpy(),
            teacher=teacher[i],
            student=None if predicted is None else predicted[i],
        )
        for i, row in enumerate(table.itertuples())
    ]


def _render(
    table: pd.DataFrame, views: StoredViews, face: tuple[int, int], body: tuple[int, int]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """View 0 of the samples as student and teacher see it, and their bodies as they are shown."""
    enlarged = max(1, round(_SHOWN / body[0]))
    small = ImageDataset(table, {"lr_face": face, "hr_face": face, "imgs": body}, views)
    large = ImageDataset(table, {"imgs": (body[0] * enlarged, body[1] * enlarged)}, views)
    first = [(row, 0) for row in range(len(table))]
    return small.__getitems__(first), large.__getitems__(first)["imgs"]


def _choose(
    sample_ids: list[str], labels: np.ndarray, index: pd.DataFrame, samples: int
) -> list[int]:
    """Rows of the cache whose images are here, of as many identities as there are samples."""
    here = set(index.dropna(subset=["imgs", "lr_face"])["sample_id"])
    first: dict[int, int] = {}
    for row, (sample_id, label) in enumerate(zip(sample_ids, labels.tolist(), strict=True)):
        if sample_id in here:
            first.setdefault(label, row)
    order = sorted(first)
    places = np.linspace(0, len(order) - 1, min(samples, len(order))).round().astype(int)
    return [first[order[place]] for place in places]


def _ask(
    student: Student, rendered: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits [B, H, C] and attention [B, 1, h, w], if it has one, of plain evaluation."""
    device = torch.device("cpu")
    shown = {"face": "lr_face", "body": "imgs"}
    seen = {stream: images_of(rendered, shown[stream], device) for stream in student.heads}
    with torch.inference_mode():
        output = student(seen.get("face"), seen.get("body"))
    attention = output.attention if "body" in student.heads else None
    return output.logits.float(), None if attention is None else attention.float()


def _predictions(logits: torch.Tensor, classes: list[str]) -> list[Prediction]:
    """The three likeliest identities of [B, H, C] logits."""
    probabilities, places = logits.float().softmax(2).mean(1).topk(min(3, len(classes)), dim=1)
    return [
        [(classes[place], share) for place, share in zip(at, shares, strict=True)]
        for at, shares in zip(places.tolist(), probabilities.tolist(), strict=True)
    ]
