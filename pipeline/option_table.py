"""Every option of a recipe: its type, default, allowed values, meaning, and what it makes stale."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from deskpro.pipeline import stages
from deskpro.pipeline.config import REGISTRIES, nearest
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.params import LEAVES, WITHOUT_EFFECT, names_option
from deskpro.stages.reporting import cells

Schema = Mapping[str, Any]
"""JSON schema of an option, as pydantic makes it."""


class Option(NamedTuple):
    """An option of a recipe, in words."""

    name: str
    type: str
    default: str
    """As YAML writes it."""
    allowed: str
    about: str
    effect: str
    """The stages that it makes stale; or why it makes none."""


def find(prefix: str = "") -> list[Option]:
    """The options of a section, or one option; all where the prefix is empty.

    Raises:
        InputError: there is no such option or section.
    """
    found = [option for option in _options() if not prefix or names_option(prefix, option.name)]
    if not found:
        raise InputError(f"{prefix}: no such option or section{nearest(prefix)}", command="options")
    return found


def as_text(found: list[Option]) -> str:
    """For a terminal of 80 columns: an option a paragraph."""
    return "\n\n".join(
        f"{option.name} = {option.default}\n"
        + textwrap.fill(option.about, 78, initial_indent="  ", subsequent_indent="  ")
        + f"\n  {_sentence(option.type, option.allowed)}\n"
        + textwrap.fill(option.effect, 78, initial_indent="  ", subsequent_indent="  ")
        for option in found
    )


def as_markdown(found: list[Option]) -> str:
    """A table for each section, as configs/README.md has them."""
    columns = ("option", "default", "what it does", "type and values", "effect")
    sections = []
    for title, options in itertools.groupby(found, _section):
        rows = [
            (f"`{o.name}`", f"`{o.default}`", o.about, _sentence(o.type, o.allowed), o.effect)
            for o in options
        ]
        sections.append(f"### {title}\n\n{cells.markdown(columns, rows)}\n")
    return "\n".join(sections)


def _section(option: Option) -> str:
    first, dot, _ = option.name.partition(".")
    return f"`{first}`" if dot else "General"


def _sentence(kind: str, allowed: str) -> str:
    return f"{kind}: {allowed}" if allowed else kind


def _options() -> Iterator[Option]:
    schema = Options.model_json_schema()
    for name in LEAVES:
        found, default = _schema_of(name, schema)
        kind, allowed = _words(found)
        known = REGISTRIES.get(name)
        about = " ".join(found["description"].split())
        if known is not None:
            kind, allowed = kind.replace("text", "name"), ", ".join(known)
        yield Option(name, kind, _yaml(default), allowed, about, _effect(name))


def _schema_of(name: str, schema: Schema) -> tuple[Schema, object]:
    """The schema of an option and its default; null for what only a section given has."""
    found: Schema = schema
    default: Any = Options().model_dump(mode="json")
    for part in name.split("."):
        reference = found.get("$ref") or next(
            (kind["$ref"] for kind in found.get("anyOf", ()) if "$ref" in kind), None
        )
        if reference is not None:
            found = schema["$defs"][reference.rpartition("/")[2]]
        found = found["additionalProperties"] if part == "*" else found["properties"][part]
        default = default.get(part, found.get("default")) if default else found.get("default")
    return found, default


def _effect(name: str) -> str:
    if name in WITHOUT_EFFECT:
        return f"makes nothing stale: {WITHOUT_EFFECT[name]}"
    stale = [
        stage
        for stage in stages.STAGES
        if any(names_option(param, name) for param in stages.stage_class(stage).params)
    ]
    return "makes stale: " + ", ".join(stale)


def _words(schema: Schema) -> tuple[str, str]:
    """Type and allowed values of an option, in words."""
    if "anyOf" in schema:
        kinds, ranges = zip(*map(_words, schema["anyOf"]), strict=True)
        return " or ".join(kinds), "".join(ranges)
    if "const" in schema:
        return f"`{schema['const']}`", ""
    if "enum" in schema:
        return "one of", ", ".join(map(str, schema["enum"]))
    match schema["type"]:
        case "array" if "prefixItems" in schema:
            items = schema["prefixItems"]
            kind, allowed = _words(items[0])
            return f"{len(items)} {kind}s", allowed and f"each {allowed}"
        case "array":
            kind, allowed = _words(schema["items"])
            if kind == "one of":
                return "list of some of", allowed
            return f"list of {kind}s", allowed and f"each {allowed}"
        case "null":
            return "null", ""
        case "boolean":
            return "true or false", ""
        case "integer" | "number" as kind:
            return kind, _range(schema)
    if schema.get("format") == "path":
        return "path", ""
    return "text", f"matches `{schema['pattern']}`" if "pattern" in schema else ""


def _range(schema: Schema) -> str:
    """The range of a number, in words."""
    bounds = {"minimum": "at least", "exclusiveMinimum": "above"}
    bounds |= {"maximum": "at most", "exclusiveMaximum": "below"}
    if {"minimum", "maximum"} <= schema.keys():
        return f"{schema['minimum']:,} to {schema['maximum']:,}"
    return ", ".join(f"{words} {schema[key]:,}" for key, words in bounds.items() if key in schema)


def _yaml(value: object) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    )
