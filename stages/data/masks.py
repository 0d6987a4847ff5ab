"""What a mask shows: whether a head is in it, or whether it is a label map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from PIL import Image

HEAD, NO_HEAD, LABELS = "head", "no head", "labels"
"""What a mask has: red on a head; none of it; the colours or numbers of a parser's classes."""
_LEAST, _SHARE = 5, 0.05
"""So many masks of a set say something of all; the least share of them that must have a head.
A person seen from behind, or cut off, may have none."""
LIT = 128
"""From this value of 0..255 on a pixel of a channel is of its region."""
_ROWS = 96
"""So many rows of a mask are looked at; the head has several."""


def content(mask: Image.Image) -> str:
    """What an RGB mask has: `HEAD`, `NO_HEAD` or `LABELS`.

    A mask has channels of 0 or 255, and of something between at the edges alone. A label map has
    class ids, which are small numbers, or a palette's colours, most of which are between.
    """
    rows = np.asarray(mask)[:: max(1, mask.height // _ROWS)]
    planes = np.ascontiguousarray(np.moveaxis(rows, 2, 0)).astype(np.int16)
    if planes.max() < 64:
        return LABELS if planes.any() else NO_HEAD
    flat = np.abs(np.diff(planes, axis=2)).max(axis=0) <= 16  # JPEG isn't exact
    lit = flat & (planes[:, :, 1:].max(axis=0) >= 64)
    between = flat & (np.abs(planes[:, :, 1:] - 128).min(axis=0) < 80)
    if np.count_nonzero(between) > 0.75 * np.count_nonzero(lit):
        return LABELS
    return HEAD if (planes[0] >= LIT).any() else NO_HEAD


def lack_of_heads(contents: Iterable[str | None]) -> str | None:
    """What is wrong with the masks of a training set if almost none has a head; None if enough do.

    contents: of each mask, None where it isn't known.
    """
    counts = Counter(known for known in contents if known is not None)
    total = counts.total()
    if total < _LEAST or counts[HEAD] >= _SHARE * total:
        return None
    what = (
        f"{total - counts[HEAD]} of {total} masks have no head: red must be 255 on the head and 0 "
        "elsewhere (green the clothes, blue other skin)"
    )
    if 2 * counts[LABELS] > total:
        what += (
            ". They look like label maps (class ids, or colours of a palette). To make masks of "
            "them, rename this folder to labels (PNGs of one channel: the class id) and type: "
            "deskpro prepare --set 'prepare.steps=[mask]' --set prepare.parsing.scheme=lip (or "
            "atr, cihp, pascal), with your --config and other options"
        )
    return what
