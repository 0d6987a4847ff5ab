"""YAML and `--set` to validated, frozen options; every error of a config in one message."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deskpro.cache.files import read_text
from deskpro.pipeline import recipes
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.params import LEAVES, names_option
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.targets.kinds import TARGETS

REGISTRIES = {
    "data_train": tuple(LAYOUTS),
    "data_test": tuple(LAYOUTS),
    "eval.protocols": tuple(PROTOCOLS),
    "cache.targets": tuple(TARGETS),
}
"""Option → the names of a registry that it chooses from."""


_DEEPEST = 50
"""Brackets within each other; pyyaml's time grows with the square, and then it fails."""
_BAD_YAML = (yaml.YAMLError, RecursionError, ValueError)
"""What pyyaml raises: ValueError for dates and numbers that can't be."""


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as people write it, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            problem = f"given twice: {', '.join(twice)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level >= _DEEPEST:
            problem = f"more than {_DEEPEST} brackets within each other"
            raise yaml.scanner.ScannerError(None, None, problem, self.get_mark())
        super().fetch_flow_collection_start(token)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+0123456789."),
)


def load(source: Path | Mapping[str, Any] | None, overrides: Iterable[str] = ()) -> Options:
    """The options of a YAML file with `key=value` overrides (dotted keys, YAML values).

    Args:
        source: a file, or the name of a recipe of the package; or the options as a manifest records
            them; None: the defaults.
        overrides: replace options of the source.

    Raises:
        InputError: it names every unknown option, wrong type and impossible value at once.
    """
    tree = (
        _read(recipes.find(source))
        if isinstance(source, Path)
        else copy.deepcopy(dict(source or {}))
    )
    for override in overrides:
        key, value = assignment("--set", override, "kd_loss.T=1")
        _put(tree, key, parse(value))
    recorded = "the recorded options" if source else "--set"
    return _validated(tree, str(source) if isinstance(source, Path) else recorded)


def override(options: Options, changes: Mapping[str, object], title: str = "--set") -> Options:
    """The options with some replaced, by dotted key; validated again.

    Raises:
        InputError: a value is impossible; `title` names whose it is.
    """
    tree = options.model_dump()
    for key, value in changes.items():
        _put(tree, key, value)
    return _validated(tree, title)


def dump(options: Options) -> str:
    """The resolved options as YAML that `load` reads back to the same options."""
    return yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False)


def require_dataset(name: str) -> str:
    """The name of a dataset; InputError unless it is a known one."""
    if name not in LAYOUTS:
        raise InputError(f"--dataset {name}: must be one of {', '.join(LAYOUTS)}")
    return name


def parse(text: str) -> Any:
    """A value as it is written in YAML, in `--set`, `--grid` and `make-benchmark --set` alike."""
    try:
        return yaml.load(text, _Loader)
    except _BAD_YAML:
        return text


def assignment(option: str, text: str, example: str) -> tuple[str, str]:
    """Key and value of `key=value`, as an option of the command line gives it.

    Raises:
        InputError: one of the two is missing.
    """
    key, _, value = text.partition("=")
    if not key or "=" not in text:
        raise InputError(f"{option} {text!r}: must be key=value, as in {option} {example}")
    return key, value


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(read_text(path), _Loader)
    except FileNotFoundError:
        names = ", ".join(recipes.names())
        raise InputError(
            f"{path}: no such config. Give a file, or the name of a recipe: {names}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as a config: {error}") from None
    except _BAD_YAML as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path}: must be a mapping of options, found a {type(tree).__name__}")
    return tree


def _put(tree: dict[str, Any], key: str, value: object) -> None:
    """Replace the value at a dotted key; sections that are absent or null are made."""
    *sections, leaf = key.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise InputError(f"--set {key}: {section} is a single value, it has no {leaf}")
    tree[leaf] = value


def _validated(tree: Mapping[str, Any], title: str) -> Options:
    try:
        return Options.model_validate(tree, context=REGISTRIES)
    except ValidationError as error:
        raise invalid(title, error) from None


_ADVICE = "Fix the config, or override with --set key=value"


def invalid(title: str, error: ValidationError, advice: str = _ADVICE) -> InputError:
    """The error that names every option that is invalid; `title` names whose they are."""
    lines = sorted(map(_explain, error.errors()))
    head = f"{title}: {len(lines)} invalid option{'s' * (len(lines) > 1)}"
    return InputError("\n".join([head, *(f"  {line}" for line in lines), advice]))


def nearest(name: str) -> str:
    """What may have been meant by the name of an option or section that there is not."""
    sections = {option.rpartition(".")[0] for option in LEAVES} - {""}
    known = [*LEAVES, *sorted(sections)]
    whole = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    whole = whole or [option for option in known if option.startswith(name)][:3]
    section, _, last = name.rpartition(".")
    moved = [option for option in LEAVES if option.rpartition(".")[2] == last]
    found = list(dict.fromkeys([*whole, *moved]))[:3]
    if not found and section in sections:
        below = [option for option in LEAVES if names_option(section, option)]
        names = ", ".join(option.removeprefix(f"{section}.") for option in below)
        return f"; {section} has {names}"
    return f"; did you mean {' or '.join(found)}?" if found else "; deskpro options lists all"


def _explain(error: Mapping[str, Any]) -> str:
    """One line: which option, what is wrong, the value found, what is allowed."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown option{nearest(key)}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(error["input"], Mapping):  # a rule between options names its values
        return f"{key}: {message}" if key else message
    message = message.replace("input should", "must").replace("input is not", "must be")
    found = repr(error["input"])
    return f"{key}: {message}, found {found if len(found) < 200 else found[:200] + '…'}"
