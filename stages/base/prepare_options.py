"""The options of preparation: the section `prepare` of a recipe. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib import import_module
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from deskpro.stages.base.section import FilePath, Fraction, Positive, Section


def one_of(name: str, known: Collection[str]) -> str:
    """The name, if it is a known one; ValueError otherwise."""
    if name not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return name


def _known(module: str, registry: str) -> AfterValidator:
    """A name in a registry of `stages.preparation`, which is imported when it is asked."""
    return AfterValidator(
        lambda name: one_of(name, getattr(import_module(f"stages.preparation.{module}"), registry))
    )


class Own(Section):
    """How a folder of one's own is read: who, where, and what is held out."""

    name: str = r"(?P<pid>[^/]+)/.*"
    """Regular expression that an image's whole path below the root must match. Group pid, and
    where known camid, clothes, split (train, query, gallery). Without camid each image of an
    identity counts as a camera of its own."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the identities held out for query and gallery, where the name has no split."""
    query: Positive = 1
    """Images that are queries, of each held-out identity and camera; the rest is gallery."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides who is held out, and which images are queries."""

    @field_validator("name")
    @classmethod
    def _known_groups(cls, name: str) -> str:
        try:
            groups = set(re.compile(name).groupindex)
        except re.error as error:
            raise ValueError(f"must be a regular expression: {error}") from None
        if "pid" not in groups or groups - {"pid", "camid", "clothes", "split"}:
            raise ValueError(
                "needs the group (?P<pid>…), and may have camid, clothes, split; it has "
                + (", ".join(sorted(groups)) or "none")
            )
        return name


class Parsing(Section):
    """Step 1: a label map for every body image."""

    method: Annotated[str, _known("parsing", "PARSERS")] = "labels"
    """labels reads label maps that exist, segformer makes them."""
    scheme: Annotated[str, _known("schemes", "SCHEMES")] = "atr"
    """What the class ids mean; `deskpro prepare --explain` shows the table."""
    labels: FilePath | None = None
    """For labels: the folder of PNGs of one channel, below it the paths of the body images."""
    model: str | None = None
    """For segformer: a local folder in the format of transformers, or a name on its hub."""


class Mask(Section):
    """Step 2: the mask from the label map."""

    method: Annotated[str, _known("masks", "MASKS")] = "regions"
    """regions: head, clothes and other skin, as the scheme's table says."""


class FaceBox(Section):
    """Step 3: where the face is."""

    method: Annotated[str, _known("faces", "BOXES")] = "head"
    """head takes the square about the head region of the label map, yunet asks a detector."""
    model: FilePath | None = None
    """For yunet: its ONNX file."""
    margin: Annotated[float, Field(ge=0, le=2)] = 0.15
    """Room on each side of what was found, as a share of its longer side."""
    min_side: Positive = 8
    """A smaller box, in pixels, is no face."""
    visible: Fraction = 0.1
    """For head: the least share of the head region that must be face, where the scheme tells."""
    score: Fraction = 0.6
    """For yunet: the least confidence."""
    height: Annotated[int, Field(ge=32, le=4096)] = 512
    """For yunet: body images that are lower are enlarged to this height first."""
    inside_head: bool = True
    """For yunet: a face whose centre lies outside the head region of the label map is dropped."""


class Restoration(Section):
    """Step 4: the HR face."""

    method: Annotated[str, _known("restoration", "RESTORERS")] = "bicubic"
    """bicubic enlarges and restores nothing; spandrel runs a network; images cuts the face from
    HR body images."""
    model: FilePath | None = None
    """For spandrel: the network's file (GFPGAN, RestoreFormer, CodeFormer, …)."""
    pictures: FilePath | None = None
    """For pictures: the folder of HR body images, below it the paths of the body images."""
    size: Annotated[int, Field(ge=16, le=2048)] = 224
    """Side of the HR face of bicubic and images; a network's is its own."""


STEPS = ("parsing", "mask", "face", "restoration")


class Prepare(Section):
    """From a raw dataset to the prepared layout in `data.root`."""

    root: FilePath | None = None
    """The raw dataset, laid out as `data_train` says; where not given, the images that are in
    `data.root` already."""
    own: Own = Own()
    """How `root` is read where `data_train` is own."""
    steps: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = STEPS
    """Which steps are done; what the others would make is taken as it is."""
    parsing: Parsing = Parsing()
    mask: Mask = Mask()
    face: FaceBox = FaceBox()
    restoration: Restoration = Restoration()
    unusable: Literal["refuse", "leave-out"] = "refuse"
    """Images that can't be read, or whose label map is missing, of another size or has an unknown
    class: an error, or left out and listed."""
    batch: Positive = 16
    """Images that go through a network at a time, and are kept together when interrupted."""
    shown: Annotated[int, Field(ge=0, le=500)] = 24
    """Random, and as many doubtful, images on the contact sheet."""

    @field_validator("steps")
    @classmethod
    def _known_steps(cls, steps: tuple[str, ...]) -> tuple[str, ...]:
        for name in steps:
            one_of(name, STEPS)
        return tuple(name for name in STEPS if name in steps)
