"""Targets of other programs: matched by path and view, stored beside the cache's own."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deskpro.cache.reader import MappedReader
from deskpro.cache.store import Group, TargetStore
from deskpro.cache.verify import verify
from deskpro.pipeline import config, students
from deskpro.pipeline.results_file import recipe_digest
from deskpro.stages import import_targets, render_views
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.loader import ImageDataset, images_of
from deskpro.stages.data.views import ERASED, ERASED_PIXEL, View, normalise
from deskpro.stages.targets import importing
from tests.conftest import Project
from tests.crash import crashes
from tests.test_cache import flip
from tests.test_readme import DOCUMENTS, blocks, section

Arrays = dict[str, Any]
OWN = "teachers/default/logits"


def store(project: Project) -> Path:
    return project.run / "targets.zarr"


def digests(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder but locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def save_npz(path: Path, arrays: Arrays) -> Path:
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


def save_zarr(version: Any) -> Callable[[Path, Arrays], Path]:
    def save(path: Path, arrays: Arrays) -> Path:
        group = zarr.open_group(path, mode="w", zarr_format=version)
        for name, values in arrays.items():
            array, text = np.asarray(values), np.asarray(values).dtype.kind == "U"
            made = group.create_array(
                name, shape=array.shape, dtype="str" if text else array.dtype, chunks=(
                    min(7, len(array)), *array.shape[1:])
            )  # fmt: skip
            made[...] = array.astype(object) if text else array
        return path

    return save


def save_parquet(path: Path, arrays: Arrays) -> Path:
    import pyarrow
    from pyarrow import parquet

    columns = {n: np.asarray(v).tolist() for n, v in arrays.items() if n != "classes"}
    table = pyarrow.table(columns)
    if "classes" in arrays:
        metadata = {"classes": json.dumps(np.asarray(arrays["classes"]).tolist())}
        table = table.replace_schema_metadata(metadata)
    parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=9)
    return path.with_suffix(".parquet")


SAVE = {
    "npz": save_npz, "zarr v2": save_zarr(2), "zarr v3": save_zarr(3), "parquet": save_parquet,
}  # fmt: skip


def imported(project: Project, file: Path, *options: str, name: str = "other") -> Any:
    words = ("cache", "import", str(file), "--teacher", name, "--run", str(project.run))
    return project.command(*words, *options)


def made_up(project: Project, *, views: int = 3, without: int = 0) -> Arrays:
    """Targets of every sample but the last ones, in a random order."""
    found = TargetStore(store(project))
    sample_ids = found.column("sample_id").tolist()
    classes = found.open(OWN).fingerprint["classes"]
    rng = np.random.default_rng(0)
    pairs = [(s, v) for s in range(len(sample_ids) - without) for v in range(views)]
    rng.shuffle(pairs)
    prefixes = ["", "./", "imgs/", "./imgs/"]
    return {
        "path": [prefixes[i % 4] + sample_ids[s] for i, (s, _) in enumerate(pairs)],
        "view": [v for _, v in pairs],
        "embedding": rng.normal(size=(len(pairs), 5)).astype(np.float32),
        "logits": rng.normal(size=(len(pairs), 2, len(classes))),
        "classes": rng.permutation(classes),
    }


def stored(project: Project, target: str, name: str = "other") -> tuple[MappedReader, np.ndarray]:
    reader = MappedReader(store(project), f"teachers/{name}/{target}")
    samples, views = reader.schema.samples, reader.schema.views
    rows, columns = np.divmod(np.arange(samples * views), views)
    values = reader.read(rows.tolist(), columns.tolist())[target]
    return reader, values.reshape(samples, views, *values.shape[1:])


@pytest.mark.finished("teacher-cache")
@pytest.mark.parametrize("kind", SAVE)
def test_targets_of_every_format_are_matched_by_path_and_view(
    kind: str, project: Project, tmp_path: Path
) -> None:
    arrays, before = made_up(project, without=2), digests(store(project))
    file = SAVE[kind](tmp_path / "mine", arrays)
    result = imported(project, file)
    assert result.code == 0, result.err
    assert "18 of 20; 2 have no target" in result.err
    after = digests(store(project))
    assert before.items() <= after.items()
    assert all(name.startswith("teachers/other/") for name in after.keys() - before.keys())

    found = TargetStore(store(project))
    sample_ids = found.column("sample_id").tolist()
    classes = found.open(OWN).fingerprint["classes"]
    (reader, embeddings), (other, logits) = (
        stored(project, name) for name in ("embedding", "logits")
    )
    assert embeddings.shape == (20, 3, 1, 5)
    assert logits.shape == (20, 3, 2, len(classes))
    assert reader.valid.tolist() == other.valid.tolist() == [True] * 18 + [False] * 2
    for row, path in enumerate(arrays["path"]):
        at = sample_ids.index(path.removeprefix("./").removeprefix("imgs/")), arrays["view"][row]
        assert embeddings[at][0].tolist() == arrays["embedding"][row].astype(np.float16).tolist()
        for i, name in enumerate(arrays["classes"]):
            value = arrays["logits"][row, :, i].astype(np.float16)
            assert logits[at][:, classes.index(name)].tolist() == value.tolist()
    assert not embeddings[18:].any()
    assert other.fingerprint["classes"] == classes
    assert other.fingerprint["teacher"]["name"] == "other"
    assert other.fingerprint["views"] == found.open(OWN).fingerprint["views"]

    assert not verify(store(project))
    shown = project.command("cache", "info", str(project.run))
    assert "other/logits" in shown.out
    assert "other/embedding: teacher" in shown.err
    assert project.command("cache", "verify", str(project.run)).code == 0
    again = imported(project, file)
    assert again.code == 0
    assert "was there" in again.err
    assert digests(store(project)) == after


@pytest.mark.finished("teacher-cache")
def test_without_views_targets_are_of_view_0_alone_and_that_is_said(
    project: Project, tmp_path: Path
) -> None:
    arrays = made_up(project, views=1)
    del arrays["view"], arrays["logits"], arrays["classes"]
    result = imported(project, save_npz(tmp_path / "mine", arrays))
    assert result.code == 0
    assert "warning: " in result.err
    assert "those of view 0, the plain image, alone" in result.err
    assert "3 views, other has targets of the first 1 alone" in result.err
    assert stored(project, "embedding")[1].shape == (20, 1, 1, 5)


@pytest.mark.finished("teacher-cache")
def test_without_views_a_cache_that_has_no_plain_view_is_left_as_it_is(
    project: Project, tmp_path: Path
) -> None:
    project.ok("teacher-cache", "--set", "cache.plain_view=false", "--force")
    arrays, before = made_up(project, views=1), digests(project.run)
    given = save_npz(tmp_path / "given", arrays)
    del arrays["view"]
    refused = imported(project, save_npz(tmp_path / "mine", arrays))
    assert refused.code == 2
    assert "view 0 of this cache is an augmented one" in refused.err
    assert digests(project.run) == before
    assert imported(project, given).code == 0


@pytest.mark.finished("teacher-cache")
def test_rows_that_are_not_valid_count_as_absent(project: Project, tmp_path: Path) -> None:
    arrays = made_up(project)
    first = arrays["path"][0].removeprefix("./").removeprefix("imgs/")
    lost = np.array([path.endswith(first) for path in arrays["path"]])
    arrays["embedding"][lost] = np.nan
    arrays["valid"] = ~lost
    assert imported(project, save_npz(tmp_path / "mine", arrays)).code == 0
    reader, values = stored(project, "embedding")
    sample = TargetStore(store(project)).column("sample_id").tolist().index(first)
    assert np.flatnonzero(~reader.valid).tolist() == [sample]
    assert np.isfinite(values).all()


@pytest.mark.finished("teacher-cache")
def test_other_targets_of_a_name_are_replaced_only_when_asked(
    project: Project, tmp_path: Path
) -> None:
    one = save_npz(tmp_path / "one", made_up(project))
    two = save_npz(tmp_path / "two", made_up(project, views=2))
    assert imported(project, one).code == 0
    before = digests(store(project))
    refused = imported(project, two)
    assert refused.code == 2
    assert "--force" in refused.err
    assert digests(store(project)) == before
    assert imported(project, two, name="another").code == 0
    assert imported(project, two, "--force").code == 0
    assert stored(project, "logits")[1].shape[1] == 2
    assert not verify(store(project))
    damaged = store(project) / "teachers/other/logits/index/zarr.json"
    damaged.write_text("{}")
    assert imported(project, two).code == 2
    assert imported(project, two, "--force").code == 0
    assert not verify(store(project))


@pytest.mark.finished("teacher-cache")
def test_results_are_of_the_targets_that_were_given(project: Project, tmp_path: Path) -> None:
    """Rows of a study are not taken for those of other targets of the same name."""
    options = config.override(config.load(project.config), {"teachers": {"other": {}}})
    own, later = RunFolder(project.run), RunFolder(tmp_path / "later", project.run)
    found = [students.given(options, own)]
    assert found == [{}]
    for number in (1, 2):
        arrays = made_up(project)
        arrays["embedding"] *= number
        assert imported(project, save_npz(tmp_path / f"{number}", arrays), "--force").code == 0
        assert students.given(options, own) == students.given(options, own)
        found.append(students.given(options, own))
    assert found[1].keys() == {"other/embedding", "other/logits"}
    assert students.given(options, later).keys() == {*found[1], "teacher"}
    assert len({recipe_digest(options, each) for each in found}) == 3
    assert recipe_digest(options, {}) == recipe_digest(options)


@pytest.mark.finished("teacher-cache")
def test_a_damaged_chunk_is_imported_again_by_force(project: Project, tmp_path: Path) -> None:
    file = save_npz(tmp_path / "mine", made_up(project))
    assert imported(project, file).code == 0
    before = digests(store(project))
    flip(next((store(project) / "teachers/other/logits/logits").glob("c.0.1.*")), 5)
    assert verify(store(project))
    assert imported(project, file, "--force").code == 0
    assert digests(store(project)) == before


@pytest.mark.finished("teacher-cache")
def test_hashes_are_compared_with_the_cache_or_with_the_files(
    project: Project, tmp_path: Path
) -> None:
    arrays = made_up(project)
    below = [path.removeprefix("./").removeprefix("imgs/") for path in arrays["path"]]
    for key, folder in {"sha256": "imgs", "hr_face_sha256": "hr_face"}.items():
        images = [project.data / folder / path for path in below]
        arrays[key] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in images]
    result = imported(project, save_npz(tmp_path / "mine", arrays))
    assert result.code == 0, result.err
    assert "imgs_sha256, hr_face_sha256" in result.err
    depends = Group.load(store(project) / "teachers/other/embedding").depends
    assert depends == ["sample_id", "views", "imgs_sha256", "hr_face_sha256"]
    for key in ("sha256", "hr_face_sha256"):
        wrong = arrays | {key: [*arrays[key][:-1], "0" * 64]}
        refused = imported(project, save_npz(tmp_path / key, wrong), name="another")
        assert refused.code == 2
        assert f"{key} of 1 rows is that of another image: {below[-1]}" in refused.err


@pytest.mark.finished("teacher-cache")
def test_without_logits_of_its_own_a_cache_has_its_identities_sorted(
    project: Project, tmp_path: Path
) -> None:
    file = save_npz(tmp_path / "mine", made_up(project))
    shutil.rmtree(store(project) / "teachers")
    assert imported(project, file).code == 0
    classes = stored(project, "logits")[0].fingerprint["classes"]
    assert classes == sorted(classes)
    alone = tmp_path / "alone.zarr"  # a store without its run folder can't tell
    shutil.copytree(store(project), alone)
    shutil.rmtree(alone / "teachers")
    refused = project.command("cache", "import", str(file), "--teacher", "a", "--run", str(alone))
    assert refused.code == 2
    assert "does not name its identities" in refused.err


@pytest.mark.finished("teacher-cache")
def test_more_views_of_the_cache_leave_imported_targets_as_they_are(
    project: Project, tmp_path: Path
) -> None:
    assert imported(project, save_npz(tmp_path / "mine", made_up(project))).code == 0
    assert "is fresh" in project.ok("teacher-cache").err
    before = digests(store(project) / "teachers/other")
    project.ok("teacher-cache", "--set", "cache.views=4")
    assert digests(store(project) / "teachers/other") == before
    assert stored(project, "embedding")[1].shape[1] == 3
    assert not verify(store(project))


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
@pytest.mark.parametrize(
    "case",
    ["new", "two targets", "replaced"],
)
def test_at_every_crash_point_the_same_import_ends_with_the_same_bytes(
    case: str, project: Project, tmp_path: Path
) -> None:
    arrays, force = made_up(project, views=1), case == "replaced"
    if case == "new":
        del arrays["logits"], arrays["classes"]
    file = save_npz(tmp_path / "mine", arrays)
    if force:
        other = save_npz(tmp_path / "other", arrays | {"embedding": arrays["embedding"] + 1})
        assert imported(project, other).code == 0
    for group in ("masks", "teachers/default/embedding"):  # as little as there can be to copy
        shutil.rmtree(store(project) / group)
    start, wanted, path = store(project), tmp_path / "wanted", tmp_path / "crashed"
    shutil.copytree(start, wanted)
    shutil.copytree(start, path)

    def call(root: Path = path) -> None:
        import_targets.run(file, "other", root, None, force=force)

    def reset() -> None:
        shutil.rmtree(path / "teachers/other", ignore_errors=True)
        if force:
            shutil.copytree(start / "teachers/other", path / "teachers/other")

    own = {n: d for n, d in digests(start).items() if not n.startswith("teachers/other/")}
    call(wanted)
    expected, points = digests(wanted), 0
    for points in crashes(reset, call, path):
        assert own.items() <= digests(path).items()
        MappedReader(path, OWN)
        call()
        assert digests(path) == expected, points
    assert points > 15


@pytest.mark.finished("teacher-cache")
def test_parquet_names_its_extra_where_pyarrow_is_missing(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_parquet(tmp_path / "mine", made_up(project))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    result = imported(project, file)
    assert result.code == 2
    assert "pip install '.[parquet]'" in result.err
    assert "Traceback" not in result.err


def test_lists_of_parquet_become_axes() -> None:
    import pyarrow as pa

    from deskpro.stages.base.foreign import _from_arrow

    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    flat = pa.array(values.ravel())
    pairs = pa.FixedSizeListArray.from_arrays(flat, 2)
    columns = {
        "lists": pa.array(values.tolist(), pa.list_(pa.list_(pa.float16()))),
        "large lists": pa.array(values.tolist(), pa.large_list(pa.large_list(pa.float64()))),
        "lists of a fixed size": pa.FixedSizeListArray.from_arrays(pairs, 3),
        "tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(values),
    }
    for name, column in columns.items():
        for chunks in ([column], [column[:1], column[1:]]):
            assert np.array_equal(_from_arrow("embedding", chunks), values), name
    names = pa.array(["a", "b", "a"])
    for column in (names, names.dictionary_encode(), names.cast(pa.large_string())):
        assert _from_arrow("path", [column]).tolist() == ["a", "b", "a"]
    numbers = pa.array([True, False])
    assert _from_arrow("valid", [numbers]).tolist() == [True, False]


PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3), st.booleans()), min_size=1)


@given(PAIRS)
def test_rows_are_placed_or_refused_as_brute_force_says(pairs: list[tuple[int, int, bool]]) -> None:
    """Of 4 samples and 3 views."""
    samples, view, valid = map(np.array, zip(*pairs, strict=True))
    has = {(s, v): row for row, (s, v, ok) in enumerate(pairs) if ok}
    width = max((v for _, v in has), default=-1) + 1
    per_sample = [{v for s, v in has if s == sample} for sample in range(4)]
    good = (
        all(0 <= v < 3 for _, v, _ in pairs)
        and len({(s, v) for s, v, _ in pairs}) == len(pairs)
        and width > 0
        and all(views in (set(), set(range(width))) for views in per_sample)
    )
    arrays = {"view": view, "valid": valid}
    if not good:
        with pytest.raises(InputError):
            importing.place_rows(arrays, samples, list("abcd"), 3)
        return
    found = importing.place_rows(arrays, samples, list("abcd"), 3)
    assert found.tolist() == [[has.get((s, v), -1) for v in range(width)] for s in range(4)]


@given(st.lists(st.floats(width=32), min_size=1, max_size=5))
def test_what_float16_cannot_hold_is_refused(numbers: list[float]) -> None:
    values = np.array([numbers], np.float32)
    fits = np.isfinite(values).all() and (np.abs(values) <= 65504).all()
    if not fits:
        with pytest.raises(InputError, match=r"of a\.jpg"):
            importing.as_stored("embedding", {"embedding": values}, ["a.jpg"])
        return
    found = importing.as_stored("embedding", {"embedding": values}, ["a.jpg"])
    assert np.array_equal(found, values.astype(np.float16)[:, None])


# The views that other programs see


@pytest.mark.finished("teacher-cache")
def test_the_numbers_of_views_are_exported_exactly(project: Project, tmp_path: Path) -> None:
    file = tmp_path / "views.csv"
    assert project.command("cache", "views", str(project.run), "--csv", str(file)).code == 0
    rows = [*csv.DictReader(file.open())]
    views = TargetStore(store(project)).column("views")
    sample_ids = TargetStore(store(project)).column("sample_id").tolist()
    assert [(row["sample_id"], int(row["view"])) for row in rows] == [
        (sample_id, view) for sample_id in sample_ids for view in range(3)
    ]
    found = np.array([[row[name] for name in View._fields] for row in rows]).astype(np.float32)
    assert np.array_equal(found.reshape(views.shape), views)


@pytest.mark.finished("teacher-cache")
def test_rendered_images_are_those_that_a_teacher_sees(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "rendered"
    words = ["cache", "render", str(project.run), str(out), "--kinds", "hr_face,imgs,mask"]
    result = project.command(*words, "--views", "2,0")
    assert result.code == 0, result.err
    options, rows = config.load(project.config), [*csv.DictReader((out / "views.csv").open())]
    assert len(rows) == 3 * 20 * 2
    assert {row["file"] for row in rows} | {"views.csv"} == digests(out).keys()
    root = TargetStore(store(project))
    sample_ids, views = root.column("sample_id").tolist(), root.column("views")
    here = render_views._images(options, sample_ids)
    sizes = {"hr_face": (32, 32), "imgs": (64, 32), "mask": (64, 32)}
    images = ImageDataset(here, sizes, lambda row, view: views[row, view])
    erased = 0
    for row in rows:
        assert Path(row["sample_id"]).name.startswith(row["pid"] + "_")
        kind, sample, view = row["kind"], sample_ids.index(row["sample_id"]), int(row["view"])
        source = (project.data / kind / row["sample_id"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(source).hexdigest()
        with Image.open(out / row["file"]) as image:
            found = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        batch = images.__getitems__([(sample, view)])
        if kind == "mask":
            assert torch.equal(found, batch[kind])
            continue
        seen = images_of(batch, kind, torch.device("cpu"))
        filled = (seen == torch.tensor(ERASED).view(3, 1, 1)).all(dim=1, keepdim=True)
        erased += int(filled.sum())
        assert torch.equal(torch.where(filled, seen, normalise(found)), seen)
        assert torch.equal(torch.where(filled, found, batch[kind]), found)
    assert erased
    fill = normalise(torch.tensor(ERASED_PIXEL, dtype=torch.uint8).view(1, 3, 1, 1)).flatten()
    step = 1 / (255 * torch.tensor([0.229, 0.224, 0.225]))
    assert ((fill - torch.tensor(ERASED)).abs() <= step / 2).all()

    assert project.command(*words).code == 2  # it is not empty
    small = project.command(*words[:3], str(tmp_path / "small"), "--size", "24x16", "--views", "0")
    assert small.code == 0
    with Image.open(next((tmp_path / "small/hr_face/0").rglob("*.png"))) as image:
        assert image.size == (16, 24)


@pytest.mark.finished("teacher-cache")
def test_images_that_changed_since_or_are_gone_are_not_rendered(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / "rendered", ("cache", "render", str(project.run))
    face = sorted((project.data / "hr_face/bounding_box_train").iterdir())[3]
    content = face.read_bytes()
    for change in (lambda: face.write_bytes(content + b"\0"), face.unlink):
        change()
        result = project.command(*words, str(out))
        assert result.code == 2
        assert f"bounding_box_train/{face.name}: not the image" in result.err
        assert not out.exists()
    face.write_bytes(content)

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(render_views, "write_text", full)
    assert project.command(*words, str(out)).code == 2
    assert not [path for path in tmp_path.iterdir() if "rendered" in path.name]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--kinds", "face"], "'face' must be one of imgs"),
        (["--kinds", ","], "at least one"),
        (["--views", "3"], "which has 0 to 2"),
        (["--views", "1;2"], "must be numbers"),
        (["--views", "-1"], "must be numbers"),
        (["--size", "64"], "HEIGHTxWIDTH"),
        (["--size", "0x64"], "HEIGHTxWIDTH"),
    ],
)
@pytest.mark.finished("teacher-cache")
def test_bad_options_of_render_are_one_message(
    options: list[str], expected: str, project: Project, tmp_path: Path
) -> None:
    out = tmp_path / "rendered"
    result = project.command("cache", "render", str(project.run), str(out), *options)
    assert result.code == 2
    assert expected in result.err
    assert "Traceback" not in result.err
    assert not out.exists()


@pytest.mark.finished("teacher-cache")
def test_the_loop_of_the_documentation_runs(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = section("Targets of any other program", DOCUMENTS["cache/README.md"])
    (loop,) = blocks("python", text)
    assert len(loop.splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    project.run.rename(tmp_path / "runs/demo")
    lines = [
        line.partition("#")[0].split()[1:]
        for block in blocks("sh", text)
        for line in block.splitlines()
    ]
    render = next(line for line in lines if line[1] == "render")
    take = next(line for line in lines if line[1] == "import")
    assert project.command(*render).code == 0
    exec(loop, {})
    result = project.command(*take)
    assert result.code == 0, result.err
    assert "warning" not in result.err
    assert "20 of 20; 0 have no target" in result.err
