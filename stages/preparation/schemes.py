"""The classes of human parsers, and the channel of the mask that each belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHANNELS = ("head", "clothes", "skin")
"""Channels of a mask: red, green, blue. A class of none of them is background."""

FACE = "Face"
"""The class of a visible face, in schemes that have one."""

_HEAD = {"Hat", "Hair", "Sunglasses", FACE, "Head"}
_SKIN = {"Left-arm", "Right-arm", "Left-leg", "Right-leg", "Torso-skin", "Lower-arms"}
"""Of the classes of all schemes; the others but Background are clothes."""


@dataclass(frozen=True)
class Scheme:
    """The classes of a parser, by id; source: where they are published."""

    title: str
    names: tuple[str, ...]
    source: str

    @property
    def classes(self) -> tuple[tuple[str, str], ...]:
        """Each class with its channel; "" is background."""
        channels = dict.fromkeys(_HEAD, "head") | dict.fromkeys(_SKIN, "skin") | {"Background": ""}
        return tuple((name, channels.get(name, "clothes")) for name in self.names)

    @property
    def face(self) -> int | None:
        """The id of the face; None where the scheme has no class apart from the head."""
        return self.names.index(FACE) if FACE in self.names else None

    def ids(self, channel: str) -> list[int]:
        """The classes of a channel of the mask."""
        return [i for i, (_, of) in enumerate(self.classes) if of == channel]

    def region(self, labels: np.ndarray, channel: str) -> np.ndarray:
        """Where a label map, uint8 [H, W], has a class of a channel: bool [H, W]."""
        return np.isin(labels, self.ids(channel))

    def mask(self, labels: np.ndarray) -> np.ndarray:
        """The mask of a label map, uint8 [H, W]: uint8 [H, W, 3] of 0 and 255, see `CHANNELS`."""
        regions = [self.region(labels, channel) for channel in CHANNELS]
        return 255 * np.stack(regions, axis=-1).astype(np.uint8)


SCHEMES: dict[str, Scheme] = {
    "lip": Scheme(
        "LIP",
        (
            "Background", "Hat", "Hair", "Glove", "Sunglasses", "Upper-clothes", "Dress", "Coat",
            "Socks", "Pants", "Jumpsuits", "Scarf", "Skirt", FACE, "Left-arm", "Right-arm",
            "Left-leg", "Right-leg", "Left-shoe", "Right-shoe",
        ),
        "Gong et al., Look into Person, CVPR 2017",
    ),
    "atr": Scheme(
        "ATR",
        (
            "Background", "Hat", "Hair", "Sunglasses", "Upper-clothes", "Skirt", "Pants", "Dress",
            "Belt", "Left-shoe", "Right-shoe", FACE, "Left-leg", "Right-leg", "Left-arm",
            "Right-arm", "Bag", "Scarf",
        ),
        "Liang et al., Deep Human Parsing with Active Template Regression, TPAMI 2015",
    ),
    # It has no classes for clothes and skin: what clothes usually cover counts as clothes.
    "pascal": Scheme(
        "Pascal-Person-Part",
        (
            "Background", "Head", "Torso", "Upper-arms", "Lower-arms", "Upper-legs", "Lower-legs",
        ),
        "Chen et al., Detect What You Can, CVPR 2014",
    ),
    "cihp": Scheme(
        "CIHP",
        (
            "Background", "Hat", "Hair", "Glove", "Sunglasses", "Upper-clothes", "Dress", "Coat",
            "Socks", "Pants", "Torso-skin", "Scarf", "Skirt", FACE, "Left-arm", "Right-arm",
            "Left-leg", "Right-leg", "Left-shoe", "Right-shoe",
        ),
        "Gong et al., Instance-level Human Parsing via Part Grouping Network, ECCV 2018",
    ),
}  # fmt: skip
