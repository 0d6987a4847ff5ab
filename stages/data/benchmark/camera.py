"""How a camera sees: what stands before it, and what it and a face restorer make of a face."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from deskpro.stages.data.benchmark.canvas import HEIGHT, Canvas, Colour, blend, darker
from deskpro.stages.data.benchmark.options import BenchmarkOptions
from deskpro.stages.data.benchmark.people import Shot, between, draw_numbers

BOX_SIDE = 2.7
"""Side of a face box, in halves of the head's height."""


@dataclass(frozen=True)
class Camera:
    """A camera: its background, and how it sees."""

    wall: Colour
    floor: Colour
    things: Colour
    tint: tuple[float, float, float]
    """Factors of red, green and blue."""

    horizon: float = between(0.72, 0.86)
    """Where the wall ends, as a share of the image's height."""
    thing_height: float = between(0.06, 0.3)
    """Height of what hangs on the wall, as a share of the image's."""
    contrast: float = between(-0.22, 0.1)
    brightness: float = between(-14, 14)
    blur: float = between(0.4, 0.9)
    """Standard deviation in pixels of what the camera resolves."""
    resolution: float = between(0, 1)
    """Height in pixels that it resolves: 0 the options' `low_height`, 1 their `high_height`."""
    noise: float = between(3, 7)
    """Standard deviation in grey levels of 0..255."""
    compression: float = between(20, 50)
    """How far the JPEG quality of the recording is below 95."""


def stand(shot: Shot, backdrop: Image.Image) -> Canvas:
    """The canvas before a backdrop: 0 at the feet, the unit is the tallest person's height."""
    width, height = backdrop.size
    feet = complex((0.5 + shot.x) * width, shot.ground * height)
    return Canvas(backdrop, Image.new("L", backdrop.size), feet, shot.scale * height)


def face_box(shot: Shot, head: Canvas) -> tuple[float, float, float]:
    """Left, top and side of a face detector's square, in pixels, within the canvas."""
    size = head.image.size
    side = min(BOX_SIDE * head.scale * shot.box_scale, *size)
    corner = head.origin + side * (complex(shot.box_x, shot.box_y) - 0.5 - 0.5j)
    left, top = np.clip((corner.real, corner.imag), 0, np.subtract(size, side)).tolist()
    return left, top, side


def draw_camera(rng: np.random.Generator) -> Camera:
    """A camera."""
    wall, floor, things = (_colour(rng) for _ in range(3))
    red, green, blue = rng.uniform(-0.1, 0.1, 3).tolist()
    return Camera(wall, floor, things, (red, green, blue), **draw_numbers(Camera, rng))


def draw_backdrop(camera: Camera, width: int, rng: np.random.Generator) -> Image.Image:
    """What stands before a camera, as high as a canvas: a wall with things on it, a floor."""
    backdrop = Image.new("RGB", (width, HEIGHT), camera.wall)
    pen, ground = ImageDraw.Draw(backdrop), camera.horizon * HEIGHT
    left = -rng.uniform(0, 0.4) * width
    while left < width:  # windows, posters, shelves
        wide, gap = rng.uniform((0.12, 0.04), (0.4, 0.2)) * width
        tall, colour = camera.thing_height * HEIGHT, blend(camera.things, _colour(rng), 0.4)
        for top in np.arange(rng.uniform(-tall, 0), ground - tall, 1.5 * tall):
            pen.rectangle((left, top, left + wide, top + tall), colour, darker(colour, 0.3), 5)
        left += wide + gap
    pen.rectangle((0, ground, width, HEIGHT), camera.floor, darker(camera.floor, 0.3), 4)
    return backdrop


def record(
    clean: Image.Image, camera: Camera, shot: Shot, options: BenchmarkOptions,
    rng: np.random.Generator,
) -> Image.Image:  # fmt: skip
    """The body image: `clean` as the camera resolves, colours and compresses it, then enlarged."""
    size, strength = (options.body_width, options.body_height), options.degradation
    height = round(np.interp(camera.resolution, (0, 1), (options.low_height, options.high_height)))
    width = max(8, round(height * size[0] / size[1]))
    small = clean.resize((width, height), Image.Resampling.BOX, reducing_gap=2.0)
    small = small.filter(ImageFilter.GaussianBlur(strength * camera.blur))
    pixels = _expose(np.asarray(small, dtype=np.float32), camera, shot, strength, 1.0)
    pixels += rng.normal(0, strength * camera.noise, pixels.shape)
    recorded = io.BytesIO()
    quality = int(np.clip(95 - strength * camera.compression, 20, 95))
    _to_image(pixels).save(recorded, "JPEG", quality=quality)
    return Image.open(recorded).resize(size, Image.Resampling.BICUBIC)


def restore(
    clean: Image.Image, camera: Camera, shot: Shot, strength: float, rng: np.random.Generator
) -> Image.Image:
    """The face as a restorer would give it back: sharp, with a little that is not true."""
    smooth = np.asarray(clean.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float32)
    pixels = _expose(smooth, camera, shot, strength, 0.25) + rng.normal(0, 3, 3)
    pixels += rng.normal(0, 2, (*pixels.shape[:2], 1))
    return _to_image(pixels).filter(ImageFilter.UnsharpMask(1.5, 45, 2))


def cut(image: Image.Image, box: tuple[float, float, float], size: int) -> Image.Image:
    """The square `box` (left, top, side, in pixels of the canvas) at `size` pixels."""
    left, top, side = (edge * image.height / HEIGHT for edge in box)
    region = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, region)


def _expose(
    pixels: np.ndarray, camera: Camera, shot: Shot, strength: float, share: float
) -> np.ndarray:
    """A `share` of the light of the moment and of the camera's colours: float, not clipped."""
    slope = np.linspace(-0.5, 0.5, pixels.shape[1], dtype=np.float32)[None, :, None]
    light = shot.light * (1 + shot.slope * slope) * (1 + strength * np.array(camera.tint))
    seen = (pixels * light - 128) * (1 + strength * camera.contrast) + 128
    return np.asarray(pixels + share * (seen + strength * camera.brightness - pixels))


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _colour(rng: np.random.Generator) -> Colour:
    """A muted colour of walls and things."""
    grey = rng.uniform(80, 210)
    red, green, blue = np.clip(grey + rng.normal(0, 24, 3), 20, 240).astype(int).tolist()
    return red, green, blue
