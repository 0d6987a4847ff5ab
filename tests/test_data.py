"""The index table, and what is found wrong before any work starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from stages.data.check import check_data
from stages.data.index import class_order, read_index
from stages.data.layouts import LAYOUTS
from stages.errors import InputError
from tests.conftest import TINY, Project

TRAIN = "bounding_box_train"


def first(root: Path, kind: str, folder: str = TRAIN) -> Path:
    return sorted((root / kind / folder).glob("*.jpg"))[0]


def test_the_index_lists_every_picture_once(data: Path) -> None:
    table, problems = read_index(data, LAYOUTS["benchmark"])
    assert not problems
    assert table["sample_id"].is_unique
    assert table["split"].value_counts().to_dict() == {"train": 20, "query": 12, "gallery": 12}
    assert table["pid"].map(type).eq(str).all()
    assert table["clothes"].notna().all()
    train = table[table["split"] == "train"]
    for kind in ("imgs", "lr_face", "hr_face", "mask"):
        assert train[kind].map(lambda path: Path(path).is_file()).all()


@pytest.mark.parametrize(
    ("dataset", "name", "parsed"),
    [
        ("celeb", "10_c3_7.jpg", ("10", 3, None)),
        ("celeb-light", "10_3_7.jpg", ("10", 3, None)),
        ("celeb", "x_c3_7.jpg", None),
        ("celeb-light", "10_c3_7.jpg", None),
    ],
)
def test_names_are_read_by_the_rule_of_their_dataset(
    dataset: str, name: str, parsed: tuple[str, int, None] | None
) -> None:
    assert LAYOUTS[dataset].parse(name) == parsed


def test_a_parent_folder_that_looks_like_an_id_is_not_one(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "99_c9_9"
    data.rename(root)
    table, _ = read_index(root, LAYOUTS["benchmark"])
    assert "99" not in set(table["pid"])


def test_classes_are_ordered_as_strings() -> None:
    assert class_order(["9", "10", "2", "10"]) == ["10", "2", "9"]


def test_all_problems_are_reported_together_with_their_paths(data: Path) -> None:
    truncated = first(data, "hr_face")
    truncated.write_bytes(truncated.read_bytes()[:-200])
    masks = sorted((data / "mask" / TRAIN).glob("*.jpg"))
    masks[1].unlink()
    Image.new("RGB", (10, 10)).save(masks[2])
    (data / "imgs" / TRAIN / "nobody.jpg").write_bytes(first(data, "imgs").read_bytes())
    for picture in (data / "imgs" / "query").iterdir():
        picture.unlink()
    (data / "lr_face" / "bounding_box_test" / first(data, "lr_face", "bounding_box_test").name
     ).write_bytes(b"not a picture")  # fmt: skip

    found = {str(problem) for problem in check_data(data, "benchmark").problems}
    assert len(found) == 6
    text = "\n".join(found)
    assert f"{truncated}: unreadable picture: image file is truncated" in text
    assert f"{masks[1]}: missing mask in training" in text
    assert f"{masks[2]}: mask of 10×10 pixels, its body picture has 32×64" in text
    assert "nobody.jpg: name doesn't parse as <pid>_c<camid>_<frame>.jpg" in text
    assert f"{data / 'imgs' / 'query'}: empty split" in text
    assert "unreadable picture: not a picture file" in text
    with pytest.raises(InputError, match="empty split"):
        check_data(data, "benchmark").require()


def test_a_sample_without_any_face_file_is_left_out_and_listed(data: Path, tmp_path: Path) -> None:
    name = first(data, "mask").name
    for kind in ("lr_face", "hr_face", "mask"):
        (data / kind / TRAIN / name).unlink()
    checked = check_data(data, "benchmark").require()
    assert checked.left_out["sample_id"].tolist() == [f"{TRAIN}/{name}"]
    assert name not in " ".join(checked.split("train")["sample_id"])
    facts = checked.facts(tmp_path / "left_out.csv")
    assert "1 samples" in str(facts["left out"])
    assert name in (tmp_path / "left_out.csv").read_text()


def test_an_identity_with_one_picture_is_a_problem_or_vanishes(data: Path) -> None:
    pid = first(data, "imgs").name.split("_")[0]
    own = sorted((data / "imgs" / TRAIN).glob(f"{pid}_*.jpg"))
    for picture in own[1:]:
        for kind in ("imgs", "lr_face", "hr_face", "mask"):
            (data / kind / TRAIN / picture.name).unlink()
    problems = check_data(data, "benchmark").problems
    assert [problem.path for problem in problems] == [own[0]]
    assert f"identity {pid} has one picture" in problems[0].what
    checked = check_data(data, "benchmark", incomplete="leave-out").require()
    assert checked.vanished() == [pid]
    assert checked.split("train")["pid"].nunique() == TINY.train_identities - 1


def test_the_memo_forgets_a_picture_that_changed(data: Path, tmp_path: Path) -> None:
    memo = tmp_path / "memo.json"
    assert not check_data(data, "benchmark", memo=memo).problems
    assert not check_data(data, "benchmark", memo=memo).problems
    picture = first(data, "imgs")
    picture.write_bytes(picture.read_bytes()[:-300])
    assert [p.path for p in check_data(data, "benchmark", memo=memo).problems] == [picture]


def test_check_data_says_what_is_there_and_exits_2_on_problems(project: Project) -> None:
    result = project("check-data")
    assert result.code == 0
    assert "20 samples of 4 identities" in result.err
    first(project.data, "mask").unlink()
    result = project("check-data")
    assert result.code == 2
    assert "missing mask in training" in result.out


def _truncate(root: Path) -> Path:
    path = first(root, "lr_face")
    path.write_bytes(path.read_bytes()[:100])
    return path


def _lose_mask(root: Path) -> Path:
    path = first(root, "mask")
    path.unlink()
    return path


def _empty(root: Path) -> Path:
    folder = root / "imgs" / "bounding_box_test"
    for picture in folder.iterdir():
        picture.unlink()
    return folder


def _misname(root: Path) -> Path:
    path = first(root, "imgs")
    return path.rename(path.with_name("someone_c1_2.jpg"))


@pytest.mark.parametrize("damage", [_truncate, _lose_mask, _empty, _misname])
@pytest.mark.parametrize("stage", ["train-teacher", "eval"])
def test_bad_data_gives_one_clear_line_and_nothing_half_written(
    damage: object, stage: str, project: Project
) -> None:
    path = damage(project.data)  # type: ignore[operator]
    result = project(stage)
    assert result.code == 2
    lines = [line for line in result.err.splitlines() if str(path) in line]
    assert len(lines) == 1
    assert lines[0].startswith("deskpro: ")
    assert "Traceback" not in result.err
    made = {file.name for file in project.run.rglob("*") if file.is_file()}
    assert made <= {"config.yaml", "checked.json"}


def test_a_missing_folder_names_the_command_that_makes_one(project: Project) -> None:
    result = project("train-teacher", "--set", "data.root=nowhere")
    assert result.code == 2
    assert "nowhere: no such folder" in result.err
    assert "deskpro make-benchmark" in result.err
