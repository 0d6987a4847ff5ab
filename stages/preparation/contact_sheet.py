"""The contact sheet: what was made of some images, side by side, for a person to judge."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from deskpro.cache.files import write_aside
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
from deskpro.stages.preparation.samples import Places
from deskpro.stages.preparation.schemes import SCHEMES, Scheme
from deskpro.stages.preparation.step import Unusable, read_image, read_labels
from deskpro.stages.reporting.images import from_pixels
from deskpro.stages.reporting.page import render

HEIGHT = 192
"""Of a body image on the sheet, in pixels."""
_FACE = 112

REASONS = {
    SEVERAL: "More than one head or face: the largest was taken",
    UNSURE: "The detector was unsure",
    AT_EDGE: "The box had to be moved into the image",
    SMALL: "Too small for a face",
    OUTSIDE: "The detector saw a face outside the head region only",
    BACK: "A head, but hardly any face: seen from behind",
    NONE: "No face and no head",
}
"""What makes an image doubtful, most telling first."""


def write(path: Path, table: pd.DataFrame, places: Places, settings: Prepare, title: str) -> None:
    """Write the page; table: the rows of prepare.csv. It holds every image it shows."""
    usable = table[table["problem"].isna()]
    scheme = SCHEMES[settings.parsing.scheme]
    sections = [("Drawn at random", *_drawn(usable, settings.shown))]
    doubtful = _doubtful(usable)
    each = max(1, settings.shown // max(1, len(doubtful))) if settings.shown else 0
    sections += [(REASONS[why], *_drawn(rows, each)) for why, rows in doubtful.items()]
    shown = [
        {
            "title": name,
            "total": total,
            "cards": [_card(row, places, scheme) for row in rows.to_dict("records")],
        }
        for name, rows, total in sections
    ]
    problems = table[table["problem"].notna()][["sample_id", "problem"]]
    parts = {
        "title": title,
        "images": len(usable),
        "identities": usable["pid"].nunique(),
        "decisions": _decisions(usable),
        "methods": _methods(settings),
        "sections": shown,
        "problems": problems.to_dict("records"),
        "restores": not (
            "restoration" in settings.steps and settings.restoration.method == "bicubic"
        ),
    }
    with write_aside(path) as aside:
        aside.write_text(render("prepare", parts), encoding="utf-8")


def _drawn(rows: pd.DataFrame, count: int) -> tuple[pd.DataFrame, int]:
    """Some rows, chosen by a number of each alone, and how many there are."""
    order = rows["sample_id"].map(lambda name: hashlib.sha256(name.encode()).digest())
    return rows.loc[order.sort_values().index[:count]].sort_values("sample_id"), len(rows)


def _doubtful(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if "decision" not in rows:
        return {}
    found: dict[str, list[Any]] = defaultdict(list)
    for index, decision, doubts in rows[["decision", "doubts"]].itertuples():
        for why in [*str(doubts or "").split("; "), decision]:
            if why in REASONS:
                found[why].append(index)
    return {why: rows.loc[found[why]] for why in REASONS if why in found}


def _decisions(rows: pd.DataFrame) -> list[tuple[str, int]]:
    if "decision" not in rows:
        return []
    counts = rows["decision"].value_counts()
    return sorted(
        ((str(n), int(c)) for n, c in counts.items()), key=lambda nc: (nc[0] != FOUND, nc)
    )


def _methods(settings: Prepare) -> list[tuple[str, str]]:
    """What made each kind of image, in words."""
    parsing, face, restoration = settings.parsing, settings.face, settings.restoration
    said = {
        "parsing": f"{parsing.method}, {SCHEMES[parsing.scheme].title}",
        "mask": settings.mask.method,
        "face": f"{face.method}, margin {face.margin:g}",
        "restoration": restoration.method,
    }
    return [(name, said[name]) for name in settings.steps]


def _card(row: dict[Hashable, Any], places: Places, scheme: Scheme) -> dict[str, Any]:
    id_ = row["sample_id"]
    body = _read(places.body(id_))
    images: list[tuple[str, str | None]] = [("body", _uri(body, HEIGHT))]
    labels = _labels(places.labels(id_))
    if labels is not None and body is not None:
        images.append(("parsing", _uri(_coloured(body, labels, scheme), HEIGHT)))
    if places.mask(id_).is_file():
        images.append(("mask", _uri(_read(places.mask(id_)), HEIGHT)))
    if body is not None and pd.notna(row.get("left")):
        images.append(("face box", _uri(_boxed(body, row), HEIGHT)))
    files = {"LR face": places.lr_face(id_), "HR face": places.hr_face(id_)}
    faces = [(what, _read(path)) for what, path in files.items() if path.is_file()]
    images += [(f"{what}, {face.width} px", _uri(face, _FACE)) for what, face in faces if face]
    facts = [
        str(row[name]) for name in ("decision", "doubts") if row.get(name) and pd.notna(row[name])
    ]
    if pd.notna(row.get("score")):
        facts.append(f"score {row['score']:.2f}")
    return {"id": id_, "pid": row["pid"], "facts": facts, "images": images}


def _read(path: Path) -> Image.Image | None:
    try:
        return read_image(path)
    except Unusable:
        return None


def _labels(path: Path) -> np.ndarray | None:
    try:
        return read_labels(path)
    except Unusable:
        return None


def _uri(image: Image.Image | None, height: int) -> str | None:
    if image is None:
        return None
    width = max(1, round(image.width * height / image.height))
    shown = image.resize((width, height), Image.Resampling.BICUBIC)
    return from_pixels(np.asarray(shown).transpose(2, 0, 1))


def _coloured(body: Image.Image, labels: np.ndarray, scheme: Scheme) -> Image.Image:
    """The label map over the dimmed image, a colour for each class."""
    if labels.shape != (body.height, body.width):
        return body
    colours = np.zeros((256, 3))
    colours[1 : len(scheme.classes)] = _colours(len(scheme.classes) - 1)
    mixed = 0.35 * np.asarray(body) + np.where(labels[..., None] > 0, 0.65 * colours[labels], 0)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _colours(count: int) -> np.ndarray:
    """Colours that neighbours in a list can be told apart by, 0..255 [count, 3]."""
    turns = (0.618034 * np.arange(count)[:, None] + np.array([0, 1 / 3, 2 / 3])) % 1
    return 255 * (0.5 + 0.5 * np.cos(2 * np.pi * turns))


def _boxed(body: Image.Image, row: dict[Hashable, Any]) -> Image.Image:
    scale = HEIGHT / body.height
    shown = body.resize((max(1, round(body.width * scale)), HEIGHT), Image.Resampling.BICUBIC)
    left, top, side = (float(row[name]) * scale for name in ("left", "top", "side"))
    pen = ImageDraw.Draw(shown)
    pen.rectangle((left, top, left + side, top + side), outline=(255, 64, 64), width=2)
    return shown
