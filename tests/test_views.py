"""Views: drawn from a counter, and the same for all four images of a sample."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deskpro.stages.base.training_options import Views
from deskpro.stages.data.loader import ImageDataset
from deskpro.stages.data.views import (
    ERASED,
    MEAN,
    PLAIN,
    STD,
    DrawnViews,
    View,
    draw_view,
    erase,
    normalise,
    parsing_target,
    render_view,
)
from deskpro.stages.losses.attention import attention_target
from deskpro.stages.targets.kinds import TARGETS, Settings, tensors

ALWAYS = Views(flip=0.5, crop=1.0, erase=1.0, enlarge=1.3)
SIZES = {"body": (384, 128), "lr_face": (224, 224), "hr_face": (64, 64), "mask": (256, 110)}


@given(st.integers(0, 5), st.text(max_size=8), st.integers(0, 1000))
def test_a_view_is_a_function_of_seed_sample_and_number(seed: int, sample: str, view: int) -> None:
    policy = Views(seed=seed, crop=1.0, erase=1.0)
    drawn = draw_view(policy, sample, view)
    assert drawn == draw_view(policy, sample, view)
    assert drawn != draw_view(policy, sample + "x", view)
    assert drawn != draw_view(policy, sample, view + 1)
    assert drawn != draw_view(Views(seed=seed + 1, crop=1.0, erase=1.0), sample, view)


@given(st.text(max_size=8), st.integers(0, 1000))
def test_a_view_stays_inside_the_image_and_within_the_policy(sample: str, number: int) -> None:
    view = draw_view(ALWAYS, sample, number)
    assert view.flip in (0, 1)
    assert view.height == view.width == pytest.approx(1 / 1.3)
    for start, length in (
        (view.top, view.height),
        (view.left, view.width),
        (view.erase_top, view.erase_height),
        (view.erase_left, view.erase_width),
    ):
        assert start >= 0
        assert start + length <= 1 + 1e-6
    area = view.erase_height * view.erase_width
    aspect = view.erase_height / view.erase_width
    assert 0.02 - 1e-6 <= area <= 0.4 + 1e-6
    assert 0.3 - 1e-5 <= aspect <= 1 / 0.3 + 1e-5


def test_other_samples_do_not_matter() -> None:
    alone = DrawnViews(ALWAYS, ["b"]).table(4)
    among = DrawnViews(ALWAYS, ["a", "b", "c"]).table(4)
    np.testing.assert_array_equal(alone[0], among[1])


def test_odds_are_those_of_the_policy() -> None:
    views = [draw_view(Views(flip=0.3, crop=0.6, erase=0.1), "x", i) for i in range(2000)]
    assert np.mean([view.flip for view in views]) == pytest.approx(0.3, abs=0.05)
    assert np.mean([view.height < 1 for view in views]) == pytest.approx(0.6, abs=0.05)
    assert np.mean([view.erase_height > 0 for view in views]) == pytest.approx(0.1, abs=0.03)


def test_the_first_view_is_plain_only_on_request() -> None:
    assert View(*DrawnViews(ALWAYS, ["a"], plain_view=True).table(2)[0, 0]) == PLAIN
    assert View(*DrawnViews(ALWAYS, ["a"]).table(2)[0, 0]) != PLAIN


def test_the_plain_view_is_the_reference_preprocessing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    image = Image.fromarray(pixels)
    resized = np.asarray(image.resize((64, 128), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(render_view(image, PLAIN, (128, 64)), resized.transpose(2, 0, 1))


@given(
    st.integers(0, 10_000),
    st.integers(20, 300),
    st.integers(20, 200),
    st.sampled_from(["jpg", "png"]),
)
def test_the_fast_view_is_the_reference_within_2_of_255(
    number: int, height: int, width: int, kind: str
) -> None:
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    views = [PLAIN, PLAIN._replace(flip=1.0), draw_view(Views(crop=1.0), "sample", number)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"image.{kind}")
        image.save(file)
        for size in {**SIZES, "own": (height, width)}.values():
            table = pd.DataFrame({"imgs": [str(file)]})
            for view in views:
                row = np.asarray(view, np.float32)
                quick, exact = (
                    ImageDataset(table, {"imgs": size}, lambda *_, row=row: row, quick=quick)[0, 0]
                    for quick in (["imgs"], [])
                )
                assert (quick["imgs"].int() - exact["imgs"].int()).abs().max() <= 2


def marked(size: tuple[int, int], y: float, x: float) -> Image.Image:
    """A black image with a soft white spot at fractions (y, x)."""
    height, width = size
    rows, columns = (np.arange(height) + 0.5) / height - y, (np.arange(width) + 0.5) / width - x
    spot = np.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / (2 * 0.04**2))
    return Image.fromarray(np.repeat((255 * spot)[..., None], 3, 2).round().astype(np.uint8))


def centre(pixels: np.ndarray) -> tuple[float, float]:
    """Centre of mass of [3, H, W], in fractions."""
    weight = pixels[0].astype(float)
    _, height, width = pixels.shape
    rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    y, x = (weight.sum(1) * rows).sum(), (weight.sum(0) * columns).sum()
    return y / weight.sum(), x / weight.sum()


@given(st.integers(0, 10_000), st.floats(0.4, 0.6), st.floats(0.4, 0.6))
def test_a_marker_lands_on_the_same_place_in_all_four_images(
    number: int, y: float, x: float
) -> None:
    view = draw_view(ALWAYS, "sample", number)
    where_y, where_x = (y - view.top) / view.height, (x - view.left) / view.width
    if view.flip:
        where_x = 1 - where_x
    for size in SIZES.values():
        stored = (2 * size[0], size[1] + 30)  # images aren't stored at the network's size
        found = centre(render_view(marked(stored, y, x), view, size))
        assert found == pytest.approx((where_y, where_x), abs=0.01)


@given(st.integers(0, 10_000))
def test_all_images_are_erased_at_the_same_place_and_masks_not(number: int) -> None:
    view = draw_view(ALWAYS, "sample", number)
    row = np.asarray([view], np.float32)
    for height, width in SIZES.values():
        image = erase(torch.zeros(1, 3, height, width), row)
        inside = (image[0] == torch.tensor(ERASED).view(3, 1, 1)).all(0)
        rows, columns = torch.nonzero(inside, as_tuple=True)
        assert rows.min() / height == pytest.approx(view.erase_top, abs=0.5 / height + 1e-6)
        assert columns.min() / width == pytest.approx(view.erase_left, abs=0.5 / width + 1e-6)
        assert inside.sum() / (height * width) == pytest.approx(
            view.erase_height * view.erase_width, abs=1.5 / min(height, width)
        )
        assert not image[0][:, ~inside].any()


def test_images_are_normalised_with_imagenet_statistics() -> None:
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    expected = (np.array([0, 128, 255]) / 255 - MEAN) / STD
    np.testing.assert_allclose(normalise(pixels)[0, :, 0, 0], expected, rtol=1e-6)


def test_parsing_is_sampled_without_antialiasing() -> None:
    mask = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    mask[0, 0, 3:5, 3:5] = 255  # half-pixel centres: position (0, 0) of 2×2 samples rows 3 and 4
    mask[0, 0, 11, 11] = 1  # a quarter of a byte's step in position (1, 1)
    mask[0, 1, :8], mask[0, 2, :, 8:] = 255, 51
    found = parsing_target(mask, (2, 2))
    assert found.dtype == torch.uint8
    assert found[0].tolist() == [
        [[255, 0], [0, 0]], [[255, 255], [0, 0]], [[0, 51], [0, 51]], [[1, 0], [0, 1]]
    ]  # fmt: skip


MAPS = [((384, 128), (48, 16)), ((64, 32), (8, 4)), ((33, 17), (7, 3)), ((5, 4), (9, 6))]
"""Of masks, and of the map."""


@given(st.integers(0, 2**32 - 1), st.sampled_from(MAPS), st.integers(1, 255), st.booleans())
def test_the_default_attention_of_stored_parsing_is_the_published_target_in_bytes(
    seed: int, sizes: tuple[tuple[int, int], tuple[int, int]], highest: int, channels_last: bool
) -> None:
    """Of random masks, in either memory format; low values are traces of a head, as of JPEG."""
    (height, width), size = sizes
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, highest + 1, (2, 3, height, width)) * (rng.random() > 0.5)
    numbers[rng.random(numbers.shape) < rng.random()] = rng.choice([0, 255])
    mask = torch.from_numpy(numbers.astype(np.uint8))
    if channels_last:
        mask = mask.contiguous(memory_format=torch.channels_last)

    head = torch.nn.functional.interpolate(
        mask[:, :1].float() / 255, size, mode="bilinear", align_corners=False
    )
    expected = (torch.where(head == 0, 0.1, head) * 255).round().byte()
    parsing = parsing_target(mask, size)
    settings = Settings(5, (32, 32), (height, width), size, "float32", "", "", 16, ())
    stored = TARGETS["parsing"].encode(parsing, settings)
    fields = TARGETS["parsing"].fields(settings)
    assert {n: v.shape[1:] for n, v in stored.items()} == {n: f.shape for n, f in fields.items()}
    decoded = TARGETS["parsing"].decode(tensors(stored))
    assert torch.equal(decoded, parsing)
    assert torch.equal(attention_target(decoded, 0.1), expected / 255)
