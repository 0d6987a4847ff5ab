"""The synthetic benchmark: complete, reproducible, cloth-changing; people, not places, differ.

`python -m tests.test_benchmark ROOT .github/benchmark.jpg` shows test identities of a benchmark.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from pydantic import ValidationError

from deskpro.stages.data.benchmark import (
    BenchmarkOptions,
    make,
    make_benchmark,
)
from deskpro.stages.data.benchmark.camera import draw_camera
from deskpro.stages.data.benchmark.make import draw_sample
from deskpro.stages.data.benchmark.people import draw_outfit, draw_person
from deskpro.stages.data.benchmark.plan import (
    GALLERY,
    QUERY,
    SPLITS,
    TRAIN,
    Sample,
    plan_samples,
    stream,
)
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.metrics.ranking import clothes_distances, rank_gallery

TINY = BenchmarkOptions(
    train_identities=2, train_images=3, test_identities=6, query_images=2, gallery_images=2,
    outfits=3, outfits_per_identity=2, cameras=2, query_back_views=0.3,
)  # fmt: skip
MIDDLE = BenchmarkOptions(
    train_identities=12, train_images=20, test_identities=6, query_images=2,
    gallery_images=4, outfits=6, outfits_per_identity=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny") / "benchmark"
    make_benchmark(root, TINY, workers=1)
    return root


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("middle") / "benchmark"
    make_benchmark(root, MIDDLE, workers=2)
    return root


def digests(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def pixels(root: Path, kind: str, path: str) -> np.ndarray:
    with Image.open(root / kind / path) as image:
        return np.asarray(image)


# Reproducible, complete or absent


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(tiny: Path, tmp_path: Path) -> None:
    make_benchmark(tmp_path / "two", TINY, workers=2)
    assert digests(tmp_path / "two") == digests(tiny)


def test_another_seed_gives_other_images(tiny: Path, tmp_path: Path) -> None:
    make_benchmark(tmp_path / "other", TINY.model_copy(update={"seed": 1}), workers=1)
    mine, other = digests(tiny), digests(tmp_path / "other")
    assert not {d for f, d in mine.items() if f.endswith(".jpg")} & set(other.values())


def test_counts_and_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    counts = make_benchmark(
        tmp_path / "b", TINY, 1, lambda done, total: calls.append((done, total))
    )
    assert counts["images"] == 2 * 3 + 6 * 4 == calls[-1][0]
    assert (counts[TRAIN], counts[QUERY], counts[GALLERY]) == (6, 12, 12)
    assert counts["identities"] == 8
    assert 0 < counts["without_face"] < 12
    assert calls == sorted(calls)
    assert {total for _, total in calls} == {30}
    record = json.loads((tmp_path / "b" / "benchmark.json").read_text())
    assert record["format"] == make.FORMAT
    assert BenchmarkOptions(**record["options"]) == TINY
    assert record["counts"] == counts


def test_an_existing_root_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match=re.escape(str(tmp_path))):
        make_benchmark(tmp_path, TINY, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(sample: Sample, options: BenchmarkOptions) -> None:
        if sample.number > 20:
            raise OSError("disk full")
        return draw_sample(sample, options)

    monkeypatch.setattr(make, "draw_sample", fail)
    with pytest.raises(OSError, match="disk full"):
        make_benchmark(tmp_path / "b", TINY, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_root(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from stages.data.benchmark import *\n"
        "o = BenchmarkOptions(test_identities=6, outfits=3, outfits_per_identity=2)\n"
        "def die(done, total): os.kill(os.getpid(), signal.SIGKILL)\n"
        "make_benchmark(Path(sys.argv[1]), o, 1, die)"
    )
    home = Path(__file__).parents[1]
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], cwd=home, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "b").exists()
    make_benchmark(tmp_path / "b", TINY, workers=1)


@pytest.mark.parametrize("workers", [0, -2])
def test_bad_workers_are_refused(tmp_path: Path, workers: int) -> None:
    with pytest.raises(ValueError, match=f"workers: {workers}"):
        make_benchmark(tmp_path / "b", TINY, workers)


@pytest.mark.parametrize(
    "field, value",
    [
        ("seed", -1), ("seed", 1.5), ("train_identities", 0), ("cameras", 1), ("cameras", True),
        ("outfits", 2), ("outfits_per_identity", 1), ("outfits_per_identity", 25),
        ("test_identities", 20), ("gallery_images", 3), ("body_height", 8), ("body_width", 500),
        ("face_size", 4000), ("low_height", 3), ("high_height", 64), ("degradation", -0.1),
        ("degradation", float("nan")), ("query_back_views", 0.8), ("train_back_views", "often"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        BenchmarkOptions.model_validate({field: value})
    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


def test_an_option_that_does_not_fit_the_default_of_another_is_refused() -> None:
    with pytest.raises(ValidationError, match="test_identities"):
        BenchmarkOptions(outfits=400)


def test_another_seed_is_another_world() -> None:
    for draw in (draw_person, draw_outfit, draw_camera):
        first, again, other = (draw(stream(seed, draw.__name__, 0)) for seed in (0, 0, 1001))
        assert first == again != other


# The plan


@st.composite
def small_options(draw: st.DrawFn) -> BenchmarkOptions:
    outfits = draw(st.integers(3, 7))
    owned = draw(st.integers(2, outfits))
    in_gallery = owned - owned // 2
    rounds = draw(st.integers(-(-2 // in_gallery), 3))
    return BenchmarkOptions(
        seed=draw(st.integers(0, 99)),
        train_identities=draw(st.integers(1, 12)),
        train_images=draw(st.integers(1, 8)),
        test_identities=rounds * outfits + draw(st.integers(0, outfits - 1)),
        query_images=draw(st.integers(1, 5)),
        gallery_images=draw(st.integers(max(2, in_gallery), 9)),
        cameras=draw(st.integers(2, 5)),
        outfits=outfits,
        outfits_per_identity=owned,
        query_back_views=draw(st.sampled_from([0.0, 0.1, 0.5])),
        train_back_views=draw(st.sampled_from([0.0, 0.2])),
    )


@given(small_options())
def test_the_plan_is_cloth_changing(options: BenchmarkOptions) -> None:
    samples = plan_samples(options)
    assert len({p.path for p in samples}) == len(samples)
    assert sorted(p.number for p in samples) == list(range(len(samples)))
    by_split = {split: [p for p in samples if p.split == split] for split in SPLITS}
    people = {split: {p.name.split("_")[0] for p in by_split[split]} for split in SPLITS}
    assert people[QUERY] == people[GALLERY]
    assert not people[TRAIN] & people[QUERY]
    for query in by_split[QUERY]:
        same = [p for p in by_split[GALLERY] if p.person == query.person]
        assert query.outfit not in {p.outfit for p in same}
        assert any(p.camera != query.camera for p in same)
        dressed_alike = {p.person for p in by_split[GALLERY] if p.outfit == query.outfit}
        assert len(dressed_alike) >= 2
    for split, share in ((TRAIN, options.train_back_views), (QUERY, options.query_back_views)):
        for person in {p.person for p in by_split[split]}:
            backs = [p.back for p in by_split[split] if p.person == person]
            assert abs(sum(backs) - share * len(backs)) < 1


def test_default_plan_is_balanced() -> None:
    samples = plan_samples(BenchmarkOptions())
    table = pd.DataFrame(samples)
    backs = table.groupby("split").back.mean()
    assert backs[TRAIN] == pytest.approx(0.2, abs=0.02)
    assert backs[QUERY] == pytest.approx(0.3, abs=0.03)
    assert backs[GALLERY] == pytest.approx(0.1, abs=0.02)
    wearers = table.groupby(["split", "outfit"]).person.nunique()
    assert wearers.min() >= 6
    assert (table[table.split == TRAIN].groupby("person").camera.nunique() == 4).all()
    pids = table.drop_duplicates("person").sort_values("person").name.str[:4].astype(int)
    assert abs(np.corrcoef(pids, range(len(pids)))[0, 1]) < 0.3
    frames = table.name.str.extract(r"_(\d+)\.jpg")[0].astype(int)
    assert abs(np.corrcoef(frames, table.outfit)[0, 1]) < 0.1


# The files


def test_layout_names_and_sizes(tiny: Path) -> None:
    assert sorted(path.name for path in tiny.iterdir()) == [
        "benchmark.json", "clothes.csv", "hr_face", "imgs", "labels", "lr_face", "mask"
    ]  # fmt: skip
    back = {p.path for p in plan_samples(TINY) if p.back}
    bodies = {str(p.relative_to(tiny / "imgs")) for p in (tiny / "imgs").rglob("*.jpg")}
    assert bodies == {p.path for p in plan_samples(TINY)}
    for kind, shape in {"imgs": (192, 96, 3), "mask": (192, 96, 3), "lr_face": (112, 112, 3),
                        "hr_face": (112, 112, 3)}.items():  # fmt: skip
        files = {str(p.relative_to(tiny / kind)) for p in (tiny / kind).rglob("*.jpg")}
        assert files == (bodies - back if "face" in kind else bodies)
        for file in files:
            assert re.fullmatch(r"\d+_c\d+_\d+\.jpg", Path(file).name)
            assert pixels(tiny, kind, file).shape == shape
    assert {str(p.relative_to(tiny / "labels")) for p in (tiny / "labels").rglob("*.png")} == {
        body.replace(".jpg", ".png") for body in bodies
    }


def test_label_maps_are_the_masks_and_tell_faces_from_the_backs_of_heads(tiny: Path) -> None:
    back = {p.path for p in plan_samples(TINY) if p.back}
    regions = ({2, 11}, {4}, {14})  # ATR: hair and face, upper clothes, an arm
    for path in (tiny / "labels").rglob("*.png"):
        labels = np.asarray(Image.open(path))
        body = str(path.relative_to(tiny / "labels").with_suffix(".jpg"))
        assert {*np.unique(labels)} <= {0, 2, 4, 11, 14}
        assert (11 in labels) == (body not in back)
        mask = pixels(tiny, "mask", body) >= 128
        for channel, classes in enumerate(regions):
            assert (mask[..., channel] == np.isin(labels, [*classes])).all()


def test_clothes_table(tiny: Path) -> None:
    table = pd.read_csv(tiny / "clothes.csv")
    assert list(table.columns) == ["path", "clothes"]
    assert list(table.path) == sorted(p.path for p in plan_samples(TINY))
    assert all(isinstance(outfit, str) for outfit in table.clothes)
    outfits = dict(zip(table.path, table.clothes, strict=True))
    for path, outfit in outfits.items():
        split, name = path.split("/")
        worn = {o for p, o in outfits.items() if p.startswith(f"{GALLERY}/{name[:4]}_")}
        assert split != QUERY or outfit not in worn


@pytest.mark.slow
def test_mask_regions_are_exact_and_disjoint(middle: Path) -> None:
    for path in faces(middle, TRAIN)[:20]:
        mask = pixels(middle, "mask", path).astype(int)
        assert np.minimum(mask, 255 - mask).max() <= 8
        assert ((mask >= 128).sum(2) <= 1).all()
        assert (mask >= 128).reshape(-1, 3).any(0)[:2].all()


def test_the_background_does_not_know_the_person_and_the_mask_cuts_it_out() -> None:
    sharp = MIDDLE.model_copy(update={"degradation": 0.0, "low_height": 768, "high_height": 768})
    one = next(p for p in plan_samples(sharp) if not p.back)
    other = one._replace(person=one.person + 1, outfit=(one.outfit + 1) % sharp.outfits)
    a, b = draw_sample(one, sharp), draw_sample(other, sharp)
    difference = np.abs(np.asarray(a["imgs"]).astype(int) - np.asarray(b["imgs"])).max(2)
    seen = np.maximum(np.asarray(a["mask"]), np.asarray(b["mask"])).max(2)
    near = np.asarray(Image.fromarray(seen).filter(ImageFilter.MaxFilter(13)))
    assert difference[near == 0].max() <= 2
    assert difference[seen > 0].mean() > 20


def test_lr_face_is_cut_from_the_body_around_the_head(middle: Path) -> None:
    for path in faces(middle, TRAIN)[:6]:
        body = Image.fromarray(pixels(middle, "imgs", path))
        face = Image.fromarray(pixels(middle, "lr_face", path))
        head = pixels(middle, "mask", path)[..., 0] >= 128
        rows, columns = np.nonzero(head)
        best = (math.inf, 0, 0, 0)
        for side in range(33, 48, 3):
            small = np.asarray(face.resize((side, side), Image.Resampling.BOX), dtype=float)
            for top in range(0, 50, 2):
                for left in range(10, 86 - side + 1, 2):
                    cut = np.asarray(body.crop((left, top, left + side, top + side)))
                    best = min(best, (np.abs(small - cut).mean(), left, top, side))
        error, left, top, side = best
        assert error < 8
        assert left < columns.mean() < left + side
        inside = (columns >= left - 3) & (columns <= left + side + 3) & (rows <= top + side + 3)
        assert inside.mean() > 0.75


def test_lr_faces_are_blurred_and_hr_faces_are_not(middle: Path) -> None:
    def detail(kind: str, path: str) -> float:
        grey = pixels(middle, kind, path).mean(2)
        smoothed = (grey[:-2] + grey[1:-1] + grey[2:]) / 3
        return float(np.abs(grey[1:-1] - smoothed).mean())

    paths = faces(middle, TRAIN)[:30]
    assert all(detail("hr_face", path) > 2 * detail("lr_face", path) for path in paths)


def clothes_nats(table: pd.DataFrame) -> float:
    """Mutual information of `pid` and `clothes` over the images of a table, in nats.

    By how much an image's outfit reduces the uncertainty about who it is: ln(all outfits / outfits
    of a person) where everyone wears theirs equally often.
    """
    counts = pd.crosstab(table["pid"], table["clothes"]).to_numpy()
    share = counts / counts.sum()
    independent = share.sum(1, keepdims=True) * share.sum(0)
    return float((share * np.log(np.where(share > 0, share / independent, 1))).sum())


def test_clothes_tell_what_their_number_tells(middle: Path) -> None:
    table, _ = read_index(middle, LAYOUTS["benchmark"])
    train, query, gallery = (
        table[table.split == split].reset_index(drop=True)
        for split in ("train", "query", "gallery")
    )
    # Everyone wears 4 of 6 outfits, 5 times each.
    assert clothes_nats(train) == pytest.approx(math.log(6 / 4))
    assert clothes_nats(train.assign(clothes="one")) == pytest.approx(0)
    assert clothes_nats(train.assign(clothes=train.pid)) == pytest.approx(math.log(12))
    # Who reads clothes finds others: the query's outfit is on nobody's image of the same identity.
    read = rank_gallery(query, gallery, clothes_distances(query, gallery), PROTOCOLS["market"])
    assert 0 < read.mAP < 0.5
    assert read.cmc(1)[0] == 0


def test_the_default_clothes_tell_ln_3() -> None:
    samples = [p for p in plan_samples(BenchmarkOptions()) if p.split == TRAIN]
    table = pd.DataFrame(
        {"pid": [p.person for p in samples], "clothes": [p.outfit for p in samples]}
    )
    assert clothes_nats(table) == pytest.approx(math.log(3))


# Only the person tells who it is


def silhouettes(options: BenchmarkOptions, person: int) -> list[np.ndarray]:
    """Where the same sample of several outfits shows somebody, without blur or noise."""
    one = plan_samples(options)[0]._replace(back=True, person=person)
    return [np.asarray(draw_sample(one._replace(outfit=o), options)["labels"]) > 0 for o in (0, 1)]


def test_stature_and_build_survive_clothes() -> None:
    people = {p: draw_person(stream(0, "draw_person", p)) for p in range(60)}
    options = BenchmarkOptions(body_height=256, body_width=128)
    rows, areas = {}, {}
    for p in (min(people, key=lambda p: people[p].stature), max(people, key=lambda p:
              people[p].stature), min(people, key=lambda p: people[p].build),
              max(people, key=lambda p: people[p].build)):  # fmt: skip
        first, second = silhouettes(options, p)
        rows[p], areas[p] = int(first.any(1).sum()), first.sum() / first.any(1).sum() ** 2
        assert abs(rows[p] - int(second.any(1).sum())) <= 2  # shoes and soles
    shortest, tallest, thinnest, widest = rows
    assert rows[tallest] > 1.1 * rows[shortest]
    assert areas[widest] > 1.15 * areas[thinnest]


def faces(root: Path, split: str) -> list[str]:
    return sorted(f"{split}/{path.name}" for path in (root / "hr_face" / split).glob("*.jpg"))


def background_features(root: Path, paths: list[str]) -> np.ndarray:
    """Pixels that hardly anybody ever covers; where somebody does, the mean of the others."""
    bodies = np.stack([pixels(root, "imgs", path) for path in paths]).astype(np.float32)
    near = [Image.fromarray(pixels(root, "mask", path).max(2)) for path in paths]
    free = np.stack([np.asarray(n.filter(ImageFilter.MaxFilter(9))) for n in near]) < 128
    places = free.mean(0) > 0.95
    places &= (np.indices(places.shape) % 4 == 0).all(0)
    chosen, seen = bodies[:, places], free[:, places][..., None]
    mean = (chosen * seen).sum(0) / seen.sum(0)
    return np.where(seen, chosen, mean).reshape(len(paths), -1)


def face_features(root: Path, paths: list[str]) -> np.ndarray:
    reduced = [pixels(root, "hr_face", p).reshape(28, 4, 28, 4, 3).mean((1, 3)) for p in paths]
    return np.stack(reduced).reshape(len(paths), -1)


def nearest_mean(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    classes = np.unique(labels)
    means = np.stack([known[labels == c].mean(0) for c in classes])
    return classes[((asked[:, None] - means) ** 2).sum(2).argmin(1)]


def nearest_neighbour(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    return labels[((known**2).sum(1) - 2 * asked @ known.T).argmin(1)]


def ridge(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    classes = np.unique(labels)
    kernel = known @ known.T
    kernel += 0.1 * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
    weights = np.linalg.solve(kernel, (labels[:, None] == classes) - 1 / len(classes))
    return classes[(asked @ known.T @ weights).argmax(1)]


Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
CLASSIFIERS: dict[str, Classifier] = {
    "nearest mean": nearest_mean,
    "nearest neighbour": nearest_neighbour,
    "ridge": ridge,
}


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_background_is_at_chance_and_hr_faces_are_far_above(middle: Path, classifier: str) -> None:
    paths = faces(middle, TRAIN)
    labels = np.array([int(Path(path).name.split("_")[0]) for path in paths])
    held_out = np.arange(len(paths)) % 2 == 1

    def hits(features: np.ndarray) -> int:
        features = features - features[~held_out].mean(0)
        told = CLASSIFIERS[classifier](features[~held_out], labels[~held_out], features[held_out])
        return int((told == labels[held_out]).sum())

    # No more hits than luck gives but once in 10,000 times.
    trials, chance = int(held_out.sum()), 1 / MIDDLE.train_identities
    luck = [math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(trials)]
    bound = int(np.searchsorted(np.cumsum(luck), 0.9999))
    assert hits(background_features(middle, paths)) <= bound
    assert hits(face_features(middle, paths)) > 1.5 * bound


# The picture in the README


def picture(root: Path, rows: int = 6, tall: int = 160, gap: int = 6) -> Image.Image:
    """Test identities, one a row: a query; gallery images in several outfits; the first one's mask;
    LR and HR face of an image, and the HR face of another.
    """
    table = pd.read_csv(root / "clothes.csv")
    table[["split", "pid"]] = table["path"].str.extract(r"(\w+)/(\d+)_")
    lines = []
    for _, images in [*table[table["split"] != TRAIN].groupby("pid")][:rows]:
        gallery = images[images["split"] == GALLERY]
        bodies = [*gallery.drop_duplicates("clothes")["path"]][:4]
        shown = [path for path in gallery["path"] if (root / "hr_face" / path).exists()]
        query = images.loc[images["split"] == QUERY, "path"].iloc[0]
        tiles = [("imgs", query), *(("imgs", path) for path in bodies), ("mask", bodies[0]),
                 ("lr_face", shown[0]), ("hr_face", shown[0]), ("hr_face", shown[-1])]  # fmt: skip
        opened = [Image.fromarray(pixels(root, *tile)) for tile in tiles]
        lines.append([tile.resize((round(tall * tile.width / tile.height), tall),
                                  Image.Resampling.LANCZOS) for tile in opened])  # fmt: skip
    width = sum(tile.width + gap for tile in lines[0]) - gap
    whole = Image.new("RGB", (width, (tall + gap) * len(lines) - gap), "white")
    for row, line in enumerate(lines):
        left = 0
        for tile in line:
            whole.paste(tile, (left, row * (tall + gap)))
            left += tile.width + gap
    return whole


if __name__ == "__main__":
    picture(Path(sys.argv[1]), rows=4).save(sys.argv[2], quality=90)
