"""Options: every shipped config works; every mistake is named, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deskpro.pipeline import config
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.params import LEAVES, flatten
from deskpro.stages.base.prepare_options import Prepare
from deskpro.stages.base.training_options import OtherTeacher
from tests.conftest import REPOSITORY

SHIPPED = sorted((REPOSITORY / "configs").rglob("*.yaml"))


def test_configs_are_shipped() -> None:
    assert "demo.yaml" in {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_config_loads_and_opens_with_its_command(path: Path) -> None:
    config.load(path)
    header = path.read_text().split("\n\n")[0]
    assert header.startswith("# ")
    assert "make " in header


def test_the_resolved_options_read_back_the_same(tmp_path: Path) -> None:
    options = config.load(REPOSITORY / "configs/demo.yaml", ["kd_loss.T=1", "data.root=/x"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(config.dump(options))
    assert config.load(saved) == options


def test_all_mistakes_are_named_in_one_message(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("kd_loss: {temprature: 3, T: five}\nbatchid: 1\nviews: {erase_area: [1, 0]}\n")
    with pytest.raises(InputError) as caught:
        config.load(path, ["student.width=0.3"])
    message = str(caught.value)
    assert "kd_loss.temprature: unknown option; kd_loss has enable, T, alpha" in message
    assert "kd_loss.T: must be a valid number, found 'five'" in message
    assert "batchid: must be greater than or equal to 2, found 1" in message
    assert "student.width: must be one of 0.25, 0.5, 0.75, 1.0, found 0.3" in message
    assert "views: erase_area (1.0, 0.0) must ascend" in message
    assert "5 invalid options" in message


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("kd_loss.T", "key=value"),
        ("batchid.x=1", "batchid"),
        ("nope=1", "nope: unknown option"),
        ("batchid=4.5", "batchid: must be a valid integer"),
        ("batchid='8'", "batchid: must be a valid integer"),
        ("device=gpu", "device"),
        ("kd_loss.T=.inf", "kd_loss.T: must be a finite number"),
        ("data_train=cuhk99", "must be one of benchmark"),
        ("train_student.epochs=5", "warmup_epochs 10 must be less than epochs 5"),
    ],
)
def test_a_bad_override_is_named(override: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    with pytest.raises(InputError, match=named.replace("'", ".")):
        config.load(path, [override])


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("3", 3.0), (".5", 0.5), ("2.e1", 20)])
def test_numbers_are_written_as_people_write_them(text: str, value: float, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"train_student: {{lr: {text}}}")
    assert config.load(path).train_student.lr == value
    assert config.load(path, [f"loss.margin={text}"]).loss.margin == value


@pytest.mark.parametrize(
    "text", ["[1, 2]", "a: b: c", "\tx: 1", "batchid: 2\nbatchid: 3", "[" * 5000]
)
def test_a_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        config.load(path)


def test_a_missing_config_lists_those_there_are() -> None:
    with pytest.raises(InputError, match=r"nowhere.yaml: no such config. .*"):
        config.load(Path("nowhere.yaml"))


def test_options_never_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Options().batchid = 3


@given(st.sampled_from([*LEAVES]))
def test_every_option_can_be_set_to_its_own_default(leaf: str) -> None:
    name = leaf.replace("*", "other")
    # The sections that may be absent.
    options = Options(prepare=Prepare(), teachers={"other": OtherTeacher()})
    default = flatten(options.model_dump(mode="json"))[name]
    changed = config.override(options, {name: default})
    assert changed == options
    assert name in flatten(yaml.safe_load(config.dump(changed)))
