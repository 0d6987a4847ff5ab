"""Write the features of a split's images to a file, for whatever a user does with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deskpro.cache.files import write_aside
from deskpro.stages.base import distributed
from deskpro.stages.base.options import Options
from deskpro.stages.data.check import check_data
from deskpro.stages.evaluation.features import extract_features, open_extractor


@dataclass(frozen=True)
class Inputs:
    """network: weights of a student or a teacher, ours or published."""

    network: Path


@dataclass(frozen=True)
class Outputs:
    """features: an .npz file."""

    features: Path


def run(options: Options, inputs: Inputs, outputs: Outputs, split: str) -> dict[str, object]:
    """Describe every image of `split` (train, query or gallery) of `data.root`.

    The file holds, in the order of the index: `path` [n] as folder/name; `raw` float32 [n, H, D],
    the inference features of the H heads (face before body; a student of both has 14) before flip
    and normalisation; `feature` float32 [n, H·D], the final feature, whose dot products are what
    `eval` ranks by. Heads of an image that is absent are 0. Returns the facts for the summary.
    """
    device = distributed.pick_device(options.device)
    data = options.data
    extractor = open_extractor(inputs.network, None, data.face_size, data.body_size, device)
    checked = check_data(
        data.root,
        options.data_train,
        splits=(split,),
        test_needs=extractor.needs,
        training=False,
    ).require()
    described = extract_features(
        extractor,
        checked.split(split),
        flip=options.eval.flip,
        batch=options.eval.batch,
        workers=data.workers,
        device=device,
    )
    with write_aside(outputs.features) as aside, aside.open("wb") as file:
        np.savez(
            file,
            path=described.table["sample_id"].to_numpy(str),
            raw=described.raw.numpy(),
            feature=described.features.flatten(1).numpy(),
        )
    return {
        "images": f"{len(described.table)} of {data.root}, {split}",
        "heads": ", ".join(f"{name} {part}" for name, part in extractor.heads.items()),
        "features": outputs.features,
    }
