"""How the names of a dataset are read, and what is left out of it, for people who check both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deskpro.stages.base.names import Name
from deskpro.stages.data.check import CheckedData
from deskpro.stages.data.index import read_clothes, read_names, read_scenes
from deskpro.stages.data.layouts import SPLITS, Layout

SHOWN = 5
"""Names of each split, and of each reason."""

_UNTRAINED = {
    "all": "",
    "body": "not in the loss of the attention: ",
    "face": "not trained on in the stream face: ",
}
"""Stream of left_out.csv → what its images aren't used for."""


class Reading(NamedTuple):
    """The images of a split: where they lie, how many, the first of them and what each says."""

    where: str
    images: int
    first: Sequence[tuple[str, Name | None]]


def read_first(root: Path, layout: Layout) -> dict[str, Reading]:
    """Split → how its first names are read."""
    lists, clothes = layout.read_lists(root, SPLITS), read_clothes(root / "clothes.csv")[0]
    found = dict[str, Reading]()
    for split in SPLITS:
        images = layout.images(root, split, lists=lists)
        scenes = read_scenes(root, layout.scenes.get(split))[0]
        names = read_names(layout, images[:SHOWN], lists, clothes, scenes)
        where = f"{layout.bodies(root)}/{layout.files[split]}".removesuffix("/**/*")
        found[split] = Reading(where, len(images), [*names])
    return found


def left_out(root: Path, layout: Layout, checked: CheckedData) -> Mapping[str, Sequence[str]]:
    """Reason → what isn't used for it: images, files, or rows of lists."""
    found, lists = defaultdict[str, list[str]](list), layout.read_lists(root, SPLITS)
    for split in SPLITS:
        for image in layout.images(root, split, lists=lists):
            name = layout.parse(image, lists)
            if name is None:
                found[f"name doesn't parse as {layout.example}"].append(image)
            elif name.pid in layout.junk:
                found[f"pid {name.pid} stands for nobody"].append(image)
    for row in checked.left_out.to_dict("records"):
        reason = row["reason"].replace(f"identity {row['pid']} ", "its identity ")
        found[_UNTRAINED[row["stream"]] + reason].append(row["sample_id"])
    if not layout.bodies_only(root):
        tested = checked.table[checked.table["split"].isin(["query", "gallery"])]
        faceless = tested.loc[tested["lr_face"].isna(), "sample_id"]
        found["no face to evaluate the stream face by: no lr_face"] += [*faceless]
    for path, what in checked.unused:
        listed, _, reason = what.rpartition(": ")
        found[reason].append(listed or str(path).removeprefix(f"{root}/"))
    return {reason: names for reason, names in found.items() if names}
