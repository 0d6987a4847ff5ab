"""One picture of the plan to its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from deskpro.stages.data.benchmark.backdrop import draw_backdrop, draw_occluders
from deskpro.stages.data.benchmark.canvas import CANVAS_HEIGHT, Canvas
from deskpro.stages.data.benchmark.figure import draw_figure
from deskpro.stages.data.benchmark.optics import (
    cut,
    face_box,
    label_map,
    record,
    region_picture,
    restore,
)
from deskpro.stages.data.benchmark.options import BenchmarkOptions
from deskpro.stages.data.benchmark.people import Outfit, Person, draw_look, draw_outfit, draw_person
from deskpro.stages.data.benchmark.plan import Picture
from deskpro.stages.data.benchmark.scene import Camera, draw_camera, draw_shot
from deskpro.stages.data.benchmark.streams import stream


@dataclass(frozen=True)
class Drawing:
    """What is stored of one picture. A back view has neither faces nor mask."""

    body: Image.Image
    labels: Image.Image
    """Of `Label`, one channel; the rest is RGB."""
    lr_face: Image.Image | None = None
    hr_face: Image.Image | None = None
    mask: Image.Image | None = None


def draw_picture(picture: Picture, options: BenchmarkOptions) -> Drawing:
    """Draws one picture; a function of its arguments alone."""
    person = _person(options, picture.person)
    outfit = _outfit(options, picture.outfit)
    camera = _camera(options, picture.camera)
    # What is not the person comes from streams that know the picture's number only.
    shot, backdrop, front, optics = (
        stream(options.seed, purpose, picture.number)
        for purpose in ("shot", "backdrop", "front", "optics")
    )
    moment = draw_shot(shot, camera, options)

    size = (options.body_width, options.body_height)
    width = round(CANVAS_HEIGHT * options.body_width / options.body_height)
    canvas = Canvas(width, CANVAS_HEIGHT, (128, 128, 128))
    draw_backdrop(canvas, moment.scene, backdrop)
    head = draw_figure(canvas, person, outfit, moment, picture.back)
    draw_occluders(canvas, moment, head, front)

    body = record(canvas.picture, camera, moment, size, optics)
    labels = label_map(canvas.labels, size)
    if picture.back:
        return Drawing(body, labels)
    box, side = face_box(head, moment, canvas.size), options.face_size
    clean = cut(canvas.picture, box, side)
    return Drawing(
        body=body,
        labels=labels,
        lr_face=cut(body, box, side, options.body_height / CANVAS_HEIGHT),
        hr_face=restore(clean, camera, moment, options.restoration, optics),
        mask=region_picture(labels),
    )


@lru_cache(maxsize=1024)
def _person(options: BenchmarkOptions, number: int) -> Person:
    look = draw_look(stream(options.seed, "look", number % options.looks))
    return draw_person(stream(options.seed, "person", number), look, options.face_spread)


@lru_cache(maxsize=1024)
def _outfit(options: BenchmarkOptions, number: int) -> Outfit:
    return draw_outfit(stream(options.seed, "outfit", number))


@lru_cache(maxsize=64)
def _camera(options: BenchmarkOptions, number: int) -> Camera:
    return draw_camera(stream(options.seed, "camera", number), options)
