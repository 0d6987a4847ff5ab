"""Draws a whole person: trunk and limbs, and the head from the front or from behind."""

from __future__ import annotations

import numpy as np

from deskpro.stages.data.benchmark.canvas import (
    Canvas,
    Colour,
    Label,
    Points,
    blend,
    capsule,
    darker,
    ellipse,
    mirrored,
    points,
)
from deskpro.stages.data.benchmark.people import Outfit, Person, Shot

WHITE, INK = (246, 244, 240), (34, 28, 28)
LONG = 0.4
"""Hair of more than this length falls behind the neck."""

Shapes = list[tuple[Points, Colour]]
"""What is drawn on a face, one over the other, before the head turns."""

HEAD_HALF = 0.086
"""Half the height of a head, in heights of the tallest person."""


def draw_figure(feet: Canvas, person: Person, outfit: Outfit, shot: Shot, back: bool) -> Canvas:
    """Draw somebody where 1 is the tallest person's height; return the canvas where 1 is half the
    height of the head.
    """
    body = feet.inner(0, person.stature, shot.lean)
    half = HEAD_HALF / person.stature**0.5  # small people have larger heads
    head = body.inner(complex(0, half - 1), half, shot.roll)
    _legs(body, person, outfit, shot)
    _trunk(body, person, outfit, back)
    if not back:
        _hair_behind(head, person, shot)
    neck = mirrored((0.03, -0.86), (0.032, -0.82), (0.022, -0.795))
    body.fill(neck, darker(person.skin, 0.14), Label.SKIN)
    _arms(body, person, outfit, shot)
    if back:
        _back(head, person)
    else:
        _front(head, person, shot)
    return head


def _legs(body: Canvas, person: Person, outfit: Outfit, shot: Shot) -> None:
    trousers, build = outfit.lower == "trousers", person.build
    for side, angle in ((-1, shot.left_leg), (1, shot.right_leg)):
        hip, leg = side * 0.045 * build - 0.46j, 1j * np.exp(-1j * side * angle)
        cloth, skin = (darker(c, 0.06 - 0.06 * side) for c in (outfit.lower_colour, person.skin))
        ankle = hip + 0.43 * leg
        shoe = capsule(ankle, ankle + side * 0.022 + 0.006j, 0.02, 0.016)
        body.fill(shoe, outfit.shoes, Label.CLOTHES)
        whole = capsule(hip, ankle, 0.046 * build, 0.023 * build)
        body.fill(whole, cloth if trousers else skin, Label.CLOTHES if trousers else Label.SKIN)
        if outfit.lower == "shorts":
            short = capsule(hip, hip + 0.2 * leg, 0.05 * build, 0.046 * build)
            body.fill(short, cloth, Label.CLOTHES)
    if outfit.lower == "skirt":
        skirt = mirrored((0.07 * build, -0.5), (0.1 * build, -0.4), (0.125 * build, -0.25),
                         (0.04, -0.24))  # fmt: skip
        body.fill(skirt, outfit.lower_colour, Label.CLOTHES)


def _trunk(body: Canvas, person: Person, outfit: Outfit, back: bool) -> None:
    build, wide = person.build, 0.11 * person.shoulders
    outline = mirrored((0.03, -0.822), (0.6 * wide, -0.806), (0.95 * wide, -0.788),
                       (1.02 * wide, -0.75), (0.86 * wide, -0.66), (0.078 * build, -0.57),
                       (0.086 * build, -0.47), (0.083 * build, -0.44))  # fmt: skip
    body.fill(outline, outfit.jacket or outfit.top, Label.CLOTHES)
    if not back:  # a jacket is open in front
        gap = points((-0.022, -0.815), (0.022, -0.815), (0.035, -0.45), (-0.035, -0.45))
        body.fill(gap, outfit.top, Label.CLOTHES)


def _arms(body: Canvas, person: Person, outfit: Outfit, shot: Shot) -> None:
    wide = person.build**0.6
    for side, angle in ((-1, shot.left_arm), (1, shot.right_arm)):
        shoulder, arm = side * 0.098 * person.shoulders - 0.76j, 1j * np.exp(-1j * side * angle)
        sleeve = darker(outfit.jacket or outfit.top, 0.1 - 0.06 * side)
        body.fill(ellipse(shoulder + 0.33 * arm, 0.02, 0.024), person.skin, Label.SKIN)
        whole = capsule(shoulder, shoulder + 0.31 * arm, 0.03 * wide, 0.019 * wide)
        if outfit.jacket or outfit.long_sleeves:
            body.fill(whole, sleeve, Label.CLOTHES)
        else:
            short = capsule(shoulder, shoulder + 0.08 * arm, 0.034 * wide, 0.034 * wide)
            body.fill(whole, person.skin, Label.SKIN)
            body.fill(short, sleeve, Label.CLOTHES)


def _hair_behind(head: Canvas, person: Person, shot: Shot) -> None:
    """Draw hair that falls behind the neck: before the neck is drawn."""
    if person.hair_length > LONG:
        wide = person.width * person.hair_volume + 0.06
        fall = mirrored((0.5 * wide, -1.0), (wide, -0.45), (wide + 0.05, 0.3),
                        (0.95 * wide, person.hair_length))  # fmt: skip
        head.fill(fall - 0.1 * np.sin(shot.yaw), darker(person.hair, 0.18), Label.HAIR)


def _front(head: Canvas, person: Person, shot: Shot) -> None:
    """Draw the face with everything on it. The unit of `head` is half its height."""
    for ear in _ears(person, shot.yaw):
        head.fill(ear, darker(person.skin, 0.08), Label.FACE)
    head.fill(_outline(person), person.skin, Label.FACE)
    shapes = _marks(person) + _nose(person) + _mouth(person, shot) + _eyes(person, shot)
    for shape, colour in shapes:
        head.fill(_turned(person, shot, shape), colour, Label.FACE)
    head.fill(_hair(person, shot), person.hair, Label.HAIR)
    if person.glasses:
        for shape in _glasses(person):
            head.line(_turned(person, shot, shape), 0.045, INK, Label.FACE)


def _back(head: Canvas, person: Person) -> None:
    """Draw the back of the head: no face, so that hair is its class; ears where they show."""
    if person.hair_length <= LONG:
        for ear in _ears(person, 0.0):
            head.fill(ear, darker(person.skin, 0.06), Label.HAIR)
    outline = _outline(person)
    head.fill(outline, person.skin, Label.HAIR)
    crown, length = outline * person.hair_volume, max(0.5, person.hair_length)
    low = crown.imag * np.where(crown.imag > 0, length, 1)
    head.fill(crown.real + 1j * low, person.hair, Label.HAIR)


def _turned(person: Person, shot: Shot, local: Points) -> Points:
    """Points on the face's surface, moved as the head's turn and nod move them."""
    z = 0.75 * np.sqrt(np.clip(person.width**2 - local.real**2, 0, None)) + 0.06
    x = local.real * np.cos(shot.yaw) + z * np.sin(shot.yaw)
    return np.asarray(x + 1j * (local.imag + shot.pitch))


def _outline(person: Person) -> Points:
    """The outline of a head from the front, clockwise from the right, crown -1j, chin 1j."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    across, down = np.cos(angle), np.sin(angle)
    # Below the eyes the jaw decides: near 0.5 is square, above 1 is pointed.
    power = np.where(down > 0, person.jaw, 0.85)
    return np.asarray(person.width * np.sign(across) * np.abs(across) ** power + 1j * down)


def _ears(person: Person, yaw: float) -> list[Points]:
    x, y = person.width + 0.25 * person.ear_angle * person.ear_size, person.eye_height + 0.12
    wide = person.ear_size * (0.45 + person.ear_angle)
    middles = (complex(side * x - 0.3 * np.sin(yaw), y) for side in (-1, 1))
    return [ellipse(middle, wide, person.ear_size) for middle in middles]


def _marks(person: Person) -> Shapes:
    """A mole and a beard, where there are."""
    spot = ellipse(complex(person.mole_x * person.width, person.mole_y), 0.038, 0.038, 10)
    mole = [(spot, blend(person.skin, (60, 30, 24), 0.7))] if person.mole else []
    if not person.beard:
        return mole
    top, y, side = 0.72 - 0.5 * person.beard, person.mouth_height, 0.8 * person.width
    jaw = 0.99 * _outline(person)
    jaw = jaw[jaw.imag > top]
    inner = points((-side, top + 0.06), (-0.42, y - 0.1), (0.0, y - 0.14), (0.42, y - 0.1),
                   (side, top + 0.06))  # fmt: skip
    shape = np.concatenate([jaw[np.argsort(-jaw.real)], inner])
    return [*mole, (shape, blend(person.brows, person.skin, 0.25))]


def _nose(person: Person) -> Shapes:
    wide, tip = person.nose_width, person.eye_height + person.nose_length
    shade, dark = darker(person.skin, 0.13), darker(person.skin, 0.45)
    ridge = points((0.3 * wide, person.eye_height + 0.04), (wide, tip), (0.15 * wide, tip))
    base = points((-wide, tip), (-0.6 * wide, tip - 0.06), (0.6 * wide, tip - 0.06), (wide, tip),
                  (0.5 * wide, tip + 0.05), (-0.5 * wide, tip + 0.05))  # fmt: skip
    holes = [ellipse(complex(x * wide, tip + 0.015), 0.24 * wide, 0.02) for x in (-0.5, 0.5)]
    return [(ridge, shade), (base, shade), (holes[0], dark), (holes[1], dark)]


def _mouth(person: Person, shot: Shot) -> Shapes:
    x = np.linspace(-1, 1, 15)
    arch = 1 - x**2
    y = person.mouth_height + (person.mouth_curve + shot.smile) * arch
    line, thick = person.mouth_width * x + 1j * y, 1j * person.lip_thickness * arch
    gap = 1j * max(0.012, shot.mouth_open) * arch
    lips = np.concatenate([line - 0.8 * thick - gap, (line + thick + gap)[::-1]])
    inside = np.concatenate([line - gap, (line + gap)[::-1]])
    return [(lips, person.lips), (inside, darker(person.lips, 0.55))]


def _eyes(person: Person, shot: Shot) -> Shapes:
    x, shapes = np.linspace(-1, 1, 15), []
    wide, high = person.eye_width, person.eye_opening * shot.eye_open
    lid = wide * x - 1j * high * (1 - x**2)
    thick = 0.5j * person.brow_thickness
    for side in (-1, 1):
        centre = complex(side * person.eye_distance, person.eye_height)
        slant = np.exp(-1j * side * person.eye_slant)
        shapes.append((centre + 1.2 * slant * np.append(lid, lid[::-1].conj() * 0.6), INK))
        shapes.append((centre + slant * np.append(lid, lid[::-1].conj()), WHITE))
        for radius, colour in ((person.iris, person.eyes), (0.5 * person.iris, INK)):
            disc = ellipse(0, radius, radius)
            disc = disc.real + 1j * disc.imag.clip(-0.9 * high, 0.9 * high)
            shapes.append((centre + disc, colour))
        hair = person.brow_width * x - 0.04j * (1 - x**2)
        brow = np.append(hair - thick, (hair + thick)[::-1]) * np.exp(1j * side * person.brow_tilt)
        shapes.append((centre - 1j * person.brow_height + 0.03 * side + brow, person.brows))
    return shapes


def _hair(person: Person, shot: Shot) -> Points:
    """The hair over the forehead and at the sides: a shell about the head, and its hairline."""
    end, shell = min(person.hair_length, 0.75), _outline(person) * person.hair_volume
    shell = shell[shell.imag < end]
    # From the right side over the crown to the left: the outline runs clockwise from the right.
    shell = shell[np.argsort(np.angle(1j * (shell - 0.3j)))][::-1]
    x = np.linspace(-0.93, 0.93, 25)
    line = person.hairline + 0.16 * np.abs(x - person.hair_part) - 0.08
    line = line + 0.5 * np.abs(x) ** 6 * (end - line).clip(0)
    edge = _turned(person, shot, person.width * x + 1j * line)
    sides = _turned(person, shot, points((-0.95, 0), (0.95, 0)) * person.width + 1j * end)
    rim = abs(shell.real).max()
    sides = sides.real.clip(-rim, rim) + 1j * sides.imag
    return np.concatenate([shell, sides[:1], edge, sides[1:]])


def _glasses(person: Person) -> list[Points]:
    wide, y = 0.74 * person.eye_distance, person.eye_height + 0.02
    ring, inner = ellipse(0, wide, wide * person.glasses), person.eye_distance - wide
    rims = [np.append(ring, ring[0]) + complex(side * person.eye_distance, y) for side in (-1, 1)]
    return [*rims, points((-inner, y), (inner, y))]
