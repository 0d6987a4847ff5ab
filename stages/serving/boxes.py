"""People cut from a frame by boxes, as trackers give them."""

from __future__ import annotations

from typing import Any

import numpy as np

from deskpro.stages.base.errors import InputError


def crops(xyxy: Any, frame: Any) -> list[np.ndarray]:
    """What each box holds of a frame, uint8 [h, w, 3].

    A box is rounded to whole pixels and cut at the frame's edges. One that then has no area, or
    whose numbers are not finite, gives a black pixel: trackers divide by a vector's length.

    Args:
        xyxy: left, top, right, bottom in pixels, [N, 4]; more columns are ignored. A single box
            may be [4]; empty ones may have any shape.
        frame: uint8 [H, W, 3].

    Raises:
        InputError: either is of another shape or dtype.
    """
    array = isinstance(frame, np.ndarray)
    if not array or frame.dtype != np.uint8 or frame.shape[2:] != (3,):
        given = f"{frame.dtype} {frame.shape}" if array else f"a {type(frame).__name__}"
        raise InputError(f"frame: {given}; must be a uint8 array H×W×3")
    boxes = np.asarray(xyxy, float)
    if not boxes.size:
        return []
    boxes = boxes[None] if boxes.ndim == 1 else boxes
    if boxes.ndim != 2 or boxes.shape[1] < 4:
        raise InputError(f"boxes: an array of shape {boxes.shape}; must be N×4, or more columns")
    height, width = frame.shape[:2]
    ends = np.array([width, height, width, height], float)
    places = np.clip(np.nan_to_num(boxes[:, :4], nan=0, posinf=0, neginf=0).round(), 0, ends)
    found = [frame[top:bottom, left:right] for left, top, right, bottom in places.astype(int)]
    blank = np.zeros((1, 1, 3), np.uint8)
    finite = np.isfinite(boxes[:, :4]).all(1)
    return [
        crop if usable and crop.size else blank for crop, usable in zip(found, finite, strict=True)
    ]
