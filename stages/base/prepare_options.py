"""The options of preparation: the section `prepare` of a recipe. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from deskpro.stages.base.names import require_groups
from deskpro.stages.base.section import (
    SHOWN,
    Count,
    Fraction,
    InputPath,
    NoEffect,
    Positive,
    Section,
)

StepName = Literal["parsing", "mask", "face", "restoration"]
STEPS: tuple[StepName, ...] = get_args(StepName)


class Own(Section):
    """How a folder of your own images is read: identities, cameras, what is held out."""

    name: str = r"(?P<pid>[^/]+)/.*"
    """Regular expression that an image's whole path below the root must match. Group pid, and
    optionally camid, clothes, split (train, query, gallery). Without camid each image of an
    identity counts as a camera."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the identities held out for query and gallery, where the name has no split."""
    query: Positive = 1
    """Images that are queries, of each held-out identity and camera; the rest is gallery."""
    seed: Count = 0
    """Decides which identities are held out, and which images are queries."""

    @field_validator("name")
    @classmethod
    def _known_groups(cls, name: str) -> str:
        return require_groups(name, ("camid", "clothes", "split"), r"(?P<pid>[^/]+)/.*")


class Parsing(Section):
    """Step 1: a label map for every body image."""

    method: Literal["labels", "segformer"] = "labels"
    """labels reads existing label maps, segformer computes them."""
    scheme: Literal["lip", "atr", "pascal", "cihp"] = "atr"
    """What the class ids mean; `deskpro prepare --explain` shows the table."""
    labels: InputPath = None
    """For labels: the folder of PNGs of one channel, below it the paths of the body images."""
    model: str | None = None
    """For segformer: a folder in the format of transformers, or hf:OWNER/NAME on Hugging Face's
    hub."""


class Mask(Section):
    """Step 2: the mask from the label map."""

    method: Literal["regions"] = "regions"
    """regions: head, clothes and other skin, by the scheme's table."""


class FaceBox(Section):
    """Step 3: where the face is."""

    method: Literal["head", "yunet"] = "head"
    """head: the square about the head region of the label map; yunet: a face detector."""
    model: InputPath = None
    """For yunet: its ONNX file."""
    margin: Annotated[float, Field(ge=0, le=2)] = 0.15
    """Room on each side of what was found, as a share of its longer side."""
    min_side: Positive = 8
    """A smaller box, in pixels, is no face."""
    visible: Fraction = 0.1
    """For head: the least share of the head region that must be face, where the scheme has it."""
    score: Fraction = 0.6
    """For yunet: the least confidence."""
    height: Annotated[int, Field(ge=32, le=4096)] = 512
    """For yunet: lower body images are first enlarged to this height."""
    inside_head: bool = True
    """For yunet: a face whose centre lies outside the head region of the label map is dropped."""


class Restoration(Section):
    """Step 4: the HR face."""

    method: Literal["bicubic", "spandrel", "pictures"] = "bicubic"
    """bicubic enlarges and restores nothing; spandrel runs a network; pictures cuts the face from
    HR body images."""
    model: InputPath = None
    """For spandrel: the network's file (GFPGAN, RestoreFormer, CodeFormer, …)."""
    pictures: InputPath = None
    """For pictures: the folder of HR body images, below it the paths of the body images."""
    size: Annotated[int, Field(ge=16, le=2048)] = 224
    """Side of the HR face of bicubic and pictures; a network has its own."""


class Prepare(Section):
    """From a raw dataset to the prepared layout in `data.root`."""

    root: InputPath = None
    """The raw dataset in the layout of `data_train`; null: the images already in `data.root`."""
    own: Own = Own()
    """How `root` is read if `data_train` is own."""
    steps: Annotated[tuple[StepName, ...], Field(strict=False, min_length=1)] = STEPS
    """The steps to run; files that the other steps would write are used if present."""
    parsing: Parsing = Parsing()
    mask: Mask = Mask()
    face: FaceBox = FaceBox()
    restoration: Restoration = Restoration()
    unusable: Literal["refuse", "leave-out"] = "refuse"
    """Images that cannot be read, or whose label map is missing, of another size or has an unknown
    class: an error, or left out and listed."""
    batch: Annotated[Positive, NoEffect("results don't depend on batches")] = 16
    """Images that go through a network at a time; an interruption costs at most one batch."""
    shown: Annotated[int, Field(ge=0, le=500), SHOWN] = 24
    """Random, and as many doubtful, images on the contact sheet."""

    @field_validator("steps")
    @classmethod
    def _in_order(cls, steps: tuple[StepName, ...]) -> tuple[StepName, ...]:
        return tuple(name for name in STEPS if name in steps)
