"""The cache: one contract for both readers, chunks that are there or aren't, every crash point."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import platform
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deskpro.cache.errors import CacheError
from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import below, write_aside, write_bytes, writing
from deskpro.cache.fingerprint import (
    differences,
    sample_differences,
)
from deskpro.cache.journal import Journal
from deskpro.cache.lock import hold
from deskpro.cache.reader import MappedReader, TargetReader, ZarrReader, all_bytes, read_all
from deskpro.cache.schema import ChunkKey, Column, Field, Schema
from deskpro.cache.sealed import checked
from deskpro.cache.store import TargetStore
from deskpro.cache.verify import verify
from deskpro.cache.writer import GroupWriter
from tests.conftest import slow
from tests.crash import crash_at, crashes

GROUP, OTHER = "teachers/one/logits", "masks/attention"
SCHEMA = Schema(
    samples=11,
    views=3,
    block=4,
    fields={
        "logits": Field((2, 5), "float16", ("head", "class"), "1", "of the teacher"),
        "attention": Field((1, 2, 2), "uint8", ("channel", "height", "width"), "1/255", "where"),
        "pixels": Field((), "uint64", (), "1", "a hash"),
    },
)
SMALL = Schema(5, 2, 3, {"logits": Field((2,), "float16", ("class",), "1", "of the teacher")})
FINGERPRINT = {"teacher": {"weights": "abc"}, "classes": ["1", "10"], "size": [64, 32]}
OTHER_SIZE = FINGERPRINT | {"size": [1, 1]}

Columns = dict[str, Column]


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests wait for no disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def columns(schema: Schema = SCHEMA, changed: tuple[int, ...] = ()) -> Columns:
    """Of any number of views and samples the first are the same; changed: samples with other
    content."""
    count = schema.samples
    views = np.random.default_rng(1).random((64, 8, 4)).astype(np.float32)
    content = np.arange(count * 4, dtype=np.uint8).reshape(count, 4)
    content[list(changed)] += 100
    names = np.asarray([f"train/{i}.jpg" for i in range(count)], object)
    return {
        "sample_id": Column(names, ("sample",), "1", "path"),
        "label": Column(np.arange(count) % 3, ("sample",), "1", "class index"),
        "views": Column(
            views[:count, : schema.views], ("sample", "view", "parameter"), "1", "fractions"
        ),
        "content": Column(content, ("sample", "byte"), "1", "hash"),
    }


def targets(
    schema: Schema = SCHEMA, known: Columns | None = None, fingerprint: Any = FINGERPRINT
) -> dict[str, np.ndarray]:
    """What a teacher of this fingerprint gives: of each sample and view, by its columns alone."""
    known = known or columns(schema)
    found = {n: np.empty((schema.samples, schema.views, *f.shape), f.dtype)
             for n, f in schema.fields.items()}  # fmt: skip
    for sample in range(schema.samples):
        for view in range(schema.views):
            seen = known["sample_id"].values[sample], known["content"].values[sample].tolist()
            text = json.dumps([seen, known["views"].values[sample, view].tolist(), fingerprint])
            rng = np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16))
            for name, field in schema.fields.items():
                found[name][sample, view] = rng.integers(0, 200, field.shape).astype(field.dtype)
    return found


def open_writer(
    path: Path,
    fingerprint: dict[str, Any] = FINGERPRINT,
    schema: Schema = SCHEMA,
    known: Columns | None = None,
    group: str = GROUP,
    **options: Any,
) -> GroupWriter:
    depends = options.pop("depends", ["sample_id", "views", "content"])
    known = known or columns(schema)
    return GroupWriter(path, group, schema, known, fingerprint, depends=depends, **options)


def write_block(made: GroupWriter, block: int, values: dict[str, np.ndarray]) -> None:
    rows, views = made.schema.rows(block), made.missing[block]
    part = {name: array[rows][:, views] for name, array in values.items()}
    made.write(block, part, {view: {"kl": view} for view in views})


def build(
    path: Path,
    fingerprint: dict[str, Any] = FINGERPRINT,
    schema: Schema = SCHEMA,
    known: Columns | None = None,
    only: int | None = None,
    **options: Any,
) -> None:
    """Write what is missing and seal; only: so many blocks, unsealed."""
    with open_writer(path, fingerprint, schema, known, **options) as made:
        values = targets(schema, known, fingerprint)
        for block in [*made.missing][:only]:
            write_block(made, block, values)
        if only is None:
            made.seal()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "targets.zarr"
    build(path)
    return path


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A finished store that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "targets.zarr"))


def content(path: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path below a folder."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def chunk_file(path: Path, name: str, block: int, view: int, schema: Schema = SCHEMA) -> Path:
    return schema.chunk_file(path / GROUP, name, block, view)


def missing(path: Path, **options: Any) -> dict[int, list[int]]:
    with open_writer(path, **options) as made:
        return made.missing


READERS = [MappedReader, ZarrReader]
ALL = {block: [0, 1, 2] for block in range(3)}


@pytest.mark.parametrize("kind", READERS)
class TestEveryReader:
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(pairs=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 2)), max_size=12))
    def test_gives_the_targets_of_any_pairs(
        self, kind: Any, built: Path, pairs: list[tuple[int, int]]
    ) -> None:
        samples, views = [s for s, _ in pairs], [v for _, v in pairs]
        read = kind(built, GROUP).read(samples, views)
        for name, array in targets().items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array[samples, views])

    def test_gives_what_is_known_of_samples_and_chunks(self, kind: Any, built: Path) -> None:
        reader: TargetReader = kind(built, GROUP)
        assert reader.columns == [*columns()]
        for name, column in columns().items():
            assert reader.column(name).tolist() == column.values.tolist()
        assert reader.fingerprint == FINGERPRINT
        assert reader.schema == SCHEMA
        assert reader.valid.tolist() == [True] * 11
        assert [*reader.records] == [*SCHEMA.chunk_keys()]
        assert reader.records[(2, 1)].facts == {"kl": 1}  # type: ignore[index]

    @pytest.mark.parametrize("pair", [(11, 0), (-1, 0), (0, 3), (0, -1)])
    def test_refuses_a_pair_outside(self, kind: Any, built: Path, pair: tuple[int, int]) -> None:
        out = {"pixels": np.zeros(1, np.uint64)}
        for memory in (None, out):
            with pytest.raises(IndexError):
                kind(built, GROUP, ["pixels"]).read([pair[0]], [pair[1]], memory)

    def test_fills_the_memory_that_it_is_given(self, kind: Any, built: Path) -> None:
        reader = kind(built, GROUP, ["attention"])
        out = {"attention": np.zeros((2, 1, 2, 2), np.uint8)}
        assert reader.read([10, 3], [0, 2], out) is out
        np.testing.assert_array_equal(out["attention"], targets()["attention"][[10, 3], [0, 2]])
        assert list(reader.schema.fields) == ["attention"]

    def test_gives_whole_chunks_and_whole_arrays(self, kind: Any, built: Path) -> None:
        reader = kind(built, GROUP)
        np.testing.assert_array_equal(reader.chunk("logits", 2, 1), targets()["logits"][8:, 1])
        assert all_bytes(reader) == sum(array.nbytes for array in targets().values())
        for name, array in targets().items():
            np.testing.assert_array_equal(read_all(reader, name), array)

    def test_gives_memory_of_its_own(self, kind: Any, built: Path) -> None:
        reader = kind(built, GROUP)
        reader.read([0], [0])["logits"][:] = 0
        np.testing.assert_array_equal(reader.read([0], [0])["logits"], targets()["logits"][0, :1])

    def test_finds_a_damaged_chunk_and_names_the_file(self, kind: Any, store: Path) -> None:
        flip(chunk_file(store, "logits", 1, 2), 57)
        reader = kind(store, GROUP)
        reader.read([0, 9], [2, 2])
        with pytest.raises(CacheError, match=str(chunk_file(store, "logits", 1, 2))):
            reader.read([4], [2])

    def test_refuses_an_unfinished_group_and_reads_its_chunks_if_asked(
        self, kind: Any, tmp_path: Path
    ) -> None:
        build(tmp_path / "targets.zarr", only=2)
        with pytest.raises(CacheError, match="not finished"):
            kind(tmp_path / "targets.zarr", GROUP)
        reader = kind(tmp_path / "targets.zarr", GROUP, unfinished=True)
        assert {key.block for key in reader.records} == {0, 1}
        np.testing.assert_array_equal(reader.chunk("logits", 1, 2), targets()["logits"][4:8, 2])

    def test_refuses_a_group_whose_columns_have_changed(self, kind: Any, store: Path) -> None:
        known = columns(changed=(5,))
        build(store, known=known, group=OTHER, replace=True)
        with pytest.raises(CacheError, match=r"blocks \[1\] were made from other images"):
            kind(store, GROUP)
        assert {k.block for k in kind(store, GROUP, unfinished=True).records} == {0, 2}

    @pytest.mark.parametrize("gone", ["label/c.0", "sample_id/c.0", "views/c.0.0.0"])
    def test_refuses_zeros_for_a_column_that_is_gone(
        self, kind: Any, gone: str, store: Path
    ) -> None:
        (store / gone).unlink()
        with pytest.raises(CacheError, match="the file is gone"):
            kind(store, GROUP).column(gone.split("/")[0])
        shutil.rmtree(store / GROUP / "logits")
        with pytest.raises(CacheError, match=r"logits.zarr.json: damaged \(the file is gone"):
            kind(store, GROUP)

    def test_refuses_what_is_no_cache(self, kind: Any, store: Path, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match="no target cache here"):
            kind(tmp_path / "nothing", GROUP)
        with pytest.raises(CacheError, match="no such targets here"):
            kind(store, "teachers/two/logits")
        zarr.create_group(tmp_path / "other.zarr")
        with pytest.raises(CacheError, match="not a target cache"):
            kind(tmp_path / "other.zarr", GROUP)


@pytest.mark.parametrize(
    ("kind", "method"),
    # zarr keeps an event loop of its own, which doesn't survive a fork; the mapped reader does.
    [(MappedReader, "fork"), (MappedReader, "spawn"), (ZarrReader, "spawn")],
)
def test_a_reader_works_in_another_process(kind: Any, method: str, built: Path) -> None:
    reader = kind(built, GROUP)
    reader.read([3], [1])
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.apply(_read_one, (reader,))
    np.testing.assert_array_equal(found, targets()["logits"][3, 1])


def _read_one(reader: TargetReader) -> np.ndarray:
    return reader.read([3], [1])["logits"][0]


def test_a_mapped_reader_pickles_without_its_maps(built: Path) -> None:
    reader = MappedReader(built, GROUP)
    reader.read([0, 5], [0, 1])
    assert len(pickle.dumps(reader)) < 6000


def test_a_mapped_reader_takes_no_chunk_for_another(store: Path) -> None:
    shutil.copy(chunk_file(store, "logits", 0, 0), chunk_file(store, "logits", 1, 0))
    [damage] = verify(store)
    assert (damage.block, damage.view) == (1, 0)
    assert "not the chunk of its record" in damage.what
    with pytest.raises(CacheError, match="not the chunk of its record"):
        MappedReader(store, GROUP).read([4], [0])


def test_a_truncated_empty_or_missing_chunk_is_damage(store: Path) -> None:
    cut = chunk_file(store, "logits", 0, 0)
    cut.write_bytes(cut.read_bytes()[:-1])
    chunk_file(store, "logits", 1, 0).write_bytes(b"")
    chunk_file(store, "logits", 2, 0).unlink()
    for sample in (0, 4, 8):
        with pytest.raises(CacheError, match=r"damaged \("):
            MappedReader(store, GROUP).read([sample], [0])


def test_more_chunks_than_files_may_be_open_are_read(tmp_path: Path) -> None:
    schema = replace(SMALL, samples=60, block=1, views=1)
    path = tmp_path / "targets.zarr"
    known = {"sample_id": Column(np.arange(60).astype(str).astype(object), ("sample",))}
    with open_writer(path, schema=schema, known=known, depends=["sample_id"]) as made:
        for block in made.missing:
            made.write(block, {"logits": np.full((1, 1, 2), block, np.float16)})
        made.seal()
    code = textwrap.dedent(f"""
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
        from pathlib import Path
        from deskpro.cache.reader import MappedReader
        reader = MappedReader(Path({str(path)!r}), {GROUP!r})
        for _ in range(2):
            assert (reader.read(range(60), [0] * 60)["logits"][:, 0] == range(60)).all()
        print("read")
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "read\n", done.stderr


def test_plain_zarr_and_xarray_open_the_store_without_a_warning(
    built: Path, recwarn: pytest.WarningsRecorder
) -> None:
    root = zarr.open_group(built, mode="r")
    group = root[GROUP]
    assert isinstance(group, zarr.Group)
    assert {name for name, _ in root.arrays()} == {*columns()}
    assert {name for name, _ in group.arrays()} == {*SCHEMA.fields, "valid"}
    for name, array in targets().items():
        np.testing.assert_array_equal(group[name][...], array)  # type: ignore[index]
        metadata = json.loads((built / GROUP / name / "zarr.json").read_text())
        assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "crc32c"]
    with xarray.open_zarr(built, consolidated=False) as dataset:
        assert dataset["sample_id"].values.tolist() == columns()["sample_id"].values.tolist()
        assert all(dataset[name].attrs["description"] for name in dataset.variables)
        assert dataset.attrs["description"]
    with xarray.open_zarr(built, group=GROUP, consolidated=False) as dataset:
        assert dataset.sizes["sample"] == 11
        assert dataset["logits"].dims == ("sample", "view", "head", "class")
        np.testing.assert_array_equal(dataset["attention"], targets()["attention"])
        assert dataset["attention"].attrs["units"] == "1/255"
    assert not recwarn.list


def test_zarr_writes_the_same_chunks(store: Path) -> None:
    """The last block, too, whose end is the fill value."""
    before = content(store)
    for name, array in targets().items():
        zarr.open_array(store / GROUP / name, mode="r+")[...] = array
    assert content(store) == before


# Writing


def test_a_group_is_finished_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    build(path, only=1)
    with open_writer(path) as made:
        with pytest.raises(CacheError, match=r"blocks \[1, 2\] are not written"):
            made.seal()
        assert not TargetStore(path).sealed(GROUP)
        for block in (1, 2):
            write_block(made, block, targets())
        made.seal()
    assert TargetStore(path).sealed(GROUP)
    assert not verify(path)
    with open_writer(path) as made:
        assert made.sealed
    assert {file.name for file in tmp_path.iterdir()} == {"targets.zarr", ".targets.zarr.lock"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v | {"logits": v["logits"].astype(np.float32)}, "logits is float32"),
        (lambda v: v | {"logits": v["logits"][:3]}, r"must be float16\[4, 3, 2, 5\]"),
        (lambda v: {"logits": v["logits"]}, "fields logits"),
    ],
)
def test_a_block_that_does_not_fit_is_refused_whole(
    change: Any, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "targets.zarr"
    with open_writer(path) as made:
        part = {name: array[:4] for name, array in targets().items()}
        with pytest.raises(CacheError, match=named):
            made.write(0, change(part))
    assert missing(path) == ALL


def test_nothing_is_written_before_the_first_block(store: Path) -> None:
    before = content(store)
    open_writer(store, OTHER_SIZE, replace=True).close()
    open_writer(store, schema=replace(SCHEMA, views=5)).close()
    assert content(store) == before


def test_an_unfinished_group_is_resumed_and_another_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    build(path, only=1)
    for options, difference in (
        ({"fingerprint": OTHER_SIZE}, "size was [64, 32], is [1, 1]"),
        ({"known": columns(changed=(2,))}, "content of train/2.jpg changed"),
        ({"schema": replace(SCHEMA, views=2)}, "views was 3, is 2"),
        ({"schema": replace(SCHEMA, block=5)}, "block was 4, is 5"),
    ):
        with pytest.raises(CacheError) as refused:
            open_writer(path, **options)  # type: ignore[arg-type]
        assert difference in str(refused.value)
    assert missing(path) == {1: [0, 1, 2], 2: [0, 1, 2]}
    assert missing(path, known=columns(changed=(9,))) == {1: [0, 1, 2], 2: [0, 1, 2]}
    assert missing(path, fingerprint=OTHER_SIZE, replace=True) == ALL
    more = {0: [3, 4], 1: [0, 1, 2, 3, 4], 2: [0, 1, 2, 3, 4]}
    assert missing(path, schema=replace(SCHEMA, views=5)) == more


def test_what_no_option_touches_is_not_lost_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    build(path, only=2)
    build(path, OTHER_SIZE, only=1, replace=True)
    assert missing(path, replace=True) == {0: [0, 1, 2], 2: [0, 1, 2]}


def inodes(path: Path, schema: Schema = SCHEMA) -> dict[tuple[str, int, int], int]:
    keys = [(name, *key) for name in schema.fields for key in schema.chunk_keys()]
    return {key: chunk_file(path, *key).stat().st_ino for key in keys}


def test_more_views_leave_the_others_untouched(store: Path, tmp_path: Path) -> None:
    before, wider = inodes(store), replace(SCHEMA, views=5)
    reader = MappedReader(store, GROUP)
    assert missing(store, schema=wider) == {block: [3, 4] for block in range(3)}
    build(store, schema=wider)
    after = inodes(store, wider)
    assert {key: after[key] for key in before} == before
    build(tmp_path / "fresh.zarr", schema=wider)
    assert content(store) == content(tmp_path / "fresh.zarr")
    reader.read([*range(11)], [2] * 11)  # who reads the earlier views goes on


def test_only_the_blocks_of_changed_samples_are_computed(store: Path, tmp_path: Path) -> None:
    before, known = inodes(store), columns(changed=(5,))
    reader = MappedReader(store, GROUP)
    reader.read([5], [1])
    build(store, known=known, replace=True)
    after = inodes(store)
    assert {key[1] for key in before if before[key] != after[key]} == {1}
    build(tmp_path / "fresh.zarr", known=known)
    assert content(store) == content(tmp_path / "fresh.zarr")
    np.testing.assert_array_equal(reader.read([5], [1])["logits"], targets()["logits"][[5], 1])
    with pytest.raises(CacheError, match="not the chunk of its record"):
        reader.read([5], [2])  # it is another's now


def test_a_group_depends_on_its_columns_alone(store: Path) -> None:
    build(store, group=OTHER, depends=["views"])
    before = content(store / OTHER)
    known = columns(changed=(5,))
    assert missing(store, known=known, group=OTHER, depends=["views"], replace=True) == {}
    build(store, known=known, replace=True)
    assert content(store / OTHER) == before
    MappedReader(store, OTHER)
    assert TargetStore(store).groups() == [OTHER, GROUP]
    assert not verify(store)


def test_a_group_does_not_lie_in_another(store: Path) -> None:
    for group in ("teachers", "teachers/one", f"{GROUP}/more"):
        with pytest.raises(CacheError, match="cannot be nested"):
            open_writer(store, group=group, replace=True)


def test_groups_have_numbers_of_views_of_their_own(store: Path) -> None:
    build(store, schema=replace(SCHEMA, views=2), group=OTHER)
    assert TargetStore(store).column("views").shape[1] == 3
    build(store, schema=replace(SCHEMA, views=6), group=OTHER)
    assert TargetStore(store).column("views").shape[1] == 6
    assert missing(store) == {}
    for group, views in ((GROUP, 3), (OTHER, 6)):
        assert MappedReader(store, group).schema.views == views


def test_samples_without_targets_are_named_and_others_kept(store: Path) -> None:
    valid = np.ones(11, bool)
    valid[9] = False
    build(store, valid=valid, replace=True, only=0)
    with open_writer(store, valid=valid, replace=True) as made:
        assert made.missing == {2: [0, 1, 2]}
        write_block(made, 2, targets())
        made.seal()
    assert MappedReader(store, GROUP).valid.tolist() == valid.tolist()


def test_chunks_are_kept_only_where_they_may_be(store: Path) -> None:
    for options in (
        {"fingerprint": OTHER_SIZE},
        {"reuse": False},
        {"schema": replace(SCHEMA, block=5)},
    ):
        with open_writer(store, replace=True, **options) as made:  # type: ignore[arg-type]
            assert made.there == 0
            assert not made.sealed


def test_without_reuse_only_what_was_computed_since_is_kept(store: Path) -> None:
    before = content(store)
    build(store, reuse=False, only=1)
    assert missing(store, reuse=False) == {1: [0, 1, 2], 2: [0, 1, 2]}
    assert missing(store) == {}
    build(store, reuse=False)
    assert content(store) == before


def test_a_damaged_chunk_is_computed_again_and_the_rest_kept(store: Path) -> None:
    before = content(store)
    flip(chunk_file(store, "attention", 2, 1), 3)
    assert missing(store) == {}
    assert missing(store, replace=True) == {2: [1]}
    chunk_file(store, "pixels", 0, 0).unlink()
    assert missing(store) == {0: [0]}
    build(store, replace=True)
    assert content(store) == before


def test_damaged_metadata_are_refused_and_replaced_if_asked(store: Path) -> None:
    before = content(store)
    for name in ("zarr.json", "label/c.0", f"{GROUP}/zarr.json", f"{GROUP}/logits/zarr.json",
                 "index/zarr.json", f"{GROUP}/index/zarr.json"):  # fmt: skip
        flip(store / name, 99)
        with pytest.raises(CacheError, match="damaged"):
            MappedReader(store, GROUP).column("label")
        build(store, replace=True)
        assert content(store) == before, name


def test_a_chunk_that_is_not_that_of_its_record_is_found_before_sealing(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    build(path, only=2)
    chunk = chunk_file(path, "logits", 0, 0)
    with open_writer(path) as made:
        shutil.copy(chunk_file(path, "logits", 1, 0), chunk)  # of the same size
        write_block(made, 2, targets())
        with pytest.raises(CacheError, match=f"{chunk}: damaged"):
            made.seal()
    assert missing(path) == {0: [0]}
    build(path)
    assert not verify(path)


def test_a_chunk_without_a_record_and_a_record_without_a_chunk_do_not_count(
    tmp_path: Path,
) -> None:
    path = tmp_path / "targets.zarr"
    build(path, only=1)
    chunk_file(path, "logits", 1, 0).write_bytes(b"half")
    chunk_file(path, "logits", 0, 2).unlink()  # as a power cut may do
    assert missing(path) == {0: [2], 1: [0, 1, 2], 2: [0, 1, 2]}
    build(path)
    assert not verify(path)


def test_old_formats_and_other_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    old = {"format": 2, "samples": 1}
    zarr.create_group(tmp_path / "old.zarr", attributes={"target_cache": old})
    zarr.create_group(tmp_path / "foreign.zarr")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "half.zarr.partial").mkdir()
    for name, message in (
        ("old.zarr", "cache format 2, this version reads format 3"),
        ("foreign.zarr", "not a target cache"),
        ("notes", "not a target cache"),
        ("half.zarr", "unfinished cache of an earlier format"),
    ):
        before = content(tmp_path / name)
        for options in ({}, {"replace": True}):
            with pytest.raises(CacheError, match=message) as refused:
                open_writer(tmp_path / name, **options)  # type: ignore[arg-type]
            assert "\n" not in str(refused.value)
        assert content(tmp_path / name) == before
    with pytest.raises(CacheError, match="cache format 2"):
        MappedReader(tmp_path / "old.zarr", GROUP)


CHOICE = st.fixed_dictionaries(
    {
        "samples": st.sampled_from([4, 5, 7]),
        "views": st.integers(1, 3),
        "changed": st.sets(st.integers(0, 3), max_size=2),
        "size": st.integers(0, 1),
        "only": st.sampled_from([None, None, 0, 1, 2]),
        "group": st.sampled_from([GROUP, OTHER]),
        "reuse": st.booleans(),
    }
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture],
          max_examples=25)  # fmt: skip
@given(history=st.lists(CHOICE, min_size=1, max_size=5))
def test_whatever_the_history_a_finished_group_is_what_its_options_say(
    tmp_path_factory: pytest.TempPathFactory, history: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("history") / "targets.zarr"
    for choice in [*history, history[-1] | {"only": None}]:
        schema = replace(SMALL, samples=choice["samples"], views=choice["views"])
        known = columns(schema, tuple(choice["changed"]))
        made_of = {"size": choice["size"]}
        build(path, made_of, schema, known, choice["only"], group=choice["group"], replace=True,
              reuse=choice["reuse"])  # fmt: skip
    if choice["only"] is None:
        reader = MappedReader(path, choice["group"])
        samples, views = np.indices((schema.samples, schema.views)).reshape(2, -1)
        read = reader.read(samples.tolist(), views.tolist())["logits"]
        wanted = targets(schema, known, made_of)["logits"]
        np.testing.assert_array_equal(read, wanted[samples, views])
        assert all(damage.what == "not finished" for damage in verify(path))
    shutil.rmtree(path.parent)


# Crashes and other processes

SCENARIOS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "a new store": (lambda path: None, lambda path: build(path, schema=SMALL)),
    "more views": (
        lambda path: build(path, schema=SMALL),
        lambda path: build(path, schema=replace(SMALL, views=3)),
    ),
    "a changed image": (
        lambda path: (build(path, schema=SMALL),
                      build(path, schema=SMALL, group=OTHER, depends=["views"]))[0],
        lambda path: build(path, schema=SMALL, known=columns(SMALL, (1,)), replace=True),
    ),
    "fewer samples and views": (
        lambda path: build(path, schema=SMALL),
        lambda path: build(path, schema=replace(SMALL, samples=3, views=1), replace=True),
    ),
    "everything again": (
        lambda path: build(path, schema=SMALL),
        lambda path: build(path, schema=SMALL, reuse=False),
    ),
}  # fmt: skip
QUICK = "fewer samples and views"
"""It writes, and removes what was there."""


@pytest.mark.parametrize("scenario", [QUICK, *slow(*(name for name in SCENARIOS if name != QUICK))])
def test_at_every_crash_point_the_same_call_ends_with_the_same_bytes(
    scenario: str, tmp_path: Path
) -> None:
    before, call = SCENARIOS[scenario]
    start, wanted, path = (tmp_path / name for name in ("start", "wanted", "crashed"))
    for root in (start, wanted):
        before(root)
    call(wanted)
    states = {_state(start), _state(wanted)}

    def reset() -> None:
        shutil.rmtree(path, ignore_errors=True)
        if start.exists():
            shutil.copytree(start, path)

    points = 0
    for points in crashes(reset, lambda: call(path), tmp_path):
        assert _state(path) in states | {None}  # what counts as finished is one or the other
        _inspect(path)
        journal = path / GROUP / "index" / "journal.jsonl"
        if journal.exists():
            with journal.open("a") as file:
                file.write('{"block": 0, "vi')
        call(path)
        assert content(path) == content(wanted), points
    assert points > 15


def _state(path: Path) -> str | None:
    """What a reader of a finished group gets; None where it is not finished."""
    try:
        reader = MappedReader(path, GROUP)
    except CacheError:
        return None
    chunks = [reader.chunk("logits", *key).tolist() for key in reader.schema.chunk_keys()]
    return json.dumps([reader.schema.samples, reader.schema.views, chunks])


def _inspect(path: Path) -> None:
    """Read all that has a record, as `cache info` does; a root that is not finished is said so."""
    if not (path / "index" / "zarr.json").exists():
        with pytest.raises(CacheError, match=r"not finished|no target cache here"):
            TargetStore(path)
        return
    store = TargetStore(path)
    assert len(store.column("label")) == store.samples
    for group in store.groups():
        reader = MappedReader(path, group, unfinished=True)
        for key in reader.records:
            reader.chunk("logits", *key)


CHILD = textwrap.dedent("""
    import sys
    from pathlib import Path
    from tests.test_cache import build, open_writer
    path = Path(sys.argv[1])
    with open_writer(path):
        print("open", flush=True)
        sys.stdin.readline()
    build(path)
""")


def test_a_second_writer_is_refused_by_name_until_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(CacheError, match=rf"in use by process {child.pid} on .* since .*"
                                             rf"\(writing {GROUP}\)"):  # fmt: skip
            open_writer(path)
        child.kill()
    assert missing(path) == ALL


@pytest.mark.parametrize("before", ["", '{"pid": 0', "an ended process", "this process"])
def test_who_has_a_lock_is_named_though_it_writes_its_name_later(
    before: str, tmp_path: Path
) -> None:
    """Between taking the lock and writing the name, the file has what an earlier holder left."""
    file = tmp_path / ".run.lock"
    ended = subprocess.Popen(["true"])
    ended.wait()
    pid = {"an ended process": ended.pid, "this process": os.getpid()}.get(before)
    holder = {"host": platform.node(), "since": "today", "what": "eval"}
    file.write_text(before if pid is None else json.dumps(holder | {"pid": pid}))
    with subprocess.Popen([sys.executable, "-c", """
import fcntl, sys
with open(sys.argv[1], "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("taken", flush=True)
    sys.stdin.readline()
""", str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == b"taken\n"
        writes = threading.Timer(
            0.1, lambda: file.write_text(json.dumps(holder | {"pid": child.pid}))
        )
        writes.start()
        named = f"in use by process {child.pid} on "
        with pytest.raises(CacheError, match=named), hold(tmp_path / "run", "eval"):
            pass
        writes.join()
        child.kill()


def test_a_folder_has_one_lock_by_whatever_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path / "run")
    for name in ("", "../link", "../run/../link"):
        with hold(Path(name), "eval"):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"run", "link", ".run.lock"}
    assert not [*(tmp_path / "run").iterdir()]


def test_a_lock_is_reentrant_and_not_inherited(tmp_path: Path) -> None:
    path = tmp_path / "run"
    code = f"""
import sys
from pathlib import Path
from deskpro.cache.lock import hold
with hold(Path({str(path)!r}), "test"):
    print("free")
"""

    def another() -> bool:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout or "CacheError" in done.stderr
        return bool(done.stdout)

    holder = os.fork()
    if not holder:  # a process that dies with a child, such as a loader's worker
        with hold(path, "outer"), hold(path, "inner"):
            pass
        lock = hold(path, "again")
        lock.__enter__()
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        (tmp_path / "child").write_text(str(child))
        time.sleep(60)
        os._exit(0)
    while not ((tmp_path / "child").exists() and (tmp_path / "child").read_text()):
        time.sleep(0.01)
    assert not another()
    os.kill(holder, 9)
    os.waitpid(holder, 0)
    assert another()
    os.kill(int((tmp_path / "child").read_text()), 9)


# Damage


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file, in place."""
    damaged = bytearray(path.read_bytes())
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)


def read_everything(path: Path) -> None:
    store = TargetStore(path)
    for name in store.columns:
        store.column(name)
    for group in store.groups():
        reader = MappedReader(path, group)
        for name in reader.schema.fields:
            for key in reader.schema.chunk_keys():
                reader.chunk(name, *key)


@pytest.mark.slow
def test_a_flipped_bit_of_any_file_is_found(store: Path) -> None:
    random = np.random.default_rng(0)
    assert not verify(store)
    for file in sorted(file for file in store.rglob("*") if file.is_file()):
        for _ in range(3):
            bit = int(random.integers(8 * file.stat().st_size))
            flip(file, bit)
            assert file in {damage.file for damage in verify(store)}, (file, bit)
            if file.parent.name not in ("teachers", "one"):  # no reader needs those
                with pytest.raises(CacheError):
                    read_everything(store)
            flip(file, bit)
    assert not verify(store)


def test_missing_and_unknown_files_are_named(store: Path) -> None:
    build(store, group=OTHER, only=1)
    chunk_file(store, "logits", 2, 0).unlink()
    (store / "label" / "zarr.json").unlink()
    (store / GROUP / "logits" / "notes.txt").write_text("mine")
    found = {str(d.file.relative_to(store)): (d.what, d.block) for d in verify(store)}
    assert found == {
        f"{GROUP}/logits/c.2.0.0.0": ("the file is gone", 2),
        "label/zarr.json": ("the file is gone", None),
        f"{GROUP}/logits/notes.txt": ("not a file of this store", None),
        OTHER: ("not finished", None),
    }


@pytest.mark.parametrize("stripped", ["", GROUP])
def test_a_seal_that_was_removed_is_damage_and_an_unfinished_store_is_not(
    stripped: str, store: Path, tmp_path: Path
) -> None:
    shutil.rmtree(store / stripped / "index")
    found = {(damage.file, damage.what) for damage in verify(store)}
    assert (store / stripped / "index" / "zarr.json", "the file is gone") in found
    build(store)
    assert not verify(store)
    begun = tmp_path / "begun.zarr"
    build(begun, only=1)
    assert [(d.file, d.what) for d in verify(begun)] == [(begun / GROUP, "not finished")]


def test_a_root_that_is_being_changed_is_unfinished_and_not_damaged(store: Path) -> None:
    more, unsealed = replace(SCHEMA, views=SCHEMA.views + 1), 0
    for point in range(12):
        crash_at(point, lambda: build(store, schema=more), store.parent)
        if not (store / "index" / "zarr.json").exists():
            unsealed += 1
            with pytest.raises(CacheError, match="not finished"):
                verify(store)
    assert unsealed
    build(store, schema=more)
    assert not verify(store)


def test_a_block_that_changed_before_the_build_was_resumed_is_computed_again(
    tmp_path: Path,
) -> None:
    path, wanted = tmp_path / "targets.zarr", tmp_path / "wanted.zarr"
    build(path, only=2)
    build(wanted)
    assert missing(path) == {2: [0, 1, 2]}
    flip(chunk_file(path, "logits", 1, 2), 8)
    assert missing(path) == {1: [2], 2: [0, 1, 2]}
    journal = path / GROUP / "index" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    for wrong in ('{"block": "../x", "view": 0, "key": "a", "crc": {}}\n', '{"key": 1}\n'):
        journal.write_text("".join([wrong, *lines]))
        assert missing(path) == {1: [2], 2: [0, 1, 2]}
    build(path)
    assert content(path) == content(wanted)


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "..", ""])
def test_no_name_in_a_journal_or_seal_leads_out_of_the_store(name: str, store: Path) -> None:
    with pytest.raises(ValueError, match="no name of a field"):
        Schema.from_json({"samples": 1, "views": 1, "block": 1, "fields": {name: {}}})
    for key in ({"block": name, "view": 0}, {"block": -1, "view": 0}, {"view": True, "block": 0}):
        with pytest.raises(ValueError, match="no block"):
            ChunkKey.from_json(key)
    with pytest.raises(CacheError, match="lies outside of"):
        checked(store, f"../{name}", {})


def test_no_link_in_a_store_leads_out_of_it(store: Path) -> None:
    outside = Path(shutil.copytree(store / GROUP / "logits", store.parent / "outside"))
    for place in (store / GROUP / "logits", store / "label"):
        shutil.rmtree(place)
        place.symlink_to(outside)
    (store / "loop").symlink_to(store)
    with pytest.raises(CacheError, match="lies outside of"):
        MappedReader(store, GROUP)
    with pytest.raises(CacheError, match="lies outside of"):
        TargetStore(store).column("label")
    assert TargetStore(store).groups() == [GROUP]
    found = [damage.file for damage in verify(store)]
    for place in (store / "loop", store / "label", store / GROUP / "logits"):
        assert any(file.is_relative_to(place) for file in found)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS])
def test_a_refused_write_names_its_file_and_leaves_nothing(number: int, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"before")

    def save(aside: Path) -> None:  # as torch.save does
        aside.write_bytes(b"half")
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            raise RuntimeError("unexpected pos 4864 vs 4784")  # noqa: B904

    with pytest.raises(OSError) as found, write_aside(path) as aside:
        save(aside)
    assert (found.value.errno, found.value.filename) == (number, str(path))
    assert path.read_bytes() == b"before"
    with pytest.raises(OSError) as found, writing(path):
        (tmp_path / "absent").read_bytes()
    assert found.value.filename == str(tmp_path / "absent")  # of another file: as it was
    with pytest.raises(RuntimeError), writing(path):
        raise RuntimeError("of the program")
    assert [file.name for file in tmp_path.iterdir()] == ["file.bin"]


# Fingerprints


def test_differences_are_named_field_by_field() -> None:
    wanted = {"teacher": {"weights": "xyz"}, "classes": ("1", "10"), "precision": "float32"}
    assert differences(FINGERPRINT, wanted, ["size"]) == [
        "teacher.weights was abc, is xyz",
        "precision is float32, the cache has no record of it",
    ]
    assert not differences(FINGERPRINT, FINGERPRINT)


def test_what_only_one_of_two_fingerprints_has_is_a_difference_unless_it_is_unknown() -> None:
    sealed = {"teacher": {"weights": "abc", "checkpoints": ["def"]}, "mirror": True}
    wanted = {"teacher": {"weights": "abc"}}
    found = differences(sealed, wanted)
    assert found == [
        "teacher.checkpoints was ['def'], is not set", "mirror was True, is not set"]  # fmt: skip
    assert differences(sealed, wanted, ["mirror"]) == found[:1]
    assert not differences(sealed, {"mirror": True}, ["teacher"])


def test_samples_that_differ_are_named() -> None:
    def known(names: str, digests: list[int]) -> dict[str, np.ndarray]:
        return {"sample_id": np.asarray(list(names), object), "sha": np.asarray(digests)}

    sealed = known("abcdefgh", [1, 2, 3, 4, 5, 6, 7, 8])
    assert not sample_differences(sealed, sealed)
    found = sample_differences(sealed, known("abcdefgx", [1, 9, 3, 4, 5, 6, 7, 8]))
    assert found == ["h gone", "x new", "sha of b changed"]
    found = sample_differences(sealed, known("bacdefgh", [2, 1, 3, 4, 5, 6, 7, 8]))
    assert found == ["the order of the samples has changed"]
    found = sample_differences(sealed, known("abcdefgh", [0] * 8))
    assert found == ["sha of a, b, c, d, e and 3 more changed"]
    assert len(sample_differences(known("", []), sealed)) == 1


# Files, journals and the file index


def test_what_is_written_aside_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_bytes(path, b"one")
    with pytest.raises(FileNotFoundError), write_aside(path):
        pass
    assert path.read_bytes() == b"one"
    with write_aside(path) as aside, write_aside(path) as other:
        assert aside != other
        assert aside.suffix == ".txt"
        aside.write_bytes(b"three")
        other.write_bytes(b"four")
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_what_killed_processes_were_writing_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()

    def aside(node: str, pid: int, age: float = 0.0) -> Path:
        path = tmp_path / f".report.{node}.{pid}.0123abcd.partial.html"
        path.write_text("half")
        os.utime(path, (time.time() - age,) * 2)
        return path

    here = platform.node()
    gone = [aside(here, ended.pid), aside("elsewhere", 1, age=90_000)]
    kept = [aside(here, os.getpid()), aside(here, 1), aside("elsewhere", 2, age=3600)]
    mine = tmp_path / ".notes.partial.html"
    mine.write_text("a user's")
    write_bytes(tmp_path / "metrics.json", b"{}")
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in (*kept, mine))


@pytest.mark.parametrize("torn", ["", '{"a": ', "\n", '{"a": 9}', "12\n", "\0\0\0", '{"a": 1}]\n'])
def test_a_torn_journal_line_is_ignored_and_never_appended_to(torn: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.read() == []
    journal.append([{"a": 1}, {"a": "ü\n"}])
    with journal.path.open("a") as file:
        file.write(torn)
    assert Journal(journal.path).read() == [{"a": 1}, {"a": "ü\n"}]
    again = Journal(journal.path)
    again.append([{"a": 3}])
    again.append([{"a": 4}])
    assert Journal(journal.path).read() == [{"a": 1}, {"a": "ü\n"}, {"a": 3}, {"a": 4}]
    again.rewrite([{"b": 1}])
    again.append([{"b": 2}])
    assert again.read() == [{"b": 1}, {"b": 2}]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Files that changed a while ago; their size is in their content."""
    paths = [tmp_path / "images" / f"{i}.jpg" for i in range(4)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths):
        path.write_text(f"{i} {i + 1}")
    time.sleep(2.1)
    return paths


def test_without_a_home_the_index_is_in_memory_and_makes_no_folder(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DESKPRO_CACHE")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as homeless:
        homeless.setattr(os.path, "expanduser", lambda path: path)
        assert FileIndex().probe(images)[str(images[0])].sha256
    assert not (tmp_path / "~").exists()
    monkeypatch.setenv("DESKPRO_CACHE", ".")
    assert FileIndex().probe(images)[str(images[0])].sha256
    assert [*tmp_path.glob("files.*.sqlite")]


def test_a_home_that_may_not_be_read_costs_the_shortcut_alone(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    index = FileIndex(tmp_path / "locked")
    monkeypatch.setattr(Path, "exists", refuse)
    assert index.probe(images)[str(images[0])].sha256


def test_a_file_is_read_again_only_where_it_may_have_changed(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESKPRO_CACHE", str(tmp_path / "index"))
    read: list[str] = []

    def decode(path: Path) -> tuple[int, int, str | None]:
        read.append(path.name)
        width, height = path.read_text().split()
        return int(width), int(height), f"{width} wide"

    def probe(*, deep: bool = False) -> list[str]:
        """The files that were decoded; each is known as it is."""
        read.clear()
        done: list[int] = []
        found = FileIndex().probe([*images, images[0]], decode, deep, done.append)
        assert sum(done) == len(images)
        for path in images:
            text = path.read_bytes()
            facts = found[str(path)]
            assert facts.sha256 == hashlib.sha256(text).hexdigest()
            assert (facts.width, facts.height, facts.problem) == (*map(int, text.split()), None)
            assert facts.note == f"{facts.width} wide"
        return sorted(read)

    everything = ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert FileIndex().probe(images)[str(images[0])].width is None
    assert probe() == everything  # known by content only
    assert probe() == []
    assert probe(deep=True) == everything
    status = images[1].stat()
    images[1].write_text("7 8")  # of the same size and time
    os.utime(images[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    images[2].unlink()
    images[2].write_text("2 3")  # of the same content
    assert probe() == ["1.jpg", "2.jpg"]
    assert probe() == ["1.jpg", "2.jpg"]  # both are younger than 2 s
    monkeypatch.chdir(images[0].parent)
    read.clear()
    assert FileIndex().probe(["0.jpg"], decode)["0.jpg"].height == 1
    assert not read


def test_files_that_cannot_be_read_or_decoded_have_a_problem(
    images: list[Path], tmp_path: Path
) -> None:
    images[1].unlink()
    images[2].write_text("no image")

    def decode(path: Path) -> tuple[int, int, str | None]:
        width, height = path.read_text().split()
        return int(width), int(height), None

    for _ in range(2):
        found = FileIndex(tmp_path / "index").probe(images, decode)
        assert found[str(images[1])].sha256 == ""
        assert "No such file" in (found[str(images[1])].problem or "")
        assert "invalid literal" in (found[str(images[2])].problem or "")
        assert found[str(images[2])].sha256
        assert found[str(images[3])][1:] == (3, 4, None, None)


@pytest.mark.parametrize("trouble", ["broken", "locked", "unwritable"])
def test_an_index_that_cannot_be_used_costs_a_log_line_only(
    trouble: str,
    images: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    import sqlite3

    FileIndex(tmp_path / "index").probe(images)
    index = FileIndex(tmp_path / "index")
    if trouble == "broken":
        index.path.write_bytes(b"no database" * 100)
    elif trouble == "locked":
        other = sqlite3.connect(index.path)
        other.execute("BEGIN EXCLUSIVE")
    else:
        index = FileIndex(images[0])  # a file, so no folder
    count = 0

    def decode(path: Path) -> tuple[int, int, str | None]:
        nonlocal count
        count += 1
        return 1, 1, None

    for _ in range(2):
        assert index.probe(images, decode)[str(images[0])].width == 1
    assert [record.message.count("cannot be used") for record in caplog.records] == [1]
    assert not recwarn.list
    assert count == len(images)


def test_only_the_first_process_writes_the_index(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    index = FileIndex(tmp_path / "index")
    index.probe(images)
    assert not index.path.exists()


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "out/x", "a/out/x", "..", "a/..", ""]
)
def test_no_name_from_a_file_leads_out_of_its_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    for link in (folder / "out", folder / "a" / "out"):
        link.symlink_to(tmp_path)
    with pytest.raises(ValueError, match="lies outside of"):
        below(folder, name)
    assert below(folder, "a/x") == folder / "a" / "x"
    assert below(folder, "x") == folder / "x"
