"""Timings as ratios, both sides measured in one run: `make bench`. Not part of the tests."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from cache.reader import MappedReader, ZarrReader
from cache.schema import Field, Schema
from cache.writer import TargetWriter
from stages.metrics.protocols import PROTOCOLS
from stages.metrics.ranking import rank
from stages.progress import table


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def reading(folder: Path) -> list[tuple[str, float, float]]:
    """32 random (sample, view), both arrays, warm: ours against numpy's memory maps."""
    samples, views, classes = 2048, 4, 632
    fields = {
        "logits": Field((7, classes), "float16", ("head", "class")),
        "attention": Field((1, 48, 16), "uint8", ("channel", "height", "width")),
    }
    schema = Schema(samples, views, 512, fields)
    rng = np.random.default_rng(0)
    arrays = {
        "logits": rng.standard_normal((samples, views, 7, classes)).astype(np.float16),
        "attention": rng.integers(0, 256, (samples, views, 1, 48, 16)).astype(np.uint8),
    }
    writer = TargetWriter(folder / "targets.zarr", schema, {"label": np.arange(samples)}, {})
    for block in writer.pending():
        writer.write(block, {name: array[schema.rows(block)] for name, array in arrays.items()})
    writer.seal()
    plain = {}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        plain[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
    pairs = [(rng.integers(0, samples, 32), rng.integers(0, views, 32)) for _ in range(50)]

    def everything(read: Callable[[np.ndarray, np.ndarray], object]) -> Callable[[], object]:
        return lambda: [read(*pair) for pair in pairs]

    numpy_way = everything(lambda s, v: [np.array(array[s, v]) for array in plain.values()])
    base = seconds(numpy_way, 9)
    rows = []
    for name, reader in (("mapped", MappedReader), ("zarr", ZarrReader)):
        opened = reader(folder / "targets.zarr")
        work = everything(lambda s, v, opened=opened: opened.read(s.tolist(), v.tolist()))  # type: ignore[misc]
        work()
        rows.append((f"{name} reader / numpy memmap", seconds(work, 5) / 50, base / 50))
    return rows


def ranking() -> list[tuple[str, float, float]]:
    """3,368 × 15,913 given distances, as Market-1501's: ours against sorting every row."""
    rng = np.random.default_rng(0)
    queries, gallery = 3368, 15_913

    def people(count: int, pids: int) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "sample_id": np.arange(count),
                "pid": rng.integers(0, pids, count).astype(str),
                "camid": rng.integers(0, 6, count),
            }
        )

    query, others = people(queries, 750), people(gallery, 1500)
    distances = rng.random((queries, gallery), np.float32)

    def sorting() -> float:
        order = np.argsort(distances, axis=1, kind="stable")
        pids, cams = others["pid"].to_numpy(), others["camid"].to_numpy()
        aps = []
        for i, (pid, cam) in enumerate(zip(query["pid"], query["camid"], strict=True)):
            hits, near = pids[order[i]] == pid, cams[order[i]] == cam
            found = np.flatnonzero(hits[~(hits & near)]) + 1
            if len(found):
                aps.append((np.arange(1, len(found) + 1) / found).mean())
        return float(np.mean(aps))

    counted = rank(query, others, lambda rows: distances[rows], PROTOCOLS["market"])
    assert abs(counted.mAP - sorting()) < 1e-9
    ours = seconds(
        lambda: rank(query, others, lambda rows: distances[rows], PROTOCOLS["market"]), 1
    )
    return [("ranking / argsort in numpy", ours, seconds(sorting, 1))]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = reading(Path(folder)) + ranking()
    lines = [
        (name, f"{1e3 * ours:.2f} ms", f"{1e3 * base:.2f} ms", f"{ours / base:.2f}")
        for name, ours, base in rows
    ]
    table("bench", ("what", "ours", "theirs", "ratio"), lines)


if __name__ == "__main__":
    main()
