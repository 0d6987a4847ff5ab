"""Datasets of tracklets, as their authors publish them, small."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deskpro import Encoder
from deskpro.cache.reader import ZarrReader
from deskpro.cache.schema import Column, Field, Schema
from deskpro.cache.writer import GroupWriter
from deskpro.stages.base.errors import InputError
from deskpro.stages.data.check import check_data
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS, image_folders
from deskpro.stages.evaluation.feature_store import GROUP, FeatureStore
from deskpro.stages.evaluation.paired import differences
from deskpro.stages.evaluation.tracklets import Pooled, pool_parts, pool_tracklets
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.metrics.ranking import rank_gallery
from deskpro.stages.reporting.record import Run
from tests.conftest import Project, Result

MEVID = "annotation/mevid-v1-annotation-data"


def draw(path: Path, color: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 16), (color % 256, 40, 90)).save(path)


def ccvid(root: Path) -> None:
    """Three tracklets to train on, two of query, two of gallery; three frames each."""
    lists = {
        "train": ("session1/001_01 001 u1_l1_s1", "session1/001_02 001 u1_l1_s1",
                  "session3/004_01 004 u4_l4_s4"),
        "query": ("session1/002_03 002 u1_l1_s1", "session3/003_02 003 u4_l4_s4"),
        "gallery": ("session3/002_03 002 u4_l4_s4", "session2/003_02 003 u1_l1_s1"),
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    for number, (split, lines) in enumerate(lists.items()):
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for row, line in enumerate(lines):
            for frame in range(3):
                path = root / line.split()[0] / f"{frame + 1:05d}.jpg"
                draw(path, 90 * number + 20 * row + frame)


def mevid(root: Path, base: int = 0) -> None:
    """Two tracklets to train on; of test one distractor, a query and its positive, two frames."""
    tracks = {
        "train": ((1, 3, 11, 5), (1, 4, 12, 6)),
        "test": ((7, 1, 21, 1), (8, 1, 21, 2), (8, 2, 22, 3)),
    }
    (root / MEVID).mkdir(parents=True, exist_ok=True)
    for part, rows in tracks.items():
        names, info = list[str](), list[str]()
        for pid, outfit, camera, tracklet in rows:
            first = len(names)
            for frame in range(2):
                name = f"{pid:04d}O{outfit:03d}C{camera:03d}T{tracklet:03d}F{frame:05d}.jpg"
                draw(root / f"bbox_{part}/{pid:04d}/{name}", 9 * len(names) + 70 * (part == "test"))
                names.append(name)
            info.append(f"{first:.18e} {first + 1:.18e} {pid:.18e} {outfit:.18e} {camera:.18e}")
        (root / MEVID / f"{part}_name.txt").write_text("\n".join(names))
        (root / MEVID / f"track_{part}_info.txt").write_text("\n".join(info))
    (root / MEVID / "query_IDX.txt").write_text(f"{2 + base:.18e}\n")


def facts(root: Path, dataset: str, split: str) -> list[tuple[str, int, str, str]]:
    table, problems = read_index(root, LAYOUTS[dataset], [split])
    assert not problems
    columns = ["pid", "camid", "clothes", "tracklet"]
    return [*table[columns].drop_duplicates().itertuples(index=False, name=None)]


def test_ccvid_is_read_as_published(tmp_path: Path) -> None:
    root = tmp_path / "session1" / "007_07"  # a parent that looks like a tracklet
    ccvid(root)
    assert facts(root, "ccvid", "train") == [
        ("001", 1, "001_u1_l1_s1", "session1/001_01"),
        ("001", 2, "001_u1_l1_s1", "session1/001_02"),
        ("004", 13, "004_u4_l4_s4", "session3/004_01"),
    ]
    assert facts(root, "ccvid", "query") == [
        ("002", 3, "002_u1_l1_s1", "session1/002_03"),
        ("003", 14, "003_u4_l4_s4", "session3/003_02"),
    ]
    checked = check_data(root, "ccvid", needs=("imgs",), test_needs=("imgs",)).require()
    assert len(checked.table) == 7 * 3
    assert not checked.unused
    for protocol in LAYOUTS["ccvid"].protocols:
        assert not PROTOCOLS[protocol].missing_labels(checked.table)


@pytest.mark.parametrize("base", [0, 1])
def test_mevid_is_read_as_published(base: int, tmp_path: Path) -> None:
    mevid(tmp_path, base)
    layout = LAYOUTS["mevid"]
    assert layout.listing is not None
    assert facts(tmp_path, "mevid", "train") == [
        ("0001", 11, "1_3", "bbox_train/0001O003C011T005"),
        ("0001", 12, "1_4", "bbox_train/0001O004C012T006"),
    ]
    query, gallery = (facts(tmp_path, "mevid", split) for split in ("query", "gallery"))
    assert [row[0] for row in gallery] == ["0007", "0008"]
    assert query == [("0008", 22, "8_2", "bbox_test/0008O002C022T003")]
    about = layout.listing(tmp_path, tmp_path, ["query"]).about
    assert f"counts rows from {base}" in about
    assert ("nothing in it says so" in about) == (base == 0)


@pytest.mark.parametrize(("make", "part"), [(ccvid, "session"), (mevid, "bbox_train")])
def test_a_copy_without_training_images_can_be_evaluated(
    make: Callable[[Path], None], part: str, tmp_path: Path
) -> None:
    make(tmp_path)
    lines = (tmp_path / "train.txt").read_text().split() if part == "session" else [part]
    for folder in (line for line in lines if line.startswith(part)):
        shutil.rmtree(tmp_path / folder)
    found = check_data(
        tmp_path, make.__name__, splits=("query", "gallery"), test_needs=("imgs",), training=False
    )
    assert not found.problems
    whole = check_data(tmp_path, make.__name__, needs=("imgs",), test_needs=("imgs",))
    assert any("train" in str(problem.path) for problem in whole.problems)


def test_mevid_s_lists_may_lie_beside_its_images_and_are_dependencies(tmp_path: Path) -> None:
    mevid(tmp_path)
    before = facts(tmp_path, "mevid", "query")
    for path in (tmp_path / MEVID).iterdir():
        path.rename(tmp_path / path.name)
    assert facts(tmp_path, "mevid", "query") == before
    layout = LAYOUTS["mevid"]
    assert sum((tmp_path / name).is_file() for name in layout.side_files) == 5
    deps = image_folders(tmp_path, "mevid", ("imgs",), ("query",))
    assert deps["query_IDX.txt"] == (tmp_path, ("query_IDX.txt",))


def test_images_that_no_list_names_are_said(tmp_path: Path) -> None:
    ccvid(tmp_path)
    draw(tmp_path / "session1/009_01/00001.jpg", 5)
    unused = check_data(tmp_path, "ccvid", needs=("imgs",), test_needs=("imgs",)).unused
    assert [str(each.path.relative_to(tmp_path)) for each in unused] == [
        "session1/009_01/00001.jpg"
    ]
    assert unused[0].what == "an image that no list names"


def test_deepchange_s_scenes_are_its_tracklets(tmp_path: Path) -> None:
    for split, folder in (("query", "test-set-query"), ("gallery", "test-set-gallery")):
        name = f"P0002_C03_{split}.jpg"
        draw(tmp_path / folder / name, 3)
        (tmp_path / f"{folder}-bbox.txt").write_text(f"{name},{split}7\n")
    table, problems = read_index(tmp_path, LAYOUTS["deepchange"], ("query", "gallery"))
    assert not problems
    assert table["tracklet"].tolist() == table["scene"].tolist() == ["query7", "gallery7"]


def rewrite(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / name
        path.write_text(change(path.read_text()))

    return damage


def move_a_frame(root: Path) -> None:
    """The second frame of the first tracklet to train on is named as of another."""
    crop = root / "bbox_train/0001/0001O003C011T005F00001.jpg"
    crop.rename(crop.with_name(crop.name.replace("T005", "T009")))
    rewrite(f"{MEVID}/train_name.txt", lambda t: t.replace("T005F00001", "T009F00001"))(root)


BROKEN: dict[str, tuple[Callable[[Path], None], Callable[[Path], None], str]] = {
    "no list": (ccvid, lambda root: (root / "query.txt").unlink(), "query.txt: missing"),
    "a short line": (
        ccvid, rewrite("query.txt", lambda t: t.replace(" u1_l1_s1", "")), "must be like session3",
    ),
    "no folder": (
        ccvid, rewrite("query.txt", lambda t: t.replace("002_03 ", "002_09 ")), "no images in",
    ),
    "another identity": (
        ccvid, rewrite("query.txt", lambda t: t.replace(" 002 ", " 003 ")), "in a folder of 002",
    ),
    "a tracklet twice": (
        ccvid, rewrite("query.txt", lambda t: t + t), "is of another tracklet, too",
    ),
    "in two splits": (
        ccvid, rewrite("gallery.txt", lambda t: t + "session1/002_03 002 u1_l1_s1"),
        "is of another tracklet, too",
    ),
    "not UTF-8": (ccvid, lambda root: (root / "query.txt").write_bytes(b"\xff\xfe"), "be read"),
    "no names": (
        mevid, lambda root: (root / MEVID / "test_name.txt").unlink(), "test_name.txt: missing",
    ),
    "rows beyond the names": (
        mevid, rewrite(f"{MEVID}/track_test_info.txt", lambda t: t.replace("5.000", "9.000", 1)),
        "rows of test_name.txt, 0 to 5",
    ),
    "last before first": (
        mevid, rewrite(f"{MEVID}/track_train_info.txt", lambda t: "1 0 1 3 11\n" + t),
        "must be first and last",
    ),
    "four numbers": (
        mevid, rewrite(f"{MEVID}/track_train_info.txt", lambda t: t.rpartition(" ")[0]),
        "must be first and last",
    ),
    "half a person": (
        mevid, rewrite(f"{MEVID}/track_train_info.txt",
                       lambda t: t.replace("3.000000000000000000e+00", "3.5e+00", 1)),
        "must be first and last",
    ),
    "frames of others": (
        mevid, rewrite(f"{MEVID}/test_name.txt", lambda t: t.replace("0008O001", "0009O001", 1)),
        "is of others, or no crop",
    ),
    "frames of two tracklets": (mevid, lambda root: move_a_frame(root), "are of tracklets"),
    "a crop is missing": (
        mevid, lambda root: next((root / "bbox_test/0007").iterdir()).unlink(), "is missing",
    ),
    "rows from 0 and from 1": (
        mevid, rewrite(f"{MEVID}/query_IDX.txt", lambda t: "0\n3\n"), "has both 0 and 3",
    ),
    "a row beyond": (
        mevid, rewrite(f"{MEVID}/query_IDX.txt", lambda t: "4\n"), "'4'; must be the row of",
    ),
    "a row that is none": (
        mevid, rewrite(f"{MEVID}/query_IDX.txt", lambda t: "first\n"), "must be the row of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_lists_are_one_line_each(what: str, tmp_path: Path) -> None:
    make, damage, expected = BROKEN[what]
    make(tmp_path)
    damage(tmp_path)
    splits = ("train", "query", "gallery")
    found = check_data(
        tmp_path, make.__name__, splits=splits, needs=("imgs",), test_needs=("imgs",)
    )
    lines = [str(problem) for problem in found.problems]
    assert any(expected in line for line in lines), lines
    assert all("\n" not in line for line in lines)
    with pytest.raises(InputError):
        found.require()


def test_training_is_stale_where_a_list_has_changed(project: Project) -> None:
    ccvid(project.data.with_name("videos"))
    options = ("data.root=" + str(project.data.with_name("videos")), "data_train=ccvid",
               "forward_mode=body", "kd_loss.enable=false", "mse.mse_weight=0",
               "data.validation=0", "batchid=2")  # fmt: skip
    arguments = [word for option in options for word in ("--set", option)]
    project.ok("train-student", *arguments)
    assert "fresh" in project.ok("train-student", *arguments).err
    rewrite("train.txt", lambda text: "\n".join(text.splitlines()[:2]))(
        project.data.with_name("videos")
    )
    stale = project("train-student", *arguments)
    assert stale.code == 2
    assert "train.txt" in stale.err


@pytest.mark.slow
@pytest.mark.finished("train-student")
def test_tracklets_are_ranked_by_the_mean_of_their_frames(project: Project, tmp_path: Path) -> None:
    root, run = tmp_path / "videos", tmp_path / "video-run"
    ccvid(root)
    for folder in ("session1/002_01", "session2/004_01"):  # a positive and a distractor
        for frame in range(2):
            draw(root / folder / f"{frame}.jpg", 3 * len(folder) + frame)
    with (root / "gallery.txt").open("a") as file:
        file.write("session1/002_01 002 u1_l1_s1\nsession2/004_01 004 u9_l9_s9\n")
    weights = str(project.run / "student.safetensors")
    alone = ("eval", "--config", str(project.config), "--run", str(run), "--checkpoint", weights,
             "--data", str(root), "--dataset", "ccvid")  # fmt: skip
    result = project.command(*alone, "--set", "eval.unit=tracklet", "--set", "device=cpu")
    assert result.code == 0, result.err
    report = json.loads((run / "metrics.json").read_text())
    assert (report["data"]["queries"], report["data"]["gallery"]) == (2, 4)
    assert report["data"]["unit"] == "tracklet"

    index, _ = read_index(root, LAYOUTS["ccvid"], ("query", "gallery"))
    features = Encoder.load(project.run / "student.safetensors", "cpu")(index["imgs"].tolist())
    body = features.vectors[:, Encoder.load(project.run / "student.safetensors").parts["body"]]
    heads = body.reshape(len(index), 7, -1) * 7**0.5
    names = index.drop_duplicates(["split", "tracklet"])
    means = []
    for name in names["tracklet"]:
        mean = heads[(index["tracklet"] == name).to_numpy()].mean(0)
        means.append((mean / np.linalg.norm(mean, axis=-1, keepdims=True) / 7**0.5).ravel())
    asked, shown = ((names["split"] == split).to_numpy() for split in ("query", "gallery"))
    distances = 1 - np.array(means)[asked] @ np.array(means)[shown].T
    query, gallery = (names[rows].reset_index(drop=True) for rows in (asked, shown))
    for protocol, numbers in report["protocols"].items():
        expected = rank_gallery(query, gallery, distances.__getitem__, PROTOCOLS[protocol])
        assert numbers["streams"]["body"]["mAP"] == pytest.approx(expected.mAP, abs=1e-4)
        assert numbers["streams"]["body"]["queries"] == len(expected.queries)
    ranked = pd.read_csv(run / "ranked.csv")
    assert {*ranked["query"]} <= {*query["sample_id"]}  # a tracklet's first image names it


def test_features_of_any_network_are_pooled_as_those_of_a_student(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    root, run = tmp_path / "videos", tmp_path / "run"
    ccvid(root)
    index, _ = read_index(root, LAYOUTS["ccvid"], ("query", "gallery"))
    values = np.random.default_rng(0).standard_normal((len(index), 5))
    np.savez(tmp_path / "mine.npz", paths=index["sample_id"].to_numpy(str), mine=values)
    words = ("eval", "--features", str(tmp_path / "mine.npz"), "--data", str(root), "--dataset",
             "ccvid", "--run", str(run), "--set", "eval.unit=tracklet")  # fmt: skip
    result = command(*words)
    assert result.code == 0, result.err
    names = index.drop_duplicates(["split", "tracklet"])
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    means = np.stack([unit[(index["tracklet"] == name)].mean(0) for name in names["tracklet"]])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    asked, shown = ((names["split"] == split).to_numpy() for split in ("query", "gallery"))
    distances = 1 - means[asked] @ means[shown].T
    query, gallery = (names[rows].reset_index(drop=True) for rows in (asked, shown))
    report = json.loads((run / "metrics.json").read_text())
    for protocol, numbers in report["protocols"].items():
        expected = rank_gallery(query, gallery, distances.__getitem__, PROTOCOLS[protocol])
        assert numbers["streams"]["mine"]["mAP"] == pytest.approx(expected.mAP, abs=1e-6)


@pytest.mark.finished("train-student")
def test_tracklets_of_a_dataset_without_are_refused(project: Project) -> None:
    refused = project("eval", "--set", "eval.unit=tracklet")
    assert refused.code == 2
    assert "images are of no known tracklet, such as " in refused.err
    assert "--set eval.unit=picture" in refused.err


@given(seed=st.integers(0, 99), metric=st.sampled_from(["cosine", "euclidean"]))
def test_tracklets_are_pooled_over_the_images_that_have_the_part(seed: int, metric: str) -> None:
    random = np.random.default_rng(seed)
    images = pd.DataFrame(
        {
            "sample_id": [f"{i}" for i in range(20)],
            "split": random.choice(["query", "gallery"], 20),
            "pid": random.choice(["a", "b"], 20),
            "camid": random.integers(1, 3, 20),
            "clothes": None,
            "tracklet": random.choice(["1", "2"], 20),
            "time": random.choice([5, 8, 13, None], 20, p=[0.32, 0.32, 0.32, 0.04]),
            "row": random.permutation(20),
        }
    )
    values = random.standard_normal((20, 3))
    values[random.random(20) < 0.4] = 0
    images["face"] = [None if not values[row].any() else "face" for row in images["row"]]
    table, members = pool_tracklets(images, ["face"])
    found = pool_parts({"face": values}, members, metric)["face"]
    key = ["split", "pid", "camid", "tracklet"]
    assert len(table) == len(images[key].drop_duplicates())
    for row, mean in zip(table.itertuples(), found, strict=True):
        same = images[(images[key] == [getattr(row, name) for name in key]).all(axis=1)]
        assert row.sample_id == same["sample_id"].min()
        known = same["time"].notna().all()  # a tracklet with an image of no time has none
        lasts = (min(same["time"]), max(same["time"])) if known else (None, None)
        assert (row.time, row.time_end) == lasts
        used = [values[r] for r in same["row"] if values[r].any()]
        if metric == "cosine":
            used = [value / np.linalg.norm(value) for value in used]
        np.testing.assert_allclose(mean, np.mean(used, 0) if used else np.zeros(3), atol=1e-12)
        assert (row.face is None) == (not used)


def test_tracklets_are_not_compared_with_images() -> None:
    data = {"dataset": "ccvid", "queries": 2, "gallery": 2, "digests": {}}
    runs = [
        Run(unit, Path(unit), {"data": data | {"unit": unit}, "protocols": {}}, {})
        for unit in ("picture", "tracklet")
    ]
    assert differences(*runs) == ["picture and tracklet: unit is picture and tracklet"]


def test_tracklets_are_pooled_in_one_pass_over_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, reads = np.random.default_rng(0), list[int]()
    features = random.standard_normal((20, 1, 3, 4)).astype(np.float32)
    schema = Schema(20, 1, 4, {"features": Field((3, 4), "float32", ("head", "feature"))})
    names = Column(np.array([f"{i:02}" for i in range(20)], object), ("sample",))
    with GroupWriter(tmp_path, GROUP, schema, {"sample_id": names}, {}, depends=[]) as writer:
        for block in range(5):
            writer.write(block, {"features": features[4 * block : 4 * block + 4]})
        writer.seal()
    members = [np.sort(rows) for rows in np.split(random.permutation(20), [3, 4, 11, 17])]
    members.append(np.array([2, 2, 7]))  # images of equal content
    chunk = ZarrReader.chunk

    def counted(reader: ZarrReader, name: str, block: int, view: int) -> np.ndarray:
        reads.append(block)
        return chunk(reader, name, block, view)

    monkeypatch.setattr(ZarrReader, "chunk", counted)
    found = Pooled(FeatureStore(tmp_path, torch.device("cpu"), 0), members)
    assert reads == [*range(5)]
    means = np.stack([features[rows, 0].sum(0, dtype=float) for rows in members])
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    np.testing.assert_allclose(found.take(found.rows).numpy(), means, atol=1e-6)
    kept = Pooled(FeatureStore(tmp_path, torch.device("cpu"), 1e9), members)
    assert torch.equal(found.take(found.rows), kept.take(kept.rows))
