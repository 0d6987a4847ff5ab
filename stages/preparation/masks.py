"""Step 2: the mask from the label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.schemes import CHANNELS, SCHEMES, mask
from deskpro.stages.preparation.step import Outcome, Step, outcomes, png, read_labels


class Regions(Step):
    """Red the head, green the clothes, blue other skin, each 0 or 255, by the scheme's table."""

    name = "mask"

    def provenance(self) -> Mapping[str, object]:
        classes = SCHEMES[self.settings.parsing.scheme].classes
        return {"method": "regions", "classes": classes, "version": 1}

    def inputs(self, sample: Sample) -> Sequence[Path]:
        return [self.places.labels(sample.id)]

    def outputs(self, sample: Sample) -> Sequence[Path]:
        return [self.places.mask(sample.id)]

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return outcomes(self._draw, samples)

    def _draw(self, sample: Sample) -> Outcome:
        labels = read_labels(self.places.labels(sample.id))
        drawn = mask(labels, SCHEMES[self.settings.parsing.scheme])
        shares = (drawn > 0).mean(axis=(0, 1)).tolist()
        facts = {f"{name}_share": round(s, 4) for name, s in zip(CHANNELS, shares, strict=True)}
        return Outcome({self.places.mask(sample.id): png(drawn)}, facts)


MASKS: dict[str, type[Step]] = {"regions": Regions}
