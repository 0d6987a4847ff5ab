"""Before the four steps: the raw body images are copied, upright."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.step import Outcome, Step, jpeg, png, read_image

_ORIENTATION = 0x0112
"""EXIF's tag of which way is up."""


class Bodies(Step):
    """The file itself if it is upright; else the upright image, in the same format."""

    name, reads, writes = "body", (), "imgs"

    def provenance(self) -> Mapping[str, object]:
        return {"version": 1}

    def inputs(self, sample: Sample) -> list[Path]:
        return [sample.source]

    def make(self, sample: Sample) -> Outcome:
        image = read_image(sample.source)  # decoded to the end: a truncated file is found here
        if min(image.size) < 2:
            return Outcome(problem=f"{sample.source}: {image.width}×{image.height} pixels")
        with Image.open(sample.source) as opened:
            turned = opened.getexif().get(_ORIENTATION, 1) != 1
        if not turned:
            content = sample.source.read_bytes()
        else:
            content = png(image) if sample.source.suffix.lower() == ".png" else jpeg(image)
        facts = {"width": image.width, "height": image.height, "turned": turned}
        return Outcome(content, facts)
