"""Draws a whole person."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from deskpro.stages.data.benchmark.canvas import (
    Canvas,
    Colour,
    Frame,
    Label,
    Points,
    capsule,
    darker,
    ellipse,
    mirrored,
    points,
    smooth,
)
from deskpro.stages.data.benchmark.head import Head
from deskpro.stages.data.benchmark.people import Outfit, Person
from deskpro.stages.data.benchmark.scene import Shot

HEAD_HALF = 0.086
"""Half the height of a head, in statures."""
HIPS, SHOULDERS = -0.46, -0.775
"""Height of the joints above the ground, in statures; y runs down."""


def draw_figure(canvas: Canvas, person: Person, outfit: Outfit, shot: Shot, back: bool) -> Frame:
    """Draws somebody, feet first. Returns the frame of the head, whose unit is half its height."""
    width, height = canvas.size
    feet = complex((0.5 + shot.x) * width, shot.ground * height)
    frame = Frame(feet, shot.scale * person.stature * height, shot.pose.lean)
    head_frame = frame.inner(complex(0, -1 + HEAD_HALF), HEAD_HALF, shot.pose.roll)
    head = Head(canvas, head_frame, person, shot.pose)

    _legs(canvas, frame, person, outfit, shot)
    torso = _torso(person)
    _top(canvas, frame, torso, outfit, back)
    if back:
        _arms(canvas, frame, person, outfit, shot)
        _neck(canvas, frame, person)
        head.draw_back()
    else:
        head.draw_hair_behind()
        _neck(canvas, frame, person)
        head.draw_front()
        _arms(canvas, frame, person, outfit, shot)
    return head_frame


def _torso(person: Person) -> Points:
    wide = 0.112 * person.shoulders
    half = points((0.03, -0.822), (0.6 * wide, -0.806), (0.95 * wide, -0.788), (1.02 * wide, -0.75),
                  (0.86 * wide, -0.66), (0.076, -0.57), (0.086, -0.47), (0.083, -0.44))  # fmt: skip
    return smooth(mirrored(half), 4)


def _neck(canvas: Canvas, frame: Frame, person: Person) -> None:
    neck = smooth(mirrored(points((0.03, -0.86), (0.031, -0.82), (0.022, -0.795))), 4)
    canvas.polygon(frame(neck), darker(person.look.skin, 0.14), Label.SKIN)


def _legs(canvas: Canvas, frame: Frame, person: Person, outfit: Outfit, shot: Shot) -> None:
    cloth = outfit.lower_colour
    for side, leg, knee in zip((-1, 1), shot.pose.legs, shot.pose.knees, strict=True):
        hip = complex(side * 0.045, HIPS)
        thigh_end = hip + 0.22j * np.exp(-1j * side * leg)
        ankle = thigh_end + 0.2j * np.exp(-1j * side * (leg + knee))
        ankle = complex(ankle.real, min(ankle.imag, -0.025))
        shade = darker(cloth, 0.1) if side < 0 else cloth
        bare = darker(person.look.skin, 0.05 if side < 0 else 0.0)
        shoe = capsule(ankle + 0.006j, ankle + side * 0.022 + 0.012j, 0.02, 0.016)
        if outfit.lower == "trousers":
            canvas.polygon(frame(shoe), outfit.shoes, Label.CLOTHES)
            canvas.polygon(frame(capsule(hip, thigh_end, 0.047, 0.036)), shade, Label.CLOTHES)
            canvas.polygon(frame(capsule(thigh_end, ankle, 0.036, 0.027)), shade, Label.CLOTHES)
            continue
        canvas.polygon(frame(capsule(hip, thigh_end, 0.044, 0.03)), bare, Label.SKIN)
        canvas.polygon(frame(capsule(thigh_end, ankle, 0.03, 0.018)), bare, Label.SKIN)
        canvas.polygon(frame(shoe), outfit.shoes, Label.CLOTHES)
        if outfit.lower == "shorts":
            hem = hip + 0.85 * (thigh_end - hip)
            canvas.polygon(frame(capsule(hip, hem, 0.05, 0.047)), shade, Label.CLOTHES)
    if outfit.lower == "skirt":
        skirt = smooth(mirrored(points((0.07, -0.5), (0.1, -0.4), (0.125, -0.25), (0.04, -0.24))))
        canvas.polygon(frame(skirt), cloth, Label.CLOTHES)


def _top(canvas: Canvas, frame: Frame, torso: Points, outfit: Outfit, back: bool) -> None:
    outline = frame(torso)
    if back and outfit.jacket:
        canvas.polygon(outline, outfit.jacket, Label.CLOTHES)
        return
    size = (int(np.ptp(outline.real)) + 2, int(np.ptp(outline.imag)) + 2)
    canvas.patterned(outline, _cloth(outfit, size, logo=not back), Label.CLOTHES)
    if outfit.jacket:
        for side in (-1, 1):
            flap = torso[side * torso.real > 0]
            flap = flap[np.argsort(flap.imag)]
            inner = points((side * 0.035, -0.44), (side * 0.02, -0.7), (side * 0.034, -0.822))
            canvas.polygon(frame(np.concatenate([flap, inner])), outfit.jacket, Label.CLOTHES)
            edge = frame(inner)
            canvas.line(edge, 0.006 * frame.scale, darker(outfit.jacket, 0.3), Label.CLOTHES)


def _cloth(outfit: Outfit, size: tuple[int, int], logo: bool) -> Image.Image:
    """A piece of the top's cloth, `size` in pixels."""
    width, height = size
    cloth = Image.new("RGB", size, outfit.top)
    pen = ImageDraw.Draw(cloth)
    step = max(8, height // 9)
    if outfit.pattern in ("stripes", "checks"):
        for y in range(step // 2, height, step):
            pen.rectangle((0, y, width, y + step // 2), fill=outfit.accent)
    if outfit.pattern == "checks":
        dark = darker(outfit.accent, 0.25)
        for x in range(step // 2, width, step):
            pen.rectangle((x, 0, x + step // 5, height), fill=dark)
    if outfit.pattern == "logo" and logo:
        middle, top, r = width / 2, 0.38 * height, 0.17 * width
        pen.ellipse((middle - r, top - r, middle + r, top + r), fill=outfit.accent)
        bar = (middle - r, top + 1.25 * r, middle + r, top + 1.5 * r)
        pen.rectangle(bar, fill=outfit.accent)
    return cloth


def _arms(canvas: Canvas, frame: Frame, person: Person, outfit: Outfit, shot: Shot) -> None:
    cloth: Colour = outfit.jacket or outfit.top
    covered = outfit.long_sleeves or outfit.jacket is not None
    for side, arm, bend in zip((-1, 1), shot.pose.arms, shot.pose.elbows, strict=True):
        shoulder = complex(side * 0.1 * person.shoulders, SHOULDERS + 0.015)
        elbow = shoulder + 0.165j * np.exp(-1j * side * arm)
        wrist = elbow + 0.15j * np.exp(-1j * side * (arm - bend))
        hand = wrist + 0.018j * np.exp(-1j * side * (arm - bend))
        shade = darker(cloth, 0.14 if side < 0 else 0.08)
        canvas.polygon(frame(ellipse(hand, 0.02, 0.024)), person.look.skin, Label.SKIN)
        colour, label = (shade, Label.CLOTHES) if covered else (person.look.skin, Label.SKIN)
        canvas.polygon(frame(capsule(elbow, wrist, 0.024, 0.019)), colour, label)
        canvas.polygon(frame(capsule(shoulder, elbow, 0.03, 0.024)), colour, label)
        if not covered:
            hem = shoulder + 0.55 * (elbow - shoulder)
            canvas.polygon(frame(capsule(shoulder, hem, 0.034, 0.034)), shade, Label.CLOTHES)
