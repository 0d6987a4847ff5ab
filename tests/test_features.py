"""Features of any network, scored from a file: against eval, and against brute force."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskpro.cache.file_index import FileIndex
from deskpro.pipeline import config
from deskpro.stages.base.params import WITHOUT_EFFECT, flatten, names_option
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Job
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.evaluate_features import EvaluateFeatures
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.metrics.ranking import rank_gallery
from tests.conftest import Project, Result
from tests.test_options import Recorder
from tests.test_readme import DOCUMENTS, blocks, section

Command = Callable[..., Result]


@pytest.fixture
def table(tiny_benchmark: Path) -> pd.DataFrame:
    """Query and gallery."""
    return read_index(tiny_benchmark, LAYOUTS["benchmark"], ("query", "gallery"))[0]


@pytest.fixture
def score(command: Command, tiny_benchmark: Path, tmp_path: Path) -> Callable[..., Any]:
    """`deskpro eval --features FILE` of the tiny benchmark: its metrics."""

    def call(file: Path, *arguments: str) -> Any:
        run = tmp_path / "scored"
        words = ("eval", "--features", str(file), "--data", str(tiny_benchmark))
        words += ("--dataset", "benchmark", "--run", str(run), "--force")
        result = command(*words, *arguments)
        assert result.code == 0, result.err
        return json.loads((run / "metrics.json").read_text())

    return call


def mAP(metrics: Any, stream: str, protocol: str = "market") -> float:
    return float(metrics["protocols"][protocol]["streams"][stream]["mAP"])


def some(table: pd.DataFrame, seed: int = 0, length: int = 6) -> np.ndarray:
    """Features that say something of who is on an image."""
    random = np.random.default_rng(seed)
    people = {pid: random.normal(size=length) for pid in table["pid"].unique()}
    own = np.stack([people[pid] for pid in table["pid"]])
    return np.float32(own + 1.5 * random.normal(size=own.shape))


def brute_force(table: pd.DataFrame, distances: np.ndarray, protocol: str = "market") -> float:
    query, gallery = (np.flatnonzero(table["split"] == split) for split in ("query", "gallery"))
    near = np.float32(distances[np.ix_(query, gallery)])
    parts = (table.iloc[rows].reset_index(drop=True) for rows in (query, gallery))
    return rank_gallery(*parts, near.__getitem__, PROTOCOLS[protocol]).mAP


def cosine(values: np.ndarray) -> np.ndarray:
    unit = values.astype(np.float64)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = unit / np.where(length, length, 1)
    return np.asarray(1 - unit @ unit.T)


@pytest.mark.finished("eval")
@pytest.mark.parametrize("mode", ["face", "body", "all"])
def test_a_student_scores_as_eval_says(mode: str, project: Project, score: Any) -> None:
    files = []
    for split in ("query", "gallery"):
        files.append(project.run / f"{split}.npz")
        student = str(project.run / "student.safetensors")
        words = ("embed", "--checkpoint", student, "--data", str(project.data), "--dataset")
        words += ("benchmark", "--split", split, "--out", str(files[-1]))
        assert project.command(*words, "--config", str(project.config)).code == 0
    loaded = [dict(np.load(file)) for file in files]
    path, feature = (np.concatenate([one[key] for one in loaded]) for key in ("path", "feature"))
    half = feature.shape[1] // 2
    parts = {"face": feature[:, :half], "body": feature[:, half:]}
    chosen = parts if mode == "all" else {mode: parts[mode]}
    file = project.run / "mine.npz"
    np.savez(file, path=path, **chosen)
    weights = ("--weights", "face=0.5,body=0.5") if mode == "all" else ()
    found = score(file, "--config", str(project.config), *weights)
    wanted = json.loads((project.run / "metrics.json").read_text())
    for name, protocol in wanted["protocols"].items():
        for stream, numbers in found["protocols"][name]["streams"].items():
            theirs = protocol["streams"][stream]
            assert numbers["mAP"] == pytest.approx(theirs["mAP"], abs=1e-6)
            assert numbers["cmc"] == pytest.approx(theirs["cmc"], abs=1e-6)
            for key in ("queries", "identities"):
                assert numbers[key] == theirs[key]
            for part in ("with face", "without face"):
                if part in numbers:
                    assert numbers[part] == pytest.approx(theirs[part], abs=1e-6)
    assert found["data"]["digests"] == {
        key: wanted["data"]["digests"][key] for key in ("labels", "imgs")
    }


def test_what_cannot_be_ranked_is_left_out_unless_it_is_asked_for(
    data: Path, table: pd.DataFrame, command: Command, tmp_path: Path
) -> None:
    """One query alone has changed its clothes, and it has no face."""
    clothes = pd.read_csv(data / "clothes.csv")
    path, worn = clothes.columns
    first = table["sample_id"].iloc[0]
    clothes[worn] = np.where(clothes[path].str.endswith(first), "new", "old")
    clothes.to_csv(data / "clothes.csv", index=False)
    values, run = some(table), tmp_path / "scored"
    face = np.where((table["sample_id"] == first).to_numpy()[:, None], 0, values)
    words = ("eval", "--data", str(data), "--dataset", "benchmark", "--run", str(run), "--force")

    def streams(*more: str, **parts: np.ndarray) -> tuple[dict[str, list[str]], str]:
        file = as_npz(tmp_path / "mine", table["sample_id"].tolist(), parts)
        result = command(*words, "--features", str(file), *more)
        assert result.code == 0, result.err
        report = json.loads((run / "metrics.json").read_text())
        return {name: [*p["streams"]] for name, p in report["protocols"].items()}, result.err

    found, log = streams(face=face, body=values)
    assert found == {"market": ["face", "body", "all"], "cloth-changing": ["body", "all"]}
    assert "eval: cloth-changing, face: no query that it sees has a positive" in log
    found, log = streams(face=face)
    assert found == {"market": ["face"]}
    assert "eval: cloth-changing: no query that the network sees has a positive" in log
    for names in ("[cloth-changing]", "[cloth-changing,market]"):
        named = command(*words, "--features", str(tmp_path / "mine.npz"), "--set",
                        f"eval.protocols={names}")  # fmt: skip
        assert named.code == 2
        assert "protocol cloth-changing: no query that the network sees has a positive" in named.err


# Formats, orders, types


def as_npz(path: Path, paths: list[str], parts: dict[str, np.ndarray]) -> Path:
    np.savez(path.with_suffix(".npz"), paths=paths, **parts)
    return path.with_suffix(".npz")


def as_parquet(path: Path, paths: list[str], parts: dict[str, np.ndarray]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        name: pyarrow.array([row.tolist() if row.any() else None for row in values])
        for name, values in parts.items()
    }
    columns |= {"clothes": [None, *["a"] * (len(paths) - 1)]}
    parquet.write_table(pyarrow.table({"path": paths} | columns), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def as_csv(path: Path, paths: list[str], parts: dict[str, np.ndarray]) -> Path:
    pd.DataFrame({"n": range(len(paths)), "path": paths}).to_csv(path.with_suffix(".csv"))
    (values,) = parts.values()
    np.save(path.with_suffix(".npy"), values)
    return path.with_suffix(".csv")


def as_folder(path: Path, paths: list[str], parts: dict[str, np.ndarray]) -> Path:
    (values,) = parts.values()
    for number, (name, row) in enumerate(zip(paths, values, strict=True)):
        file = path / (name + ".npy" if number % 2 else f"{name.rpartition('.')[0]}.npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, row[None] if number % 3 else row)
    return path


@pytest.mark.parametrize("save", [as_npz, as_parquet, as_csv, as_folder])
def test_every_format_gives_the_numbers_of_a_direct_ranking(
    save: Any, table: pd.DataFrame, score: Any, tmp_path: Path
) -> None:
    values = some(table)
    order = np.random.default_rng(1).permutation(len(table))
    paths = table["sample_id"].iloc[order].tolist()
    metrics = score(save(tmp_path / "mine", paths, {"features": values[order]}))
    for protocol in ("market", "cloth-changing"):
        wanted = brute_force(table, cosine(values), protocol)
        assert mAP(metrics, "features", protocol) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    "change",
    ["{}", "./{}", "imgs/{}", "{root}/imgs/{}", "{root}/{}", "data/imgs/{}", "name", "backslash"],
)
def test_an_image_is_found_by_any_path_of_it(
    change: str, table: pd.DataFrame, tiny_benchmark: Path
) -> None:
    from deskpro.stages.evaluation.feature_files import FeatureFile, match_rows

    ids = table["sample_id"].tolist()
    paths = [change.format(id_, root=tiny_benchmark) for id_ in ids]
    if change == "name":
        paths = [Path(id_).name for id_ in ids]
    if change == "backslash":
        paths = ["imgs\\" + id_.replace("/", "\\") for id_ in ids]
    found = FeatureFile([*reversed(paths), "bounding_box_train/other.jpg", "x" * 5000], {}, [])
    bodies = tiny_benchmark / "imgs"
    rows, extra = match_rows(Path("mine.npz"), found, table, tiny_benchmark, bodies)
    assert rows.tolist() == [*reversed(range(len(ids)))]
    assert extra == found.paths[-2:]


@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["f2", "f4", "f8", ">f4", "i2"]),
       metric=st.sampled_from(["cosine", "euclidean"]), parts=st.integers(1, 3))  # fmt: skip
def test_order_and_type_of_the_rows_change_no_number(
    seed: int, dtype: str, metric: Any, parts: int
) -> None:
    import torch

    from deskpro.stages.evaluation.feature_files import FeatureFile, match_rows, used_values
    from deskpro.stages.evaluation.parts import choose_weights, measures_of_parts

    random = np.random.default_rng(seed)
    count = int(random.integers(8, 40))
    table = pd.DataFrame({
        "sample_id": [f"query/{i}.jpg" for i in range(count)],
        "split": np.where(np.arange(count) < count // 2, "query", "gallery"),
        "pid": random.integers(0, 3, count).astype(str), "camid": random.integers(0, 2, count),
    })  # fmt: skip
    values = {f"p{i}": random.normal(0, 9, (count, 4)).astype("f2") for i in range(parts)}
    if dtype == "i2":
        values = {name: np.round(one) for name, one in values.items()}
    if metric == "cosine":
        values["p0"][random.random(count) < 0.2] = 0
    order = random.permutation(count)
    stored = {name: one[order].astype(dtype) for name, one in values.items()}
    paths = table["sample_id"].iloc[order].tolist()
    found = FeatureFile(paths, stored, [])
    rows, _ = match_rows(Path("mine.npz"), found, table, Path("data"), Path("data/imgs"))
    features = {n: used_values(Path("mine.npz"), n, v, rows, paths) for n, v in stored.items()}
    weights = choose_weights([*values], dict(zip(values, (0.5, 2.0, 0.0), strict=False)))
    measures = measures_of_parts(features, weights, metric, torch.device("cpu"))
    assert [*measures] == [*values] + ["all"] * (parts > 1)
    sides = [table[table["split"] == split].assign(row=lambda part: part.index)
             for split in ("query", "gallery")]  # fmt: skip
    expected = {}
    for name, one in values.items():
        exact = one.astype(np.float64)
        gaps = np.linalg.norm(exact[:, None] - exact[None], axis=2)
        expected[name] = cosine(exact) if metric == "cosine" else gaps
    expected["all"] = np.sum([weights[name] * one for name, one in expected.items()], axis=0)
    for name, compared in measures.items():
        block = compared.measure(*sides)(slice(None))
        wanted = expected[name][np.ix_(sides[0].index, sides[1].index)]
        assert block.dtype == np.float32
        np.testing.assert_allclose(block, wanted, rtol=1e-5, atol=2e-6)
        assert (np.float32(compared.highest) - block <= compared.highest).all()
        rankings = [
            rank_gallery(*(side.reset_index(drop=True) for side in sides), near.__getitem__,
                         PROTOCOLS["market"])
            for near in (block, np.float32(wanted))
        ]  # fmt: skip
        assert rankings[0].mAP == pytest.approx(rankings[1].mAP, abs=1e-6, nan_ok=True)


def test_narrow_numbers_are_within_a_thousandth(
    table: pd.DataFrame, score: Any, tmp_path: Path
) -> None:
    values, paths = some(table), table["sample_id"].tolist()
    found = [
        mAP(score(as_npz(tmp_path / dtype, paths, {"features": values.astype(dtype)})), "features")
        for dtype in ("float64", "float32", "float16")
    ]
    assert found[0] == found[1]
    assert found[2] == pytest.approx(found[0], abs=1e-3)


# Parts


@pytest.mark.slow
def test_a_missing_part_counts_as_a_cosine_of_0(
    table: pd.DataFrame, score: Any, tmp_path: Path
) -> None:
    face, body, paths = some(table, 1), some(table, 2, 9), table["sample_id"].tolist()
    query, gallery = (np.flatnonzero(table["split"] == split) for split in ("query", "gallery"))
    face[[query[0], gallery[0], gallery[1]]] = 0
    for save in (as_npz, as_parquet):
        file = save(tmp_path / "mine", paths, {"face": face, "body": body})
        metrics = score(file, "--weights", "face=3,body=1")
        streams = metrics["protocols"]["market"]["streams"]
        assert [*streams] == ["face", "body", "all"]
        wanted = brute_force(table, 3 * cosine(face) + cosine(body))
        assert streams["all"]["mAP"] == pytest.approx(wanted, abs=1e-6)
        assert streams["body"]["mAP"] == pytest.approx(brute_force(table, cosine(body)), abs=1e-6)
        seen = table.drop(index=query[0]).reset_index(drop=True)
        rows = np.delete(np.arange(len(table)), query[0])
        alone = brute_force(seen, cosine(face[rows]))
        assert streams["face"]["mAP"] == pytest.approx(alone, abs=1e-6)
        assert streams["face"]["queries"] == len(query) - 1
        assert streams["all"]["without face"]["queries"] == 1
        assert {"all", "face-face", "face-none"} <= {*streams["all"]["verification"]}
        assert metrics["data"]["without part"] == {"face": 3, "body": 0}
        assert metrics["weights"] == {"face": 3, "body": 1}
        for case in streams["all"]["verification"].values():
            for decision in case.get("held_out", {}).values():
                assert "no calibration" in decision["refused"]


def test_euclidean_distances_are_those_of_the_numbers_themselves(
    table: pd.DataFrame, score: Any, tmp_path: Path
) -> None:
    parts, paths = {"one": 4 * some(table, 1), "two": some(table, 2)}, table["sample_id"].tolist()
    metrics = score(as_npz(tmp_path / "mine", paths, parts), "--metric", "euclidean")
    gaps = {
        name: np.linalg.norm(np.float64(one[:, None] - one[None]), axis=2)
        for name, one in parts.items()
    }
    gaps["all"] = gaps["one"] / 2 + gaps["two"] / 2
    for name, distances in gaps.items():
        assert mAP(metrics, name) == pytest.approx(brute_force(table, distances), abs=1e-6)
    assert metrics["metric"] == "euclidean"


# The run folder


@pytest.mark.slow
def test_a_run_of_features_is_fresh_reported_and_compared(
    table: pd.DataFrame, command: Command, tiny_benchmark: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    data, paths = shutil.copytree(tiny_benchmark, tmp_path / "data"), table["sample_id"].tolist()
    parts = {"face": some(table, 1), "body": some(table, 2)}
    np.savez("mine.npz", path=[*paths, "a.jpg", "b.jpg"], ids=np.arange(4),
             **{name: np.concatenate([one, one[:2]]) for name, one in parts.items()})  # fmt: skip
    words = ("eval", "--features", "mine.npz", "--data", "data", "--dataset", "benchmark")
    first = command(*words)
    assert first.code == 0, first.err
    assert "2 rows are of no image of query or gallery, and are not used: a.jpg, b.jpg" in first.err
    assert "not used: ids [4]" in first.err
    run = tmp_path / "runs" / "features-mine"
    names = ("metrics.json", "metrics.csv", "queries.csv", "ranked.csv", "breakdown.csv", "cmc.png")
    assert all((run / name).is_file() for name in names)
    before = (run / "metrics.json").read_bytes()
    assert "is fresh" in command(*words).err
    for more, why in (
        (("--metric", "euclidean"), "metric was cosine, is euclidean"),
        (("--weights", "face=1,body=0"), "weights is new"),
        (("--set", "eval.ranks=[1]"), "eval.ranks was"),
    ):
        stale = command(*words, *more)
        assert stale.code == 2
        assert why in stale.err
        assert f"{' '.join(more[-1:])}" in stale.err.partition("Type: deskpro eval --features")[2]
    assert (run / "metrics.json").read_bytes() == before
    report = command("report", str(run))
    assert report.code == 0, report.err
    assert "not part of this project" in (run / "report.html").read_text()

    np.savez("mine.npz", path=paths, **{name: one[::-1] for name, one in parts.items()})
    assert "the features has changed since" in command(*words).err
    other = command(*words, "--run", "other")
    assert other.code == 0, other.err
    compared = command("compare", "other", str(run), "--out", "compared")
    assert compared.code == 0, compared.err
    assert {*pd.read_csv("compared/compare.csv")["stream"]} == {"face", "body", "all"}
    np.savez("mine.npz", path=paths[1:], **{name: one[1:] for name, one in parts.items()})
    assert command(*words, "--force").code == 2
    assert (run / "metrics.json").read_bytes() == before
    assert "is stale" in command(*words).err
    forgotten = command("eval", "--run", str(run), "--force")
    assert forgotten.code == 2
    assert "holds the evaluation of features, mine.npz" in forgotten.err
    shutil.rmtree(data)
    assert "no such folder" in command(*words).err


@pytest.mark.finished("eval")
def test_the_folder_of_a_student_is_not_used(project: Project, table: pd.DataFrame) -> None:
    file = as_npz(project.run / "mine", table["sample_id"].tolist(), {"features": some(table)})
    before = (project.run / "metrics.json").read_bytes()
    result = project("eval", "--features", str(file), "--force")
    assert result.code == 2
    assert "holds other stages of a run" in result.err
    assert (project.run / "metrics.json").read_bytes() == before
    other = project("eval", "--features", str(file), "--run", str(project.run / "other"))
    assert other.code == 0, other.err
    words = ("compare", str(project.run), str(project.run / "other"))
    compared = project.command(*words, "--out", str(project.run / "compared"))
    assert compared.code == 0, compared.err
    assert "all is the widest stream" in compared.err
    assert "features is the widest stream" in compared.err
    rows = pd.read_csv(project.run / "compared" / "compare.csv")
    rows = rows[(rows["protocol"] == "market") & (rows["measure"] == "mAP")]
    files = [json.loads((folder / "metrics.json").read_text())
             for folder in (project.run, project.run / "other")]  # fmt: skip
    wanted = [mAP(files[0], "all"), mAP(files[1], "features")]
    assert rows["value"].tolist() == pytest.approx(wanted)
    assert {*rows["stream"]} == {"widest"}


@pytest.mark.slow
def test_it_reads_only_the_options_that_it_declares(
    table: pd.DataFrame, tiny_benchmark: Path, tmp_path: Path
) -> None:
    parts = {f"part{i}": some(table, i) for i in range(12)}
    file = as_npz(tmp_path / "mine", table["sample_id"].tolist(), parts)
    read: set[str] = set()
    options = config.load(None, [f"data.root={tiny_benchmark}", "device=cpu"])
    folder, recorder = RunFolder(tmp_path / "run"), Recorder(options, read)
    stage = EvaluateFeatures(recorder, folder, file)  # type: ignore[arg-type]
    stage.check()
    stage.run(Job(FileIndex(), provenance={"the features": "0"}))
    every = flatten(options.model_dump())
    known = {name for name in every if any(names_option(param, name) for param in stage.params)}
    assert read - known - WITHOUT_EFFECT.keys() == set()
    streams = json.loads(folder.metrics.read_text())["protocols"]["market"]["streams"]
    assert [*streams] == [*parts, "all"]


# The documentation


def test_the_example_makes_a_file_that_can_be_scored(
    tiny_benchmark: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = section("Features of any network", DOCUMENTS["stages/README.md"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data/benchmark").symlink_to(tiny_benchmark)
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python", text)
    exec(example, {})
    line = next(line for line in blocks("sh", text)[0].splitlines() if "--features" in line)
    done = command(*shlex.split(line.partition("#")[0])[1:])
    assert done.code == 0, done.err
    assert Path("runs/features-mine/metrics.json").is_file()
