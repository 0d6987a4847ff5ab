"""Arguments that commands share, above all the recipe and the run folder."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from deskpro.pipeline import messages
from deskpro.pipeline.config import assignment, load, override, parse, require_dataset
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log_to
from deskpro.stages.base.run_folder import RunFolder, read_manifest
from deskpro.stages.data.layouts import OWN_LIST, dataset_name

PATH = click.Path(path_type=Path)
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
CONFIG = click.option(
    "--config",
    type=PATH,
    help="The recipe: a YAML file, or a name that `deskpro init` lists.  [default: that of "
    "--run, else of --from]",
)
RUN = click.option("--run", type=FOLDER, help="The run folder.  [default: runs/<config name>]")
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another value of an option; `deskpro options` lists them. Repeatable.",
)
DEEP = click.option("--deep", is_flag=True, help="Read every file again, known or not.")
DATASET = click.option(
    "--dataset",
    metavar="NAME",
    help="How the file names of --data are read, unless it has a dataset.csv or data.name is set.  "
    "[default: data_train of the recipe, else celeb]",
)


def advise_on(path: Path) -> None:
    """Commands that errors advise are for this run folder, or for that of this store."""
    run = path.parent if path.name == "targets.zarr" else path
    messages.OPTIONS[:] = ["--run", str(run)]


def part_weights(text: str) -> dict[str, float]:
    """The weights of `--weights PART=W,…`; InputError for what is no number of at least 0."""
    found = dict[str, float]()
    for part in text.split(","):
        name, value = assignment("--weights", part.strip(), "face=0.5,body=0.5")
        weight = parse(value)
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < 1e6 or name in found:
            raise InputError(
                f"--weights {text}: each part has one weight, a number from 0, as in "
                "face=0.5,body=0.5"
            )
        found[name] = float(weight)
    return found


def as_words(given: Mapping[str, object]) -> list[str]:
    """Options and their values as they are typed; those that are None are absent."""
    return [w for name, value in given.items() if value is not None for w in (name, str(value))]


class RunArguments(NamedTuple):
    """A recipe and a run folder as typed; files are read by its methods."""

    config: Path | None = None
    run: Path | None = None
    source: Path | None = None
    overrides: tuple[str, ...] = ()
    force: bool = False

    def resolved(self) -> RunArguments:
        """With the recipe of the run folder, or of that of --from, where none is given."""
        folders = [folder for folder in (self.run, self.source) if folder is not None]
        known = [path for folder in folders if (path := folder / "config.yaml").is_file()]
        return self if self.config or not known else self._replace(config=known[0])

    def options(self) -> Options:
        """The options, without a run folder."""
        return load(self.resolved().config, self.overrides)

    def of_dataset(self, root: Path, dataset: str | None) -> Options:
        """The options on another dataset, as --data and --dataset give it."""
        options = self.options()
        rule = options.data.name
        if dataset is not None and (rule or dataset_name(root, dataset) != dataset):
            given = f"data.name {rule}" if rule else f"{root / OWN_LIST}"
            raise InputError(f"--dataset {dataset}: {given} says how images are read. Give one")
        own = options.data_train if self.resolved().config else "celeb"
        name = require_dataset(dataset or own)
        changes = {"data.root": root, "data.test_root": None, "data_train": name, "data_test": None}
        return override(options, changes)

    def read(self) -> tuple[Options, RunFolder | None]:
        """Options, and the run folder where one is given; nothing is written there."""
        config = self._config()
        folder = None if self.run is None else RunFolder.open(self.run)
        return load(config, self.overrides), folder

    def open(self) -> tuple[Options, RunFolder]:
        """Options and folder of a run: of a recipe, or of a run folder that has its own."""
        config = self._config()
        messages.OPTIONS[:] = self.words()
        options = load(config, self.overrides)
        name = config.stem + (f"-{options.tag}" if options.tag else "")
        folder = self.run or Path("runs") / name
        log_to(folder)
        opened = RunFolder.open(folder, self.source)
        return _with_teacher(options, opened), opened

    def _config(self) -> Path:
        if self.config is None and self.run is None:
            raise click.UsageError("give a recipe with --config, or a run folder with --run")
        found = self.resolved().config
        if found is None:
            raise click.UsageError(f"{self.run} has no config.yaml; give a recipe with --config")
        return found

    def words(self) -> list[str]:
        """The options of the command line that gave it."""
        named = {"--config": self.config, "--run": self.run, "--from": self.source}
        sets = (word for override in self.overrides for word in ("--set", override))
        return [*as_words(named), *sets]


def _with_teacher(options: Options, folder: RunFolder) -> Options:
    """The options with the `pre_train` of the run whose targets are used, if they have none."""
    if folder.source is None or options.pre_train is not None:
        return options
    made = read_manifest(RunFolder(folder.source).manifest("teacher-cache"))
    weights = made and made["config"].get("pre_train")
    return override(options, {"pre_train": weights}) if weights else options


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every stage takes; the command gets them as its first argument."""

    @CONFIG
    @RUN
    @click.option("--from", "source", type=FOLDER, help="Use teacher and targets of this run.")
    @SET
    @click.option("--force", is_flag=True, help="Run although the output exists; replace it.")
    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        command(RunArguments(**{name: given.pop(name) for name in RunArguments._fields}), **given)

    return wrapped


def fail_with(lines: Iterable[object]) -> None:
    """Print what was found; exit code 1 where that is anything."""
    found = [str(line) for line in lines]
    if found:
        click.echo("\n".join(found))
        sys.exit(1)


def options_of(manifest: Path, overrides: tuple[str, ...], output: Path, command: str) -> Options:
    """The options that a finished stage records in its manifest; InputError without one."""
    record = read_manifest(manifest)
    if record is None or not output.exists():
        raise InputError(f"{output}: missing, or has no manifest", command=command)
    return load(record["config"], overrides)
