"""What a run says of itself: its data, its options, what its outputs were made from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

_DIGEST = re.compile(r"[0-9a-f]{40,}")


def read_table(path: Path, *, text: bool = True) -> pd.DataFrame | None:
    """A CSV file, every cell as text (or as pandas reads it); None where there is none."""
    try:
        if text:
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        return pd.read_csv(path)
    except (OSError, ValueError):  # absent, empty, or cut short
        return None


def read_text(path: Path) -> str | None:
    """A text file; None where there is none that can be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def stages(folder: Path) -> list[dict[str, Any]]:
    """The records of the stages, in the order in which they finished."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            inputs = {**(record.get("inputs") or {}), "its output": record.get("output")}
            found.append(
                {
                    "name": str(record.get("stage", path.stem)),
                    "finished": _time(str(record.get("finished", ""))),
                    "seconds": record.get("seconds"),
                    "facts": {str(k): str(v) for k, v in (record.get("facts") or {}).items()},
                    "digests": {k: str(v) for k, v in inputs.items() if v is not None},
                    "versions": {k: str(v) for k, v in (record.get("versions") or {}).items()},
                }
            )
    return sorted(found, key=lambda record: record["finished"])


def fingerprint(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A cache's fingerprint as one level of dotted names; a long list by its length."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= fingerprint(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > 4:
            flat[f"{prefix}{key}"] = f"{len(value)} in a fixed order"
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _time(stamp: str) -> str:
    """An ISO time in UTC as people write it, to the second, so that it sorts."""
    return stamp.replace("T", " ").replace("+00:00", " UTC")


def is_digest(text: str) -> bool:
    """Whether a value is to be shortened."""
    return _DIGEST.fullmatch(text) is not None


def splits(
    tables: Iterable[tuple[str, pd.DataFrame]], used: int | None, cameras: bool
) -> list[dict[str, Any]]:
    """A row per split of the index: what there is of it.

    used: training images that were used; None where that isn't known. cameras: they are known.
    """
    return [
        {
            "name": name,
            "images": len(table),
            "used": used if name == "train" else None,
            "identities": table["pid"].nunique(),
            "cameras": table["camid"].nunique() if cameras else None,
            "clothes": table["clothes"].nunique(),
            "faceless": int(table["lr_face"].isna().sum()),
        }
        for name, table in tables
    ]
