"""Before the four steps: raw body images are taken over, upright, as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from deskpro.stages.preparation.samples import Places, Sample
from deskpro.stages.preparation.step import Outcome, jpeg, outcomes, png, read_image

_ORIENTATION = 0x0112
"""EXIF's tag of which way is up."""


class Bodies:
    """The file itself where it is upright; else the upright image, in the same format."""

    name = "body"

    def __init__(self, places: Places) -> None:
        self.places = places

    def provenance(self) -> Mapping[str, object]:
        return {"version": 1}

    def needs(self, sample: Sample) -> Sequence[Path]:
        return [sample.source]

    def makes(self, sample: Sample) -> Sequence[Path]:
        return [self.places.body(sample.id)]

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return outcomes(self._take, samples)

    def _take(self, sample: Sample) -> Outcome:
        image = read_image(sample.source)  # decoded to the end: a cut file is found here
        if image.size[0] < 2 or image.size[1] < 2:
            return Outcome(problem=f"{sample.source}: {image.width}×{image.height} pixels")
        with Image.open(sample.source) as opened:
            turned = opened.getexif().get(_ORIENTATION, 1) != 1
        if not turned:
            content = sample.source.read_bytes()
        elif sample.source.suffix.lower() == ".png":
            content = png(image)
        else:
            content = jpeg(image)
        facts = {"width": image.width, "height": image.height, "turned": turned}
        return Outcome({self.places.body(sample.id): content}, facts)
