"""A contact sheet of a folder of prepared pictures."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pandas as pd
from PIL import Image

BODIES = 4
"""Body pictures shown of each identity."""
GAP = 6


def contact_sheet(root: Path, split: str = "bounding_box_train", rows: int = 6) -> Image.Image:
    """Pictures of a few identities: bodies in several outfits, mask, LR and HR faces.

    Args:
        root: a folder in the prepared layout. Where `clothes.csv` is missing, outfits are unknown.
        split: the split to show.
        rows: identities to show, at most.

    Returns:
        RGB, one row for each identity; 128 pixels to a body's height.

    Raises:
        FileNotFoundError: if no identity of the split has pictures of all four kinds.
    """
    root = Path(root)
    outfits: dict[str, str] = {}
    if (root / "clothes.csv").exists():
        table = pd.read_csv(root / "clothes.csv", dtype=str)
        outfits = dict(zip(table["path"], table["clothes"], strict=True))
    people: dict[str, list[str]] = defaultdict(list)
    for path in sorted((root / "mask" / split).glob("*.jpg")):
        name = path.name
        if all((root / kind / split / name).exists() for kind in ("imgs", "lr_face", "hr_face")):
            people[name.split("_")[0]].append(name)
    if not people:
        raise FileNotFoundError(f"{root}: no picture of {split} has body, faces and mask")

    lines = [_row(root, split, names, outfits) for _, names in sorted(people.items())[:rows]]
    width = max(line.width for line in lines) + 2 * GAP
    sheet = Image.new("RGB", (width, sum(line.height + GAP for line in lines) + GAP), "white")
    top = GAP
    for line in lines:
        sheet.paste(line, (GAP, top))
        top += line.height + GAP
    return sheet


def _row(root: Path, split: str, names: list[str], outfits: dict[str, str]) -> Image.Image:
    """One identity: bodies, then mask, LR face and HR face of the first, HR face of the last."""
    chosen = _varied(names, [outfits.get(f"{split}/{name}", "") for name in names])

    def tile(kind: str, name: str, size: tuple[int, int]) -> Image.Image:
        with Image.open(root / kind / split / name) as picture:
            return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)

    row = Image.new("RGB", (BODIES * (64 + GAP) + 3 * (128 + GAP) + 64, 128), "white")
    left = 0
    for name in chosen:
        row.paste(tile("imgs", name, (64, 128)), (left, 0))
        left += 64 + GAP
    left = BODIES * (64 + GAP)
    row.paste(tile("mask", chosen[0], (64, 128)), (left, 0))
    left += 64 + GAP
    for kind, name in (("lr_face", chosen[0]), ("hr_face", chosen[0]), ("hr_face", chosen[-1])):
        row.paste(tile(kind, name, (128, 128)), (left, 0))
        left += 128 + GAP
    return row


def _varied(names: list[str], outfits: list[str]) -> list[str]:
    """At most `BODIES` names, other outfits and other cameras first."""
    chosen: list[int] = []
    while len(chosen) < min(BODIES, len(names)):
        left = [i for i in range(len(names)) if i not in chosen]

        def seen(i: int) -> tuple[int, int]:
            camera = names[i].split("_")[1]
            same_outfit = sum(outfits[i] == outfits[j] for j in chosen)
            return same_outfit, sum(camera == names[j].split("_")[1] for j in chosen)

        chosen.append(min(left, key=seen))
    return [names[i] for i in chosen]
