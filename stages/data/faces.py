"""Where the face of a body image is: a detector, and the square that is cut out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from deskpro.stages.base.extras import loading, optional

Edges = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the body image."""


class Box(NamedTuple):
    """A square in whole pixels of the body image."""

    left: int
    top: int
    side: int

    def cut(self, body: Image.Image) -> Image.Image:
        """What it holds of the body image."""
        return body.crop((self.left, self.top, self.left + self.side, self.top + self.side))


def square(
    left: float, top: float, right: float, bottom: float, margin: float, size: tuple[int, int]
) -> tuple[Box, bool]:
    """The square about a box, `margin` of its longer side added on each side, and whether it had to
    be moved to lie in an image of `size` = (width, height). It is never larger than that."""
    side = min(round(max(right - left, bottom - top) * (1 + 2 * margin)), *size)
    across, down = (left + right - side) / 2, (top + bottom - side) / 2
    x, y = (min(max(round(a), 0), n - side) for a, n in zip((across, down), size, strict=True))
    return Box(x, y, side), abs(x - across) > 1 or abs(y - down) > 1


class FaceDetector:
    """OpenCV's YuNet (Wu et al., MIR 2023)."""

    def __init__(self, model: Path, score: float, height: int, option: str) -> None:
        """score: the least confidence; height: lower body images are first enlarged to it; option:
        what names the file, for errors. Raises InputError."""
        self.cv2 = optional("cv2", option)
        if "OPENCV_LOG_LEVEL" not in os.environ:  # version 5 warns at each detector that is created
            self.cv2.utils.logging.setLogLevel(self.cv2.utils.logging.LOG_LEVEL_ERROR)
        self.model, self.score, self.height, self.option = model, score, height, option
        self._detector((320, 320))  # refuses an unreadable file before any work

    def _detector(self, size: tuple[int, int]) -> Any:
        """Threads must not share one; creating it costs a few milliseconds an image."""
        with loading(self.option, self.model, "a YuNet that OpenCV can load"):
            return self.cv2.FaceDetectorYN.create(str(self.model), "", size, self.score)

    def __call__(self, body: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """The faces of an RGB image: left, top, width and height in its pixels, float32 [N, 4], and
        their confidence, float32 [N]."""
        scale = max(1.0, self.height / body.height)
        size = round(body.width * scale), round(body.height * scale)
        larger = body if scale == 1 else body.resize(size, Image.Resampling.BICUBIC)
        bgr = np.ascontiguousarray(np.asarray(larger)[..., ::-1])
        _, faces = self._detector(size).detect(bgr)
        if faces is None:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return faces[:, :4] / (size[0] / body.width), faces[:, 14]


def largest(boxes: np.ndarray) -> tuple[int, Edges]:
    """Which of some boxes, [N, (left, top, width, height)], has the largest area, and its edges."""
    best = int(np.argmax(boxes[:, 2] * boxes[:, 3]))
    left, top, width, height = boxes[best].tolist()
    return best, (left, top, left + width, top + height)
