"""Views: an augmentation of a sample as explicit fractions of the image.

A view is drawn once, from (seed, sample, view), stored with the targets that were computed for it,
and applied to body, LR face, HR face and mask, each at its own size. It is never replayed from a
random state. Geometry (crop, resize, flip) is one resampling of the decoded image, cut at whole
pixels of the enlarged one; erasing comes after normalisation and spares the mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from deskpro.stages.base.training_options import Views

VERSION = 2
"""Raise it when the same row of numbers gives other pixels: target caches then become stale."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet statistics per RGB channel, for images in 0..1."""
ERASED = (0.4914, 0.4822, 0.4465)
"""What an erased rectangle is filled with, after normalisation, as in the published DeSKPro."""
ERASED_PIXEL = tuple(round(255 * (e * s + m)) for e, s, m in zip(ERASED, STD, MEAN, strict=True))
"""The 8-bit colour that is nearest to it before normalisation."""


class View(NamedTuple):
    """The numbers of one view; positions and lengths are fractions of the image's sides.

    The box is cut first, enlarged to the network's size, then mirrored; the erased rectangle is
    counted on the result. Stored as one float32 row in this order.
    """

    flip: float = 0.0
    """1 mirrors left and right."""
    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0
    erase_top: float = 0.0
    erase_left: float = 0.0
    erase_height: float = 0.0
    """0 erases nothing."""
    erase_width: float = 0.0


PLAIN = View()


def draw_view(policy: Views, sample_id: str, index: int) -> View:
    """The view number `index` of a sample: the same whatever other samples or views there are.

    The augmentation of DeSKPro (arXiv 2208.12023): mirror; enlarge and crop at a random place;
    erase a rectangle whose aspect is drawn uniformly, redrawn until it fits. Area and aspect are
    those of fractions of the sides, so that one rectangle serves images of any shape.
    """
    counter = hashlib.sha256(f"{policy.seed}\0{sample_id}\0{index}".encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=np.frombuffer(counter[:16], np.uint64)))
    # A fixed number of draws before the loop keeps each field independent of the others' odds.
    flip, crop, top, left, erase = rng.random(5)
    view = View(flip=float(flip < policy.flip))
    if crop < policy.crop:
        side = 1 / policy.enlarge
        view = view._replace(top=top * (1 - side), left=left * (1 - side), height=side, width=side)
    if erase < policy.erase:
        view = view._replace(**_rectangle(rng, policy))
    return View(*np.asarray(view, np.float32).tolist())  # exactly what a float32 store gives back


def _rectangle(rng: np.random.Generator, policy: Views) -> dict[str, float]:
    for _ in range(100):
        area, aspect = rng.uniform(*policy.erase_area), rng.uniform(*policy.erase_aspect)
        height, width = (area * aspect) ** 0.5, (area / aspect) ** 0.5
        top, left = rng.random(2)
        if height < 1 and width < 1:
            return {
                "erase_top": top * (1 - height),
                "erase_left": left * (1 - width),
                "erase_height": height,
                "erase_width": width,
            }
    return {}


class DrawnViews:
    """The views of samples, drawn at each call: (row, view) → float32 [len(View)]."""

    def __init__(self, policy: Views, sample_ids: Sequence[str], plain_view: bool = False) -> None:
        """plain_view: view 0 of each sample is the plain image."""
        self.policy, self.sample_ids, self.plain_view = policy, list(sample_ids), plain_view

    def __call__(self, row: int, view: int) -> np.ndarray:
        if self.plain_view and view == 0:
            return np.asarray(PLAIN, np.float32)
        return np.asarray(draw_view(self.policy, self.sample_ids[row], view), np.float32)

    def table(self, count: int) -> np.ndarray:
        """The first `count` views of every sample: float32 [samples, count, len(View)]."""
        rows = range(len(self.sample_ids))
        flat = [self(row, view) for row in rows for view in range(count)]
        return np.asarray(flat, np.float32).reshape(len(rows), count, len(PLAIN))


class StoredViews:
    """Views stored with their targets: `table` is float32 [samples, views, len(View)]."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def __call__(self, row: int, view: int) -> np.ndarray:
        return self.table[row, view]


class CropGrid(NamedTuple):
    """A view on the pixel grid of a network's input: enlarge to (height, width), then cut.

    What is cut has the network's size.
    """

    height: int
    width: int
    top: int
    left: int


def crop_grid(view: View, size: tuple[int, int]) -> CropGrid:
    """Where a view lies for a network's `size` = (height, width)."""
    height, width = round(size[0] / view.height), round(size[1] / view.width)
    top = min(round(view.top * height), height - size[0])
    left = min(round(view.left * width), width - size[1])
    return CropGrid(height, width, top, left)


def render_view(image: Image.Image, view: View, size: tuple[int, int]) -> np.ndarray:
    """The image under the view's geometry: uint8 [3, height, width] for `size` = (height, width).

    PIL's bilinear resize with antialiasing (the reference preprocessing), straight from the
    decoded image: the plain view is exactly a resize.
    """
    height, width = size
    at = crop_grid(view, size)
    across, down = image.width / at.width, image.height / at.height
    box = (
        at.left * across,
        at.top * down,
        min((at.left + width) * across, image.width),
        min((at.top + height) * down, image.height),
    )
    pixels = np.asarray(
        image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, box)
    )
    if view.flip:
        pixels = pixels[:, ::-1]
    return np.array(pixels).transpose(2, 0, 1)  # channels stay last in memory


def render_view_fast(image: torch.Tensor, view: View, size: tuple[int, int]) -> torch.Tensor:
    """`render_view` for training: the same within 2/255, several times faster.

    image: uint8 [3, h, w], best with its channels last in memory, as decoders give it. Returns
    uint8 [3, height, width], perhaps a view of it.
    """
    at = crop_grid(view, size)
    if image.shape[1:] != (at.height, at.width):
        # As a batch whose strides are channels-last: the result then is, too.
        batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        image = torch.nn.functional.interpolate(
            batch, (at.height, at.width), mode="bilinear", antialias=True
        )[0]
    image = image[:, at.top : at.top + size[0], at.left : at.left + size[1]]
    return image.flip(2) if view.flip else image


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W] to float32, ImageNet-normalised, on the same device."""
    mean = torch.tensor(MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(3, 1, 1)
    return torch.sub(pixels, 255 * mean).div_(255 * std)  # two passes over memory, not four


def erase(
    images: torch.Tensor, views: np.ndarray, colour: Sequence[float] = ERASED
) -> torch.Tensor:
    """Fill each image's erased rectangle, in place: [B, 3, H, W], views [B, len(View)].

    colour: of images that are normalised; `ERASED_PIXEL` is that of uint8 ones.
    """
    height, width = images.shape[-2:]
    fill = torch.tensor(colour, dtype=images.dtype, device=images.device).view(3, 1, 1)
    for image, row in zip(images, views.tolist(), strict=True):
        view = View(*row)
        if view.erase_height > 0:
            top, left = round(view.erase_top * height), round(view.erase_left * width)
            bottom = round((view.erase_top + view.erase_height) * height)
            right = round((view.erase_left + view.erase_width) * width)
            image[:, top:bottom, left:right] = fill
    return images


def parsing_target(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """How much of each position is head, clothes and other skin: uint8 [B, 4, h, w], 0..255.

    mask: uint8 [B, 3, H, W], the three regions, already under the view. Resized bilinearly without
    antialiasing (half-pixel centres) to `size` = (h, w), as the published DeSKPro does (arXiv
    2208.12023). The last channel is 1 where there is any head, be it less than a byte can say:
    masks stored as JPEG have such traces around the head.
    """
    planes = mask.flatten(0, 1)[:, None].float() / 255  # one by one: the same in any memory format
    resized = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False)
    share = resized.view(len(mask), -1, *size)
    return torch.cat([(share * 255).round(), share[:, :1] > 0], 1).byte()
