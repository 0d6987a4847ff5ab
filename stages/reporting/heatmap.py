"""Attention in the page: a map in colours with its scale, and outlines on the image."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps

from deskpro.stages.reporting.images import from_pixels

_COLOURS = "viridis"
"""Its lightness grows evenly, so that it reads in grey and in every form of colour blindness."""
_HEAD, _EDGE, _HIGHEST = (255, 255, 255), (0, 0, 0), (255, 0, 200)
"""Of outlines: of the head, the pixels around both, of the highest attention."""


def coloured(attention: np.ndarray, top: float, head: np.ndarray) -> str:
    """The data URI of attention [H, W] in colours from 0 to `top`, with the outline of the head,
    bool [H, W]."""
    shares = np.clip(attention / (top or 1.0), 0, 1)
    pixels = np.round(255 * colormaps[_COLOURS](shares)[..., :3]).astype(np.uint8)
    return _image(_outlined(pixels, head, _HEAD))


def outlined(image: np.ndarray, head: np.ndarray, highest: np.ndarray) -> str:
    """The data URI of an image, uint8 [3, H, W], with the outlines of the head and of the highest
    attention, bool [H, W]."""
    pixels = _outlined(image.transpose(1, 2, 0).copy(), highest, _HIGHEST)
    return _image(_outlined(pixels, head, _HEAD))


def scale(width: int = 240, height: int = 12) -> str:
    """The data URI of the colours from 0, left, to the highest value."""
    return coloured(np.tile(np.linspace(0, 1, width), (height, 1)), 1.0, np.zeros((height, width)))


def outline(region: np.ndarray) -> np.ndarray:
    """The pixels of a region, bool [H, W], that touch one outside or the border: bool [H, W]."""
    inside = region.astype(bool)
    return inside & ~_shifted(inside).all(axis=0)


def _shifted(region: np.ndarray) -> np.ndarray:
    """The four neighbours of each pixel, bool [4, H, W]; outside the image there is none."""
    padded = np.pad(region, 1)
    return np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])


def _outlined(pixels: np.ndarray, region: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels uint8 [H, W, 3] with the outline of a region, two pixels wide, and an edge around it
    that is seen on any ground."""
    inside = region.astype(bool)
    pixels[_shifted(inside).any(axis=0) & ~inside] = _EDGE
    pixels[outline(inside)] = colour
    pixels[outline(inside & ~outline(inside))] = colour
    return pixels


def _image(pixels: np.ndarray) -> str:
    return from_pixels(pixels.transpose(2, 0, 1), drawn=True)
