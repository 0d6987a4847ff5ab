"""Step 3: the face box, and the LR face cut from the body image."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from deskpro.cache.files import sha256
from deskpro.stages.base.extras import optional
from deskpro.stages.data.faces import Box, Edges, FaceDetector, largest, square
from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.step import (
    Need,
    Outcome,
    Step,
    Unusable,
    encode,
    read_image,
    read_labels,
)

FOUND = "face found"
"""The one decision that gives an LR face."""
NONE, SMALL, BACK, OUTSIDE = "no face", "too small", "back of the head", "outside"
"""The other decisions: OUTSIDE is a detection outside the head region only."""
SEVERAL, AT_EDGE, UNSURE = "several", "at the edge", "unsure"
"""Doubts about a face that was found."""

_OTHER_HEAD = 0.25
"""A part of the head region counts as another person's from this share of the largest part on."""
_CLEAR = 0.1
"""A detection less than this above the threshold is unsure."""


class Finding(NamedTuple):
    """The result of a method for an image; seen: the number of faces, or heads."""

    decision: str
    box: Box | None = None
    seen: int = 0
    score: float | None = None
    doubts: tuple[str, ...] = ()


class _Faces(Step):
    """What the methods share: the crop, and how a decision is listed."""

    name, reads, writes = "face", ("imgs", "labels"), "lr_face"

    def find(self, body: Image.Image, labels: np.ndarray | None) -> Finding:
        """The face in an RGB body image; labels: its label map, uint8 [H, W], if there is one."""
        found, edges = self.detect(body, labels)
        if edges is None:
            return found
        box, moved = square(*edges, self.settings.face.margin, body.size)
        if box.side < self.settings.face.min_side:
            return Finding(SMALL, None, found.seen, found.score)
        return found._replace(box=box, doubts=found.doubts + (AT_EDGE,) * moved)

    @abstractmethod
    def detect(self, body: Image.Image, labels: np.ndarray | None) -> tuple[Finding, Edges | None]:
        """As `find`, and the left, top, right and bottom of a face in place of its box."""

    def make(self, sample: Sample) -> Outcome:
        body = read_image(self.path("imgs", sample))
        path = self.path("labels", sample)
        labels = read_labels(path) if path.is_file() else None
        if labels is not None and labels.shape != (body.height, body.width):
            raise Unusable(f"{path}: label map and body image differ in size")
        found = self.find(body, labels)
        facts = {
            "decision": found.decision,
            "faces": found.seen,
            "score": None if found.score is None else round(found.score, 4),
            "doubts": "; ".join(found.doubts),
            **dict(zip(Box._fields, found.box or (None,) * 3, strict=True)),
        }
        if found.box is None:
            return Outcome(facts=facts)
        return Outcome(encode(found.box.cut(body)), facts)


class Head(_Faces):
    """The square about the largest connected part of the head region.

    Where the scheme has a class for the face, too little of it in the head means a back view. A
    second large part is another person's head: counted, and listed as doubtful.
    """

    needs = ("scipy",)
    params = ("margin", "min_side", "visible")

    def load(self) -> None:
        self.ndimage = optional("scipy.ndimage", "prepare.face.method=head")

    def detect(self, body: Image.Image, labels: np.ndarray | None) -> tuple[Finding, Edges | None]:
        if labels is None:
            raise Unusable(
                "no label map. prepare.face.method=head needs one; add parsing to prepare.steps"
            )
        parts, count = self.ndimage.label(self.scheme.region(labels, "head"), np.ones((3, 3)))
        if count == 0:
            return Finding(NONE), None
        areas = np.bincount(parts.ravel())[1:]
        heads = int((areas >= _OTHER_HEAD * areas.max()).sum())
        main = parts == areas.argmax() + 1  # of equal ones the uppermost, leftmost
        face, least = self.scheme.face, self.settings.face.visible
        if face is not None and (labels[main] == face).mean() < least:
            return Finding(BACK, seen=heads), None
        doubts = (SEVERAL,) if heads > 1 else ()
        return Finding(FOUND, seen=heads, doubts=doubts), _extent(main)


class YuNet(_Faces):
    """OpenCV's YuNet (Wu et al., MIR 2023), on the body image enlarged to `height` if lower.

    Of several faces the largest is used, and the image is listed as doubtful. With a label map, a
    face whose centre lies outside the head region and its margin is dropped.
    """

    needs = ("cv2",)
    params = ("margin", "min_side", "score", "height", "inside_head")

    files = (
        Need(
            "face.model",
            "YuNet's ONNX file: face_detection_yunet_2023mar.onnx, 0.2 MB, MIT, from "
            "models/face_detection_yunet of opencv/opencv_zoo on GitHub; or set "
            "prepare.face.method=head, which needs none",
        ),
    )

    def load(self) -> None:
        face = self.settings.face
        model = Path(str(face.model))
        self.detector = FaceDetector(model, face.score, face.height, "prepare.face.model")
        self.weights = {"model": sha256(model)}

    def detect(self, body: Image.Image, labels: np.ndarray | None) -> tuple[Finding, Edges | None]:
        settings = self.settings.face
        boxes, scores = self.detector(body)
        seen = len(boxes)
        if seen == 0:
            return Finding(NONE), None
        if settings.inside_head and labels is not None:
            inside = self._in_head(boxes, labels)
            boxes, scores = boxes[inside], scores[inside]
            if not len(boxes):
                return Finding(OUTSIDE, seen=seen), None
        best, edges = largest(boxes)
        score = float(scores[best])
        unsure = score < settings.score + _CLEAR
        doubts = (*([SEVERAL] if seen > 1 else []), *([UNSURE] if unsure else []))
        return Finding(FOUND, None, seen, score, doubts), edges

    def _in_head(self, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which boxes, [N, (left, top, width, height)], lie about the head region: bool [N]."""
        head = self.scheme.region(labels, "head")
        if not head.any():
            return np.zeros(len(boxes), bool)
        left, top, right, bottom = _extent(head)
        room = self.settings.face.margin * max(right - left, bottom - top)
        x, y = (boxes[:, :2] + boxes[:, 2:] / 2).T
        across = (left - room <= x) & (x <= right - 1 + room)
        return across & (top - room <= y) & (y <= bottom - 1 + room)


def _extent(region: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of where bool [H, W] is true; right and bottom exclusive."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
