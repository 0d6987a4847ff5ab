"""The published checkpoints: reading them without running them, and their parameter names.

A `.pth` file is a pickle, and a pickle is a program. It is read here without torch's loader, which
can call what a file names: names of tensors and plain containers stand for functions of this
module, made anew for every file; names of libraries that aren't Python's become inert placeholders;
any other name refuses the file. Both formats that torch has written are read: a zip archive (since
1.6), and before that one pickle after another.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from deskpro.stages.base.errors import InputError
from deskpro.stages.models.osnet import CHANNELS

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_CONTAINERS: dict[str, Callable[..., Any]] = {
    "set": set,
    "frozenset": frozenset,
    "list": list,
    "dict": dict,
    "tuple": tuple,
    "int": int,
    "float": float,
    "complex": complex,
    "bool": bool,
    "str": str,
}
_INERT = {
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "builtins": {"bytes", "bytearray", "slice", "range", "object"},
    "collections": {"Counter", "defaultdict", "deque"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath"},
    "types": {"SimpleNamespace"},
    "uuid": {"UUID"},
}
"""Names of Python's own that training programs leave in checkpoints; not looked up either."""


class _HostileError(Exception):
    """A file asks for something that no checkpoint needs."""


class _DamagedError(Exception):
    """A file isn't what torch writes."""


def _placeholder() -> type:
    """A class whose objects take any state and do nothing; a new one for every file."""

    class Placeholder(dict[Any, Any]):
        def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
            return super().__new__(cls)

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()

        def __setstate__(self, state: Any) -> None:
            pass

        def append(self, item: Any) -> None:
            pass

        def extend(self, items: Any) -> None:
            pass

        def add(self, item: Any) -> None:
            pass

        def __hash__(self) -> int:  # type: ignore[override]
            return id(self)

    return Placeholder


def _names() -> dict[tuple[str, str], Any]:
    """What the names that tensors and containers need stand for, in one file."""

    def rebuild(
        storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
    ) -> torch.Tensor:
        # Under as_strided a tensor can't reach outside its storage: torch checks the bounds.
        if not isinstance(storage, torch.Tensor):
            raise _DamagedError("a tensor without a storage")
        return torch.as_strided(storage, tuple(size), tuple(stride), offset)

    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): lambda *pairs: OrderedDict(*pairs),
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        ("torch._utils", "_rebuild_tensor"): rebuild,
        ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
        ("torch", "Size"): lambda sizes=(): tuple(sizes),
    }
    for name, make in _CONTAINERS.items():
        names["builtins", name] = lambda *arguments, make=make: make(*arguments)
    return names


class _Unpickler(pickle.Unpickler):
    """An unpickler that looks nothing up."""

    def __init__(self, file: IO[bytes], storage: Callable[[Any], torch.Tensor]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage, self._names, self._placeholder = storage, _names(), _placeholder()

    def find_class(self, module: str, name: str) -> Any:
        # Protocols below 3 write Python 2's names (__builtin__ for builtins).
        if (module, name) in _compat_pickle.NAME_MAPPING:
            module, name = _compat_pickle.NAME_MAPPING[module, name]
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if (module, name) in self._names:
            return self._names[module, name]
        package = module.split(".")[0]
        if package == "torch":
            if module == "torch" and name in _STORAGES:
                return _STORAGES[name]
            harmless = isinstance(getattr(torch, name, None), torch.dtype | type)
            if not (module == "torch" and harmless) and module.split(".")[1:2] not in (
                ["nn"],
                ["optim"],
            ):
                raise _HostileError(f"{module}.{name}")
        elif package in sys.stdlib_module_names and name not in _INERT.get(module, ()):
            raise _HostileError(f"{module}.{name}")
        return self._placeholder

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or pid[:1] != ("storage",):
            raise _HostileError(f"the persistent id {str(pid)[:60]!r}")
        return self._storage(pid)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth`/`.ckpt` file by name, from its `state_dict` where it has one.

    No code in the file runs. Raises InputError for a file that isn't a checkpoint, and for one
    that asks for anything but tensors, plain containers and objects that can be left inert.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content = _read_zip(file) if zipped else _read_legacy(file, path.stat().st_size)
    except _HostileError as error:
        raise InputError(
            f"{path}: refused: loading it would call {error}, which no checkpoint needs. "
            "Don't load this file with anything; get the weights from a source you trust"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
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


def _read_zip(file: IO[bytes]) -> Any:
    """The format since torch 1.6: <name>/data.pkl, and a record <name>/data/<key> per storage."""
    with zipfile.ZipFile(file) as archive:
        [pickled] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}constants.pkl" in archive.namelist():
            raise _DamagedError("a TorchScript program; a state_dict is needed")
        known: dict[str, torch.Tensor] = {}

        def storage(pid: Any) -> torch.Tensor:
            _, dtype, key, _, _ = pid
            if key not in known:
                content = bytearray(archive.read(f"{folder}data/{key}"))
                known[key] = _tensor(content, dtype)
            return known[key]

        return _Unpickler(io.BytesIO(archive.read(pickled)), storage).load()


def _read_legacy(file: IO[bytes], size: int) -> Any:
    """The format before torch 1.6: magic number, version and system, the object, its storages."""
    known: dict[str, torch.Tensor] = {}

    def no_storage(pid: Any) -> torch.Tensor:
        raise _DamagedError("a storage before the object")

    def storage(pid: Any) -> torch.Tensor:
        _, dtype, key, _, numel, view = pid
        if key not in known:
            if not isinstance(dtype, torch.dtype) or not 0 <= numel * dtype.itemsize <= size:
                raise _DamagedError("a storage larger than the file")
            known[key] = torch.zeros(numel, dtype=dtype)
        if view is None:
            return known[key]
        _, offset, length = view
        return known[key][offset : offset + length]

    if _Unpickler(file, no_storage).load() != 0x1950A86A20F9469CFC6C:
        raise _DamagedError("no magic number")
    _Unpickler(file, no_storage).load()
    _Unpickler(file, no_storage).load()
    content = _Unpickler(file, storage).load()
    for key in _Unpickler(file, no_storage).load():
        values = known[key]
        if int.from_bytes(file.read(8), "little") != values.numel():
            raise _DamagedError(f"storage {key} of another size than its tensors say")
        read = bytearray(file.read(values.numel() * values.element_size()))
        values.copy_(_tensor(read, values.dtype))
    return content


def _tensor(content: bytearray, dtype: Any) -> torch.Tensor:
    if not isinstance(dtype, torch.dtype):
        raise _DamagedError("a storage of no type")
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


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
        lines = [f"  {len(n)} {what}: {', '.join(n)}" for what, n in trouble.items() if n]
        raise InputError(f"{path}: its keys don't fit the network\n" + "\n".join(lines))
