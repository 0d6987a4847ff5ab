"""Studies: replicates, streams that are trained once, results that are kept, verdicts."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deskpro.pipeline import ablation, config, results_file, students, tables
from deskpro.pipeline.replicates import replicates
from deskpro.pipeline.results_file import COLUMNS, ResultsFile, code_digest, recipe_digest
from deskpro.pipeline.studies import STUDIES, Curve, changes_of, same_cells
from deskpro.pipeline.study_bars import StudyBars
from deskpro.pipeline.summaries import draw_curves, summarise
from deskpro.pipeline.sweep import SweptRun, _tasks, combinations
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Launch, Options
from deskpro.stages.base.params import relevant
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.benchmark import BenchmarkOptions
from deskpro.stages.losses.terms import targets_needed
from deskpro.stages.reporting.curves import Level, panels
from deskpro.stages.targets.kinds import TARGETS
from tests.conftest import TINY, Project

PLAIN = {"kd_loss.enable": False, "mse.mse_weight": 0.0}


def trainings(run: Path) -> int:
    """Trainings of students that have ended, by the logs of a run and all below it."""
    return sum(log.read_text().count("train-student: done") for log in run.rglob("deskpro.log"))


def rows_of(values: dict[str, list[float]], stream: str = "all") -> pd.DataFrame:
    """Rows of variants with the mAP of each replicate."""
    return pd.DataFrame(
        [
            {"replicate": i, "variant": variant, "stream": stream, "protocol": "market",
             "queries": 9, "mAP": mAP, "rank1": mAP, "mAP_with_face": mAP, "minutes": 1.0,
             "run": ""}
            for variant, numbers in values.items()
            for i, mAP in enumerate(numbers)
        ]
    )  # fmt: skip


# Streams


def test_a_change_matters_for_the_streams_whose_losses_name_its_section() -> None:
    options = Options()
    assert changes_of("face", options, PLAIN) == {"kd_loss.enable": False}
    assert changes_of("body", options, PLAIN) == {"mse.mse_weight": 0.0}
    assert changes_of("body", options, {"kd_loss.class_means": True}) == {}
    for stream in ("face", "body"):
        for changes in ({"train_student.epochs": 90}, {"loss.margin": 0.1}, {"data.identities": 9}):
            assert changes_of(stream, options, changes) == changes
        assert not changes_of(stream, options, {"data.workers": 7, "kd_loss.T": 5.0})


@pytest.mark.parametrize("study", ["parts", "length", "labels"])
def test_plain_learns_no_target_whatever_the_recipe_has_on(study: str) -> None:
    options = config.load({}, ["embedding.weight=10", "teachers.clip.input=imgs"])
    lines = STUDIES[study].lines(options)
    needed = {
        name: targets_needed(config.override(options, changes), options.streams)
        for name, changes in lines.items()
    }
    wanted = {"plain": set(), "kd": {"logits"}, "attention": {"parsing"}}
    wanted["both"] = {"logits", "embedding", "parsing", "clip/embedding"}
    assert {name: needed[name] for name in wanted if name in needed} == {
        name: targets for name, targets in wanted.items() if name in needed
    }


def test_another_teacher_matters_for_the_stream_that_learns_from_it() -> None:
    options = config.load({}, ["teachers.clip.input=imgs", "teachers.faces.weight=3"])
    for teacher, stream, other in (("clip", "body", "face"), ("faces", "face", "body")):
        change = {f"teachers.{teacher}.weight": 0.0}
        assert changes_of(stream, options, change) == change
        assert changes_of(other, options, change) == {}


def test_a_study_s_cache_holds_what_its_variants_need() -> None:
    options = Options()
    variants = STUDIES["targets"].variants(options)
    assert students.with_targets(options, variants).cache.targets == tuple(TARGETS)
    parts = STUDIES["parts"].variants(options)
    assert students.with_targets(options, parts) == options
    assert STUDIES["targets"].base_of("kd + embedding ×2") == "plain ×2"
    assert STUDIES["others"].base_of("plain, larger batch ×½") == "plain ×½"
    assert STUDIES["others"].base_of("chance") == "plainchance"  # a reference, without difference


@pytest.mark.parametrize("study", STUDIES)
def test_a_benchmark_that_is_not_drawn_yet_is_drawn_first(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "data_train": "benchmark", "data.root": str(tmp_path / "none"), "cache.views": 16,
        "data.unlabelled": str(tmp_path / "crowd"), "train_student.unlabelled": 8,
        "teachers": {"other": {"weights": str(tmp_path / "other.safetensors")}},
    }  # fmt: skip

    def draw(options: Options) -> None:
        raise InterruptedError(options.data.root)

    monkeypatch.setattr(ablation, "draw_missing", draw)
    run = ablation.StudiedRun(config.override(Options(), changes), RunFolder(tmp_path / "run"))
    with pytest.raises(InterruptedError, match="none"):
        ablation.run_study(run, study)


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_asks_for_the_views_that_its_variants_train_on(
    study: str, project: Project
) -> None:
    variants = STUDIES[study].variants(config.load(project.config))
    views = [each.get("train_student.views", 1) for each in variants.values()]
    assert STUDIES[study].views == max(int(str(each)) for each in views)


@pytest.mark.parametrize("study", ["others", "others-labels"])
def test_a_study_of_other_teachers_needs_some(study: str, project: Project) -> None:
    result = project("ablation", "--study", study)
    assert result.code == 2
    assert "teachers, train_student.unlabelled must be on" in result.err


@pytest.mark.slow
@pytest.mark.finished("train-teacher")
def test_other_teachers_and_images_without_labels_are_studied(
    project: Project, tmp_path: Path
) -> None:
    shutil.copy(project.run / "teacher.safetensors", tmp_path / "other.safetensors")
    shutil.copytree(project.data / "imgs", tmp_path / "crowd" / "imgs")
    shutil.copytree(project.data / "hr_face", tmp_path / "crowd" / "hr_face")
    shutil.copytree(project.data / "lr_face", tmp_path / "crowd" / "lr_face")
    base = [f"teachers.other.weights={tmp_path}/other.safetensors", "forward_mode=face",
            f"data.unlabelled={tmp_path}/crowd", "train_student.unlabelled=4", "batchid=2",
            "train_student.max_steps=1"]  # fmt: skip
    options = [part for value in base for part in ("--set", value)]
    project.ok("ablation", "--study", "others", "--replicates", "1", *options)
    found = pd.read_csv(project.run / "results.csv")
    variants = {*STUDIES["others"].variants(config.load(project.config, base))}
    assert variants <= {*found["variant"]}
    assert {*found["stream"]} == {"face"}
    assert "at the same level" in (project.run / "ablation-others.md").read_text()


def test_variants_that_share_the_base_s_stream_are_the_same_by_construction() -> None:
    variants = STUDIES["parts"].variants(Options())
    same = same_cells(Options(), variants, lambda _: "plain")
    assert same == {("kd", "body"), ("kd-class", "body"), ("attention", "face")}
    found = same_cells(Options(), {"one": {"kd_loss.T": 5.0}, "same": {}}, lambda _: "one")
    assert found == {("same", stream) for stream in ("face", "body", "all")}


@pytest.mark.finished("teacher-cache")
def test_a_stream_is_planned_once_for_all_variants_that_have_it(project: Project) -> None:
    options, folder = config.load(project.config), RunFolder(project.run)
    found, joined = students.plan(options, folder, STUDIES["parts"].variants(options))
    assert [task.name for task in found] == [
        "the recipe", "plain, face", "plain, body", "kd-class, face",
        "plain, 2× steps, face", "plain, 2× steps, body",
    ]  # fmt: skip
    places = {task.name: task.parts for task in joined}
    assert places["kd"] == {"face": folder, "body": places["plain"]["body"]}
    assert places["attention"] == {"face": places["plain"]["face"], "body": folder}
    assert places["kd-class"]["body"] == places["plain"]["body"]
    assert {task.name: task.folder for task in joined}["both"] is folder


def test_lengths_and_identities_are_shares_of_the_recipe_s(project: Project) -> None:
    options = config.load(project.config)
    variants = STUDIES["length"].variants(options)
    assert [*variants] == [
        "plain ×½", "both ×½", "plain", "both", "plain ×2", "both ×2", "plain ×4", "both ×4",
    ]  # fmt: skip
    assert variants["both ×4"] == {"train_student.epochs": 8, "train_student.warmup_epochs": 4.0}
    assert variants["both"] == {}
    for changes in variants.values():
        config.override(options, changes)
    assert STUDIES["length"].base_of("both ×½") == "plain ×½"
    assert STUDIES["parts"].base_of("kd") == "plain"
    curve = STUDIES["length"].curve(options)
    assert curve is not None
    steps = {variant: at for variant, (_, at) in curve.places.items()}
    assert steps["both ×4"] == 8 * steps["plain ×½"] == 4 * steps["plain"]
    labels = STUDIES["labels"].variants(options)
    assert [*labels] == ["plain, 2 identities", "both, 2 identities", "plain", "both"]
    # Half of the identities make half of an epoch's batches, so that there are twice the epochs.
    assert labels["both, 2 identities"] == {
        "data.identities": 2,
        "train_teacher.epochs": 4, "train_teacher.warmup_epochs": 2,
        "train_student.epochs": 4, "train_student.warmup_epochs": 2,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
def test_students_of_fewer_identities_have_a_teacher_and_samples_of_their_own(
    project: Project,
) -> None:
    short = ("--replicates", "1", "--set", "train_student.max_steps=1")
    project.ok("ablation", "--study", "labels", *short)
    found = pd.read_csv(project.run / "results.csv")
    variants = {*STUDIES["labels"].variants(config.load(project.config))}
    assert variants == {"plain, 2 identities", "both, 2 identities", "plain", "both"}
    assert variants <= {*found["variant"]}
    below = project.run / "ablation"
    for variant in sorted(variants - {"both"}):
        info = json.loads((below / variant / "student.json").read_text())
        assert len(info["classes"]) == (2 if "2" in variant else 4), variant
    assert len([*below.rglob("targets.zarr")]) == 1  # one for both of two identities
    project.ok("ablation", "--study", "labels", *short)
    assert trainings(project.run) == 1 + 2 + 2 + 2  # the recipe; plain; both and plain of two


# Replicates


def test_replicates_are_worlds_with_a_teacher_and_a_student(project: Project) -> None:
    options, folder = config.load(project.config), RunFolder(project.run)
    first, second, third = replicates(options, folder, 3)
    assert first == (0, options, folder, None)
    assert third.options.train_student.seed == third.options.train_teacher.seed == 2
    assert third.options.data.root == project.data.with_name("data-2")
    assert second.folder.path == project.run / "ablation" / "replicate-1"
    assert second.folder.upstream == second.folder.path
    given = config.override(options, {"pre_train": "teacher.safetensors"})
    of_given = replicates(given, folder, 2)[1]
    assert of_given.options.data == options.data
    assert of_given.options.train_teacher == options.train_teacher
    assert of_given.folder.upstream == folder.path
    (project.data / "benchmark.json").unlink()
    assert replicates(options, folder, 2)[1].options.data == options.data


@pytest.mark.slow
def test_a_world_that_is_another_one_s_is_refused_before_any_work(project: Project) -> None:
    other, place = TINY.model_copy(update={"seed": 1}), project.data.with_name("data-1")
    shutil.copytree(project.data, place)
    facts = json.loads((place / "benchmark.json").read_text())
    facts["options"] = other.model_copy(update={"degradation": 2.0}).model_dump()
    (place / "benchmark.json").write_text(json.dumps(facts))
    result = project("ablation", "--replicates", "2")
    assert result.code == 2
    assert (
        f"{place}: must be the benchmark of {project.data} with seed 1; degradation" in result.err
    )
    assert "degradation is 2.0, must be 1.0. Remove the folder" in result.err
    (place / "benchmark.json").unlink()
    assert "it has no benchmark.json" in project("ablation", "--replicates", "2").err
    assert not (project.run / "teacher.safetensors").exists()


@pytest.fixture
def small_study(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The study of parts with two variants, whose names are returned."""
    chosen = ["plain", "both"]
    every = STUDIES["parts"].variants(Options())
    few = STUDIES["parts"]._replace(lines=lambda _: {name: every[name] for name in chosen})
    monkeypatch.setitem(STUDIES, "parts", few)
    return chosen


@pytest.mark.finished("eval")
@pytest.mark.slow
def test_replicates_are_trained_once_resumed_and_kept_in_the_file(
    project: Project, tmp_path: Path, small_study: list[str]
) -> None:
    results = tmp_path / "results.csv"
    said = ("--replicates", "2", "--results", str(results))
    project.ok("ablation", *said)
    # Of each plain face and body, and of the second what the run itself has already.
    assert trainings(project.run) == 2 * 2 + 1
    world = json.loads((project.data.with_name("data-1") / "benchmark.json").read_text())
    assert BenchmarkOptions(**world["options"]) == TINY.model_copy(update={"seed": 1})
    other = project.run / "ablation" / "replicate-1"
    names = {path.name for path in other.glob("*.safetensors")}
    assert names == {"teacher.safetensors", "student.safetensors"}
    _check_rows(results, project.run, small_study)
    page = (project.run / "ablation.md").read_text()
    assert re.search(r"\| both \| .* ± .*<br>.*\[.*\]<br>(helps|harms|no clear effect) \(p ", page)
    assert "all − face, on queries with a face" in page
    assert re.search(r"above clothes reader in \d of 2, above chance in \d of 2 replicates", page)

    # It was stopped before the rows of its second replicate were written.
    whole = results.read_text()
    rows = pd.read_csv(results)
    rows[rows["replicate"] == 0].to_csv(results, index=False)
    (other / "ablation" / "plain" / "metrics.json").unlink()
    assert project.ok("ablation", *said).err.count("its results are in") == 1
    assert trainings(project.run) == 5
    assert results.read_text() == whole

    # On another machine, which has nothing but the file.
    shutil.rmtree(project.run / "ablation")
    again = project.ok("ablation", *said)
    assert again.err.count("its results are in") == 2
    assert not (project.run / "ablation").exists()
    assert (project.run / "ablation.md").read_text() == page
    part = project.ok("ablation", "--replicates", "1", "--results", str(results))
    assert "one replicate, so no test" in part.out
    assert results.read_text() == whole


def _check_rows(results: Path, run: Path, variants: list[str]) -> None:
    """The file has a row per replicate, variant and stream, with the numbers of metrics.json."""
    rows = pd.read_csv(results, dtype=COLUMNS)
    assert [*rows.columns] == [*COLUMNS]
    assert {*rows["variant"]} == {*variants, *tables.REFERENCES}
    assert len(rows) == 2 * ((len(variants) + 2) * 3 + 1)
    both = rows[(rows["variant"] == "both") & (rows["replicate"] == 0)].set_index("stream")
    scores = json.loads((run / "metrics.json").read_text())["protocols"]["market"]["streams"]
    chance = rows[(rows["variant"] == tables.CHANCE) & (rows["replicate"] == 0)]
    assert [*chance["stream"]] == [*scores]
    assert [*chance["queries"]] == [numbers["queries"] for numbers in scores.values()]
    for stream, numbers in scores.items():
        found = both.loc[stream, ["mAP", "mAP_with_face"]].tolist()
        assert found == pytest.approx([numbers["mAP"], numbers["with face"]["mAP"]], abs=1e-6)
    assert rows.loc[rows["variant"].isin(variants), "minutes"].min() > 0


# The file of results


@pytest.mark.slow
def test_rows_of_another_study_recipe_or_code_are_kept_and_not_used(tmp_path: Path) -> None:
    path, rows = tmp_path / "below" / "results.csv", rows_of({"plain": [0.25], "both": [1 / 3]})
    file = ResultsFile(path, "parts", Options())
    assert file.rows().empty
    file.add(0, rows)
    other = ResultsFile(path, "parts", config.override(Options(), {"kd_loss.T": 1.0}))
    other.add(0, rows)
    text = path.read_text()
    assert len(text.splitlines()) == 5
    assert "parts,0,both,all,market,9,0.333333,0.333333,0.333333,1.0," in text
    assert file.complete(["plain", "both"]) == {0}
    assert file.complete(["plain", "both", "kd"]) == set()
    assert not ResultsFile(path, "views", Options()).complete(["plain"])
    file.add(0, rows.assign(mAP=0.5))  # in the place of those before
    assert file.rows()["mAP"].tolist() == [0.5, 0.5]
    assert other.rows()["mAP"].tolist() == [0.25, 0.333333]
    file.add(1, rows.assign(replicate=1))
    assert file.rows()["replicate"].tolist() == [0, 0, 1, 1]


def test_a_link_to_a_file_of_results_stays_one(tmp_path: Path) -> None:
    (tmp_path / "results.csv").symlink_to(tmp_path / "shared.csv")
    file = ResultsFile(tmp_path / "results.csv", "parts", Options())
    file.add(0, rows_of({"plain": [0.25]}))
    assert len((tmp_path / "shared.csv").read_text().splitlines()) == 2
    assert (tmp_path / "results.csv").is_symlink()
    assert not file.rows().empty


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "", ",".join(COLUMNS) + "\nparts,one" + "," * 10])
def test_a_file_that_is_no_table_of_results_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(InputError, match="Give another file with --results"):
        ResultsFile(tmp_path / "results.csv", "parts", Options()).rows()


def test_a_line_that_stands_twice_is_refused(tmp_path: Path) -> None:
    line = "parts,{},both,all,market,9,0.5,0.5,0.5,1,a,b\n"  # as of two files that were joined
    text = ",".join(COLUMNS) + "\n" + line.format(0) + line.format(1)
    (tmp_path / "results.csv").write_text(text)
    file = ResultsFile(tmp_path / "results.csv", "parts", Options())
    assert file.rows().empty
    file.path.write_text(text + line.format(0).replace("0.5", "0.4"))
    with pytest.raises(
        InputError, match=r"results\.csv: line 4 repeats the study, .* of an earlier one"
    ):
        file.rows()


def test_force_refuses_a_file_that_is_no_table_of_results_before_any_work(
    project: Project, tmp_path: Path
) -> None:
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    given = ("--force", "--replicates", "1", "--results", str(tmp_path / "results.csv"))
    refused = project("ablation", *given)
    assert refused.code == 2
    assert "Give another file with --results" in refused.err
    assert not (project.run / "teacher.safetensors").exists()


def without(name: str) -> Callable[..., dict[str, Any]]:
    """`relevant` where there is no such option."""

    def found(options: Options, params: Iterable[str]) -> dict[str, Any]:
        return {key: value for key, value in relevant(options, params).items() if key != name}

    return found


@pytest.mark.slow
def test_what_twice_the_steps_give_is_read_from_the_replicates_of_the_recipe(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.csv"
    options = Options()
    assert results_file.remaining(options, path) is None
    file = ResultsFile(path, "parts", options)
    for replicate, (plain, longer) in enumerate([(0.2, 0.5), (0.3, 0.4)]):
        rows = [
            {"variant": variant, "stream": stream, "mAP": mAP + (stream == "face")}
            for variant, mAP in (("plain", plain), ("both", 0.9), ("plain, 2× steps", longer))
            for stream in ("face", "all")
        ]
        rest = {"protocol": "market", "queries": 9, "rank1": 0, "mAP_with_face": 0, "minutes": 1}
        file.add(replicate, pd.DataFrame([{**row, "replicate": replicate, **rest} for row in rows]))
    assert results_file.remaining(options, path) == (pytest.approx(20), 2)
    other = config.override(options, {"eval.flip": False})
    assert results_file.remaining(other, path) is None


def test_a_recipe_is_its_options_with_an_effect_its_world_and_its_weights(
    data: Path, tmp_path: Path
) -> None:
    options = config.override(Options(), {"data.root": data})
    digest = recipe_digest(options)
    assert re.fullmatch("[0-9a-f]{12}", digest)
    assert recipe_digest(config.override(options, {"data.workers": 7, "device": "cpu"})) == digest
    assert recipe_digest(config.override(options, {"eval.flip": False})) != digest
    with pytest.MonkeyPatch.context() as patch:  # as before the option was added
        patch.setattr(results_file, "relevant", without("eval.flip"))
        assert recipe_digest(options) == digest
    facts = json.loads((data / "benchmark.json").read_text())
    for change in ({"seed": 8}, {"degradation": 0.5}):
        other = {**facts, "options": facts["options"] | change}
        (data / "benchmark.json").write_text(json.dumps(other))
        assert recipe_digest(options) != digest
    found = set()
    for content in (b"one", b"other"):
        (tmp_path / "teacher.safetensors").write_bytes(content)
        given = config.override(options, {"pre_train": tmp_path / "teacher.safetensors"})
        found.add(recipe_digest(given))
    assert len(found | {recipe_digest(options)}) == 3
    given = config.override(options, {"teachers": {"clip": {"weights": tmp_path / "none.pt"}}})
    with pytest.raises(InputError, match=r"teachers\.clip\.weights: .*none\.pt"):
        recipe_digest(given)


def test_the_code_s_digest_ignores_comments_format_documentation_and_display(
    tmp_path: Path,
) -> None:
    def digest(text: str, name: str = "stages/models/net.py") -> str:
        for room in ("cache", "stages/models", "stages/reporting", "stages/base"):
            (tmp_path / room).mkdir(parents=True, exist_ok=True)
        path = tmp_path / name
        path.write_text(text)
        found = code_digest(tmp_path)
        path.unlink()
        return found

    code = "RATE = 2\n\ndef double(x):\n    return RATE * x\n"
    same = (
        '"""A module."""\nRATE = 2  # so much\n"""A rate."""\ndef double(x):\n    """Double."""\n'
        "    return (RATE\n      * x)\n"
    )
    assert digest(code) == digest(same)
    assert digest(code) != digest(code.replace("2", "3"))
    assert digest(code) != digest(code.replace("RATE * x", "x * RATE"))
    for shown in ("stages/reporting/page.py", "stages/base/progress.py"):
        assert digest(code, shown) == digest(same.replace("2", "3"), shown)
    assert digest(code, "stages/base/engine.py") != digest(code, "cache/engine.py")


# Tables and verdicts


@pytest.mark.parametrize(
    ("difference", "p", "verdict"),
    [
        (2.0, 0.0099, "helps"),
        (1.9, 0.0001, "no clear effect"),
        (9.0, 0.01, "no clear effect"),
        (-2.0, 0.001, "harms"),
        (-1.9, 0.0, "no clear effect"),
        (0.0, 1.0, "no clear effect"),
    ],
)
def test_a_verdict_needs_a_small_p_and_two_points(
    difference: float, p: float, verdict: str
) -> None:
    assert tables.verdict(difference, p) == verdict


def test_p_is_adjusted_for_the_cells_that_are_tests() -> None:
    base = [0.20, 0.30, 0.25, 0.28, 0.22]
    gains = [0.101, 0.099, 0.100, 0.102, 0.098]
    values = {
        "plain": base,
        "both": [b + gain for b, gain in zip(base, gains, strict=True)],
        "kd": base,
        "noise": [b + d for b, d in zip(base, (0.03, -0.03, 0.01, -0.02, 0.02), strict=True)],
        tables.CHANCE: [0.9] * 5,
    }
    found = summarise(rows_of(values), lambda _: "plain", same={("kd", "all")}).set_index("variant")
    alone = summarise(rows_of({k: values[k] for k in ("plain", "both")}), lambda _: "plain")
    assert found.loc["both", "p"] == pytest.approx(2 * alone["p"].iat[1])  # of two tests
    assert found.loc["both", "difference"] == pytest.approx(10)
    assert found["p"].isna().tolist() == [True, False, True, False, True]
    page = tables.ablation_page(tables.ablation_table(found.reset_index(), "plain"), {}, [])
    assert re.search(r"\| both \| \*\*35\.0.*<br>\+10\.0 \[.*<br>helps \(p < 0\.001\) \|", page)
    assert "| kd | 25.0 ± 4.1<br>same |" in page
    assert re.search(r"\| noise .*no clear effect \(p 0\.\d{3}\)", page)
    assert "| chance | 90.0 ± 0.0 |" in page  # neither compared nor the best


def test_one_replicate_has_no_p_and_no_verdict() -> None:
    found = summarise(rows_of({"plain": [0.2], "both": [0.5]}), lambda _: "plain")
    assert found["p"].isna().all()
    both = found.iloc[1]
    assert both["difference"] == pytest.approx(30)
    assert math.isnan(both["low"])  # the queries aren't on this machine
    page = tables.ablation_page(tables.ablation_table(found, "plain"), {}, [])
    assert "| both | **50.0**<br>+30.0 |" in page


def test_curves_are_drawn_of_means_and_intervals(tmp_path: Path) -> None:
    lines = {"plain": 0.2, "both": 0.3}
    values = {
        f"{line} {at}": [level + 0.05 * np.log2(at / 100) + 0.01 * i for i in range(3)]
        for line, level in lines.items()
        for at in (100, 200, 400)
    }
    rows = pd.concat([rows_of(values, stream) for stream in ("face", "body", "all")])
    places = {name: (name.split()[0], float(name.split()[1])) for name in values}
    draw_curves(rows, Curve("training steps", places), tmp_path / "curves")
    text = (tmp_path / "curves.svg").read_text()
    for words in ("training steps", "face", "body", "plain", "both", "400", "3 replicates"):
        assert f">{words}" in text or words in text
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    lines = {name: (f"line {name}", places[name][1]) for name in values}
    draw_curves(rows, Curve("training steps", lines), tmp_path / "many")
    text = (tmp_path / "many.svg").read_text()
    assert {text.count(f">line {name}<") for name in values} == {3}  # in each panel
    alone = rows[rows["replicate"] == 0]  # without intervals
    draw_curves(alone, Curve("training steps", places), tmp_path / "one")


def test_the_axis_of_curves_ends_at_the_highest_mAP_that_there_can_be() -> None:
    levels = {"plain": [Level(27, 40, -9, 130)], "both": [Level(27, 50, 45, 55)]}
    assert panels({"face": levels}, "mAP", "identities").axes[0].get_ylim() == (0, 100)
    assert panels({"face": {"both": levels["both"]}}, "", "").axes[0].get_ylim()[1] < 60


GRIDS = ["kd_loss.T=2,4", "train_student.lr=5e-3,1e-2", "mse.mse_weight=7"]


def test_students_of_a_sweep_whose_values_are_paths_have_folders_of_their_own(
    tmp_path: Path,
) -> None:
    run = SweptRun(Options(), RunFolder(tmp_path), seeds=1)
    variants = combinations(["kd_loss.T=3,4", "student.pre_train=../../a.pth,../b.pth"])
    places = {task.folder.path.resolve() for task in _tasks(run, variants).values()}
    assert len(places) == 4
    assert {place.parent for place in places} == {tmp_path.resolve() / "sweep"}


def test_one_by_one_a_single_option_differs_from_the_recipe() -> None:
    recipe = {"kd_loss.T": 2.0, "train_student.lr": None, "mse.mse_weight": 7.0, "other": 1}
    own, *others = combinations(GRIDS, recipe).values()
    assert own == {key: recipe[key] for key in ("kd_loss.T", "train_student.lr", "mse.mse_weight")}
    changed = [{key: v for key, v in each.items() if v != recipe[key]} for each in others]
    assert changed == [{"kd_loss.T": 4}, {"train_student.lr": 5e-3}, {"train_student.lr": 1e-2}]
    assert len(combinations(GRIDS)) == 4


def test_a_grid_names_options_of_the_recipe_and_no_seed() -> None:
    assert len(combinations(["teachers.clip.weight=1,10"])) == 2
    with pytest.raises(InputError, match="--seeds"):
        combinations(["train_student.seed=5,6"])
    with pytest.raises(InputError, match="no value of it"):
        combinations(["prepare.own.seed=1,2"], {"kd_loss.T": 2.0})


def test_a_recipe_is_the_content_of_images_that_no_benchmark_describes(
    data: Path, tiny_benchmark: Path
) -> None:
    options = config.override(Options(), {"data.root": data})
    drawn = recipe_digest(options)
    elsewhere = config.override(options, {"data.test_root": tiny_benchmark})
    assert recipe_digest(elsewhere) != drawn
    (data / "benchmark.json").unlink()
    seen = {recipe_digest(options), drawn}
    for split in ("bounding_box_train", "query"):
        next((data / "imgs" / split).glob("*.jpg")).unlink()
        seen.add(recipe_digest(options))
    assert len(seen) == 4


def test_jobs_share_the_threads_of_the_machine(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    started: list[tuple[int, int | None, int | None]] = []

    def note(
        launch: Launch, make_worker: object, items: Iterable[Any], *_: object
    ) -> Iterator[Any]:
        for item in items:
            started.append((launch.workers, launch.threads, item.options.launch.threads))
            yield item, None

    monkeypatch.setattr(students, "map_items", note)
    options = config.load(project.config)
    tasks = [students.StudyTask(name, options, RunFolder(project.run / name)) for name in "ab"]
    bars = StudyBars("ablation", 2, of_students=False)
    assert len([*students.side_by_side(tasks, object, Launch(), 4, bars)]) == 2
    assert started == [(2, 2, 2)] * 2
