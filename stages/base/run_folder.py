"""Where a run keeps what, and whose teacher and targets it uses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from deskpro.cache.files import below, sha256, write_text
from deskpro.cache.files import read_json as read_any
from deskpro.stages.base import log_file
from deskpro.stages.base.errors import InputError

ENCODER = "encoder.json"
"""The file by which an exported folder is known."""


class RunFolder:
    """The files of one run.

    `source` is the run whose teacher and targets this one uses; None: its own. It is recorded, so
    that later commands on the folder need not repeat `--from`. What only the stages read lies below
    `.state/`: manifests, checkpoints, that record.
    """

    def __init__(self, path: Path, source: Path | None = None) -> None:
        self.path, self.source = path, source
        self.state = path / ".state"
        self.upstream = source or path
        """The run that holds the teacher and the targets."""
        self.teacher = self.upstream / "teacher.safetensors"
        self.targets = self.upstream / "targets.zarr"
        self.left_out = self.upstream / "left_out.csv"
        self.student = path / "student.safetensors"
        self.features = path / "features.zarr"
        self.gallery_features = path / "gallery_features.zarr"
        """The teacher's features of the gallery's HR faces."""
        self.attention = path / "attention.zarr"
        """The student's attention on the queries."""
        self.metrics = path / "metrics.json"
        self.config = path / "config.yaml"
        self.unpacked = self.state / "unpacked.json"
        """Where the cache came from, if `cache unpack` put it here."""
        self._from = self.state / "from.json"

    @classmethod
    def open(cls, path: Path, source: Path | None = None) -> RunFolder:
        """The run folder with the source that is given or recorded.

        Raises:
            InputError: the two differ, the source is no run folder, or the folder is of an earlier
                version.
        """
        folder = cls(path)
        if (path / "manifests").is_dir():
            raise InputError(
                f"{path}: a run folder of an earlier version, with manifests/ instead of .state/. "
                "Give another folder with --run, or remove this one"
            )
        recorded = folder._recorded()
        known = recorded is not None and cls(recorded).state.is_dir()  # else it may have moved
        if source and recorded and known and recorded.resolve() != source.resolve():
            raise InputError(
                f"{path}: its targets are those of {recorded}, --from is {source}. Give another "
                "folder with --run"
            )
        whose = f"{path}: its targets are those of" if source is None else "--from"
        source = source or recorded or path
        if source.resolve() == path.resolve():
            return folder
        of_source = cls.open(source)
        if not of_source.state.is_dir():
            raise InputError(
                f"{whose} {source}: no run folder (it has no {of_source.state.name}/). Give with "
                "--from the run folder that has the targets now"
            )
        return cls(path, of_source.upstream)

    def given(self) -> dict[str, Any] | None:
        """The record of a cache that was unpacked here (file, digest, seals); None where the
        targets are others, or were completed here since."""
        record = read_json(self.unpacked)
        if record is None or self.manifest("teacher-cache").exists():
            return None
        try:
            same = all(
                sha256(below(self.targets, name)) == digest
                for name, digest in record["seals"].items()
            )
            return record if same and record["seals"] else None
        except (OSError, KeyError, ValueError, AttributeError):
            return None

    def _recorded(self) -> Path | None:
        """The source that is recorded: by its place from here, as both may have been moved
        together, or else where it was."""
        record = read_json(self._from) or {}
        paths = [self.path.resolve() / str(record[key]) for key in ("from", "at") if key in record]
        found = next((path for path in paths if RunFolder(path).state.is_dir()), None)
        found = found or next(iter(paths), None)
        if found is None or self.path.is_absolute():
            return found and found.resolve()
        return Path(os.path.relpath(found.resolve()))

    def write_source(self) -> None:
        """Record whose targets this run uses."""
        if self.source is not None:
            source = self.source.resolve()
            record = {"from": os.path.relpath(source, self.path.resolve()), "at": str(source)}
            if read_json(self._from) != record:
                write_text(self._from, json.dumps(record) + "\n")

    def remove_empty(self, *, whole: bool) -> None:
        """Remove the folders that a failed command made and left empty.

        whole: the run's, too, where it has nothing but its recipe and a log.
        """
        try:
            (self.state / "manifests").rmdir()
            known = {log_file.NAME, self.config.name, self.state.name}  # workers' logs are kept
            if whole and {path.name for path in self.path.iterdir()} <= known:
                self._from.unlink(missing_ok=True)
                self.state.rmdir()
                self.config.unlink(missing_ok=True)
                (self.path / log_file.NAME).unlink(missing_ok=True)
                self.path.rmdir()
        except OSError:
            return  # not empty, or not there

    def of(self, network: str) -> Path:
        """The folder of a network's training: the source's for the teacher."""
        return self.upstream if network == "teacher" else self.path

    def weights(self, network: str) -> Path:
        return self.teacher if network == "teacher" else self.student

    def history(self, network: str) -> Path:
        return self.of(network) / f"{network}_history.csv"

    def checkpoints(self, network: str) -> Path:
        """Of a training under way; gone when it is done."""
        return self.of(network) / self.state.name / f"{network}_checkpoints"

    def tensorboard(self, network: str) -> Path:
        return self.of(network) / "tensorboard" / network

    def manifest(self, stage: str) -> Path:
        """How a stage made its output; written last."""
        return self.state / "manifests" / f"{stage}.json"

    def started(self, stage: str) -> Path:
        """The params and deps of a stage under way; a kill before its manifest leaves it."""
        return self.manifest(stage).with_suffix(".started")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A stage's manifest; None where there is none, or one that lacks a part."""
    record = read_json(path) or {}
    parts = [record.get(name) for name in ("params", "deps", "outs", "result", "config")]
    whole = all(isinstance(part, dict) for part in parts)
    return record if whole and isinstance(record.get("seconds"), int | float) else None


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a file; None where there is none that can be read."""
    try:
        record = read_any(path)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
