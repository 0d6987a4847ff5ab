"""A gallery finds what `similarity` ranks first, and is whole whatever happens while it is made."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskpro import Encoder, Features
from deskpro.stages.base.errors import InputError
from deskpro.stages.metrics.calibration import CASES, face_cases
from deskpro.stages.metrics.fusion import Fusion
from deskpro.stages.serving import gallery_search
from deskpro.stages.serving.gallery import Gallery, describe
from deskpro.stages.serving.gallery_pictures import Picture, collect, moment, read_csv
from deskpro.stages.serving.gallery_results import short_paths
from deskpro.stages.serving.gallery_search import Comparison, Hits
from deskpro.stages.serving.gallery_table import FACTS, Filter, PictureTable
from tests.conftest import REPOSITORY, Result

PARTS = {"face": slice(0, 8), "body": slice(8, 24)}
FUSIONS = {
    "fixed": Fusion.fixed(0.4),
    "fitted": Fusion(9.0, 4.0, -6.0, 7.0, -3.0),
    "alone higher": Fusion(1.0, 1.0, 0.0, 5.0, 4.0),
    "body alone": None,
}


def random_features(
    rng: np.random.Generator, count: int, distinct: int, parts: dict[str, slice]
) -> Features:
    """Features of float16, of which some are equal and some have no face."""
    vectors = rng.standard_normal((distinct, max(part.stop for part in parts.values())))
    for part in parts.values():
        vectors[:, part] /= np.linalg.norm(vectors[:, part], axis=1, keepdims=True)
    has_face = rng.random(distinct) < 0.6 if "face" in parts else np.zeros(distinct, bool)
    if "face" in parts:
        vectors[~has_face, parts["face"]] = 0
    rows = rng.integers(0, distinct, count)
    return Features(vectors.astype(np.float16).astype(np.float32)[rows], has_face[rows])


def comparison(fusion: Fusion | None) -> Comparison:
    parts = {"body": slice(0, 16)} if fusion is None else PARTS

    def similarity(a: Features, b: Features) -> np.ndarray:
        cosines = {name: a.vectors[:, p] @ b.vectors[:, p].T for name, p in parts.items()}
        if fusion is None:
            return cosines["body"]
        return fusion.scores(
            cosines["face"], cosines["body"], a.has_face[:, None] & b.has_face[None]
        )

    return Comparison(parts, fusion, similarity)


def table_of(folder: Path, shown: Features, parts: dict[str, slice]) -> PictureTable:
    lengths = {name: part.stop - part.start for name, part in parts.items()}
    table = PictureTable(folder, lengths, create=True)
    count = len(shown)
    for rows in np.array_split(np.arange(count), 3):  # several fragments
        table.write(
            {
                "number": rows,
                **{name: [f"{name}{row}" for row in rows] for name in ("path", "sha256")},
                "person": [None] * len(rows),
                "face_path": [None] * len(rows),
                "camera": [f"c'{row % 3}" for row in rows],
                "time": [moment(f"2024-05-0{1 + row % 5}", "") for row in rows],
                "has_face": shown.has_face[rows],
                **{name: shown.vectors[rows][:, part] for name, part in parts.items()},
            }
        )
    return table


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PictureTable, Features]]:
    """Fusion → 400 pictures, of which many are equal."""
    made = {}
    for i, (name, fusion) in enumerate(FUSIONS.items()):
        parts = dict(comparison(fusion).parts)
        shown = random_features(np.random.default_rng(i), 400, 250, parts)
        made[name] = (
            table_of(tmp_path_factory.mktemp("tables") / name.replace(" ", ""), shown, parts),
            shown,
        )
    return made


def brute_force(
    compared: Comparison, asked: Features, shown: Features, top: int, rows: np.ndarray
) -> list[tuple[list[int], np.ndarray]]:
    """The definition: every score in double precision; ties by number."""
    double = [Features(each.vectors.astype(np.float64), each.has_face) for each in (asked, shown)]
    scores = compared.similarity(*double)
    found = []
    for one in scores:
        order = sorted(rows.tolist(), key=lambda row: (-np.float32(one[row]), row))[:top]
        found.append((order, one[order]))
    return found


def agree(hits: list[Hits], expected: list[tuple[list[int], np.ndarray]]) -> None:
    assert len(hits) == len(expected)
    for hit, (order, scores) in zip(hits, expected, strict=True):
        assert hit.numbers.tolist() == order
        np.testing.assert_allclose(hit.scores, scores, atol=2e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
@given(data=st.data())
def test_search_is_brute_force_by_similarity(
    fusion: str, data: st.DataObject, tables: dict[str, tuple[PictureTable, Features]]
) -> None:
    table, shown = tables[fusion]
    compared = comparison(FUSIONS[fusion])
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    asked = random_features(rng, data.draw(st.sampled_from([1, 5])), 5, dict(compared.parts))
    top = data.draw(st.sampled_from([1, 3, 10, 399, 1000]))
    rows = data.draw(st.sampled_from([7, 64, 8192]))
    cameras = data.draw(st.sampled_from([(), ("c'1",), ("c'0", "c'2")]))
    late = data.draw(st.booleans())
    where = Filter(cameras=cameras, after=moment("2024-05-03", "") if late else None)
    meant = np.asarray(
        [
            row for row in range(len(shown))
            if (not cameras or f"c'{row % 3}" in cameras) and (not late or row % 5 >= 2)
        ]
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery_search, "_ROWS", rows)
        patch.setattr(gallery_search, "_QUERIES", 2)
        hits = gallery_search.search(table, compared, asked, top, where.sql)
    agree(hits, brute_force(compared, asked, shown, top, meant))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_threshold_is_the_least_score(
    fusion: str, tables: dict[str, tuple[PictureTable, Features]]
) -> None:
    table, _ = tables[fusion]
    compared = comparison(FUSIONS[fusion])
    asked = random_features(np.random.default_rng(5), 4, 4, dict(compared.parts))
    (whole,) = gallery_search.search(table, compared, asked[:1], 400)
    least = float(whole.scores[20])
    (found,) = gallery_search.search(table, compared, asked[:1], 400, threshold=least)
    assert found.numbers.tolist() == whole.numbers[whole.scores >= least].tolist()


@pytest.mark.parametrize("fusion", ["fixed", "fitted", "alone higher"])
@given(data=st.data())
def test_thresholds_by_face_case_are_brute_force(
    fusion: str, data: st.DataObject, tables: dict[str, tuple[PictureTable, Features]]
) -> None:
    table, shown = tables[fusion]
    compared = comparison(FUSIONS[fusion])
    asked = random_features(np.random.default_rng(data.draw(st.integers(0, 99))), 5, 5, PARTS)
    top = data.draw(st.sampled_from([1, 3, 399]))
    where = data.draw(st.sampled_from([None, "number < 100 OR number > 300"]))
    double = [Features(each.vectors.astype(np.float64), each.has_face) for each in (asked, shown)]
    scores = compared.similarity(*double).astype(np.float32)
    cases = face_cases(asked.has_face, shown.has_face)
    known = data.draw(st.sets(st.sampled_from(CASES)))
    # The score of a pair, so that what is as good as the threshold is found.
    limits = {
        name: float(pairs[data.draw(st.integers(0, len(pairs) - 1))])
        for place, name in enumerate(CASES)
        if name in known and len(pairs := scores[cases == place])
    }
    hits = gallery_search.search_by_case(table, compared, asked, top, where, limits)
    least = np.array([limits.get(name, np.inf) for name in CASES])[cases]
    meant = (scores >= least) & ((where is None) | ~np.isin(np.arange(400), range(100, 301)))
    for found, row, one in zip(hits, meant, scores, strict=True):
        order = sorted(np.flatnonzero(row).tolist(), key=lambda i: (-one[i], i))[:top]
        assert found.numbers.tolist() == order
        np.testing.assert_array_equal(found.scores, one[order])
        np.testing.assert_array_equal(found.has_face, shown.has_face[order])


def test_many_equal_pictures_are_cut_in_the_order_of_adding(tmp_path: Path) -> None:
    compared = comparison(FUSIONS["fitted"])
    one = random_features(np.random.default_rng(1), 1, 1, PARTS)
    shown = one[np.zeros(300, int)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery_search, "_TIES", 5)
        patch.setattr(gallery_search, "_ROWS", 50)
        (found,) = gallery_search.search(table_of(tmp_path / "t", shown, PARTS), compared, one, 10)
    assert found.numbers.tolist() == [*range(10)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-01", "2024-05-01T00:00:00.000000+00:00"),
        ("2024-05-01T12:30:00+02:00", "2024-05-01T10:30:00.000000+00:00"),
        ("2024-05-01 12:30", "2024-05-01T12:30:00.000000+00:00"),
    ],
)
def test_moments_are_utc(text: str, expected: str) -> None:
    assert moment(text, "") == expected


# The commands


@pytest.fixture(scope="module")
def run(finished_run: Callable[[str], Path]) -> Path:
    return finished_run("train-student")


@pytest.fixture
def photos(tiny_benchmark: Path, tmp_path: Path) -> Path:
    """The test images of the tiny benchmark, and a face of some of them in `faces`."""
    for kind, name in (("imgs", "photos"), ("lr_face", "faces")):
        shutil.copytree(tiny_benchmark / kind / "bounding_box_test", tmp_path / name)
    return tmp_path / "photos"


@pytest.fixture
def made(run: Path, photos: Path, command: Callable[..., Result]) -> Path:
    """A gallery of them."""
    folder = photos.parent / "people"
    words = ("--student", str(run), "--faces", str(photos.parent / "faces"), "--camera", "door")
    result = command("gallery", "add", str(folder), str(photos), *words)
    assert result.code == 0, result.err
    return folder


def test_pictures_and_faces_are_those_that_every_stage_would_read(tmp_path: Path) -> None:
    folder, elsewhere, faces = (tmp_path / name for name in ("photos", "camera", "faces"))
    names = ("photos/day/1.jpg", "photos/._1.jpg", "camera/2.PNG", "faces/day/1.png", "faces/2.jpg")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (folder / "linked").symlink_to(elsewhere)
    found = collect([folder], faces)
    assert [picture.path for picture in found] == [folder / "day/1.jpg", folder / "linked/2.PNG"]
    assert [picture.face for picture in found] == [faces / "day/1.png", None]
    [alone] = collect([elsewhere / "2.PNG"], faces)
    assert alone.face == faces / "2.jpg"
    (faces / "2.png").touch()
    with pytest.raises(InputError, match=r"2\.jpg and 2\.png differ in the extension alone"):
        collect([folder], faces)


def test_a_face_is_that_of_one_picture(tmp_path: Path) -> None:
    for name in ("one/1.jpg", "two/1.png", "faces/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    one, two, faces = tmp_path / "one", tmp_path / "two", tmp_path / "faces"
    assert [picture.face for picture in collect([one, one / "1.jpg"], faces)] == [faces / "1.jpg"]
    listed = tmp_path / "list.csv"
    for face in (",faces/1.jpg", ","):
        listed.write_text(f"path,face\none/1.jpg,\ntwo/1.png{face}\n")
        if face != ",":  # it is named
            assert [picture.face for picture in read_csv(listed, faces)] == [faces / "1.jpg"] * 2
    for read in (lambda: collect([one, two], faces), lambda: read_csv(listed, faces)):
        with pytest.raises(InputError, match=r"1\.jpg would be the face of .*one/1.* and of .*two"):
            read()


def test_a_picture_has_one_path_from_whichever_folder_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("photos/1.jpg", "faces/1.png", "elsewhere/list.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("path\n../photos/1.jpg\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    photo, face = tmp_path / "photos/1.jpg", tmp_path / "faces/1.png"
    for path in ("../photos", "../photos/1.jpg"):
        assert collect([Path(path)], Path("../faces")) == [Picture(photo, face)]
    assert read_csv(Path("list.csv")) == [Picture(photo)]


def listed(folder: Path) -> list[str]:
    return [Path(path).name for path in Gallery(folder).rows(Filter())["path"]]


def test_what_is_added_is_found_as_the_encoder_compares(
    made: Path, run: Path, photos: Path, command: Callable[..., Result]
) -> None:
    names = sorted(path.name for path in photos.iterdir())
    assert listed(made) == names
    query, faces = photos / names[3], photos.parent / "faces"
    result = command(
        "gallery", "search", str(made), str(query), "--faces", str(faces), "--top", "5",
        "--format", "json",
    ) if (faces / names[3]).exists() else command(
        "gallery", "search", str(made), str(query), "--top", "5", "--format", "json"
    )  # fmt: skip
    assert result.code == 0, result.err
    hits = json.loads(result.out)
    encoder = Encoder.load(run, "cpu")
    paths = [photos / name for name in names]
    crops = [path if (path := faces / name).exists() else None for name in names]
    shown = encoder(paths, crops)
    asked = encoder([query], [crops[3]])
    rounded = [
        Features(f.vectors.astype(np.float16).astype(np.float32), f.has_face) for f in (shown,)
    ]
    scores = encoder.similarity(asked, rounded[0])[0]
    order = np.lexsort((np.arange(len(scores)), -scores))[:5]
    assert [Path(hit["path"]).name for hit in hits] == [names[i] for i in order]
    np.testing.assert_allclose([hit["score"] for hit in hits], scores[order], atol=1e-5)
    cases = (
        {True: "face-face", False: "face-none"}
        if asked.has_face[0]
        else {True: "face-none", False: "none-none"}
    )
    assert [hit["case"] for hit in hits] == [cases[bool(shown.has_face[i])] for i in order]
    assert {hit["camera"] for hit in hits} == {"door"}


def test_shown_paths_tell_pictures_of_one_name_apart() -> None:
    rows = [{"query": "/q/1.jpg", "path": f"/photos/{who}/1.jpg"} for who in ("ann", "bob")]
    short = [tuple(row.values()) for row in short_paths(rows, ("query", "path"))]
    assert short == [("1.jpg", "ann/1.jpg"), ("1.jpg", "bob/1.jpg")]
    assert short_paths([], ("path",)) == []


def test_adding_again_skips_and_a_changed_picture_is_replaced(
    made: Path, run: Path, photos: Path, command: Callable[..., Result]
) -> None:
    words = ("gallery", "add", str(made), str(photos), "--student", str(run))
    count = len(listed(made))
    assert re.search(rf"in already +{count}", command(*words).err)
    first, second = sorted(photos.iterdir())[:2]
    first.write_bytes(second.read_bytes())
    assert command("gallery", "check", str(made)).code == 1
    assert re.search(r"replaced +1\b", command(*words).err)
    assert len(listed(made)) == count
    assert listed(made)[-1] == first.name
    rows = Gallery(made).table.read(("sha256", "body"))
    assert len(set(rows["sha256"])) == count - 1
    assert command("gallery", "check", str(made)).code == 0


def test_pictures_are_removed_by_path_and_by_condition(
    made: Path, run: Path, photos: Path, command: Callable[..., Result]
) -> None:
    first, *others = sorted(photos.iterdir())
    other_name = photos / ".." / photos.name / first.name
    assert command("gallery", "remove", str(made), str(other_name)).code == 0
    assert listed(made) == [path.name for path in others]
    words = ("--student", str(run), "--camera", "o'gate", "--time", "2024-05-01", "--person", "7")
    assert command("gallery", "add", str(made), str(first), *words).code == 0
    out = command("gallery", "list", str(made), "--camera", "o'gate", "--format", "csv").out
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["person"], row["time"]) == ("7", "2024-05-01T00:00:00.000000+00:00")
    assert command("gallery", "remove", str(made), "--before", "2024-05-01").code == 2
    assert command("gallery", "remove", str(made), "--before", "2024-05-02").code == 0
    assert listed(made) == [path.name for path in others]
    assert re.search(rf"pictures +{len(others)}", command("gallery", "info", str(made)).err)


def test_a_csv_names_pictures_and_what_is_known_of_them(
    run: Path, photos: Path, command: Callable[..., Result]
) -> None:
    names = sorted(path.name for path in (photos.parent / "faces").iterdir())[:2]
    file = photos.parent / "list.csv"
    file.write_text(
        f"path,person,time,face\nphotos/{names[0]},ann,2024-05-01T10:00:00+02:00,faces/{names[0]}\n"
        f"photos/{names[1]},,,\n"
    )
    folder = photos.parent / "listed"
    result = command("gallery", "add", str(folder), "--csv", str(file), "--student", str(run))
    assert result.code == 0, result.err
    rows = Gallery(folder).rows(Filter())
    assert rows["has_face"].tolist() == [True, False]
    assert (rows["person"], rows["camera"]) == (["ann", None], [None, None])
    assert rows["time"] == ["2024-05-01T08:00:00.000000+00:00", None]


@pytest.mark.slow
def test_the_page_holds_pictures_scores_and_cases(
    made: Path, photos: Path, command: Callable[..., Result]
) -> None:
    queries, page = [str(path) for path in sorted(photos.iterdir())[:2]], photos.parent / "x.html"
    words = ("--top", "4", "--format", "html", "--out", str(page))
    assert command("gallery", "search", str(made), *queries, *words).code == 0
    text = page.read_text()
    assert text.count("data:image/jpeg") == 2 * (1 + 4)
    assert text.count('class="score"') == 8
    assert "face-none" in text or "none-none" in text
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    out = command("gallery", "search", str(made), *queries, "--top", "4").out
    assert "Found" in out
    assert out.count(queries[0].rsplit("/", 1)[1]) >= 4
    out = command("gallery", "search", str(made), *queries, "--top", "4", "--format", "csv").out
    assert len([*csv.DictReader(io.StringIO(out))]) == 8


@pytest.fixture
def demonstration(
    run: Path, tiny_benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The current folder, with the runs/demo and data/benchmark of documented examples."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/benchmark").symlink_to(tiny_benchmark)
    (tmp_path / "runs/demo").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documented_commands_run(demonstration: Path, command: Callable[..., Result]) -> None:
    text = (REPOSITORY / "stages/README.md").read_text().split("\n## Gallery\n")[1]
    lines = text.split("```sh\n")[1].split("```")[0].replace("\\\n", " ").splitlines()
    for line in lines:
        assert command(*line.split()[1:]).code == 0, line
    assert len(lines) == 7
    assert len([*csv.DictReader((demonstration / "runs/people.csv").open())]) == 12
    assert listed(demonstration / "runs/people") == []


@pytest.mark.slow
def test_the_documented_video_becomes_a_gallery(
    demonstration: Path, command: Callable[..., Result]
) -> None:
    text = (REPOSITORY / "stages/README.md").read_text().split("\n### In a tracker\n")[1]
    example = text.split("```python\n")[2].split("```")[0]
    assert len(example.splitlines()) <= 25
    exec(example, {})
    add, search = text.split("```sh\n")[1].split("```")[0].splitlines()
    assert command(*add.split()[1:]).code == 0
    result = command(*search.split()[1:], "--format", "json")
    assert result.code == 0, result.err
    hits = json.loads(result.out)
    assert len(hits) == 3
    assert {hit["person"] for hit in hits} == {"track 1"}
    assert len(listed(demonstration / "runs/video")) == 12


# Bad inputs


def break_table(folder: Path) -> None:
    for file in (folder / "pictures.lance" / "_versions").iterdir():
        file.write_bytes(b"broken")


BAD: dict[str, tuple[str, str]] = {
    "a picture that is none": ("add {people} {tmp}/bad.jpg --student {run}", "bad.jpg: unreadable"),
    "a picture that is none, in a new gallery": (
        "add {tmp}/new {photos} {tmp}/bad.jpg --student {run}", "1 of 4 pictures can't be read",
    ),
    "a picture that is missing": ("add {people} {tmp}/no.jpg --student {run}", "no.jpg: no such"),
    "a folder without pictures": ("add {people} {tmp}/void --student {run}", "void: no picture"),
    "no pictures": ("add {people} --student {run}", "give PICTURES, or --csv"),
    "pictures and a CSV file": ("add {people} {photos} --csv a.csv --student {run}", "or --csv"),
    "no student": ("add {people} {photos}", "--student"),
    "a student that is missing": ("add {people} {photos} --student {tmp}/no", "{tmp}/no"),
    "a column that isn't known": ("add {people} --csv {tmp}/column.csv --student {run}", "'cam'"),
    "a CSV without path": ("add {people} --csv {tmp}/nopath.csv --student {run}", "column path"),
    "a time in a CSV": ("add {people} --csv {tmp}/time.csv --student {run}", "row 2, time: 'noon'"),
    "a row twice": ("add {people} --csv {tmp}/twice.csv --student {run}", "row 3"),
    "a short row": ("add {people} --csv {tmp}/short.csv --student {run}", "row 2: must have 2"),
    "an empty CSV": ("add {people} --csv {tmp}/empty.csv --student {run}", "no rows"),
    "a time": ("add {people} {photos} --student {run} --time 20240501", "--time: '20240501'"),
    "faces of nobody": ("add {people} {photos} --student {run} --faces {tmp}/void", "--faces"),
    "no folder of faces": ("add {people} {photos} --student {run} --faces {tmp}/no", "--faces"),
    "faces without a detector": (
        "add {people} {photos} --student {run} --faces detect", "detector",
    ),
    "a folder that is no gallery": ("add {photos} {photos} --student {run}", "is no gallery"),
    "a file in the place of one": ("add {tmp}/bad.jpg {photos} --student {run}", "bad.jpg"),
    "a search in no gallery": ("search {photos} {query}", "no gallery"),
    "a search in nothing": ("search {tmp}/no {query}", "no such folder"),
    "top 0": ("search {people} {query} --top 0", "--top"),
    "a threshold that is no number": ("search {people} {query} --threshold nan", "--threshold"),
    "a rate and a threshold": ("search {people} {query} --far 0.1 --threshold 0", "one of them"),
    "a rate that is none": ("search {people} {query} --far 0", "far is 0.0; must be above 0"),
    "a rate without calibration": ("search {people} {query} --far 0.1", "has no calibration"),
    "a bad moment": ("search {people} {query} --after yesterday", "--after: 'yesterday'"),
    "a query that is none": (
        "search {people} {tmp}/bad.jpg", "1 of 1 pictures can't be read. Replace these files",
    ),
    "a student that has moved": ("search {tmp}/moved {query}", "is gone; name it by --student"),
    "a camera that isn't there": ("search {people} {query} --camera no", "no picture of these"),
    "an empty gallery": ("search {tmp}/hollow {query} --student {run}", "is empty"),
    "html without a file": ("search {people} {query} --format html", "--out"),
    "a table into a file": ("search {people} {query} --out {tmp}/x.txt", "--format csv"),
    "nothing to remove": ("remove {people}", "give PICTURES"),
    "a picture that isn't in": ("remove {people} {tmp}/bad.jpg", "nothing was removed"),
    "a record that is damaged": ("info {tmp}/damaged", "gallery.json"),
    "a table that is damaged": ("info {tmp}/torn", "table can't be read"),
    "another encoder": ("search {people} {query} --student {tmp}/other", "with other fusion"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, run: Path, tiny_benchmark: Path
) -> dict[str, str]:
    """A folder with a gallery and whatever is broken."""
    tmp = tmp_path_factory.mktemp("galleries")
    photos = tmp / "photos"
    photos.mkdir()
    for path in sorted((tiny_benchmark / "imgs/bounding_box_test").iterdir())[:3]:
        shutil.copy(path, photos)
    texts = {
        "column.csv": "path,cam\na.jpg,1\n", "nopath.csv": "person\nann\n", "empty.csv": "path\n",
        "time.csv": "path,time\na.jpg,noon\n", "twice.csv": "path\na.jpg\na.jpg\n",
        "short.csv": "path,person\na.jpg\n", "bad.jpg": "no picture",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp / name).write_text(text)
    (tmp / "void").mkdir()
    shutil.copytree(run, tmp / "other")
    recipe = (tmp / "other/config.yaml").read_text()
    (tmp / "other/config.yaml").write_text(recipe.replace("face_weight: 0.5", "face_weight: 0.4"))
    add(tmp / "people", photos, run)
    for name in ("hollow", "torn"):
        shutil.copytree(tmp / "people", tmp / name)
    Gallery(tmp / "hollow").remove(Filter(), [photos])
    break_table(tmp / "torn")
    shutil.copytree(tmp / "people", tmp / "moved")
    record = json.loads((tmp / "moved/gallery.json").read_text())
    (tmp / "moved/gallery.json").write_text(json.dumps(record | {"student": f"{tmp}/no"}))
    (tmp / "damaged").mkdir()
    (tmp / "damaged/gallery.json").write_text('{"format": 1}')
    query = str(next(photos.iterdir()))
    return {"tmp": str(tmp), "photos": str(photos), "query": query, "run": str(run),
            "people": str(tmp / "people")}  # fmt: skip


def add(folder: Path, photos: Path, run: Path) -> None:
    from deskpro.pipeline.gallery_cli import gallery

    gallery.main(["add", str(folder), str(photos), "--student", str(run)], standalone_mode=False)


def files(folder: str) -> dict[str, bytes]:
    found = (path for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path): path.read_bytes() for path in found}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_input_is_one_message_and_changes_nothing(
    what: str, place: dict[str, str], command: Callable[..., Result]
) -> None:
    words, expected = (text.format(**place) for text in BAD[what])
    before = files(place["tmp"])
    result = command("gallery", *words.split())
    assert (result.code, result.out) == (2, ""), result.err
    assert expected in " ".join(result.err.split()), result.err
    assert "Traceback" not in result.err
    assert files(place["tmp"]) == before


def test_without_the_database_its_extra_is_named(
    place: dict[str, str], command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    result = command("gallery", "info", place["people"])
    assert result.code == 2
    assert "[gallery]" in result.err


# Killed, and two at a time


SLOWLY = """
import sys
from deskpro.pipeline import cli
from deskpro.stages.serving import gallery
gallery.COMMIT = 1
sys.argv = ["deskpro", *sys.argv[1:]]
cli.main()
"""


def start(*words: str) -> subprocess.Popen[str]:
    """`deskpro gallery …` in a process of its own that writes each picture by itself."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "gallery", *words], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def require_whole(folder: Path, encoder: Encoder) -> int:
    """Every picture that is in is in once, with the vectors that the encoder gives."""
    if not folder.exists():
        return 0
    found = Gallery(folder)
    rows = found.table.read((*FACTS, *found.table.parts))
    assert len({*rows["path"]}) == len(rows["path"])
    if rows["path"]:
        expected = describe(encoder, [Picture(Path(path)) for path in rows["path"]])
        for name, part in encoder.parts.items():
            np.testing.assert_allclose(rows[name], expected.vectors[:, part], atol=1e-3)
    assert found.check() == []
    return len(rows["path"])


def kill_while_adding(folder: Path, run: Path, photos: Path, commits: int, after: float) -> None:
    """Kill the command so many seconds after it has written so many pictures."""
    adding = start("add", str(folder), str(photos), "--student", str(run))
    versions = folder / "pictures.lance/_versions"

    def seen() -> set[str]:
        return {p.name for p in versions.glob("*.manifest")} if versions.exists() else set()

    before, end = seen(), time.monotonic() + 60
    while len(seen() - before) < commits + (not before) and adding.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    time.sleep(after)
    adding.send_signal(signal.SIGKILL)
    adding.communicate()


@pytest.mark.slow
def test_killed_while_adding_the_same_command_completes(
    run: Path, photos: Path, command: Callable[..., Result]
) -> None:
    folder, encoder = photos.parent / "killed", Encoder.load(run, "cpu")
    kill_while_adding(folder, run, photos, 2, 0.004)
    assert 2 <= require_whole(folder, encoder) < len([*photos.iterdir()])
    assert command("gallery", "add", str(folder), str(photos), "--student", str(run)).code == 0
    assert require_whole(folder, encoder) == len([*photos.iterdir()])


@pytest.mark.slow
def test_killed_at_twenty_moments_every_picture_is_whole_or_absent(run: Path, photos: Path) -> None:
    folder, encoder = photos.parent / "killed", Encoder.load(run, "cpu")
    total, counts = len([*photos.iterdir()]), [0]
    for i in range(20):
        if counts[-1] == total:
            shutil.rmtree(folder)
        kill_while_adding(folder, run, photos, i % 4, 0.002 * i)
        counts.append(require_whole(folder, encoder))
    assert len({*counts}) > 4, counts
    start("add", str(folder), str(photos), "--student", str(run)).communicate()
    assert require_whole(folder, encoder) == total


def test_two_at_once_the_second_is_told_who_has_it(
    run: Path, photos: Path, command: Callable[..., Result]
) -> None:
    folder = photos.parent / "shared"
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from deskpro.cache.lock import hold\n"
        "with hold(Path(sys.argv[1]), 'gallery add'):\n    print('held', flush=True)\n"
        "    time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        result = command("gallery", "add", str(folder), str(photos), "--student", str(run))
    finally:
        holder.kill()
        holder.communicate()
    assert result.code == 2
    assert f"in use by process {holder.pid}" in result.err
    assert not folder.exists()


def test_an_encoder_of_other_weights_is_refused_by_both_names(place: dict[str, str]) -> None:
    found = Gallery(Path(place["people"]))
    other: dict[str, Any] = found.encoder | {"digest": "f" * 64, "weights": {}}
    with pytest.raises(InputError, match=rf"{found.encoder['digest'][:12]}.*ffffffffffff.*weights"):
        found.require(other, Path("other"))
