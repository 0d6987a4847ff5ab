"""Decoded pictures under their views, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from stages.data.views import PLAIN, View, erase, look, normalise
from stages.errors import InputError


def _plain(row: int, view: int) -> np.ndarray:
    return np.asarray(PLAIN, np.float32)


class Pictures(Dataset[dict[str, Any]]):
    """Some kinds of pictures of every sample under every view.

    Item (row, view) is a dict: for each kind uint8 [3, H, W], zeros where the file is absent; `row`
    and `view` as given; `look`, the view's numbers, float32 [len(View)].
    """

    def __init__(
        self,
        table: pd.DataFrame,
        sizes: Mapping[str, tuple[int, int]],
        views: Callable[[int, int], np.ndarray] = _plain,
    ) -> None:
        """sizes: kind → (height, width); views: (row, view) → float32 [len(View)]."""
        self.paths = {kind: table[kind].tolist() for kind in sizes}
        self.sizes = dict(sizes)
        self.views = views
        self.rows = len(table)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        row, view = item
        numbers = self.views(row, view)
        sample: dict[str, Any] = {"row": row, "view": view, "look": torch.from_numpy(numbers)}
        for kind, size in self.sizes.items():
            path = self.paths[kind][row]
            if path is None:
                sample[kind] = torch.zeros(3, *size, dtype=torch.uint8)
                continue
            try:
                with Image.open(path) as picture:
                    sample[kind] = torch.from_numpy(look(picture, View(*numbers.tolist()), size))
            except OSError as error:
                raise InputError(f"{path}: unreadable picture: {error}") from None
        return sample


def load(
    pictures: Pictures,
    batches: Iterable[list[tuple[int, int]]],
    workers: int,
    device: torch.device,
) -> DataLoader[dict[str, Any]]:
    """A loader of the given batches of (row, view); values don't depend on `workers`."""
    return DataLoader(
        pictures,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


def batches_in_order(pairs: Sequence[tuple[int, int]], size: int) -> list[list[tuple[int, int]]]:
    """(row, view) pairs as they come, `size` a batch."""
    return [list(pairs[start : start + size]) for start in range(0, len(pairs), size)]


def photographs(batch: Mapping[str, Any], kind: str, device: torch.device) -> torch.Tensor:
    """One kind of a batch as the networks take it: float32 [B, 3, H, W], normalised and erased."""
    pixels = batch[kind].to(device, non_blocking=True)
    return erase(normalise(pixels), batch["look"].numpy())


def iterate(loader: DataLoader[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The loader's batches; a worker's InputError arrives as its own one line."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from None
