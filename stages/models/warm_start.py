"""Start a fresh network from weights that are at hand: OSNet's on ImageNet, or an earlier network.

OSNet files are those of torchreid's model zoo (Zhou et al., ICCV 2019): the trunk and all three
branches of an LMBN start from the same layers of it, as the published DeSKPro and LightMBN do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deskpro.stages.base.errors import InputError
from deskpro.stages.models import published
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import is_safetensors, load_student, load_teacher

_TRUNK = {"conv1.": "backbone.0.", "conv2.": "backbone.2.", "conv3.0.": "backbone.3."}
_REST = {
    "conv3.1.": "backbone2.0.1.",
    "conv3.2.": "backbone2.0.2.",
    "conv4.": "backbone2.1.",
    "conv5.": "backbone2.2.",
}
_BRANCHES = ("global_branch.", "part_branch.", "channel_branch.")


@dataclass(frozen=True)
class WarmStart:
    """What became of a network's tensors and of a file's."""

    loaded: list[str]
    """Tensors of the network that come from the file."""
    fresh: list[str]
    """Tensors of the network that the file doesn't have: heads, attention, classifiers."""
    unused: list[str]
    """Tensors of the file that the network has no place for."""

    def facts(self, path: Path) -> dict[str, Any]:
        """path; loaded and fresh, how many tensors; modules that are fresh; unused names."""
        return {
            "path": path,
            "loaded": len(self.loaded),
            "fresh": len(self.fresh),
            "modules": sorted({name.rsplit(".", 1)[0] for name in self.fresh}),
            "unused": self.unused,
        }


def warm_start(network: LMBN | Student, path: Path) -> WarmStart:
    """Load into `network`, in place, what fits of a weights file.

    From an OSNet file everything but its classifier; from an earlier teacher or student everything,
    but the classifiers where the identities are others. Raises InputError where a tensor has
    another shape (another width), or where an earlier network isn't of the same kind.
    """
    own = network.state_dict()
    tensors, unused = _tensors(network, path)
    fitting = {
        name: tensor
        for name, tensor in tensors.items()
        if name in own and (own[name].shape == tensor.shape or "classifier" not in name)
    }
    wrong = [
        f"{name} is {list(tensor.shape)}, must be {list(own[name].shape)}"
        for name, tensor in fitting.items()
        if own[name].shape != tensor.shape
    ]
    if wrong:
        raise InputError(
            f"{path}: doesn't fit this network, its width or feature_dim may be another:\n  "
            + "\n  ".join(wrong[:5] + [f"… and {len(wrong) - 5} more"] * (len(wrong) > 5))
        )
    network.load_state_dict({**own, **fitting})
    fresh = [name for name in own if name not in fitting]
    return WarmStart(sorted(fitting), fresh, sorted({*unused, *(tensors.keys() - fitting.keys())}))


def _tensors(network: LMBN | Student, path: Path) -> tuple[Mapping[str, torch.Tensor], list[str]]:
    """Tensors by the network's names, and the names in the file that have no place in it."""
    if not is_safetensors(path):
        state = {key.removeprefix("module."): t for key, t in published.read_state(path).items()}
        if "conv1.conv.weight" in state:
            prefixes = [""]
            if isinstance(network, Student):
                streams = {"lr_face_net.": network.lr_face_net, "nocloth_net.": network.nocloth_net}
                prefixes = [prefix for prefix, stream in streams.items() if stream is not None]
            return _from_osnet(state, prefixes)
    if isinstance(network, Student):
        student, _ = load_student(path)
        return student.state_dict(), []
    teacher, _ = load_teacher(path)
    return teacher.face_net.state_dict(), []


def _from_osnet(
    state: Mapping[str, torch.Tensor], prefixes: list[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    places = [(old, [new]) for old, new in _TRUNK.items()]
    places += [(old, [branch + new for branch in _BRANCHES]) for old, new in _REST.items()]
    tensors: dict[str, torch.Tensor] = {}
    unused = []
    for name, tensor in state.items():
        found = [(old, news) for old, news in places if name.startswith(old)]
        if not found:
            unused.append(name)
        for old, news in found:
            for new in news:
                tensors |= {prefix + new + name.removeprefix(old): tensor for prefix in prefixes}
    return tensors, unused
