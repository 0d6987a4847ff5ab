"""The README tells the truth: its commands, options, files and tables are those of the program."""

from __future__ import annotations

import re
import tomllib

import yaml

from deskpro.pipeline.studies import STUDIES
from deskpro.stages.base.options import LEAVES, Options
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.preparation.methods import METHODS
from deskpro.stages.preparation.schemes import SCHEMES
from tests.conftest import REPOSITORY
from tests.house.tree import check

README = (REPOSITORY / "README.md").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()

PUBLISHED = {
    "data_train", "data_test", "loss", "tag", "batchid", "batchimage", "kd_loss.enable",
    "kd_loss.T", "kd_loss.alpha", "mse.mse_weight", "mse.spatial_attn_lr", "forward_mode",
    "pre_train",
}  # fmt: skip
"""The options that the published training commands set."""


def rows(title: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    section = README.split(f"## {title}")[1]
    table = section[section.index("\n|") :].split("\n\n")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_every_published_option_is_mapped_to_one_that_exists() -> None:
    table = rows("Options, for those who know the published commands")
    published = {code(row[0])[0].split()[0] for row in table}
    assert published == PUBLISHED | {"--config"}
    known = set(LEAVES)
    for row in table[1:]:
        for name in code(row[1]):
            assert name in known, name


def test_every_option_that_the_text_names_exists() -> None:
    sections = "|".join(Options.model_fields)
    known = set(LEAVES) | set(Options.model_fields)
    named = re.findall(rf"\b((?:{sections})(?:\.[a-zA-Z_0-9]+)+)\b", README)
    assert named
    for name in named:
        files = (".safetensors", ".csv", ".json", ".html", ".yaml")
        assert name in known or name.endswith(files), name


def test_every_make_target_that_the_text_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    shell = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b", "\n".join(code(README) + shell)))
    assert {"demo", "test", "teacher-cache", "train-student", "eval"} <= named
    assert named <= targets


def test_every_file_that_the_text_links_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_every_file_that_the_guide_of_the_tests_names_exists() -> None:
    guide = (REPOSITORY / "tests" / "README.md").read_text()
    named = re.findall(r"`((?:[\w.]+/)*\w+\.(?:py|npz|md)|(?:\w+/)+)`", guide)
    assert {"conftest.py", "house/", "stages/losses/"} <= {*named}
    check("files of the guide", {
        name for name in named
        if not any((REPOSITORY / room / name).exists() for room in ("", "tests", "tests/house"))
    })  # fmt: skip


def test_the_recipes_in_the_text_are_recipes() -> None:
    recipes = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(recipes) == 2
    for recipe in recipes:
        assert Options.model_validate(yaml.safe_load(recipe))


def test_every_method_of_preparation_is_named() -> None:
    section = README.split("### From a raw dataset")[1].split("\n## ")[0]
    for name in [name for methods in METHODS.values() for name in methods] + [*SCHEMES]:
        assert f"`{name}`" in section


def test_every_layout_is_named() -> None:
    for name in LAYOUTS:
        assert f"`{name}`" in README


def test_every_recipe_is_named() -> None:
    section = README.split("## Your own data")[1].split("\n## ")[0]
    for path in (REPOSITORY / "configs").glob("*.yaml"):
        assert f"`{path.stem}`" in section


def test_every_command_that_the_text_types_exists() -> None:
    from deskpro.pipeline.cli import deskpro

    named = re.findall(r"deskpro ([a-z]+(?:-[a-z]+)*) ", README)
    assert {"import-checkpoint", "embed"} <= set(named)
    assert set(named) <= set(deskpro.commands)


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    explained = {name.strip().lower() for row in rows("Dependencies") for name in row[0].split(",")}
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    required = [*project["dependencies"], *extras]
    names = {re.split(r"[<>=\[]", requirement)[0].lower() for requirement in required}
    assert {name for name in names if "types-" not in name and "-stubs" not in name} == explained


def test_the_ablation_table_has_every_variant_and_its_command() -> None:
    section = README.split("## What each part is worth")[1].split("\n## ")[0]
    for variant in STUDIES["parts"]:
        assert f"| {variant} | all |" in section
    assert "`make ablation`" in section
