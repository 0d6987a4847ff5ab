"""Step 2: the mask from the label map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deskpro.stages.preparation.samples import Places, Sample
from deskpro.stages.preparation.schemes import CHANNELS, Scheme, mask
from deskpro.stages.preparation.step import Outcome, Step, outcomes, png, read_labels


class Regions:
    """Red the head, green the clothes, blue other skin, each 0 or 255, by the scheme's table."""

    name = "mask"

    def __init__(self, places: Places, scheme: Scheme) -> None:
        self.places, self.scheme = places, scheme

    def provenance(self) -> Mapping[str, object]:
        return {"method": "regions", "classes": self.scheme.classes, "version": 1}

    def needs(self, sample: Sample) -> Sequence[Path]:
        return [self.places.labels(sample.id)]

    def makes(self, sample: Sample) -> Sequence[Path]:
        return [self.places.mask(sample.id)]

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return outcomes(self._draw, samples)

    def _draw(self, sample: Sample) -> Outcome:
        drawn = mask(read_labels(self.places.labels(sample.id)), self.scheme)
        shares = (drawn > 0).mean(axis=(0, 1)).tolist()
        facts = {f"{name}_share": round(s, 4) for name, s in zip(CHANNELS, shares, strict=True)}
        return Outcome({self.places.mask(sample.id): png(drawn)}, facts)


MASKS: dict[str, Callable[[Places, Scheme], Step]] = {"regions": Regions}
