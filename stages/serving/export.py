"""Writes a student as network files that need nothing of this project, and encoder.json."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from deskpro.cache.files import sha256, write_bytes, write_text
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.extras import optional
from deskpro.stages.base.run_folder import ENCODER
from deskpro.stages.data.views import MEAN, STD
from deskpro.stages.models.exported import Settings, Stream
from deskpro.stages.models.extractor import FeatureExtractor
from deskpro.stages.models.student import Student
from deskpro.stages.serving.quantise import quantised
from deskpro.stages.serving.sources import Source

OPSET = 18
"""onnxruntime runs it since 1.14; torch's exporter writes it without a conversion."""
INPUT, OUTPUTS = "images", ("features", "heads")
_MODEL_NAME = "lmbn_n"
"""What boxmot calls the network's family."""


class Form(NamedTuple):
    """How a student is exported.

    directions: stream → a projection of its vectors, float32 [L, dim]; whole vectors where None.
    images: stream → images that the file may see, [n, 3, h, w], of which the ranges of its int8
    numbers follow; float32 numbers where None.
    """

    runtime: Literal["onnx", "torch"] = "onnx"
    normalise: Literal["outside", "inside"] = "outside"
    directions: Mapping[str, np.ndarray] | None = None
    images: Mapping[str, np.ndarray] | None = None

    def file(self, stream: str) -> str:
        """The name of a stream's file: it tells normalisation inside from outside, and int8."""
        middle = ".normalised" if self.normalise == "inside" else ""
        middle += "" if self.images is None else ".int8"
        return f"{stream}{middle}.{'onnx' if self.runtime == 'onnx' else 'pt2'}"


class ExportedStream(nn.Module):
    """A stream of a student as its file has it.

    Images [N, 3, h, w] → features, float32 [N, H·D], a vector of length 1 of the images alone, and
    heads, float32 [N, H, D]. With `inside` the images are uint8, else normalised float32.
    """

    def __init__(self, network: nn.Module, inside: bool) -> None:
        super().__init__()
        self.network, self.inside = network, inside
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        self.mean, self.std = nn.Buffer(255 * mean), nn.Buffer(255 * std)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.inside:
            images = (images.float() - self.mean) / self.std
        heads = self.network(images).features
        return _unit_vector(heads), heads


class ShortStream(nn.Module):
    """A stream whose vectors are projected: images [N, 3, h, w] → `features`, float32 [N, 1, dim].

    With `mirror` the heads of the mirrored image are added, since that cannot be done afterwards.
    """

    def __init__(self, network: nn.Module, directions: np.ndarray, mirror: bool) -> None:
        super().__init__()
        self.network, self.mirror = network, mirror
        self.directions = nn.Buffer(torch.from_numpy(np.ascontiguousarray(directions)))

    def forward(self, images: torch.Tensor) -> Short:
        seen = torch.cat([images, images.flip(3)]) if self.mirror else images
        heads = self.network(seen).features
        if self.mirror:
            heads = heads.unflatten(0, (2, -1)).sum(0)
        short = _unit_vector(heads) @ self.directions
        return Short(nn.functional.normalize(short, dim=1)[:, None])


class Short(NamedTuple):
    """What a `ShortStream` gives: one head, of length 1."""

    features: torch.Tensor


def _unit_vector(heads: torch.Tensor) -> torch.Tensor:
    """Heads [N, H, D] → float32 [N, H·D] of length 1."""
    return (nn.functional.normalize(heads, dim=2) * heads.shape[1] ** -0.5).flatten(1)


def write(
    source: Source, weights: Path, folder: Path, streams: Sequence[str], form: Form
) -> Settings:
    """Write the network files and encoder.json, without what is measured, to an empty folder.

    Args:
        source: the student; on the CPU.
        weights: its file.
        streams: of it; all where empty.

    Raises:
        InputError: it has no such stream, or a library of the extra is missing.
    """
    extractor, student = source.extractor, source.extractor.network
    assert isinstance(student, Student)
    chosen = chosen_streams(extractor, streams)
    if form.runtime == "onnx":
        for library in ("onnx", "onnxscript", "onnxruntime"):
            optional(library, "deskpro export", "export")
    found, facts = {}, _facts(source, weights, form)
    for name in chosen:
        size, net = extractor.sizes[extractor.kinds[name]], student.streams[name]
        file = folder / form.file(name)
        heads, length = [*net.heads], extractor.shape[1]
        network: nn.Module = net
        if form.directions is not None:
            directions = form.directions[name]
            network = ShortStream(net, directions, source.flip)
            heads, length = ["short"], directions.shape[1]
        exported = ExportedStream(network, form.normalise == "inside").eval()
        content = WRITERS[form.runtime](exported, _example(size, form), facts)
        if form.images is not None:
            content = quantised(content, INPUT, form.images[name])
        write_bytes(file, content)
        found[name] = Stream(file.name, sha256(file), INPUT, *OUTPUTS, size, heads, length)
    fusion = source.fusion.facts() if source.fusion is not None and len(chosen) > 1 else None
    calibration = extractor.info.calibration
    settings = Settings(streams=found, fusion=fusion, calibration=calibration, **facts)
    write_settings(folder / ENCODER, settings)
    if "body" in chosen and (form.runtime, form.normalise) == ("onnx", "outside"):
        _describe_to_boxmot(folder / form.file("body"), found["body"].size)
    return settings


def chosen_streams(extractor: FeatureExtractor, streams: Sequence[str]) -> list[str]:
    """Those of a student's streams that are named, all where none is.

    Raises:
        InputError: it has no such stream.
    """
    if unknown := [name for name in streams if name not in extractor.heads]:
        raise InputError(
            f"--streams {','.join(streams)}: the student has no {unknown[0]}; it has "
            f"{', '.join(extractor.heads)}"
        )
    return [name for name in extractor.heads if not streams or name in streams]


def write_settings(path: Path, settings: Settings) -> None:
    """Write encoder.json."""
    write_text(path, json.dumps(asdict(settings), indent=1) + "\n")


def _facts(source: Source, weights: Path, form: Form) -> dict[str, Any]:
    """What does not depend on the streams; in each file's own metadata, too."""
    info, face = source.extractor.info, source.face
    inside = form.normalise == "inside"
    return {
        "format": 1,
        "made_by": f"deskpro {version('deskpro')}",
        "runtime": form.runtime,
        "color": "RGB",
        "resize": "bilinear with antialiasing, as PIL's BILINEAR",
        "range": [0, 255] if inside else [0, 1],
        "mean": [*MEAN],
        "std": [*STD],
        "normalise": form.normalise,
        "numbers": "float32" if form.images is None else "int8",
        "mirror": source.flip and form.directions is None,
        "face_box": {
            name: getattr(face, name) for name in ("margin", "min_side", "score", "height")
        },
        "fitted": info.fusion,
        "student": {"sha256": sha256(weights), "identities": info.num_classes} | info.network,
    }


def _example(size: tuple[int, int], form: Form) -> torch.Tensor:
    """A batch of two: with one the exporter would fix the batch at 1."""
    shape = (2, 3, *size)
    return torch.zeros(shape, dtype=torch.uint8 if form.normalise == "inside" else torch.float32)


def _dynamic() -> Any:
    return ({0: torch.export.Dim("batch", min=1)},)


def _to_onnx(network: nn.Module, example: torch.Tensor, facts: Mapping[str, Any]) -> bytes:
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[*OUTPUTS],
            dynamic_shapes=_dynamic(),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]  # stack traces, with the paths of this machine
    del model.graph.metadata_props[:]
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in facts.items()}
    onnx.helper.set_model_props(model, texts)
    return bytes(model.SerializeToString())


def _to_torch(network: nn.Module, example: torch.Tensor, facts: Mapping[str, Any]) -> bytes:
    program = torch.export.export(network, (example,), dynamic_shapes=_dynamic())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={ENCODER: json.dumps(facts)})
    return buffer.getvalue()


WRITERS: dict[str, Callable[[nn.Module, torch.Tensor, Mapping[str, Any]], bytes]] = {
    "onnx": _to_onnx,
    "torch": _to_torch,
}
"""Runtime → (network, a batch of its input, facts for its metadata) → the content of a file."""


def _describe_to_boxmot(file: Path, size: tuple[int, int]) -> None:
    """The file beside an ONNX file in which boxmot looks for what to feed it."""
    facts = {
        "schema_version": 1,
        "model_name": _MODEL_NAME,
        "preprocess": "resize",
        "model_kwargs": {"img_size": [*size]},
        "img_size": [*size],
    }
    write_text(file.with_name(f"{file.name}.metadata.json"), json.dumps(facts, indent=1) + "\n")
