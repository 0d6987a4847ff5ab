"""`--explain` of `prepare` and of `check-data`: the tables that preparation follows, and how names
are read."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from deskpro.stages.base.names import Name
from deskpro.stages.base.options import Options
from deskpro.stages.base.prepare_options import Prepare

if TYPE_CHECKING:
    from deskpro.stages.data.check import CheckedData

_WIDTH, _CELL = 80, 12
"""Columns of a terminal, and at most of a fact of a name."""


def explain_names(options: Options, checked: CheckedData) -> None:
    """How the first names of each split of `data.root` are read, and what is left out, and why."""
    from deskpro.stages.data.layouts import OWN_LIST, dataset_name, layout_of
    from deskpro.stages.data.readings import SHOWN, left_out, read_first

    root, dataset = options.data.root, options.train_set
    layout = layout_of(root, dataset)
    by = f"data.name {dataset}" if options.data.name else f"data_train {dataset}, {layout.example}"
    by = OWN_LIST if dataset_name(root, dataset) == "csv" else by
    click.echo(_wrapped(f"names are read by {by}", ""))
    for split, (where, images, first) in read_first(root, layout).items():
        click.echo(_wrapped(f"{split}: {images} images of {where}", ""))
        click.echo("".join(f"{line}\n" for line in _as_table(first)), nl=False)
    reasons = left_out(root, layout, checked)
    click.echo("left out:" if reasons else "left out: nothing")
    for reason, names in reasons.items():
        more = ", …" * (len(names) > SHOWN)
        click.echo(_wrapped(f"{len(names)}  {reason}: {', '.join(names[:SHOWN])}{more}", "  "))


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent="    ", break_on_hyphens=False
    )


def _as_table(names: Sequence[tuple[str, Name | None]]) -> list[str]:
    """Names and what each says, in columns; those of facts that no name has are absent."""
    facts = [name._asdict() if name else {"pid": "not read"} for _, name in names]
    heads = [head for head in Name._fields if any(fact.get(head) is not None for fact in facts)]
    rows = [heads, *([_cut(fact.get(head), _CELL) for head in heads] for fact in facts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = max(_WIDTH - 2 - sum(width + 2 for width in widths), _CELL)
    paths = ["name", *(_cut(path, room) for path, _ in names)]
    room = max(map(len, paths))
    return [
        f"  {path:<{room}}  " + "  ".join(map(str.ljust, row, widths)).rstrip()
        for path, row in zip(paths, rows, strict=True)
        if names
    ]


def _cut(value: object, most: int) -> str:
    """A value in so many letters, of a longer one its end."""
    text = "–" if value is None else str(value)
    return text if len(text) <= most else f"…{text[1 - most :]}"


def explain_preparation(settings: Prepare | None) -> None:
    """The tables that preparation follows; what the recipe chose is marked with a star."""
    from deskpro.stages.preparation.methods import METHODS
    from deskpro.stages.preparation.schemes import CHANNELS, SCHEMES

    chosen = settings or Prepare()
    click.echo("Steps, and the methods of each (* is chosen):")
    for step, methods in METHODS.items():
        for name, method in methods.items():
            mark = "*" if getattr(chosen, step).method == name else " "
            click.echo(f"  {mark} prepare.{step}.method={name}")
            about = (method.__doc__ or "").partition("\n")[0]
            click.echo(f"      {about}")
            for package in method.needs:
                here = "" if find_spec(package) else "; missing: pip install '.[prepare]'"
                click.echo(f"      needs {package}{here}")
    click.echo("\nSchemes of label maps, and the channel of the mask that each class goes to:")
    for name, scheme in SCHEMES.items():
        mark = "*" if chosen.parsing.scheme == name else " "
        click.echo(f"  {mark} prepare.parsing.scheme={name}: {scheme.title} ({scheme.source})")
        for channel, colour in zip((*CHANNELS, ""), ("red", "green", "blue", ""), strict=True):
            names = ", ".join(f"{i} {scheme.names[i]}" for i in scheme.ids(channel))
            title = f"{channel} ({colour})" if channel else "background"
            click.echo(f"      {title:<16} {names or '–'}")
        if scheme.face is None:
            click.echo("      no class for the face: the back of a head counts as a face")
    click.echo(f"\n{_own_rule(chosen)}")


def _own_rule(chosen: Prepare) -> str:
    own = chosen.own
    return (
        "A folder of one's own (data_train: own):\n"
        f"  name   {own.name}\n"
        "         must match the path of each image below prepare.root; its groups are pid and,\n"
        "         optionally, camid, clothes, split (train, query, gallery).\n"
        "         Cameras that aren't numbers are numbered in the order of their names. Without\n"
        "         camid, each image of an identity counts as a camera of its own.\n"
        f"  test   {own.test:g} of the identities are held out (seed {own.seed}), where the name\n"
        "         has no split. An identity with one image goes to the gallery.\n"
        f"  query  {own.query} of each held-out identity and camera are queries, but\n"
        "         never all of them; the rest is gallery."
    )
