"""The features of every image of a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
import torch

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar
from deskpro.stages.data.loader import ImageDataset, batched, images_of, iterate, load
from deskpro.stages.models.extractor import FeatureExtractor, NotFiniteError


class FeatureBatch(NamedTuple):
    """The features of some rows of a table, float32 [n, H, D]; 0 where a stream's image is missing.

    raw: of the images alone. features: summed over image and mirror image if flipped, each of
    length 1.
    """

    rows: list[int]
    raw: torch.Tensor
    features: torch.Tensor


def extract_batches(
    extractor: FeatureExtractor,
    table: pd.DataFrame,
    options: Options,
    device: torch.device,
    *,
    batches: Sequence[Sequence[int]] | None = None,
    flip: bool | None = None,
    workers: int | None = None,
) -> Iterator[FeatureBatch]:
    """The features of a table's images, in evaluation mode and without gradient.

    Args:
        extractor: a network on the device.
        table: as `read_index` gives it.
        options: say what isn't given.
        device: where features are computed.
        batches: of rows; all rows in their order, `eval.batch` at a time, where None.
        flip: whether the mirror image is added; `eval.flip` where None.
        workers: processes that load images; `data.workers` where None.

    Raises:
        InputError: a feature isn't finite.
    """
    kinds, flip = extractor.kinds, options.eval.flip if flip is None else flip
    batches = batched(range(len(table)), options.eval.batch) if batches is None else batches
    workers = options.data.workers if workers is None else workers
    images = ImageDataset(table, {kind: extractor.sizes[kind] for kind in kinds.values()})
    wanted = [[(row, 0) for row in batch] for batch in batches]
    absent = {
        stream: torch.from_numpy(table[kind].isna().to_numpy(copy=True))
        for stream, kind in kinds.items()
    }
    total = sum(map(len, batches))
    with bar("features", total, "images") as progress:
        loader = iterate(load(images, wanted, workers, device))
        for rows, rendered in zip(batches, loader, strict=True):
            seen = {
                kind: images_of(rendered, kind, device)
                if extractor.normalised
                else rendered[kind].to(device)
                for kind in kinds.values()
            }
            missing = {stream: everywhere[rows] for stream, everywhere in absent.items()}
            try:
                raw, features = extractor.describe(seen, missing, flip)
            except NotFiniteError as error:
                worst = table["sample_id"].iloc[rows[error.row]]
                raise InputError(
                    f"{worst}: its feature isn't finite; these weights are broken. Train the "
                    f"{extractor.info.kind} again, or use other weights"
                ) from None
            yield FeatureBatch([*rows], raw, features)
            progress.advance(len(rows))
