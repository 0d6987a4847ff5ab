"""Flat shapes drawn in colour and as labels at once, so that the two agree to the pixel."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = npt.NDArray[np.complex128]
"""Points of the plane as complex numbers: x + 1j * y, y runs down."""

HEIGHT = 768
"""Height of every canvas, in pixels. Edges are stepped here and smooth once made smaller."""


class Label(IntEnum):
    """What a pixel shows, by the class ids of the ATR parsing scheme."""

    BACKGROUND = 0
    HAIR = 2
    CLOTHES = 4
    FACE = 11
    SKIN = 14


class Canvas(NamedTuple):
    """Two images, and the coordinates in which they are drawn on."""

    image: Image.Image
    labels: Image.Image
    origin: complex
    """Where 0 lies, in pixels."""
    scale: float
    """The unit, in pixels."""
    turn: float = 0.0

    def inner(self, origin: complex, scale: float, turn: float = 0.0) -> Canvas:
        """The same canvas in coordinates that are given in its own."""
        place = complex(self.pixels(origin))
        return self._replace(origin=place, scale=self.scale * scale, turn=self.turn + turn)

    def pixels(self, points: Points | complex) -> Points:
        """Where points lie, in pixels."""
        return np.asarray(self.origin + self.scale * np.exp(1j * self.turn) * points)

    def fill(self, points: Points, colour: Colour, label: Label) -> None:
        """Fill a polygon."""
        corners = _flat(self.pixels(points))
        ImageDraw.Draw(self.image).polygon(corners, fill=colour)
        ImageDraw.Draw(self.labels).polygon(corners, fill=int(label))

    def line(self, points: Points, width: float, colour: Colour, label: Label) -> None:
        """Draw a line with round joints."""
        corners, thick = _flat(self.pixels(points)), max(1, round(width * self.scale))
        ImageDraw.Draw(self.image).line(corners, colour, thick, joint="curve")
        ImageDraw.Draw(self.labels).line(corners, int(label), thick, joint="curve")


def blend(colour: Colour, other: Colour, share: float) -> Colour:
    """`colour` with `share` of `other` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def darker(colour: Colour, share: float) -> Colour:
    """`colour` with `share` of black in it."""
    return blend(colour, (0, 0, 0), share)


def ellipse(centre: complex, across: float, down: float, count: int = 24) -> Points:
    """The outline of an upright ellipse, given by half its width and half its height."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.asarray(centre + across * np.cos(angle) + 1j * down * np.sin(angle))


def capsule(start: complex, end: complex, start_radius: float, end_radius: float) -> Points:
    """A limb: two half circles and what lies between."""
    half = np.linspace(np.pi / 2, 3 * np.pi / 2, 9) + np.angle(end - start)
    near, far = np.exp(1j * half), np.exp(1j * (half + np.pi))
    return np.concatenate([start + start_radius * near, end + end_radius * far])


def points(*pairs: tuple[float, float]) -> Points:
    """Points from pairs of x and y."""
    return np.array([complex(x, y) for x, y in pairs])


def mirrored(*half: tuple[float, float]) -> Points:
    """A smooth closed outline (Catmull-Rom) from its right half's corners, from top to bottom."""
    corners = np.concatenate([points(*half), -points(*half)[::-1].conj()])
    t = np.linspace(0, 1, 4, endpoint=False)[None, :]
    a, b, c, d = (np.roll(corners, shift)[:, None] for shift in (1, 0, -1, -2))
    curve = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.asarray(curve.ravel())


def _flat(points: Points) -> list[float]:
    return np.column_stack([points.real, points.imag]).ravel().tolist()
