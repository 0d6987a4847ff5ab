"""From the clean canvas to what a camera records, and to what a face restorer makes of it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

from deskpro.stages.data.benchmark.canvas import Frame, Label
from deskpro.stages.data.benchmark.scene import Camera, Shot

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

BOX_SIDE = 2.7
"""Side of a face box, in halves of the head's height."""


def record(
    clean: Image.Image, camera: Camera, shot: Shot, size: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    """The body picture: `clean` as the camera resolves, colours and compresses it, then enlarged.

    Args:
        clean: the canvas, RGB, any size.
        size: width and height of the result, in pixels.
    """
    width = max(8, round(shot.height * size[0] / size[1]))
    small = clean.resize((width, shot.height), Image.Resampling.BOX, reducing_gap=2.0)
    small = small.filter(ImageFilter.GaussianBlur(camera.blur))
    pixels = expose(np.asarray(small, dtype=np.float32), camera, shot, 1.0)
    pixels += rng.normal(0, camera.noise, pixels.shape)
    recorded = io.BytesIO()
    to_picture(pixels).save(recorded, "JPEG", quality=camera.quality)
    return Image.open(recorded).resize(size, Image.Resampling.BICUBIC)


def restore(
    clean: Image.Image, camera: Camera, shot: Shot, strength: float, rng: np.random.Generator
) -> Image.Image:
    """The face as a restorer would give it back: sharp, with a little that is not true.

    Args:
        clean: the face cut from the canvas, RGB, already at its final size.
        strength: of everything untrue, 1 is usual.
    """
    smoothed = clean.filter(ImageFilter.GaussianBlur(0.6 * strength))
    pixels = expose(np.asarray(smoothed, dtype=np.float32), camera, shot, 0.25 * strength)
    grain = to_picture(128 + rng.normal(0, 36, (clean.height // 2, clean.width // 2)))
    texture = np.asarray(grain.resize(clean.size, Image.Resampling.BICUBIC), dtype=np.float32) - 128
    pixels += 0.06 * strength * texture[..., None] + strength * rng.normal(0, 3, 3)
    return to_picture(pixels).filter(ImageFilter.UnsharpMask(1.5, round(45 * strength), 2))


def expose(pixels: np.ndarray, camera: Camera, shot: Shot, share: float) -> np.ndarray:
    """Applies `share` of the light of the moment and of the camera's colours.

    Args:
        pixels: float32 [height, width, 3], 0..255.

    Returns:
        float32 [height, width, 3], not yet clipped to 0..255.
    """
    slope = np.linspace(-0.5, 0.5, pixels.shape[1], dtype=np.float32)[None, :, None]
    light = shot.light * (1 + shot.light_slope * slope)
    seen = (pixels * light * np.array(camera.tint, np.float32) - 128) * camera.contrast + 128
    return np.asarray(pixels + share * (seen + camera.brightness - pixels), dtype=np.float32)


def face_box(head: Frame, shot: Shot, size: tuple[int, int]) -> Box:
    """The square that a face detector would give, in canvas pixels, within the canvas."""
    side = min(BOX_SIDE * head.scale * shot.box_scale, *size)
    corner = head.origin + side * (shot.box_shift - 0.5 - 0.5j)
    left = float(np.clip(corner.real, 0, size[0] - side))
    top = float(np.clip(corner.imag, 0, size[1] - side))
    return left, top, left + side, top + side


def cut(picture: Image.Image, box: Box, side: int, scale: float = 1.0) -> Image.Image:
    """The square `box` of a picture at `side` pixels. `scale` is picture pixels per box unit."""
    left, top, right, bottom = (scale * edge for edge in box)
    return picture.resize((side, side), Image.Resampling.BICUBIC, (left, top, right, bottom))


def label_map(labels: Image.Image, size: tuple[int, int]) -> Image.Image:
    """What each pixel of the body picture shows, as `Label`."""
    return labels.resize(size, Image.Resampling.NEAREST)


def region_picture(labels: Image.Image) -> Image.Image:
    """The mask: RGB of 0 and 255, red the head, green the clothes, blue other skin.

    labels: a label map.
    """
    shown = np.asarray(labels)
    regions = ((Label.HAIR, Label.FACE), (Label.CLOTHES,), (Label.SKIN,))
    return Image.fromarray(
        np.stack([255 * np.isin(shown, r).astype(np.uint8) for r in regions], -1)
    )


def to_picture(pixels: np.ndarray) -> Image.Image:
    """Float pixels [height, width] or [height, width, 3] to a picture, rounded and clipped."""
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
