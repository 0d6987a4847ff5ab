"""Label maps in the place of masks are refused, and their own advice makes masks of them."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deskpro.stages.data.check import check_data
from deskpro.stages.data.masks import HEAD, LABELS, NO_HEAD, content, lack_of_heads
from tests.conftest import Project

LIP = (
    0, 0, 0, 128, 0, 0, 255, 0, 0, 0, 85, 0, 170, 0, 51, 255, 85, 0, 0, 0, 85, 0, 119, 221, 85, 85,
    0, 0, 85, 85, 85, 51, 0, 52, 86, 128, 0, 128, 0, 0, 0, 255, 51, 170, 221, 0, 255, 255, 85, 255,
    170, 170, 255, 85, 255, 255, 0, 255, 170, 0,
)  # fmt: skip
"""The palette of public code for LIP and CIHP: red, green, blue of each class."""
VOC = tuple(
    sum((label >> 3 * bit + channel & 1) << 7 - bit for bit in range(3))
    for label in range(20)
    for channel in range(3)
)
"""The palette of PASCAL VOC."""


def palette(colours: tuple[int, ...]) -> Callable[[Image.Image], Image.Image]:
    def coloured(labels: Image.Image) -> Image.Image:
        made = labels.copy()
        made.putpalette(colours)
        return made

    return coloured


CODINGS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "class ids": lambda labels: labels,
    "the palette of LIP": palette(LIP),
    "the palette of VOC": palette(VOC),
    "colours": lambda labels: palette(LIP)(labels).convert("RGB"),
    "shades of grey": lambda labels: labels.point(lambda label: 12 * label),
    "0 and 1": lambda labels: labels.point(lambda label: int(label > 0)),
}


@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_label_maps_in_the_place_of_masks_are_refused(name: str, suffix: str, data: Path) -> None:
    shutil.rmtree(data / "mask")
    for path in (data / "labels" / "bounding_box_train").iterdir():
        target = data / "mask" / "bounding_box_train" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        coded = CODINGS[name](Image.open(path))
        (coded.convert("RGB") if suffix == ".jpg" else coded).save(target.with_suffix(suffix))
    [problem] = check_data(data, "benchmark").problems
    assert problem.path == data / "mask"
    assert problem.what.startswith("20 of 20 masks have no head")
    assert "look like label maps" in problem.what


def test_true_masks_are_masks_in_each_size_and_format(tiny_benchmark: Path) -> None:
    for path in (tiny_benchmark / "mask" / "bounding_box_train").iterdir():
        mask = Image.open(path)
        for size in ((16, 32), (32, 64), (128, 384)):
            for how in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC):
                assert content(mask.resize(size, how)) == HEAD
                written = io.BytesIO()
                mask.resize(size, how).save(written, "JPEG", quality=90)
                assert content(Image.open(written)) == HEAD
        assert content(mask.convert("P", palette=Image.Palette.ADAPTIVE).convert("RGB")) == HEAD
        head = mask.getchannel("R")
        assert content(Image.merge("RGB", [head, head, head])) == HEAD
        body = np.asarray(mask) * np.array([0, 1, 1], np.uint8)
        assert content(Image.fromarray(body)) == NO_HEAD
    assert content(Image.new("RGB", (32, 64))) == NO_HEAD


def test_single_masks_may_lack_a_head() -> None:
    assert lack_of_heads([NO_HEAD] * 4) is None
    assert lack_of_heads([None] * 40) is None
    assert lack_of_heads([NO_HEAD] * 19 + [HEAD]) is None
    assert "20 of 21 masks have no head" in (lack_of_heads([NO_HEAD] * 20 + [HEAD]) or "")
    assert "label maps" not in (lack_of_heads([NO_HEAD] * 20) or "")
    assert "label maps" in (lack_of_heads([NO_HEAD] * 5 + [LABELS] * 6) or "")


def test_the_advice_makes_masks_of_label_maps(project: Project) -> None:
    shutil.rmtree(project.data / "mask")
    (project.data / "labels").rename(project.data / "mask")
    refused = project("check-data")
    assert refused.code == 2
    assert "rename this folder to labels" in refused.out
    (project.data / "mask").rename(project.data / "labels")
    project.ok("prepare", "--set", "prepare.steps=[mask]", "--set", "prepare.parsing.scheme=lip")
    assert "0 problems" in project.ok("check-data").err
