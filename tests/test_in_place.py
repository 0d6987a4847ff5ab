"""Datasets of one's own where they lie: by a rule for names, or by a dataset.csv."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deskpro.pipeline.config import load
from deskpro.stages.base.errors import InputError
from deskpro.stages.data.check import check_data
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS, SPLITS, layout_of
from deskpro.stages.data.listings import OWN_LIST
from tests.conftest import Project, Result, slow

RULE = r"(?P<pid>[a-z]+)/cam(?P<camid>\d+)_(?:(?P<clothes>[a-z]+)_)?(?P<tracklet>\d+)-\d+\.png"
BODY = ("--set", "forward_mode=body", "--set", "kd_loss.enable=false", "--set", "mse.mse_weight=0")


def draw(path: Path, color: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 16), (color % 256, 40, 90)).save(path)


def named(root: Path, folders: tuple[str, str, str] = ("train", "query", "gallery")) -> None:
    """Three people to train on and two others; names as `RULE` reads them."""
    people = {
        folders[0]: ("ann", "bob", "eve"),
        folders[1]: ("ida", "leo"),
        folders[2]: ("ida", "leo"),
    }
    for camera, (folder, names) in enumerate(people.items(), 1):
        for row, name in enumerate(names):
            for frame in range(3):
                worn = "red_" if row else ""
                path = root / folder / name / f"cam{camera}_{worn}7-{frame}.png"
                draw(path, 80 * camera + 20 * row + frame)


def listed(root: Path) -> None:
    """The same images, as a dataset.csv lists them."""
    named(root)
    rows = []
    for split in SPLITS:
        for path in sorted((root / split).rglob("*.png")):
            _, camera, *_ = path.stem.replace("cam", "_").split("_")
            worn = "red" if "_red_" in path.name else ""
            rows.append(
                (path.relative_to(root).as_posix(), split, path.parent.name, camera, worn, "7")
            )
    columns = ["path", "split", "pid", "camid", "clothes", "tracklet"]
    pd.DataFrame(rows, columns=columns).to_csv(root / OWN_LIST, index=False)


def table(root: Path, dataset: str) -> pd.DataFrame:
    found, problems = read_index(root, layout_of(root, dataset))
    assert not problems
    return found.drop(columns=["imgs"])


@pytest.mark.parametrize(
    "folders",
    [("train", "query", "gallery"), ("bounding_box_train", "query", "bounding_box_test")],
)  # fmt: skip
def test_a_rule_reads_names_below_the_folders_of_the_splits(
    folders: tuple[str, str, str], tmp_path: Path
) -> None:
    root = tmp_path / "train" / "zed" / "cam9_1-1.png"  # a parent that the rule would read, too
    named(root, folders)
    found = table(root, RULE)
    assert found["split"].value_counts().to_dict() == {"train": 9, "query": 6, "gallery": 6}
    assert found["split"].drop_duplicates().tolist() == [*SPLITS]
    last = found.iloc[-1]
    assert [*last[["pid", "camid", "clothes", "tracklet"]]] == ["leo", 3, "red", "7"]
    assert last["sample_id"] == f"{folders[2]}/leo/cam3_red_7-2.png"
    assert found.iloc[0]["clothes"] is None


def test_a_list_says_what_a_rule_reads(tmp_path: Path) -> None:
    listed(tmp_path)
    by_list = table(tmp_path, "celeb")  # the list decides, whatever the name of the dataset
    (tmp_path / OWN_LIST).rename(tmp_path / "away.csv")
    pd.testing.assert_frame_equal(by_list, table(tmp_path, RULE))


def test_a_list_as_a_spreadsheet_writes_it_is_read_in_a_prepared_set(tmp_path: Path) -> None:
    listed(tmp_path / "imgs")
    text = (tmp_path / "imgs" / OWN_LIST).read_text().replace("train/", "imgs\\train\\")
    (tmp_path / "imgs" / OWN_LIST).unlink()
    (tmp_path / OWN_LIST).write_text(text.replace(",", ";"), encoding="utf-8-sig")
    for kind in ("lr_face", "hr_face", "mask"):
        draw(tmp_path / kind / "train/ann/cam1_7-0.jpg", 9)
    found = table(tmp_path, "benchmark")
    assert len(found) == 21
    assert found.iloc[0]["mask"] == f"{tmp_path}/mask/train/ann/cam1_7-0.jpg"
    assert found["mask"].notna().sum() == 1


BROKEN = {
    "a missing file": ("train/ann/no.png,train,ann,1", "train/ann/no.png is missing"),
    "a path twice": ("./train//ann/cam1_7-0.png,train,ann,1", "that of line 2, too"),
    "a path outside": ("../x.png,train,ann,1", "'../x.png' must be below"),
    "a path that cannot be": ("train/a\0/1.png,train,ann,1", "'train/a\\x00/1.png' must be below"),
    "no image": ("dataset.csv,train,ann,1", "'dataset.csv' is no image file"),
    "an unknown split": ("train/ann/cam1_7-1.png,val,ann,1", "'val' must be train, query or"),
    "no pid": ("train/ann/cam1_7-1.png,train, ,1", "pid is empty"),
    "a camera by name": ("train/ann/cam1_7-1.png,train,ann,c1", "camid 'c1' must be a whole"),
    "a cut row": ("train/ann/cam1_7-1.png,train", "pid is empty; camid '' must be"),
    "a time of no form": ("train/ann/cam1_7-1.png,train,ann,1,noon", "'noon' must be seconds"),
    "a cell too many": ("train/ann/cam1_7-1.png,train,ann,1,2", "5 cells, 4 columns"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_every_broken_row_of_a_list_is_named_by_its_line(what: str, tmp_path: Path) -> None:
    row, expected = BROKEN[what]
    named(tmp_path)
    good = "train/ann/cam1_7-0.png,train,ann,1"
    head = "path,split,pid,camid" + ",time" * ("time" in what)
    (tmp_path / OWN_LIST).write_text(f"{head}\n{good}\n\n{row}\n{row}x\n")
    checked = check_data(tmp_path, "celeb", needs=("imgs",), test_needs=("imgs",))
    assert tmp_path / row.partition(",")[0] not in {found.path for found in checked.unused}
    lines = [str(problem) for problem in checked.problems if problem.path == tmp_path / OWN_LIST]
    assert lines[0].startswith(f"{tmp_path / OWN_LIST}: line 4: {row!r}")
    assert expected in lines[0]
    assert "line 5" in lines[1]  # and the next
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("head", "expected"),
    [("path,split", "'pid' is missing"), ("path,split,pid,age", "'age' is unknown"),
     ("path,pid,split,pid", "'pid' is unknown or there twice"), ("", "has no rows")],
)  # fmt: skip
def test_columns_of_a_list_are_checked(head: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / OWN_LIST).write_text(f"{head}\nx.png,train,a,1\n" if head else "\n")
    [problem, *_] = read_index(tmp_path, LAYOUTS["csv"])[1]
    assert expected in str(problem)
    assert "must be path, split, pid and, where known, camid, clothes, tracklet, time" in str(
        problem
    )


@pytest.mark.parametrize("cell", ['"ann\nsmith"', '"ann', '"ann"x'])
def test_quotes_that_do_not_close_are_one_problem(cell: str, tmp_path: Path) -> None:
    (tmp_path / OWN_LIST).write_text(f"path,split,pid\nx.png,train,ann\ny.png,train,{cell}\n")
    [problem] = [
        each for each in read_index(tmp_path, LAYOUTS["csv"])[1] if "quotes must" in each.what
    ]
    assert "line 3" in str(problem)
    assert "must close at the end of a cell, on the same line" in problem.what


@pytest.mark.parametrize(
    "rule", [r"(?P<camid>\d+)_.*", r"(?P<pid>\d+)_(?P<age>\d+).*", r"(?P<pid>\d+", ""]
)
def test_a_rule_that_cannot_be_is_refused_at_once(rule: str) -> None:
    with pytest.raises(InputError) as error:
        load({"data": {"name": rule}})
    needed = "(?P<pid>…), may have camid, clothes, scene, tracklet, time, as in (?P<pid>"
    assert needed in str(error.value)
    assert f"found {rule!r}" in str(error.value)


def test_two_answers_to_one_question_are_refused(
    tmp_path: Path, command: Callable[..., Result]
) -> None:
    listed(tmp_path)
    with pytest.raises(InputError, match="only one of them"):
        layout_of(tmp_path, RULE)
    words = ("eval", "--features", "none.npz", "--data", str(tmp_path), "--dataset", "ltcc")
    assert "dataset.csv says how images are read" in command(*words).err
    (tmp_path / OWN_LIST).unlink()
    assert "data.name x(?P<pid>.) says" in command(*words, "--set", "data.name=x(?P<pid>.)").err
    (tmp_path / "bounding_box_train").mkdir()
    with pytest.raises(InputError, match="both train and bounding_box_train"):
        layout_of(tmp_path, RULE)


def test_the_first_names_and_what_is_left_out_are_explained(
    tmp_path: Path, command: Callable[..., Result]
) -> None:
    named(tmp_path / "mine")
    draw(tmp_path / "mine/query/aaa.png", 1)
    words = ("check-data", "--config", "demo", "--run", str(tmp_path / "run"), *BODY, "--explain")
    mine = command(*words, "--set", f"data.root={tmp_path / 'mine'}", "--set", f"data.name={RULE}")
    lines = mine.out.partition("\n/")[0].splitlines()  # the problems follow
    assert max(map(len, lines)) <= 80
    shown = [" ".join(line.split()) for line in lines]
    assert "name pid camid clothes tracklet" in shown
    assert "train/bob/cam1_red_7-1.png bob 1 red 7" in shown
    assert "gallery/ida/cam3_7-0.png ida 3 – 7" in shown
    assert "query/aaa.png not read – – –" in shown
    assert "1  name doesn't parse as data.name" in mine.out
    for number in range(7):  # junk of a published layout, which is no problem
        draw(tmp_path / f"market/query/-1_c1s1_{number}.jpg", number)
    root = f"data.root={tmp_path / 'market'}"
    market = command(*words, "--set", root, "--set", "data_train=market1501").out
    assert "7  pid -1 stands for nobody: query/-1_c1s1_0.jpg" in market
    assert "query/-1_c1s1_4.jpg, …" in " ".join(market.split())


@pytest.mark.finished("train-student")
def test_faceless_images_are_explained(project: Project) -> None:
    out = project("check-data", "--explain").out
    assert "no face to evaluate the stream face by: no lr_face: query/" in " ".join(out.split())
    next((project.data / "mask/bounding_box_train").iterdir()).unlink()
    out = project("check-data", "--explain", "--set", "data.incomplete=keep").out
    assert "1 not in the loss of the attention: " in " ".join(out.split())


def test_an_unlisted_image_may_have_any_name(
    tmp_path: Path, command: Callable[..., Result]
) -> None:
    listed(tmp_path / "mine")
    draw(tmp_path / "mine/more.png", 1)
    (tmp_path / "mine/more.png").rename(os.fsdecode(os.fsencode(tmp_path / "mine") + b"/\xff.png"))
    words = ("check-data", "--config", "demo", "--run", str(tmp_path / "run"), *BODY, "--explain")
    result = command(*words, "--set", f"data.root={tmp_path / 'mine'}")
    assert "an image that no list names: " in result.out
    assert "\\udcff.png" in (tmp_path / "run" / "unused.csv").read_text()


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    listed(tmp_path)
    draw(tmp_path / "train/ann/more.png", 1)
    draw(tmp_path / "val/ann/cam1_7-0.png", 1)
    (tmp_path / "train/notes.txt").touch()
    needs = {"needs": ("imgs",), "test_needs": ("imgs",)}
    unused = {
        str(p.path.relative_to(tmp_path)): p.what
        for p in check_data(tmp_path, "celeb", **needs).unused
    }
    assert unused.keys() == {"train/ann/more.png", "val/ann/cam1_7-0.png", "train/notes.txt"}
    assert unused["train/ann/more.png"] == "an image that no list names"
    (tmp_path / OWN_LIST).unlink()
    draw(tmp_path / "train/ann/camA1_7-0.png", 1)
    checked = check_data(tmp_path, RULE, **needs)
    assert {p.path.name for p in checked.unused} == {"val", "notes.txt"}
    assert {p.path.name for p in checked.problems} == {"more.png", "camA1_7-0.png"}


@pytest.mark.parametrize("by", [*slow("rule"), "list"])
def test_a_body_student_trains_in_place_and_is_stale_where_the_reading_changes(
    by: str, project: Project
) -> None:
    root = project.data.with_name("mine")
    (named if by == "rule" else listed)(root)
    before = sorted(root.rglob("*"))
    options = [
        "--set",
        f"data.root={root}",
        *BODY,
        *(["--set", f"data.name={RULE}"] * (by == "rule")),
    ]
    assert "body images only" in project("train-student", *options[:2], *options[8:]).err
    project.ok("eval", *options, "--set", "eval.protocols=[market]")
    assert "fresh" in project.ok("train-student", *options).err
    data = json.loads((project.run / "metrics.json").read_text())["data"]
    assert (data["queries"], data["gallery"], data["dataset"]) == (
        6,
        6,
        RULE if by == "rule" else "csv",
    )
    assert project.command("report", str(project.run)).code == 0
    assert sorted(root.rglob("*")) == before  # nothing is copied, nothing written
    if by == "rule":
        options[-1] = options[-1].replace("(?:(?P<clothes>[a-z]+)_)?", "(?:[a-z]+_)?")
    else:
        text = (root / OWN_LIST).read_text()
        (root / OWN_LIST).write_text(text.replace("bob,1,red", "bob,2,red"))
    stale = project("train-student", *options)
    assert stale.code == 2
    assert ("data.name" if by == "rule" else OWN_LIST) in stale.err


@pytest.mark.parametrize("by", ["rule", "list"])
def test_prepare_keeps_how_images_are_read(by: str, project: Project, tmp_path: Path) -> None:
    raw, made, labels = (tmp_path / name for name in ("raw", "made", "labels"))
    dataset = RULE if by == "rule" else "csv"
    (named if by == "rule" else listed)(raw)
    before = table(raw, dataset)
    for path in raw.rglob("*.png"):
        regions = np.full((16, 8), 4, np.uint8)  # ATR: clothes, and a face above
        regions[:8] = 11
        (labels / path.relative_to(raw)).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(regions).save(labels / path.relative_to(raw))
    broken = raw / "train/ann/cam1_7-1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    options = [f"data.root={made}", f"prepare.root={raw}", f"prepare.parsing.labels={labels}",
               "prepare.unusable=leave-out", *[f"data.name={RULE}"] * (by == "rule")]  # fmt: skip
    words = [word for option in options for word in ("--set", option)]
    project.ok("prepare", *words)
    assert "fresh" in project.ok("prepare", *words).err
    after = table(made, dataset)
    assert after[["lr_face", "hr_face", "mask"]].notna().all(axis=None)
    facts = ["sample_id", "split", "pid", "camid", "clothes", "tracklet"]
    expected = before[before["sample_id"] != "train/ann/cam1_7-1.png"].reset_index(drop=True)
    pd.testing.assert_frame_equal(after[facts], expected[facts])
    broken.unlink()
    assert "the raw images of train" in project("prepare", *words).err


def test_tracklets_of_a_list_without_cameras_are_pooled(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    root, run = tmp_path / "mine", tmp_path / "run"
    listed(root)
    pd.read_csv(root / OWN_LIST).drop(columns="camid").to_csv(root / OWN_LIST, index=False)
    index = table(root, "csv")
    test = index[index["split"] != "train"]
    values = np.eye(2)[(test["pid"] == "leo").astype(int)]
    np.savez(tmp_path / "mine.npz", paths=test["sample_id"].to_numpy(str), mine=values)
    words = ("eval", "--features", str(tmp_path / "mine.npz"), "--data", str(root), "--run",
             str(run), "--set", "eval.unit=tracklet")  # fmt: skip
    result = command(*words)
    assert result.code == 0, result.err
    report = json.loads((run / "metrics.json").read_text())
    assert (report["data"]["queries"], report["data"]["gallery"]) == (2, 2)  # of 3 images each
    assert report["protocols"]["market"]["streams"]["mine"]["queries"] == 2


@pytest.mark.parametrize("by", ["rule", "list"])
def test_features_of_any_network_are_scored_in_place(
    by: str, command: Callable[..., Result], tmp_path: Path
) -> None:
    root, run = tmp_path / "mine", tmp_path / "run"
    (named if by == "rule" else listed)(root)
    index = table(root, RULE if by == "rule" else "csv")
    test = index[index["split"] != "train"]
    values = np.eye(2)[(test["pid"] == "leo").astype(int)]
    np.savez(tmp_path / "mine.npz", paths=test["sample_id"].to_numpy(str), mine=values)
    words = [
        "eval",
        "--features",
        str(tmp_path / "mine.npz"),
        "--data",
        str(root),
        "--run",
        str(run),
    ]
    result = command(*words, *(["--set", f"data.name={RULE}"] * (by == "rule")))
    assert result.code == 0, result.err
    report = json.loads((run / "metrics.json").read_text())
    assert report["protocols"]["market"]["streams"]["mine"]["mAP"] == 1
