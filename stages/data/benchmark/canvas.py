"""A large canvas that takes flat shapes and remembers what each pixel shows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = npt.NDArray[np.complex128]
"""Points of the plane as complex numbers: x + 1j * y, y runs down."""

CANVAS_HEIGHT = 1024
"""Height of every canvas, in pixels. Edges are stepped here and smooth once made smaller."""


class Label(IntEnum):
    """What a pixel shows, by the class ids of the ATR parsing scheme."""

    BACKGROUND = 0
    HAIR = 2
    CLOTHES = 4
    FACE = 11
    SKIN = 14


@dataclass(frozen=True)
class Frame:
    """A system of coordinates on the canvas: where its 0 lies, its unit in pixels, its turn."""

    origin: complex
    scale: float
    turn: float = 0.0

    def __call__(self, points: Points | complex) -> Points:
        """Local points to canvas pixels."""
        return np.asarray(self.origin + self.scale * np.exp(1j * self.turn) * points)

    def inner(self, origin: complex, scale: float, turn: float = 0.0) -> Frame:
        """A frame within this one; `origin` and `scale` are in this one's units."""
        return Frame(complex(self(origin)), self.scale * scale, self.turn + turn)


class Canvas:
    """Colours and labels, drawn together so that they agree to the pixel."""

    def __init__(self, width: int, height: int, colour: Colour) -> None:
        self.picture = Image.new("RGB", (width, height), colour)
        self.labels = Image.new("L", (width, height), Label.BACKGROUND)
        self._pen = ImageDraw.Draw(self.picture)
        self._label_pen = ImageDraw.Draw(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.picture.size

    def polygon(self, points: Points, colour: Colour, label: Label = Label.BACKGROUND) -> None:
        """Fills a polygon given in canvas pixels."""
        flat = _flat(points)
        self._pen.polygon(flat, fill=colour)
        self._label_pen.polygon(flat, fill=int(label))

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Fills an upright rectangle of background."""
        self.polygon(np.array([x0 + 1j * y0, x1 + 1j * y0, x1 + 1j * y1, x0 + 1j * y1]), colour)

    def line(
        self, points: Points, width: float, colour: Colour, label: Label = Label.BACKGROUND
    ) -> None:
        """Draws a line with round joints, `width` in canvas pixels."""
        flat, thick = _flat(points), max(1, round(width))
        self._pen.line(flat, fill=colour, width=thick, joint="curve")
        self._label_pen.line(flat, fill=int(label), width=thick, joint="curve")

    def patterned(self, points: Points, pattern: Image.Image, label: Label) -> None:
        """Fills a polygon with a picture, whose upper left corner goes to that of the polygon."""
        left, top = int(points.real.min()), int(points.imag.min())
        stencil = Image.new("L", pattern.size, 0)
        ImageDraw.Draw(stencil).polygon(_flat(points - complex(left, top)), fill=255)
        self.picture.paste(pattern, (left, top), stencil)
        self._label_pen.polygon(_flat(points), fill=int(label))


def blend(colour: Colour, other: Colour, share: float) -> Colour:
    """`colour` with `share` of `other` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def darker(colour: Colour, share: float) -> Colour:
    """`colour` with `share` of black in it."""
    return blend(colour, (0, 0, 0), share)


def points(*pairs: tuple[float, float]) -> Points:
    """Points from pairs of x and y."""
    return np.array([complex(x, y) for x, y in pairs])


def ellipse(centre: complex, across: float, down: float, count: int = 28) -> Points:
    """The outline of an upright ellipse, given by half its width and half its height."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.asarray(centre + across * np.cos(angle) + 1j * down * np.sin(angle))


def capsule(start: complex, end: complex, start_radius: float, end_radius: float) -> Points:
    """A limb: two half circles and what lies between."""
    along = np.angle(end - start)
    half = np.linspace(np.pi / 2, 3 * np.pi / 2, 9)
    near = start + start_radius * np.exp(1j * (half + along))
    far = end + end_radius * np.exp(1j * (half + along + np.pi))
    return np.concatenate([near, far])


def smooth(corners: Points, steps: int = 6) -> Points:
    """A closed curve through the corners (Catmull-Rom), `steps` points from each to the next."""
    t = np.linspace(0, 1, steps, endpoint=False)[None, :]
    a, b, c, d = (np.roll(corners, shift)[:, None] for shift in (1, 0, -1, -2))
    curve = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.asarray(curve.ravel())


def mirrored(half: Points) -> Points:
    """A closed outline from its right half, listed from top to bottom."""
    return np.concatenate([half, -half[::-1].conj()])


def _flat(points: Points) -> list[float]:
    return np.column_stack([points.real, points.imag]).ravel().tolist()
