"""Draws the benchmark and writes it to disk, complete or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from deskpro.cache.files import write_folder_aside
from deskpro.stages.data.benchmark import camera as cameras
from deskpro.stages.data.benchmark.canvas import HEIGHT, Label
from deskpro.stages.data.benchmark.figure import draw_figure
from deskpro.stages.data.benchmark.options import BenchmarkOptions
from deskpro.stages.data.benchmark.people import Shot, draw_numbers, draw_outfit, draw_person
from deskpro.stages.data.benchmark.plan import SPLITS, Sample, plan_samples, stream

FORMAT = 3
"""Raise it whenever the same options give other files."""

KINDS = ("imgs", "labels", "mask", "lr_face", "hr_face")
"""The folders of images; the first three have every image, the faces have none from behind."""

_REGIONS = np.array([[Label.HAIR, Label.FACE], 2 * [Label.CLOTHES], 2 * [Label.SKIN]])
"""What is red, green and blue in a mask."""

_BATCH = 16


def make_benchmark(
    root: Path,
    options: BenchmarkOptions,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Draw the benchmark into the new folder `root`. The files don't depend on `workers`.

    Args:
        root: where to write; must not exist. Its parents are made.
        workers: processes to draw with; 1 draws in this process, None takes one per usable core.
        progress: called here with the number of images done and of all images.

    Returns:
        Number of images per split, of all `images`, of `identities`, and `without_face`.

    Raises:
        FileExistsError: if `root` exists; it is left as it is.
        ValueError: if `workers` is below 1.
    """
    root = Path(root)
    if os.path.lexists(root):
        raise FileExistsError(f"{root} exists; remove it or choose another folder")
    if workers is not None and workers < 1:
        raise ValueError(f"workers: {workers!r} is not allowed; use None or a number >= 1")

    samples, done = plan_samples(options), 0
    with write_folder_aside(root) as partly:
        for folder in product(KINDS, SPLITS):
            partly.joinpath(*folder).mkdir(parents=True)
        for written in _write_all(
            partly, samples, options, workers or len(os.sched_getaffinity(0))
        ):
            done += written
            if progress:
                progress(done, len(samples))
        counts = _write_tables(partly, samples, options)
    return counts


def draw_sample(sample: Sample, options: BenchmarkOptions) -> dict[str, Image.Image]:
    """The images of one sample, by kind; a function of its arguments alone."""
    person = _drawn(draw_person, options.seed, sample.person)
    outfit = _drawn(draw_outfit, options.seed, sample.outfit)
    camera = _drawn(cameras.draw_camera, options.seed, sample.camera)
    # What is not the person comes from streams that know the sample's number only.
    moment, behind, optics = (
        stream(options.seed, purpose, sample.number) for purpose in ("shot", "backdrop", "optics")
    )
    shot = Shot(**draw_numbers(Shot, moment))
    width = round(HEIGHT * options.body_width / options.body_height)
    canvas = cameras.stand(shot, cameras.draw_backdrop(camera, width, behind))
    head = draw_figure(canvas, person, outfit, shot, sample.back)

    body = cameras.record(canvas.image, camera, shot, options, optics)
    labels = canvas.labels.resize(body.size, Image.Resampling.NEAREST)
    regions = (np.asarray(labels)[..., None, None] == _REGIONS).any(-1)
    drawn = {"imgs": body, "labels": labels, "mask": Image.fromarray(regions * np.uint8(255))}
    if not sample.back:
        box, side = cameras.face_box(shot, head), options.face_size
        clean = cameras.cut(canvas.image, box, side)
        drawn["lr_face"] = cameras.cut(body, box, side)
        drawn["hr_face"] = cameras.restore(clean, camera, shot, options.degradation, optics)
    return drawn


@lru_cache(maxsize=2048)
def _drawn(draw: Callable[[np.random.Generator], Any], seed: int, number: int) -> Any:
    """The person, outfit or camera of a number."""
    return draw(stream(seed, draw.__name__, number))


def _write_all(
    folder: Path, samples: list[Sample], options: BenchmarkOptions, workers: int
) -> Iterator[int]:
    """Draw and write every sample; yield how many each step has written."""
    batches = [samples[start : start + _BATCH] for start in range(0, len(samples), _BATCH)]
    write = partial(_write_batch, folder, options)
    if workers == 1:
        yield from map(write, batches)
        return
    # Spawned, not forked: the caller may hold threads or a GPU.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(batches)), context) as pool:
        yield from pool.map(write, batches)


def _write_batch(folder: Path, options: BenchmarkOptions, samples: list[Sample]) -> int:
    for sample in samples:
        for kind, image in draw_sample(sample, options).items():
            path = folder / kind / sample.path
            if kind == "labels":
                image.save(path.with_suffix(".png"))
            elif kind == "mask":  # a threshold of 128 must give its regions back to the pixel
                image.save(path, quality=100, subsampling=0)
            else:
                image.save(path, quality=92)
    return len(samples)


def _write_tables(folder: Path, samples: list[Sample], options: BenchmarkOptions) -> dict[str, int]:
    """Write `clothes.csv` and `benchmark.json`; return the counts."""
    rows = sorted((sample.path, f"outfit{sample.outfit:03d}") for sample in samples)
    clothes = pd.DataFrame(rows, columns=["path", "clothes"])
    clothes.to_csv(folder / "clothes.csv", index=False, lineterminator="\n")
    splits = Counter(sample.split for sample in samples)
    counts = {split: splits[split] for split in SPLITS} | {
        "images": len(samples),
        "identities": len({sample.person for sample in samples}),
        "without_face": sum(sample.back for sample in samples),
    }
    facts = {"format": FORMAT, "options": options.model_dump(), "counts": counts}
    (folder / "benchmark.json").write_text(json.dumps(facts, indent=2) + "\n")
    return counts
