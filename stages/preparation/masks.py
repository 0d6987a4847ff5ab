"""Step 2: the mask from the label map."""

from __future__ import annotations

from PIL import Image

from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.schemes import CHANNELS
from deskpro.stages.preparation.step import Outcome, Step, encode, read_labels


class Regions(Step):
    """Red the head, green the clothes, blue other skin, each 0 or 255, by the scheme's table."""

    name, reads, writes = "mask", ("labels",), "mask"

    def make(self, sample: Sample) -> Outcome:
        mask = self.scheme.mask(read_labels(self.path("labels", sample)))
        shares = (mask > 0).mean(axis=(0, 1)).tolist()
        facts = {f"{name}_share": round(s, 4) for name, s in zip(CHANNELS, shares, strict=True)}
        return Outcome(encode(Image.fromarray(mask)), facts)
