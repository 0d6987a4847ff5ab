"""Every method of every step, with what it needs, to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from deskpro.stages.preparation.faces import BOXES
from deskpro.stages.preparation.masks import MASKS
from deskpro.stages.preparation.parsing import PARSERS
from deskpro.stages.preparation.restoration import RESTORERS


class Method(NamedTuple):
    """A way of doing a step."""

    does: str
    needs: tuple[str, ...]
    """Packages beyond those of the pipeline."""


_NEEDS = {
    "segformer": ("transformers",),
    "head": ("scipy",),
    "yunet": ("cv2",),
    "spandrel": ("spandrel", "spandrel_extra_arches"),
}

_REGISTRIES: dict[str, Mapping[str, object]] = {
    "parsing": PARSERS,
    "mask": MASKS,
    "face": BOXES,
    "restoration": RESTORERS,
}

METHODS: dict[str, dict[str, Method]] = {
    step: {
        name: Method((made.__doc__ or "").strip().splitlines()[0], _NEEDS.get(name, ()))
        for name, made in registry.items()
    }
    for step, registry in _REGISTRIES.items()
}
