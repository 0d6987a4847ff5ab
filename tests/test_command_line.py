"""The command line: help, examples, the table of options, recipes by name."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import yaml

from deskpro.pipeline import command_help, config, option_table, recipes
from deskpro.pipeline.cli import deskpro
from deskpro.stages.base.options import Options
from deskpro.stages.base.params import LEAVES, WITHOUT_EFFECT
from tests.conftest import REPOSITORY, Project, Result


def walk(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    """Every command below a group, by the words that call it."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[prefix + name] = command
        if isinstance(command, click.Group):
            found |= walk(command, f"{prefix}{name} ")
    return found


COMMANDS = walk(deskpro)


def parsed(words: list[str]) -> click.Context:
    """The context of a command as typed, not run; click refuses what cannot be typed."""
    group, context = deskpro, click.Context(deskpro)
    command: click.Command = group
    while isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
    context = command.make_context(name, words)
    assert not context.args
    return context


def test_every_command_is_in_one_section() -> None:
    listed = [name for names in command_help.SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(deskpro.commands)


def test_a_command_without_section_and_example_is_shown_last() -> None:
    added = click.Command("new", help="Does something new.")
    group = command_help.Commands(commands=[*deskpro.commands.values(), added])
    assert group.list_commands(click.Context(group))[-1] == "new"
    shown = group.get_help(click.Context(group))
    assert "Others:" in shown
    assert "Does something new." in shown
    assert "Others:" not in deskpro.get_help(click.Context(deskpro))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_can_be_typed(name: str) -> None:
    program, *words = shlex.split(command_help.EXAMPLES[name])
    assert program == "deskpro"
    if name != "cache":  # a group: its example is of a command below it
        assert " ".join(words).startswith(f"{name} ")
    for key, value in parsed(words).params.items():
        if key == "overrides" and "make-benchmark" not in words:
            assert config.load(None, value)


def test_help_fits_80_columns_whole() -> None:
    for name, found in {"": deskpro, **COMMANDS}.items():
        shown = found.get_help(click.Context(found, info_name="deskpro", terminal_width=80))
        assert max(map(len, shown.splitlines())) <= 80, name
        assert "..." not in shown.replace("[ARGS]...", "").replace("RUNS...", ""), name
        assert "<=" not in shown, name


def test_every_option_is_documented() -> None:
    found = {option.name: option for option in option_table.find()}
    assert [*found] == [*LEAVES]
    for option in found.values():
        assert option.about.endswith((".", ":")), option
        assert option.type, option


def test_defaults_are_written_as_yaml() -> None:
    for option in option_table.find():
        if not option.name.startswith(("prepare.", "teachers.")):
            options = Options().model_dump(mode="json")
            for part in option.name.split("."):
                options = options[part]
            assert yaml.safe_load(option.default) == options, option


def test_effects_are_those_of_the_stages() -> None:
    effect = {option.name: option.effect for option in option_table.find()}
    assert effect["kd_loss.T"] == "makes stale: train-student"
    assert effect["views.flip"] == "makes stale: teacher-cache, train-student"
    assert effect["eval.flip"] == "makes stale: eval"
    assert all(WITHOUT_EFFECT[name] in effect[name] for name in WITHOUT_EFFECT)


def test_allowed_values_are_in_words() -> None:
    allowed = {option.name: (option.type, option.allowed) for option in option_table.find()}
    assert allowed["kd_loss.alpha"] == ("number", "0 to 1")
    assert allowed["kd_loss.T"] == ("number", "above 0")
    assert allowed["loss.label_smoothing"] == ("number", "at least 0, below 1")
    assert allowed["data.body_size"] == ("2 integers", "each 16 to 4,096")
    assert allowed["teacher.width"] == ("one of", "0.25, 0.5, 0.75, 1.0")
    assert allowed["pre_train"] == ("path or null", "")
    assert "ltcc" in allowed["data_train"][1]
    assert "celeb-plain" in allowed["eval.protocols"][1]


def test_the_table_of_options_in_the_documents_is_that_of_the_command() -> None:
    text = (REPOSITORY / "configs" / "README.md").read_text()
    _, _, rest = text.partition("<!-- options: deskpro options --markdown -->\n")
    table, _, _ = rest.partition("<!-- end of options -->")
    assert table.strip() == option_table.as_markdown(option_table.find()).strip()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("kd_los.T=1", "kd_loss"),
        ("T=1", "kd_loss.T"),
        ("lr=1", "train_student.lr"),
        ("views.flp=1", "views.flip"),
        ("eval.reranking.k1=3", "eval.rerank"),
        ("kd_loss.temperature=1", "kd_loss has enable, T, alpha"),
    ],
)
def test_an_unknown_option_is_answered_by_what_is_near(
    typed: str, meant: str, command: Callable[..., Result]
) -> None:
    result = command("teacher-cache", "--config", "demo", "--set", typed)
    assert result.code == 2
    assert meant in result.err


def test_an_unknown_prefix_is_refused(command: Callable[..., Result]) -> None:
    result = command("options", "kd_los")
    assert result.code == 2
    assert "did you mean kd_loss? Type: deskpro options" in result.err


def test_a_recipe_is_found_by_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder of that name is none
    by_name = config.load(Path("demo"))
    assert by_name == config.load(REPOSITORY / "configs" / "demo.yaml")
    (tmp_path / "own").write_text("batchid: 7")  # a file is
    assert config.load(Path("own")).batchid == 7


def test_init_copies_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Result]
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = command("init").out
    assert all(f"{name} " in listed for name in recipes.names())
    assert max(map(len, listed.splitlines())) <= 80
    assert command("init", "celeb", "mine.yaml").code == 0
    assert config.load(Path("mine.yaml")) == config.load(Path("celeb"))
    assert "CONFIG=mine.yaml" in Path("mine.yaml").read_text()
    assert "--config 'my own.yaml'" in command("init", "celeb", "my own.yaml").err
    assert "CONFIG='my own.yaml'" in Path("my own.yaml").read_text()
    for words in (("init", "celeb", "mine.yaml"), ("init", "selebrity")):
        refused = command(*words)
        assert refused.code == 2
        assert "mine.yaml: exists" in refused.err or "celeb-light" in refused.err


def test_a_dataset_that_is_to_be_prepared_is_not_prepared_yet(
    tmp_path: Path, command: Callable[..., Result]
) -> None:
    result = command("check-data", "--config", "own", "--set", f"data.root={tmp_path / 'made'}")
    assert result.code == 2
    assert "not prepared yet" in result.err
    assert "Type: deskpro prepare --config own" in result.err


def test_a_command_that_fails_leaves_no_run_folder(
    project: Project, command: Callable[..., Result]
) -> None:
    run = project.run.with_name("failed")
    for stage in ("train-teacher", "train-student", "eval"):
        result = command(
            stage, "--config", str(project.config), "--run", str(run),
            "--set", f"data.root={run.with_name('nothing')}",
        )  # fmt: skip
        assert result.code == 2
        assert not run.exists(), stage


def test_completion_offers_commands_and_options() -> None:
    environment = {**os.environ, "_DESKPRO_COMPLETE": "bash_complete"}
    for words, offered in (("deskpro train", "train-student"), ("deskpro eval --da", "--dataset")):
        typed = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        found = subprocess.run(
            [Path(sys.executable).with_name("deskpro")],
            env={**environment, **typed}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert offered in found.stdout


def test_an_interrupted_run_brings_its_own_recipe(
    project: Project, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deskpro.stages.train_teacher import TrainTeacher

    def stopped(stage: TrainTeacher, job: object) -> None:
        (stage.folder.path / "teacher_history.csv").write_text("")  # something is left
        raise KeyboardInterrupt

    run = project.run.with_name("stopped")
    with monkeypatch.context() as patch:
        patch.setattr(TrainTeacher, "run", stopped)
        words = ("--config", str(project.config), "--run", str(run), "--set", "kd_loss.T=3")
        assert command("train-teacher", *words).code == 130
    assert config.load(run / "config.yaml").kd_loss.T == 3


def test_batches_that_nobody_can_fill_are_found_by_check_data(
    project: Project, command: Callable[..., Result]
) -> None:
    result = command("check-data", "--config", str(project.config), "--set", "batchid=50",
                     "--set", "train_teacher.batchid=60")  # fmt: skip
    assert result.code == 2
    assert "make no batch of batchid 50: --set batchid=4 or less" in result.out
    assert "make no batch of train_teacher.batchid 60" in result.out


@pytest.mark.finished("train-student")
def test_the_run_that_targets_come_from_brings_the_recipe(
    project: Project, command: Callable[..., Result]
) -> None:
    run = project.run.with_name("T1")
    words = ("--run", str(run), "--from", str(project.run), "--set", "train_student.max_steps=1")
    assert command("train-student", *words).code == 0
    assert (run / "student.safetensors").exists()


@pytest.mark.finished("train-student")
def test_nothing_of_the_run_that_targets_come_from_is_advised_to_be_replaced(
    project: Project, command: Callable[..., Result]
) -> None:
    words = ("--from", str(project.run), "--set", "views.flip=0.25")
    refused = command("train-student", "--run", str(project.run.with_name("T1")), *words)
    assert refused.code == 2
    assert "views.flip was 0.5, is 0.25" in refused.err
    assert "choose another --run, without --from, which makes its own" in refused.err
    assert "--force" not in refused.err
    assert "--force" in project("teacher-cache", *words[2:]).err  # to the run itself
