"""Writes the benchmark to disk, complete or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd
from PIL import Image

from deskpro.stages.data.benchmark.draw import draw_picture
from deskpro.stages.data.benchmark.options import BenchmarkOptions
from deskpro.stages.data.benchmark.plan import SPLITS, Picture, plan_pictures

FORMAT = 2
"""Raise it whenever the same options give other files."""

FOLDERS = {
    "body": "imgs",
    "labels": "labels",
    "lr_face": "lr_face",
    "hr_face": "hr_face",
    "mask": "mask",
}
"""Which folder holds which field of a `Drawing`."""

_BATCH = 16


def make_benchmark(
    root: Path,
    options: BenchmarkOptions,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Draws the benchmark into the new folder `root`. The files don't depend on `workers`.

    Args:
        root: where to write; must not exist. Its parents are made.
        workers: processes to draw with; 1 draws in this process, None takes one per usable core.
        progress: called here with the number of pictures done and of all pictures.

    Returns:
        Number of pictures per split, of all `pictures`, of `identities`, and `without_face`.

    Raises:
        FileExistsError: if `root` exists; it is left as it is.
        ValueError: if `workers` is below 1.
    """
    root = Path(root)
    if os.path.lexists(root):
        raise FileExistsError(f"{root} exists; remove it or choose another folder")
    if workers is not None and workers < 1:
        raise ValueError(f"workers: {workers!r} is not allowed; use None or a number >= 1")

    pictures = plan_pictures(options)
    root.parent.mkdir(parents=True, exist_ok=True)
    # Beside the root, so that the last step is a rename; a killed run leaves this folder only.
    aside = Path(tempfile.mkdtemp(prefix=f".{root.name}.partial-", dir=root.parent))
    partial = aside / "benchmark"
    try:
        for folder in FOLDERS.values():
            for split in SPLITS:
                (partial / folder / split).mkdir(parents=True, exist_ok=True)
        done = 0
        for written in _write_all(partial, pictures, options, workers or _cores()):
            done += written
            if progress:
                progress(done, len(pictures))
        counts = count(pictures)
        _write_tables(partial, pictures, options, counts)
        partial.rename(root)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return counts


def count(pictures: list[Picture]) -> dict[str, int]:
    """Number of pictures per split, of all `pictures`, of `identities`, and `without_face`."""
    per_split = Counter(picture.split for picture in pictures)
    return {split: per_split[split] for split in SPLITS} | {
        "pictures": len(pictures),
        "identities": len({picture.person for picture in pictures}),
        "without_face": sum(picture.back for picture in pictures),
    }


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_all(
    folder: Path, pictures: list[Picture], options: BenchmarkOptions, workers: int
) -> Iterator[int]:
    """Draws and writes every picture; yields how many each step has written."""
    batches = [pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH)]
    if workers == 1:
        for batch in batches:
            yield _write_batch(folder, batch, options)
        return
    # Spawned, not forked: the caller may hold threads or a GPU.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(batches)), mp_context=context)
    try:
        jobs = [pool.submit(_write_batch, folder, batch, options) for batch in batches]
        for job in as_completed(jobs):
            yield job.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_batch(folder: Path, pictures: list[Picture], options: BenchmarkOptions) -> int:
    for picture in pictures:
        drawing = draw_picture(picture, options)
        for field in fields(drawing):
            image: Image.Image | None = getattr(drawing, field.name)
            if image is None:
                continue
            path = folder / FOLDERS[field.name] / picture.path
            if field.name == "labels":
                image.save(path.with_suffix(".png"))
                continue
            # A threshold of 128 must give a mask's regions back to the pixel.
            kept = {"quality": 100, "subsampling": 0} if field.name == "mask" else {"quality": 92}
            image.save(path, "JPEG", **kept)
    return len(pictures)


def _write_tables(
    folder: Path, pictures: list[Picture], options: BenchmarkOptions, counts: dict[str, int]
) -> None:
    clothes = pd.DataFrame(
        {
            "path": [picture.path for picture in pictures],
            "clothes": [f"outfit{picture.outfit:03d}" for picture in pictures],
        }
    )
    clothes.sort_values("path").to_csv(folder / "clothes.csv", index=False, lineterminator="\n")
    record = {"format": FORMAT, "options": asdict(options), "counts": counts}
    (folder / "benchmark.json").write_text(json.dumps(record, indent=2) + "\n")
