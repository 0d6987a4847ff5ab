"""Networks on disk: safetensors files that also hold what is needed to build the network again.

Published checkpoints are read too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from deskpro.cache.files import open_file, write_bytes, write_text
from deskpro.stages.base.calibrated import Calibrated, StreamWeights
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.section import Positive, Size
from deskpro.stages.base.training_options import Network
from deskpro.stages.models import published
from deskpro.stages.models.lmbn import LMBN, head_names
from deskpro.stages.models.osnet import CHANNELS, OSNet
from deskpro.stages.models.student import STREAMS, Student
from deskpro.stages.models.teacher import Teacher

_KEY = "deskpro"
OSNET_SIZE = 256, 128
"""Height and width of the images that torchreid trains OSNet on."""

Net = TypeVar("Net", LMBN, Student, OSNet)
Networks = dict[str, tuple["ModelInfo", dict[str, torch.Tensor]]]
"""Kind of network → what a file says of it, and its tensors."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a network; None where a file doesn't say."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    kind: Literal["teacher", "student"]
    network: dict[str, Any]
    """Keyword arguments of the network's class; those of older files have no backbone: OSNet."""
    num_classes: Positive
    classes: list[str] | None
    """Identities in class order."""
    face_size: Size | None
    body_size: Size | None
    """Height and width of the images it was trained on; None for a stream that it lacks."""
    heads: dict[str, list[str]] | None = None
    """Stream → names of its heads, in the order of the head dimension."""
    stride: Positive | None = None
    """Of the map that attention gates, in pixels of the image."""
    processes: Positive | None = None
    """How many processes trained it."""
    fusion: StreamWeights | None = None
    """How much each stream counts (`metrics.fusion.Fusion`), where held-out identities told."""
    calibration: Calibrated | None = None
    """What scores mean (`metrics.calibration`), where held-out identities told."""

    def of(self, network: nn.Module) -> ModelInfo:
        """With the heads and the stride of the network that it describes."""
        assert isinstance(network, LMBN | Student)
        streams = network.streams if isinstance(network, Student) else {"face": network}
        heads = {name: [*stream.heads] for name, stream in streams.items()}
        return replace(self, heads=heads, stride=next(iter(streams.values())).stride)

    def with_heads(self) -> ModelInfo:
        """With the heads that its network has, where a file doesn't name them."""
        mode = "face" if self.kind == "teacher" else self.network.get("forward_mode", "all")
        names = [*head_names(self.network.get("heads", "lmbn"))]
        return replace(self, heads=self.heads or dict.fromkeys(STREAMS[mode], names))


_INFO = TypeAdapter(ModelInfo)


def save(path: Path, network: nn.Module, info: ModelInfo) -> None:
    """Write an LMBN or a student to `path` (safetensors), and its metadata as JSON beside it.

    Each file is complete or absent.
    """
    state = network.kept() if isinstance(network, Student) else network.state_dict()
    tensors = {name: tensor.contiguous().cpu() for name, tensor in state.items()}
    fields = asdict(info.of(network))
    content = to_bytes(tensors, {_KEY: json.dumps(fields)})
    write_bytes(path, content)
    digest = {"sha256": sha256(content).hexdigest()}
    write_text(path.with_suffix(".json"), json.dumps(digest | fields, indent=1) + "\n")


def read_metadata(path: Path, kind: str | None = None) -> ModelInfo:
    """What a weights file says of its network of a kind: where None, of its student if it has one.

    Raises:
        InputError: the file is absent, isn't a weights file, or has no such network.
    """
    return _read(path, kind)[0]


def kinds(path: Path) -> list[str]:
    """The kinds of network in a weights file; a published one may have both."""
    return list(_open(path))


def load_teacher(path: Path) -> tuple[Teacher, ModelInfo]:
    """The teacher of a weights file, ours or published, frozen."""
    info, tensors = _read(path, "teacher")
    with torch.random.fork_rng(devices=[]):  # quicker than on the meta device
        network = LMBN(info.num_classes, **info.network)
    return Teacher(_fill(network, tensors, path)), info.of(network)


def load_other_teacher(path: Path, stream: str) -> tuple[Teacher, ModelInfo]:
    """A network that sees the images of a stream as one more teacher: a teacher, for faces, or that
    stream of a student. Its features are joined.

    Raises InputError where the file has no such network.
    """
    kind = "teacher" if stream == "face" and "teacher" in kinds(path) else "student"
    if kind == "teacher":
        teacher, info = load_teacher(path)
        return Teacher(teacher.face_net, joined=True), info
    student, info = load_student(path)
    if stream not in student.streams:
        raise InputError(
            f"{path}: has no {stream} stream, it has {', '.join(student.streams)}. Give the file "
            "of a network that sees these images, or set the teacher's input"
        )
    return Teacher(student.streams[stream], joined=True), info


def load_student(path: Path) -> tuple[Student, ModelInfo]:
    """The student of a weights file, ours or published, in evaluation mode."""
    info, tensors = _read(path, "student")
    with torch.random.fork_rng(devices=[]):
        network = Student(info.num_classes, **info.network)
    return _fill(network, tensors, path), info.of(network)


def load_osnet(path: Path) -> tuple[OSNet, ModelInfo] | None:
    """The network of a file of torchreid's OSNet, without its classifier; None for other files.

    Raises:
        InputError: a tensor is missing, left over or of another shape.
    """
    state = None if is_safetensors(path) else read_tensors(path)
    if state is None or "conv1.conv.weight" not in state:
        return None
    widths = {(channels[0], 3, 7, 7): width for width, channels in CHANNELS.items()}
    width = widths.get((*state["conv1.conv.weight"].shape,))
    if width is None or "fc.0.bias" not in state or any(".IN." in name for name in state):
        raise InputError(
            f"{path}: no OSNet that can be used: must be osnet_x1_0, x0_75, x0_5 or x0_25 of "
            "torchreid, with its layer fc; OSNet-IBN and -AIN are other networks"
        )
    dim, classes = (
        state[name].numel() if name in state else 1 for name in ("fc.0.bias", "classifier.bias")
    )
    info = ModelInfo(
        "student", {"feature_dim": dim, "width": width}, classes, None, None, OSNET_SIZE,
        {"body": ["global"]},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        network = OSNet(width, dim)
    counts = {key: t for key, t in network.state_dict().items() if key.endswith("_tracked")}
    tensors = {key: t for key, t in state.items() if not key.startswith("classifier.")}
    return _fill(network, counts | tensors, path), info  # old files have no counts


def _read(path: Path, kind: str | None) -> tuple[ModelInfo, dict[str, torch.Tensor]]:
    found = _open(path)
    kind = kind or ("student" if "student" in found else "teacher")
    if kind not in found:
        raise InputError(f"{path}: is a {next(iter(found))}, a {kind} is needed")
    info, tensors = found[kind]
    return info.with_heads(), tensors


def _open(path: Path) -> Networks:
    return _read_own(path) if is_safetensors(path) else _read_published(path)


def is_safetensors(path: Path) -> bool:
    """A safetensors file starts with the length of its header (8 bytes) and the header's JSON."""
    try:
        with open_file(path) as file:
            return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"
    except OSError as error:
        inside = sorted(path.glob("*.safetensors"))
        hint = f". Give a file in it: {', '.join(map(str, inside))}" if inside else ""
        raise InputError(f"{path}: no such weights file ({error.strerror}){hint}") from None


def _read_own(path: Path) -> Networks:
    try:
        with safe_open(path, framework="pt") as file:
            info = _INFO.validate_json((file.metadata() or {})[_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        _check(info, tensors)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its metadata"
        what = first["msg"].removeprefix("Value error, ")
        raise _foreign(path, f"{place} is {first['input']!r:.60}: {what}") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _foreign(path, str(error)) from None
    return {info.kind: (info, tensors)}


def read_tensors(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of other code's file, which runs no code, by their bare names; None for a file of
    ours."""
    if not is_safetensors(path):
        return {published.bare(name): t for name, t in published.read_state(path).items()}
    try:
        with safe_open(path, framework="pt") as file:
            if _KEY in (file.metadata() or {}):
                return None
            names = file.keys()
            return {published.bare(name): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from None


def _foreign(path: Path, why: str) -> InputError:
    return InputError(
        f"{path}: not a weights file of this project ({why}); allowed is a "
        "teacher.safetensors or student.safetensors that a stage wrote, or a published .pth"
    )


def _check(info: ModelInfo, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError where metadata contradict the options of networks, or the tensors.

    Without it a wrong number would make a network that no memory holds.
    """
    options = {**info.network}
    if info.kind == "student" and str(options.pop("forward_mode", "all")) not in STREAMS:
        raise ValueError(f"network.forward_mode must be one of {', '.join(STREAMS)}")
    network = Network.model_validate(options)
    wanted = info.num_classes, network.feature_dim
    for name, tensor in tensors.items():
        if name.endswith("classifier.weight") and tensor.shape != wanted:
            raise ValueError(
                f"num_classes and feature_dim are {wanted}, {name} is {[*tensor.shape]}"
            )
    if info.classes is not None and len({*info.classes}) != info.num_classes:
        raise ValueError(f"num_classes is {info.num_classes}, classes has {len({*info.classes})}")


def _read_published(path: Path) -> Networks:
    parts = published.split(published.read_state(path), path)
    names = {"face": "lr_face_net", "body": "nocloth_net"}
    streams = tuple(stream for stream, name in names.items() if name in parts)
    modes = {of_mode: mode for mode, of_mode in STREAMS.items()}
    found: Networks = {}
    if streams:
        options, classes = published.network_options(parts[names[streams[0]]], path)
        options = {"forward_mode": modes[streams], **options}
        tensors = {
            f"{names[stream]}.{key}": tensor
            for stream in streams
            for key, tensor in parts[names[stream]].items()
        }
        found["student"] = ModelInfo("student", options, classes, None, None, None), tensors
    if "face_net" in parts:
        options, classes = published.network_options(parts["face_net"], path)
        info = ModelInfo("teacher", options, classes, None, None, None)
        found["teacher"] = info, parts["face_net"]
    return found


def _fill(network: Net, tensors: Mapping[str, torch.Tensor], path: Path) -> Net:
    """Give a network its tensors, which must be exactly those that it has, in evaluation mode."""
    wanted = network.state_dict()
    shapes = [
        f"{name} is {list(tensors[name].shape)}, must be {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    problems = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "left over": sorted(tensors.keys() - wanted.keys()),
        "of another shape": shapes,
    }
    if any(problems.values()):
        lines = [f"  {len(n)} {what}: {', '.join(n)}" for what, n in problems.items() if n]
        raise InputError(f"{path}: its keys don't fit the network\n" + "\n".join(lines))
    own = {name: tensors[name].to(like.dtype, copy=True) for name, like in wanted.items()}
    network.load_state_dict(own, assign=True)
    return network.eval()
