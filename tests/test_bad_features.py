"""Broken files of `eval --features`: exit code 2, one line, nothing written.

To add one: a row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS
from tests.conftest import Result
from tests.test_bad_imports import bare_pickle, cut, fifo, first, raw, renamed, text, twice
from tests.test_import_targets import save_npz

Arrays = dict[str, Any]


class Bad(NamedTuple):
    what: str
    expected: str
    """A part of the message."""
    change: Callable[[Arrays], Mapping[str, Any]] = lambda a: {}
    """What other arrays the file has; None for one that it lacks."""
    make: Callable[[Path, Arrays], Path] = save_npz
    more: tuple[str, ...] = ()
    """Further arguments."""


class Executed:
    """A pickle of it makes the file `executed`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def objects(name: str) -> Callable[[Path, Arrays], Path]:
    def make(path: Path, arrays: Arrays) -> Path:
        values = np.array([Executed()] * len(arrays["path"]), object)
        np.savez(path.with_suffix(".npz"), **{**arrays, name: values})
        return path.with_suffix(".npz")

    return make


def csv(path: Path, arrays: Arrays, columns: Mapping[str, Any] | None = None) -> Path:
    """A .csv with .npy beside it."""
    pd.DataFrame(columns or {"path": arrays["path"]}).to_csv(path.with_suffix(".csv"))
    np.save(path.with_suffix(".npy"), arrays["embedding"])
    return path.with_suffix(".csv")


def csv_of(**columns: Any) -> Callable[[Path, Arrays], Path]:
    return lambda file, arrays: csv(file, arrays, columns)


def without(suffix: str) -> Callable[[Path, Arrays], Path]:
    def make(path: Path, arrays: Arrays) -> Path:
        csv(path, arrays)
        path.with_suffix(suffix).unlink()
        return path.with_suffix(".npy" if suffix == ".csv" else ".csv")

    return make


def cut_npy(path: Path, arrays: Arrays) -> Path:
    file = csv(path, arrays)
    npy = path.with_suffix(".npy")
    npy.write_bytes(npy.read_bytes()[:-8])
    return file


def pickled_npy(path: Path, arrays: Arrays) -> Path:
    file = csv(path, arrays)
    np.save(path.with_suffix(".npy"), np.array([Executed()], object), allow_pickle=True)
    return file


def folder(change: Callable[[list[Path]], object]) -> Callable[[Path, Arrays], Path]:
    def make(path: Path, arrays: Arrays) -> Path:
        files = [path / f"{name}.npy" for name in arrays["path"]]
        for file, row in zip(files, arrays["embedding"], strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, row)
        change(files)
        return path

    return make


def parquet(**columns: Any) -> Callable[[Path, Arrays], Path]:
    def make(path: Path, arrays: Arrays) -> Path:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        both = {"path": arrays["path"], "embedding": arrays["embedding"].tolist()} | columns
        table = {k: v[: len(arrays["path"])] for k, v in both.items() if v is not None}
        parquet.write_table(pyarrow.table(table), path.with_suffix(".parquet"))
        return path.with_suffix(".parquet")

    return make


def damaged_parquet(path: Path, arrays: Arrays) -> Path:
    file = parquet()(path, arrays)
    file.write_bytes(file.read_bytes()[:-9])
    return file


def zero(values: np.ndarray) -> np.ndarray:
    found = values.copy()
    found[0] = 0
    return found


EUCLIDEAN, N = ("--metric", "euclidean"), 24
ROWS = [
    Bad("NaN", "has the value nan", lambda a: {"embedding": first(a["embedding"], np.nan)}),
    Bad("infinity", "has the value -inf", lambda a: {"embedding": first(a["embedding"], -np.inf)}),
    Bad("a number beyond reason", "up to ±1e+30",
        lambda a: {"embedding": first(a["embedding"].astype(float), 1e200)}),
    Bad("only zeros", "is 0 for every image", lambda a: {"embedding": 0 * a["embedding"]}),
    Bad("a row less of features", "embedding has 23 rows, path has 24",
        lambda a: {"embedding": a["embedding"][1:]}),
    Bad("a row less of a further part", "body has 23 rows",
        lambda a: {"body": a["embedding"][1:]}),
    Bad("features of one axis", "no features, which are an array [rows, numbers]",
        lambda a: {"embedding": a["embedding"][:, 0]}),
    Bad("features of three axes", "no features, which are an array [rows, numbers]",
        lambda a: {"embedding": a["embedding"][:, None]}),
    Bad("features of no numbers", "holds no numbers",
        lambda a: {"embedding": a["embedding"][:, :0]}),
    Bad("no features", "no features", lambda a: {"embedding": None}),
    Bad("no rows", "path has no rows", lambda a: {n: np.array(v)[:0] for n, v in a.items()}),
    Bad("nothing in it", "no path for each row; found nothing", lambda a: dict.fromkeys(a)),
    Bad("no paths", "no path for each row", lambda a: {"path": None}),
    Bad("path and paths", "path and paths", lambda a: {"paths": a["path"]}),
    Bad("one path for all", "must be text [rows]", lambda a: {"path": "a.jpg"}),
    Bad("paths that are numbers", "path is int64", lambda a: {"path": np.arange(N)}),
    Bad("paths that are no UTF-8", "is not UTF-8", lambda a: {"path": np.array([b"\xff"] * N)}),
    Bad("features that are text", "must be numbers",
        lambda a: {"embedding": a["embedding"].astype(str)}),
    Bad("features that are booleans", "is bool, must be numbers",
        lambda a: {"embedding": a["embedding"] > 0}),
    Bad("complex numbers", "must be numbers or text", lambda a: {"embedding": a["embedding"] * 1j}),
    Bad("an image twice", "1 images have several rows",
        lambda a: {n: [*v, v[0]] for n, v in a.items()}),
    Bad("an image by two paths", "several rows",
        lambda a: {"path": [*a["path"], "imgs/" + a["path"][0]],
                   "embedding": a["embedding"][[*range(N), 0]]}),
    Bad("an image by its name in another place", "1 of 24 images have no row",
        lambda a: {"path": text(a["path"], "x/" + Path(a["path"][0]).name)}),
    Bad("an image by its path below another folder", "several rows",
        lambda a: {"path": [*a["path"], "x/" + a["path"][0]],
                   "embedding": a["embedding"][[*range(N), 0]]}),
    Bad("an image missing", "1 of 24 images have no row",
        lambda a: {n: v[1:] for n, v in a.items()}),
    Bad("the gallery alone", "have no row (12 of query)",
        lambda a: {n: np.array(v)[np.char.startswith(a["path"], "bounding_box_test")]
                   for n, v in a.items()}),
    Bad("another path", "1 paths are none of them: a.jpg",
        lambda a: {"path": text(a["path"], "a.jpg")}),
    Bad("a path of another case", "have no row",
        lambda a: {"path": text(a["path"], a["path"][0].upper())}),
    Bad("a path with a line's end", r"none of them: 'a\nb.jpg'",
        lambda a: {"path": text(a["path"], "a\nb.jpg")}),
    Bad("an absolute path elsewhere", "is not below",
        lambda a: {"path": text(a["path"], "/data/imgs/" + a["path"][0])}),
    Bad("an absolute path of Windows", "is not below",
        lambda a: {"path": text(a["path"], "C:\\data\\" + a["path"][0])}),
    Bad("a path that leads out", "is not below",
        lambda a: {"path": text(a["path"], "imgs/../../" + a["path"][0])}),
    Bad("paths as objects", "never loaded", make=objects("path")),
    Bad("a pickle in an array", "never loaded", make=objects("embedding")),
    Bad("a pickle in an array that is not used", "never loaded", make=objects("other")),
    Bad("a pickle alone", "not a zip archive", make=bare_pickle),
    Bad("a truncated file", "can't be read", make=cut),
    Bad("an empty file", "not a zip archive", make=raw(b"")),
    Bad("an array twice", "embedding.npy twice", make=twice),
    Bad("another format", ".pt is no format", make=raw(b"", "mine.pt")),
    Bad("no suffix", "no suffix is no format", make=renamed("mine")),
    Bad("another format than the suffix says", "can't be read", make=renamed("mine.parquet")),
    Bad("a file that is missing", "no such file", make=lambda p, a: p.with_suffix(".npz")),
    Bad("a FIFO", "not a regular file", make=fifo),
    Bad("a part named as all of them", "can't be the part 'all'",
        lambda a: {"all": a["embedding"]}),
    Bad("a part named as a column", "can't be the part 'pid'", lambda a: {"pid": a["embedding"]}),
    Bad("a part with a space", "can't be the part 'my face'",
        lambda a: {"my face": a["embedding"]}),
    Bad("a missing part by Euclidean distance", "embedding is 0 for 1 images",
        lambda a: {"embedding": zero(a["embedding"])}, more=EUCLIDEAN),
    Bad("enrichment without faces", "eval.enrich.enable needs a stream face",
        more=("--set", "eval.enrich.enable=true")),
    Bad("re-ranking of Euclidean distances", "eval.rerank.enable needs cosine",
        more=(*EUCLIDEAN, "--set", "eval.rerank.enable=true")),
    Bad("enrichment by Euclidean distances", "eval.enrich.enable needs cosine",
        more=(*EUCLIDEAN, "--set", "eval.enrich.enable=true")),
    Bad("weights of another part", "no part face", more=("--weights", "face=1")),
    Bad("weights without a part", "no weight for body", lambda a: {"body": a["embedding"]},
        more=("--weights", "embedding=1")),
    Bad("weights of 0", "all are 0", more=("--weights", "embedding=0")),
    Bad("weights below 0", "a number from 0", more=("--weights", "embedding=-1")),
    Bad("weights that are no numbers", "a number from 0", more=("--weights", "embedding=true")),
    Bad("weights without numbers", "must be key=value", more=("--weights", "embedding")),
    Bad("a weight twice", "has one weight", more=("--weights", "embedding=1,embedding=2")),
    Bad("a metric that there is not", "'manhattan' is not one of", more=("--metric", "manhattan")),
    Bad("a checkpoint, too", "takes no --checkpoint", more=("--checkpoint", "x")),
    Bad("a teacher's gallery", "no --gallery-network", more=("--gallery-network", "teacher")),
    Bad("a protocol that can't be computed", "protocol celeb-official",
        more=("--set", "eval.protocols=[celeb-official]")),
    Bad("an unknown dataset", "must be one of", more=("--dataset", "x")),
    Bad("a dataset that is not there", "no such folder", more=("--data", "nowhere")),
    Bad("a .csv without .npy", "mine.npy: no such file", make=without(".npy")),
    Bad("an .npy without .csv", "mine.csv: no such file", make=without(".csv")),
    Bad("a .csv without paths", "no column path; found file",
        make=csv_of(file=["a"] * N)),
    Bad("a .csv with less rows", "features has 24 rows, path has 2", make=csv_of(path=["a", "b"])),
    Bad("an empty .csv", "can't be read",
        make=lambda p, a: (csv(p, a).write_bytes(b""), p.with_suffix(".csv"))[1]),
    Bad("a truncated .npy", "mine.npy: can't be read", make=cut_npy),
    Bad("a pickle as .npy", "never loaded", make=pickled_npy),
    Bad("an empty folder", "no .npy files in it", make=lambda p, a: (p.mkdir(), p)[1]),
    Bad("a folder with a feature less", "1 of 24 images have no row",
        make=folder(lambda files: files[0].unlink())),
    Bad("a folder with an image twice", "several rows",
        make=folder(lambda files: np.save(files[0].with_suffix("").with_suffix(".npy"), [1.0]*4))),
    Bad("a folder with several lengths", "several lengths",
        make=folder(lambda files: np.save(files[0], [1.0, 2.0]))),
    Bad("a folder with a matrix", "must be [numbers]",
        make=folder(lambda files: np.save(files[0], np.ones((2, 2))))),
    Bad("a folder with text", "must be numbers",
        make=folder(lambda files: np.save(files[0], ["a"] * 4))),
    Bad("a folder with a pickle", "never loaded",
        make=folder(lambda files: np.save(files[0], np.array([Executed()]), allow_pickle=True))),
    Bad("a folder with an empty file", "can't be read",
        make=folder(lambda files: files[0].write_bytes(b""))),
    Bad("a column of several lengths", "several lengths",
        make=parquet(embedding=[[1.0], *([[1.0, 2.0]] * N)])),
    Bad("a null in a list", "has nulls", make=parquet(embedding=[[1.0, None]] * N)),
    Bad("a path that is null", "has nulls", make=parquet(path=[None, *["a"] * N])),
    Bad("only nulls", "no features", make=parquet(embedding=[None] * N)),
    Bad("no column path", "no path for each row", make=parquet(path=None)),
    Bad("a damaged .parquet", "can't be read", make=damaged_parquet),
]  # fmt: skip


@pytest.fixture(scope="module")
def good(tiny_benchmark: Path) -> Arrays:
    """Arrays that can be scored: 12 queries, 12 images of the gallery."""
    table = read_index(tiny_benchmark, LAYOUTS["benchmark"], ("query", "gallery"))[0]
    values = np.random.default_rng(0).normal(size=(len(table), 4)).astype(np.float32)
    return {"path": table["sample_id"].tolist(), "embedding": values}


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_a_bad_file_is_one_message_and_nothing_is_written(
    row: Bad,
    good: Arrays,
    tmp_path: Path,
    tiny_benchmark: Path,
    command: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {name: v for name, v in (good | dict(row.change(good))).items() if v is not None}
    file, before = row.make(tmp_path / "mine", arrays), {*tmp_path.rglob("*")}
    words = ("eval", "--features", str(file), "--data", str(tiny_benchmark))
    result = command(*words, "--dataset", "benchmark", *row.more)
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert row.expected in result.err
    lines = [line for line in result.err.splitlines() if line.startswith(("deskpro: ", "Error: "))]
    assert len(lines) == 1
    assert row.expected in lines[0]
    assert {*tmp_path.rglob("*")} == before


def test_the_good_arrays_can_be_scored(
    good: Arrays,
    tmp_path: Path,
    tiny_benchmark: Path,
    command: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for make in (save_npz, csv, folder(lambda files: None), parquet()):
        words = ("eval", "--features", str(make(tmp_path / "mine", good)), "--force")
        done = command(*words, "--data", str(tiny_benchmark), "--dataset", "benchmark")
        assert done.code == 0, done.err


def test_features_need_a_dataset(command: Callable[..., Result]) -> None:
    assert "needs --data" in command("eval", "--features", "mine.npz").err
    assert "needs --data" in command("eval", "--features", "mine.npz", "--dataset", "celeb").err
    assert "need --features" in command("eval", "--metric", "cosine", "--run", "x").err
