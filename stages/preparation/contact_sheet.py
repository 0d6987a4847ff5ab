"""The contact sheet: the results for some images side by side, for a person to judge."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from deskpro.cache.files import write_text
from deskpro.stages.base.prepare_options import Prepare
from deskpro.stages.preparation import faces
from deskpro.stages.preparation.samples import EXTENSIONS, prepared_path
from deskpro.stages.preparation.schemes import SCHEMES, Scheme
from deskpro.stages.preparation.step import Unusable, read_image, read_labels
from deskpro.stages.reporting.images import from_pixels

_HEIGHT, _FACE = 192, 112
"""Of a body image, and of a face, on the page, in pixels."""

_REASONS = {
    faces.SEVERAL: "More than one head or face: the largest was used",
    faces.UNSURE: "The detector was unsure",
    faces.AT_EDGE: "The box had to be moved into the image",
    faces.SMALL: "Too small for a face",
    faces.OUTSIDE: "The detector found a face outside the head region only",
    faces.BACK: "A head, but hardly any face: a back view",
    faces.NONE: "No face and no head",
}
"""What makes an image doubtful, in the order of the sections."""


def write(path: Path, table: pd.DataFrame, settings: Prepare, root: Path, title: str) -> None:
    """Write the page, with every image that it shows; table: the rows of prepare.csv."""
    from deskpro.stages.reporting.page import render  # it loads matplotlib

    usable = table[table["problem"].isna()]
    doubtful = _doubtful(usable)
    share = min(settings.shown, max(1, settings.shown // max(1, len(doubtful))))
    groups = [("Drawn at random", usable, settings.shown)]
    groups += [(_REASONS[why], rows, share) for why, rows in doubtful.items()]
    scheme = SCHEMES[settings.parsing.scheme]
    sections = [
        {
            "title": name,
            "total": len(rows),
            "cards": [_card(row, root, scheme) for row in _drawn(rows, count)],
        }
        for name, rows, count in groups
    ]
    parsing, face, restoration = settings.parsing, settings.face, settings.restoration
    methods = {
        "parsing": f"{parsing.method}, {scheme.title}",
        "mask": settings.mask.method,
        "face": f"{face.method}, margin {face.margin:g}",
        "restoration": restoration.method,
    }
    decisions = Counter(usable.get("decision", ()))
    parts = {
        "title": title,
        "images": len(usable),
        "identities": usable["pid"].nunique(),
        "decisions": sorted(decisions.items(), key=lambda pair: (pair[0] != faces.FOUND, pair)),
        "methods": [(name, methods[name]) for name in settings.steps],
        "sections": sections,
        "problems": table[table["problem"].notna()].to_dict("records"),
        "restores": "restoration" not in settings.steps or restoration.method != "bicubic",
    }
    write_text(path, render("prepare", parts))


def _drawn(rows: pd.DataFrame, count: int) -> list[dict[Hashable, Any]]:
    """At most `count` rows, each drawn by a hash of its own id."""
    order = rows["sample_id"].map(lambda name: hashlib.sha256(name.encode()).digest())
    drawn = rows.loc[order.sort_values().index[:count]].sort_values("sample_id")
    return drawn.to_dict("records")


def _doubtful(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows by what makes them doubtful."""
    found: dict[str, list[Any]] = defaultdict(list)
    columns = rows.reindex(columns=["decision", "doubts"])
    for index, decision, doubts in columns.itertuples():
        for why in (*str(doubts).split("; "), decision):
            found[why].append(index)
    return {why: rows.loc[found[why]] for why in _REASONS if why in found}


def _card(row: Mapping[Hashable, Any], root: Path, scheme: Scheme) -> dict[str, Any]:
    """An image on the page: its id, facts, and what was prepared of it by caption."""
    body, labels, mask, lr_face, hr_face = (
        _read(prepared_path(root, kind, row["sample_id"]), kind) for kind in EXTENSIONS
    )
    known = {name: value for name, value in row.items() if pd.notna(value) and value != ""}
    images = {"body": body, "parsing": None, "mask": mask, "face box": None}
    if body is not None and labels is not None and labels.size == body.size:
        images["parsing"] = _coloured(body, np.asarray(labels), scheme)
    if body is not None and "left" in known:
        images["face box"] = _boxed(body, known)
    shown = [(what, _uri(image, _HEIGHT)) for what, image in images.items() if image is not None]
    for what, face in (("LR face", lr_face), ("HR face", hr_face)):
        if face is not None:
            shown.append((f"{what}, {face.width} px", _uri(face, _FACE)))
    facts = [known[name] for name in ("decision", "doubts") if name in known]
    if "score" in known:
        facts.append(f"score {known['score']:.2f}")
    return {"id": row["sample_id"], "pid": row["pid"], "facts": facts, "images": shown}


def _read(path: Path, kind: str) -> Image.Image | None:
    """A label map as one channel, any other image as RGB; None where it cannot be read."""
    with suppress(Unusable):
        return Image.fromarray(read_labels(path)) if kind == "labels" else read_image(path)
    return None


def _uri(image: Image.Image, height: int) -> str:
    return from_pixels(np.asarray(_resized(image, height)).transpose(2, 0, 1))


def _resized(image: Image.Image, height: int) -> Image.Image:
    width = max(1, round(image.width * height / image.height))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _coloured(body: Image.Image, labels: np.ndarray, scheme: Scheme) -> Image.Image:
    """The label map over the dimmed image, a colour for each class."""
    count = len(scheme.names) - 1
    # Hues a golden section apart: neighbours in the list differ clearly.
    turns = (0.618034 * np.arange(count)[:, None] + np.array([0, 1 / 3, 2 / 3])) % 1
    colours = np.zeros((256, 3))
    colours[1 : count + 1] = 255 * (0.5 + 0.5 * np.cos(2 * np.pi * turns))
    mixed = 0.35 * np.asarray(body) + np.where(labels[..., None] > 0, 0.65 * colours[labels], 0)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _boxed(body: Image.Image, facts: Mapping[Hashable, Any]) -> Image.Image:
    scale, shown = _HEIGHT / body.height, _resized(body, _HEIGHT)
    left, top, side = (float(facts[name]) * scale for name in ("left", "top", "side"))
    box = (left, top, left + side, top + side)
    ImageDraw.Draw(shown).rectangle(box, outline=(255, 64, 64), width=2)
    return shown
