"""How large and how hard the synthetic benchmark is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from deskpro.stages.base.section import Count, Positive, Section, Several

Pixels = Annotated[int, Field(ge=24, le=1024)]
Share = Annotated[float, Field(ge=0, le=0.5)]

_LIMITS: dict[str, Callable[[dict[str, Any]], tuple[int, int]]] = {
    "outfits_per_identity": lambda so_far: (2, so_far["outfits"]),
    # Two or more others wear each query's outfit in the gallery.
    "test_identities": lambda so_far: (
        -(-2 // -(-so_far["outfits_per_identity"] // 2)) * so_far["outfits"], 10**6
    ),
    "gallery_images": lambda so_far: (-(-so_far["outfits_per_identity"] // 2), 10**4),
    "body_width": lambda so_far: (-(-2 * so_far["body_height"] // 5), so_far["body_height"]),
    "high_height": lambda so_far: (so_far["low_height"], 1024),
}  # fmt: skip
"""Least and largest value, by the options before."""


class BenchmarkOptions(Section):
    """Size and difficulty of the synthetic benchmark. Everything in it follows from these values.

    Raises:
        ValidationError: a value is impossible; it names the option.
    """

    model_config = ConfigDict(validate_default=True)  # a value may not fit another's default

    seed: Count = 0
    """Another seed is another world: other people, outfits, cameras and images."""

    cameras: Annotated[int, Field(ge=2, le=64)] = 4
    """Cameras, each with a background, colours and sharpness of its own."""
    outfits: Annotated[int, Field(ge=3, le=999)] = 24
    """Outfits in all. Every one is worn by many people, in training and in test."""
    outfits_per_identity: Several = 8
    """Outfits each person owns. In test, half of them (rounded down) are worn in `query` only."""

    train_identities: Positive = 240
    """People in `bounding_box_train`."""
    train_images: Positive = 8
    """Images of each training identity."""
    test_identities: Annotated[int, Field(ge=3, le=10**6)] = 120
    """People in `query` and `bounding_box_test`, none of whom is in training."""
    query_images: Positive = 3
    """Images of each test identity in `query`."""
    gallery_images: Several = 8
    """Images of each test identity in `bounding_box_test`."""
    train_back_views: Share = 0.2
    """Share of each training identity's images that show it from behind: no face files."""
    query_back_views: Share = 0.3
    """The same of each test identity's in `query`."""
    gallery_back_views: Share = 0.1
    """The same in `bounding_box_test`, where a face can find none of them."""

    body_height: Pixels = 192
    """Height of the stored body images and masks, in pixels."""
    body_width: Pixels = 96
    """Width of the stored body images and masks, in pixels."""
    face_size: Annotated[int, Field(ge=16, le=512)] = 112
    """Side of the stored face images, in pixels."""
    low_height: Pixels = 80
    """Height in pixels that the poorest camera really resolves, before enlargement."""
    high_height: Pixels = 128
    """Height in pixels that the best camera really resolves, before enlargement."""
    degradation: Annotated[float, Field(ge=0, le=3)] = 1.0
    """Strength of blur, noise, compression and tint of the cameras. 0 is a perfect camera."""

    @field_validator("outfits_per_identity", "test_identities", "gallery_images", "body_width",
                     "high_height")  # fmt: skip
    @classmethod
    def _fits(cls, value: int, info: ValidationInfo) -> int:
        """Refuse what doesn't fit the options before it, unless one of them is refused itself."""
        with suppress(KeyError):
            low, high = _LIMITS[str(info.field_name)](info.data)
            if not low <= value <= high:
                raise ValueError(f"must be between {low} and {high}")
        return value
