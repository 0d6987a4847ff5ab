"""The made benchmark: complete, reproducible, cloth-changing, and only the face tells who it is."""

from __future__ import annotations

import hashlib
import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from deskpro.stages.data.benchmark import BenchmarkOptions, contact_sheet, make, make_benchmark
from deskpro.stages.data.benchmark.draw import draw_picture
from deskpro.stages.data.benchmark.plan import GALLERY, QUERY, SPLITS, TRAIN, Picture, plan_pictures

TINY = BenchmarkOptions(
    train_identities=2, train_pictures=3, test_identities=6, query_pictures=2, gallery_pictures=2,
    outfits=3, outfits_per_identity=2, cameras=2, looks=2, back_views=0.3,
)  # fmt: skip
MIDDLE = BenchmarkOptions(
    train_identities=12, train_pictures=20, test_identities=6, query_pictures=2,
    gallery_pictures=4, outfits=6, outfits_per_identity=4, looks=4,
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
    with Image.open(root / kind / path) as picture:
        return np.asarray(picture)


# Reproducible, complete or absent


def test_same_bytes_for_any_number_of_workers(tiny: Path, tmp_path: Path) -> None:
    make_benchmark(tmp_path / "two", TINY, workers=2)
    assert digests(tmp_path / "two") == digests(tiny)


def test_another_seed_gives_other_pictures(tiny: Path, tmp_path: Path) -> None:
    make_benchmark(tmp_path / "other", replace(TINY, seed=1), workers=1)
    mine, other = digests(tiny), digests(tmp_path / "other")
    assert not {d for f, d in mine.items() if f.endswith(".jpg")} & set(other.values())


def test_counts_and_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    counts = make_benchmark(
        tmp_path / "b", TINY, 1, lambda done, total: calls.append((done, total))
    )
    assert counts["pictures"] == 2 * 3 + 6 * 4 == calls[-1][0]
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
    def fail(picture: Picture, options: BenchmarkOptions) -> None:
        if picture.number > 20:
            raise OSError("disk full")
        return draw_picture(picture, options)

    monkeypatch.setattr(make, "draw_picture", fail)
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
        ("looks", 0), ("outfits", 2), ("outfits", 61), ("outfits_per_identity", 1),
        ("outfits_per_identity", 21), ("gallery_pictures", 1), ("body_height", 8),
        ("body_width", 500), ("face_size", 4000), ("low_height", 3), ("high_height", 64),
        ("degradation", -0.1), ("restoration", float("nan")), ("face_spread", 3), ("head_turn", 90),
        ("occlusion", 1.2), ("face_occlusion", "often"), ("back_views", 0.8),
        ("train_back_views", -1),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError) as refused:
        BenchmarkOptions(**{field: value})
    assert str(refused.value).startswith(f"{field}: {value!r} is not allowed; use ")


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
        train_pictures=draw(st.integers(1, 8)),
        test_identities=rounds * outfits + draw(st.integers(0, outfits - 1)),
        query_pictures=draw(st.integers(1, 5)),
        gallery_pictures=draw(st.integers(max(2, in_gallery), 9)),
        cameras=draw(st.integers(2, 5)),
        outfits=outfits,
        outfits_per_identity=owned,
        back_views=draw(st.sampled_from([0.0, 0.1, 0.5])),
    )


@given(small_options())
def test_the_plan_is_cloth_changing(options: BenchmarkOptions) -> None:
    pictures = plan_pictures(options)
    assert len({p.path for p in pictures}) == len(pictures)
    assert sorted(p.number for p in pictures) == list(range(len(pictures)))
    by_split = {split: [p for p in pictures if p.split == split] for split in SPLITS}
    people = {split: {p.name.split("_")[0] for p in by_split[split]} for split in SPLITS}
    assert people[QUERY] == people[GALLERY]
    assert not people[TRAIN] & people[QUERY]
    assert not any(p.back for p in by_split[TRAIN])
    for query in by_split[QUERY]:
        same = [p for p in by_split[GALLERY] if p.person == query.person]
        assert query.outfit not in {p.outfit for p in same}
        assert any(p.camera != query.camera for p in same)
        dressed_alike = {p.person for p in by_split[GALLERY] if p.outfit == query.outfit}
        assert len(dressed_alike) >= 2
    for split in (QUERY, GALLERY):
        for person in {p.person for p in by_split[split]}:
            backs = [p.back for p in by_split[split] if p.person == person]
            assert sum(backs) <= len(backs) // 2


def test_default_plan_is_balanced() -> None:
    pictures = plan_pictures(BenchmarkOptions())
    table = pd.DataFrame([vars(p) for p in pictures])
    test = table[table.split != TRAIN]
    assert 0.07 < test.back.mean() < 0.13
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
    back = {p.path for p in plan_pictures(TINY) if p.back}
    bodies = {str(p.relative_to(tiny / "imgs")) for p in (tiny / "imgs").rglob("*.jpg")}
    assert bodies == {p.path for p in plan_pictures(TINY)}
    for kind, shape in {"imgs": (256, 128, 3), "mask": (256, 128, 3), "lr_face": (112, 112, 3),
                        "hr_face": (112, 112, 3)}.items():  # fmt: skip
        files = {str(p.relative_to(tiny / kind)) for p in (tiny / kind).rglob("*.jpg")}
        assert files == (bodies if kind == "imgs" else bodies - back)
        for file in files:
            assert re.fullmatch(r"\d+_c\d+_\d+\.jpg", Path(file).name)
            assert pixels(tiny, kind, file).shape == shape
    assert {str(p.relative_to(tiny / "labels")) for p in (tiny / "labels").rglob("*.png")} == {
        body.replace(".jpg", ".png") for body in bodies
    }


def test_label_maps_are_the_masks_and_tell_faces_from_the_backs_of_heads(tiny: Path) -> None:
    back = {p.path for p in plan_pictures(TINY) if p.back}
    regions = ({2, 11}, {4}, {14})  # ATR: hair and face, upper clothes, an arm
    for path in (tiny / "labels").rglob("*.png"):
        labels = np.asarray(Image.open(path))
        body = str(path.relative_to(tiny / "labels").with_suffix(".jpg"))
        assert {*np.unique(labels)} <= {0, 2, 4, 11, 14}
        assert (11 in labels) == (body not in back)
        if body not in back:
            mask = pixels(tiny, "mask", body) >= 128
            for channel, classes in enumerate(regions):
                assert (mask[..., channel] == np.isin(labels, [*classes])).all()


def test_clothes_table(tiny: Path) -> None:
    table = pd.read_csv(tiny / "clothes.csv")
    assert list(table.columns) == ["path", "clothes"]
    assert list(table.path) == sorted(p.path for p in plan_pictures(TINY))
    assert all(isinstance(outfit, str) for outfit in table.clothes)
    outfits = dict(zip(table.path, table.clothes, strict=True))
    for path, outfit in outfits.items():
        split, name = path.split("/")
        worn = {o for p, o in outfits.items() if p.startswith(f"{GALLERY}/{name[:4]}_")}
        assert split != QUERY or outfit not in worn


def test_mask_regions_are_exact_and_disjoint(middle: Path) -> None:
    for path in faces(middle, TRAIN)[:20]:
        mask = pixels(middle, "mask", path).astype(int)
        assert np.minimum(mask, 255 - mask).max() <= 8
        assert ((mask >= 128).sum(2) <= 1).all()
        assert (mask >= 128).reshape(-1, 3).any(0)[:2].all()


def test_the_background_does_not_know_the_person_and_the_mask_cuts_it_out() -> None:
    sharp = replace(MIDDLE, degradation=0.0, low_height=1024, high_height=1024)
    one = next(p for p in plan_pictures(sharp) if not p.back)
    other = replace(one, person=one.person + 1, outfit=(one.outfit + 1) % sharp.outfits)
    a, b = draw_picture(one, sharp), draw_picture(other, sharp)
    assert a.mask is not None
    assert b.mask is not None
    difference = np.abs(np.asarray(a.body).astype(int) - np.asarray(b.body)).max(2)
    seen = np.maximum(np.asarray(a.mask), np.asarray(b.mask)).max(2)
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
        for side in range(44, 64, 3):
            small = np.asarray(face.resize((side, side), Image.Resampling.BOX), dtype=float)
            for top in range(0, 60, 2):
                for left in range(20, 108 - side + 1, 2):
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


def test_contact_sheet(tiny: Path, tmp_path: Path) -> None:
    sheet = contact_sheet(tiny)
    assert sheet.mode == "RGB"
    assert sheet.height > 2 * 128
    with pytest.raises(FileNotFoundError, match="no picture"):
        contact_sheet(tmp_path)


# Only the person tells who it is


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
