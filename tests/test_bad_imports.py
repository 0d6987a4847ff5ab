"""A catalogue of files that can't be imported: exit code 2, one message, the cache as it was."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import zarr

from deskpro.cache.store import TargetStore
from tests.conftest import Result
from tests.test_import_targets import OWN, digests, save_npz, save_parquet, save_zarr

Arrays = dict[str, Any]
Make = Callable[[Path, Arrays], Path]
"""Writes a file at a path without a suffix, of arrays that are good; returns where it is."""


class Bad(NamedTuple):
    what: str
    expected: str
    """A part of the message."""
    change: Callable[[Arrays], Mapping[str, Any]] = lambda a: {}
    """What other arrays the file has; None for one that it lacks."""
    make: Make = save_npz
    name: str = "other"
    run: str = "{run}"


def first(values: Any, value: Any) -> Any:
    """An array whose first value is another."""
    found = np.array(values, copy=True)
    found.reshape(len(found), -1)[0, 0] = value
    return found


def text(array: Any, first: str) -> np.ndarray:
    return np.array([first, *array[1:]])


def renamed(name: str) -> Make:
    return lambda path, arrays: save_npz(path, arrays).rename(path.with_name(name))


def cut(path: Path, arrays: Arrays) -> Path:
    file = save_npz(path, arrays)
    file.write_bytes(file.read_bytes()[:-40])
    return file


def flipped(path: Path, arrays: Arrays) -> Path:
    """A byte inside of a member is another."""
    file = save_npz(path, arrays)
    content = bytearray(file.read_bytes())
    content[content.index(b"embedding.npy") + 400] ^= 255
    file.write_bytes(content)
    return file


def raw(content: bytes, name: str = "mine.npz") -> Make:
    def make(path: Path, arrays: Arrays) -> Path:
        path.with_name(name).write_bytes(content)
        return path.with_name(name)

    return make


def objects(path: Path, arrays: Arrays) -> Path:
    np.savez(path.with_suffix(".npz"), **{**arrays, "path": np.array(arrays["path"], object)})
    return path.with_suffix(".npz")


class Executed:
    """A pickle of it makes the file `executed`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def pickled(path: Path, arrays: Arrays) -> Path:
    path = path.with_suffix(".npz")
    np.savez(path, **{**arrays, "embedding": np.array([Executed()] * len(arrays["path"]), object)})
    return path


def bare_pickle(path: Path, arrays: Arrays) -> Path:
    np.array([Executed()], object).dump(path.with_suffix(".npz"))
    return path.with_suffix(".npz")


def zarr_pickle(path: Path, arrays: Arrays) -> Path:
    save_zarr(2)(path, arrays)
    metadata = path / "embedding/.zarray"
    metadata.write_text(
        metadata.read_text().replace('"filters": null', '"filters": [{"id": "\\u0070ickle"}]')
    )
    assert "0070" in metadata.read_text()
    return path


def zarr_without_chunk(path: Path, arrays: Arrays) -> Path:
    save_zarr(3)(path, arrays)
    next(file for file in (path / "embedding/c").rglob("*") if file.is_file()).unlink()
    return path


def zarr_damaged(path: Path, arrays: Arrays) -> Path:
    save_zarr(3)(path, arrays)
    next(file for file in (path / "embedding/c").rglob("*") if file.is_file()).write_bytes(b"x")
    return path


def zarr_linked(path: Path, arrays: Arrays) -> Path:
    save_zarr(3)(path, arrays)
    (path / "embedding").rename(path.with_name("elsewhere"))
    (path / "embedding").symlink_to(path.with_name("elsewhere"))
    return path


def folder(path: Path, arrays: Arrays) -> Path:
    path.mkdir()
    return path


def twice(path: Path, arrays: Arrays) -> Path:
    file = save_npz(path, arrays)
    with zipfile.ZipFile(file, "a") as opened, pytest.warns(match="Duplicate"):
        opened.writestr("embedding.npy", opened.read("embedding.npy"))
    return file


def ragged(path: Path, arrays: Arrays) -> Path:
    return save_parquet(path, arrays | {"embedding": np.array(
        [[1.0], *([[1.0, 2.0]] * (len(arrays["path"]) - 1))], object)})  # fmt: skip


def nulls(path: Path, arrays: Arrays) -> Path:
    return save_parquet(path, arrays | {"path": np.array([None, *arrays["path"][1:]], object)})


def bomb(path: Path, arrays: Arrays) -> Path:
    """The header of an array tells of more numbers than any memory has."""
    file = path.with_suffix(".npz")
    head = {"descr": "<f4", "fortran_order": False, "shape": (len(arrays["path"]), 2**50)}
    np.savez(file, **{name: v for name, v in arrays.items() if name != "embedding"})
    with zipfile.ZipFile(file, "a") as opened, opened.open("embedding.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, head)
    return file


def fifo(path: Path, arrays: Arrays) -> Path:
    os.mkfifo(path.with_suffix(".npz"))
    return path.with_suffix(".npz")


def missing(path: Path, arrays: Arrays) -> Path:
    return path.with_suffix(".npz")


A = "0" * 64
ROWS = [
    Bad("a row less of a target", "rows, path has 60", lambda a: {"embedding": a["embedding"][1:]}),
    Bad("a row more of views", "view has 61 rows", lambda a: {"view": [*a["view"], 0]}),
    Bad("zero rows", "path has no rows",
        lambda a: {n: np.asarray(v)[:0] for n, v in a.items() if n != "classes"}),
    Bad("one path for all", "path has no rows", lambda a: {"path": "0001_c1_0003.jpg"}),
    Bad("a path and view twice", "have several rows",
        lambda a: {name: [*a[name][:-1], a[name][0]] for name in ("path", "view")}),
    Bad("no view for several rows of a path", "have several rows", lambda a: {"view": None}),
    Bad("an unknown path", "1 of 60 paths are of no sample",
        lambda a: {"path": text(a["path"], "a.jpg")}),
    Bad("absolute paths", "60 of 60 paths are of no sample",
        lambda a: {"path": [f"/data/imgs/{p}" for p in a["path"]]}),
    Bad("a path of another case", "of no sample",
        lambda a: {"path": text(a["path"], a["path"][0].upper())}),
    Bad("paths that are numbers", "must be text", lambda a: {"path": np.arange(60)}),
    Bad("paths that are no UTF-8", "is not UTF-8", lambda a: {"path": np.array([b"\xff"] * 60)}),
    Bad("no path", "no path for each row; found", lambda a: {"path": None}),
    Bad("no target", "neither embedding nor logits; found path",
        lambda a: {"embedding": None, "logits": None, "features": a["embedding"]}),
    Bad("NaN", "has the value nan", lambda a: {"embedding": first(a["embedding"], np.nan)}),
    Bad("infinity", "has the value -inf", lambda a: {"logits": first(a["logits"], -np.inf)}),
    Bad("beyond float16", "up to ±65504", lambda a: {"logits": first(a["logits"], 7e4)}),
    Bad("a whole number beyond float16", "up to ±65504",
        lambda a: {"embedding": first(np.ones((60, 2), np.int64), 70_000)}),
    Bad("logits without classes", "logits need classes", lambda a: {"classes": None}),
    Bad("another identity", "classes lacks 1 of the cache's",
        lambda a: {"classes": text(a["classes"], "x")}),
    Bad("a class less", "names 3 identities, logits has 4",
        lambda a: {"classes": a["classes"][1:]}),
    Bad("a class and its logits less", "classes lacks 1",
        lambda a: {"classes": a["classes"][1:], "logits": a["logits"][..., 1:]}),
    Bad("an identity more", "1 identities that the cache lacks: x",
        lambda a: {"classes": [*a["classes"], "x"], "logits": np.ones((60, 5))}),
    Bad("a class twice", "several times",
        lambda a: {"classes": [*a["classes"][1:], a["classes"][1]]}),
    Bad("classes that are numbers", "classes is int64", lambda a: {"classes": np.arange(4)}),
    Bad("classes without leading zeros", "the cache names them as 00",
        lambda a: {"classes": [str(int(c)) for c in a["classes"]]}),
    Bad("a target of one axis", "must be [rows, numbers]",
        lambda a: {"embedding": a["embedding"][:, 0]}),
    Bad("a target of four axes", "must be [rows, numbers]",
        lambda a: {"logits": a["logits"][..., None]}),
    Bad("a target of no numbers", "holds no numbers",
        lambda a: {"embedding": a["embedding"][:, :0]}),
    Bad("views of two axes", "view has the shape", lambda a: {"view": np.zeros((60, 1), int)}),
    Bad("a negative view", "view -1 is none of the cache",
        lambda a: {"view": first(a["view"], -1)}),
    Bad("a view beyond the cache", "view 3 is none of the cache, which has 0 to 2",
        lambda a: {"view": first(a["view"], 3)}),
    Bad("views that are not whole", "view is float64",
        lambda a: {"view": np.array(a["view"], float)}),
    Bad("a view of a sample is missing", "1 views are missing",
        lambda a: {n: np.asarray(v)[1:] for n, v in a.items() if n != "classes"}),
    Bad("view 0 of all is missing", "20 views are missing",
        lambda a: {n: np.asarray(v)[np.array(a["view"]) > 0]
                   for n, v in a.items() if n != "classes"}),
    Bad("a view that is not valid", "1 views are missing",
        lambda a: {"valid": first([True] * 60, False)}),
    Bad("nothing is valid", "false in every row", lambda a: {"valid": [False] * 60}),
    Bad("valid as numbers", "must be booleans", lambda a: {"valid": [1] * 60}),
    Bad("numbers as text", "must be numbers", lambda a: {"embedding": a["embedding"].astype(str)}),
    Bad("complex numbers", "must be numbers or text", lambda a: {"embedding": a["embedding"] * 1j}),
    Bad("the hash of another file", "is that of another image",
        lambda a: {"hr_face_sha256": [A] * 60}),
    Bad("the hash of another body", "is that of another image", lambda a: {"sha256": [A] * 60}),
    Bad("a hash that is none", "has 64 hex digits", lambda a: {"sha256": ["d41d8"] * 60}),
    Bad("paths as objects", "never loaded", make=objects),
    Bad("a pickle in an array", "never loaded", make=pickled),
    Bad("a pickle alone", "not a zip archive", make=bare_pickle),
    Bad("a pickle as the filter of zarr", "never loaded", make=zarr_pickle),
    Bad("a truncated file", "can't be read", make=cut),
    Bad("a damaged file", "can't be read", make=flipped),
    Bad("an array twice", "embedding.npy twice", make=twice),
    Bad("more numbers than memory", "larger than the memory", make=bomb),
    Bad("no zip archive", "not a zip archive", make=raw(b"path,embedding\n")),
    Bad("an empty file", "not a zip archive", make=raw(b"")),
    Bad("another format", ".csv is no format", make=raw(b"path\n", "mine.csv")),
    Bad("no suffix", "no suffix is no format", make=renamed("mine")),
    Bad("another format than the suffix says", "can't be read", make=renamed("mine.parquet")),
    Bad("a file that is missing", "no such file", make=missing),
    Bad("a FIFO", "not a regular file", make=fifo),
    Bad("an empty folder", "a folder without arrays", make=folder),
    Bad("a store of zarr without a chunk", "chunks of embedding are there",
        make=zarr_without_chunk),
    Bad("a store of zarr with a damaged chunk", "can't be read", make=zarr_damaged),
    Bad("a store of zarr with a link", "is a link", make=zarr_linked),
    Bad("a column of several lengths", "several lengths", make=ragged),
    Bad("a column with nulls", "has nulls", make=nulls),
    Bad("the name of the cache's own teacher", "the cache's own teacher", name="default"),
    Bad("an empty name", "--teacher", name=""),
    Bad("a name with a slash", "--teacher", name="a/b"),
    Bad("a name that leads out", "--teacher", name=".."),
    Bad("a name with a line's end", "--teacher", name="a\n"),
    Bad("a name that begins with a dash", "--teacher", name="-a"),
    Bad("a name beyond ASCII", "--teacher", name="lehrerß"),
    Bad("a name that is too long", "too long", name="a" * 300),
    Bad("a run without a cache", "no target cache here", run="{tmp}/none"),
    Bad("a run that is a file", "is a file", run="{run}/config.yaml"),
]  # fmt: skip


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    finished_run: Callable[[str], Path],
) -> Path:
    """A run with a finished cache."""
    folder = tmp_path_factory.mktemp("imports")
    return Path(shutil.copytree(finished_run("teacher-cache"), folder / "run"))


@pytest.fixture(scope="module")
def good(run: Path) -> Arrays:
    """Arrays that can be imported: 20 samples, 3 views, 4 identities."""
    found = TargetStore(run / "targets.zarr")
    sample_ids, rng = found.column("sample_id").tolist(), np.random.default_rng(0)
    classes = found.open(OWN).fingerprint["classes"]
    return {
        "path": [sample_id for sample_id in sample_ids for _ in range(3)],
        "view": [*range(3)] * len(sample_ids),
        "embedding": rng.normal(size=(60, 6)),
        "logits": rng.normal(size=(60, 2, len(classes))),
        "classes": classes,
    }


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_a_bad_file_is_one_message_and_leaves_the_cache_as_it_was(
    row: Bad,
    run: Path,
    good: Arrays,
    tmp_path: Path,
    command: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {name: v for name, v in (good | row.change(good)).items() if v is not None}
    file, before = row.make(tmp_path / "mine", arrays), digests(run)
    where = row.run.format(run=run, tmp=tmp_path)
    result = command("cache", "import", str(file), "--teacher", row.name, "--run", where)
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert row.expected in result.err
    lines = result.err.splitlines()
    assert sum(line.startswith(("deskpro: ", "Error: ")) for line in lines) == 1
    assert digests(run) == before
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "none").exists()


def test_the_good_arrays_can_be_imported(
    run: Path, good: Arrays, tmp_path: Path, command: Callable[..., Result]
) -> None:
    file = save_npz(tmp_path / "mine", good)
    copied = shutil.copytree(run, tmp_path / "run")
    words = ("cache", "import", str(file), "--teacher", "other", "--run", str(copied))
    assert command(*words).code == 0


def test_a_cache_that_is_not_finished_is_refused(
    run: Path, good: Arrays, tmp_path: Path, command: Callable[..., Result]
) -> None:
    file, copied = save_npz(tmp_path / "mine", good), shutil.copytree(run, tmp_path / "run")
    (copied / "targets.zarr/index/zarr.json").unlink()
    before = digests(copied)
    result = command("cache", "import", str(file), "--teacher", "other", "--run", str(copied))
    assert result.code == 2
    assert "not finished" in result.err
    assert digests(copied) == before


@pytest.mark.parametrize("version", [2, 3])
def test_pickles_are_not_loaded_from_zarr_though_it_would(version: Any, tmp_path: Path) -> None:
    """Text of objects that zarr itself reads is read; only a pickle is not."""
    from deskpro.cache.foreign import read_array

    group = zarr.open_group(tmp_path / "mine", mode="w", zarr_format=version)
    group.create_array("path", shape=(2,), dtype="str")[...] = np.array(["a", "b"], object)
    assert read_array(tmp_path / "mine", "path").tolist() == ["a", "b"]
