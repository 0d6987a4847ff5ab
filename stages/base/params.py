"""The leaves of the options by dotted name, and which of them an output depends on. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from deskpro.stages.base.options import Options
from deskpro.stages.base.section import NoEffect


def names_option(prefix: str, name: str) -> bool:
    """Whether `prefix` is the option, or a section that it lies in; `*` stands for any name."""
    return fnmatchcase(name, prefix) or fnmatchcase(name, f"{prefix}.*")


def leaf_of(name: str) -> str:
    """The option in `LEAVES` that a name is one of: `teachers.*.weight` of teachers.clip.weight."""
    return next((leaf for leaf in _NAMED if fnmatchcase(name, leaf)), name)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        kinds = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
        below = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if below:
            several = get_origin(field.annotation) is dict
            yield from _leaves(below[0], f"{prefix}{name}.{'*.' if several else ''}")
        else:
            yield prefix + name, field


LEAVES = dict(_leaves(Options))
"""Every option as a dotted name, with its pydantic field; `*` stands for the name of a teacher."""
_NAMED = [name for name in LEAVES if "*" in name]
WITHOUT_EFFECT = {
    name: mark.why
    for name, field in LEAVES.items()
    for mark in field.metadata
    if isinstance(mark, NoEffect)
}
"""Options on which no output depends → why."""


def relevant(options: Options, params: Iterable[str]) -> dict[str, Any]:
    """The options that `params` name and that have an effect, by dotted name, as JSON has them.

    A section stands for all of its options; those beside an `enable` that is off have no effect.
    """
    flat = flatten(options.model_dump(mode="json"))
    off = {name.removesuffix("enable") for name, value in flat.items() if _is_off(name, value)}
    return {
        name: value
        for name, value in flat.items()
        if leaf_of(name) not in WITHOUT_EFFECT
        and any(names_option(param, name) for param in params)
        and (_is_off(name, value) or not name.startswith((*off,)))
    }


def _is_off(name: str, value: object) -> bool:
    return name.endswith(".enable") and value is False


def both_named(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two records of options by name, each with the defaults of what only the other has.

    An option that a record lacks had no effect when it was written, or did not exist: both mean its
    default. Names that are no options stay as they are.
    """
    return {**_defaults(now), **before}, {**_defaults(before), **now}


def _defaults(names: Iterable[str]) -> dict[str, Any]:
    fields = {name: LEAVES[name] for name in names if name in LEAVES}
    return {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in fields.items()
        if not field.is_required()
    }
