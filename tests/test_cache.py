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
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.errors import CacheError
from cache.fingerprint import differences
from cache.reader import MappedReader, TargetReader, ZarrReader, open_reader
from cache.schema import Field, Schema
from cache.writer import TargetWriter

SCHEMA = Schema(
    samples=11,
    views=3,
    block=4,
    fields={
        "logits": Field((2, 5), "float16", ("head", "class")),
        "attention": Field((1, 2, 2), "uint8", ("channel", "height", "width")),
    },
)
PER_SAMPLE = {
    "sample_id": np.asarray([f"train/{i}.jpg" for i in range(11)], object),
    "label": np.arange(11) % 3,
    "views": np.random.default_rng(1).random((11, 3, 4)).astype(np.float32),
}
FINGERPRINT = {"teacher": {"weights": "abc"}, "classes": ["1", "10"], "size": [64, 32]}


def targets(schema: Schema = SCHEMA) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (schema.samples, schema.views)
    return {
        "logits": rng.standard_normal((*shape, 2, 5)).astype(np.float16),
        "attention": rng.integers(0, 256, (*shape, 1, 2, 2)).astype(np.uint8),
    }


def writer(path: Path, fingerprint: dict[str, Any] = FINGERPRINT) -> TargetWriter:
    return TargetWriter(path, SCHEMA, PER_SAMPLE, fingerprint)


def fill(made: TargetWriter) -> None:
    values = targets()
    for block in made.pending():
        rows = made.schema.rows(block)
        made.write(block, {name: array[rows] for name, array in values.items()})


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
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        assert reader.per_sample("sample_id").tolist() == PER_SAMPLE["sample_id"].tolist()
        for name in ("label", "views"):
            np.testing.assert_array_equal(reader.per_sample(name), PER_SAMPLE[name])
        assert reader.fingerprint == FINGERPRINT
        assert reader.schema == SCHEMA

    @pytest.mark.parametrize("pair", [(11, 0), (-1, 0), (0, 3), (0, -1)])
    def test_refuses_what_is_not_there(
        self, kind: type[TargetReader], store: Path, pair: tuple[int, int]
    ) -> None:
        with pytest.raises(IndexError):
            kind(store).read([pair[0]], [pair[1]])  # type: ignore[call-arg]

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
    with pytest.raises(CacheError, match=f"process {os.getpid()} on .* is building this cache"):
        writer(path)
    first.close()
    assert writer(path).pending() == [0, 1, 2]


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("gone", ["label/c/0", "sample_id/c/0", "views/c/0/0/0"])
def test_a_lost_array_is_damage_and_never_zeros(
    kind: type[TargetReader], gone: str, store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    (path / gone).unlink()
    with pytest.raises(CacheError, match="the file is gone"):
        kind(path).per_sample(gone.split("/")[0])  # type: ignore[call-arg]
    shutil.rmtree(path / "logits")
    with pytest.raises(CacheError, match="damaged or gone"):
        kind(path)  # type: ignore[call-arg]


def test_a_truncated_or_missing_chunk_is_damaged(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    shutil.copytree(store, path)
    cut = SCHEMA.chunk_file(path, "logits", 0, 0)
    cut.write_bytes(cut.read_bytes()[:-1])
    SCHEMA.chunk_file(path, "attention", 1, 0).unlink()
    for sample in (0, 4):
        with pytest.raises(CacheError, match="damaged chunk"):
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
    reader = open_reader(path)  # zstd now, as another program might have rewritten it
    assert isinstance(reader, ZarrReader)
    np.testing.assert_array_equal(reader.read([5], [1])["logits"][0], values["logits"][5, 1])


def test_plain_zarr_opens_the_store_without_a_warning(
    store: Path, recwarn: pytest.WarningsRecorder
) -> None:
    group = zarr.open_group(store, mode="r")
    assert {name for name, _ in group.members()} == {*PER_SAMPLE, *SCHEMA.fields}
    for name, array in targets().items():
        np.testing.assert_array_equal(group[name][...], array)  # type: ignore[index]
        metadata = json.loads((store / name / "zarr.json").read_text())
        assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "crc32c"]
        assert metadata["dimension_names"][:2] == ["sample", "view"]
    assert not recwarn.list


def test_the_store_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    made = writer(path)
    values = {name: array[:4] for name, array in targets().items()}
    made.write(0, values)
    with pytest.raises(CacheError, match=r"blocks \[1, 2\] aren't written"):
        made.seal()
    assert not path.exists()
    fill(made)
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
        made.write(0, change({name: array[:4] for name, array in targets().items()}))
    assert made.pending() == [0, 1, 2]


def test_an_unfinished_store_is_continued_only_for_the_same_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    writer(path).write(0, {name: array[:4] for name, array in targets().items()})
    assert writer(path).pending() == [1, 2]
    assert writer(path, FINGERPRINT | {"size": [64, 64]}).pending() == [0, 1, 2]


def test_a_torn_ledger_line_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    made = writer(path)
    made.write(0, {name: array[:4] for name, array in targets().items()})
    with (made.root / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"block": 1')
    made.close()
    again = writer(path)
    assert again.pending() == [1, 2]
    fill(again)
    again.seal()
    np.testing.assert_array_equal(
        open_reader(path).read([5], [1])["logits"][0], targets()["logits"][5, 1]
    )


CHILD = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from tests.test_cache import targets, writer
    made = writer(Path(sys.argv[1]))
    print("ready", flush=True)
    values = targets()
    for block in made.pending():
        made.write(block, {n: a[made.schema.rows(block)] for n, a in values.items()})
        time.sleep(0.02)
    made.seal()
    print("sealed", flush=True)
""")


def test_killed_again_and_again_it_ends_byte_for_byte_the_same(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets.zarr"
    killed = 0
    for attempt in range(30):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.015 * (attempt % 4))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        killed += child.returncode == -signal.SIGKILL
        if path.exists():
            break
    else:
        subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True)
    assert killed
    assert content(path) == content(store)


def test_differences_are_named_field_by_field() -> None:
    wanted = {"teacher": {"weights": "xyz"}, "classes": ("1", "10"), "precision": "float32"}
    assert differences(FINGERPRINT, wanted) == [
        "teacher.weights was abc, is xyz",
        "precision is float32, the cache doesn't say",
    ]
    assert not differences(FINGERPRINT, FINGERPRINT)
