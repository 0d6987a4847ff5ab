"""A folder of one's own: who, which camera, which split."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskpro.stages.base.prepare_options import Own
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.preparation.samples import find_samples


def tree(root: Path, people: dict[str, list[str]]) -> Path:
    for pid, names in people.items():
        (root / pid).mkdir(parents=True)
        for name in names:
            (root / pid / name).write_bytes(b"")
    return root


@given(
    st.dictionaries(
        st.text("abcd-é ", min_size=1, max_size=6).filter(lambda pid: pid.strip() == pid),
        st.integers(1, 6),
        min_size=1,
        max_size=8,
    ),
    st.floats(0, 0.9),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_a_folder_of_ones_own_is_split_by_people(
    tmp_path_factory: pytest.TempPathFactory,
    people: dict[str, int],
    test: float,
    query: int,
    seed: int,
) -> None:
    root = tmp_path_factory.mktemp("own") / "photos"
    tree(root, {pid: [f"img {i}.jpg" for i in range(count)] for pid, count in people.items()})
    own = Own(test=test, query=query, seed=seed)
    found = find_samples(root, "own", own)
    samples, problems = found.samples, found.problems
    assert not problems
    assert sorted(sample.source for sample in samples) == sorted(root.rglob("*.jpg"))
    assert len({sample.id for sample in samples}) == len(samples)
    splits = {pid: Counter(s.split for s in samples if s.pid == pid) for pid in people}
    several = [pid for pid, count in people.items() if count > 1]
    assert sum("train" in splits[pid] for pid in people) == len(several) - round(
        test * len(several)
    )
    for pid, count in people.items():
        if count == 1:
            assert splits[pid] == {"gallery": 1}
        elif "train" in splits[pid]:
            assert splits[pid] == {"train": count}
        else:
            assert splits[pid]["query"] == min(query, count - 1)
            assert splits[pid]["gallery"] == count - splits[pid]["query"]
    for sample in samples:
        name = LAYOUTS["own"].parse(sample.id)
        assert name is not None
        assert (name.pid, name.camid) == (sample.pid, sample.camid)
    cameras = Counter((sample.pid, sample.camid) for sample in samples)
    assert set(cameras.values()) == {1}  # no camera is known: each image is its own


def test_names_may_say_camera_split_and_clothes(tmp_path: Path) -> None:
    names = ["train/anna/door_coat_1.jpg", "train/anna/yard_suit_2.jpg", "query/bo/yard_coat_1.png",
             "gallery/bo/door_suit_1.jpg"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    rule = r"(?P<split>\w+)/(?P<pid>[^/]+)/(?P<camid>[a-z]+)_(?P<clothes>[a-z]+)_\d+\.\w+"
    found = find_samples(tmp_path, "own", Own(name=rule))
    samples = found.samples
    assert not found.problems
    said = {(s.split, s.pid, s.camid, s.clothes) for s in samples}
    assert said == {("train", "anna", 1, "coat"), ("train", "anna", 2, "suit"),
                    ("query", "bo", 2, "coat"), ("gallery", "bo", 1, "suit")}  # fmt: skip
    (tmp_path / "stray.jpg").write_bytes(b"")
    (tmp_path / "elsewhere" / "anna").mkdir(parents=True)
    (tmp_path / "elsewhere" / "anna" / "door_coat_1.jpg").write_bytes(b"")
    problems = find_samples(tmp_path, "own", Own(name=rule)).problems
    said = {problem.path.name: problem.what for problem in problems}
    assert {*said} == {"door_coat_1.jpg", "stray.jpg"}
    assert "split 'elsewhere' must be one of train, query, gallery" in said["door_coat_1.jpg"]
    assert "doesn't match prepare.own.name" in said["stray.jpg"]


@pytest.mark.parametrize("rule", ["(?P<who>.*)", "(", "no groups", "(?P<pid>.*)(?P<age>.*)"])
def test_a_rule_without_a_pid_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"needs the group|regular expression"):
        Own(name=rule)


def problems_of(root: Path, rule: str = Own().name) -> dict[str, str]:
    """What is wrong with a folder of one's own, by file name."""
    return {p.path.name: p.what for p in find_samples(root, "own", Own(name=rule)).problems}


def test_a_person_who_would_break_the_names_is_a_problem(tmp_path: Path) -> None:
    tree(tmp_path, {"a_c1_b": ["1.jpg"], "fine": ["3.jpg", "4.png"]})
    [(name, what)] = problems_of(tmp_path).items()
    assert name == "1.jpg"
    assert "identity 'a_c1_b' cannot be an ID" in what


def test_two_pictures_of_one_name_are_a_problem(tmp_path: Path) -> None:
    tree(tmp_path, {"anna": ["1.jpg", "1.png", "2.jpg"]})
    assert {*problems_of(tmp_path)} == {"1.jpg", "1.png"}


def test_names_that_contradict_each_other_are_problems(tmp_path: Path) -> None:
    names = ["train/anna/c1_1.jpg", "train/anna/c2_2.jpg", "query/anna/c1_3.jpg",
             "gallery/bo/4.jpg", "query/bo/c1_5.jpg", "cy/c1_6.jpg",
             "train/cy/c1_7.jpg"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    rule = r"(?:(?P<split>train|query|gallery)/)?(?P<pid>[^/]+)/(?:c(?P<camid>\d)_)?\d+\.jpg"
    assert problems_of(tmp_path, rule) == {
        "c1_1.jpg": "identity anna is in training and in query or gallery",
        "c2_2.jpg": "identity anna is in training and in query or gallery",
        "4.jpg": "its name has no camera (camid), other names have one",
        "c1_6.jpg": "its name has no split, others of identity cy have one",
    }


def test_odd_files_are_problems_or_counted(tmp_path: Path) -> None:
    anna = ["1.jpg", "2.jpg", "3.heic", "notes.txt", ".hidden.jpg"]
    tree(tmp_path, {"anna": anna, "7": ["4.jpg"], "007": ["5.jpg"]})
    (tmp_path / "anna" / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "anna" / f"{'long' * 60}.jpg").write_bytes(b"")
    found = find_samples(tmp_path, "own", Own())
    assert found.skipped == {".heic": 1, ".txt": 1}
    said = " ".join(problem.what for problem in found.problems)
    assert "broken link" in said
    assert "identities 007 and 7 differ only in leading zeros" in said
    shutil.rmtree(tmp_path / "007")
    (tmp_path / "anna" / "broken.jpg").unlink()
    assert ["longer than 200 bytes" in what for what in problems_of(tmp_path).values()] == [True]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    tree(tmp_path / "photos", {"anna": ["1.jpg", "2.jpg"]})
    tree(tmp_path / "elsewhere", {"bo": ["3.jpg", "4.jpg"]})
    (tmp_path / "photos" / "bo").symlink_to(tmp_path / "elsewhere" / "bo")
    (tmp_path / "photos" / "anna" / "loop").symlink_to(tmp_path / "photos")
    found = find_samples(tmp_path / "photos", "own", Own())
    assert {sample.pid for sample in found.samples} == {"anna", "bo"}
    assert len(found.samples) == 4


def test_a_clothes_csv_of_ones_own_is_read(tmp_path: Path) -> None:
    tree(tmp_path, {"anna": ["1.jpg", "2.jpg"]})
    (tmp_path / "clothes.csv").write_text("path,clothes\nanna/1.jpg,coat\n")
    found = find_samples(tmp_path, "own", Own())
    assert {s.source.name: s.clothes for s in found.samples} == {"1.jpg": "coat", "2.jpg": None}
