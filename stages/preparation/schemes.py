"""The classes of human parsers, and the channel of the mask that each belongs to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

CHANNELS = ("head", "clothes", "skin")
"""Channels of a mask: red, green, blue. A class of none of them is background."""

FACE = "Face"
"""The class of a visible face, in schemes that have one."""


@dataclass(frozen=True)
class Scheme:
    """The classes of a parser, by id, and the channel of each; "" is background."""

    title: str
    classes: tuple[tuple[str, str], ...]
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.classes)

    @property
    def face(self) -> int | None:
        """The id of the face; None where the scheme has no class apart from the head."""
        return self.names.index(FACE) if FACE in self.names else None

    def ids(self, channel: str) -> list[int]:
        """The classes of a channel of the mask."""
        return [i for i, (_, of) in enumerate(self.classes) if of == channel]


_BACKGROUND = ("Background", "")
_LIMBS = (("Left-arm", "skin"), ("Right-arm", "skin"), ("Left-leg", "skin"), ("Right-leg", "skin"))
_SHOES = (("Left-shoe", "clothes"), ("Right-shoe", "clothes"))

SCHEMES: dict[str, Scheme] = {
    "lip": Scheme(
        "LIP",
        (
            _BACKGROUND, ("Hat", "head"), ("Hair", "head"), ("Glove", "clothes"),
            ("Sunglasses", "head"), ("Upper-clothes", "clothes"), ("Dress", "clothes"),
            ("Coat", "clothes"), ("Socks", "clothes"), ("Pants", "clothes"),
            ("Jumpsuits", "clothes"), ("Scarf", "clothes"), ("Skirt", "clothes"), (FACE, "head"),
            *_LIMBS, *_SHOES,
        ),
        "Gong et al., Look into Person, CVPR 2017",
    ),
    "atr": Scheme(
        "ATR",
        (
            _BACKGROUND, ("Hat", "head"), ("Hair", "head"), ("Sunglasses", "head"),
            ("Upper-clothes", "clothes"), ("Skirt", "clothes"), ("Pants", "clothes"),
            ("Dress", "clothes"), ("Belt", "clothes"), *_SHOES, (FACE, "head"),
            ("Left-leg", "skin"), ("Right-leg", "skin"), ("Left-arm", "skin"),
            ("Right-arm", "skin"), ("Bag", "clothes"), ("Scarf", "clothes"),
        ),
        "Liang et al., Deep Human Parsing with Active Template Regression, TPAMI 2015",
    ),
    # It has no classes for clothes and skin: what clothes usually cover counts as clothes.
    "pascal": Scheme(
        "Pascal-Person-Part",
        (
            _BACKGROUND, ("Head", "head"), ("Torso", "clothes"), ("Upper-arms", "clothes"),
            ("Lower-arms", "skin"), ("Upper-legs", "clothes"), ("Lower-legs", "clothes"),
        ),
        "Chen et al., Detect What You Can, CVPR 2014",
    ),
    "cihp": Scheme(
        "CIHP",
        (
            _BACKGROUND, ("Hat", "head"), ("Hair", "head"), ("Glove", "clothes"),
            ("Sunglasses", "head"), ("Upper-clothes", "clothes"), ("Dress", "clothes"),
            ("Coat", "clothes"), ("Socks", "clothes"), ("Pants", "clothes"),
            ("Torso-skin", "skin"), ("Scarf", "clothes"), ("Skirt", "clothes"), (FACE, "head"),
            *_LIMBS, *_SHOES,
        ),
        "Gong et al., Instance-level Human Parsing via Part Grouping Network, ECCV 2018",
    ),
}  # fmt: skip


def unknown_classes(labels: np.ndarray, scheme: Scheme) -> list[int]:
    """The ids in a label map, uint8 [H, W], that the scheme lacks."""
    return [int(i) for i in np.unique(labels) if i >= len(scheme.classes)]


def region(labels: np.ndarray, ids: Collection[int]) -> np.ndarray:
    """Where a label map, uint8 [H, W], has one of some classes: bool [H, W]."""
    chosen = np.zeros(256, bool)
    chosen[list(ids)] = True
    return chosen[labels]


def mask(labels: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The mask of a label map, uint8 [H, W]: uint8 [H, W, 3] of 0 and 255, see `CHANNELS`."""
    regions = [region(labels, scheme.ids(channel)) for channel in CHANNELS]
    return np.stack([255 * each.astype(np.uint8) for each in regions], axis=-1)
