"""Start a fresh network from other weights: OSNet's or timm's, or an earlier network's.

OSNet files are those of torchreid's model zoo (Zhou et al., ICCV 2019). As in the published DeSKPro
and LightMBN, the trunk and each of the branches start from the same layers of it. Files for a
backbone of timm are state dicts of that network, as timm has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import warn
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import is_safetensors, load_student, load_teacher, read_tensors

_OSNET = {
    "backbone.0.": "conv1.",
    "backbone.2.": "conv2.",
    "backbone.3.": "conv3.0.",
    "backbone2.0.": "conv3.",
    "backbone2.1.": "conv4.",
    "backbone2.2.": "conv5.",
}
"""Prefix of a name in the trunk or in a branch of an LMBN → prefix in an OSNet file."""

_BACKBONE = re.compile(r"(?:.*\.)?(backbone2?\..+)")
"""An LMBN's name of a tensor of its backbone, behind the stream and the branch."""


class WarmStart(NamedTuple):
    """What became of a network's tensors and of a file's, by name."""

    loaded: list[str]
    """Of the network, from the file."""
    fresh: list[str]
    """Of the network, not in the file: heads, attention, classifiers."""
    unused: list[str]
    """Of the file, not in the network."""

    def facts(self, path: Path) -> dict[str, Any]:
        """path; loaded and fresh, how many tensors; modules that are fresh; unused names."""
        return {
            "path": path,
            "loaded": len(self.loaded),
            "fresh": len(self.fresh),
            "modules": sorted({name.rsplit(".", 1)[0] for name in self.fresh}),
            "unused": self.unused,
        }


def require_weights(option: str, path: Path | None) -> None:
    """InputError where the weights that an option names are absent; called before data are read."""
    if path is not None and not path.exists():
        raise InputError(
            f"{option}: {path} is missing. configs/README.md says where ImageNet weights are "
            f"published; for random initial weights: --set {option}=none"
        )


def warm_start(network: LMBN | Student, path: Path, classes: Sequence[str]) -> WarmStart:
    """Load into `network`, in place, what fits of a weights file.

    From a file of OSNet or timm everything but its classifier; from an earlier teacher or student
    everything, but the classifiers where the identities are others. Where the file doesn't name
    them, as published ones, classifiers of the same number are taken over, with a warning.

    Args:
        classes: identities of the network, in class order.

    Raises:
        InputError: the file lacks a tensor of the backbone, or a tensor has another shape (another
            width, for one), or an earlier network is of another kind.
    """
    own = network.state_dict()
    tensors, trained_on = _tensors(network, path)
    # A published file doesn't say whose classes it has; their number is then all that tells.
    same = trained_on in (None, [*classes])
    fitting = {
        name: tensor
        for name, tensor in tensors.items()
        if name in own and ("classifier" not in name or (same and own[name].shape == tensor.shape))
    }
    if trained_on is None and any("classifier" in name for name in fitting):
        warn(
            f"{path} doesn't say whose classifiers it has; they are taken over, as there "
            f"are {len(classes)}. Name its identities first: deskpro import-checkpoint --data DIR"
        )
    wrong = [
        f"{name} is {list(tensor.shape)}, must be {list(own[name].shape)}"
        for name, tensor in fitting.items()
        if own[name].shape != tensor.shape
    ] + [
        f"{name} is absent"
        for name in own
        if "backbone" in name and name not in fitting and not name.endswith("num_batches_tracked")
    ]
    if wrong:
        hint = "; it looks like OSNet-IBN or -AIN" * any(".IN." in name for name in tensors)
        raise InputError(
            f"{path}: doesn't fit this network{hint}. Its backbone, width or feature_dim "
            "differs:\n  "
            + "\n  ".join(wrong[:5])
            + f"\n  … and {len(wrong) - 5} more" * (len(wrong) > 5)
        )
    network.load_state_dict({**own, **fitting})
    fresh = [name for name in own if name not in fitting]
    return WarmStart(sorted(fitting), fresh, sorted(tensors.keys() - fitting.keys()))


def _tensors(
    network: LMBN | Student, path: Path
) -> tuple[Mapping[str, torch.Tensor], list[str] | None]:
    """Tensors by the network's names (others keep their own), and the identities of the file."""
    first = next(iter(network.streams.values())) if isinstance(network, Student) else network
    of_timm = first.backbone_name.startswith("timm:")
    state = read_tensors(path) if of_timm or not is_safetensors(path) else None
    if state is not None and of_timm:
        # timm's networks of stages write `stages_0` for what its files call `stages.0`.
        files = {name.replace(".", "_"): name for name in state}
        return _by_place(state, network, lambda name: files.get(_timm_name(name))), None
    if state is not None and "conv1.conv.weight" in state:
        return _by_place(state, network, _osnet_name), None
    if isinstance(network, Student):
        student, info = load_student(path)
        return student.state_dict(), info.classes
    teacher, info = load_teacher(path)
    return teacher.face_net.state_dict(), info.classes


def _osnet_name(name: str) -> str | None:
    """What an OSNet file calls a tensor of the backbone; None for another backbone's."""
    own = next(filter(name.startswith, _OSNET), None)
    return None if own is None else _OSNET[own] + name.removeprefix(own)


def _timm_name(name: str) -> str:
    return re.sub(r"^backbone2?\.(vit\.)?", "", name).replace(".", "_")


def _by_place(
    state: Mapping[str, torch.Tensor],
    network: LMBN | Student,
    name_in_file: Callable[[str], str | None],
) -> dict[str, torch.Tensor]:
    """A file's tensors by the names of all places that they start; others keep their own.

    name_in_file: from a name that `_BACKBONE` has found.
    """
    tensors, used = dict[str, torch.Tensor](), set[str]()
    for own in network.state_dict():
        found = _BACKBONE.fullmatch(own)
        name = name_in_file(found[1]) if found else None
        if name is not None and name in state:
            tensors[own] = state[name]
            used.add(name)
    return tensors | {name: state[name] for name in state.keys() - used}
