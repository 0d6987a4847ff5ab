"""The index table, and what is found wrong before any work starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deskpro.cache.file_index import FileIndex
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.files import IMAGE_SUFFIXES, list_images
from deskpro.stages.base.names import Name
from deskpro.stages.data.check import check_data
from deskpro.stages.data.identities import Identities, training_index
from deskpro.stages.data.index import class_order, read_clothes, read_index
from deskpro.stages.data.layouts import LAYOUTS, SPLITS, Layout
from deskpro.stages.metrics.protocols import PROTOCOLS
from tests.conftest import TINY, Project

TRAIN = "bounding_box_train"


def first(root: Path, kind: str, folder: str = TRAIN) -> Path:
    return sorted((root / kind / folder).glob("*.jpg"))[0]


def test_the_index_lists_every_image_once(data: Path) -> None:
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
        ("celeb", "query/10_c3_7.jpg", ("10", 3, None)),
        ("celeb-light", "query/10_3_7.JPG", ("10", 3, None)),
        ("prcc", "bounding_box_train/010_c1_x-y.png", ("010", 1, None)),
        ("celeb", "query/1_c99999999999999999999_1.jpg", None),
        ("celeb", "query/x_c3_7.jpg", None),
        ("celeb-light", "query/10_c3_7.jpg", None),
        ("celeb-raw", "gallery/12_34_0.jpg", ("12", None, None, "3")),
        ("prcc-raw", "rgb/train/012/B_cropped_rgb3.jpg", ("012", 2, "AB")),
        ("prcc-raw", "rgb/test/C/012/cropped_rgb3.jpg", ("012", 3, "C")),
        ("prcc-raw", "rgb/test/012/C/cropped_rgb3.jpg", None),
        ("ltcc", "test/094_1_c9_015833.png", ("094", 9, "1")),
        ("vcclothes", "query/0001-03-02-05.jpg", ("0001", 3, "02")),
        ("market1501", "query/0002_c1s1_000451_03.jpg", ("0002", 1, None)),
        ("market1501", "bounding_box_test/-1_c6s4_002977_01.jpg", ("-1", 6, None)),
        ("dukemtmc", "query/0005_c2_f0046985.jpg", ("0005", 2, None)),
        ("deepchange", "train-set/P10A_C02_2019.jpg", ("10A", 2, None)),
        ("last", "test/gallery/0008/0008_4_x_coat.jpg", ("0008", None, "coat")),
    ],
)
def test_names_are_read_by_the_rule_of_their_dataset(
    dataset: str, name: str, parsed: tuple[object, ...] | None
) -> None:
    found = LAYOUTS[dataset].parse(name)
    assert found == (None if parsed is None else Name(*parsed))  # type: ignore[arg-type]


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
    for image in (data / "imgs" / "query").iterdir():
        image.unlink()
    (data / "lr_face" / "bounding_box_test" / first(data, "lr_face", "bounding_box_test").name
     ).write_bytes(b"not an image")  # fmt: skip

    found = {str(problem) for problem in check_data(data, "benchmark").problems}
    assert len(found) == 6
    text = "\n".join(found)
    assert f"{truncated}: unreadable image: image file is truncated" in text
    assert f"{masks[1]}: missing mask in training" in text
    assert f"{masks[2]}: mask of 10×10 pixels, its body image has 32×64" in text
    assert "nobody.jpg: name doesn't parse as <pid>_c<camid>_<frame>.jpg" in text
    assert f"{data / 'imgs' / 'query'}: empty split" in text
    assert "unreadable image: not an image file" in text
    with pytest.raises(InputError, match="empty split"):
        check_data(data, "benchmark").require()


@pytest.mark.parametrize("incomplete", ["refuse", "keep", "leave-out"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_sample_without_any_face_file_trains_the_body_alone(
    incomplete: str, masked: bool, data: Path, tmp_path: Path
) -> None:
    sample = f"{TRAIN}/{first(data, 'mask').name}"
    for kind in ("lr_face", "hr_face", *["mask"] * (not masked)):
        (data / kind / sample).unlink()
    checked = check_data(data, "benchmark", incomplete=incomplete).require()
    streams = ["all"] if incomplete == "leave-out" else ["face", *["body"] * (not masked)]
    assert checked.left_out["sample_id"].tolist() == [sample] * len(streams)
    assert checked.left_out["stream"].tolist() == streams
    used = checked.split("train").set_index("sample_id")
    assert (sample in used.index) == (incomplete != "leave-out")
    facts = checked.facts(tmp_path / "left_out.csv")
    checked.write_left_out(tmp_path / "left_out.csv")
    assert str(tmp_path / "left_out.csv") in facts["left_out"]
    assert sample in (tmp_path / "left_out.csv").read_text()


@pytest.mark.parametrize("kind", ["lr_face", "hr_face", "mask"])
def test_a_file_that_is_missing_alone_is_a_problem_unless_the_sample_is_kept_or_left_out(
    kind: str, data: Path
) -> None:
    sample = f"{TRAIN}/{first(data, 'mask').name}"
    (data / kind / sample).unlink()
    [problem] = check_data(data, "benchmark").problems
    assert problem.path == data / kind / sample
    kept = check_data(data, "benchmark", incomplete="keep").require()
    assert kept.left_out["stream"].tolist() == ["body" if kind == "mask" else "face"]
    assert sample in kept.split("train")["sample_id"].tolist()
    left_out = check_data(data, "benchmark", incomplete="leave-out").require()
    assert left_out.left_out["stream"].tolist() == ["all"]
    assert sample not in left_out.split("train")["sample_id"].tolist()


def test_a_folder_of_which_every_image_lacks_a_file_is_one_problem(data: Path) -> None:
    shutil.rmtree(data / "mask")
    (found,) = map(str, check_data(data, "benchmark").problems)
    assert found == (
        f"{data / 'mask'}: missing mask in training, of every image; "
        "--set data.incomplete=keep uses what there is"
    )


def test_a_folder_above_or_below_that_of_the_dataset_names_it(tmp_path: Path) -> None:
    whole = tmp_path / "pub" / "LTCC_ReID"
    for name in ("train/001_1_c1_000001.png", "query/009_1_c1_000001.png", "test/9_1_c2_1.png"):
        (whole / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 16)).save(whole / name)
    for wrong in (whole.parent, whole / "train"):
        lines = [str(problem) for problem in read_index(wrong, LAYOUTS["ltcc"])[1]]
        assert f"{wrong}/train: no such folder: no train images" in lines
        assert lines[-1] == f"{wrong}: not the folder of the dataset, which seems to be {whole}"
    for layout in ("ltcc", "ccvid"):  # the splits of the second have no folders of their own
        assert not any("seems" in str(each) for each in read_index(tmp_path, LAYOUTS[layout])[1])


def test_an_identity_with_one_image_is_a_problem_or_vanishes(data: Path, tmp_path: Path) -> None:
    pid = first(data, "imgs").name.split("_")[0]
    own = sorted((data / "imgs" / TRAIN).glob(f"{pid}_*.jpg"))
    for image in own[1:]:
        for kind in ("imgs", "lr_face", "hr_face", "mask"):
            (data / kind / TRAIN / image.name).unlink()
    problems = check_data(data, "benchmark").problems
    assert [problem.path for problem in problems] == [own[0]]
    assert f"identity {pid} has one image" in problems[0].what
    checked = check_data(data, "benchmark", incomplete="leave-out").require()
    assert checked.facts(tmp_path / "left_out.csv")["vanished"] == f"no sample is left of {pid}"
    assert checked.split("train")["pid"].nunique() == TINY.train_identities - 1


def test_what_is_left_out_is_of_the_chosen_identities(data: Path, tmp_path: Path) -> None:
    some = Identities(most=2)
    chosen = sorted(training_index(data, "benchmark", some)["pid"].unique())
    everybody = {path.name.split("_")[0] for path in (data / "imgs" / TRAIN).iterdir()}
    for pid in everybody:  # of each, one sample has no mask; of a chosen one, none has
        lacking = sorted((data / "imgs" / TRAIN).glob(f"{pid}_*"))
        for path in lacking if pid == chosen[0] else lacking[:1]:
            (data / "mask" / TRAIN / path.name).unlink()
    checked = check_data(data, "benchmark", incomplete="leave-out", identities=some).require()
    assert {*checked.left_out["pid"]} == {*chosen}
    facts = checked.facts(tmp_path / "left_out.csv")
    assert facts["vanished"] == f"no sample is left of {chosen[0]}"
    assert {*checked.split("train")["pid"]} == {chosen[1]}  # nobody else takes the place


def test_images_are_read_once_unless_they_change(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, opened = FileIndex(tmp_path / "index"), list[Path]()
    time.sleep(2.1)  # younger files are read again
    monkeypatch.setattr(
        Image, "open", lambda path, open=Image.open: [opened.append(path), open(path)][1]
    )
    assert not check_data(data, "benchmark", index=index).problems
    once = len(opened)
    assert once == len({*opened}) > 20
    assert not check_data(data, "benchmark", index=index).problems
    assert len(opened) == once
    image = first(data, "imgs")
    image.write_bytes(image.read_bytes()[:-300])
    assert [problem.path for problem in check_data(data, "benchmark", index=index).problems] == [
        image
    ]


def test_a_broken_link_is_named(data: Path) -> None:
    image = first(data, "lr_face", "query")
    image.unlink()
    image.symlink_to("nowhere.jpg")
    assert [str(each) for each in check_data(data, "benchmark").problems] == [
        f"{image}: broken link"
    ]


def test_check_data_lists_what_it_finds_and_exits_2_on_problems(project: Project) -> None:
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
    for image in folder.iterdir():
        image.unlink()
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


RAW_TREES = {
    "celeb-raw": ("train/3_2_0.jpg", "train/3_1_0.JPG", "query/7_1_0.jpg", "gallery/7_5_0.jpg"),
    "celeb-light-raw": ("train/3_2_0.jpg", "train/3_1_0.jpg", "query/7_1_0.jpg",
                        "gallery/7_5_0.jpg"),
    "prcc-raw": ("rgb/train/012/B_cropped_rgb1.jpg", "rgb/train/012/A_cropped_rgb1.jpg",
                 "rgb/test/C/220/cropped_rgb9.jpg", "rgb/test/A/220/cropped_rgb1.jpg"),
    "deepchange": ("train-set/P0001_C02_2.jpg", "train-set/P0001_C01_1.jpg",
                   "test-set-query/P0002_C03_1.jpg", "test-set-gallery/P0002_C04_1.jpg"),
    "last": ("train/0007/0007_a_2_coat.jpg", "train/0007/0007_a_1_shirt.jpg",
             "test/query/0008_b_1_coat.jpg", "test/gallery/0008/0008_b_2_shirt.jpg"),
    "ltcc": ("train/000_2_c2_0001.png", "train/000_1_c1_0001.png", "query/001_1_c3_4.png",
             "test/001_2_c4_5.PNG"),
    "vcclothes": ("train/0001-02-02-01.jpg", "train/0001-01-01-01.jpg", "query/0002-03-02-05.jpg",
                  "gallery/0002-04-03-01.jpg"),
    "market1501": ("bounding_box_train/0002_c1s1_000451_03.jpg",
                   "bounding_box_train/0002_c1s1_000401_03.jpg",
                   "query/0001_c1s1_001051_00.jpg", "bounding_box_test/0001_c2s1_001051_00.jpg"),
    "dukemtmc": ("bounding_box_train/0005_c2_f2.jpg", "bounding_box_train/0005_c1_f1.jpg",
                 "query/0009_c1_f1.jpg", "bounding_box_test/0009_c8_f1.jpg"),
}  # fmt: skip
"""Four images of each raw dataset, as its authors name them: two of training, query, gallery."""


def test_every_raw_layout_is_tried() -> None:
    assert set(RAW_TREES) == {
        name
        for name, layout in LAYOUTS.items()
        if not (layout.always_prepared or layout.listing)  # those: test_listings.py
    }


def test_every_layout_is_scored_by_protocols_that_exist() -> None:
    assert {name for layout in LAYOUTS.values() for name in layout.protocols} <= PROTOCOLS.keys()


@pytest.mark.parametrize("dataset", RAW_TREES)
def test_a_raw_dataset_is_read_as_its_authors_lay_it_out(dataset: str, tmp_path: Path) -> None:
    root = tmp_path / "77_c7_7-7-7-7"  # looks like an id under several rules
    for name in RAW_TREES[dataset]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16)).save(root / name, "PNG" if "png" in name.lower() else "JPEG")
    for stray in ("Thumbs.db", "readme.txt", ".DS_Store"):
        (root / RAW_TREES[dataset][0]).with_name(stray).write_text("stray")
    if dataset == "market1501":
        junk = root / "bounding_box_test" / "-1_c6s4_002977_01.jpg"
        distractor = root / "bounding_box_test" / "0000_c1s1_000151_01.jpg"
        for path in (junk, distractor):
            Image.new("RGB", (8, 16)).save(path)

    for split, listing in LAYOUTS[dataset].scenes.items():
        names = LAYOUTS[dataset].images(root, split)
        (root / listing).write_text("".join(f"{name},{i}\n" for i, name in enumerate(names)))

    checked = check_data(root, dataset, needs=("imgs",), test_needs=("imgs",)).require()
    for protocol in LAYOUTS[dataset].protocols:
        assert not PROTOCOLS[protocol].missing_labels(checked.table)
    train, query, gallery = (checked.split(split) for split in ("train", "query", "gallery"))
    assert train["sample_id"].tolist() == sorted(RAW_TREES[dataset][:2])
    assert train["pid"].nunique() == 1
    assert query["sample_id"].tolist() == [RAW_TREES[dataset][2]]
    assert query["pid"].tolist() == gallery["pid"].tolist()[-1:]
    assert "77" not in set(checked.table["pid"])
    if dataset == "market1501":
        assert gallery["pid"].tolist() == ["0000", "0001"]  # a distractor stays, junk goes
    if "celeb" in dataset:  # no camera exists: every image is its own, and nothing is removed
        assert checked.table["camid"].is_unique
    if dataset in ("ltcc", "vcclothes", "last"):
        assert checked.table["clothes"].notna().all()


@pytest.mark.slow
def test_faces_of_a_raw_dataset_are_not_there_and_it_says_what_to_do(
    project: Project, tmp_path: Path
) -> None:
    root = tmp_path / "raw"
    (project.data / "imgs").rename(root)
    sets = ("--set", f"data.root={root}", "--set", "data_train=market1501")
    result = project("train-teacher", *sets)
    assert result.code == 2
    assert "has body images only, lr_face" in result.err
    assert "Type: deskpro train-student" in result.err  # a teacher would be refused again
    assert "forward_mode=body" in result.err
    checked = project("check-data", *sets).out
    assert "no image has the HR face that the teacher sees" in checked
    assert "--set forward_mode=body" in checked
    body = ("forward_mode=body", "kd_loss.enable=false", "mse.mse_weight=0")
    project.ok("eval", *sets, *(part for text in body for part in ("--set", text)))


def test_check_data_prints_the_published_counts_beside_its_own(project: Project) -> None:
    result = project("check-data", "--set", "data_train=celeb")
    assert "published  train 20,208 images of 632 identities" in result.err


def test_a_blank_says_nothing_and_names_must_be_text_written_in_one_way(data: Path) -> None:
    clothes = data / "clothes.csv"
    lines = clothes.read_text().splitlines()
    clothes.write_text("\n".join([lines[0], lines[1].split(",")[0] + ", ", *lines[2:]]))
    table, problems = read_index(data, LAYOUTS["benchmark"])
    assert not problems
    assert table.set_index("sample_id")["clothes"].isna()[lines[1].split(",")[0]]

    query = next((data / "imgs" / "query").iterdir())
    Path(os.fsdecode(os.fsencode(query.parent) + b"/1_c1_\xff.jpg")).write_bytes(query.read_bytes())
    pid = query.name.split("_")[0]
    query.rename(query.with_name(query.name.replace(pid, str(int(pid)), 1)))
    found = [problem.what for problem in read_index(data, LAYOUTS["benchmark"])[1]]
    assert any("isn't UTF-8" in what for what in found)
    assert any(f"{int(pid)} differ only in leading zeros" in what for what in found)


def test_scenes_are_those_of_their_split(tmp_path: Path) -> None:
    for folder, scene in (
        ("train-set", "t1"),
        ("test-set-query", "q10"),
        ("test-set-gallery", "g10"),
    ):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 16)).save(tmp_path / folder / "P1_C1_1.jpg")
        (tmp_path / f"{folder}-bbox.txt").write_text(f"{folder}/P1_C1_1.jpg, {scene}\n")
    table, problems = read_index(tmp_path, LAYOUTS["deepchange"])
    assert not problems
    assert table["scene"].tolist() == ["t1", "q10", "g10"]
    (tmp_path / "test-set-query-bbox.txt").write_text("P1_C1_1.jpg,\n")
    assert "must be image,scene" in str(read_index(tmp_path, LAYOUTS["deepchange"])[1][0])


@pytest.mark.parametrize("pattern", ["a/*", "*/*", "[bc]/*/*", "*/x*", "nowhere/*"])
def test_images_are_listed_as_pathlib_finds_them(pattern: str, tmp_path: Path) -> None:
    names = (
        "a/2.jpg a/10.PNG a/x.txt a/.hid.jpg a-b/x1.jpeg b/c/x.jpg c/b/1.jpg c/b/d/1.jpg top.png"
    )
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to("a")
    (tmp_path / "a" / "broken.jpg").symlink_to("nowhere")
    expected = [
        path.relative_to(tmp_path).as_posix()
        for path in sorted(tmp_path.glob(pattern))
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    assert list_images(tmp_path, pattern) == expected


def test_listing_loads_no_table_library(data: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from deskpro.stages.data.layouts import LAYOUTS\n"
        f"assert len(LAYOUTS['benchmark'].images(Path({str(data)!r}), 'train', 'mask')) == 20\n"
        "sys.exit(bool({'pandas', 'numpy', 'torch'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_layout_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Layout(
        "<folder>/<camid>/<pid>+<clothes>+<scene>.jpg",
        (re.compile(r"[^/]+/(?P<camid>\d)/(?P<pid>\w+)\+(?P<clothes>\w*)\+(?P<scene>\w+)\.jpg"),),
        {split: f"{split}-part/*/*" for split in SPLITS},
    )
    monkeypatch.setitem(LAYOUTS, "street", row)
    for split in SPLITS:
        for name in ("1/ada+red+park.jpg", "2/ada++hall.jpg"):
            path = tmp_path / f"{split}-part" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 16)).save(path)
    checked = check_data(tmp_path, "street", needs=("imgs",), test_needs=("imgs",)).require()
    query = checked.split("query")
    assert query["sample_id"].tolist() == [
        "query-part/1/ada+red+park.jpg",
        "query-part/2/ada++hall.jpg",
    ]
    facts = query[["pid", "camid", "clothes", "scene"]].to_dict("records")
    assert facts == [
        {"pid": "ada", "camid": 1, "clothes": "red", "scene": "park"},
        {"pid": "ada", "camid": 2, "clothes": None, "scene": "hall"},
    ]


@pytest.mark.parametrize("kind", ["lr_face", "hr_face", "mask"])
def test_files_without_a_body_image_are_counted_and_named(kind: str, project: Project) -> None:
    image = first(project.data, kind)
    idle = image.with_name("0001_c1_other.jpg")
    idle.write_bytes(image.read_bytes())
    result = project.ok("check-data")
    assert f"1 files or rows of lists, listed in {project.run / 'unused.csv'}" in result.err
    assert str(idle) in (project.run / "unused.csv").read_text()
    checked = check_data(project.data, "benchmark")
    assert [str(each) for each in checked.unused] == [
        f"{idle}: there is no body image of this name"
    ]
    assert not checked.problems


def test_a_stage_warns_of_what_it_does_not_use(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = first(data, "lr_face", "query")
    for number in range(4):
        image.with_name(f"0001_c1_{number}-no.jpg").write_bytes(image.read_bytes())
    check_data(data, "benchmark").require()
    shown = " ".join(capsys.readouterr().err.split())
    assert "warning: 4 files or rows of lists are not used" in shown
    assert "; and 1 more; deskpro check-data lists all" in shown


def test_faces_that_are_all_named_otherwise_are_a_problem(data: Path) -> None:
    for image in (data / "lr_face" / "query").iterdir():
        image.rename(image.with_name(f"x{image.name}"))
    [problem] = check_data(data, "benchmark").problems
    assert problem.path == data / "lr_face" / "query"
    assert "has the name of a body image" in problem.what


def test_what_is_no_image_among_images_is_named(data: Path) -> None:
    folder = data / "imgs" / "query"
    (folder / "0001_c1_9.gif").write_bytes(b"GIF")
    (folder / "Thumbs.db").touch()
    (folder / "more").mkdir()
    found = {problem.path.name: problem.what for problem in check_data(data, "benchmark").unused}
    assert found.keys() == {"0001_c1_9.gif", "more"}
    assert "not an image file" in found["0001_c1_9.gif"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_spreadsheet_may_write_clothes_with_its_own_separator(separator: str, data: Path) -> None:
    before, _ = read_index(data, LAYOUTS["benchmark"])
    path = data / "clothes.csv"
    text = path.read_text().replace(",", separator).replace("\n", "\r\n")
    path.write_bytes(text.encode("utf-8-sig"))
    after, problems = read_index(data, LAYOUTS["benchmark"])
    assert not problems
    assert after["clothes"].tolist() == before["clothes"].tolist()


def test_a_separator_at_the_end_of_every_row_is_no_column(tmp_path: Path) -> None:
    path, wanted = tmp_path / "clothes.csv", {"a.jpg": "red", "b.jpg": "blue, of wool"}
    for text in ("path,clothes\n", "path,clothes,\n", ",path,clothes\n"):
        lead = "," if text[0] == "," else ""
        path.write_text(f'{text}{lead}a.jpg,red,\n\n{lead}b.jpg,"blue, of wool",\n')
        assert read_clothes(path) == (wanted, [])
    for text in ("path,clothes\na.jpg,red,round\n", 'path,clothes\na.jpg,"red\n', "\n",
                 "path,path,clothes\na,b,c\n"):  # fmt: skip
        path.write_text(text)
        found, [problem] = read_clothes(path)
        assert not found
        assert "must be a CSV with the columns path and clothes" in problem.what


@pytest.mark.parametrize("text", ["\n\n{}\n{}\n", "{}\r{}\r"])
def test_the_separator_is_that_of_the_head_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "clothes.csv"
    path.write_text(text.format("path;clothes", "a.jpg;red, blue"))
    assert read_clothes(path) == ({"a.jpg": "red, blue"}, [])


def test_rows_of_clothes_that_match_nothing_are_named(data: Path) -> None:
    path = data / "clothes.csv"
    rows = path.read_text()
    path.write_text(rows + "query/9_c1_9.jpg,red\n" + "x" * 5000 + ",red\n")
    checked = check_data(data, "benchmark", splits=("query",))  # the others' rows are theirs
    assert [problem.what for problem in checked.unused] == [
        "query/9_c1_9.jpg: no such image",
        "x" * 5000 + ": no such image",
    ]
    assert not checked.problems
    path.write_text(rows.replace("\n", "\n/home/me/").removesuffix("/home/me/"))
    [problem] = check_data(data, "benchmark").problems
    assert "none of its 44 rows names an image" in problem.what


def test_lines_of_scenes_that_match_nothing_are_named(tmp_path: Path) -> None:
    layout = LAYOUTS["deepchange"]
    for split, listing in layout.scenes.items():
        image = tmp_path / layout.files[split].replace("*", "P1_C1_1.jpg")
        image.parent.mkdir()
        Image.new("RGB", (8, 16)).save(image)
        (tmp_path / listing).write_text("P1_C1_1.jpg,a\nP1_C1_2.jpg,a\n")
    read = {"splits": ["query"], "test_needs": ("imgs",), "training": False}
    checked = check_data(tmp_path, "deepchange", **read)  # type: ignore[arg-type]
    assert not checked.problems
    listing = tmp_path / layout.scenes["query"]
    assert [str(each) for each in checked.unused] == [f"{listing}: P1_C1_2.jpg: no such image"]
    listing.write_text("a.jpg,a\n")
    [problem] = check_data(tmp_path, "deepchange", **read).problems  # type: ignore[arg-type]
    assert "none of its 1 rows names an image" in problem.what


# What is on two sides of a split


def copied(image: Path, name: str) -> Path:
    """A copy of a body image beside the images of another split, or under another name."""
    target = image.parents[1] / name
    target.write_bytes(image.read_bytes())
    return target


def leaks_of(data: Path, **options: Any) -> list[str]:
    checked = check_data(data, "benchmark", **{"incomplete": "keep"} | options)
    return [str(leak) for leak in checked.leaks]


def test_a_benchmark_has_no_leaks(data: Path) -> None:
    assert leaks_of(data) == []


def test_images_and_people_of_training_in_the_test_are_named(data: Path) -> None:
    image = first(data, "imgs")
    pid = image.name.partition("_")[0]
    copy = copied(image, "query/9999_c1_0.jpg")
    assert leaks_of(data) == [
        f"{copy}: query image, its content is trained on as {image}",
    ]
    copy.unlink()
    copy = copied(image, f"query/{pid}_c7_0.jpg")
    assert leaks_of(data) == [
        f"{copy}: query image of {pid}, who is in train, too",
        f"{copy}: query image, its content is trained on as {image}",
    ]
    assert leaks_of(data, splits=("train",)) == []
    copy.unlink()
    last = max((data / "imgs" / TRAIN).iterdir()).name.partition("_")[0]
    other = copied(image, f"{TRAIN}/{last}_c1_0.jpg")
    assert leaks_of(data) == [
        f"{other}: train image, its content is of {last}, and of {pid} as {image}"
    ]


@pytest.mark.parametrize(("camera", "found"), [("c1", 0), ("c9", 1)])
def test_a_copy_of_a_query_in_the_gallery_is_named_unless_its_camera_makes_it_junk(
    camera: str, found: int, data: Path
) -> None:
    query = next((data / "imgs" / "query").glob("*_c1_*"))
    copy = copied(query, f"bounding_box_test/{query.name.partition('_')[0]}_{camera}_777.jpg")
    assert (
        leaks_of(data) == [f"{query}: query image, its content is in the gallery as {copy}"] * found
    )


def test_held_out_people_and_images_without_labels_are_compared_with_the_test_too(
    data: Path, tmp_path: Path
) -> None:
    query = first(data, "imgs", "query")
    (tmp_path / "crowd" / "imgs").mkdir(parents=True)
    same = tmp_path / "crowd" / "imgs" / "somebody.jpg"
    same.write_bytes(query.read_bytes())
    found = leaks_of(data, unlabelled=tmp_path / "crowd", identities=Identities(0.5))
    assert found == [f"{query}: query image, its content is trained on as {same}"]


def test_leaks_are_counted_listed_and_warned_of(project: Project) -> None:
    image = first(project.data, "imgs", "query")
    copy = copied(image, f"bounding_box_test/{image.name.replace('_c', '_c9')}")
    result = project.ok("check-data")
    assert f"1 people or images, listed in {project.run / 'leaks.csv'}" in result.err
    assert str(copy) in (project.run / "leaks.csv").read_text()
    checked = check_data(project.data, "benchmark", splits=("query", "gallery"), training=False)
    assert [leak.path for leak in checked.leaks] == [image]


def test_check_data_reads_images_without_labels(project: Project, tmp_path: Path) -> None:
    (tmp_path / "crowd" / "imgs").mkdir(parents=True)
    (tmp_path / "crowd" / "imgs" / "1.jpg").write_text("no image")
    crowd = f"data.unlabelled={tmp_path / 'crowd'}"
    result = project("check-data", "--set", crowd)
    assert result.code == 2
    assert "1.jpg: unreadable image" in result.out
