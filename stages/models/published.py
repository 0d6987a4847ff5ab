"""The published checkpoints: reading them without running them, and their parameter names.

A `.pth` file is a pickle, and a pickle is a program. torch reads it, in both formats that torch has
written, with an unpickler of this module in place of Python's: tensors and plain containers are
made, names of libraries that aren't Python's become inert placeholders, any other name refuses the
file. What torch itself doesn't check (the sizes of storages, entries that occur twice in an
archive) is checked here.
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
from types import SimpleNamespace
from typing import IO, Any

import torch

from deskpro.cache.files import read_bytes
from deskpro.stages.base.errors import InputError
from deskpro.stages.models.osnet import CHANNELS

_CONTAINERS = (set, frozenset, list, dict, tuple, int, float, complex, bool, str)
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
"""Names of Python's own that training programs leave in checkpoints: placeholders too."""


_PLACES = ("state_dict", "model_state_dict", "model", "net", "ema")
"""Keys of a checkpoint that training programs keep the network's tensors under."""


class _HostileError(Exception):
    """A file asks for something that no checkpoint needs."""


class _DamagedError(Exception):
    """A file isn't what torch writes."""


def _names() -> dict[tuple[str, str], Any]:
    """What the allowed names stand for; made for each file, since a pickle can change functions."""

    def rebuild(
        storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
    ) -> torch.Tensor:
        # torch's own would let a storage grow to what the file asks for; as_strided checks bounds.
        if not isinstance(storage, torch.Tensor):
            raise _DamagedError("a tensor without a storage")
        return torch.as_strided(storage, tuple(size), tuple(stride), offset)

    return {
        **{("builtins", kind.__name__): kind for kind in _CONTAINERS},
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        ("torch._utils", "_rebuild_tensor"): rebuild,
        ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
        ("torch", "Size"): tuple,
    }


def _placeholder() -> type:
    """A class whose objects take any state and do nothing; a new one for each file."""

    class Placeholder(dict[Any, Any]):
        def ignore(self, *args: Any, **kwargs: Any) -> None:
            pass

        __init__ = __setstate__ = append = extend = add = ignore
        __hash__ = object.__hash__  # type: ignore[assignment]

    return Placeholder


def _is_inert(module: str, name: str) -> bool:
    """Whether a name that isn't allowed may become a placeholder: it does no harm where it is."""
    package, *rest = module.split(".")
    if package == "torch":
        harmless = isinstance(getattr(torch, name, None), torch.dtype | type)
        return (module == "torch" and harmless) or rest[:1] in (["nn"], ["optim"])
    return package not in sys.stdlib_module_names or name in _INERT.get(module, ())


def _restricted(total: int, sizes: Mapping[str, int] | None) -> Any:
    """A stand-in for the module `pickle`, for torch to read one file with.

    total: bytes of the file, which its storages may not exceed; sizes: bytes of each storage by its
    key, where the file is an archive.
    """
    names, placeholder, used = _names(), _placeholder(), dict[str, int]()

    class Unpickler(pickle.Unpickler):
        _storage: Callable[[Any], Any] | None = None

        def find_class(self, module: str, name: str) -> Any:
            # Protocols below 3 write Python 2's names (__builtin__ for builtins).
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
            if (module, name) not in names and not _is_inert(module, name):
                raise _HostileError(f"{module}.{name}")
            return names.get((module, name), placeholder)

        def __setattr__(self, name: str, value: Any) -> None:
            # torch sets its own persistent_load; ours passes on to it what may pass.
            super().__setattr__("_storage" if name == "persistent_load" else name, value)

        def persistent_load(self, pid: Any) -> torch.Tensor:
            if not isinstance(pid, tuple) or pid[:1] != ("storage",) or self._storage is None:
                raise _HostileError(f"the persistent id {str(pid)[:60]!r}")
            _, kind, key, _, numel, *_ = pid
            if not isinstance(kind.dtype, torch.dtype) or not isinstance(numel, int):
                raise _DamagedError("a storage of no type or size")
            size = numel * kind.dtype.itemsize
            used[key] = max(size, used.get(key, 0))
            limit = total if sizes is None else sizes[key]
            if not 0 <= size <= limit or sum(used.values()) > total:
                raise _DamagedError(f"storage {key} is larger than the file")
            storage = self._storage(pid)
            return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)

    def load(file: IO[bytes], **options: Any) -> Any:
        module.last = Unpickler(file, **options).load()
        return module.last

    module = SimpleNamespace(__name__=__name__, Unpickler=Unpickler, load=load, used=used)
    return module


def _repack(content: bytes) -> tuple[bytes, dict[str, int]]:
    """What a checkpoint's archive needs of it, and the bytes of each storage by its key.

    torch's reader ignores the case of names and takes the first of equal ones, Python's takes the
    last: what one has checked, the other might not find. In the new archive they agree.
    """
    packed, sizes = io.BytesIO(), {}
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(packed, "w") as target:
        entries = {info.filename: info for info in source.infolist()}
        lower = [info.filename.lower() for info in source.infolist()]
        if any(name.endswith("/constants.pkl") for name in lower):
            raise _DamagedError("a TorchScript program; a state_dict is needed")
        size = sum(info.file_size for info in source.infolist())
        if len(set(lower)) < len(lower) or size > len(content):
            raise _DamagedError("its archive has equal names or is compressed")
        [folder] = [name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")]
        target.writestr("archive/version", "3")
        for name in ("data.pkl", "byteorder"):
            if folder + name in entries:
                target.writestr(f"archive/{name}", source.read(folder + name))
        for name in entries:
            key = name.removeprefix(f"{folder}data/")
            if key != name:
                record = source.read(name)
                sizes[key] = len(record)
                target.writestr(f"archive/data/{key}", record)
    return packed.getvalue(), sizes


def _load(content: bytes) -> Any:
    """The object in a file of either format of torch: a zip archive, before torch 1.6 pickles."""
    total, sizes = len(content), None
    if content.startswith(b"PK\x03\x04"):
        content, sizes = _repack(content)
    module = _restricted(total, sizes)
    # From memory: in a file torch would also look for its oldest format, a tar archive.
    file = io.BytesIO(content)
    found = torch.load(file, "cpu", pickle_module=module, weights_only=False, mmap=False)
    if sizes is None and not module.used.keys() <= set(module.last):
        raise _DamagedError("storages without values")
    return found


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth`/`.ckpt` file by name, from the first of `_PLACES` that has some.

    No code in the file runs.

    Raises:
        InputError: it isn't a checkpoint, or asks for anything but tensors, plain containers and
            objects that can stay inert.
    """
    try:
        content = _load(read_bytes(path))
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
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: has no state_dict, but a {type(content).__name__}")
    tensors = _state_in(content)
    if not tensors:
        keys = ", ".join(str(key)[:40] for key in [*content][:8]) + ", …" * (len(content) > 8)
        raise InputError(
            f"{path}: has no tensors, neither at its top (its keys: {keys or 'none'}) nor under "
            f"{', '.join(_PLACES)}. Save the network's state_dict: torch.save(network."
            "state_dict(), PATH)"
        )
    return tensors


def _state_in(content: Mapping[Any, Any], depth: int = 2) -> dict[str, torch.Tensor]:
    """The tensors under a key of `_PLACES`, so many levels down, or else those at the top."""
    for key in _PLACES if depth else ():
        inner = content.get(key)
        if isinstance(inner, Mapping) and (tensors := _state_in(inner, depth - 1)):
            return tensors
    return {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}


_NETWORKS = ("face_net", "lr_face_net", "nocloth_net")
"""The networks of a published file: the teacher's, and the student's two."""
_BRANCHES = {
    "branches.0.": "global_branch.",
    "branches.1.": "part_branch.",
    "branches.2.": "channel_branch.",
}
"""Checkpoints hold every branch under two names: the same tensors."""


def bare(key: str) -> str:
    """A tensor's name without the prefixes of wrapped networks, `module.` and `model.`."""
    while key.startswith(("module.", "model.")):
        key = key.split(".", 1)[1]
    return key


def split(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each network in a published file, under the names that LMBN has for them.

    Prefixes `module.` and `model.` are dropped; tensors without a network's name are a teacher's
    (`face_net`). Raises InputError where the two names of a branch disagree.
    """
    networks: dict[str, dict[str, torch.Tensor]] = {}
    origin: dict[tuple[str, str], str] = {}
    for full, tensor in state.items():
        key = bare(full)
        first, _, rest = key.partition(".")
        network, name = (first, rest) if first in _NETWORKS else ("face_net", key)
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
