"""Render a page as one self-contained HTML file, with its style and script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from deskpro.stages.reporting.cells import percent
from deskpro.stages.reporting.figures import number


def render(name: str, parts: Mapping[str, Any], style: str | None = None) -> str:
    """The page of `name`.html.j2, with `style`.css or that of its name.

    Every value is escaped, unless it is Markup made here.

    The content security policy lets the page load nothing but the images inside it, and run
    nothing but its own script, known by its hash: neither the network nor a hostile name in the
    data can add to it.
    """
    style = _text(f"{style or name}.css")
    script = _text("report.js") if name == "report" else ""  # the only page with a script
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; "
        f"script-src {_source(script)}; base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = {"percent": percent, "number": number, "short": short, "fixed": fixed}
    environment.filters |= filters
    template = environment.from_string(_text(f"{name}.html.j2"))
    return template.render(**parts, style=Markup(style), script=Markup(script), policy=policy)


def fixed(value: float, digits: int = 2) -> str:
    """A number with so many digits behind the point."""
    return f"{value:.{digits}f}"


def short(digest: str) -> str:
    """The first 12 characters of a digest."""
    return digest if len(digest) <= 14 else f"{digest[:12]}…"


def _text(name: str) -> str:
    return files("deskpro.stages.reporting").joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """A content security policy's name of an inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
