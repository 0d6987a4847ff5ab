"""Draws what stands behind and in front of people."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deskpro.stages.data.benchmark.canvas import (
    Canvas,
    Colour,
    Frame,
    blend,
    capsule,
    darker,
    ellipse,
    points,
    smooth,
)
from deskpro.stages.data.benchmark.scene import Shot


def draw_backdrop(canvas: Canvas, scene: str, rng: np.random.Generator) -> None:
    """Fills the canvas with one of `scene.SCENES`. `rng` may know nothing of the person."""
    PAINTERS[scene](canvas, rng)


def draw_occluders(canvas: Canvas, shot: Shot, head: Frame, rng: np.random.Generator) -> None:
    """Draws what stands in front, if anything does; never more than a part of the face."""
    if shot.occluder:
        _occluder(canvas, shot.occluder, shot.occluder_at, rng)
    if shot.face_occluder_at is not None:
        side = float(np.sign(shot.face_occluder_at))
        inner = shot.face_occluder_at * head.scale
        outer = inner + side * rng.uniform(0.6, 1.2) * head.scale
        left, right = sorted((inner + head.origin.real, outer + head.origin.real))
        top, bottom = sorted(rng.uniform(-1.6, 1.9, 2) * head.scale + head.origin.imag)
        canvas.box(left, top, right, max(bottom, top + head.scale), _colour(rng, 0.3, 0.8))


def _occluder(canvas: Canvas, kind: str, at: float, rng: np.random.Generator) -> None:
    width, height = canvas.size
    x, colour = (0.5 + 0.45 * at) * width, _colour(rng, 0.2, 0.75)
    if kind == "pole":
        # A pole stands beside the face, or it would hide most of it.
        x = (0.5 + np.sign(at) * (0.2 + 0.25 * abs(at))) * width
        half = rng.uniform(0.015, 0.035) * width
        canvas.box(x - half, 0, x + half, height, colour)
        canvas.box(x - half, 0, x - 0.4 * half, height, darker(colour, 0.2))
    elif kind == "crate":
        half, top = rng.uniform(0.12, 0.28) * width, rng.uniform(0.68, 0.9) * height
        canvas.box(x - half, top, x + half, height, colour)
        canvas.box(x - half, top, x + half, top + 0.02 * height, darker(colour, 0.25))
    elif kind == "bag":
        half, y = rng.uniform(0.07, 0.12) * width, rng.uniform(0.45, 0.65) * height
        strap = points((x - half, y), (x, y - 2.5 * half), (x + half, y))
        canvas.line(strap, 8, darker(colour, 0.3))
        canvas.box(x - half, y, x + half, y + 2.2 * half, colour)
    elif kind == "plant":
        for _ in range(14):
            tip = complex(x + rng.normal(0, 0.12) * width, rng.uniform(0.6, 0.85) * height)
            leaf = blend((50, 110, 60), (120, 150, 70), rng.random())
            canvas.polygon(capsule(complex(x, height), tip, 10, 3), leaf)
    else:
        top = rng.uniform(0.66, 0.8) * height
        for y in (top, top + 0.1 * height):
            canvas.box(0, y, width, y + 0.018 * height, colour)
        for bar in np.arange(rng.uniform(0, 90), width, 90):
            canvas.box(bar, top, bar + 9, height, colour)


def _street(canvas: Canvas, rng: np.random.Generator) -> None:
    width, height = canvas.size
    wall = _colour(rng, 0.45, 0.85)
    ground = rng.uniform(0.72, 0.86) * height
    canvas.box(0, 0, width, ground, wall)
    tall, wide = rng.uniform(90, 150), rng.uniform(60, 110)
    glass = _colour(rng, 0.25, 0.7)
    for y in np.arange(rng.uniform(-80, 40), ground - tall, tall * 1.6):
        for x in np.arange(rng.uniform(-wide, 0), width, wide * 1.7):
            canvas.box(x - 6, y - 6, x + wide + 6, y + tall + 6, darker(wall, 0.18))
            lit = blend(glass, (250, 235, 180), float(rng.random() < 0.25) * 0.7)
            canvas.box(x, y, x + wide, y + tall, lit)
    pavement = _colour(rng, 0.4, 0.7, 0.08)
    canvas.box(0, ground, width, height, pavement)
    canvas.box(0, ground, width, ground + 12, darker(pavement, 0.25))


def _corridor(canvas: Canvas, rng: np.random.Generator) -> None:
    width, height = canvas.size
    wall = _colour(rng, 0.6, 0.9, 0.2)
    vanish = complex(rng.uniform(0.35, 0.65) * width, rng.uniform(0.25, 0.4) * height)
    far = rng.uniform(0.3, 0.5)
    corners = points((0, 0), (width, 0), (width, height), (0, height))
    near = vanish + far * (corners - vanish)
    shades = (0.02, 0.12, 0.35, 0.2)
    for i, shade in enumerate(shades):
        j = (i + 1) % 4
        canvas.polygon(np.array([corners[i], corners[j], near[j], near[i]]), darker(wall, shade))
    canvas.polygon(near, darker(wall, 0.08))
    for ceiling, floor in ((0, 3), (1, 2)):
        for start in np.arange(rng.uniform(0.05, 0.3), 0.8, rng.uniform(0.3, 0.45)):
            posts = np.array([start, start + 0.16])
            feet = corners[floor] + posts * (near[floor] - corners[floor])
            tops = corners[ceiling] + posts * (near[ceiling] - corners[ceiling])
            lintel = feet + 0.75 * (tops - feet)
            canvas.polygon(np.concatenate([lintel, feet[::-1]]), _colour(rng, 0.3, 0.7))
    lamp = vanish + 0.6 * (points((width * 0.4, 0), (width * 0.6, 0)) - vanish)
    canvas.line(lamp, 14, (255, 252, 235))


def _park(canvas: Canvas, rng: np.random.Generator) -> None:
    width, height = canvas.size
    sky = blend((150, 190, 225), (235, 225, 205), rng.random())
    grass = blend((92, 140, 78), (150, 160, 90), rng.random())
    ground = rng.uniform(0.5, 0.7) * height
    canvas.box(0, 0, width, ground, sky)
    canvas.box(0, ground, width, height, grass)
    far, near = rng.uniform(0, width, 2), width * rng.uniform((0.6, -0.4), (1.4, 0.4))
    path = np.concatenate([far + 1j * ground, near + 1j * height])
    canvas.polygon(path, _colour(rng, 0.6, 0.8, 0.15))
    for _ in range(int(rng.integers(3, 8))):
        x, foot = rng.uniform(0, width), ground + rng.uniform(-20, 90)
        tall, crown = rng.uniform(160, 420), rng.uniform(60, 140)
        bark = blend((96, 72, 54), (60, 50, 44), rng.random())
        canvas.box(x - 12, foot - tall, x + 12, foot, bark)
        leaf = blend((52, 108, 62), (128, 148, 62), rng.random())
        blob = ellipse(complex(x, foot - tall), crown, crown * rng.uniform(0.8, 1.4), 9)
        canvas.polygon(smooth(blob + rng.normal(0, 14, 9) + 1j * rng.normal(0, 14, 9)), leaf)


def _shop(canvas: Canvas, rng: np.random.Generator) -> None:
    width, height = canvas.size
    floor = rng.uniform(0.75, 0.88) * height
    canvas.box(0, 0, width, height, _colour(rng, 0.65, 0.9, 0.12))
    shelf = rng.uniform(110, 190)
    board = _colour(rng, 0.35, 0.8, 0.3)
    for y in np.arange(rng.uniform(20, shelf), floor, shelf):
        x = rng.uniform(-40, 0)
        while x < width:
            wide, tall = rng.uniform(24, 70), rng.uniform(0.4, 0.85) * shelf
            canvas.box(x, y - tall, x + wide, y, _colour(rng, 0.35, 0.9, 0.6))
            x += wide + rng.uniform(2, 24)
        canvas.box(0, y, width, y + 12, board)
    canvas.box(0, floor, width, height, _colour(rng, 0.5, 0.8, 0.1))


def _garage(canvas: Canvas, rng: np.random.Generator) -> None:
    width, height = canvas.size
    wall = _colour(rng, 0.35, 0.65, 0.1)
    floor = rng.uniform(0.6, 0.75) * height
    canvas.box(0, 0, width, floor, wall)
    band = rng.uniform(0.35, 0.5) * height
    canvas.box(0, band, width, band + rng.uniform(30, 90), _colour(rng, 0.5, 0.9, 0.7))
    canvas.box(0, floor, width, height, darker(wall, 0.25))
    for x in np.arange(rng.uniform(0, 150), width, rng.uniform(160, 260)):
        canvas.box(x, 0, x + 46, floor, blend(wall, (255, 255, 255), 0.2))
    for _ in range(int(rng.integers(1, 3))):
        x, y = rng.uniform(0, width), floor + rng.uniform(0, 60)
        paint = _colour(rng, 0.3, 0.85, 0.7)
        body = points((-170, 0), (-165, -70), (-90, -80), (-50, -140), (70, -140), (110, -75),
                      (170, -60), (170, 0)) + complex(x, y)  # fmt: skip
        canvas.polygon(body, paint)
        glass = points((-75, -82), (-42, -128), (60, -128), (92, -78)) + complex(x, y)
        canvas.polygon(glass, darker(paint, 0.6))
        for wheel in (-105, 105):
            canvas.polygon(ellipse(complex(x + wheel, y), 34, 34), (36, 36, 40))
    for x in np.arange(rng.uniform(-80, 0), width, 150):
        stripe = points((x, height), (x + 14, height), (x + 60, floor + 40), (x + 52, floor + 40))
        canvas.polygon(stripe, (225, 220, 200))


PAINTERS: dict[str, Callable[[Canvas, np.random.Generator], None]] = {
    "street": _street,
    "corridor": _corridor,
    "park": _park,
    "shop": _shop,
    "garage": _garage,
}


def _colour(rng: np.random.Generator, low: float, high: float, saturation: float = 0.4) -> Colour:
    """A colour of brightness `low` to `high` and at most the given saturation, both 0..1."""
    value, mix = rng.uniform(low, high), rng.uniform(0, saturation)
    hue = rng.random(3)
    red, green, blue = (255 * value * (1 - mix + mix * hue)).astype(int).tolist()
    return red, green, blue
