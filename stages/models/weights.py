"""Networks on disk: safetensors, with what is needed to build the network again inside the file."""

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

from stages.errors import InputError
from stages.files import sha256, write_aside
from stages.models.lmbn import LMBN
from stages.models.student import Student
from stages.models.teacher import Teacher

_KEY = "deskpro"

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Description:
    """What a weights file says of its network."""

    kind: str
    """"teacher" or "student"."""
    network: dict[str, Any]
    """Keyword arguments of the network's class."""
    classes: list[str]
    """Identities in class order."""
    face_size: tuple[int, int]
    body_size: tuple[int, int] | None
    """Height and width of the pictures it was trained on; None for a teacher's body."""


def save(path: Path, network: nn.Module, description: Description) -> None:
    """Write `path` (safetensors) and the same description as JSON beside it; complete or absent."""
    text = json.dumps(asdict(description))
    tensors = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    with write_aside(path) as aside:
        save_file(tensors, aside, metadata={_KEY: text})
        digest = sha256(aside)
    with write_aside(path.with_suffix(".json")) as aside:
        aside.write_text(json.dumps({"sha256": digest} | asdict(description), indent=1) + "\n")


def describe(path: Path) -> Description:
    """The description in a weights file; InputError where it is none of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {})[_KEY])
    except FileNotFoundError:
        raise InputError(f"{path}: no such weights file") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: not a weights file of this project ({error}); "
            "allowed is a teacher.safetensors or student.safetensors that a stage wrote"
        ) from None
    body = fields["body_size"]
    return Description(
        fields["kind"],
        fields["network"],
        fields["classes"],
        tuple(fields["face_size"]),
        tuple(body) if body else None,
    )


def load_teacher(path: Path) -> tuple[Teacher, Description]:
    """The frozen teacher of a weights file."""
    description = _require(path, "teacher")
    network = LMBN(len(description.classes), **description.network)
    return Teacher(_fill(network, path)), description


def load_student(path: Path) -> tuple[Student, Description]:
    """The student of a weights file, in evaluation mode."""
    description = _require(path, "student")
    network = Student(len(description.classes), **description.network)
    return _fill(network, path), description


def _require(path: Path, kind: str) -> Description:
    description = describe(path)
    if description.kind != kind:
        raise InputError(f"{path}: holds a {description.kind}, a {kind} is needed here")
    return description


def _fill(network: Net, path: Path) -> Net:
    with safe_open(path, framework="pt") as file:
        tensors: Mapping[str, torch.Tensor] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    network.load_state_dict(tensors, strict=True)
    network.eval()
    return network
