"""Draws a head from the front, turned a little, or from behind."""

from __future__ import annotations

import numpy as np

from deskpro.stages.data.benchmark.canvas import (
    Canvas,
    Colour,
    Frame,
    Label,
    Points,
    blend,
    darker,
    ellipse,
    points,
    smooth,
)
from deskpro.stages.data.benchmark.people import Face, Person
from deskpro.stages.data.benchmark.scene import Pose

WHITE: Colour = (246, 244, 240)
INK: Colour = (34, 28, 28)


class Head:
    """The head of somebody in a pose. The unit of `frame` is half the head's height."""

    def __init__(self, canvas: Canvas, frame: Frame, person: Person, pose: Pose) -> None:
        self.canvas, self.frame, self.person, self.pose = canvas, frame, person, pose
        self.face = person.face
        self.outline = outline(person.face)

    def draw_hair_behind(self) -> None:
        """Hair that falls behind the neck: to be drawn before the neck."""
        face, volume = self.face, self.face.hair_volume
        wide = face.width * volume + 0.06
        shift = -0.1 * np.sin(self.pose.yaw)
        dark = darker(self.person.look.hair, 0.18)
        if self.person.look.hair_style == "bun":
            bun = ellipse(complex(shift, -1.1), 0.3 * volume, 0.27 * volume)
            self._fill(bun, dark, Label.HAIR)
        ends = {"bob": 0.85, "long": 1.55}
        if self.person.look.hair_style in ends:
            end = ends[self.person.look.hair_style] + face.hair_arch
            half = [(0.5 * wide, -1.0), (wide, -0.45), (wide + 0.05, 0.3), (0.95 * wide, end)]
            pairs = half + [(-x, y) for x, y in reversed(half)]
            self._fill(smooth(points(*pairs) + shift), dark, Label.HAIR)

    def draw_front(self) -> None:
        """The face with everything on it."""
        skin = self.person.look.skin
        self._ears()
        self._fill(self.outline, skin)
        self._cheeks()
        self._beard()
        self._nose()
        self._mouth()
        self._eyes()
        self._hair()
        self._glasses()

    def draw_back(self) -> None:
        """The back of the head: hair, and the ears unless the hair covers them."""
        person, volume = self.person, self.face.hair_volume
        long = person.look.hair_style in ("bob", "long")
        # Ears and nape are head, but no face: hair is the class for that.
        if not long:
            self._ears(Label.HAIR)
        self._fill(self.outline, person.look.skin, Label.HAIR)
        crown = self.outline * (volume if person.look.hair_style != "cropped" else 1.02)
        end = {"bob": 0.85, "long": 1.55}.get(person.look.hair_style, 0.55)
        low = np.where(crown.imag > 0, crown.imag * end, crown.imag)
        self._fill(crown.real + 1j * low, person.look.hair, Label.HAIR)
        if person.look.hair_style == "bun":
            bun = ellipse(-0.55j, 0.3 * volume, 0.28 * volume)
            self._fill(bun, darker(person.look.hair, 0.2), Label.HAIR)
        shade = darker(person.look.hair, 0.12)
        for x in (-0.3, 0.0, 0.3):
            strand = points((x * 0.6, -0.75), (x, -0.2), (x * 1.1, 0.5 * end))
            self._stroke(strand, 0.025, shade, Label.HAIR)

    def _turned(self, local: Points | complex, depth: float = 0.0) -> Points:
        """Points on the face's surface, moved as the head's turn and nod move them."""
        local = np.asarray(local, dtype=np.complex128)
        width = self.face.width
        z = 0.75 * np.sqrt(np.clip(width**2 - local.real**2, 0, None)) + depth
        x = local.real * np.cos(self.pose.yaw) + z * np.sin(self.pose.yaw)
        return np.asarray(x + 1j * (local.imag + self.pose.pitch * (1 + depth)))

    def _fill(self, local: Points, colour: Colour, label: Label = Label.FACE) -> None:
        self.canvas.polygon(self.frame(local), colour, label)

    def _stroke(
        self, local: Points, width: float, colour: Colour, label: Label = Label.FACE
    ) -> None:
        self.canvas.line(self.frame(local), width * self.frame.scale, colour, label)

    def _ears(self, label: Label = Label.FACE) -> None:
        face, yaw = self.face, self.pose.yaw
        for side in (-1, 1):
            x = side * (face.width + 0.25 * face.ear_angle * face.ear_size) - 0.3 * np.sin(yaw)
            centre = complex(x, face.eye_height + 0.12)
            wide = face.ear_size * (0.45 + face.ear_angle)
            skin = self.person.look.skin
            self._fill(ellipse(centre, wide, face.ear_size), darker(skin, 0.06), label)
            inner = ellipse(centre, 0.5 * wide, 0.6 * face.ear_size)
            self._fill(inner, darker(skin, 0.18), label)

    def _cheeks(self) -> None:
        face, person = self.face, self.person
        rosy = blend(person.look.skin, (214, 92, 84), face.blush)
        for side in (-1, 1):
            centre = complex(side * 0.62 * face.width, face.eye_height + 0.34)
            self._fill(self._turned(ellipse(centre, 0.14, 0.1)), rosy)
        spot = blend(person.look.skin, (110, 60, 40), 0.45)
        if person.freckles:
            for side in (-1, 1):
                for dx, dy in ((0.0, 0.0), (0.09, 0.05), (0.05, -0.06), (0.14, -0.02)):
                    at = complex(side * (0.22 + dx), face.eye_height + 0.28 + dy)
                    self._fill(self._turned(ellipse(at, 0.018, 0.018, 8)), spot)
        if person.mole:
            at = complex(face.mole_x * face.width, face.mole_y)
            self._fill(self._turned(ellipse(at, 0.035, 0.035, 10)), darker(spot, 0.35))

    def _beard(self) -> None:
        face, person = self.face, self.person
        colour = blend(person.brows, person.look.skin, 0.25)
        if person.look.beard:
            top = 0.72 - 0.5 * person.look.beard
            jaw = self.outline[self.outline.imag > top]
            jaw = jaw[np.argsort(-jaw.real)]
            inner = self._turned(
                points((-0.8 * face.width, top + 0.06), (-0.42, face.mouth_height - 0.1),
                       (0.0, face.mouth_height - 0.14), (0.42, face.mouth_height - 0.1),
                       (0.8 * face.width, top + 0.06))
            )  # fmt: skip
            self._fill(np.concatenate([jaw, inner]), colour)
        if person.look.moustache:
            y = face.mouth_height - face.lip_thickness - 0.06
            wide = 0.75 * face.mouth_width + 0.05
            shape = points((0, y - 0.06), (wide, y + 0.03), (0.9 * wide, y + 0.07), (0, y + 0.03),
                           (-0.9 * wide, y + 0.07), (-wide, y + 0.03))  # fmt: skip
            self._fill(self._turned(shape), darker(colour, 0.1))

    def _nose(self) -> None:
        face = self.face
        top, tip = face.eye_height + 0.04, face.eye_height + face.nose_length
        shade = darker(self.person.look.skin, 0.13)
        wide = face.nose_width
        bridge = self._turned(points((0.3 * wide, top)), 0.08)
        point = self._turned(points((0.15 * wide, tip)), 0.3)
        wing = self._turned(points((wide, tip + face.nose_tip)), 0.14)
        self._fill(np.concatenate([bridge, wing, point]), shade)
        base = points((-wide, 0), (-0.6 * wide, -0.06), (0.6 * wide, -0.06), (wide, 0),
                      (0.5 * wide, 0.05), (-0.5 * wide, 0.05))  # fmt: skip
        self._fill(self._turned(base + 1j * (tip + face.nose_tip), 0.16), shade)
        for side in (-1, 1):
            at = complex(side * 0.5 * wide, tip + face.nose_tip + 0.015)
            nostril = ellipse(at, 0.24 * wide, 0.02, 12)
            self._fill(self._turned(nostril, 0.18), darker(self.person.look.skin, 0.45))

    def _mouth(self) -> None:
        face, pose, person = self.face, self.pose, self.person
        x = np.linspace(-1, 1, 15)
        curve = (face.mouth_curve + pose.smile) * (1 - x**2)
        arch = 1 - x**2
        bow = arch * (1 - 0.35 * np.exp(-((x / 0.22) ** 2)))
        line = face.mouth_width * x + 1j * (face.mouth_height + curve)
        thick, gap = face.lip_thickness, pose.mouth_open
        upper = line - 1j * (0.8 * thick * bow + gap * arch)
        lower = line + 1j * (thick * arch + gap * arch)
        self._fill(self._turned(np.concatenate([upper, lower[::-1]]), 0.06), person.lips)
        slit = max(0.012, gap)
        inside = np.concatenate([line - 1j * slit * arch, (line + 1j * slit * arch)[::-1]])
        self._fill(self._turned(inside, 0.06), darker(person.lips, 0.55))
        if gap > 0.03:
            teeth = np.concatenate([line - 1j * gap * arch, (line - 0.3j * gap * arch)[::-1]])
            self._fill(self._turned(0.8 * (teeth - teeth.mean()) + teeth.mean(), 0.06), WHITE)

    def _eyes(self) -> None:
        face, pose, person = self.face, self.pose, self.person
        x = np.linspace(-1, 1, 15)
        high = face.eye_opening * pose.eye_open
        for side in (-1, 1):
            centre = complex(side * face.eye_distance, face.eye_height)
            slant = np.exp(1j * side * face.eye_slant * -1)
            lid = face.eye_width * x - 1j * high * (1 - x**2)
            white = np.concatenate([lid, lid.conj()[::-1]])
            ball = self._turned(centre + white * slant)
            self._fill(ball, WHITE)
            look = pose.gaze * 0.35 * face.eye_width
            for radius, colour in ((face.iris, person.eyes), (0.5 * face.iris, INK)):
                disc = ellipse(look, radius, radius)
                limit = high * np.clip(1 - (disc.real / face.eye_width) ** 2, 0, 1)
                inside = disc.real + 1j * np.clip(disc.imag, -limit, limit)
                self._fill(self._turned(centre + inside * slant), colour)
            self._stroke(self._turned(centre + lid * slant), 0.035, INK)
            tilt = np.exp(1j * side * face.brow_tilt)
            hair = face.brow_width * x - 1j * face.brow_arch * (1 - x**2)
            thick = face.brow_thickness * (1 - 0.55 * np.clip(side * x, 0, 1))
            brow = np.concatenate([hair - 0.5j * thick, (hair + 0.5j * thick)[::-1]])
            middle = centre - 1j * face.brow_height + side * 0.03
            self._fill(self._turned(middle + brow * tilt), person.brows)

    def _hair(self) -> None:
        face, person, yaw = self.face, self.person, self.pose.yaw
        style = person.look.hair_style
        volume = {"cropped": 1.02, "bun": 1.04}.get(style, face.hair_volume)
        side_end = {"cropped": -0.18, "bun": -0.1, "bob": 0.55, "long": 0.75}.get(style, 0.02)
        shell = self.outline * volume
        shell = shell[shell.imag < side_end]
        # From the right side over the crown to the left: the outline runs clockwise from the right.
        shell = shell[np.argsort(np.angle(1j * (shell - 0.3j)))][::-1]
        x = np.linspace(-0.93, 0.93, 25)
        line = face.hairline - face.hair_arch * (1 - x**2)
        if style in ("parted", "long", "bob"):
            line = line + 0.16 * np.abs(x - face.hair_part) - 0.12
        elif style == "short":
            line = line + 0.1 * face.hair_part * x
        line = line + 0.5 * np.abs(x) ** 6 * (side_end - line).clip(0)
        edge = self._turned(face.width * x + 1j * line)
        side = 0.95 * face.width
        temples = self._turned(points((-side, side_end), (side, side_end)))
        rim = abs(shell.real).max()
        temples = np.clip(temples.real, -rim, rim) + 1j * temples.imag
        front = np.concatenate([temples[:1], edge, temples[1:]])
        self._fill(np.concatenate([shell, front]), person.look.hair, Label.HAIR)
        lighter = blend(person.look.hair, (255, 240, 220), 0.14)
        gleam = points((-0.5, -0.72), (-0.25, -0.84), (0.05, -0.87)) * volume
        self._stroke(gleam + 0.15 * np.sin(yaw), 0.05, lighter, Label.HAIR)

    def _glasses(self) -> None:
        face, person = self.face, self.person
        if not person.look.glasses:
            return
        wide = 0.9 * face.eye_distance
        ring = ellipse(0, wide * 0.82, wide * 0.82 * person.look.glasses, 24)
        for side in (-1, 1):
            centre = complex(side * face.eye_distance, face.eye_height + 0.02)
            rim = self._turned(np.append(ring, ring[0]) + centre, 0.05)
            self._stroke(rim, 0.04, INK)
            outer = complex(side * (face.eye_distance + 0.82 * wide), face.eye_height)
            bow = np.append(self._turned(outer, 0.05), self._turned(side * face.width * 0.98 + 0j))
            self._stroke(bow + np.array([0, 1j * face.eye_height]), 0.035, INK)
        inner = face.eye_distance - 0.82 * wide
        bridge = points((-inner, face.eye_height), (inner, face.eye_height))
        self._stroke(self._turned(bridge, 0.1), 0.04, INK)


def outline(face: Face, count: int = 72) -> Points:
    """The outline of a head from the front, clockwise from the right, crown -1j, chin 1j."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    across, down = np.cos(angle), np.sin(angle)
    # Below the eyes the jaw decides: near 0.5 is square, above 1 is pointed.
    power = np.where(down > 0, face.jaw, 0.85)
    x = face.width * np.sign(across) * np.abs(across) ** power
    x = x * (1 + face.cheek * np.exp(-(((down - 0.35) / 0.25) ** 2)))
    return np.asarray(x + 1j * down)
