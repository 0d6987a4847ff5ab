"""The methods of the four steps, in order: step → name → class."""

from __future__ import annotations

from deskpro.stages.preparation.faces import FACES
from deskpro.stages.preparation.masks import MASKS
from deskpro.stages.preparation.parsing import PARSERS
from deskpro.stages.preparation.restoration import RESTORERS
from deskpro.stages.preparation.step import Step

METHODS: dict[str, dict[str, type[Step]]] = {
    "parsing": PARSERS,
    "mask": MASKS,
    "face": FACES,
    "restoration": RESTORERS,
}
