"""Evaluation as it is lived: other protocols, killed, shared, alone, with and without faces."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from deskpro.cache.reader import MappedReader
from deskpro.pipeline import config
from deskpro.stages import compare
from deskpro.stages.base.errors import InputError
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.evaluation import scoring
from deskpro.stages.evaluation.feature_store import FeatureWorker, require_features
from deskpro.stages.metrics.intervals import holm
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.metrics.ranking import rank_gallery
from deskpro.stages.metrics.reranking import reranked
from tests.conftest import REPOSITORY, Project, run_process

pytestmark = pytest.mark.finished("train-student")


def metrics(project: Project) -> dict[str, Any]:
    return dict(json.loads((project.run / "metrics.json").read_text()))


def stored(project: Project) -> MappedReader:
    return MappedReader(project.run / "features.zarr", "features")


def sets(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


@pytest.mark.slow
def test_pictures_are_described_once_whatever_is_asked_of_them(project: Project) -> None:
    first = project.ok("eval")
    assert re.search("features +0 of 1 blocks were there", first.err)
    chunks = sorted((project.run / "features.zarr").rglob("c.*"))
    written = [path.stat().st_mtime_ns for path in chunks]
    assert written
    other = sets("eval.protocols=[cloth-changing,market]", "eval.ranks=[1,3]")
    second = project.ok("eval", "--force", *other)
    assert re.search("features +1 of 1 blocks were there", second.err)
    assert [path.stat().st_mtime_ns for path in chunks] == written
    report = metrics(project)
    assert [*report["protocols"]] == ["cloth-changing", "market"]
    assert "in the same clothes" in report["protocols"]["cloth-changing"]["rule"]

    again = project.ok("eval", "--force", *sets("eval.flip=false"))
    assert re.search("features +0 of 1 blocks were there", again.err)


@pytest.mark.slow
def test_only_blocks_with_changed_pictures_are_described_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deskpro.stages.evaluation import feature_store

    monkeypatch.setattr(feature_store, "BLOCK", 5)
    project.ok("eval")
    changed = sorted((project.data / "imgs" / "query").iterdir())[0]
    shutil.copy(sorted((project.data / "imgs" / "query").iterdir())[1], changed)
    result = project.ok("eval", "--force")
    assert "4 of 5 blocks were there" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 4])
def test_killed_and_repeated_it_says_the_same(kills: int, project: Project, tmp_path: Path) -> None:
    project.ok("eval")
    files = ("metrics.json", "metrics.csv", "queries.csv", "breakdown.csv", "ranked.csv")
    expected = {name: (project.run / name).read_bytes() for name in files}
    program = Path(sys.executable).with_name("deskpro")
    command = [program, "eval", "--config", project.config, "--run", project.run, "--force"]
    random = np.random.default_rng(0)
    for kill in range(kills):
        for name in (*files, "features.zarr"):
            path = project.run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        while process.poll() is None and not [*project.run.glob("features.zarr*")]:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.8) * (kill + 1) / kills)
        process.send_signal(signal.SIGKILL)
        process.wait()
    # In a process of its own, as a process looks only once for what killed ones left in a folder.
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert {name: (project.run / name).read_bytes() for name in files} == expected
    assert not [*project.run.glob("*partial*")]


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_features_of_an_evaluation_that_was_stopped_are_not_taken_for_the_old_ones(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deskpro.stages.serving.sources import open_source

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before, student = metrics(project), project.run / "student.safetensors"
    extractor = open_source(project.run, torch.device("cpu"), None).extractor
    require_features(project.run / "features.zarr", extractor, student, True)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "rank_all", stopped)
        assert project("eval", "--force").code == 130
        assert metrics(project) == before  # features are as they were
        assert project("eval", "--force", *sets("eval.flip=false")).code == 130
    assert not (project.run / "metrics.json").exists()
    with pytest.raises(InputError, match=r"features\.zarr: holds features of other weights or opt"):
        require_features(project.run / "features.zarr", extractor, student, True)
    assert "--run" in project.command("export", str(project.run)).err
    project.ok("eval", *sets("eval.flip=false"))
    assert metrics(project)["flip"] is False
    project.ok("eval", "--force")
    assert metrics(project)["protocols"] == before["protocols"]


@pytest.mark.slow
def test_a_worker_gives_the_same_features_in_any_order_and_process(project: Project) -> None:
    project.ok("eval")
    options, reader = config.load(project.config), stored(project)
    features = reader.read([*range(24)], [0] * 24)
    index, _ = read_index(project.data, LAYOUTS["benchmark"], ("query", "gallery"))
    index = index.set_index("sample_id").loc[reader.column("sample_id")].reset_index()
    make = partial(FeatureWorker, project.run / "student.safetensors", "student", index, options)
    worker = pickle.loads(pickle.dumps(make))()
    blocks = [range(16, 24), range(8)]
    for rows, found in zip(blocks, worker.run(blocks), strict=True):
        np.testing.assert_array_equal(found, worker(rows))
        np.testing.assert_allclose(found[:, 0], features["features"][rows], atol=1e-5)


def advised(message: str) -> list[str]:
    """The options that a message proposes."""
    return [part for found in re.findall(r"--set \S+", message) for part in found.split()]


@pytest.mark.slow
@pytest.mark.finished("train-student")
@pytest.mark.parametrize("protocol", ["market", "cloth-changing", "celeb-official"])
def test_the_protocols_that_a_refusal_proposes_can_be_computed(
    protocol: str, project: Project
) -> None:
    """All images are of one camera, so that by the market rule no query has a positive."""
    for folder in ("query", "bounding_box_test"):
        for path in project.data.glob(f"*/{folder}/*_c2_*"):
            path.rename(path.with_name(path.name.replace("_c2_", "_c1_2")))
    (project.data / "clothes.csv").unlink()
    refused = project("eval", *sets(f"eval.protocols=[{protocol}]"))
    assert refused.code == 2
    options = advised(refused.err)
    assert options
    assert protocol not in options[-1]
    project.ok("eval", *options)


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_a_checkpoint_alone_needs_a_data_root_and_nothing_else(
    project: Project, tmp_path: Path
) -> None:
    project.ok("eval")
    expected = metrics(project)
    weights, out = tmp_path / "mine.safetensors", tmp_path / "out"
    shutil.copy(project.run / "student.safetensors", weights)
    shutil.rmtree(project.run)
    for split in ("query", "bounding_box_test"):
        for kind in ("hr_face", "mask"):
            shutil.rmtree(project.data / kind / split)
    for kind in ("imgs", "lr_face", "hr_face", "mask"):
        shutil.rmtree(project.data / kind / "bounding_box_train")
    alone = ["eval", "--checkpoint", str(weights), "--data", str(project.data),
             "--dataset", "benchmark", "--run", str(out), *sets("device=cpu")]  # fmt: skip
    assert project.command(*alone).code == 0
    found = json.loads((out / "metrics.json").read_text())
    assert found["protocols"] == expected["protocols"]
    assert "fresh" in project.command(*alone).err
    other = project.command(*alone, *sets("eval.flip=false"))
    assert other.code == 2
    assert "eval.flip was True, is False" in other.err
    advised = shlex.split(other.err.split("Type: ")[-1])
    assert project.command(*advised[1:]).code == 0
    brief = ["eval", "--checkpoint", str(weights), "--data", str(project.data), "--run", str(out)]
    assert "fresh" in project.command(*brief).err  # by the recipe of the folder
    assert "leave --from out" in project.command(*brief, "--from", str(out)).err
    assert project.command("eval").code == 2
    assert "--checkpoint needs --data" in project.command(*alone[:3]).err


@pytest.mark.slow
def test_an_evaluation_whose_reader_went_away_is_done_by_the_same_command(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `deskpro eval | head -1`: the tables come after the numbers are written."""
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "table", lambda *_: sys.exit(1))
        assert project("eval").code == 1
    written = (project.run / "metrics.json").read_bytes()
    project.ok("eval")
    assert (project.run / "metrics.json").read_bytes() == written
    assert "fresh" in project.ok("eval").err


@pytest.mark.slow
def test_the_weight_between_the_streams(project: Project) -> None:
    for weight, stream in ((1.0, "face"), (0.0, "body")):
        project.ok("eval", "--force", *sets(f"eval.face_weight={weight}"))
        streams = metrics(project)["protocols"]["market"]["streams"]
        apart = ("cmc", "verification")  # of one stream alone pairs have one face case
        alone = {k: v for k, v in streams[stream].items() if k not in apart}
        assert {k: v for k, v in streams["all"].items() if k not in apart} == alone
    queries = pd.read_csv(project.run / "queries.csv")
    assert not queries.isna().any().any()


@pytest.mark.finished("eval")
def test_queries_with_and_without_a_face_are_told_apart(project: Project) -> None:
    project.ok("eval")
    report, queries = metrics(project), pd.read_csv(project.run / "queries.csv")
    market = queries[(queries["protocol"] == "market") & (queries["stream"] == "all")]
    numbers = report["protocols"]["market"]["streams"]["all"]
    for key, part in (("with face", market[market["face"]]),
                      ("without face", market[~market["face"]])):  # fmt: skip
        assert numbers[key]["queries"] == len(part)
        assert numbers[key]["mAP"] == pytest.approx(part["ap"].mean())
    assert report["data"]["without face"]["query"] == (~market["face"]).sum() > 0
    low, high = numbers["interval"]["mAP"]
    assert low < numbers["mAP"] < high


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_transductive_rankings_have_numbers_of_their_own(project: Project) -> None:
    plain = metrics(project)
    asked = sets("eval.rerank.enable=true", "eval.rerank.k1=4", "eval.enrich.enable=true",
                 "eval.enrich.score=0.2")  # fmt: skip
    project.ok("eval", "--force", *asked)
    report = metrics(project)
    assert report.pop("transductive") == {
        "rerank": {"k1": 4, "k2": 6, "weight": 0.3},
        "enrich": {"far": 0.001, "score": 0.2},
    }
    assert plain.pop("transductive") == {}
    found = {}
    for name, protocol in report["protocols"].items():
        for stream, numbers in protocol["streams"].items():
            found[name, stream] = numbers.pop("transductive")
    assert report["protocols"] == plain["protocols"]
    numbers = plain["protocols"]["market"]["streams"]["all"]
    assert {found["market", "all"][rule]["mAP"] for rule in ("rerank", "enrich")}.isdisjoint(
        {numbers["mAP"]}
    )
    enrich = found["market", "face"]["enrich"]
    assert 0 < enrich["enrolled"] <= enrich["queries"]
    assert found["market", "face"]["enrich"]["enrolled"] == enrich["enrolled"]
    assert project.command("report", str(project.run)).code == 0
    assert "Transductive rankings" in (project.run / "report.html").read_text()


@pytest.mark.finished("eval")
def test_enrichment_needs_a_threshold(project: Project) -> None:
    kept = (project.run / "metrics.json").read_bytes()
    result = project("eval", "--force", *sets("eval.enrich.enable=true"))
    assert result.code == 2
    assert "eval.enrich.far 0.001: needs a threshold" in result.err
    assert (project.run / "metrics.json").read_bytes() == kept


@pytest.mark.slow
def test_descriptors_are_compared_from_memory_as_from_disk(project: Project) -> None:
    project.ok("eval")
    expected = metrics(project)
    project.ok("eval", "--force", *sets("cache.memory=0"))
    assert metrics(project) == expected


@pytest.mark.slow
def test_what_a_protocol_needs_must_be_there(project: Project) -> None:
    (project.data / "clothes.csv").unlink()
    result = project.ok("eval")
    assert "protocol cloth-changing needs the clothes of every image; 24 of 24" in result.err
    assert [*metrics(project)["protocols"]] == ["market"]
    asked = project("eval", "--force", *sets("eval.protocols=[cloth-changing]"))
    assert asked.code == 2
    assert "eval.protocols=[market]" in asked.err
    unknown = project("eval", "--force", *sets("eval.protocols=[markt]"))
    assert unknown.code == 2
    assert "markt must be one of celeb-official" in unknown.err


@pytest.mark.finished("eval")
def test_the_ranked_lists_are_those_of_the_distances(project: Project) -> None:
    project.ok("eval")
    reader = stored(project)
    features = torch.from_numpy(reader.chunk("features", 0, 0).copy()).flatten(1)
    names = reader.column("sample_id").tolist()
    ranked = pd.read_csv(project.run / "ranked.csv", dtype={"pid": str})
    lists = ranked.groupby("query")
    assert lists.head(10).equals(ranked.drop(ranked[lists.cumcount() == 10].index))
    # The first of its person comes last where it is none of the ten nearest.
    further = ranked[lists.cumcount() == 10]
    assert further["positive"].all()
    near = ranked[(lists.cumcount() < 10) & ranked["positive"]]
    assert {*further["query"]} == {*lists.groups} - {*near["query"]}
    for row in ranked.sample(20, random_state=0).to_dict("records"):
        q, g = features[names.index(row["query"])], features[names.index(row["sample_id"])]
        assert row["distance"] == pytest.approx(1 - float(q @ g) / 14, abs=1e-5)
        pid = Path(row["query"]).name.split("_")[0]
        assert row["positive"] == (pid == Path(row["sample_id"]).name.split("_")[0])
    assert ranked.groupby("query")["distance"].is_monotonic_increasing.all()
    faces = {path.stem for path in project.data.glob("lr_face/*/*")}
    has = [
        {Path(row[name]).stem for name in ("query", "sample_id")} <= faces
        for row in ranked.to_dict("records")
    ]
    assert (ranked["distance_face"].notna() == has).all()
    both = ranked[has]
    assert both["distance"].to_numpy() == pytest.approx(
        both[["distance_face", "distance_body"]].mean(axis=1).to_numpy(), abs=1e-5
    )
    assert 0 < len(both) < len(ranked)


@pytest.mark.slow
def test_an_interrupted_process_ends_with_one_line(project: Project) -> None:
    shutil.rmtree(project.data / "imgs" / "query")
    done = run_process("eval", "--config", str(project.config), "--run", str(project.run))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def evaluated(project: Project, name: str, *options: str) -> str:
    """The project's student evaluated into a run of another name."""
    out = project.run.with_name(name)
    weights = str(project.run / "student.safetensors")
    alone = ["eval", "--checkpoint", weights, "--data", str(project.data), "--dataset",
             "benchmark", "--run", str(out), "--set", "device=cpu"]  # fmt: skip
    result = project.command(*alone, *sets(*options))
    assert result.code == 0, result.err
    return str(out)


def found_alone(run: Path, other: Path) -> set[str]:
    """Queries whose first image is right in one run and not in the other, one of an identity."""
    tables = [
        pd.read_csv(path / "queries.csv").query("protocol == 'market' and stream == 'all'")
        for path in (run, other)
    ]
    both = tables[0].merge(tables[1], on=["sample_id", "pid"])
    alone = both[(both["rank1_x"] == 1) & (both["rank1_y"] < 1)]
    alone = alone.assign(gap=alone["ap_y"] - alone["ap_x"]).sort_values(["gap", "sample_id"])
    return {*alone.drop_duplicates("pid")["sample_id"]}


@pytest.mark.slow
def test_runs_are_compared_query_by_query(project: Project, tmp_path: Path) -> None:
    one = evaluated(project, "one")
    two = evaluated(project, "two", "eval.flip=false", "eval.face_weight=0.9")
    out = tmp_path / "compared"
    page = ("--latex", "--markdown", "--html")
    result = project.command("compare", one, two, one, "--out", str(out), *page)
    assert result.code == 0, result.err
    rows = pd.read_csv(out / "compare.csv").set_index(["protocol", "stream", "measure", "run"])
    queries = {
        name: pd.read_csv(f"{run}/queries.csv")
        .query("protocol == 'market' and stream == 'all'")
        .set_index("sample_id")["ap"]
        for name, run in (("one", one), ("two", two))
    }
    row = rows.loc[("market", "all", "mAP", two)]
    apart = queries["two"] - queries["one"]
    assert row["difference"] == pytest.approx(apart.mean())
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert 0 < row["p"] <= 1
    again = rows.loc[("market", "all", "mAP", one)].iloc[-1]
    assert again["difference"] == 0
    assert again["p"] == 1
    for name in ("compare", "differences"):
        with (out / f"{name}.png").open("rb") as image:
            assert image.read(4) == b"\x89PNG"
        assert (out / f"{name}.svg").read_text().startswith("<?xml")
    of_table = rows.loc[("market", slice(None), "mAP"), :]
    tested = of_table[of_table["p"].notna()]
    assert tested["p_holm"].tolist() == pytest.approx(holm(tested["p"]).tolist())
    assert (out / "compare.tex").read_text().count(r"\begin{table}") == 2
    text = (out / "compare.md").read_text()
    assert len(re.findall(r"^\| run \|", text, re.MULTILINE)) == 2
    assert f"{100 * row['value']:.1f}" in text
    alone = {
        sample for a, b in ((one, two), (two, one)) for sample in found_alone(Path(a), Path(b))
    }
    shown = (out / "compare.html").read_text()
    assert all(f">{sample}<" in shown for sample in alone)
    assert shown.count('class="query"') == len(alone)
    assert result.out.count("market, cloth-changing:") == 2  # equal results, a table a measure

    images = sorted((project.data / "imgs" / "query").iterdir())
    shutil.copy(images[0], images[1])
    result = project.command("compare", one, two, "--out", str(out), "--html")
    assert "are not those that were evaluated (imgs differ)" in result.err
    assert "data:image/jpeg" not in (out / "compare.html").read_text()
    assert not [*out.glob("compare.tex"), *out.glob("compare.md")]  # of another comparison


@pytest.mark.slow
def test_protocols_with_the_same_rows_share_a_table_in_the_place_of_the_first() -> None:
    rows = pd.DataFrame({"protocol": ["market", "prcc", "ltcc"], "value": [0.5, 0.7, 0.5]})
    merged = compare._merged(rows)
    assert [*merged] == ["market, ltcc", "prcc"]
    assert merged["prcc"]["value"].tolist() == [0.7]


@pytest.mark.slow
def test_runs_with_different_protocols_or_data_are_refused_without_anyway(
    project: Project, tmp_path: Path
) -> None:
    one = evaluated(project, "one")
    two = evaluated(project, "two", "eval.protocols=[market]")
    refused = project.command("compare", one, two, "--out", str(tmp_path / "c"))
    assert refused.code == 2
    assert "protocols cloth-changing differ" in refused.err
    assert not (tmp_path / "c").exists()
    shared = project.command("compare", one, two, "--anyway", "--out", str(tmp_path / "c"))
    assert shared.code == 0, shared.err
    assert set(pd.read_csv(tmp_path / "c" / "compare.csv")["protocol"]) == {"market"}

    (next((project.data / "imgs" / "query").iterdir())).unlink()
    three = evaluated(project, "three")
    refused = project.command("compare", one, three)
    assert refused.code == 2
    assert "queries is 12 and 11" in refused.err
    shared = project.command("compare", one, three, "--anyway", "--out", str(tmp_path / "d"))
    places = ["protocol", "stream"]
    ones, threes = (pd.read_csv(f"{run}/queries.csv") for run in (one, three))
    common = ones.merge(threes, on=[*places, "sample_id"]).groupby(places).size()
    counted = pd.read_csv(tmp_path / "d" / "compare.csv").groupby(places)["queries"]
    assert counted.nunique().eq(1).all()
    assert counted.first().to_dict() == common.to_dict()
    assert project.command("compare", one).code == 2
    absent = project.command("compare", one, str(tmp_path)).err
    assert f"Type: deskpro eval --run {tmp_path}" in absent
    (tmp_path / "metrics.json").write_text("{}")
    assert "of another version" in project.command("compare", one, str(tmp_path)).err
    (Path(three) / "queries.csv").write_text("a,b\n1,2\n")
    assert "queries.csv: cannot be read" in project.command("compare", one, three).err


@pytest.mark.slow
@pytest.mark.finished("eval")
@pytest.mark.parametrize("stage", ["report", "compare"])
def test_figures_of_a_student_that_is_gone_are_refused(
    project: Project, tmp_path: Path, stage: str
) -> None:
    """The student is trained again, and not evaluated again."""
    other = Path(shutil.copytree(project.run, tmp_path / "other"))
    arguments = [stage, str(project.run)]
    if stage == "compare":
        arguments += [str(other), "--out", str(tmp_path / "out")]
    assert project.command(*arguments).code == 0
    project.ok("train-student", "--force", *sets("train_student.seed=7"))
    refused = project.command(*arguments)
    assert refused.code == 2
    assert "is of another student" in refused.err
    assert f"Type: deskpro eval --run {project.run} --force" in refused.err
    assert "warning: " in project.command(*arguments, "--anyway").err
    project.ok("eval", "--force", *sets("train_student.seed=7"))
    assert project.command(*arguments).code == 0


@pytest.mark.slow
def test_runs_on_different_faces_are_refused(project: Project) -> None:
    one = evaluated(project, "one")
    for path in (project.data / "lr_face" / "query").iterdir():
        path.write_bytes(
            next((project.data / "lr_face" / "bounding_box_test").iterdir()).read_bytes()
        )
    refused = project.command("compare", one, evaluated(project, "two"))
    assert refused.code == 2
    assert "lr_face differ" in refused.err


@pytest.mark.slow
def test_whatever_a_score_depends_on_makes_it_stale(project: Project) -> None:
    faces, aside = project.data / "lr_face", project.data / "aside"
    faces.rename(aside)
    project.ok("eval")
    aside.rename(faces)
    result = project("eval")
    assert result.code == 2
    assert "lr_face of query is new" in result.err
    project.ok("eval", "--force")
    clothes = project.data / "clothes.csv"
    lines = clothes.read_text().splitlines()
    clothes.write_text("\n".join([lines[0], *(line.split(",")[0] + ",coat" for line in lines[1:])]))
    assert "clothes.csv has changed since" in project("eval").err


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_deep_sees_other_bytes_of_the_same_size_and_time(project: Project) -> None:
    project.ok("eval")
    before = metrics(project)["data"]["digests"]
    path = next((project.data / "imgs" / "query").glob("*.jpg"))
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "imgs of query has changed" in project("eval").err  # its entry has another time
    project.ok("eval", "--deep")
    assert metrics(project)["data"]["digests"]["imgs"] != before["imgs"]


@pytest.mark.slow
def test_an_evaluation_alone_is_of_what_is_named(project: Project, tmp_path: Path) -> None:
    evaluated(project, "one")
    weights = str(project.run / "student.safetensors")
    where = ["--dataset", "benchmark", "--run", str(project.run.with_name("one")),
             "--set", "device=cpu"]  # fmt: skip
    typo = project.command(
        "eval", "--checkpoint", weights + "x", "--data", str(project.data), *where
    )
    assert typo.code == 2
    assert "no such file" in typo.err
    empty = project.command("eval", "--checkpoint", weights, "--data", str(tmp_path), *where)
    assert empty.code == 2
    assert f"{tmp_path}/imgs/query: no such folder of body images" in empty.err
    other = Path(shutil.copytree(project.data, tmp_path / "other"))
    elsewhere = project.command(
        "eval", "--checkpoint", weights, "--data", str(other), "--dataset", "benchmark",
        "--run", str(tmp_path / "out"), *sets("device=cpu", f"data.test_root={project.data}"),
    )  # fmt: skip
    assert elsewhere.code == 0, elsewhere.err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["data"]["root"] == str(other)
    training = project.command("eval", "--checkpoint", weights, "--data", str(project.data),
                               "--run", str(project.run))  # fmt: skip
    assert training.code == 2
    assert "holds other stages of a run" in training.err


def test_a_broken_network_is_refused(project: Project) -> None:
    from safetensors.torch import load_file, save_file

    path = project.run / "student.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        described = file.metadata()
    name = next(name for name in tensors if name.endswith("conv.weight"))
    tensors[name][:] = float("nan")
    save_file(tensors, path, described)
    (project.run / ".state" / "manifests" / "train-student.json").unlink()
    result = project("eval")
    assert result.code == 2
    assert "its feature isn't finite" in result.err


@pytest.mark.slow
def test_transductive_rankings_see_what_the_protocol_asks_alone(project: Project) -> None:
    """Queries and gallery images of cameras that aren't asked for change nothing."""
    asked = sets("eval.protocols=[prcc-same-clothes]", "eval.rerank.enable=true",
                 "eval.rerank.k1=4", "eval.enrich.enable=true", "eval.enrich.score=0")  # fmt: skip
    project.ok("eval", *asked)
    whole = metrics(project)["protocols"]["prcc-same-clothes"]["streams"]
    for split, camera in (("query", 1), ("bounding_box_test", 2)):
        others = [*(project.data / "imgs" / split).glob(f"*_c{camera}_*")]
        assert others
        for path in others:
            path.unlink()
    project.ok("eval", "--force", *asked)
    found = metrics(project)["protocols"]["prcc-same-clothes"]["streams"]
    for stream, numbers in whole.items():
        assert numbers["transductive"] == found[stream]["transductive"]


def test_a_picture_without_a_descriptor_has_no_neighbours() -> None:
    random = np.random.default_rng(1)
    features = random.standard_normal((30, 6))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features[[12, 20]] = 0
    distances = 1 - features @ features.T
    known = np.abs(features).sum(1) > 0
    new = reranked(lambda rows: distances[rows], 8, 22, known=known, k1=5, k2=3, weight=0.0)
    found = new(slice(0, 8))
    assert (found[:, [12 - 8, 20 - 8]] == 1).all()  # as far as can be
    assert (found < 1).any()


def faces_of(data: Path) -> list[Path]:
    return [
        p for split in ("query", "bounding_box_test") for p in (data / "lr_face" / split).iterdir()
    ]


@pytest.mark.slow
def test_a_stream_that_sees_nothing_has_no_row(project: Project) -> None:
    for path in faces_of(project.data):
        path.unlink()
    result = project.ok("eval")
    assert [*metrics(project)["protocols"]["market"]["streams"]] == ["body", "all"]
    assert "eval: face: queries or gallery have no lr_face; it is left out" in result.err
    assert "face" not in set(pd.read_csv(project.run / "queries.csv")["stream"])


@pytest.mark.slow
def test_a_query_that_a_stream_does_not_see_is_not_counted(project: Project) -> None:
    first = faces_of(project.data)[0]
    assert first.parent.name == "query"
    first.unlink()
    without = [*(project.data / "imgs" / "query").glob("*")]
    count = len(without) - len([*(project.data / "lr_face" / "query").glob("*")])
    result = project.ok("eval")
    assert f"eval: face: {count} of {len(without)} queries have no lr_face" in result.err
    rows = pd.read_csv(project.run / "queries.csv")
    counted = rows[rows["protocol"] == "market"].groupby("stream")["sample_id"].nunique()
    assert counted["face"] == len(without) - count
    assert counted["all"] == counted["body"] == len(without)
    streams = metrics(project)["protocols"]["market"]["streams"]
    assert {name: part["queries"] for name, part in streams.items()} == counted.to_dict()


def test_images_of_equal_content_have_one_feature_and_score_by_chance(project: Project) -> None:
    for kind in ("imgs", "lr_face"):
        paths = [p for split in ("query", "bounding_box_test")
                 for p in sorted((project.data / kind / split).iterdir())]  # fmt: skip
        content = paths[0].read_bytes()
        for path in paths:
            path.write_bytes(content)
        for body in [*(project.data / "imgs" / "query").iterdir()]:  # everybody has a face
            (project.data / kind / "query" / body.name).write_bytes(content)
    project.ok("eval")
    index, _ = read_index(project.data, LAYOUTS["benchmark"], ("query", "gallery"))
    query, gallery = (index[index["split"] == split] for split in ("query", "gallery"))
    chance = rank_gallery(
        query, gallery, lambda rows: np.zeros((len(query), len(gallery)))[rows], PROTOCOLS["market"]
    )
    streams = metrics(project)["protocols"]["market"]["streams"]
    assert streams["body"]["mAP"] == pytest.approx(chance.mAP, abs=1e-12)
    assert streams["body"]["cmc"] == pytest.approx(chance.cmc(20).tolist(), abs=1e-12)
    ranks = pd.read_csv(project.run / "ranked.csv").groupby("query")["rank"].nunique()
    assert stored(project).schema.samples <= 2  # with the face and without
    assert (ranks <= 2).all()


@pytest.mark.slow
def test_no_number_depends_on_file_names(project: Project) -> None:
    project.ok("eval")
    before = metrics(project)["protocols"]
    names = {}
    for kind in ("imgs", "lr_face", "hr_face", "mask"):
        for split in ("query", "bounding_box_test"):
            for path in (project.data / kind / split).iterdir():
                person, camera, frame = path.stem.split("_")
                name = f"{person}_{camera}_{9999 - int(frame)}{path.suffix}"
                names[f"{split}/{path.name}"] = f"{split}/{name}"
                path.rename(path.with_name(name))
    clothes = project.data / "clothes.csv"
    lines = clothes.read_text().splitlines()
    renamed = [",".join([names.get(line.split(",")[0], line.split(",")[0]), line.split(",")[1]])
               for line in lines]  # fmt: skip
    clothes.write_text("\n".join(renamed) + "\n")
    project.ok("eval", "--force")
    assert metrics(project)["protocols"] == before


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_a_damaged_block_of_features_is_computed_again(project: Project) -> None:
    before = metrics(project)["protocols"]
    chunk = next((project.run / "features.zarr" / "features" / "features").glob("c.*"))
    content = chunk.read_bytes()
    chunk.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert re.search("features +0 of 1 blocks were there", project.ok("eval", "--force").err)
    assert chunk.read_bytes() == content
    assert metrics(project)["protocols"] == before
