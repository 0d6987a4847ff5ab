"""Before the four steps: the raw body images are copied, upright."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image

from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.step import Outcome, Step, encode, read_image


class Bodies(Step):
    """The file itself if it is upright; else the upright image, as JPEG if it was one, or PNG."""

    name, reads, writes = "body", (), "imgs"

    def provenance(self) -> dict[str, object]:
        return {"version": 1}

    def inputs(self, sample: Sample) -> list[Path]:
        return [sample.source]

    def make(self, sample: Sample) -> Outcome:
        image = read_image(sample.source)  # decoded to the end: a truncated file is found here
        if min(image.size) < 2:
            return Outcome(problem=f"{sample.source}: {image.width}×{image.height} pixels")
        with Image.open(sample.source) as opened:
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
        kind = "JPEG" if sample.source.suffix.lower() in (".jpg", ".jpeg") else "PNG"
        content = encode(image, kind) if turned else sample.source.read_bytes()
        facts = {"width": image.width, "height": image.height, "turned": turned}
        return Outcome(content, facts)
