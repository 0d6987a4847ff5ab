"""What a run folder records: its tables, the manifests of its stages, the cache's fingerprint."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from deskpro.cache import files
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import log
from deskpro.stages.base.run_folder import RunFolder


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
        _ = metrics["data"]["digests"].items(), metrics["data"]["root"]
        for protocol in metrics["protocols"].values():
            _ = protocol["rule"]
            for numbers in protocol["streams"].values():
                _ = numbers["cmc"], numbers["interval"]["mAP"], numbers["identities"]
        kind, name, evaluated = (metrics["network"][of] for of in ("kind", "file", "sha256"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", command=command) from None
    except (AttributeError, OSError, ValueError, LookupError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
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
            log(f"warning: {problem}")
    return metrics


def read_table(path: Path, *, text: bool = True) -> pd.DataFrame | None:
    """A CSV file, every cell as text (or as pandas reads it); None where there is none."""
    try:
        content = io.BytesIO(files.read_bytes(path))
        if not text:
            return pd.read_csv(content)
        return pd.read_csv(content, dtype=str, keep_default_na=False)
    except (OSError, ValueError):  # absent, empty, or cut short
        return None


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
        try:
            record = files.read_json(path)
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            stamp = str(record.get("finished", ""))
            found.append(
                {
                    "name": str(record.get("stage", path.stem)),
                    "finished": stamp.replace("T", " ").replace("+00:00", " UTC"),
                    "seconds": record.get("seconds"),
                    "facts": flatten(record.get("result") or {}),
                    "digests": flatten((record.get("deps") or {}) | (record.get("outs") or {})),
                    "versions": record.get("versions") or {},
                }
            )
    return sorted(found, key=lambda stage: (stage["finished"], stage["name"]))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level of dotted names; a long list by its length."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > 4:
            flat[f"{prefix}{key}"] = f"{len(value)} in a fixed order"
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


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
