"""Features of any network, scored from a file: against eval, brute force, every format and order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.metrics.ranking import rank_gallery
from tests.conftest import Project, Result

Command = Callable[..., Result]


@pytest.fixture
def table(tiny_benchmark: Path) -> pd.DataFrame:
    """Query and gallery."""
    return read_index(tiny_benchmark, LAYOUTS["benchmark"], ("query", "gallery"))[0]


@pytest.fixture
def score(command: Command, tiny_benchmark: Path, tmp_path: Path) -> Callable[..., Any]:
    """`deskpro eval --features FILE` of the tiny benchmark: its metrics."""

    def call(file: Path, *arguments: str) -> Any:
        run = tmp_path / "scored"
        words = ("eval", "--features", str(file), "--data", str(tiny_benchmark))
        words += ("--dataset", "benchmark", "--run", str(run), "--force")
        result = command(*words, *arguments)
        assert result.code == 0, result.err
        return json.loads((run / "metrics.json").read_text())

    return call


def mAP(metrics: Any, stream: str, protocol: str = "market") -> float:
    return float(metrics["protocols"][protocol]["streams"][stream]["mAP"])


def some(table: pd.DataFrame, seed: int = 0, length: int = 6) -> np.ndarray:
    """Features that say something of who is on an image."""
    random = np.random.default_rng(seed)
    people = {pid: random.normal(size=length) for pid in table["pid"].unique()}
    own = np.stack([people[pid] for pid in table["pid"]])
    return np.float32(own + 1.5 * random.normal(size=own.shape))


def brute_force(table: pd.DataFrame, distances: np.ndarray, protocol: str = "market") -> float:
    query, gallery = (np.flatnonzero(table["split"] == split) for split in ("query", "gallery"))
    near = np.float32(distances[np.ix_(query, gallery)])
    parts = (table.iloc[rows].reset_index(drop=True) for rows in (query, gallery))
    return rank_gallery(*parts, near.__getitem__, PROTOCOLS[protocol]).mAP


def cosine(values: np.ndarray) -> np.ndarray:
    unit = values.astype(np.float64)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = unit / np.where(length, length, 1)
    return np.asarray(1 - unit @ unit.T)


@pytest.mark.finished("eval")
@pytest.mark.parametrize("mode", ["face", "body", "all"])
def test_a_student_scores_as_eval_says(mode: str, project: Project, score: Any) -> None:
    files = []
    for split in ("query", "gallery"):
        files.append(project.run / f"{split}.npz")
        student = str(project.run / "student.safetensors")
        words = ("embed", "--checkpoint", student, "--data", str(project.data), "--dataset")
        words += ("benchmark", "--split", split, "--out", str(files[-1]))
        assert project.command(*words, "--config", str(project.config)).code == 0
    loaded = [dict(np.load(file)) for file in files]
    path, feature = (np.concatenate([one[key] for one in loaded]) for key in ("path", "feature"))
    half = feature.shape[1] // 2
    parts = {"face": feature[:, :half], "body": feature[:, half:]}
    chosen = parts if mode == "all" else {mode: parts[mode]}
    file = project.run / "mine.npz"
    np.savez(file, path=path, **chosen)
    weights = ("--weights", "face=0.5,body=0.5") if mode == "all" else ()
    found = score(file, "--config", str(project.config), *weights)
    wanted = json.loads((project.run / "metrics.json").read_text())
    for name, protocol in wanted["protocols"].items():
        for stream, numbers in found["protocols"][name]["streams"].items():
            theirs = protocol["streams"][stream]
            assert numbers["mAP"] == pytest.approx(theirs["mAP"], abs=1e-6)
            assert numbers["cmc"] == pytest.approx(theirs["cmc"], abs=1e-6)
            for key in ("queries", "identities"):
                assert numbers[key] == theirs[key]
            for part in ("with face", "without face"):
                if part in numbers:
                    assert numbers[part] == pytest.approx(theirs[part], abs=1e-6)
    assert found["data"]["digests"] == {
        key: wanted["data"]["digests"][key] for key in ("labels", "imgs")
    }
