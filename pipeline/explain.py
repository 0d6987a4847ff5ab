"""`deskpro prepare --explain`: the tables that preparation follows."""

from __future__ import annotations

from importlib.util import find_spec

import click

from deskpro.stages.base.prepare_options import Prepare


def explain_preparation(settings: Prepare | None) -> None:
    """The tables that preparation follows; what the recipe chose is marked with a star."""
    from deskpro.stages.base.prepare_options import Prepare
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
