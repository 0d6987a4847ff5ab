"""The target cache: one contract for both readers, blocks that are there or aren't, real kills."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
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
from deskpro.cache.fingerprint import differences, sample_differences
from deskpro.cache.reader import (
    MappedReader,
    TargetReader,
    ZarrReader,
    all_bytes,
    open_reader,
    read_all,
)
from deskpro.cache.schema import Column, Columns, Field, Schema, seal
from deskpro.cache.verify import verify
from deskpro.cache.writer import TargetWriter, Team

SCHEMA = Schema(
    samples=11,
    views=3,
    block=4,
    fields={
        "logits": Field((2, 5), "float16", ("head", "class"), "1", "what it says"),
        "attention": Field((1, 2, 2), "uint8", ("channel", "height", "width"), "1/255", "where"),
        "pixels": Field((), "uint64", (), "1", "a hash"),
    },
)
FINGERPRINT = {"teacher": {"weights": "abc"}, "classes": ["1", "10"], "size": [64, 32]}


def columns(schema: Schema = SCHEMA) -> Columns:
    """Of any number of views the first are the same."""
    count = schema.samples
    views = np.random.default_rng(1).random((count, 8, 4)).astype(np.float32)[:, : schema.views]
    return {
        "sample_id": Column(
            np.asarray([f"train/{i}.jpg" for i in range(count)], object), ("sample",), "1", "path"
        ),
        "label": Column(np.arange(count) % 3, ("sample",), "1", "class index"),
        "views": Column(views, ("sample", "view", "parameter"), "1", "fractions"),
        "content": Column(np.arange(count * 4, dtype=np.uint8).reshape(count, 4),
                          ("sample", "byte"), "1", "hash"),
    }  # fmt: skip


def changed(schema: Schema, name: str, row: int) -> Columns:
    """The columns with one value of one sample changed."""
    made = columns(schema)
    values = made[name].values.copy()
    values[row] = values[row] + 1
    return made | {name: replace(made[name], values=values)}


def targets(schema: Schema = SCHEMA, salt: int = 0) -> dict[str, np.ndarray]:
    """Of any number of views the first are the same; salt: of another content."""
    rng = np.random.default_rng(salt)
    shape = (schema.samples, 8)
    values = {
        "logits": rng.standard_normal((*shape, 2, 5)).astype(np.float16),
        "attention": rng.integers(0, 256, (*shape, 1, 2, 2)).astype(np.uint8),
        "pixels": rng.integers(0, 2**63, shape).astype(np.uint64),
    }
    return {name: array[:, : schema.views] for name, array in values.items()}


def writer(
    path: Path,
    fingerprint: dict[str, Any] = FINGERPRINT,
    schema: Schema = SCHEMA,
    known: Columns | None = None,
    **options: Any,
) -> TargetWriter:
    return TargetWriter(path, schema, known or columns(schema), fingerprint, **options)


def part(made: TargetWriter, block: int, salt: int = 0) -> dict[str, np.ndarray]:
    """What a block lacks."""
    rows, views = made.schema.rows(block), made.views(block)
    return {name: array[rows][:, views] for name, array in targets(made.schema, salt).items()}


def fill(made: TargetWriter, salt: int = 0) -> None:
    for block in made.mine:
        made.write(block, part(made, block, salt), {v: {"kl": v} for v in made.views(block)})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "targets.zarr"
    made = writer(path)
    fill(made)
    made.seal()
    return path


def content(path: Path) -> dict[str, str]:
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


READERS = [MappedReader, ZarrReader]


@pytest.mark.parametrize("kind", READERS)
class TestEveryReader:
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(pairs=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 2)), max_size=12))
    def test_gives_the_targets_of_any_pairs(
        self, kind: type[TargetReader], store: Path, pairs: list[tuple[int, int]]
    ) -> None:
        samples, views = [s for s, _ in pairs], [v for _, v in pairs]
        read = kind(store).read(samples, views)  # type: ignore[call-arg]
        for name, array in targets().items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array[samples, views])

    def test_gives_the_arrays_per_sample_and_the_fingerprint(
        self, kind: type[TargetReader], store: Path
    ) -> None:
        reader = kind(store)  # type: ignore[call-arg]
        assert reader.column("sample_id").tolist() == columns()["sample_id"].values.tolist()
        for name in ("label", "views", "content"):
            np.testing.assert_array_equal(reader.column(name), columns()[name].values)
        assert reader.fingerprint == FINGERPRINT
        assert reader.schema == SCHEMA

    @pytest.mark.parametrize("pair", [(11, 0), (-1, 0), (0, 3), (0, -1)])
    def test_refuses_what_is_not_there(
        self, kind: type[TargetReader], store: Path, pair: tuple[int, int]
    ) -> None:
        with pytest.raises(IndexError):
            kind(store).read([pair[0]], [pair[1]])  # type: ignore[call-arg]

    def test_fills_the_memory_that_it_is_given(self, kind: type[TargetReader], store: Path) -> None:
        reader = kind(store, ["attention"])  # type: ignore[call-arg]
        out = {"attention": np.zeros((2, 1, 2, 2), np.uint8)}
        assert reader.read([10, 3], [0, 2], out) is out
        np.testing.assert_array_equal(out["attention"], targets()["attention"][[10, 3], [0, 2]])
        assert list(reader.schema.fields) == ["attention"]

    def test_gives_whole_chunks_and_whole_arrays(
        self, kind: type[TargetReader], store: Path
    ) -> None:
        reader = kind(store)  # type: ignore[call-arg]
        np.testing.assert_array_equal(reader.chunk("logits", 2, 1), targets()["logits"][8:, 1])
        assert all_bytes(reader) == sum(array.nbytes for array in targets().values())
        for name, array in targets().items():
            out = np.empty_like(array)
            read_all(reader, name, out)
            np.testing.assert_array_equal(out, array)

    def test_does_not_take_one_chunk_for_another(
        self, kind: type[TargetReader], store: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "targets.zarr"
        shutil.copytree(store, path)
        shutil.copy(
            SCHEMA.chunk_file(path, "logits", 0, 0), SCHEMA.chunk_file(path, "logits", 1, 0)
        )
        [damage] = verify(path)
        assert (damage.block, damage.view) == (1, 0)
        assert "isn't the chunk that the ledger speaks of" in damage.what
        if kind is MappedReader:  # zarr alone can't know
            with pytest.raises(CacheError, match="isn't the chunk"):
                kind(path).read([4], [0])

    def test_gives_memory_of_its_own(self, kind: type[TargetReader], store: Path) -> None:
        reader = kind(store)  # type: ignore[call-arg]
        first = reader.read([0], [0])
        first["logits"][:] = 0
        np.testing.assert_array_equal(reader.read([0], [0])["logits"], targets()["logits"][0, :1])

    def test_sees_a_damaged_chunk_and_names_the_file(
        self, kind: type[TargetReader], store: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "targets.zarr"
        shutil.copytree(store, path)
        chunk = SCHEMA.chunk_file(path, "logits", 1, 2)
        damaged = bytearray(chunk.read_bytes())
        damaged[7] ^= 1
        chunk.write_bytes(damaged)
        reader = kind(path)  # type: ignore[call-arg]
        reader.read([0, 9], [2, 2])
        with pytest.raises(CacheError, match=str(chunk)):
            reader.read([4], [2])

    def test_refuses_an_unfinished_store(self, kind: type[TargetReader], tmp_path: Path) -> None:
        made = writer(tmp_path / "targets.zarr")
        fill(made)
        with pytest.raises(CacheError, match="not finished"):
            kind(made.root)  # type: ignore[call-arg]

    def test_refuses_a_folder_that_is_no_cache(
        self, kind: type[TargetReader], tmp_path: Path
    ) -> None:
        with pytest.raises(CacheError, match="no target cache here"):
            kind(tmp_path / "nothing")  # type: ignore[call-arg]
        zarr.create_group(tmp_path / "other.zarr")
        with pytest.raises(CacheError, match="not a target cache"):
            kind(tmp_path / "other.zarr")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "method"),
    # zarr keeps an event loop of its own, which doesn't survive a fork; the mapped reader does.
    [(MappedReader, "fork"), (MappedReader, "spawn"), (ZarrReader, "spawn")],
)
def test_a_reader_works_in_another_process(
    kind: type[TargetReader], method: str, store: Path
) -> None:
    reader = kind(store)  # type: ignore[call-arg]
    reader.read([3], [1])
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.apply(_read_one, (reader,))
    np.testing.assert_array_equal(found, targets()["logits"][3, 1])


def _read_one(reader: TargetReader) -> np.ndarray:
    return reader.read([3], [1])["logits"][0]


def test_a_second_writer_is_refused_by_name_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    first = writer(path)
    with pytest.raises(CacheError, match=f"process {os.getpid()} on .* is building it"):
        writer(path)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()  # as a loader's worker, which may outlive its parent
    first.close()
    assert writer(path).mine == [0, 1, 2]
    child.kill()


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("gone", ["label/c/0", "sample_id/c/0", "views/c/0/0/0"])
def test_a_lost_array_is_damage_and_never_zeros(
    kind: type[TargetReader], gone: str, store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    (path / gone).unlink()
    with pytest.raises(CacheError, match="the file is gone"):
        kind(path).column(gone.split("/")[0])  # type: ignore[call-arg]
    shutil.rmtree(path / "logits")
    with pytest.raises(CacheError, match=r"logits.zarr.json: damaged \(the file is gone"):
        kind(path)  # type: ignore[call-arg]


def test_a_truncated_or_missing_chunk_is_damaged(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    cut = SCHEMA.chunk_file(path, "logits", 0, 0)
    cut.write_bytes(cut.read_bytes()[:-1])
    SCHEMA.chunk_file(path, "attention", 1, 0).unlink()
    for sample in (0, 4):
        with pytest.raises(CacheError, match=r"damaged \("):
            open_reader(path).read([sample], [0])


def test_a_mapped_reader_pickles_without_its_maps(store: Path) -> None:
    reader = MappedReader(store)
    reader.read([0, 5], [0, 1])
    assert len(pickle.dumps(reader)) < 5000


def test_a_store_that_cannot_be_mapped_is_read_through_zarr(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    values = targets()
    group = zarr.open_group(path, mode="r+")
    for name, array in values.items():
        dims = ("sample", "view", *SCHEMA.fields[name].dims)
        group.create_array(
            name, data=array, chunks=(4, 1, *array.shape[2:]), overwrite=True, dimension_names=dims
        )
    entries = [entry.as_json() for entry in open_reader(store).ledger.values()]
    seal(path, entries)
    reader = open_reader(path)  # zstd now, as a later format might have it
    assert isinstance(reader, ZarrReader)
    np.testing.assert_array_equal(reader.read([5], [1])["logits"][0], values["logits"][5, 1])


def test_plain_zarr_opens_the_store_without_a_warning(
    store: Path, recwarn: pytest.WarningsRecorder
) -> None:
    group = zarr.open_group(store, mode="r")
    assert {name for name, _ in group.members()} == {*columns(), *SCHEMA.fields}
    for name, array in targets().items():
        np.testing.assert_array_equal(group[name][...], array)  # type: ignore[index]
        metadata = json.loads((store / name / "zarr.json").read_text())
        assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "crc32c"]
        assert metadata["dimension_names"][:2] == ["sample", "view"]
    assert not recwarn.list


def test_xarray_opens_the_store_and_knows_its_axes_and_units(
    store: Path, recwarn: pytest.WarningsRecorder
) -> None:
    with xarray.open_zarr(store, consolidated=False) as dataset:
        assert dataset.sizes["sample"] == 11
        assert dataset["logits"].dims == ("sample", "view", "head", "class")
        np.testing.assert_array_equal(dataset["logits"], targets()["logits"])
        np.testing.assert_array_equal(dataset["attention"], targets()["attention"])
        assert dataset["attention"].attrs["units"] == "1/255"
        for name in dataset.variables:
            assert dataset[name].attrs["description"], name
        assert dataset["sample_id"].values.tolist() == columns()["sample_id"].values.tolist()
        assert dataset.attrs["description"]
    assert not recwarn.list


def test_the_store_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    made = writer(path)
    made.write(0, part(made, 0))
    with pytest.raises(CacheError, match=r"blocks \[1, 2\] aren't written"):
        made.seal()
    assert not path.exists()
    for block in (1, 2):
        made.write(block, part(made, block))
    made.seal()
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
    made = writer(tmp_path / "targets.zarr")
    with pytest.raises(CacheError, match=named):
        made.write(0, change(part(made, 0)))
    made.close()
    assert writer(tmp_path / "targets.zarr").mine == [0, 1, 2]


def begun(path: Path) -> None:
    """An unfinished store of which one block is written."""
    made = writer(path)
    made.write(0, part(made, 0))
    made.close()


def test_an_unfinished_store_is_continued_and_another_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    begun(path)
    other = FINGERPRINT | {"size": [64, 64]}
    with pytest.raises(CacheError, match=r"size was \[64, 32\], is \[64, 64\]"):
        writer(path, other)
    with pytest.raises(CacheError, match=r"content of train/2\.jpg changed"):
        writer(path, known=changed(SCHEMA, "content", 2))
    with pytest.raises(CacheError, match="views was 3, is 2"):
        writer(path, schema=replace(SCHEMA, views=2))
    going_on = writer(path)
    assert going_on.mine == [1, 2]
    going_on.close()
    assert writer(path, other, replace=True).mine == [0, 1, 2]


def test_an_unfinished_store_goes_on_with_what_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    begun(path)
    made = writer(path, schema=replace(SCHEMA, views=5), known=None)
    assert made.views(0) == [3, 4]
    assert made.views(1) == [0, 1, 2, 3, 4]
    made.close()
    again = writer(path, known=changed(replace(SCHEMA, views=5), "content", 9),
                   schema=replace(SCHEMA, views=5))  # fmt: skip
    assert again.views(0) == [3, 4]  # block 2, which changed, was never written


def inodes(path: Path, schema: Schema) -> dict[tuple[str, int, int], int]:
    return {
        (name, *place): schema.chunk_file(path, name, *place).stat().st_ino
        for name in schema.fields
        for place in schema.places()
    }


def test_more_views_leave_the_old_ones_untouched(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    before = inodes(path, SCHEMA)
    wider = replace(SCHEMA, views=5)
    made = writer(path, schema=wider)
    assert [made.views(block) for block in made.mine] == [[3, 4]] * 3
    assert path.exists()  # readers of the old store go on until the new one is whole
    fill(made)
    made.seal()
    after = inodes(path, wider)
    assert {key: after[key] for key in before} == before
    fresh = writer(tmp_path / "fresh.zarr", schema=wider)
    fill(fresh)
    fresh.seal()
    assert content(path) == content(tmp_path / "fresh.zarr")
    assert {file.name for file in tmp_path.iterdir() if file.is_dir()} == {
        "targets.zarr", "fresh.zarr"}  # fmt: skip


def test_only_the_blocks_of_changed_samples_are_made_anew(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    before = inodes(path, SCHEMA)
    made = writer(path, known=changed(SCHEMA, "content", 5), replace=True)
    assert made.mine == [1]
    fill(made, salt=1)
    made.seal()
    after = inodes(path, SCHEMA)
    assert {key[1] for key in before if before[key] != after[key]} == {1}
    assert not verify(path)
    rows = open_reader(path).read([3, 5, 9], [1, 1, 1])["logits"]
    np.testing.assert_array_equal(rows[[0, 2]], targets()["logits"][[3, 9], 1])
    np.testing.assert_array_equal(rows[1], targets(salt=1)["logits"][5, 1])


def test_nothing_is_taken_over_where_it_may_not_be(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    for options in (
        {"fingerprint": FINGERPRINT | {"size": [1, 1]}},
        {"reuse": False},
        {"schema": replace(SCHEMA, block=5)},
    ):
        made = writer(path, replace=True, **options)
        assert made.there == 0
        made.close()


def test_a_damaged_block_is_made_anew_and_the_rest_kept(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    flip(SCHEMA.chunk_file(path, "attention", 2, 1), 3)
    made = writer(path)
    assert made.mine == [2]
    assert made.views(2) == [1]
    fill(made)
    made.seal()
    assert content(path) == content(store)


def test_taken_over_chunks_are_not_kept_where_all_is_to_be_made_anew(
    store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    made = writer(path, known=changed(SCHEMA, "content", 5), replace=True)
    assert made.mine == [1]
    made.close()
    made = writer(path, known=changed(SCHEMA, "content", 5), replace=True, reuse=False)
    assert made.mine == [0, 1, 2]
    made.write(0, part(made, 0))
    made.close()
    made = writer(path, known=changed(SCHEMA, "content", 5), replace=True, reuse=False)
    assert made.mine == [1, 2]  # what was computed is


def test_nothing_is_lost_on_the_way_through_other_options(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    made = writer(path)
    for block in (0, 1):
        made.write(block, part(made, block))
    made.close()
    writer(path, FINGERPRINT | {"size": [1, 1]}, replace=True).close()
    writer(path, schema=replace(SCHEMA, views=2), replace=True).close()
    assert writer(path, replace=True).mine == [2]


def test_a_finished_store_is_not_replaced_unasked(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    with pytest.raises(CacheError, match=r"was made otherwise: size was"):
        writer(path, FINGERPRINT | {"size": [1, 1]})
    assert content(path) == content(store)


def test_an_unfinished_store_that_cannot_be_read_is_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    begun(path)
    (path.with_name("targets.zarr.partial") / "label" / "c" / "0").unlink()
    with pytest.raises(CacheError, match=r"label.c.0: damaged"):
        writer(path)
    writer(path, replace=True).close()
    assert (path.with_name("targets.zarr.earlier.1") / "logits").is_dir()


def test_a_torn_ledger_line_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    begun(path)
    [ledger] = path.with_name("targets.zarr.partial").glob("ledger.*.jsonl")
    with ledger.open("a") as file:
        file.write('{"block": 1')
    again = writer(path)
    assert again.mine == [1, 2]
    fill(again)
    again.seal()
    np.testing.assert_array_equal(
        open_reader(path).read([5], [1])["logits"][0], targets()["logits"][5, 1]
    )


def test_what_the_ledger_does_not_list_is_swept_and_what_is_lost_is_not_believed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "targets.zarr"
    begun(path)
    root = path.with_name("targets.zarr.partial")
    half = SCHEMA.chunk_file(root, "logits", 1, 0)
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_bytes(b"half")
    SCHEMA.chunk_file(root, "logits", 0, 2).unlink()  # as a power cut may do
    made = writer(path)
    assert not half.exists()
    assert made.views(0) == [2]


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_makes_the_same_bytes(
    size: int, store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "targets.zarr"
    assert run_team(path, size) == [0] * size
    assert content(path) == content(store)


def test_a_process_that_would_build_another_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    assert run_team(path, 2, other=1) == [4, 3]
    assert not path.exists()


def test_what_a_process_of_an_earlier_builder_still_writes_is_nobodys(tmp_path: Path) -> None:
    """Its first process died and another recipe took the place; it doesn't know that yet."""
    path = tmp_path / "targets.zarr"
    begun(path)
    orphan = writer(path)
    orphan.close()  # as far as the lock goes, it is dead
    made = writer(path, FINGERPRINT | {"size": [1, 1]}, replace=True)
    for block in made.mine:
        made.write(block, part(made, block, salt=1))
    orphan.write(1, part(orphan, 1))
    with pytest.raises(CacheError, match=r"blocks \[1\] aren't written"):
        made.seal()
    made.close()
    again = writer(path, FINGERPRINT | {"size": [1, 1]})
    assert again.mine == [1]
    again.write(1, part(again, 1, salt=1))
    again.seal()
    rows = open_reader(path).read([*range(11)], [1] * 11)["logits"]
    np.testing.assert_array_equal(rows, targets(salt=1)["logits"][:, 1])


def run_team(path: Path, size: int, other: int | None = None) -> list[int | None]:
    """Build a store with several processes, one of them perhaps of another recipe: exit codes."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        told, barrier = manager.dict(), manager.Barrier(size)
        team = [
            context.Process(target=_member, args=(path, rank, size, told, barrier, rank == other))
            for rank in range(size)
        ]
        for member in team:
            member.start()
        for member in team:
            member.join(60)
        return [member.exitcode for member in team]


def _member(path: Path, rank: int, size: int, told: Any, barrier: Any, other: bool) -> None:
    def gather(value: Any) -> list[Any]:
        barrier.wait()
        told[rank] = value
        barrier.wait()
        return [told[i] for i in range(size)]

    team = Team(rank, size, lambda value: gather(value)[0], gather)
    try:
        made = writer(path, FINGERPRINT | {"size": [1]} if other else FINGERPRINT, team=team)
    except CacheError as error:
        barrier.abort()
        sys.exit(3 if "process 1 would build another cache" in str(error) else 1)
    assert made.mine == list(range(rank, 3, size))
    fill(made)
    try:
        made.seal()
    except threading.BrokenBarrierError:  # as when torchrun ends the others
        sys.exit(4)


CHILD = textwrap.dedent("""
    import sys, time
    from dataclasses import replace
    from pathlib import Path
    from tests.test_cache import SCHEMA, part, writer
    path, views = Path(sys.argv[1]), int(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    made = writer(path, schema=replace(SCHEMA, views=views))
    for block in made.mine:
        made.write(block, part(made, block), {v: {"kl": v} for v in made.views(block)})
    made.seal()
""")


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_byte_for_byte_the_same(store: Path, tmp_path: Path) -> None:
    """A build, then one that adds views to it, both killed over and over at random moments."""
    wide = writer(tmp_path / "wide.zarr", schema=replace(SCHEMA, views=5))
    fill(wide)
    wide.seal()
    wanted = {3: content(store), 5: content(tmp_path / "wide.zarr")}
    path, random = tmp_path / "targets.zarr", np.random.default_rng(0)
    killed = finished = 0
    while killed < 30:
        views = 5 if path.exists() and content(path) == wanted[3] else 3
        if views == 3:
            shutil.rmtree(path, ignore_errors=True)
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(views)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as child:  # fmt: skip
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            child.stdin.write("go\n")
            child.stdin.flush()
            with suppress(subprocess.TimeoutExpired):
                child.wait(random.uniform(0, 0.25))
            child.send_signal(signal.SIGKILL)
            child.wait()
        if child.returncode == 0:
            assert content(path) == wanted[views]
            finished += 1
        else:
            assert child.returncode == -signal.SIGKILL
            killed += 1
            if path.exists():  # what stands under the name is whole at any moment
                assert not verify(path)
    for views in (3, 5):
        run = [sys.executable, "-c", CHILD, str(path), str(views)]
        if views == 5 or not (path.exists() and content(path) == wanted[3]):
            shutil.rmtree(path, ignore_errors=True) if views == 3 else None
            subprocess.run(run, check=True, input="go\n", text=True, stdout=subprocess.DEVNULL)
        assert content(path) == wanted[views]


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file, in place."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def read_everything(path: Path) -> None:
    reader = open_reader(path)
    for name in reader.columns:
        reader.column(name)
    for name in reader.schema.fields:
        for place in reader.schema.places():
            reader.chunk(name, *place)


def test_each_of_200_flipped_bits_is_found(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    random = np.random.default_rng(0)
    assert not verify(path)
    for _ in range(200):
        file = files[random.integers(len(files))]
        bit = int(random.integers(8 * file.stat().st_size))
        flip(file, bit)
        assert file in {damage.file for damage in verify(path)}, (file, bit)
        with pytest.raises(CacheError):  # whoever reads everything meets it, too
            read_everything(path)
        flip(file, bit)
    assert not verify(path)


def test_a_missing_and_a_strange_file_are_found(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    SCHEMA.chunk_file(path, "logits", 2, 0).unlink()
    (path / "label" / "zarr.json").unlink()
    (path / "logits" / "notes.txt").write_text("mine")
    found = {str(d.file.relative_to(path)): (d.what, d.block) for d in verify(path)}
    assert found == {
        "logits/c/2/0/0/0": ("the file is gone", 2),
        "label/zarr.json": ("the file is gone", None),
        "logits/notes.txt": ("not a file of this store", None),
    }
    made = writer(tmp_path / "other.zarr")
    with pytest.raises(CacheError, match="not finished"):
        verify(made.root)


def test_more_chunks_than_files_may_be_open_are_read(tmp_path: Path) -> None:
    schema = replace(SCHEMA, samples=300, block=1, views=1)
    path = tmp_path / "targets.zarr"
    made = writer(path, schema=schema)
    fill(made)
    made.seal()
    code = textwrap.dedent(f"""
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        from pathlib import Path
        from deskpro.cache.reader import MappedReader
        reader = MappedReader(Path({str(path)!r}))
        for _ in range(2):
            reader.read(range(300), [0] * 300)
        print("read")
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "read\n", done.stderr


def test_differences_are_named_field_by_field() -> None:
    wanted = {"teacher": {"weights": "xyz"}, "classes": ("1", "10"), "precision": "float32"}
    assert differences(FINGERPRINT, wanted) == [
        "teacher.weights was abc, is xyz",
        "precision is float32, the cache doesn't say",
    ]
    assert not differences(FINGERPRINT, FINGERPRINT)


def test_samples_that_differ_are_named() -> None:
    def known(names: str, content: list[int]) -> dict[str, np.ndarray]:
        return {"sample_id": np.asarray(list(names), object), "sha": np.asarray(content)}

    sealed = known("abcdefgh", [1, 2, 3, 4, 5, 6, 7, 8])
    assert not sample_differences(sealed, sealed)
    assert sample_differences(sealed, known("abcdefgx", [1, 9, 3, 4, 5, 6, 7, 8])) == [
        "h gone", "x new", "sha of b changed"]  # fmt: skip
    assert sample_differences(sealed, known("bacdefgh", [2, 1, 3, 4, 5, 6, 7, 8])) == [
        "the order of the samples is another"]  # fmt: skip
    assert sample_differences(sealed, known("abcdefgh", [0] * 8)) == [
        "sha of a, b, c, d, e and 3 more changed"]  # fmt: skip
