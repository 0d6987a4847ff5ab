"""Where a run keeps what, and whose teacher and targets it uses."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deskpro.cache.files import write_text
from deskpro.stages.base.errors import InputError


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    `source` is the run whose teacher and targets this one uses, itself where not given. It is
    recorded in `from.json`, so that later commands on the folder need not repeat `--from`.
    """

    path: Path
    source: Path | None = None

    @classmethod
    def open(cls, path: Path, source: Path | None = None) -> RunFolder:
        """The run folder with the source that is given or recorded.

        Raises:
            InputError: the two differ, or the source is no run folder.
        """
        recorded = read_json(path / "from.json")
        known = None if recorded is None else Path(os.path.normpath(path / str(recorded["from"])))
        if source is None:
            source = known
        elif known is not None and known.resolve() != source.resolve():
            raise InputError(
                f"{path}: its targets are those of {known}, --from is {source}. Give another "
                "folder with --run"
            )
        if source is None or source.resolve() == path.resolve():
            return cls(path)
        if not (source / "manifests").is_dir():
            raise InputError(f"--from {source}: no run folder (it has no manifests)")
        return cls(path, cls.open(source).upstream)

    @property
    def upstream(self) -> Path:
        """The run that holds the teacher and the targets."""
        return self.source or self.path

    def write_source(self) -> None:
        """Record whose targets this run uses."""
        if self.source is not None:
            below = os.path.relpath(self.source.resolve(), self.path.resolve())
            write_text(self.path / "from.json", json.dumps({"from": below}) + "\n")

    @property
    def teacher(self) -> Path:
        return self.upstream / "teacher.safetensors"

    @property
    def targets(self) -> Path:
        return self.upstream / "targets.zarr"

    @property
    def left_out(self) -> Path:
        return self.upstream / "left_out.csv"

    @property
    def student(self) -> Path:
        return self.path / "student.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def features(self) -> Path:
        return self.path / "features.zarr"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    def of(self, network: str) -> Path:
        """The folder of a network's training: the source's for the teacher."""
        return self.upstream if network == "teacher" else self.path

    def history(self, network: str) -> Path:
        return self.of(network) / f"{network}_history.csv"

    def checkpoints(self, network: str) -> Path:
        """Of a training under way; gone when it is done."""
        return self.of(network) / f"{network}_checkpoints"

    def tensorboard(self, network: str) -> Path:
        return self.of(network) / "tensorboard" / network

    def manifest(self, stage: str) -> Path:
        """How a stage made its output; written last."""
        return self.path / "manifests" / f"{stage}.json"

    def started(self, stage: str) -> Path:
        """The params and deps of a stage under way; a kill before its manifest leaves it."""
        return self.manifest(stage).with_suffix(".started")


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a file; None where there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
