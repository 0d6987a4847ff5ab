"""Write the features of a split's images to a file, for other programs."""

from __future__ import annotations

from pathlib import Path

from deskpro.cache.files import write_aside
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.data.check import check_data


def run(options: Options, network: Path, split: str, out: Path) -> dict[str, object]:
    """Extract the features of every image of `split` (train, query or gallery) of `data.root`.

    `out` is an .npz file with, in the order of the index: `path` [n], folder/name; `raw` float32
    [n, H, D], the features of the H heads (face before body; 14 for a student of both) before flip
    and normalisation; `feature` float32 [n, H·D], whose dot products rank as `eval` does by one
    stream, or by both at `eval.face_weight: 0.5`. The heads of a missing image are 0.

    Args:
        network: weights of a student or a teacher, ours or published.

    Returns:
        What the summary shows.

    Raises:
        InputError: `out` is no .npz file, or weights or images can't be used.
    """
    if out.suffix != ".npz":
        raise InputError(f"{out}: features are written as .npz; give {out.with_suffix('.npz')}")
    import numpy as np

    from deskpro.stages.base.distributed import pick_device
    from deskpro.stages.evaluation.features import extract_batches
    from deskpro.stages.models.extractor import open_extractor

    device, data = pick_device(options.device), options.data
    extractor = open_extractor(network, None, data.face_size, data.body_size, device)
    table = (
        check_data(
            data.root,
            options.train_set,
            splits=(split,),
            test_needs=extractor.needs,
            training=False,
        )
        .require()
        .split(split)
    )
    found = [*extract_batches(extractor, table, options, device)]
    features = np.concatenate([batch.features.flatten(1).numpy() for batch in found])
    with write_aside(out) as aside, aside.open("wb") as file:
        np.savez(
            file,
            path=table["sample_id"].to_numpy(str),
            raw=np.concatenate([batch.raw.numpy() for batch in found]),
            feature=features,
        )
    return {
        "images": f"{len(table)} of {data.root}, {split}",
        "heads": ", ".join(f"{name} {h.start}:{h.stop}" for name, h in extractor.heads.items()),
        "features": out,
    }
