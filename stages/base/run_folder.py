"""Where a run keeps what; no more than paths and the manifests in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deskpro.cache.files import write_aside
from deskpro.stages.base.options import Options


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    `shared` is the run whose teacher and cache this one uses; itself where not given. The variants
    of an ablation are such runs: each has its own student, all have one cache.
    """

    path: Path
    shared: Path | None = None

    @classmethod
    def of(cls, config: Path, options: Options, given: Path | None) -> RunFolder:
        """The folder given, or runs/<config name>[-<tag>]."""
        name = config.stem + (f"-{options.tag}" if options.tag else "")
        return cls(given or Path("runs") / name)

    @property
    def _upstream(self) -> Path:
        return self.shared or self.path

    @property
    def teacher(self) -> Path:
        return self._upstream / "teacher.safetensors"

    @property
    def targets(self) -> Path:
        return self._upstream / "targets.zarr"

    @property
    def file_index(self) -> Path:
        return self._upstream / "checked.json"

    @property
    def left_out(self) -> Path:
        return self._upstream / "left_out.csv"

    @property
    def student(self) -> Path:
        return self.path / "student.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def features(self) -> Path:
        return self.path / "features.zarr"

    def history(self, who: str) -> Path:
        folder = self._upstream if who == "teacher" else self.path
        return folder / f"{who}_history.csv"

    def checkpoints(self, who: str) -> Path:
        """Of a training under way; gone when it is done."""
        return (self._upstream if who == "teacher" else self.path) / f"{who}_checkpoints"

    def tensorboard(self, who: str) -> Path:
        return (self._upstream if who == "teacher" else self.path) / "tensorboard" / who

    def manifest(self, stage: str) -> Path:
        """The record of how a stage made its output; written last."""
        upstream = stage in ("train-teacher", "teacher-cache")
        return (self._upstream if upstream else self.path) / "manifests" / f"{stage}.json"

    def read_manifest(self, stage: str) -> dict[str, Any] | None:
        """A stage's record; None where there is none that can be read."""
        return read_json(self.manifest(stage))

    def begun(self, stage: str) -> Path:
        """What a stage under way was asked for; a kill before its record is written leaves it."""
        return self.manifest(stage).with_suffix(".begun")

    def write_manifest(self, stage: str, record: dict[str, Any]) -> None:
        with write_aside(self.manifest(stage)) as aside:
            aside.write_text(json.dumps(record, indent=1, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a file; None where there is none that can be read."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
