"""The published checkpoints: reading them without running them, and their parameter names.

A `.pth` file is a pickle, and a pickle is a program. Here only a short list of harmless names is
looked up; classes of libraries that aren't part of Python (a yacs CfgNode among the
hyper-parameters of a Lightning file) become inert placeholders; any other name refuses the file.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import sys
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stages.errors import InputError
from stages.models.osnet import CHANNELS

_ALLOWED = {
    "builtins": {
        "bool", "bytearray", "complex", "dict", "float", "frozenset", "int", "list", "object",
        "range", "set", "slice", "str", "tuple",
    },
    "collections": {"OrderedDict"},
    "torch": {
        "Size", "device", "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32",
        "int64", "uint8", "bool", "FloatStorage", "DoubleStorage", "HalfStorage", "LongStorage",
        "IntStorage", "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage",
        "BFloat16Storage",
    },
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter"},
    "torch.storage": {"UntypedStorage", "TypedStorage"},
}  # fmt: skip
"""Module → names that a file may use: plain containers and what tensors are made of."""


class Placeholder(dict[Any, Any]):
    """Stands for an object of a class that isn't looked up: takes any state, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


class _HostileError(pickle.UnpicklingError):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Protocols below 3 write Python 2's names (__builtin__ for builtins).
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        package = module.split(".")[0]
        if package in sys.stdlib_module_names or package in ("torch", "numpy", "stages", "cache"):
            # Python's own modules, and those that are surely installed, hold what does harm.
            if (module, name) in _INERT:
                return Placeholder
            raise _HostileError(f"{module}.{name}")
        return Placeholder


_INERT = {
    ("argparse", "Namespace"),
    ("types", "SimpleNamespace"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
    ("collections", "defaultdict"),
    ("collections", "Counter"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
}
"""What training programs leave in checkpoints beside tensors; not looked up, not needed here."""


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth`/`.ckpt` file by name, from its `state_dict` where it has one.

    No code in the file runs. Raises InputError for a file that isn't a checkpoint, and for one
    that asks for anything but tensors, plain containers and objects that can be left inert.
    """
    reader = types.SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="inert_pickle")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise InputError(f"{path}: a TorchScript program; a state_dict is needed")
    except zipfile.BadZipFile:
        pass  # the format before torch 1.6
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    try:
        content = torch.load(path, "cpu", pickle_module=reader, weights_only=False)
    except _HostileError as error:
        raise InputError(
            f"{path}: refused: loading it would call {error}, which no checkpoint needs. "
            "Don't load this file with anything; get the weights from a source you trust"
        ) from None
    except Exception as error:  # noqa: BLE001  a damaged pickle can raise anything at all
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a checkpoint that torch wrote ({detail})") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds no state_dict, but a {type(content).__name__}")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise InputError(f"{path}: holds no tensors")
    return tensors


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


STREAMS = ("face_net", "lr_face_net", "nocloth_net")
"""The networks of a published file: the teacher's, and the student's two."""
_BRANCHES = {
    "branches.0.": "global_branch.",
    "branches.1.": "part_branch.",
    "branches.2.": "channel_branch.",
}
"""Checkpoints hold every branch under two names: the same tensors."""


def split(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each network in a published file, under the names that LMBN has for them.

    Prefixes `module.` and `model.` are dropped; tensors without a network's name are a teacher's
    (`face_net`). Raises InputError where the two names of a branch disagree.
    """
    networks: dict[str, dict[str, torch.Tensor]] = {}
    origin: dict[tuple[str, str], str] = {}
    for full, tensor in state.items():
        key = full
        while key.startswith(("module.", "model.")):
            key = key.split(".", 1)[1]
        first, _, rest = key.partition(".")
        network, name = (first, rest) if first in STREAMS else ("face_net", key)
        for alias, own in _BRANCHES.items():
            if name.startswith(alias):
                name = own + name.removeprefix(alias)
        known = networks.setdefault(network, {})
        if name in known and not torch.equal(known[name], tensor):
            raise InputError(
                f"{path}: {origin[network, name]} and {full} are two names of one tensor, "
                "but their values differ; this file isn't what the published code wrote"
            )
        known[name], origin[network, name] = tensor, full
    return networks


def network_options(tensors: Mapping[str, torch.Tensor], path: Path) -> tuple[dict[str, Any], int]:
    """(Keyword arguments of LMBN, number of classes) that fit a network's tensors.

    The wiring is the published one. Raises InputError where the tensors aren't an LMBN's.
    """
    try:
        stem = tensors["backbone.0.conv.weight"].shape[0]
        classes, dim = tensors["global_branch.reduction_1.classifier.weight"].shape
        [width] = [width for width, channels in CHANNELS.items() if channels[0] == stem]
    except (KeyError, ValueError):
        sample = ", ".join(list(tensors)[:3])
        raise InputError(
            f"{path}: these aren't the tensors of a DeSKPro network (it begins {sample}, …); "
            "backbone.0.conv.weight and global_branch.reduction_1.classifier.weight are looked for"
        ) from None
    return {"width": width, "block": "published", "feature_dim": dim}, classes


def require_fit(
    tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: Path
) -> None:
    """InputError that lists missing and left-over keys and other shapes, unless all fit."""
    shapes = [
        f"{name} is {list(tensors[name].shape)}, must be {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    trouble = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "left over": sorted(tensors.keys() - wanted.keys()),
        "of another shape": shapes,
    }
    if any(trouble.values()):
        lines = [
            f"  {len(names)} {what}: " + ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            for what, names in trouble.items()
            if names
        ]
        raise InputError(f"{path}: its keys don't fit the network\n" + "\n".join(lines))
