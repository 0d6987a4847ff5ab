"""Who can be drawn and what can be worn: people and outfits as parameters."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from deskpro.stages.data.benchmark.canvas import Colour, blend

SKINS: tuple[Colour, ...] = ((240, 204, 176), (214, 166, 130), (150, 104, 76))
HAIRS: tuple[Colour, ...] = ((38, 30, 30), (92, 60, 42), (176, 132, 78))
EYES: tuple[Colour, ...] = ((72, 48, 32), (60, 110, 150), (80, 120, 72))
HAIR_STYLES = ("cropped", "short", "parted", "bob", "long", "bun")
GREYS: tuple[Colour, ...] = ((40, 42, 48), (92, 94, 100), (225, 222, 214), (58, 66, 92))


@dataclass(frozen=True)
class Face:
    """A face as numbers. Lengths are in halves of the head's height, y runs down, 0 the middle."""

    width: float
    jaw: float
    cheek: float
    eye_distance: float
    eye_height: float
    eye_width: float
    eye_opening: float
    eye_slant: float
    iris: float
    brow_height: float
    brow_width: float
    brow_thickness: float
    brow_tilt: float
    brow_arch: float
    nose_length: float
    nose_width: float
    nose_tip: float
    mouth_height: float
    mouth_width: float
    lip_thickness: float
    mouth_curve: float
    ear_size: float
    ear_angle: float
    hairline: float
    hair_arch: float
    hair_part: float
    hair_volume: float
    mole_x: float
    mole_y: float
    blush: float


RANGES: dict[str, tuple[float, float]] = {
    "width": (0.69, 0.83), "jaw": (0.5, 1.05), "cheek": (-0.03, 0.07),
    "eye_distance": (0.25, 0.40), "eye_height": (-0.06, 0.12), "eye_width": (0.11, 0.18),
    "eye_opening": (0.055, 0.105), "eye_slant": (-0.25, 0.25), "iris": (0.06, 0.085),
    "brow_height": (0.16, 0.30), "brow_width": (0.15, 0.25), "brow_thickness": (0.025, 0.085),
    "brow_tilt": (-0.32, 0.2), "brow_arch": (0.0, 0.08),
    "nose_length": (0.24, 0.44), "nose_width": (0.08, 0.19), "nose_tip": (-0.03, 0.05),
    "mouth_height": (0.54, 0.70), "mouth_width": (0.16, 0.34), "lip_thickness": (0.03, 0.11),
    "mouth_curve": (-0.03, 0.08), "ear_size": (0.14, 0.24), "ear_angle": (0.0, 0.35),
    "hairline": (-0.66, -0.42), "hair_arch": (-0.08, 0.16), "hair_part": (-0.6, 0.6),
    "hair_volume": (1.05, 1.13), "mole_x": (-0.5, 0.5), "mole_y": (0.2, 0.8), "blush": (0.0, 0.22),
}  # fmt: skip
"""Smallest and largest value of every number of a `Face`."""


@dataclass(frozen=True)
class Look:
    """What can be seen of somebody's head from afar. Several people share a look."""

    skin: Colour
    hair: Colour
    hair_style: str
    glasses: float
    """Half the height of a glass, as a share of its half width; 0 is no glasses."""
    beard: float
    """How far up the beard reaches, 0 is none."""
    moustache: bool


@dataclass(frozen=True)
class Person:
    """What stays the same in every picture of somebody."""

    look: Look
    face: Face
    brows: Colour
    eyes: Colour
    lips: Colour
    mole: bool
    freckles: bool
    stature: float
    shoulders: float


@dataclass(frozen=True)
class Outfit:
    """What somebody wears."""

    top: Colour
    accent: Colour
    pattern: str
    long_sleeves: bool
    jacket: Colour | None
    lower: str
    lower_colour: Colour
    shoes: Colour


def draw_look(rng: np.random.Generator) -> Look:
    """A look."""
    bearded = rng.random() < 0.25
    return Look(
        skin=SKINS[rng.integers(len(SKINS))],
        hair=HAIRS[rng.integers(len(HAIRS))],
        hair_style=str(rng.choice(HAIR_STYLES)),
        glasses=float(rng.uniform(0.6, 0.95)) if rng.random() < 0.3 else 0.0,
        beard=float(rng.uniform(0.4, 1.0)) if bearded else 0.0,
        moustache=bool(bearded and rng.random() < 0.7),
    )


def draw_person(rng: np.random.Generator, look: Look, spread: float) -> Person:
    """A person. `spread` scales the distance of every number of the face from the average."""
    numbers = {}
    for name, (low, high) in RANGES.items():
        middle, half = (low + high) / 2, (high - low) / 2
        numbers[name] = middle + half * spread * rng.uniform(-1, 1)
    look = replace(look, skin=_near(look.skin, 3, rng), hair=_near(look.hair, 3, rng))
    return Person(
        look=look,
        face=Face(**numbers),
        brows=blend(blend(look.hair, (30, 24, 22), rng.uniform(0.1, 0.6)), look.skin, 0.1),
        eyes=EYES[rng.integers(len(EYES))],
        lips=blend(look.skin, (176, 58, 66), rng.uniform(0.3, 0.75)),
        mole=bool(rng.random() < 0.5),
        freckles=bool(rng.random() < 0.25),
        stature=float(rng.uniform(0.97, 1.01)),
        shoulders=float(rng.uniform(0.94, 1.06)),
    )


def draw_outfit(rng: np.random.Generator) -> Outfit:
    """An outfit."""
    top = _cloth(rng)
    return Outfit(
        top=top,
        accent=_cloth(rng) if rng.random() < 0.5 else blend(top, (255, 255, 255), 0.65),
        pattern=str(rng.choice(["plain", "stripes", "checks", "logo"])),
        long_sleeves=bool(rng.random() < 0.6),
        jacket=_cloth(rng) if rng.random() < 0.3 else None,
        lower=str(rng.choice(["trousers", "trousers", "skirt", "shorts"])),
        lower_colour=blend(_cloth(rng), (30, 32, 44), 0.35),
        shoes=_near(GREYS[rng.integers(len(GREYS))], 8, rng),
    )


def _cloth(rng: np.random.Generator) -> Colour:
    """A colour that cloth may have: mostly bright, sometimes grey."""
    if rng.random() < 0.2:
        return _near(GREYS[rng.integers(len(GREYS))], 8, rng)
    red, green, blue = colorsys.hsv_to_rgb(
        rng.random(), rng.uniform(0.35, 0.8), rng.uniform(0.45, 0.9)
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def _near(colour: Colour, distance: float, rng: np.random.Generator) -> Colour:
    """A colour a little off the given one."""
    red, green, blue = (np.clip(colour + rng.normal(0, distance, 3), 0, 255)).astype(int).tolist()
    return red, green, blue
