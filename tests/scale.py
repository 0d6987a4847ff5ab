"""A store as large as a crowd: `python -m tests.scale 4000000` prints seconds and memory.

The teacher is null and there are no images, so that what is measured is the store: columns, index,
journal, seal. Each part runs in a process of its own, the first of which dies half-way.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from deskpro.cache.reader import MappedReader
from deskpro.cache.schema import Column, Field, Schema
from deskpro.cache.writer import GroupWriter

VIEWS = 4
GROUP = "teachers/null/logits"
PARTS = ("start", "resume", "read")


def measure(samples: int) -> dict[str, dict[str, float]]:
    """Part → seconds until the first block can be written or read, those of all blocks, and the
    peak of memory in GB."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for part in PARTS:
            command = [sys.executable, "-m", "tests.scale", part, f"{folder}/store", str(samples)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            found[part] = json.loads(done.stdout)
    return found


def _write(path: Path, samples: int, *, dies: bool) -> None:
    random, names = np.random.default_rng(0), np.empty(samples, object)
    for i in range(samples):
        names[i] = f"bounding_box_train/{i // 20:06d}_c1_{i:07d}.jpg"
    views = random.random((samples, VIEWS, 9), np.float32)
    hashes = random.integers(0, 256, (samples, 32), np.uint8)
    known = {
        "sample_id": Column(names, ("sample",)),
        "label": Column(np.arange(samples) // 20, ("sample",)),
        "views": Column(views, ("sample", "view", "parameter")),
        "hr_face_sha256": Column(hashes, ("sample", "byte")),
    }
    fields = {"logits": Field((1, 8), "float16", ("head", "class"))}
    schema, depends = Schema(samples, VIEWS, 256, fields), ["sample_id", "views", "hr_face_sha256"]
    started = time.monotonic()
    with GroupWriter(path, GROUP, schema, known, {}, depends=depends) as writer:
        blocks, first = [*writer.missing], time.monotonic()
        for block in blocks[: len(blocks) // 2] if dies else blocks:
            rows = schema.rows(block)
            shape = (rows.stop - rows.start, VIEWS, 1, 8)
            writer.write(block, {"logits": np.full(shape, block % 100, np.float16)})
        if not dies:
            writer.seal()
        _say(first - started, time.monotonic() - first)
        if dies:
            os._exit(9)


def _read(path: Path, samples: int) -> None:
    started, random = time.monotonic(), np.random.default_rng(1)
    reader, first = MappedReader(path, GROUP), time.monotonic()
    for _ in range(200):
        rows, views = (random.integers(0, count, 32).tolist() for count in (samples, VIEWS))
        found = reader.read(rows, views)["logits"][:, 0, 0]
        assert (found == np.array(rows) // 256 % 100).all()
    _say(first - started, time.monotonic() - first)


def _say(first: float, rest: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"first": first, "blocks": rest, "peak": peak}), flush=True)


def main() -> None:
    """Measure the store of so many samples, or one part of that."""
    if sys.argv[1] in PARTS:
        part, path, samples = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
        _read(path, samples) if part == "read" else _write(path, samples, dies=part == "start")
        return
    for part, told in measure(int(sys.argv[1])).items():
        print(f"{part:8}{told['first']:8.1f} s {told['blocks']:8.1f} s {told['peak']:6.2f} GB")


if __name__ == "__main__":
    main()
