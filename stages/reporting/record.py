"""What a run folder records: its tables, the manifests of its stages, the cache's fingerprint."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from deskpro.cache import files
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.params import flatten
from deskpro.stages.base.progress import warn
from deskpro.stages.base.run_folder import RunFolder, read_json
from deskpro.stages.base.section import first_error
from deskpro.stages.reporting.metrics_file import Metrics


@dataclass(frozen=True)
class Run:
    """An evaluated run: its metrics.json, and pid, ap and rank1 of its queries.

    They are by protocol and stream. A query is a row, by sample_id; it counts once, however many
    galleries were drawn.
    """

    name: str
    path: Path
    report: dict[str, Any]
    queries: dict[tuple[str, str], pd.DataFrame]


def read_metrics(folder: Path, *, anyway: bool = False) -> dict[str, Any]:
    """The content of a run's metrics.json.

    Args:
        folder: the run folder.
        anyway: also if they are of another student than the folder's, with a warning.

    Raises:
        InputError: there are none, of another version, or of another student.
    """
    path, command = folder / "metrics.json", shlex.join(["eval", "--run", str(folder)])
    try:
        metrics: dict[str, Any] = files.read_json(path)
        Metrics.model_validate(metrics)
        kind, name, evaluated = (metrics["network"][of] for of in ("kind", "file", "sha256"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", command=command) from None
    except (OSError, ValueError) as error:
        why = first_error(error) if isinstance(error, ValidationError) else str(error)
        problem = f"{path}: not readable, or of another version ({why})"
        raise InputError(problem, command=f"{command} --force") from None
    run = RunFolder(folder)
    student, unfinished = run.student, run.checkpoints("student").exists()
    if kind == "student" and name == student.name and (student.exists() or unfinished):
        now = files.sha256(student)[:12] if student.exists() else "in training"
        if now != evaluated[:12]:
            problem = f"{path} is of another student ({evaluated[:12]}) than {student} ({now})"
            if not anyway:
                problem += "; --anyway uses it. To evaluate again"
                raise InputError(problem, command=f"{command} --force")
            warn(problem)
    return metrics


COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "queries.csv": (
        ("protocol", "stream", "sample_id", "pid"),
        ("ap", "inp", "first", "rank1", "positives"),
    ),
    "ranked.csv": (("query", "sample_id", "pid", "camid", "clothes", "positive"), ("rank",)),
    "breakdown.csv": (("protocol", "stream", "by", "value"), ("queries", "mAP", "rank1")),
    "left_out.csv": (("sample_id", "pid", "stream", "reason"), ()),
    "student_history.csv": ((), ("epoch", "lr", "total")),
    "teacher_history.csv": ((), ("epoch", "lr", "total")),
}
"""File → its columns of text and of numbers; it may have more. A history has numbers alone."""


def read_table(path: Path) -> pd.DataFrame | None:
    """A CSV file of `COLUMNS`, text or float64; None where there is none that can be used.

    A warning says what is wrong with one that exists.
    """
    texts, numbers = COLUMNS[path.name]
    try:
        table = pd.read_csv(io.BytesIO(files.read_bytes(path)), dtype=str, keep_default_na=False)
        absent = [name for name in (*texts, *numbers) if name not in table]
        if absent:
            raise ValueError(f"it has no column {', '.join(absent)}")
        for name in numbers if texts else table:
            # What is not measured in each epoch has blanks.
            blank = (table[name] == "") & (name not in numbers)
            table[name] = table[name].mask(blank, "nan").astype(float)
            if not np.isfinite(table[name][~blank]).all():
                raise ValueError(f"column {name} has a number that is not finite")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warn(f"{path}: cannot be read and is left out ({error})")
        return None
    return table


def read_text(path: Path) -> str | None:
    """A text file; None where there is none that can be read."""
    try:
        return files.read_bytes(path).decode(errors="replace")
    except OSError:
        return None


def stages(folder: Path) -> list[dict[str, Any]]:
    """The manifests in a folder, in the order in which the stages finished."""
    found = []
    for path in folder.glob("*.json"):
        if (record := read_json(path)) is not None:
            stamp = str(record.get("finished", ""))
            found.append(
                {
                    "name": str(record.get("stage", path.stem)),
                    "finished": stamp.replace("T", " ").replace("+00:00", " UTC"),
                    "seconds": record.get("seconds"),
                    "facts": as_texts(_mapping(record, "result")),
                    "digests": as_texts(_mapping(record, "deps") | _mapping(record, "outs")),
                    "versions": _mapping(record, "versions"),
                }
            )
    return sorted(found, key=lambda stage: (stage["finished"], stage["name"]))


def _mapping(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def as_texts(tree: Mapping[str, Any]) -> dict[str, str]:
    """Nested facts as one level of dotted names; a long list by its length."""
    return {
        name: f"{len(value)} in a fixed order"
        if isinstance(value, list) and len(value) > 4
        else str(value)
        for name, value in flatten(tree).items()
    }


def is_digest(text: str) -> bool:
    """Whether a value is a digest, which is shown shortened."""
    return re.fullmatch(r"[0-9a-f]{40,}", text) is not None


def splits(
    tables: Iterable[tuple[str, pd.DataFrame]], used: int | None, cameras: bool
) -> list[dict[str, Any]]:
    """A row per split of the index with its counts.

    used: number of training images in the cache, or None; cameras: whether the data have cameras.
    """
    return [
        {
            "name": name,
            "images": len(table),
            "used": used if name == "train" else len(table),
            "identities": table["pid"].nunique(),
            "cameras": table["camid"].nunique() if cameras else None,
            "clothes": table["clothes"].nunique(),
            "faceless": int(table["lr_face"].isna().sum()),
        }
        for name, table in tables
    ]
