"""The commands that plan, inspect, extend and pack a cache of targets."""

from __future__ import annotations

import re
from pathlib import Path

import click

from deskpro.pipeline import config
from deskpro.pipeline.arguments import (
    CONFIG,
    DEEP,
    FILE,
    FOLDER,
    PATH,
    RUN,
    SET,
    RunArguments,
    advise_on,
    fail_with,
    options_of,
)
from deskpro.pipeline.command_help import Between, Whole
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log, summary, table, warn, working
from deskpro.stages.base.run_folder import RunFolder, read_manifest


def _cache_of(run: Path) -> tuple[Path, Options | None]:
    """The store of a run folder, or the store itself; the options that it was made with."""
    from deskpro.stages import cache_tools

    advise_on(run)
    folder = RunFolder.open(run)
    record = read_manifest(RunFolder(folder.upstream).manifest("teacher-cache"))
    root = folder.targets if folder.targets.is_dir() else cache_tools.find_store(run)
    return root, None if record is None else config.load(record["config"])


def _refuse_given(folder: RunFolder, what: str) -> None:
    """Raise InputError where the cache was unpacked, so that recipe and teacher aren't known."""
    if (given := RunFolder(folder.upstream).given()) is not None:
        raise InputError(
            f"{folder.targets}: unpacked from {given['file']}, without the recipe and teacher that "
            f"{what} needs. Do that where the cache was made; deskpro cache verify checks its bytes"
        )


@click.command("import")
@click.argument("file", type=PATH)
@click.option("--teacher", required=True, metavar="NAME", help="What these targets are called.")
@click.option(
    "--run",
    type=FOLDER,
    default=Path("runs/demo"),
    help="The run folder whose cache gets them, or that cache.",
)
@click.option("--force", is_flag=True, help="Replace other targets of that name.")
def import_targets(file: Path, teacher: str, run: Path, force: bool) -> None:
    """Add targets that another program made.

    FILE is an .npz or .parquet file or a zarr store with path, view, and embedding or logits for
    each row; rows are matched by path and view. The formats: cache/README.md.
    """
    from deskpro.stages import import_targets as tool

    tool.require_name(teacher)
    root, options = _cache_of(run)
    with working("cache import"):
        facts, warnings = tool.run(file, teacher, root, options, force=force)
    for text in warnings:
        warn(text)
    summary(f"cache import: {teacher}", facts)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--csv", "file", required=True, type=PATH, help="The file to write.")
def views(run: Path, file: Path) -> None:
    """Write the numbers of every view of every sample to a CSV file.

    Its columns are sample_id, view, and the crop, flip and erasing as fractions of the image.
    """
    from deskpro.stages import render_views as tool

    root, _ = _cache_of(run)
    summary(f"cache views: {run}", tool.export(root, file))


def _numbers(context: click.Context, param: click.Parameter, text: str | None) -> list[int] | None:
    """0,1 as numbers."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(re.fullmatch(r"\d{1,9}", part.strip(), re.ASCII) for part in parts):
        raise click.BadParameter(f"{text!r} must be numbers with commas between, as 0,1")
    return [int(part) for part in parts]


def _size(
    context: click.Context, param: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    """384x128 as height and width."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text, re.ASCII)
    if not found or not all(1 <= int(side) <= 4096 for side in found.groups()):
        raise click.BadParameter(f"{text!r} must be HEIGHTxWIDTH in pixels up to 4096, as 384x128")
    return int(found[1]), int(found[2])


@click.command()
@click.argument("run", type=FOLDER)
@click.argument("out", type=PATH)
@click.option("--kinds", default="hr_face", help="Images to write, as hr_face,imgs.")
@click.option("--views", callback=_numbers, help="As 0,1.  [default: all of the cache]")
@click.option(
    "--size", callback=_size, metavar="HxW", help="In pixels.  [default: that of the recipe]"
)
def render(
    run: Path,
    out: Path,
    kinds: str,
    views: list[int] | None,
    size: tuple[int, int] | None,
) -> None:
    """Write the images of a cache's views, for another teacher.

    They are PNG files OUT/KIND/VIEW/…, listed in OUT/views.csv: the pixels that a teacher here
    sees. OUT must not exist, or be empty.
    """
    from deskpro.stages import render_views as tool

    root, options = _cache_of(run)
    if options is None:
        _refuse_given(RunFolder.open(run), "cache render")
        raise InputError(f"{run}: no run folder with a finished cache", command="teacher-cache")
    names = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    with working("cache render"):
        facts = tool.run(options, root, out, names, views, size)
    summary(f"cache render: {run}", facts)


@click.command()
@click.argument("run", type=FOLDER)
@click.argument("out", type=FILE)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def pack(run: Path, out: Path, force: bool) -> None:
    """Write a finished cache to one file, with a hash of everything.

    OUT is a zip that zarr reads as it is, with the targets of every teacher. Two packs of one
    cache have the same bytes.
    """
    from deskpro.cache import pack as tool

    root, _ = _cache_of(run)
    with working("cache pack"):
        manifest = tool.pack(root, out, force=force)
    size = out.stat().st_size / 1e6
    facts = {
        "files": len(manifest.files),
        "digest": manifest.digest,
        "file": f"{out}, {size:.1f} MB",
    }
    summary(f"cache pack: {run}", facts)


@click.command()
@click.argument("file", type=PATH)
@click.option("--run", type=FOLDER, required=True, help="The run folder that gets the cache.")
@click.option("--force", is_flag=True, help="Replace a cache that is there.")
def unpack(file: Path, run: Path, force: bool) -> None:
    """Put a packed cache into a run folder, after checking every byte.

    Students train from it where there are LR images alone: no teacher, HR face or mask.
    """
    from deskpro.stages import cache_tools

    with working("cache unpack"):
        facts = cache_tools.unpack(file, RunFolder.open(run), force=force)
    summary(f"cache unpack: {file}", facts)


@click.group(commands=(import_targets, pack, render, unpack, views))
def cache() -> None:
    """Plan a target cache, inspect it, extend it, pack it.

    PATH is a run folder, or the store itself.
    """


@cache.command()
@click.argument("path", type=PATH)
def info(path: Path) -> None:
    """Show what it holds, its size, and how sure the teacher is."""
    from deskpro.stages import cache_tools

    advise_on(path)
    facts, tables = cache_tools.info(path)
    for title, columns, rows in tables:
        table(title, columns, rows)
    summary(f"cache info: {path}", facts)


@cache.command()
@click.argument("path", type=PATH)
def verify(path: Path) -> None:
    """Check every byte against its checksum.

    Exit code 1 if anything is damaged.
    """
    from deskpro.stages import cache_tools

    advise_on(path)
    fail_with(cache_tools.verify(path))
    log(f"cache verify: {path} is complete and undamaged")


@cache.command()
@click.argument("run", type=FOLDER)
@click.option("--samples", default=64, type=Between(1), help="How many.")
@click.option("--seed", default=0, type=Between(0), help="Which.")
@DEEP
@SET
def audit(run: Path, overrides: tuple[str, ...], deep: bool, **sampling: int) -> None:
    """Compute the targets of some views again, and compare.

    Exit code 1 if the cache has others. RUN is a run folder; its cache, teacher and images must
    be there.
    """
    from deskpro.stages import cache_tools

    advise_on(run)
    folder = RunFolder.open(run)
    _refuse_given(folder, "cache audit")
    manifest = RunFolder(folder.upstream).manifest("teacher-cache")
    options = options_of(manifest, overrides, folder.targets, "teacher-cache")
    with working("cache audit"):
        facts, differences = cache_tools.audit(options, folder, deep=deep, **sampling)
    summary(f"cache audit: {run}", facts)
    fail_with(differences)


@cache.command()
@click.option("--samples", required=True, type=Whole(), help="How many, such as 4e6.")
@click.option("--views", type=Whole(), help="Of each sample.  [default: cache.views]")
@click.option(
    "--identities",
    type=Whole(),
    help="Classes of the logits.  [default: those of the teacher, else of the training set]",
)
@CONFIG
@RUN
@SET
def plan(
    config: Path | None,
    run: Path | None,
    overrides: tuple[str, ...],
    samples: int,
    views: int | None,
    identities: int | None,
) -> None:
    """Say how large a cache will be.

    Bytes by target, files, memory; and hours, at the rate at which the cache of --run was made.
    Nothing is written.
    """
    from deskpro.stages import cache_plan

    if views is not None:
        overrides = (*overrides, f"cache.views={views}")
    options, folder = RunArguments(config, run, overrides=overrides).read()
    facts, rows = cache_plan.run(options, folder, samples, identities)
    table("targets", ("target", "bytes a view", "files", "on disk"), rows)
    summary("cache plan", facts)
