"""The attention on queries and the head IoU, against counting pixel by pixel."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deskpro.cache.reader import MappedReader
from deskpro.stages.data.views import normalise
from deskpro.stages.metrics.overlap import highest, region_iou, uniform_iou
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.weights import load_student
from deskpro.stages.reporting.heatmap import outline
from tests.conftest import Project

SIZE = (64, 32)
"""Of body images."""

Maps = tuple[np.ndarray, np.ndarray]


@st.composite
def maps(draw: st.DrawFn) -> Maps:
    """A small map of few values and a region that isn't empty."""
    height, width = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    places = st.lists(st.integers(0, 3), min_size=height * width, max_size=height * width)
    values = np.array(draw(places), float).reshape(height, width)
    region = np.array(draw(places)).reshape(height, width) > 1
    region.flat[draw(st.integers(0, height * width - 1))] = True
    return values, region


@given(maps())
def test_the_iou_is_that_of_the_mean_over_every_order_of_equal_values(given: Maps) -> None:
    values, region = given
    flat, inside = values.ravel(), {*np.flatnonzero(region).tolist()}
    choices = [*itertools.combinations(range(flat.size), len(inside))]
    most = max(sum(flat[list(choice)]) for choice in choices)
    best = [{*choice} for choice in choices if sum(flat[list(choice)]) == most]
    common = np.mean([len(choice & inside) for choice in best])
    assert region_iou(values, region) == pytest.approx(common / (2 * len(inside) - common))
    shares = [sum(i in choice for choice in best) / len(best) for i in range(flat.size)]
    assert highest(values, len(inside)).ravel().tolist() == pytest.approx(shares)


@given(maps())
def test_only_the_order_of_a_map_counts(given: Maps) -> None:
    values, region = given
    assert region_iou(np.exp(5 * values) - 3, region) == region_iou(values, region)
    assert region_iou(region.astype(float), region) == 1
    flat = np.full(region.shape, 0.3)
    assert region_iou(flat, region) == pytest.approx(uniform_iou(region.mean()))
    assert np.isnan(region_iou(values, np.zeros_like(region)))


def test_random_maps_have_the_iou_of_a_uniform_one() -> None:
    region = np.zeros((96, 48), bool)
    region[5:20, 15:30] = True
    random = np.random.default_rng(0)
    found = [region_iou(random.random(region.shape), region) for _ in range(200)]
    assert np.mean(found) == pytest.approx(uniform_iou(region.mean()), rel=0.03)


def test_an_outline_has_the_pixels_of_a_region_that_touch_another() -> None:
    region = np.random.default_rng(1).random((9, 7)) > 0.4
    for (y, x), found in np.ndenumerate(outline(region)):
        around = [
            0 <= y + dy < 9 and 0 <= x + dx < 7 and region[y + dy, x + dx]
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))
        ]
        assert found == (region[y, x] and not all(around))


def attention(project: Project) -> dict[str, Any]:
    return dict(json.loads((project.run / "metrics.json").read_text())["attention"])


def stored(project: Project) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of the store's queries, and its fields."""
    reader = MappedReader(project.run / "attention.zarr", "attention")
    rows = range(reader.schema.samples)
    return reader.column("sample_id").tolist(), reader.read([*rows], [0] * len(rows))


def enlarged(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, pixel by pixel, with half-pixel centres; the border's values go on."""
    found = np.empty(size)
    for y, x in np.ndindex(*size):
        v, u = ((i + 0.5) * n / m - 0.5 for i, n, m in zip((y, x), grid.shape, size, strict=True))
        v, u = max(v, 0.0), max(u, 0.0)
        top, left = int(v), int(u)
        down, right = min(top + 1, grid.shape[0] - 1), min(left + 1, grid.shape[1] - 1)
        a, b = v - top, u - left
        upper = (1 - b) * grid[top, left] + b * grid[top, right]
        lower = (1 - b) * grid[down, left] + b * grid[down, right]
        found[y, x] = (1 - a) * upper + a * lower
    return found


@pytest.mark.finished("eval")
def test_the_figures_are_those_of_the_files_counted_pixel_by_pixel(project: Project) -> None:
    student, _ = load_student(project.run / "student.safetensors")
    names, fields = stored(project)
    queries = sorted((project.data / "imgs" / "query").iterdir())
    assert sorted(names) == [f"query/{path.name}" for path in queries]
    expected: dict[str, tuple[float, float]] = {}
    for name, seen, figures in zip(names, fields["attention"], fields["figures"], strict=True):
        mask = next((project.data / "mask" / "query").glob(f"{Path(name).stem}.*"))
        pixels = [
            np.asarray(Image.open(path).convert("RGB").resize((SIZE[1], SIZE[0]), 2))
            for path in (project.data / "imgs" / name, mask)
        ]
        body = torch.from_numpy(pixels[0].copy()).permute(2, 0, 1)[None]
        with torch.inference_mode():
            whole = student(torch.zeros(1, 3, 32, 32), normalise(body)).attention
        assert whole is not None
        np.testing.assert_allclose(seen, whole[0, 0].numpy(), atol=1e-6)

        head, large = pixels[1][..., 0] >= 128, enlarged(seen.astype(float), SIZE).round(6)
        order = sorted(np.ndindex(*SIZE), key=lambda place: -large[place])
        chosen = {*order[: int(head.sum())]}
        both = sum(bool(head[place]) for place in chosen)
        either = len(chosen | {*zip(*np.nonzero(head), strict=True)})
        expected[name] = both / either, head.mean() / (2 - head.mean())
        assert figures[0] == pytest.approx(head.mean())
        assert figures[1] == pytest.approx(both / either, abs=0.02)  # pixels of equal attention
        assert figures[1] <= 1
        assert figures[2] > figures[0] / (2 - figures[0])
    found = attention(project)
    assert found["head_iou"] == pytest.approx(fields["figures"][:, 1].mean())
    assert found["head_iou"] == pytest.approx(np.mean([e[0] for e in expected.values()]), abs=5e-3)
    assert found["uniform_iou"] == pytest.approx(np.mean([e[1] for e in expected.values()]))
    assert found["mask_iou"] == pytest.approx(fields["figures"][:, 2].mean())
    low, high = found["interval"]
    assert low < found["head_iou"] < high
    assert (found["queries"], found["identities"]) == (12, 6)


@pytest.mark.finished("eval")
def test_masks_reach_no_network_and_no_score(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, scores = stored(project), (project.run / "queries.csv").read_bytes()
    lists = (project.run / "ranked.csv").read_bytes()
    figure = attention(project)
    random = np.random.default_rng(0)
    for path in (project.data / "mask" / "query").iterdir():
        height, width = np.asarray(Image.open(path)).shape[:2]
        noise = np.zeros((height, width, 3), np.uint8)
        noise[random.random((height, width)) > 0.5, 0] = 255
        path.unlink()
        Image.fromarray(noise).save(path.with_suffix(".png"))
    refused = project("eval")
    assert refused.code == 2
    assert "the content of mask of query has changed since eval ran" in refused.err
    shapes = []
    forward = LMBN.attend
    monkeypatch.setattr(
        LMBN, "attend", lambda self, images: shapes.append(images.shape) or forward(self, images)
    )
    project.ok("eval", "--force")
    assert {shape[1] for shape in shapes} == {3}
    after = stored(project)
    own, theirs = (
        dict(zip(names, fields["attention"], strict=True)) for names, fields in (before, after)
    )
    assert own.keys() == theirs.keys()
    for name, values in own.items():
        np.testing.assert_array_equal(values, theirs[name])
    assert (project.run / "queries.csv").read_bytes() == scores
    assert (project.run / "ranked.csv").read_bytes() == lists
    assert attention(project)["digest"] != figure["digest"]
    assert attention(project)["uniform_iou"] == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.finished("eval")
def test_other_protocols_compute_no_attention_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = attention(project)
    monkeypatch.setattr(LMBN, "attend", None)
    project.ok("eval", "--force", "--set", "eval.protocols=[cloth-changing]")
    assert attention(project) == before


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_without_masks_the_report_says_so(project: Project) -> None:
    shutil.rmtree(project.data / "mask" / "query")
    project.ok("eval", "--force")
    assert attention(project) == {"refused": "the queries have no masks"}
    project.command("report", str(project.run))
    text = (project.run / "report.html").read_text()
    assert "Not shown: the queries have no masks." in text
    assert "head IoU <b>" not in text


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_masks_that_cannot_be_used_are_counted_and_named(project: Project) -> None:
    broken, small, empty, gone = sorted((project.data / "mask" / "query").iterdir())[:4]
    broken.write_bytes(b"\xff\xd8nothing")
    with Image.open(small) as image:
        image.resize((8, 16)).save(small)
    with Image.open(empty) as image:
        Image.new("RGB", image.size).save(empty)
    gone.unlink()
    result = project.ok("eval", "--force")
    assert f"not used to measure the attention: {broken}: unreadable image" in result.err
    assert "(2 such masks)" in result.err
    found = attention(project)
    counts = ("queries", "without mask", "unusable mask", "without head")
    assert [found[name] for name in counts] == [8, 1, 2, 1]
    project.command("report", str(project.run))
    text = (project.run / "report.html").read_text()
    assert "1 queries without a mask, 2 with one that cannot be used, 1 whose mask" in text


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_label_maps_are_no_masks(project: Project) -> None:
    for path in (project.data / "mask" / "query").iterdir():
        with Image.open(path) as image:
            labels = Image.new("RGB", image.size, (3, 3, 3))
        path.unlink()
        labels.save(path.with_suffix(".png"))
    result = project.ok("eval", "--force")
    assert "They look like label maps" in result.err
    assert "label maps" in attention(project)["refused"]


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_a_teacher_and_a_stream_of_faces_have_no_attention(project: Project) -> None:
    weights, out = project.run / "teacher.safetensors", project.run.with_name("teacher")
    alone = ["--checkpoint", str(weights), "--data", str(project.data), "--dataset", "benchmark"]
    result = project.command("eval", *alone, "--run", str(out), "--set", "device=cpu")
    assert result.code == 0, result.err
    assert json.loads((out / "metrics.json").read_text())["attention"] is None
    assert not (out / "attention.zarr").exists()
    project.command("report", str(out))
    assert "Not shown: this network has no attention." in (out / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_the_report_shows_queries_from_the_lowest_to_the_highest(project: Project) -> None:
    def page(*arguments: str) -> str:
        result = project.command("report", str(project.run), *arguments)
        assert result.code == 0, result.err
        return (project.run / "report.html").read_text()

    other = Path(shutil.copytree(project.run, project.run.with_name("other")))
    text = page("--samples", "5", "--against", str(other))
    names, fields = stored(project)
    figures = dict(zip(names, fields["figures"][:, 1].tolist(), strict=True))
    start, end = text.index('id="attention-on-queries"'), text.index('id="predictions"')
    shown = re.findall(r"head IoU <b>([\d.]+) %</b>", text[start:end])
    samples = re.findall(r'<p class="soft small">([^<]+)</p>', text[start:end])
    assert len(samples) == 5
    assert {*samples} <= {*names}
    assert [f"{100 * figures[name]:.1f}" for name in samples] == shown
    assert figures[samples[0]] == min(figures.values())
    assert figures[samples[-1]] == max(figures.values())
    assert [figures[name] for name in samples] == sorted(figures[name] for name in samples)
    whole = 100 * attention(project)["head_iou"]
    assert text[start:end].count(f"<b>{whole:.1f}</b>") == 2  # this run and the other
    top = max(fields["attention"][names.index(name)].max() for name in samples)
    assert f"<span>{top:.2f}</span></figure>" in text

    metrics = json.loads((other / "metrics.json").read_text())
    metrics["attention"]["digest"] = "0" * 64  # other masks
    (other / "metrics.json").write_text(json.dumps(metrics))
    text = page("--against", str(other))
    assert text.count(f"<b>{whole:.1f}</b>") == 1
    assert "measured on other queries or masks" in text
    assert "no queries were requested." in page("--samples", "0")
    shutil.rmtree(project.run / "attention.zarr")
    text = page()
    assert "Not shown: attention.zarr is not in the run folder." in text
    assert f"<b>{whole:.1f}</b>" in text


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_attention_of_other_weights_or_without_images_is_not_shown(project: Project) -> None:
    shutil.rmtree(project.data / "mask" / "query")
    metrics = json.loads((project.run / "metrics.json").read_text())
    metrics["data"]["root"] = str(project.data)
    (project.run / "metrics.json").write_text(json.dumps(metrics))
    project.command("report", str(project.run))
    text = (project.run / "report.html").read_text()
    assert "Not shown: their images are not found." in text
    assert f"<b>{100 * metrics['attention']['head_iou']:.1f}</b>" in text
    metrics["network"] |= {"sha256": "0" * 64, "file": "other.safetensors"}
    (project.run / "metrics.json").write_text(json.dumps(metrics))
    project.command("report", str(project.run))
    assert "attention.zarr is of other weights." in (project.run / "report.html").read_text()
    folder = project.run / "attention.zarr" / "attention" / "zarr.json"
    folder.write_text("nothing")
    assert project.command("report", str(project.run)).code == 0
    assert "attention.zarr" in (project.run / "report.html").read_text()
