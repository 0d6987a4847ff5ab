"""YAML and `--set` to validated, frozen options; every error of a config in one message."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import LEAVES, Options
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.metrics.protocols import PROTOCOLS

_NAMES = {"datasets": tuple(LAYOUTS), "protocols": tuple(PROTOCOLS)}
"""The names that options may choose from, by registry."""


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as people write it, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            problem = f"given twice: {', '.join(twice)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+0123456789."),
)


def load(path: Path | None, overrides: Iterable[str] = ()) -> Options:
    """The options of a YAML file with `key=value` overrides (dotted keys, YAML values).

    Without a file the defaults are overridden. Raises InputError that names every unknown option,
    wrong type and impossible value at once.
    """
    return _validated(_read(path) if path is not None else {}, overrides, path)


def restore(record: Mapping[str, object], overrides: Iterable[str] = ()) -> Options:
    """The options that a stage's record keeps, with overrides."""
    return _validated(json.loads(json.dumps(record)), overrides, None)


def _validated(tree: dict[str, Any], overrides: Iterable[str], path: Path | None) -> Options:
    for override in overrides:
        _set(tree, override)
    try:
        return Options.model_validate(tree, context=_NAMES)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        count = f"{len(lines)} invalid option{'s' * (len(lines) > 1)}"
        raise InputError(
            f"{path or '--set'}: {count}\n"
            + "\n".join(f"  {line}" for line in sorted(lines))
            + "\nFix the config, or override with --set key=value"
        ) from None


def require_dataset(name: str) -> None:
    """InputError unless `name` is a known dataset."""
    if name not in LAYOUTS:
        raise InputError(f"--dataset {name}: must be one of {', '.join(LAYOUTS)}")


def override(options: Options, changes: Mapping[str, object]) -> Options:
    """The options with some replaced, by dotted key; validated anew."""
    tree = options.model_dump()
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        below = tree
        for section in sections:
            below = below[section]
        below[leaf] = value
    return Options.model_validate(tree, context=_NAMES)


def dump(options: Options) -> str:
    """The resolved options as YAML that `load` reads back to the same options."""
    return yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        shipped = ", ".join(str(p) for p in sorted(Path("configs").glob("*.yaml"))) or "none here"
        raise InputError(f"{path}: no such config. Shipped configs: {shipped}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as a config: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path}: must be a mapping of options, found a {type(tree).__name__}")
    return tree


def parse(text: str) -> Any:
    """A value as it is written in YAML, in `--set`, `--grid` and `make-benchmark --set` alike."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def _set(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override!r}: must be key=value, as in --set kd_loss.T=1")
    value = parse(text)
    *sections, leaf = key.split(".")
    for section in sections:
        if tree.get(section) is None:  # absent, or an optional section that isn't given
            tree[section] = {}
        below = tree[section]
        if not isinstance(below, dict):
            raise InputError(f"--set {override!r}: {section} is a single value, it has no {leaf}")
        tree = below
    tree[leaf] = value


def _explain(error: Mapping[str, Any]) -> str:
    """One line: which option, what is wrong, the value found, what is allowed."""
    key = ".".join(str(part) for part in error["loc"])
    found = error["input"]
    if error["type"] == "extra_forbidden":
        *sections, name = key.split(".")
        prefix = "".join(f"{section}." for section in sections)
        known = [o.removeprefix(prefix) for o in LEAVES if o.startswith(prefix)]
        near = difflib.get_close_matches(name, known, n=1)
        if not near and len(known) > 12:
            return f"{key}: unknown option"
        hint = f"did you mean {prefix}{near[0]}?" if near else f"allowed are {', '.join(known)}"
        return f"{key}: unknown option; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(found, Mapping):  # a rule between several options names its values itself
        return f"{key}: {message}"
    message = message.replace("input should", "must").replace("input is not", "must be")
    return f"{key}: {message}, found {found!r}"
