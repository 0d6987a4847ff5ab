"""Step 2: the mask from the label map."""

from __future__ import annotations

from collections.abc import Mapping

from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.schemes import CHANNELS, SCHEMES, mask
from deskpro.stages.preparation.step import Outcome, Step, png, read_labels


class Regions(Step):
    """Red the head, green the clothes, blue other skin, each 0 or 255, by the scheme's table."""

    name, reads, writes = "mask", ("labels",), "mask"

    def provenance(self) -> Mapping[str, object]:
        classes = SCHEMES[self.settings.parsing.scheme].classes
        return {"method": "regions", "classes": classes, "version": 1}

    def make(self, sample: Sample) -> Outcome:
        labels = read_labels(self.path("labels", sample))
        drawn = mask(labels, SCHEMES[self.settings.parsing.scheme])
        shares = (drawn > 0).mean(axis=(0, 1)).tolist()
        facts = {f"{name}_share": round(s, 4) for name, s in zip(CHANNELS, shares, strict=True)}
        return Outcome(png(drawn), facts)


MASKS: dict[str, type[Step]] = {"regions": Regions}
