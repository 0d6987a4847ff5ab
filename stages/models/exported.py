"""An exported student: a folder with encoder.json and a network file for each stream.

`stages.serving.export` writes it. Nothing of this project is needed to use it; here it is used with
onnxruntime, or torch, in the place of the student's own network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from deskpro.cache.files import below, read_bytes, sha256
from deskpro.stages.base.calibrated import Calibrated, StreamWeights
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.extras import loading, optional
from deskpro.stages.base.prepare_options import FaceBox
from deskpro.stages.base.section import Positive, Size, first_error
from deskpro.stages.models.student import STREAMS

FORMAT = 1
_STRICT = ConfigDict(extra="forbid", strict=True)

Network = Callable[[torch.Tensor], torch.Tensor]
"""Images [B, 3, h, w] → heads, float32 [B, H, D], before normalisation."""


def _face_box(box: dict[str, Any]) -> dict[str, Any]:
    try:
        FaceBox.model_validate(box)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    return box


def _network(about: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(count := about.get("identities"), int):
        raise ValueError(f"identities: must be a number, found {count!r}")
    return about


@dataclass(frozen=True)
class Stream:
    """A network file and how it is called.

    Its input is [N, 3, h, w], `size` = (h, w); its outputs `features` [N, H·D], a vector of length
    1 of the images alone, and `heads` [N, H, D], of which descriptors are made.
    """

    __pydantic_config__ = _STRICT

    file: str
    sha256: str
    input: str
    features: str
    heads_output: str
    size: Size
    heads: Annotated[list[str], Field(min_length=1)]
    dim: Positive


@dataclass(frozen=True)
class Settings:
    """What encoder.json holds: how vectors are made of images, how they are compared, and what they
    reach."""

    __pydantic_config__ = _STRICT

    format: Literal[1]
    made_by: str
    runtime: Literal["onnx", "torch"]
    streams: dict[str, Stream]
    """In the order of the parts of a vector."""
    color: Literal["RGB"]
    resize: str
    range: list[int]
    """Of the network's input before `mean` and `std`."""
    mean: list[float]
    std: list[float]
    normalise: Literal["outside", "inside"]
    """outside: the input is float32, (pixels / 255 − mean) / std. inside: it is uint8, 0 to 255."""
    mirror: bool
    """Whether the heads of the mirrored image are added."""
    face_box: Annotated[dict[str, Any], AfterValidator(_face_box)]
    """How `prepare` cuts a face: margin, min_side, score and height of `prepare.face`."""
    fusion: StreamWeights | None
    """How the streams are weighed; None for one stream."""
    fitted: StreamWeights | None
    """The weights that training fitted, if any."""
    student: Annotated[dict[str, Any], AfterValidator(_network)]
    """The network: SHA-256 of its weights file, identities, keyword arguments."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """What the exported file scores, by protocol and stream."""
    parity: dict[str, Any] = field(default_factory=dict)
    """How far it is from the student that it was made of."""
    calibration: Calibrated | None = None
    """What scores mean, where held-out identities told: by name of the score and face case."""
    numbers: Literal["float32", "int8"] = "float32"
    """What the network files calculate with."""
    sizes: list[dict[str, Any]] = field(default_factory=list)
    """Where vectors are projected: what they, whole and shorter ones score, by their bytes."""


_SETTINGS = TypeAdapter(Settings)


def read_settings(path: Path) -> Settings:
    """The settings of an exported folder, whose files must be those that they were.

    Args:
        path: encoder.json.

    Raises:
        InputError: it is missing, damaged or of another format, or a network file has changed.
    """
    try:
        settings = _SETTINGS.validate_json(read_bytes(path))
        files = {below(path.parent, stream.file): stream for stream in settings.streams.values()}
        if tuple(settings.streams) not in STREAMS.values():
            raise ValueError(f"streams are {[*settings.streams]}")
        if (settings.fusion is None) != (len(settings.streams) == 1):
            raise ValueError("fusion must weigh two streams, and be null for one")
    except ValidationError as error:
        raise InputError(
            f"{path}: {first_error(error, 'the file')}; must be what deskpro export writes, "
            f"format {FORMAT}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read ({error}). Export the student again") from None
    for file, stream in files.items():
        if not file.is_file():
            raise InputError(f"{file}: missing. Export the student again")
        if sha256(file) != stream.sha256:
            raise InputError(f"{file}: differs from its digest in {path}. Export the student again")
    return settings


class ExportedStudent:
    """The networks of an exported folder: images by stream → heads of all streams."""

    def __init__(self, path: Path, settings: Settings, device: torch.device) -> None:
        """path: encoder.json. Raises InputError where a runtime or a file cannot be used."""
        opener = {"onnx": _onnx_network, "torch": _torch_network}[settings.runtime]
        self.streams: Mapping[str, Network] = {
            name: opener(path.parent / stream.file, stream, device)
            for name, stream in settings.streams.items()
        }

    def __call__(self, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Images by stream, [B, 3, h, w] → float32 [B, H, D] on their device."""
        return torch.cat([network(images[name]) for name, network in self.streams.items()], 1)


def _onnx_network(file: Path, stream: Stream, device: torch.device) -> Network:
    runtime = optional("onnxruntime", f"{file}", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    with loading("", file, "a network that onnxruntime can load"):
        session = runtime.InferenceSession(str(file), options, providers=providers)

    def network(images: torch.Tensor) -> torch.Tensor:
        given = np.ascontiguousarray(images.cpu().numpy())
        (heads,) = session.run([stream.heads_output], {stream.input: given})
        return torch.from_numpy(heads).to(images.device)

    return network


def _torch_network(file: Path, stream: Stream, device: torch.device) -> Network:
    from torch.export.passes import move_to_device_pass

    with loading("", file, "a program that torch.export can load"):
        program = move_to_device_pass(torch.export.load(file), device).module()

    def network(images: torch.Tensor) -> torch.Tensor:
        return program(images.contiguous())[1]

    return network
