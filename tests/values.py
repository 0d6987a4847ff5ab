"""The values of a tiny run: weights, targets, features and metrics, as arrays by name.

`python -m tests.values FILE` runs the recipe of `tests.conftest` and writes them as npz;
`tests/values.npz` keeps them. A change of it is named in the CHANGELOG.

Training amplifies the last bit of a product: two kinds of CPU give other weights after a few steps.
So this run uses the instructions that every x86-64 CPU has, in a process of its own (`PORTABLE`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from safetensors.numpy import load_file

KEPT = Path(__file__).with_name("values.npz")
PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
"""The environment in which torch and MKL choose no instructions by the kind of CPU."""
ARRAYS = {
    "targets": (
        "sample_id",
        "label",
        "views",
        "teachers/default/logits/logits",
    ),
    "features": ("sample_id", "features/features"),
}
"""Store → its arrays that are compared. Hashes of pixels are not: they were of both images."""


def collect(run: Path, *, whole: bool = False) -> dict[str, np.ndarray]:
    """The values of a finished run.

    Weights are summed up tensor by tensor (mean, standard deviation and three fixed projections,
    float64) unless `whole`: the file would be too large for the repository.
    """
    values: dict[str, np.ndarray] = {}
    for network in ("teacher", "student"):
        tensors = load_file(run / f"{network}.safetensors")
        values[f"{network}/names"] = np.array(sorted(tensors))
        if whole:
            values |= {f"{network}/{name}": tensor for name, tensor in tensors.items()}
        values[f"{network}/summary"] = np.stack([_summary(tensors[n]) for n in sorted(tensors)])
    for store, arrays in ARRAYS.items():
        root = zarr.open_group(run / f"{store}.zarr", mode="r")
        for array in arrays:
            values[f"{store}/{Path(array).name}"] = _plain(root[array][...])
    values["targets/attention"] = _attention(run)
    order = np.argsort(values["features/sample_id"])  # stored by content
    for array in ARRAYS["features"]:
        values[f"features/{Path(array).name}"] = values[f"features/{Path(array).name}"][order]
    metrics = [*_numbers(json.loads((run / "metrics.json").read_text())["protocols"])]
    return values | {
        "metrics/names": np.array([name for name, _ in metrics]),
        "metrics/values": np.array([value for _, value in metrics]),
    }


def differences(
    values: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray], tolerance: float
) -> list[str]:
    """The names whose values are missing, or differ by more than `tolerance`."""
    wrong = [f"{name} is only in one" for name in sorted(values.keys() ^ kept.keys())]
    for name in sorted(values.keys() & kept.keys()):
        mine, theirs = np.asarray(values[name]), np.asarray(kept[name])
        if mine.shape != theirs.shape:
            wrong.append(f"{name} is {mine.shape}, was {theirs.shape}")
        elif mine.dtype.kind in "US" or not tolerance:
            if not np.array_equal(mine, theirs):
                wrong.append(f"{name} differs")
        elif not np.allclose(
            mine.astype(np.float64), theirs.astype(np.float64), rtol=tolerance, atol=tolerance
        ):
            gap = np.abs(mine.astype(np.float64) - theirs.astype(np.float64)).max()
            wrong.append(f"{name} differs by up to {gap:.3g}")
    return wrong


def _attention(run: Path) -> np.ndarray:
    """The attention that students of this run learn by default, uint8 [N, V, 1, h, w]."""
    import torch

    from deskpro.stages.losses.attention import attention_target
    from deskpro.stages.targets.kinds import TARGETS

    root = zarr.open_group(run / "targets.zarr" / TARGETS["parsing"].group, mode="r")
    fields = [np.asarray(root[name][...]) for name in ("parsing", "any_head")]  # type: ignore[index]
    rows = [torch.from_numpy(values.reshape(-1, *values.shape[2:])) for values in fields]
    parsing = TARGETS["parsing"].decode(dict(zip(("parsing", "any_head"), rows, strict=True)))
    attention = (255 * attention_target(parsing, 0.1)).round().byte().numpy()
    return attention.reshape(*fields[0].shape[:2], *attention.shape[1:])


def _summary(tensor: np.ndarray) -> np.ndarray:
    flat = tensor.astype(np.float64).ravel()
    projections = (
        np.random.default_rng(0).standard_normal((3, flat.size)) / max(flat.size, 1) ** 0.5
    )
    return np.array([flat.mean(), flat.std(), *(projections @ flat)])


def _plain(values: Any) -> np.ndarray:
    array = np.asarray(values)
    return np.array(array.tolist(), str) if array.dtype.kind in "OT" else array


def _numbers(tree: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a nested mapping, by its path."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            # Steps of few pairs and queries; test_verification.py, test_mistakes.py have their own.
            if key in ("verification", "mistakes"):
                continue
            yield from _numbers(value, f"{prefix}{key}/")
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _numbers(value, f"{prefix}{i}/")
    elif isinstance(tree, int | float):
        yield prefix.rstrip("/"), float(tree)


def make(folder: Path, *, whole: bool = False) -> dict[str, np.ndarray]:
    """Draw the tiny benchmark, run every stage on it, and collect the values."""
    import torch

    from deskpro.pipeline import runner as running
    from deskpro.pipeline.config import load
    from deskpro.stages.base.run_folder import RunFolder
    from deskpro.stages.data.benchmark import make_benchmark
    from tests.conftest import TINY, write_recipe

    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False  # oneDNN chooses its code by the kind of CPU
    make_benchmark(folder / "data", TINY, workers=1)
    write_recipe(folder / "tiny.yaml", folder / "data")
    for stage in ("teacher-cache", "train-student", "eval"):
        running.run_stage(stage, load(folder / "tiny.yaml"), RunFolder(folder / "run"))
    return collect(folder / "run", whole=whole)


def write(file: Path, *arguments: str) -> None:
    """`make` in a process whose arithmetic is the same on every x86-64 CPU."""
    program = [sys.executable, "-m", "tests.values", str(file), *arguments]
    subprocess.run(program, env=os.environ | PORTABLE, check=True)


if __name__ == "__main__":
    target, *rest = sys.argv[1:]
    if any(os.environ.get(name) != value for name, value in PORTABLE.items()):
        write(Path(target), *rest)
    else:
        with tempfile.TemporaryDirectory() as name:
            np.savez_compressed(target, **make(Path(name), whole="--whole" in rest))  # type: ignore[arg-type]
