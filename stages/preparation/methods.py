"""The methods of the four steps, in order: step → name → class."""

from __future__ import annotations

from deskpro.stages.preparation.faces import Head, YuNet
from deskpro.stages.preparation.masks import Regions
from deskpro.stages.preparation.parsing import LabelFiles, SegFormer
from deskpro.stages.preparation.restoration import Bicubic, HighResolution, Spandrel
from deskpro.stages.preparation.step import Step

METHODS: dict[str, dict[str, type[Step]]] = {
    "parsing": {"labels": LabelFiles, "segformer": SegFormer},
    "mask": {"regions": Regions},
    "face": {"head": Head, "yunet": YuNet},
    "restoration": {"bicubic": Bicubic, "spandrel": Spandrel, "pictures": HighResolution},
}
