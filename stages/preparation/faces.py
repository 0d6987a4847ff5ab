"""Step 3: where the face is, and the LR face cut from the body image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from deskpro.cache.files import sha256
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.prepare_options import FaceBox
from deskpro.stages.preparation.samples import Places, Sample
from deskpro.stages.preparation.schemes import Scheme, region
from deskpro.stages.preparation.step import (
    Outcome,
    Step,
    Unusable,
    optional,
    outcomes,
    png,
    read_image,
    read_labels,
)

FOUND, NONE, SMALL, BACK, OUTSIDE = (
    "face found",
    "no face",
    "too small",
    "back of the head",
    "outside",
)
"""Decisions: a face was found; nothing was; only something too small, or without a visible face, or
outside the head region. Only the first gives files."""

SEVERAL, AT_EDGE, UNSURE = "several", "at the edge", "unsure"
"""Doubts about a face that was found."""

_OTHER_HEAD = 0.25
"""A part of the head region counts as another person's from this share of the largest part on."""
_CLEAR = 0.1
"""A detector that is less than this above its threshold is unsure."""


class Box(NamedTuple):
    """A square in whole pixels of the body image."""

    left: int
    top: int
    side: int


class Found(NamedTuple):
    """What a method made of an image."""

    decision: str
    box: Box | None = None
    seen: int = 0
    """Faces, or heads."""
    score: float | None = None
    doubts: tuple[str, ...] = ()


def square(
    left: float, top: float, right: float, bottom: float, margin: float, size: tuple[int, int]
) -> tuple[Box, bool]:
    """The square about a box, `margin` of its longer side added on each side, and whether it had to
    be moved to lie in an image of `size` = (width, height). It is never larger than that."""
    side = min(round(max(right - left, bottom - top) * (1 + 2 * margin)), *size)
    across, down = (left + right - side) / 2, (top + bottom - side) / 2
    x, y = (min(max(round(a), 0), n - side) for a, n in zip((across, down), size, strict=True))
    return Box(x, y, side), abs(x - across) > 1 or abs(y - down) > 1


class _Faces(ABC):
    """What both methods share: the crop, and how a decision is listed."""

    name = "face"
    places: Places
    options: FaceBox

    def needs(self, sample: Sample) -> Sequence[Path]:
        return [self.places.body(sample.id), self.places.labels(sample.id)]

    def makes(self, sample: Sample) -> Sequence[Path]:
        return [self.places.lr_face(sample.id)]

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return outcomes(self._cut, samples)

    @abstractmethod
    def find(self, body: Image.Image, labels: np.ndarray | None) -> Found:
        """The face in a body image, RGB; labels: its label map, uint8 [H, W], where there is."""

    def _cut(self, sample: Sample) -> Outcome:
        body = read_image(self.places.body(sample.id))
        path = self.places.labels(sample.id)
        labels = read_labels(path) if path.is_file() else None
        if labels is not None and labels.shape != (body.height, body.width):
            raise Unusable(f"{path}: label map of another size than its body image")
        found = self.find(body, labels)
        facts = {
            "decision": found.decision,
            "faces": found.seen,
            "score": None if found.score is None else round(found.score, 4),
            "doubts": "; ".join(found.doubts),
            **dict(zip(("left", "top", "side"), found.box or (None,) * 3, strict=True)),
        }
        if found.box is None:
            return Outcome({}, facts)
        left, top, side = found.box
        crop = body.crop((left, top, left + side, top + side))
        return Outcome({self.places.lr_face(sample.id): png(crop)}, facts)

    def _boxed(
        self, edges: tuple[float, float, float, float], size: tuple[int, int], **more: Any
    ) -> Found:
        box, moved = square(*edges, self.options.margin, size)
        if box.side < self.options.min_side:
            return Found(SMALL, seen=more["seen"], score=more.get("score"))
        doubts = (*more.pop("doubts", ()), *([AT_EDGE] if moved else []))
        return Found(FOUND, box, doubts=doubts, **more)


class Head(_Faces):
    """The square about the largest connected part of the head region.

    Where the scheme has a class for the face, too little of it in the head means that it is seen
    from behind. A second large part is another person's head: counted, and listed as doubtful.
    """

    def __init__(self, options: FaceBox, places: Places, scheme: Scheme) -> None:
        self.ndimage: Any = optional("scipy.ndimage", "prepare.face.method=head")
        self.options, self.places, self.scheme = options, places, scheme

    def provenance(self) -> Mapping[str, object]:
        return {
            "method": "head",
            "classes": self.scheme.classes,
            **{name: getattr(self.options, name) for name in ("margin", "min_side", "visible")},
            "version": 1,
        }

    def find(self, body: Image.Image, labels: np.ndarray | None) -> Found:
        if labels is None:
            raise Unusable("no label map; prepare.face.method=head needs the step parsing")
        head = region(labels, self.scheme.ids("head"))
        parts, count = self.ndimage.label(head, np.ones((3, 3)))
        if count == 0:
            return Found(NONE)
        areas = np.bincount(parts.ravel())[1:]
        heads = int((areas >= _OTHER_HEAD * areas.max()).sum())
        largest = int(areas.argmax()) + 1  # of equal ones the uppermost, leftmost
        chosen = parts == largest
        if self.scheme.face is not None:
            visible = float((labels[chosen] == self.scheme.face).mean())
            if visible < self.options.visible:
                return Found(BACK, seen=heads)
        rows, columns = np.flatnonzero(chosen.any(1)), np.flatnonzero(chosen.any(0))
        edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        doubts = (SEVERAL,) if heads > 1 else ()
        return self._boxed(edges, body.size, seen=heads, doubts=doubts)


class YuNet(_Faces):
    """OpenCV's YuNet (Wu et al., MIR 2023), on the body image enlarged to `height` if lower.

    Of several faces the largest is taken, and the image is listed as doubtful. A face whose
    centre lies outside the head region, its margin added, is dropped where a label map is there.
    """

    def __init__(self, options: FaceBox, places: Places, scheme: Scheme) -> None:
        if options.model is None:
            raise InputError(
                "prepare.face.model: needed by the method yunet. Set it to YuNet's ONNX file, from "
                "OpenCV's model zoo"
            )
        if not options.model.is_file():
            raise InputError(f"{options.model}: no such file. Set prepare.face.model")
        self.cv2: Any = optional("cv2", "prepare.face.method=yunet")
        self.options, self.places, self.scheme = options, places, scheme
        self.digest = sha256(options.model)
        self._detector((320, 320))  # an unreadable file is told now

    def provenance(self) -> Mapping[str, object]:
        names = ("margin", "min_side", "score", "height", "inside_head")
        return {
            "method": "yunet",
            "model": self.digest,
            "classes": self.scheme.classes,
            **{name: getattr(self.options, name) for name in names},
            "version": 1,
        }

    def _detector(self, size: tuple[int, int]) -> Any:
        try:
            # Not shared by threads: one for each image costs a few milliseconds.
            return self.cv2.FaceDetectorYN.create(
                str(self.options.model), "", size, self.options.score
            )
        except self.cv2.error as error:
            why = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.options.model}: OpenCV can't load it as YuNet: {why}. Set "
                "prepare.face.model"
            ) from None

    def find(self, body: Image.Image, labels: np.ndarray | None) -> Found:
        scale = max(1.0, self.options.height / body.height)
        size = round(body.width * scale), round(body.height * scale)
        larger = body if scale == 1 else body.resize(size, Image.Resampling.BICUBIC)
        bgr = np.ascontiguousarray(np.asarray(larger)[..., ::-1])
        _, rows = self._detector(size).detect(bgr)
        faces = np.zeros((0, 15), np.float32) if rows is None else rows
        boxes = faces[:, :4] / (size[0] / body.width)
        seen = len(faces)
        if seen == 0:
            return Found(NONE)
        if self.options.inside_head and labels is not None:
            inside = [self._in_head(box, labels) for box in boxes]
            faces, boxes = faces[inside], boxes[inside]
            if not len(faces):
                return Found(OUTSIDE, seen=seen)
        best = int(np.argmax(boxes[:, 2] * boxes[:, 3]))
        left, top, width, height = map(float, boxes[best])
        score = float(faces[best, 14])
        unsure = score < self.options.score + _CLEAR
        doubts = (*([SEVERAL] if seen > 1 else []), *([UNSURE] if unsure else []))
        edges = (left, top, left + width, top + height)
        return self._boxed(edges, body.size, seen=seen, score=score, doubts=doubts)

    def _in_head(self, box: np.ndarray, labels: np.ndarray) -> bool:
        head = region(labels, self.scheme.ids("head"))
        if not head.any():
            return False
        rows, columns = np.flatnonzero(head.any(1)), np.flatnonzero(head.any(0))
        room = self.options.margin * max(np.ptp(rows) + 1, np.ptp(columns) + 1)
        x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
        return bool(
            columns[0] - room <= x <= columns[-1] + room and rows[0] - room <= y <= rows[-1] + room
        )


BOXES: dict[str, Callable[[FaceBox, Places, Scheme], Step]] = {"head": Head, "yunet": YuNet}
