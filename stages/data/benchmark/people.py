"""Who can be drawn, what can be worn, and how somebody stands: as numbers and colours."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from deskpro.stages.data.benchmark.canvas import Colour, blend

SKINS = ((246, 214, 188), (226, 178, 142), (176, 124, 90), (112, 74, 54))
HAIRS = ((32, 26, 26), (88, 58, 42), (150, 82, 46), (196, 158, 96), (168, 164, 160))
EYES = ((72, 48, 32), (60, 110, 150), (80, 120, 72))
GREYS = ((40, 42, 48), (92, 94, 100), (225, 222, 214), (58, 66, 92))


def between(low: float, high: float) -> Any:
    """A field of a dataclass that `draw_numbers` draws uniformly."""
    return field(metadata={"range": (low, high)})


def draw_numbers(kind: type, rng: np.random.Generator) -> dict[str, float]:
    """A value for each field of a dataclass that is `between` two numbers."""
    drawn = [each for each in fields(kind) if "range" in each.metadata]
    return {each.name: float(rng.uniform(*each.metadata["range"])) for each in drawn}


@dataclass(frozen=True)
class Person:
    """What stays the same in every image of somebody.

    Lengths of the face are in halves of the head's height, y runs down, 0 is the middle.
    """

    skin: Colour
    hair: Colour
    brows: Colour
    eyes: Colour
    lips: Colour
    hair_length: float
    """How far down the hair falls at the sides, in halves of the head's height."""
    glasses: float
    """Half the height of a glass, as a share of its half width; 0 is no glasses."""
    beard: float
    """How far up the beard reaches; 0 is none."""
    mole: bool

    stature: float = between(0.86, 1.01)
    """Height, as a share of the tallest."""
    build: float = between(0.8, 1.3)
    """Width of trunk and limbs, as a share of the usual."""
    shoulders: float = between(0.86, 1.14)
    """Width of the shoulders, as a share of the usual."""

    width: float = between(0.66, 0.86)
    jaw: float = between(0.5, 1.05)
    eye_distance: float = between(0.25, 0.40)
    eye_height: float = between(-0.08, 0.12)
    eye_width: float = between(0.11, 0.18)
    eye_opening: float = between(0.05, 0.105)
    eye_slant: float = between(-0.25, 0.25)
    iris: float = between(0.06, 0.085)
    brow_height: float = between(0.16, 0.30)
    brow_width: float = between(0.14, 0.25)
    brow_thickness: float = between(0.025, 0.09)
    brow_tilt: float = between(-0.32, 0.2)
    nose_length: float = between(0.22, 0.44)
    nose_width: float = between(0.07, 0.20)
    mouth_height: float = between(0.54, 0.70)
    mouth_width: float = between(0.15, 0.34)
    lip_thickness: float = between(0.03, 0.11)
    mouth_curve: float = between(-0.03, 0.08)
    ear_size: float = between(0.13, 0.25)
    ear_angle: float = between(0.0, 0.35)
    hairline: float = between(-0.68, -0.40)
    hair_part: float = between(-0.6, 0.6)
    hair_volume: float = between(1.04, 1.16)
    mole_x: float = between(-0.5, 0.5)
    mole_y: float = between(0.2, 0.8)


@dataclass(frozen=True)
class Outfit:
    """What somebody wears."""

    top: Colour
    jacket: Colour | None
    long_sleeves: bool
    lower: str
    lower_colour: Colour
    shoes: Colour


@dataclass(frozen=True)
class Shot:
    """One moment before a camera: nothing here depends on who stands there. Angles in radians."""

    scale: float = between(0.88, 0.92)
    """Height of the tallest person, as a share of the image's height."""
    x: float = between(-0.07, 0.07)
    """Where the feet stand, as a share of the width from the middle."""
    ground: float = between(0.955, 0.985)
    """How low the feet stand, as a share of the height."""
    light: float = between(0.85, 1.12)
    slope: float = between(-0.22, 0.22)
    """How much brighter the right edge is than the left, as a share."""
    box_x: float = between(-0.05, 0.05)
    box_y: float = between(-0.05, 0.05)
    box_scale: float = between(0.94, 1.08)
    """Error of the face detector: shift in sides of the box, and factor of its side."""
    yaw: float = between(-0.42, 0.42)
    pitch: float = between(-0.06, 0.08)
    roll: float = between(-0.08, 0.08)
    smile: float = between(-0.02, 0.06)
    mouth_open: float = between(0.0, 0.05)
    eye_open: float = between(0.75, 1.1)
    lean: float = between(-0.03, 0.03)
    left_arm: float = between(0.06, 0.3)
    right_arm: float = between(0.06, 0.3)
    left_leg: float = between(-0.02, 0.12)
    right_leg: float = between(-0.02, 0.12)


def draw_person(rng: np.random.Generator) -> Person:
    """A person."""
    skin, hair = _along(SKINS, rng), _along(HAIRS, rng)
    return Person(
        skin=skin,
        hair=hair,
        brows=blend(hair, (30, 24, 22), rng.uniform(0.1, 0.6)),
        eyes=EYES[rng.integers(len(EYES))],
        lips=blend(skin, (176, 58, 66), rng.uniform(0.3, 0.75)),
        hair_length=float(rng.uniform(0.5, 1.6) if rng.random() < 0.4 else rng.uniform(-0.3, 0.1)),
        glasses=float(rng.uniform(0.6, 0.95)) if rng.random() < 0.3 else 0.0,
        beard=float(rng.uniform(0.3, 1.0)) if rng.random() < 0.3 else 0.0,
        mole=bool(rng.random() < 0.5),
        **draw_numbers(Person, rng),
    )


def draw_outfit(rng: np.random.Generator) -> Outfit:
    """An outfit."""
    return Outfit(
        top=_cloth(rng),
        jacket=_cloth(rng) if rng.random() < 0.4 else None,
        long_sleeves=bool(rng.random() < 0.6),
        lower=str(rng.choice(["trousers", "trousers", "skirt", "shorts"])),
        lower_colour=blend(_cloth(rng), (30, 32, 44), 0.35),
        shoes=GREYS[rng.integers(len(GREYS))],
    )


def _along(colours: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    """A colour between two neighbours of a list."""
    place = int(rng.integers(len(colours) - 1))
    return blend(colours[place], colours[place + 1], rng.random())


def _cloth(rng: np.random.Generator) -> Colour:
    """A colour that cloth may have: mostly bright, sometimes grey."""
    if rng.random() < 0.2:
        return GREYS[rng.integers(len(GREYS))]
    hue, saturation, value = rng.uniform((0, 0.35, 0.45), (1, 0.8, 0.9))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
