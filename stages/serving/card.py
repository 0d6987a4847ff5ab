"""The README.md of an exported folder: what the encoder is, what it reaches, and how it is used."""

from __future__ import annotations

from collections.abc import Mapping

from deskpro.stages.models.exported import Settings
from deskpro.stages.reporting import cells

PROGRAM = '''\
"""python encode.py FOLDER OUT.npy BODY [FACE]: writes the vector of a person's images."""

import json
import sys
from pathlib import Path

import numpy as np
{library}
from PIL import Image, ImageOps


def encode(folder, images):
    """images: "body" and "face" → PIL image or None. Returns a vector, float32 [D]."""
    settings, parts = json.loads((folder / "encoder.json").read_text()), []
    for name, stream in settings["streams"].items():
        if images.get(name) is None:
            parts.append(np.zeros(len(stream["heads"]) * stream["dim"], np.float32))
            continue
        height, width = stream["size"]
        image = ImageOps.exif_transpose(images[name]).convert("RGB")
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        pixels = np.stack([pixels, pixels[:, ::-1]])[: 1 + settings["mirror"]]
        batch = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        if settings["normalise"] == "outside":
            mean, std = (np.float32(settings[key]).reshape(3, 1, 1) for key in ("mean", "std"))
            batch = (batch / np.float32(255) - mean) / std
        file = str(folder / stream["file"])
{call}
        heads = heads.sum(0)
        heads /= np.linalg.norm(heads, axis=1, keepdims=True)
        parts.append(heads.ravel() / len(heads) ** 0.5)
    return np.concatenate(parts)


files = dict(zip(("body", "face"), sys.argv[3:], strict=False))
images = {{name: Image.open(file) for name, file in files.items()}}
np.save(sys.argv[2], encode(Path(sys.argv[1]), images))
'''
"""Of at most 40 lines."""

_CALLS = {
    "onnx": (
        "import onnxruntime",
        "        session = onnxruntime.InferenceSession(file)\n"
        '        (heads,) = session.run([stream["heads_output"]], {stream["input"]: batch})',
    ),
    "torch": (
        "import torch",
        "        network = torch.export.load(file).module()\n"
        "        heads = network(torch.from_numpy(batch))[1].detach().numpy()",
    ),
}


def program(runtime: str) -> str:
    """The program that makes vectors with a runtime, numpy and PIL alone."""
    library, call = _CALLS[runtime]
    return PROGRAM.format(library=library, call=call)


def card(settings: Settings, recipe: Mapping[str, object]) -> str:
    """The text, Markdown. recipe: what → value, of the training."""
    return (
        "\n\n".join(
            [
                "# A person encoder",
                _summary(settings),
                "## Use\n" + _use(settings),
                "## Data and recipe\n" + cells.markdown(("what", "value"), [*recipe.items()]),
                "## Numbers\n" + _numbers(settings),
                *(["## Sizes\n" + _sizes(settings)] if settings.sizes else []),
                "## Limits\n" + LIMITS.rstrip(),
                "## Licence\n" + LICENCE,
            ]
        )
        + "\n"
    )


LIMITS = """\
* Images of other cameras, crops or people score otherwise. Choose a threshold on your own images.
* Who shows no face is compared by the body, which tells little of people who change their clothes.
* Descriptors of people are personal data. Ask who may be searched for, and how errors are noticed.
"""

LICENCE = """\
The program above is free to use (MIT, as DeSKPro, which wrote this folder). The weights carry the
terms of the images, and of the pre-trained weights, that they were trained on: see above."""


def _summary(settings: Settings) -> str:
    streams = ", ".join(
        f"`{stream.file}` ({name}, {stream.size[0]} × {stream.size[1]})"
        for name, stream in settings.streams.items()
    )
    length = sum(len(stream.heads) * stream.dim for stream in settings.streams.values())
    return (
        f"A student of DeSKPro (arXiv:2208.12023), written by {settings.made_by}: images of a "
        f"person → a vector of {length} numbers, a part for each of {streams}. A part has length "
        "1, or is 0 where its image isn't there; the dot product of two parts is their cosine."
    )


def _use(settings: Settings) -> str:
    taken = (
        "float32, (pixels / 255 − mean) / std"
        if settings.normalise == "outside"
        else "uint8, 0 to 255: the file normalises"
    )
    fusion, weighed = settings.fusion, ""
    if fusion is not None:
        weighed = (
            "\n\nThe similarity of two people who both have a face is "
            f"{fusion['bias']:.4g} + {fusion['face']:.4g}·cos(face) + "
            f"{fusion['body']:.4g}·cos(body); else it is {fusion['bias_alone']:.4g} + "
            f"{fusion['body_alone']:.4g}·cos(body) (`fusion` of `encoder.json`)."
        )
    outputs = (
        "`features` [N, H·D], a vector of length 1 of the images alone, for programs that take one "
        "output; `heads` [N, H, D], of which this program makes vectors"
        + (", with the mirrored image" if settings.mirror else "")
    )
    if settings.sizes:
        outputs = "`features` [N, D], the part of a vector, and `heads`, the same [N, 1, D]"
    return (
        f"Input `images` [N, 3, h, w], RGB, {taken}. Outputs: {outputs}:\n\n```python\n"
        f"{program(settings.runtime)}```{weighed}"
    )


def _numbers(settings: Settings) -> str:
    found, measures = settings.evaluation, ("mAP", "rank1")
    rows = [
        [name, stream, *(cells.within(numbers[key], *numbers["interval"][key]) for key in measures)]
        for name, protocol in found["protocols"].items()
        for stream, numbers in protocol["streams"].items()
    ]
    rules = "\n".join(f"* `{name}`: {p['rule']}" for name, p in found["protocols"].items())
    parity = settings.parity
    lost = ""
    if settings.numbers == "int8":
        pairs = [
            (name, stream, *(f"{100 * value:.2f}" for value in pair))
            for name, of_stream in parity["mAP"].items()
            for stream, pair in of_stream.items()
        ]
        lost = "\n\nWhat int8 costs, mAP in %:\n\n" + cells.markdown(
            ("protocol", "stream", "float32", "int8"), pairs
        )
    return (
        f"As these files score by {parity['runtime']}: {found['queries']} queries of "
        f"{found['identities']} people and {found['gallery']} gallery images of "
        f"`{found['dataset']}`; %, with the 95 % interval over people."
        f"\n\n{cells.markdown(('protocol', 'stream', 'mAP', 'rank 1'), rows)}\n\n{rules}\n\n"
        f"Against the student that they were made of: vectors differ by at most "
        f"{parity['max_difference']:.1e}, their cosines are at least {parity['min_cosine']:.6f}."
        f"{lost}"
    )


def _sizes(settings: Settings) -> str:
    protocol = next(iter(settings.evaluation["protocols"]))
    rows = cells.markdown(*size_rows(settings))
    return (
        "Parts of a vector are projected to the directions in which those of training images are "
        "long: neither centred nor whitened, so that cosines stay. Stored as int8, a vector is "
        "scaled so that its largest number is 127; a part must have length 1 again before it is "
        "compared. mAP of "
        f"`{protocol}`, %:\n\n{rows}"
    )


def size_rows(settings: Settings) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of `settings.sizes`; mAP in %."""
    streams = [*settings.sizes[0]["mAP"]]
    return ["numbers of a part", "stored as", "bytes", *streams], [
        [str(row["numbers"]), row["storage"], str(row["bytes"])]
        + [f"{100 * row['mAP'][stream]:.2f}" for stream in streams]
        for row in settings.sizes
    ]
