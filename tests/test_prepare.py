"""The stage prepare: from raw images to the layout that the other stages read."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from deskpro.cache.file_index import FileIndex
from deskpro.cache.journal import Journal
from deskpro.stages import prepare as stage
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.prepare_options import Parsing, Prepare
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Job
from deskpro.stages.data.benchmark import BenchmarkOptions, make_benchmark
from deskpro.stages.data.check import check_data
from deskpro.stages.preparation.parsing import SegFormer
from deskpro.stages.preparation.record import Records
from deskpro.stages.preparation.schemes import SCHEMES
from deskpro.stages.preparation.step import read_image
from tests.conftest import RECIPE, REPOSITORY, Result, slow
from tests.crash import crashes
from tests.segmenter import train_segformer
from tests.test_data import RAW_TREES

TRAIN, GALLERY = "bounding_box_train", "bounding_box_test"
RAW = BenchmarkOptions(
    train_identities=4, train_images=4, test_identities=6, query_images=2, gallery_images=2,
    outfits=3, outfits_per_identity=2, cameras=2,
    query_back_views=0.3, gallery_back_views=0.3, train_back_views=0.0,
    body_height=128, body_width=64, face_size=32,
)  # fmt: skip
"""Images large enough for heads to have an outline."""


@dataclass(frozen=True)
class Preparation:
    """A recipe that prepares `raw` into `made`."""

    raw: Path
    made: Path
    config: Path
    run: Path
    command: Callable[..., Result]

    def __call__(self, *arguments: str, stage: str = "prepare") -> Result:
        """`deskpro STAGE --config … --run … ARGUMENTS`; an argument with = is an option."""
        given = [s for a in arguments for s in (("--set", a) if "=" in a else (a,))]
        where = ("--config", str(self.config), "--run", str(self.run))
        return self.command(stage, *where, *given)

    def ok(self, *arguments: str, stage: str = "prepare") -> Result:
        result = self(*arguments, stage=stage)
        assert result.code == 0, result.err
        return result

    def listing(self) -> pd.DataFrame:
        return pd.read_csv(self.made / "prepare.csv", dtype={"pid": str}).set_index("sample_id")

    def digests(self) -> dict[str, str]:
        """Of the prepared set."""
        return digests(self.made)


def write_recipe(path: Path, data_train: str, made: Path, prepare: dict[str, Any]) -> None:
    sections: dict[str, Any] = RECIPE
    data = sections["data"] | {"root": str(made)}
    recipe = sections | {"data": data, "data_train": data_train, "prepare": prepare}
    path.write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="session")
def raw_benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw") / "benchmark"
    make_benchmark(root, RAW, workers=1)
    return root


@pytest.fixture
def preparation(raw_benchmark: Path, tmp_path: Path, command: Callable[..., Result]) -> Preparation:
    """The benchmark's bodies and true label maps as a raw dataset; its masks and faces are gone."""
    raw = tmp_path / "raw"
    for kind in ("imgs", "labels"):
        shutil.copytree(raw_benchmark / kind, raw / kind)
    shutil.copy(raw_benchmark / "clothes.csv", raw)
    config = tmp_path / "raw.yaml"
    labels = {"parsing": {"labels": str(raw / "labels")}, "restoration": {"size": 32}}
    write_recipe(config, "benchmark", tmp_path / "made", {"root": str(raw), **labels})
    return Preparation(raw, tmp_path / "made", config, tmp_path / "run", command)


def head_iou(made: Path, true: Path, splits: tuple[str, ...]) -> float:
    """Intersection over union of the head of all masks of some splits."""
    both = either = 0
    for split in splits:
        for path in sorted((true / "mask" / split).glob("*.jpg")):
            wanted = np.asarray(Image.open(path))[..., 0] >= 128
            mine = np.asarray(Image.open(made / "mask" / split / f"{path.stem}.png"))[..., 0] >= 128
            both += int((wanted & mine).sum())
            either += int((wanted | mine).sum())
    return both / either


@pytest.mark.slow
def test_true_label_maps_give_the_true_masks_and_training_runs(
    preparation: Preparation, raw_benchmark: Path
) -> None:
    log = preparation.ok("eval.ranks=[1]", stage="all").err
    assert "prepare: done" in log
    assert "HR faces are bicubic enlargements: nothing was restored" in log
    assert (preparation.run / "metrics.json").is_file()
    iou = head_iou(preparation.made, raw_benchmark, (TRAIN, "query", GALLERY))
    assert iou >= 0.95
    # A back view has a head, but no face; every other image has all.
    listing = preparation.listing()
    faces = {str(p.relative_to(raw_benchmark / "lr_face")) for p in
             (raw_benchmark / "lr_face").rglob("*.jpg")}  # fmt: skip
    assert set(listing.index[listing["decision"] == "face found"]) == faces
    assert set(listing["decision"]) == {"face found", "back of the head"}
    assert listing["clothes_share"].between(0.05, 0.5).all()
    # The boxes are about where the benchmark drew the heads.
    for id_, row in listing[listing["decision"] == "face found"].iterrows():
        head = np.asarray(Image.open(raw_benchmark / "mask" / str(id_)))[..., 0] >= 128
        left, top, side = (int(row[name]) for name in ("left", "top", "side"))
        box = head[top : top + side, left : left + side]
        assert box.sum() >= 0.9 * head.sum()
    assert (preparation.made / "clothes.csv").read_bytes() == (
        preparation.raw / "clothes.csv"
    ).read_bytes()


@pytest.mark.slow
def test_a_segformer_trained_here_finds_heads_of_people_it_never_saw(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, command: Callable[..., Result]
) -> None:
    root = tmp_path_factory.mktemp("people") / "benchmark"
    people = BenchmarkOptions(
        train_identities=24, train_images=4, test_identities=6, query_images=2,
        gallery_images=4, outfits=3, outfits_per_identity=2, cameras=3, train_back_views=0.0,
        body_height=128, body_width=64, face_size=32,
    )  # fmt: skip
    make_benchmark(root, people, workers=1)
    model = tmp_path / "segformer"
    train_segformer(root, model, steps=250)
    parsing = {"method": "segformer", "model": str(model)}
    write_recipe(tmp_path / "r.yaml", "benchmark", tmp_path / "made",
                 {"root": str(root), "parsing": parsing})  # fmt: skip
    prepare = Preparation(root, tmp_path / "made", tmp_path / "r.yaml", tmp_path / "run", command)
    prepare.ok()
    assert head_iou(prepare.made, root, ("query", GALLERY)) >= 0.7
    assert (prepare.listing()["decision"] == "face found").mean() > 0.7
    prepare.ok("train_student.max_steps=2", stage="train-student")
    # A network of another scheme would give nonsense: it is refused.
    result = prepare("--force", "prepare.parsing.scheme=lip")
    assert result.code == 2
    assert "has 18 classes, LIP has 20" in result.err


@pytest.mark.slow
def test_killed_half_way_it_ends_identical(preparation: Preparation) -> None:
    preparation.ok("prepare.batch=2")
    expected = preparation.digests()
    program = Path(sys.executable).with_name("deskpro")
    command = [program, "prepare", "--config", preparation.config, "--set", "prepare.batch=2"]
    shutil.rmtree(preparation.made)
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while process.poll() is None and len([*preparation.made.rglob("*.*")]) <= len(expected) / 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (preparation.made / "prepare.csv").exists()
    preparation.ok("prepare.batch=2")
    assert preparation.digests() == expected


def digests(root: Path) -> dict[str, str]:
    """Of all files but locks, manifests and what was being written, by path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.suffix != ".lock"
        and ".partial" not in path.name
        and "manifests" not in path.parts
        and path.name != "checked.json"
    }


@pytest.mark.parametrize(
    "again",
    [False, *slow(True)],
    ids=["from nothing", "after another option"],
)
def test_at_every_crash_point_the_same_call_ends_with_the_same_bytes(
    again: bool, raw_benchmark: Path, tmp_path: Path
) -> None:
    raw, made, finished = (tmp_path / name for name in ("raw", "made", "finished"))
    path = min((raw_benchmark / "imgs" / TRAIN).glob("*.jpg"))
    for file in (path, raw_benchmark / "labels" / TRAIN / f"{path.stem}.png"):
        copy = raw / file.relative_to(raw_benchmark)
        copy.parent.mkdir(parents=True)
        shutil.copy(file, copy)
    settings = {"root": raw, "parsing": {"labels": raw / "labels"}, "batch": 1, "shown": 0}
    options = Options.model_validate(
        {"data": {"root": made}, "data_train": "benchmark", "prepare": settings}
    )
    tight = options.model_copy(
        update={"prepare": Prepare.model_validate(settings | {"face": {"margin": 0.0}})}
    )

    def call(chosen: Options = options) -> None:
        stage.PrepareData(chosen, RunFolder(tmp_path / "run")).run(Job(FileIndex()))

    def start() -> None:
        shutil.rmtree(made, ignore_errors=True)
        if again:
            shutil.copytree(finished, made)

    call()
    wanted = digests(made)
    call(tight)
    made.rename(finished)
    for point in crashes(start, call, made):
        before = digests(made)
        if "prepare.csv" in before and not again:
            assert before == wanted, point
        call()
        assert digests(made) == wanted, point


def corrupt_body(raw: Path, name: str) -> str:
    path = raw / "imgs" / name
    path.write_bytes(path.read_bytes()[:200])
    return "unreadable image"


def label_map_of_another_size(raw: Path, name: str) -> str:
    path = (raw / "labels" / name).with_suffix(".png")
    Image.open(path).resize((32, 64), Image.Resampling.NEAREST).save(path)
    return "label map of 32×64 pixels, its body image has 64×128"


def unknown_class(raw: Path, name: str) -> str:
    path = (raw / "labels" / name).with_suffix(".png")
    labels = np.array(Image.open(path))
    labels[0, 0] = 18
    Image.fromarray(labels).save(path)
    return "unknown class 18; ATR has 0 to 17"


def coloured_label_map(raw: Path, name: str) -> str:
    path = (raw / "labels" / name).with_suffix(".png")
    Image.open(path).convert("RGB").save(path)
    return "label map of mode RGB"


def no_label_map(raw: Path, name: str) -> str:
    (raw / "labels" / name).with_suffix(".png").unlink()
    return "missing"


@pytest.mark.parametrize(
    "damage",
    [corrupt_body, label_map_of_another_size, unknown_class, coloured_label_map, no_label_map],
)
def test_an_image_that_cannot_be_used_is_refused_or_left_out(
    damage: Callable[[Path, str], str], preparation: Preparation
) -> None:
    name = sorted((preparation.raw / "imgs" / TRAIN).glob("*.jpg"))[1].name
    why = damage(preparation.raw, f"{TRAIN}/{name}")
    result = preparation()
    assert result.code == 2
    assert "Traceback" not in result.err
    assert "1 image can't be prepared" in result.err
    [line] = [line for line in result.err.splitlines() if name in line]
    assert why in line or why in result.err
    assert "prepare.unusable=leave-out" in result.err
    assert not (preparation.made / "prepare.csv").exists()

    log = preparation.ok("prepare.unusable=leave-out").err
    assert "1 images, listed in" in log
    listing = preparation.listing()
    [left_out] = listing.index[listing["problem"].notna()]
    assert left_out == f"{TRAIN}/{name}"
    assert why in listing.loc[left_out, "problem"]
    assert not [*preparation.made.rglob(f"{Path(name).stem}.*")]
    assert len([*(preparation.made / "imgs").rglob("*.jpg")]) == len(listing) - 1
    assert not check_data(preparation.made, "benchmark").problems


def test_two_people_are_counted_and_shown(preparation: Preparation) -> None:
    path = sorted((preparation.raw / "labels" / TRAIN).glob("*.png"))[0]
    labels = np.array(Image.open(path))
    labels[100:116, 2:16] = SCHEMES["atr"].names.index("Face")
    Image.fromarray(labels).save(path)
    log = preparation.ok().err
    assert "1 several" in log
    listing = preparation.listing()
    row = listing.loc[f"{TRAIN}/{path.stem}.jpg"]
    assert row["doubts"] == "several"
    assert row["faces"] == 2
    assert "More than one head or face" in (preparation.made / "prepare.html").read_text()


def test_another_option_recomputes_only_what_depends_on_it(preparation: Preparation) -> None:
    preparation.ok()

    def written(kind: str) -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (preparation.made / kind).rglob("*.*")}

    before = {kind: written(kind) for kind in ("imgs", "labels", "mask", "lr_face", "hr_face")}
    stale = preparation("prepare.face.margin=0.4")
    assert stale.code == 2
    assert "prepare.face.margin was 0.15, is 0.4" in stale.err
    preparation.ok("--force", "prepare.face.margin=0.4")
    for kind, times in before.items():
        assert (written(kind) == times) == (kind in ("imgs", "labels", "mask"))
    assert "is fresh" in preparation.ok("prepare.face.margin=0.4").err


def test_raw_images_that_come_and_go_are_followed(preparation: Preparation) -> None:
    preparation.ok()
    gone = sorted((preparation.raw / "imgs" / GALLERY).glob("*.jpg"))[0]
    new = gone.with_name("0099_c1_0001.jpg")
    labels = (preparation.raw / "labels" / GALLERY / gone.name).with_suffix(".png")
    gone.rename(new)
    labels.rename(labels.with_name("0099_c1_0001.png"))
    assert "the raw images of gallery has changed since" in preparation().err
    preparation.ok("--force")
    assert not [*preparation.made.rglob(f"{gone.stem}.*")]
    assert (preparation.made / "mask" / GALLERY / "0099_c1_0001.png").is_file()
    for path in (preparation.raw / "imgs" / "query").iterdir():
        path.unlink()
    (preparation.raw / "clothes.csv").unlink()
    assert "12 images that are no longer in" in preparation.ok("--force").err
    assert not (preparation.made / "clothes.csv").exists()


def test_a_raw_image_of_another_extension_takes_the_place_of_the_earlier(
    preparation: Preparation,
) -> None:
    steps = "prepare.steps=[parsing,mask]"
    preparation.ok(steps)
    image = preparation.raw / "imgs" / TRAIN / "0001_c1_0002.jpg"
    image.rename(image.with_suffix(".jpeg"))
    preparation.ok(steps, "--force")
    bodies, masks = (preparation.made / kind / TRAIN for kind in ("imgs", "mask"))
    assert [path.name for path in bodies.glob("0001_c1_0002.*")] == ["0001_c1_0002.jpeg"]
    assert (masks / "0001_c1_0002.png").is_file()
    (bodies / image.name).write_bytes(b"mine")
    result = preparation(steps, "--force")
    assert "were not written by prepare" in result.err


@pytest.mark.parametrize("changed", [False, True])
def test_a_file_that_prepare_did_not_write_is_never_replaced(
    changed: bool, preparation: Preparation
) -> None:
    preparation.ok()
    mine = sorted((preparation.made / "mask" / TRAIN).glob("*.png"))[0]
    if not changed:  # a mask that was there before prepare ever ran
        shutil.rmtree(preparation.made)
        mine.parent.mkdir(parents=True)
    Image.new("RGB", (64, 128), (255, 0, 0)).save(mine)
    content = mine.read_bytes()
    result = preparation("--force", "prepare.batch=4")
    assert result.code == 2
    assert f"{mine}: was not written by prepare. Move or delete it" in result.err
    assert mine.read_bytes() == content
    assert "leave the step mask out" in result.err
    alone = preparation("--force", "prepare.steps=[mask]")  # no step would be left
    assert "leave the step mask out" not in alone.err
    steps = "prepare.steps=[parsing,face,restoration]"
    preparation.ok("--force", steps)
    assert mine.read_bytes() == content


def test_what_was_fixed_by_hand_after_a_refusal_is_kept(preparation: Preparation) -> None:
    lost = sorted((preparation.raw / "labels" / TRAIN).glob("*.png"))[0]
    content = lost.read_bytes()
    lost.unlink()
    assert preparation().code == 2
    mine = sorted((preparation.made / "mask" / TRAIN).glob("*.png"))[0]
    Image.new("RGB", (64, 128), (255, 0, 0)).save(mine)
    lost.write_bytes(content)
    result = preparation()
    assert result.code == 2
    assert f"{mine}: was not written by prepare" in result.err
    mine.unlink()
    preparation.ok()


@pytest.mark.parametrize("option", ["prepare.unusable=refuse", "prepare.unusable=leave-out"])
@pytest.mark.parametrize("kind", ["hr_face", "mask", "imgs"])
def test_a_file_of_another_extension_in_the_way_is_refused(
    kind: str, option: str, preparation: Preparation
) -> None:
    name = sorted((preparation.raw / "imgs" / TRAIN).glob("*.jpg"))[0].name
    mine = preparation.made / kind / TRAIN / Path(name).with_suffix(".PNG")
    mine.parent.mkdir(parents=True)
    Image.new("RGB", (64, 128)).save(mine)
    result = preparation(option)
    assert result.code == 2
    assert mine.name in result.err
    assert mine.is_file()


def test_a_folder_with_other_images_is_not_mixed_with(
    preparation: Preparation, raw_benchmark: Path
) -> None:
    shutil.copytree(raw_benchmark / "imgs", preparation.made / "imgs")
    stray = preparation.made / "imgs" / TRAIN / "0777_c1_0001.jpg"
    shutil.copy(sorted((preparation.made / "imgs" / TRAIN).iterdir())[0], stray)
    result = preparation()
    assert result.code == 2
    assert "imgs: 1 images were not written by prepare, e.g. 0777_c1_0001.jpg" in result.err
    # Without a raw set the images there are the ones that are prepared.
    result = preparation("prepare.root=null", "prepare.unusable=leave-out")
    assert result.code == 2
    assert "no label map of bounding_box_train/0777_c1_0001.jpg" in result.err
    assert "move the image out of imgs/" in result.err
    stray.unlink()
    preparation.ok("prepare.root=null")
    assert len(preparation.listing()) == 40


def test_a_page_that_prepare_did_not_write_is_kept(preparation: Preparation) -> None:
    preparation.made.mkdir()
    (preparation.made / "prepare.html").write_text("my notes")
    result = preparation()
    assert result.code == 2
    assert "prepare.html: was not written by prepare" in result.err
    assert (preparation.made / "prepare.html").read_text() == "my notes"


@pytest.mark.slow
def test_a_set_that_is_not_done_is_not_used(preparation: Preparation) -> None:
    preparation.ok("train_student.max_steps=2", stage="train-student")
    gallery = sorted((preparation.raw / "imgs" / GALLERY).glob("*.jpg"))
    gallery[0].write_bytes(b"broken")
    shutil.copy(gallery[2], gallery[1])
    assert preparation("--force").code == 2
    result = preparation("train_student.max_steps=2", stage="eval")
    assert result.code == 2
    assert "prepare.csv: missing, prepare has not finished" in result.err
    # Nor by a recipe that doesn't say how it is made.
    result = preparation("prepare=null", stage="check-data")
    assert result.code == 2
    assert "its preparation is not complete: run prepare again" in result.out


def test_a_prepared_set_is_not_emptied(preparation: Preparation, tmp_path: Path) -> None:
    preparation.ok()
    before = preparation.digests()
    (tmp_path / "empty").mkdir()
    nothing = f"prepare.parsing.labels={tmp_path / 'empty'}"
    assert "leave-out" not in preparation("--force", nothing).err  # that would prepare none
    result = preparation("--force", nothing, "prepare.unusable=leave-out")
    assert result.code == 2
    assert "none of 40 images can be prepared" in result.err
    preparation.ok("--force")
    assert preparation.digests() == before


def test_deep_reads_every_file_again(preparation: Preparation) -> None:
    preparation.ok()
    path = sorted((preparation.raw / "labels" / TRAIN).glob("*.png"))[0]
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[-8] ^= 255  # of the same size, and of the same time
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "the label maps has changed" in preparation().err  # its entry has another time
    assert "is fresh" not in preparation("--deep").err
    lost = sorted((preparation.made / "hr_face" / TRAIN).iterdir())[0]
    path.write_bytes(bytes(content[:-8]) + bytes([content[-8] ^ 255]) + bytes(content[-7:]))
    lost.unlink()
    preparation.ok("--deep", "--force")
    assert lost.is_file()


def test_two_at_once_are_refused(preparation: Preparation) -> None:
    preparation.made.mkdir()
    holder = (
        "import sys, time; from pathlib import Path; from deskpro.cache.lock import hold\n"
        "with hold(Path(sys.argv[1]), 'prepare'): print('held', flush=True); time.sleep(60)"
    )
    lock = str(preparation.made / ".prepare")
    with subprocess.Popen([sys.executable, "-c", holder, lock], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        result = preparation()
        other.kill()
    assert result.code == 2
    assert f"process {other.pid} on" in result.err
    preparation.ok()


@pytest.mark.slow
def test_each_step_can_be_done_alone(preparation: Preparation) -> None:
    for step, made in (("parsing", "labels"), ("mask", "mask"), ("face", "lr_face"),
                       ("restoration", "hr_face")):  # fmt: skip
        assert not (preparation.made / made).exists()
        preparation.ok("--force", f"prepare.steps=[{step}]")
        assert [*(preparation.made / made).rglob("*.*")]
    alone = preparation.digests()
    assert {"head_share", "decision", "left"} <= {*preparation.listing().columns}
    shutil.rmtree(preparation.made)
    preparation.ok()
    assert {
        k: v for k, v in preparation.digests().items() if k[:4] in ("imgs", "mask", "lr_f")
    } == {k: v for k, v in alone.items() if k[:4] in ("imgs", "mask", "lr_f")}


@pytest.mark.slow
def test_hr_faces_are_cut_from_hr_images(preparation: Preparation, tmp_path: Path) -> None:
    sharp = tmp_path / "sharp"
    for path in (preparation.raw / "imgs").rglob("*.jpg"):
        large = Image.open(path).resize((256, 512), Image.Resampling.BICUBIC)
        target = sharp / path.relative_to(preparation.raw)
        target.parent.mkdir(parents=True, exist_ok=True)
        large.save(target.with_suffix(".png"))
    preparation.ok("prepare.restoration.method=pictures", "prepare.restoration.size=64",
                   f"prepare.restoration.pictures={sharp}")  # fmt: skip
    listing = preparation.listing()
    row = listing[listing["decision"] == "face found"].iloc[0]
    left, top, side = (4 * int(row[name]) for name in ("left", "top", "side"))
    image = Image.open((sharp / str(row["source"])).with_suffix(".png"))
    wanted = image.crop((left, top, left + side, top + side)).resize((64, 64))
    made = Image.open(preparation.made / "hr_face" / str(row.name))
    assert np.abs(np.asarray(made, float) - np.asarray(wanted, float)).mean() < 3


@pytest.mark.parametrize("dataset", [name for name in RAW_TREES if name != "celeb-light-raw"])
def test_a_published_dataset_keeps_its_names_and_rules(
    dataset: str, tmp_path: Path, command: Callable[..., Result]
) -> None:
    raw, labels = tmp_path / "raw", tmp_path / "labels"
    person = np.zeros((64, 32), np.uint8)
    person[20:60, 6:26], person[4:18, 10:22] = 4, 11
    names = {Path(n).with_suffix(Path(n).suffix.lower()) for n in RAW_TREES[dataset]}
    for name in names:
        for root in (raw, labels):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 64), (90, 80, 70)).save(raw / name)
        Image.fromarray(person).save((labels / name).with_suffix(".png"))
    if dataset == "deepchange":
        for split in ("train-set", "test-set-query", "test-set-gallery"):
            lines = [f"{n.name},T1" for n in names if n.parts[0] == split]
            (raw / f"{split}-bbox.txt").write_text("\n".join(lines) + "\n")
    write_recipe(tmp_path / "r.yaml", dataset, tmp_path / "made",
                 {"root": str(raw), "parsing": {"labels": str(labels)}})  # fmt: skip
    prepare = Preparation(raw, tmp_path / "made", tmp_path / "r.yaml", tmp_path / "run", command)
    prepare.ok()
    before = check_data(raw, dataset, needs=("imgs",), test_needs=("imgs",)).table
    after = check_data(prepare.made, dataset).require().table
    same = ["split", "sample_id", "pid", "camid", "clothes", "scene"]
    pd.testing.assert_frame_equal(before[same], after[same])
    assert after[["lr_face", "hr_face", "mask"]].notna().all().all()


@pytest.mark.slow
def test_a_folder_of_own_images_is_prepared_and_trained_on(
    preparation: Preparation, tmp_path: Path, command: Callable[..., Result]
) -> None:
    photos = tmp_path / "photos"
    for path in sorted((preparation.raw / "imgs").rglob("*.jpg")):
        pid, camera, _ = path.stem.split("_")
        labels = preparation.raw / "labels" / path.parent.name / f"{path.stem}.png"
        target = photos / "images" / f"someone {pid}" / f"{camera} {path.stem[-4:]}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        copied = photos / "labels" / target.relative_to(photos / "images").with_suffix(".png")
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(labels, copied)
    own = {"name": r"(?P<pid>[^/]+)/c(?P<camid>\d) .*", "test": 0.4}
    write_recipe(tmp_path / "own.yaml", "own", tmp_path / "made", {
        "root": str(photos / "images"), "own": own, "restoration": {"size": 32},
        "parsing": {"labels": str(photos / "labels")},
    })  # fmt: skip
    prepare = Preparation(
        photos, tmp_path / "made", tmp_path / "own.yaml", tmp_path / "run", command
    )
    prepare.ok("train_student.max_steps=2", stage="train-student")
    listing = prepare.listing()
    people = listing.groupby("split")["pid"].agg(set).to_dict()
    assert len(people["train"]) == 6
    assert len(people["query"]) == 4
    assert people["query"] == people["gallery"]
    assert not people["train"] & people["query"]
    assert set(listing["camid"]) == {1, 2}
    assert all(pid.startswith("someone ") for pid in listing["pid"])


@pytest.mark.parametrize(("suffix", "gap"), [(".jpg", 4.0), (".tif", 0.0)])
def test_a_photograph_on_its_side_is_stored_upright(
    suffix: str, gap: float, preparation: Preparation
) -> None:
    first = sorted((preparation.raw / "imgs" / TRAIN).glob("*.jpg"))[0]
    upright = Image.open(first)
    upright.load()
    first.unlink()
    path = first.with_suffix(suffix)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it
    upright.transpose(Image.Transpose.ROTATE_90).save(path, quality=95, exif=exif)
    assert "turned upright  1" in preparation.ok().err
    made = Image.open(preparation.made / "imgs" / TRAIN / path.name)
    assert made.size == (64, 128)
    assert np.abs(np.asarray(made, float) - np.asarray(upright, float)).mean() <= gap


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("prepare.root=nowhere", "nowhere: no such folder. Set prepare.root"),
        ("prepare.parsing.labels=null", "prepare.parsing.labels: not set. Set it to the folder"),
        ("prepare.parsing.method=guess", "must be 'labels' or 'segformer', found 'guess'"),
        ("prepare.parsing.scheme=coco", "must be 'lip', 'atr', 'pascal' or 'cihp'"),
        ("prepare.face.method=yunet", "prepare.face.model: not set. Set it to YuNet's ONNX file"),
        ("prepare.restoration.method=spandrel", "prepare.restoration.model: not set"),
        (
            "prepare.restoration.method=pictures",
            "prepare.restoration.pictures: not set. Set it to the folder",
        ),
        ("prepare.steps=[mask,paint]", "must be 'parsing', 'mask', 'face' or 'restoration'"),
        ("prepare.own.name=(", "must be a regular expression"),
        ("prepare=null", "has no section prepare, which names the raw dataset"),
    ],
)
def test_what_is_missing_or_wrong_is_refused_before_any_work(
    option: str, message: str, preparation: Preparation
) -> None:
    result = preparation(option)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not [*preparation.made.rglob("*.jpg")]


def test_a_segmenter_that_cannot_be_loaded_is_refused(
    preparation: Preparation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for model in (str(tmp_path / "empty"), "hf:nobody/nothing"):
        result = preparation("prepare.parsing.method=segformer", f"prepare.parsing.model={model}")
        assert result.code == 2
        assert f"prepare.parsing.model {model}: not a segmenter" in result.err


def test_everything_that_lacks_is_listed_at_once(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path is never taken for a name on the hub, which would be asked for minutes."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    result = preparation(
        "prepare.parsing.method=segformer",
        "prepare.parsing.model=models/segformer",
        "prepare.face.method=yunet",
        "prepare.restoration.method=spandrel",
        "prepare.restoration.model=models/GFPGANv1.4.pth",
    )
    assert result.code == 2
    for line in (
        "prepare.parsing.model: models/segformer not found. Set it to a folder",
        "prepare.face.model: not set. Set it to YuNet's ONNX file",
        "prepare.restoration.model: models/GFPGANv1.4.pth not found. Set it to the file",
    ):
        assert line in result.err
    assert result.err.count("MB, ") == 3  # size and licence of each
    assert not [*preparation.made.rglob("*.jpg")]


def test_the_prepared_set_must_not_lie_in_the_raw_one(preparation: Preparation) -> None:
    before = sorted(preparation.raw.rglob("*"))
    for option, message in (
        (f"data.root={preparation.raw / 'prepared'}", "one lies in the other"),
        (f"data.root={preparation.raw}", "one lies in the other"),
        (f"prepare.parsing.labels={preparation.made / 'labels'}", "one lies in the other"),
    ):
        result = preparation(option)
        assert result.code == 2
        assert message in result.err
    assert sorted(preparation.raw.rglob("*")) == before


def test_explain_shows_every_class_and_method(command: Callable[..., Result]) -> None:
    text = command("prepare", "--explain").out
    for scheme in SCHEMES.values():
        for i, name in enumerate(scheme.names):
            assert f"{i} {name}" in text
    for name in ("labels", "segformer", "regions", "head", "yunet", "bicubic", "spandrel"):
        assert f"method={name}" in text
    assert "held out" in text


def test_a_hostile_name_is_text_on_the_contact_sheet(preparation: Preparation) -> None:
    path = sorted((preparation.raw / "imgs" / "query").glob("*.jpg"))[0]
    pid = path.name[:8]
    hostile = f"{pid}<img src=x onerror=alert(1)>"
    path.rename(path.with_name(f"{hostile}.jpg"))
    labels = preparation.raw / "labels" / "query" / f"{path.stem}.png"
    labels.rename(labels.with_name(f"{hostile}.png"))
    preparation.ok("prepare.shown=200")
    page = (preparation.made / "prepare.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.cuda
def test_a_segformer_parses_on_a_gpu_as_on_a_cpu(raw_benchmark: Path, tmp_path: Path) -> None:
    train_segformer(raw_benchmark, tmp_path, steps=20)
    bodies = [read_image(path) for path in sorted((raw_benchmark / "imgs" / TRAIN).glob("*.jpg"))]
    settings = Prepare(parsing=Parsing(method="segformer", model=str(tmp_path)))
    here, there = (
        np.stack(SegFormer(settings, tmp_path, device).parse(bodies))
        for device in ("cpu", "cuda:0")
    )
    assert (here == there).mean() > 0.99


@pytest.mark.parametrize(
    "name", ["../mine.jpg", "imgs/../../mine.jpg", "{absolute}", "link/mine.jpg"]
)
def test_a_journal_that_names_files_elsewhere_deletes_nothing(name: str, tmp_path: Path) -> None:
    mine, root = tmp_path / "mine.jpg", tmp_path / "set"
    mine.write_bytes(b"precious")
    (root / "imgs").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    files = {name.format(absolute=mine): hashlib.sha256(b"precious").hexdigest()}
    Journal(root / ".prepare" / "body.jsonl").append([{"id": "a", "key": "", "files": files}])
    with pytest.raises(InputError, match=r"body\.jsonl: not a journal of prepare"):
        Records(root, "body", FileIndex(tmp_path / "index"))
    assert mine.read_bytes() == b"precious"


@pytest.mark.parametrize("record", [{"id": 5}, {"a": 1}, {"id": "a", "key": "", "files": [1]}])
def test_a_journal_of_something_else_is_one_message(record: object, tmp_path: Path) -> None:
    Journal(tmp_path / ".prepare" / "body.jsonl").append([record])  # type: ignore[list-item]
    with pytest.raises(InputError, match="not a journal of prepare"):
        Records(tmp_path, "body", FileIndex(tmp_path / "index"))
