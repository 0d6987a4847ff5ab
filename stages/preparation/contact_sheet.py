"""The contact sheet: the results for some images side by side, for a person to judge."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from deskpro.cache.files import write_text
from deskpro.stages.base.prepare_options import Prepare
from deskpro.stages.preparation.faces import (
    AT_EDGE,
    BACK,
    FOUND,
    NONE,
    OUTSIDE,
    SEVERAL,
    SMALL,
    UNSURE,
)
from deskpro.stages.preparation.samples import prepared_path
from deskpro.stages.preparation.schemes import SCHEMES, Scheme
from deskpro.stages.preparation.step import Unusable, read_image, read_labels
from deskpro.stages.reporting.images import from_pixels
from deskpro.stages.reporting.page import render

_HEIGHT, _FACE = 192, 112
"""Of a body image, and of a face, on the sheet, in pixels."""

_REASONS = {
    SEVERAL: "More than one head or face: the largest was used",
    UNSURE: "The detector was unsure",
    AT_EDGE: "The box had to be moved into the image",
    SMALL: "Too small for a face",
    OUTSIDE: "The detector found a face outside the head region only",
    BACK: "A head, but hardly any face: a back view",
    NONE: "No face and no head",
}
"""What makes an image doubtful, in the order of the sections."""

T = TypeVar("T")


def write(path: Path, table: pd.DataFrame, settings: Prepare, root: Path, title: str) -> None:
    """Write the page, with every image that it shows; table: the rows of prepare.csv."""
    usable = table[table["problem"].isna()]
    groups = {"Drawn at random": (usable, settings.shown)}
    doubtful = _doubtful(usable)
    if doubtful:
        count = max(1, settings.shown // len(doubtful)) if settings.shown else 0
        groups |= {_REASONS[why]: (rows, count) for why, rows in doubtful.items()}
    scheme = SCHEMES[settings.parsing.scheme]
    sections = [
        {
            "title": name,
            "total": len(rows),
            "cards": [_card(row, root, scheme) for row in _drawn(rows, count)],
        }
        for name, (rows, count) in groups.items()
    ]
    decisions = Counter(usable.get("decision", ()))
    bicubic = "restoration" in settings.steps and settings.restoration.method == "bicubic"
    parts = {
        "title": title,
        "images": len(usable),
        "identities": usable["pid"].nunique(),
        "decisions": sorted(decisions.items(), key=lambda pair: (pair[0] != FOUND, pair)),
        "methods": _methods(settings),
        "sections": sections,
        "problems": table[table["problem"].notna()].to_dict("records"),
        "restores": not bicubic,
    }
    write_text(path, render("prepare", parts))


def _drawn(rows: pd.DataFrame, count: int) -> list[dict[Hashable, Any]]:
    """At most `count` rows, each drawn by a hash of its own id."""
    order = rows["sample_id"].map(lambda name: hashlib.sha256(name.encode()).digest())
    drawn = rows.loc[order.sort_values().index[:count]].sort_values("sample_id")
    return drawn.to_dict("records")


def _doubtful(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if "decision" not in rows:
        return {}
    found: dict[str, list[Any]] = defaultdict(list)
    for index, decision, doubts in rows[["decision", "doubts"]].itertuples():
        for why in [*str(doubts or "").split("; "), decision]:
            found[why].append(index)
    return {why: rows.loc[found[why]] for why in _REASONS if why in found}


def _methods(settings: Prepare) -> list[tuple[str, str]]:
    """The method of each step, in words."""
    parsing, face = settings.parsing, settings.face
    words = {
        "parsing": f"{parsing.method}, {SCHEMES[parsing.scheme].title}",
        "mask": settings.mask.method,
        "face": f"{face.method}, margin {face.margin:g}",
        "restoration": settings.restoration.method,
    }
    return [(name, words[name]) for name in settings.steps]


def _card(row: Mapping[Hashable, Any], root: Path, scheme: Scheme) -> dict[str, Any]:
    """An image on the page: its id, facts, and what was prepared of it by caption."""
    paths = {
        kind: prepared_path(root, kind, row["sample_id"])
        for kind in ("imgs", "labels", "mask", "lr_face", "hr_face")
    }
    images: list[tuple[str, str]] = []
    body = _readable(read_image, paths["imgs"])
    if body is not None:
        images.append(("body", _uri(body, _HEIGHT)))
        labels = _readable(read_labels, paths["labels"])
        if labels is not None and labels.shape == (body.height, body.width):
            images.append(("parsing", _uri(_coloured(body, labels, scheme), _HEIGHT)))
    mask = _readable(read_image, paths["mask"])
    if mask is not None:
        images.append(("mask", _uri(mask, _HEIGHT)))
    if body is not None and pd.notna(row.get("left")):
        images.append(("face box", _uri(_boxed(body, row), _HEIGHT)))
    for what, kind in (("LR face", "lr_face"), ("HR face", "hr_face")):
        face = _readable(read_image, paths[kind])
        if face is not None:
            images.append((f"{what}, {face.width} px", _uri(face, _FACE)))
    facts = [str(row[name]) for name in ("decision", "doubts") if _given(row.get(name))]
    if _given(row.get("score")):
        facts.append(f"score {row['score']:.2f}")
    return {"id": row["sample_id"], "pid": row["pid"], "facts": facts, "images": images}


def _given(value: Any) -> bool:
    return value != "" and bool(pd.notna(value))


def _readable(read: Callable[[Path], T], path: Path) -> T | None:
    try:
        return read(path)
    except Unusable:
        return None


def _uri(image: Image.Image, height: int) -> str:
    return from_pixels(np.asarray(_resized(image, height)).transpose(2, 0, 1))


def _resized(image: Image.Image, height: int) -> Image.Image:
    width = max(1, round(image.width * height / image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _coloured(body: Image.Image, labels: np.ndarray, scheme: Scheme) -> Image.Image:
    """The label map over the dimmed image, a colour for each class."""
    count = len(scheme.classes) - 1
    # Hues a golden section apart: neighbours in the list differ clearly.
    turns = (0.618034 * np.arange(count)[:, None] + np.array([0, 1 / 3, 2 / 3])) % 1
    colours = np.zeros((256, 3))
    colours[1 : count + 1] = 255 * (0.5 + 0.5 * np.cos(2 * np.pi * turns))
    mixed = 0.35 * np.asarray(body) + np.where(labels[..., None] > 0, 0.65 * colours[labels], 0)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _boxed(body: Image.Image, row: Mapping[Hashable, Any]) -> Image.Image:
    scale, shown = _HEIGHT / body.height, _resized(body, _HEIGHT)
    left, top, side = (float(row[name]) * scale for name in ("left", "top", "side"))
    box = (left, top, left + side, top + side)
    ImageDraw.Draw(shown).rectangle(box, outline=(255, 64, 64), width=2)
    return shown
