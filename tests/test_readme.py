"""The documentation tells the truth: its commands, options, files and tables are the program's."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import torch
import yaml

from deskpro.pipeline import config
from deskpro.pipeline.cli import deskpro
from deskpro.pipeline.studies import STUDIES
from deskpro.stages.base.options import Options
from deskpro.stages.base.params import LEAVES
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.losses.terms import TERMS, Term, params
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.preparation.methods import METHODS
from deskpro.stages.preparation.schemes import SCHEMES
from deskpro.stages.targets.kinds import TARGETS
from tests.conftest import REPOSITORY, Result, run_make
from tests.house.tree import check

DOCUMENTS = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for pattern in ("README.md", "*/README.md", "stages/**/README.md", "configs/*.md")
    for path in REPOSITORY.glob(pattern)
}
"""Path → text, of the front page and of the page of each folder."""
README, CONFIGS = DOCUMENTS["README.md"], DOCUMENTS["configs/README.md"]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
TARGETS_OF_MAKE = {*re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)}
VARIABLES_OF_MAKE = {*re.findall(r"^(\w+) *\?=", MAKEFILE, re.MULTILINE)}
RECIPES = {path.stem for path in (REPOSITORY / "configs").glob("*.yaml")}
PUBLISHED = {
    "data_train", "data_test", "loss", "tag", "batchid", "batchimage", "kd_loss.enable",
    "kd_loss.T", "kd_loss.alpha", "mse.mse_weight", "mse.spatial_attn_lr", "forward_mode",
    "pre_train",
}  # fmt: skip
"""The options that the published training commands set."""
PROSE = {
    name: re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL)
    for name, text in DOCUMENTS.items()
    if name.count("/") < 2
}
"""Without Python, whose examples add options of their own, and rooms, which name modules."""


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def code(text: str) -> list[str]:
    """What stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def section(title: str, text: str) -> str:
    """What stands below a heading, as far as the next of its level; comments in code are none."""
    bare = re.sub(r"```.*?```", lambda block: "." * len(block[0]), text, flags=re.DOTALL)
    heading = re.search(rf"^(#+) {re.escape(title)}$", bare, re.MULTILINE)
    assert heading, title
    ends = re.compile(rf"^#{{1,{len(heading[1])}}} ", re.MULTILINE).search(bare, heading.end())
    return text[heading.end() : ends.start() if ends else None]


def rows(text: str) -> list[list[str]]:
    """The cells of the first table."""
    table = text[text.index("\n|") :].split("\n\n")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def lines() -> Iterator[tuple[str, str]]:
    """Every command line of the shell examples, with the document that it stands in."""
    for name, text in DOCUMENTS.items():
        for block in blocks("sh", text):
            for line in block.replace("\\\n", " ").splitlines():
                if command := line.partition("#")[0].strip():
                    yield name, command


LINES = list(lines())
MENTIONED = [
    (name, words)
    for name, text in DOCUMENTS.items()
    for words in code(text)
    if re.match(r"make |(\.venv/bin/)?deskpro ", words)
    and not re.search(r"…|(?<!\S)[A-Z]{3,}(?!\S)", words)  # not those with a placeholder
]
"""Commands named in the text, which may leave arguments out."""


def as_deskpro(words: list[str]) -> list[str] | None:
    """The arguments of `deskpro` in a command line; of make those that its variables add.

    None for a make target that is no command. Fails for a program that isn't known.
    """
    program = Path(words[0]).name
    if program == "deskpro":
        return words[1:]
    if program == "torchrun":
        return words[words.index("--") + 2 :]  # without it torchrun takes --run for its own
    assert program == "make", words
    given = dict(word.split("=", 1) for word in words if "=" in word)
    target = [word for word in words[1:] if "=" not in word]
    assert len(target) == 1, words
    assert target[0] in TARGETS_OF_MAKE, target
    assert given.keys() <= VARIABLES_OF_MAKE, words
    if target[0] not in deskpro.commands:
        return None
    recipe = given.get("CONFIG", "configs/demo.yaml")
    if target[0] in ("report", "export"):
        return [target[0], given.get("RUN", "runs/demo"), *shlex.split(given.get("ARGS", ""))]
    named = ["--config", recipe] if "RUN" not in given or "CONFIG" in given else []
    options = {"RUN": "--run", "FROM": "--from"}
    named += [word for key in options if key in given for word in (options[key], given[key])]
    return [target[0], *named, *shlex.split(given.get("ARGS", ""))]


def resolve(arguments: list[str]) -> tuple[click.Command, list[str]]:
    """The command that arguments name, and what is left of them."""
    command: click.Command = deskpro
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        assert arguments[0] in command.commands, f"{command.name} has no {arguments[0]}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return command, arguments


@pytest.mark.parametrize("target", ["report", "export"])
def test_make_finds_the_run_of_a_recipe_with_a_tag(target: str, tmp_path: Path) -> None:
    def home(tag: str, *words: str) -> str:
        (tmp_path / "my recipe.yaml").write_text(f"device: cpu\n{tag}\n")
        printed = run_make("-n", target, f"CONFIG={tmp_path / 'my recipe.yaml'}", *words)
        return shlex.split(printed.splitlines()[-1])[2]

    assert home("") == home("tag: ''") == "runs/my recipe"
    assert home("tag: b.1") == home('tag: "b.1"  # best') == "runs/my recipe-b.1"
    assert home("tag: b", "ARGS=--set tag=c --set device=cpu") == "runs/my recipe-c"
    assert home("tag: b", "RUN=runs/x y") == "runs/x y"


def test_the_front_page_is_short() -> None:
    assert len(README.splitlines()) <= 150
    assert README.index("make demo") < README.index("make test") < README.index("deskpro init")


@pytest.mark.parametrize(("name", "line"), LINES, ids=[f"{n}: {line}" for n, line in LINES])
def test_every_command_line_can_be_typed(name: str, line: str) -> None:
    if line.startswith(("source ", 'eval "$(_DESKPRO_COMPLETE=')):
        return
    arguments = as_deskpro(shlex.split(line))
    if arguments is None:
        return
    command, rest = resolve(arguments)
    try:
        context = command.make_context(command.name, [*rest])
    except click.exceptions.Exit:  # --help
        return
    overrides = context.params.get("overrides") or ()
    recipe = context.params.get("config")
    if overrides and command.name != "make-benchmark":
        shipped = REPOSITORY / "configs" / f"{Path(recipe or 'demo').stem}.yaml"
        config.load(shipped if shipped.exists() else None, overrides)
    for grid in context.params.get("grids") or ():
        assert grid.partition("=")[0] in LEAVES


def test_the_text_names_only_commands_and_options_that_exist() -> None:
    assert len(MENTIONED) > 20
    for name, words in MENTIONED:
        arguments = as_deskpro(shlex.split(words))
        if arguments:
            command, rest = resolve(arguments)
            options = {word.partition("=")[0] for word in rest if word.startswith("--")}
            known = {flag for param in command.params for flag in param.opts} | {"--help"}
            assert options <= known, f"{name}: {words}"


def test_every_command_is_in_the_table_of_commands() -> None:
    table = rows(section("Commands", DOCUMENTS["pipeline/README.md"]))
    groups = {name for name, found in deskpro.commands.items() if isinstance(found, click.Group)}
    listed = {name for row in table for name in code(row[1])}
    inside = {f"{g} {name}" for g in groups for name in deskpro.commands[g].commands}  # type: ignore[attr-defined]
    assert listed == {*deskpro.commands} - groups | inside


def test_every_variable_of_make_is_explained() -> None:
    text = DOCUMENTS["pipeline/README.md"]
    for name in VARIABLES_OF_MAKE - {"VENV", "PYTHON"}:
        assert f"| `{name}" in text, name


def test_every_recipe_that_a_command_names_exists_or_is_written_on_the_page() -> None:
    for name, line in LINES:
        for recipe in re.findall(r"(?:CONFIG=|--config |init )(\S+)", line):
            own = any(f"# {recipe}" in block for block in blocks("yaml", DOCUMENTS[name]))
            copied = any(f"init {Path(recipe).stem} {recipe}" in other for _, other in LINES)
            assert own or copied or Path(recipe).stem in RECIPES, f"{name}: {line}"


def test_every_option_that_the_text_names_exists() -> None:
    sections = "|".join({*Options.model_fields} - {"device", "tag"})
    known = {*LEAVES} | {*Options.model_fields}
    known |= {leaf.rpartition(".")[0] for leaf in LEAVES}
    suffixes = (".safetensors", ".csv", ".json", ".html", ".yaml", ".py", ".zarr", ".png", ".svg")
    for name, text in PROSE.items():
        for option in re.findall(rf"(?<![/\w.])((?:{sections})(?:\.[a-zA-Z_0-9]+)+)\b", text):
            assert option in known or option.endswith(suffixes), f"{name}: {option}"


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    for name, text in DOCUMENTS.items():
        for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
            path, _, anchor = link.partition("#")
            target = (REPOSITORY / name).parent / path if path else REPOSITORY / name
            assert target.exists(), f"{name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
                assert anchor in slugs, f"{name}: {link}"


def test_every_file_that_the_guide_of_the_tests_names_exists() -> None:
    named = re.findall(
        r"`((?:[\w.]+/)*\w+\.(?:py|npz|md)|(?:\w+/)+)`", DOCUMENTS["tests/README.md"]
    )
    assert {"conftest.py", "house/"} <= {*named}
    check("files of the guide", {
        name for name in named
        if not any((REPOSITORY / room / name).exists() for room in ("", "tests", "tests/house"))
    })  # fmt: skip


def test_the_recipes_in_the_text_are_recipes() -> None:
    recipes = [block for text in DOCUMENTS.values() for block in blocks("yaml", text)]
    assert len(recipes) == 5
    for recipe in recipes:
        assert Options.model_validate(yaml.safe_load(recipe))


def test_datasets_recipes_methods_and_protocols_are_documented() -> None:
    layouts = section("Datasets and layouts", CONFIGS)
    preparation = section("Preparing a raw dataset", CONFIGS)
    methods = [name for methods in METHODS.values() for name in methods]
    wanted = {
        CONFIGS: RECIPES,
        README: RECIPES,
        layouts: LAYOUTS,
        preparation: [*methods, *SCHEMES],
        section("Protocols", CONFIGS): PROTOCOLS,
        section("Targets", DOCUMENTS["stages/README.md"]): TARGETS,
    }
    for text, names in wanted.items():
        for name in names:
            assert f"`{name}`" in text, name


def test_the_table_of_losses_names_every_option_of_the_terms() -> None:
    table = section("Losses", DOCUMENTS["stages/README.md"])
    for term in TERMS.values():
        for option in params([term]):
            assert f"`{option}`" in table, option


def test_every_published_option_is_mapped_to_one_that_exists() -> None:
    table = rows(section("Options of the published commands", CONFIGS))
    assert {code(row[0])[0].split()[0] for row in table} == PUBLISHED | {"--config"}
    for row in table[1:]:
        for name in code(row[1]):
            assert name in LEAVES, name


def test_the_table_of_options_has_its_place() -> None:
    assert CONFIGS.index("<!-- options: deskpro options --markdown -->") < CONFIGS.index(
        "<!-- end of options -->"
    )


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    table = rows(section("Dependencies", DOCUMENTS["pipeline/README.md"]))
    explained = {name.strip().lower() for row in table for name in row[0].split(",")}
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    required = [*project["dependencies"], *extras]
    names = {re.split(r"[<>=\[]", requirement)[0].lower() for requirement in required}
    assert {name for name in names if "types-" not in name and "-stubs" not in name} == explained


def test_results_have_every_variant_command_seeds_and_date() -> None:
    results = DOCUMENTS["configs/RESULTS.md"]
    for variant in STUDIES["parts"].variants(Options()):
        assert f"| {variant} |" in results
    parts = re.split(r"^## ", results, flags=re.MULTILINE)[1:]
    for part in parts:
        for what in (r"`make (demo|ablation|tune)", r"(seeds?|replicates?) \d", r"20\d\d"):
            assert re.search(what, part), f"{what}: {part.splitlines()[0]}"


def test_the_questions_are_twelve_and_say_where_they_were_asked() -> None:
    questions = re.split(r"^## ", DOCUMENTS["configs/FAQ.md"], flags=re.MULTILINE)[1:]
    assert len(questions) == 12
    for question in questions:
        assert question.splitlines()[0].endswith("?")
        assert re.search(r"https://github.com/\S+/issues/\d+", question)


def test_the_example_of_a_loss_is_one() -> None:
    function, row, _ = blocks("python", section("A loss", DOCUMENTS["stages/README.md"]))
    space: dict[str, object] = {"Term": Term}
    exec(function, space)
    ((name, term),) = eval(f"{{{row}}}", space).items()
    assert term.target in TARGETS
    assert name in space
    found = term.loss(torch.ones(4, 7, 5), torch.zeros(4, 7, 5))
    assert found.item() == 7


def test_the_examples_in_python_run(
    finished_run: object,
    tiny_benchmark: Path,
    command: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/benchmark").symlink_to(tiny_benchmark)
    (tmp_path / "runs/demo").symlink_to(finished_run("train-student"))  # type: ignore[operator]
    monkeypatch.chdir(tmp_path)
    assert command("cache", "render", "runs/demo", "rendered").code == 0
    assert command("cache", "pack", "runs/demo", "demo-targets.zip").code == 0
    for name in ("README.md", "cache/README.md"):
        for example in blocks("python", DOCUMENTS[name]):
            exec(example, {})


def test_the_citation_names_software_and_paper() -> None:
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    paper = cited["preferred-citation"]
    assert paper["title"] in README
    assert "arXiv:2208.12023" in str(paper)
