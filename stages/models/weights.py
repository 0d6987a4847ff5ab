"""Networks on disk: safetensors, with what is needed to build the network again inside the file.

Published checkpoints are read just as well: what they don't say (class order, image sizes) is
None in their description.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from deskpro.cache.files import sha256, write_aside
from deskpro.stages.base.errors import InputError
from deskpro.stages.models import published
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.student import Student
from deskpro.stages.models.teacher import Teacher

_KEY = "deskpro"

Net = TypeVar("Net", bound=nn.Module)
Found = dict[str, tuple["ModelInfo", dict[str, torch.Tensor]]]


@dataclass(frozen=True)
class ModelInfo:
    """What a weights file says of its network."""

    kind: str
    """"teacher" or "student"."""
    network: dict[str, Any]
    """Keyword arguments of the network's class."""
    num_classes: int
    classes: list[str] | None
    """Identities in class order; None where the file doesn't say."""
    face_size: tuple[int, int] | None
    body_size: tuple[int, int] | None
    """Height and width of the images it was trained on; None where it saw or says none."""


def save(path: Path, network: nn.Module, info: ModelInfo) -> None:
    """Write `path` (safetensors) and the same description as JSON beside it; complete or absent."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    with write_aside(path) as aside:
        save_file(tensors, aside, metadata={_KEY: json.dumps(asdict(info))})
        digest = sha256(aside)
    with write_aside(path.with_suffix(".json")) as aside:
        aside.write_text(json.dumps({"sha256": digest} | asdict(info), indent=1) + "\n")


def read_metadata(path: Path, kind: str | None = None) -> ModelInfo:
    """What a weights file says of its network of a kind: of its student rather if None."""
    return _read(path, kind)[0]


def kinds(path: Path) -> list[str]:
    """The kinds of network that a weights file holds; a published one may hold both."""
    return list(_open(path))


def load_teacher(path: Path) -> tuple[Teacher, ModelInfo]:
    """The frozen teacher of a weights file, ours or published."""
    info, tensors = _read(path, "teacher")
    network = LMBN(info.num_classes, **info.network)
    return Teacher(_fill(network, tensors, path)), info


def load_student(path: Path) -> tuple[Student, ModelInfo]:
    """The student of a weights file, ours or published, in evaluation mode."""
    info, tensors = _read(path, "student")
    network = Student(info.num_classes, **info.network)
    return _fill(network, tensors, path), info


def _read(path: Path, kind: str | None) -> tuple[ModelInfo, dict[str, torch.Tensor]]:
    """Description and tensors of the wanted kind of network; of the student rather if None."""
    found = _open(path)
    kind = kind or ("student" if "student" in found else "teacher")
    if kind not in found:
        raise InputError(f"{path}: holds a {next(iter(found))}, a {kind} is needed here")
    return found[kind]


def _open(path: Path) -> Found:
    return _read_own(path) if is_safetensors(path) else _read_published(path)


def is_safetensors(path: Path) -> bool:
    """A safetensors file opens with the length of its header, then the header's JSON."""
    try:
        with path.open("rb") as file:
            return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"
    except OSError as error:
        raise InputError(f"{path}: no such weights file ({error.strerror})") from None


def _read_own(path: Path) -> Found:
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {})[_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: not a weights file of this project ({error}); allowed is a "
            "teacher.safetensors or student.safetensors that a stage wrote, or a published .pth"
        ) from None
    for size in ("face_size", "body_size"):
        fields[size] = tuple(fields[size]) if fields[size] else None
    return {fields["kind"]: (ModelInfo(**fields), tensors)}


def _read_published(path: Path) -> Found:
    parts = published.split(published.read_state(path), path)
    found: Found = {}
    streams = {
        mode: names
        for mode, names in (
            ("all", ("lr_face_net", "nocloth_net")),
            ("face", ("lr_face_net",)),
            ("body", ("nocloth_net",)),
        )
        if all(name in parts for name in names)
    }
    if streams:
        mode, names = next(iter(streams.items()))
        options, classes = published.network_options(parts[names[0]], path)
        tensors = {f"{name}.{key}": t for name in names for key, t in parts[name].items()}
        network = {"forward_mode": mode, **options}
        found["student"] = (ModelInfo("student", network, classes, None, None, None), tensors)
    if "face_net" in parts:
        options, classes = published.network_options(parts["face_net"], path)
        found["teacher"] = (
            ModelInfo("teacher", options, classes, None, None, None),
            parts["face_net"],
        )
    return found


def _fill(network: Net, tensors: Mapping[str, torch.Tensor], path: Path) -> Net:
    published.require_fit(tensors, network.state_dict(), path)
    network.load_state_dict(tensors, strict=True)
    network.eval()
    return network
