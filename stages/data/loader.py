"""Decoded images under their views, in batches."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from simplejpeg import decode_jpeg, decode_jpeg_header
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.images import UNREADABLE, read_image
from deskpro.stages.data.views import PLAIN, View, erase, normalise, render_view, render_view_fast

Things = TypeVar("Things", bound=Sequence[Any])


def batched(things: Things, size: int) -> list[Things]:
    """Slices of a sequence in order, `size` long but for the last."""
    return [things[start : start + size] for start in range(0, len(things), size)]  # type: ignore[misc]


_TURNS = b"Exif\0", b"tiff:Orientation"
"""In a JPEG file: what may turn the image, as EXIF or as XMP."""
TEACHER = "teacher:"
"""Before the kind of an image that the student sees, too, but quickly rendered."""


def _plain(row: int, view: int) -> np.ndarray:
    return np.asarray(PLAIN, np.float32)


class ImageDataset(Dataset[dict[str, Any]]):
    """Some kinds of images of every sample under every view.

    Item (row, view) is a dict: for each kind uint8 [3, H, W], zeros where the file is absent; `row`
    and `view` as given; `view_params`, the view's numbers, float32 [len(View)].
    """

    def __init__(
        self,
        table: pd.DataFrame,
        sizes: Mapping[str, tuple[int, int]],
        views: Callable[[int, int], np.ndarray] = _plain,
        *,
        quick: Collection[str] = (),
    ) -> None:
        """sizes: kind → (height, width); `teacher:KIND` for one that is rendered once more; views:
        (row, view) → float32 [len(View)]; quick: kinds whose pixels may be within 2/255 of the
        reference preprocessing, for training."""
        self.quick = quick
        self.paths = {kind: table[kind.removeprefix(TEACHER)].tolist() for kind in sizes}
        self.sizes = dict(sizes)
        self.views = views
        self.rows = len(table)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        return {name: value[0] for name, value in self.__getitems__([item]).items()}

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """A batch of items at once: each image is written where the batch wants it.

        A file is decoded once for the views of its row.
        """
        numbers = np.stack([self.views(row, view) for row, view in items])
        batch: dict[str, Any] = {
            "row": torch.tensor([row for row, _ in items]),
            "view": torch.tensor([view for _, view in items]),
            "view_params": torch.from_numpy(numbers),
        }
        views: dict[int, dict[int, View]] = {}  # row → place in the batch → view
        for i, (row, _) in enumerate(items):
            views.setdefault(row, {})[i] = View(*numbers[i].tolist())
        for kind, size in self.sizes.items():
            pixels = _memory(len(items), *size)
            batch[kind] = pixels.permute(0, 3, 1, 2)
            for row, places in views.items():
                path = self.paths[kind][row]
                if path is None:
                    pixels[[*places]] = 0
                else:
                    rendered = self._render_views(kind, path, places.values(), size)
                    for i, image in zip(places, rendered, strict=True):
                        pixels[i] = image.permute(1, 2, 0)
        return batch

    def _render_views(
        self, kind: str, path: str, views: Iterable[View], size: tuple[int, int]
    ) -> list[torch.Tensor]:
        """uint8 [3, H, W] for each view of a file, channels last in memory."""
        try:
            if kind in self.quick:
                image = _decode(path)
                return [render_view_fast(image, view, size) for view in views]
            whole = read_image(path)
            return [torch.from_numpy(render_view(whole, view, size)) for view in views]
        except UNREADABLE as error:
            raise InputError(f"{path}: unreadable image: {error}") from None


def _memory(count: int, height: int, width: int) -> torch.Tensor:
    """Room for images, uint8 [count, height, width, 3]; in a worker where its parent sees it."""
    if get_worker_info() is None:
        return torch.empty(count, height, width, 3, dtype=torch.uint8)
    # As torch's own collate does: a tensor made elsewhere would be copied once more.
    storage = torch.UntypedStorage._new_shared(count * height * width * 3)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(count, height, width, 3)


def _decode(path: str) -> torch.Tensor:
    """uint8 [3, h, w], channels last in memory: the pixels that PIL decodes, JPEG much quicker."""
    with open(path, "rb") as file:  # noqa: PTH123 - a Path costs as much as a small file's reading
        encoded = file.read()
    if encoded.startswith(b"\xff\xd8") and not any(mark in encoded for mark in _TURNS):
        try:
            # CMYK becomes RGB by PIL's rule.
            if decode_jpeg_header(encoded)[2] not in ("CMYK", "YCCK"):
                return torch.from_numpy(decode_jpeg(encoded, "RGB")).permute(2, 0, 1)
        except ValueError:  # PIL reads more files, and its errors are clearer
            pass
    return torch.from_numpy(np.array(read_image(io.BytesIO(encoded)))).permute(2, 0, 1)


class MultiViewDataset(Dataset[dict[str, Any]]):
    """Samples under several views at once, for a teacher.

    Item (row, views) is a batch of `ImageDataset` with `pixels`: by name int64 [V], the bits of
    `pixel_hash`, as torch has few operations on uint64.
    """

    def __init__(self, images: ImageDataset, hashed: Mapping[str, Sequence[str]]) -> None:
        """hashed: name → the kinds of images whose pixels are hashed together."""
        self.images, self.hashed = images, hashed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, Sequence[int]]) -> dict[str, Any]:
        row, views = item
        sample = self.images.__getitems__([(row, view) for view in views])
        pixels = {}
        for name, kinds in self.hashed.items():
            images = [sample[kind].numpy() for kind in kinds]
            hashes = [pixel_hash(*(image[i] for image in images)) for i in range(len(views))]
            pixels[name] = torch.from_numpy(np.asarray(hashes, np.uint64).view(np.int64))
        return sample | {"pixels": pixels}


def pixel_hash(*images: np.ndarray) -> int:
    """64 bits of BLAKE2b over the pixels of images, one after the other."""
    digest = hashlib.blake2b(digest_size=8)
    for image in images:
        digest.update(np.ascontiguousarray(image).data)
    return int.from_bytes(digest.digest(), "little")


def load(
    images: ImageDataset | MultiViewDataset,
    batches: Iterable[list[Any]],
    workers: int,
    device: torch.device,
    ahead: int = 2,
) -> DataLoader[dict[str, Any]]:
    """A loader of the given batches of items; values don't depend on `workers`.

    ahead: batches that each worker prepares beyond the one in use.
    """
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=ahead if workers else None,
        collate_fn=_collate,
        worker_init_fn=_obey_parent_alone,
        pin_memory=device.type == "cuda",
    )


def _collate(samples: Any) -> dict[str, Any]:
    """A batch; `ImageDataset` gives whole ones."""
    return samples if isinstance(samples, dict) else default_collate(samples)


def _obey_parent_alone(worker: int) -> None:
    """Ctrl-C, or a scheduler's SIGTERM, reaches every process of a group: the parent decides.

    It stops after a whole step, for which it needs its workers, and ends them with a SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    parent = multiprocessing.parent_process()

    def obey() -> None:
        while parent is not None and signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
            pass
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()


def images_of(
    batch: Mapping[str, Any], kind: str, device: torch.device, *, channels_last: bool = True
) -> torch.Tensor:
    """One kind of a batch as the networks take it: float32 [B, 3, H, W], normalised and erased.

    channels_last: in memory, too.
    """
    pixels = batch[kind].to(device, non_blocking=True)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return erase(normalise(pixels).contiguous(memory_format=layout), batch["view_params"].numpy())


def iterate(loader: DataLoader[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The loader's batches; an InputError of a worker is raised with its own message."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from None
