"""Decoded pictures under their views, in batches."""

from __future__ import annotations

import hashlib
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
        sample = self.looks(row, (view,))
        return {name: value[0] for name, value in sample.items()} | {"row": row, "view": view}

    def looks(self, row: int, views: Sequence[int]) -> dict[str, torch.Tensor]:
        """A sample under several views, each file decoded once.

        For each kind uint8 [V, 3, H, W]; `look` float32 [V, len(View)].
        """
        numbers = [self.views(row, view) for view in views]
        sample = {"look": torch.from_numpy(np.stack(numbers))}
        for kind, size in self.sizes.items():
            path = self.paths[kind][row]
            if path is None:
                sample[kind] = torch.zeros(len(numbers), 3, *size, dtype=torch.uint8)
                continue
            try:
                with Image.open(path) as picture:
                    pixels = [look(picture, View(*each.tolist()), size) for each in numbers]
            except OSError as error:
                raise InputError(f"{path}: unreadable picture: {error}") from None
            sample[kind] = torch.from_numpy(np.stack(pixels))
        return sample


class EveryLook(Dataset[dict[str, Any]]):
    """Samples under several views at once, for a teacher.

    Item (row, views) is what `Pictures.looks` gives, with `row`, and `pixels` int64 [V]: the bits
    of `pixel_hash`, as torch has few operations on uint64.
    """

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, item: tuple[int, Sequence[int]]) -> dict[str, Any]:
        row, views = item
        sample = self.pictures.looks(row, views)
        kinds = [sample[kind].numpy() for kind in self.pictures.sizes]
        hashes = [pixel_hash(*(kind[i] for kind in kinds)) for i in range(len(views))]
        pixels = np.asarray(hashes, np.uint64).view(np.int64)
        return sample | {"row": row, "pixels": torch.from_numpy(pixels)}


def pixel_hash(*pictures: np.ndarray) -> int:
    """64 bits of BLAKE2b over the pixels of pictures, one after the other."""
    digest = hashlib.blake2b(digest_size=8)
    for picture in pictures:
        digest.update(np.ascontiguousarray(picture).data)
    return int.from_bytes(digest.digest(), "little")


def load(
    pictures: Pictures | EveryLook,
    batches: Iterable[list[Any]],
    workers: int,
    device: torch.device,
    ahead: int = 2,
) -> DataLoader[dict[str, Any]]:
    """A loader of the given batches of items; values don't depend on `workers`.

    ahead: batches that each worker prepares beyond the one in use.
    """
    return DataLoader(
        pictures,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=ahead if workers else None,
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
