"""int8: the numbers of an ONNX file in a byte each, by onnxruntime's static quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from deskpro.stages.base.extras import optional

BATCH = 16
"""Images whose ranges are looked at in one pass."""


def quantised(model: bytes, name: str, images: np.ndarray) -> bytes:
    """An ONNX file whose weights are int8, a scale for each channel, and whose maps are uint8.

    name: of its input; images: what it may see, [n, 3, h, w]. The range of each map is its range on
    these images. Its own metadata are kept.
    """
    import onnx

    library = optional("onnxruntime.quantization", "--int8", "export")

    class Reader(library.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(
                images[start : start + BATCH] for start in range(0, len(images), BATCH)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch}

    proto = onnx.load_from_string(model)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "model.onnx"
        library.quantize_static(
            proto,
            out,
            Reader(),
            per_channel=True,
            activation_type=library.QuantType.QUInt8,  # the products that processors have
            weight_type=library.QuantType.QInt8,
        )
        found = onnx.load(out)
    del found.metadata_props[:]
    found.metadata_props.extend(proto.metadata_props)
    return bytes(found.SerializeToString())
