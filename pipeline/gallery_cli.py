"""The commands of a gallery: descriptors of pictures in a database, to search for people in."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deskpro.cache.files import write_text
from deskpro.cache.lock import hold
from deskpro.pipeline.arguments import FILE, FOLDER, PATH, fail_with
from deskpro.pipeline.command_help import Between
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import log, summary, table, working

if TYPE_CHECKING:
    from deskpro.stages.serving.encoder import Encoder
    from deskpro.stages.serving.gallery_pictures import Picture
    from deskpro.stages.serving.gallery_table import Filter

_HITS = ("query", "rank", "score", "odds", "case", "person", "camera", "time", "path")
_ROWS = ("path", "person", "camera", "time", "has_face")
_FACES = click.option(
    "--faces",
    metavar="DIR|detect",
    help="A folder of face crops with the names of the pictures; or detect: cut from them.",
)
_DETECTOR = click.option(
    "--detector", type=PATH, help="YuNet's ONNX file, for --faces detect.  [default: the recipe's]"
)
_OUT = click.option("--out", type=FILE, help="A file.  [default: standard output]")
_DETECT = "detect"
_DEVICE = click.option("--device", default="auto", help="auto, cpu, cuda or cuda:1.")


def _with_filter(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which pictures are meant; the command gets them as `where`: a Filter."""

    @click.option("--camera", "cameras", multiple=True, help="Of this camera; repeatable.")
    @click.option("--person", "persons", multiple=True, help="Of this person; repeatable.")
    @click.option("--after", metavar="TIME", help="From this moment on, by ISO 8601.")
    @click.option("--before", metavar="TIME", help="Before this moment.")
    @functools.wraps(command)
    def wrapped(
        cameras: tuple[str, ...],
        persons: tuple[str, ...],
        after: str | None,
        before: str | None,
        **given: Any,
    ) -> None:
        from deskpro.stages.serving.gallery_pictures import moment
        from deskpro.stages.serving.gallery_table import Filter

        first, end = (
            None if text is None else moment(text, option)
            for option, text in (("--after", after), ("--before", before))
        )
        command(where=Filter(cameras, persons, first, end), **given)

    return wrapped


def _load(
    student: Path, device: str, faces: str | None, detector: Path | None
) -> tuple[Encoder, dict[str, Any]]:
    from deskpro.stages.serving.encoder import Encoder
    from deskpro.stages.serving.gallery import identify

    encoder = Encoder.load(student, device, detector=detector)
    if faces is not None:
        encoder([], _DETECT if faces == _DETECT else [])  # refused where it has no use for them
        if "body" not in encoder.parts and faces != _DETECT:
            raise InputError(
                f"--faces {faces}: this student sees faces alone; give them as PICTURES"
            )
    return encoder, identify(encoder, student)


def _pictures(
    given: Sequence[Path], faces: str | None, table: Path | None, known: Picture
) -> list[Picture]:
    from deskpro.stages.serving.gallery_pictures import collect, read_csv

    folder = None if faces in (None, _DETECT) else Path(str(faces))
    return collect(given, folder, known) if table is None else read_csv(table, folder)


@click.group()
def gallery() -> None:
    """Search for people in pictures of any number of cameras.

    GALLERY is a folder with the descriptors of pictures, made by one student. `add` makes it.
    """


@gallery.command()
@click.argument("folder", metavar="GALLERY", type=FOLDER)
@click.argument("pictures", metavar="PICTURES…", nargs=-1, type=PATH)
@click.option("--student", required=True, type=PATH, help="A run folder, weights or an export.")
@_FACES
@_DETECTOR
@click.option("--person", help="Who all of them show.")
@click.option("--camera", help="What took all of them.")
@click.option("--time", "moment", metavar="TIME", help="When they were taken, by ISO 8601.")
@click.option(
    "--csv",
    "file",
    type=PATH,
    help="In the place of PICTURES: path, and person, camera, time or face, of each.",
)
@_DEVICE
def add(
    folder: Path,
    pictures: tuple[Path, ...],
    student: Path,
    faces: str | None,
    detector: Path | None,
    person: str | None,
    camera: str | None,
    moment: str | None,
    file: Path | None,
    device: str,
) -> None:
    """Add pictures: files, or folders of them.

    Those that are in already are skipped. Stopped or killed, the same command completes.
    """
    if bool(pictures) == (file is not None):
        raise click.UsageError("give PICTURES, or --csv FILE that names them")
    if file is not None and (person or camera or moment):
        raise click.UsageError("--person, --camera and --time are columns of the --csv file")
    from deskpro.stages.serving import gallery_pictures as reading
    from deskpro.stages.serving.gallery import Gallery

    when = None if moment is None else reading.moment(moment, "--time")
    known = reading.Picture(Path(), None, person, camera, when)
    found = _pictures(pictures, faces, file, known)
    with hold(folder, "gallery add"), working("gallery add"):
        started = time.monotonic()
        encoder, identity = _load(student, device, faces, detector)
        digests = reading.examine(found)
        opened = Gallery.open_or_create(folder, identity, student)
        counts = opened.add(encoder, found, digests, faces == _DETECT)
        facts: dict[str, object] = {**counts, "pictures": len(opened.table)}
        facts["time"] = f"{time.monotonic() - started:.1f} s"
    summary(f"gallery add: {folder}", facts)


@gallery.command()
@click.argument("folder", metavar="GALLERY", type=FOLDER)
@click.argument("queries", metavar="QUERY…", nargs=-1, required=True, type=PATH)
@click.option("--student", type=PATH, help="Its student.  [default: where it was at the first add]")
@_FACES
@_DETECTOR
@click.option("--top", default=10, type=Between(1, 100_000), help="Pictures of each query.")
@click.option("--threshold", type=float, help="The least score.  [default: none]")
@click.option(
    "--far",
    type=float,
    help="In its place: the share of pairs of two people that may be taken for one, such as 1e-3.",
)
@_with_filter
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "html"]),
    default="table",
    help="html: a page with the pictures; needs --out.",
)
@_OUT
@click.option("--memory", default=256, type=Between(16), help="MiB for rows and scores.")
@_DEVICE
def search(
    folder: Path,
    queries: tuple[Path, ...],
    student: Path | None,
    faces: str | None,
    detector: Path | None,
    top: int,
    threshold: float | None,
    far: float | None,
    form: str,
    out: Path | None,
    memory: int,
    device: str,
    where: Filter,
) -> None:
    """Find the pictures that are most like each query.

    QUERY is a file, or a folder of them. A table shows paths below the folder of all, json and csv
    whole ones. Every picture is compared, by the similarity that `eval` ranks by. Equal scores: the
    one added first. odds: the logarithm of how many times likelier a score is for one person than
    for two.
    """
    _require_place(form, out)
    if threshold is not None and threshold != threshold:
        raise click.UsageError("--threshold nan; must be a number")
    if threshold is not None and far is not None:
        raise click.UsageError("give --threshold or --far, one of them")
    from deskpro.stages.serving.gallery import Gallery, describe
    from deskpro.stages.serving.gallery_pictures import Picture, examine

    opened = Gallery(folder)
    pictures = _pictures(queries, faces, None, Picture(Path()))
    if student is None and not opened.student.exists():
        raise InputError(f"{opened.student}: the gallery's student is gone; name it by --student")
    student = student or opened.student
    with working("gallery search"):
        digests = examine(pictures)
        encoder, identity = _load(student, device, faces, detector)
        opened.require(identity, student)
        features = describe(encoder, pictures, digests, detect=faces == _DETECT)
        started = time.monotonic()
        least = threshold if far is None else encoder.threshold(far)
        hits = opened.search(encoder, features, top, where, least, memory)
        seconds = time.monotonic() - started
    found = dict(zip([str(picture.path) for picture in pictures], hits, strict=True))
    about = f"{len(found)} queries, {opened.table.count(where.sql)} pictures"
    if isinstance(least, dict):
        about += _rates(far, least, opened.cases(features, where))
    _show_hits(found, form, out, str(folder), about)
    log(f"gallery search: {about}, {seconds:.2f} s" + (f", written: {out}" if out else ""))


def _rates(far: float | None, least: Mapping[str, float], pairs: Mapping[str, int]) -> str:
    """What the thresholds of a false accept rate are; a warning of pairs that have none."""
    for case, count in pairs.items():
        if count and case not in least:
            log(
                f"gallery search: {count:,} pairs {case} are left out: the student's held-out "
                f"people have too few for a threshold at {far:g}; --threshold takes them in"
            )
    scores = ", ".join(f"{score:.3f} {case}" for case, score in least.items())
    return f", least score for a false accept rate of {far:g}: {scores}"


def _show_hits(
    found: dict[str, list[dict[str, Any]]], form: str, out: Path | None, title: str, about: str
) -> None:
    from deskpro.stages.serving import gallery_results as results

    if form == "html":
        assert out is not None
        write_text(out, results.as_html(found, title, about))
        return
    rows = [{"query": query, **hit} for query, hits in found.items() for hit in hits]
    short = results.short_paths(rows, ("query", "path"))
    _show(rows, form, out, _HITS, "Found", short)


def _require_place(form: str, out: Path | None) -> None:
    if form == "html" and out is None:
        raise click.UsageError("--format html needs --out FILE")
    if form == "table" and out is not None:
        raise InputError(f"--out {out}: a table is for the terminal; use --format csv, or json")


def _show(
    rows: list[dict[str, Any]],
    form: str,
    out: Path | None,
    columns: tuple[str, ...],
    title: str,
    shown: Sequence[Mapping[str, Any]],
) -> None:
    """Rows as a table in the terminal, for which `shown` stand in their place, JSON or CSV."""
    from deskpro.stages.serving import gallery_results as results

    rows = [{name: row[name] for name in columns} for row in rows]
    if form == "table" and out is None:
        # A column without any value takes the others' place.
        known = (name for name in columns if any(row[name] is not None for row in rows))
        columns = tuple(known) or columns
        table(title, columns, (results.cells(row, columns) for row in shown))
        return
    text = results.as_json(rows) if form == "json" else results.as_csv(rows, columns)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_text(out, text)


@gallery.command()
@click.argument("folder", metavar="GALLERY", type=FOLDER)
@click.argument("pictures", metavar="[PICTURES…]", nargs=-1, type=PATH)
@_with_filter
def remove(folder: Path, pictures: tuple[Path, ...], where: Filter) -> None:
    """Remove pictures from it; their files stay.

    Those of these files and folders, which need not exist, and of these conditions.
    """
    from deskpro.stages.serving.gallery import Gallery

    if not pictures and where.sql is None:
        raise click.UsageError("give PICTURES, or a condition such as --camera")
    Gallery(folder)  # refused before a lock is made where there is none
    with hold(folder, "gallery remove"):
        opened = Gallery(folder)
        count = opened.remove(where, pictures)
        summary(f"gallery remove: {folder}", {"removed": count, "pictures": len(opened.table)})


@gallery.command("list")
@click.argument("folder", metavar="GALLERY", type=FOLDER)
@_with_filter
@click.option(
    "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", help="How."
)
@_OUT
def list_(folder: Path, form: str, out: Path | None, where: Filter) -> None:
    """List its pictures, in the order of adding."""
    from deskpro.stages.serving.gallery import Gallery

    _require_place(form, out)
    found = Gallery(folder).rows(where)
    found["has_face"] = found["has_face"].tolist()
    rows = [
        dict(zip(_ROWS, values, strict=True))
        for values in zip(*(found[name] for name in _ROWS), strict=True)
    ]
    _show(rows, form, out, _ROWS, f"{len(rows)} pictures", rows)


@gallery.command()
@click.argument("folder", metavar="GALLERY", type=FOLDER)
def info(folder: Path) -> None:
    """Show what it holds, and by which student."""
    from deskpro.stages.serving.gallery import Gallery

    summary(f"gallery info: {folder}", Gallery(folder).info())


@gallery.command()
@click.argument("folder", metavar="GALLERY", type=FOLDER)
def check(folder: Path) -> None:
    """Check every descriptor, and every picture's file against its digest.

    Exit code 1 if anything is damaged, missing or changed.
    """
    from deskpro.stages.serving.gallery import Gallery

    opened = Gallery(folder)
    with working("gallery check"):
        problems = opened.check()
    fail_with(problems)
    log(f"gallery check: {folder}: {len(opened.table)} pictures are in, whole and unchanged")
