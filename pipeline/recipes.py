"""The recipes that come with the package: by name, from anywhere, and copied to be changed."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

from deskpro.cache.files import read_text, write_text
from deskpro.stages.base.errors import InputError

FOLDER = Path(__file__).parents[1] / "configs"
"""Their folder; beside the code in a checkout and in an installed package alike."""


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(config: Path) -> Path:
    """The file of a recipe that is given as a path, or by the name of one that comes with us.

    A name has no suffix and no folder; a file of that name goes before.
    """
    shipped = FOLDER / f"{config}.yaml"
    named = config.name == str(config) and not config.is_file() and shipped.is_file()
    return shipped if named else config


def about(name: str) -> str:
    """The first sentence of a recipe's header."""
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    header = itertools.takewhile(lambda line: line.startswith("# "), lines)
    return re.split(r"\.(?:\s|$)", " ".join(line[2:] for line in header))[0]


def copy(name: str, path: Path, *, force: bool) -> None:
    """Copy a recipe to `path`; the commands in its header then name that file.

    Raises:
        InputError: there is no such recipe, or the file exists and `force` is not given.
    """
    if name not in names():
        raise InputError(f"{name}: no such recipe. There are {', '.join(names())}", command="init")
    if path.exists() and not force:
        raise InputError(f"{path}: exists already. Give another file, or --force replaces it")
    text = read_text(FOLDER / f"{name}.yaml")
    write_text(path, text.replace(f"configs/{name}.yaml", shlex.quote(str(path))))
