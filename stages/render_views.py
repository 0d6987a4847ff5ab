"""Show the views of a cache to other programs: as numbers, and as images that a teacher sees."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import torch
from PIL import Image

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import write_bytes, write_folder_aside, write_text
from deskpro.cache.store import TargetStore
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.foreign import some
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar
from deskpro.stages.data.index import content_hashes
from deskpro.stages.data.layouts import KINDS
from deskpro.stages.data.loader import ImageDataset, iterate, load
from deskpro.stages.data.views import ERASED_PIXEL, StoredViews, View, erase
from deskpro.stages.targets.provenance import training_images

_LISTED = 10
"""Samples named in a message."""
_WRITERS = 8
"""Views of a sample that are written at a time: each waits until it is on the disk."""
_COLUMNS = ("kind", "sample_id", "pid", "view", "file", "sha256")
"""Of the list beside the images; sha256 is that of the file that an image was rendered from."""


def export(root: Path, file: Path) -> dict[str, object]:
    """Write sample_id, view and the view's numbers of every view of a cache to a CSV file."""
    store = TargetStore(root)
    sample_ids, views = store.column("sample_id").tolist(), store.column("views")
    # As text numbers have as many digits as float32 needs to be exact.
    rows = [
        [sample_id, view, *views[row, view].astype(str)]
        for row, sample_id in enumerate(sample_ids)
        for view in range(views.shape[1])
    ]
    write_text(file, _as_csv(["sample_id", "view", *View._fields], rows))
    return {"views": f"{views.shape[1]} of {len(sample_ids)} samples", "file": file}


def _as_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def run(
    options: Options,
    root: Path,
    out: Path,
    kinds: Sequence[str],
    views: Sequence[int] | None,
    size: tuple[int, int] | None,
) -> dict[str, object]:
    """Write the images of a cache's samples under its views, as PNG, and `views.csv` beside them.

    The pixels are those that a teacher's batch holds before normalisation (`render_view`). An
    erased rectangle has the colour `ERASED_PIXEL`; a mask is never erased. `out` is complete or
    absent.

    Args:
        options: those that the cache was made with.
        root: the cache.
        out: folder of KIND/VIEW/sample.png; it must not exist, or be empty.
        kinds: of images, of `KINDS`.
        views: numbers of views; all that are stored where None.
        size: height and width; those of the options where None.

    Raises:
        InputError: `out` is not empty; a kind or view does not exist; images are missing, or have
            changed since their targets were cached.
    """
    store = TargetStore(root)
    table, sample_ids = store.column("views"), store.column("sample_id").tolist()
    chosen = [*range(table.shape[1])] if views is None else [*dict.fromkeys(views)]
    _require(out, kinds, chosen, table.shape[1])
    here = _images(options, sample_ids)
    kinds, files = [*dict.fromkeys(kinds)], FileIndex()
    hashes = {kind: _hashes(store, here, kind, files) for kind in kinds}
    rows: list[list[object]] = []
    facts: dict[str, object] = {}
    with write_folder_aside(out.resolve()) as folder, ThreadPoolExecutor(_WRITERS) as pool:
        for kind in kinds:
            own = options.data.face_size if kind.endswith("face") else options.data.body_size
            has = np.flatnonzero(here[kind].notna())
            images = ImageDataset(
                here.iloc[has].reset_index(drop=True), {kind: size or own}, StoredViews(table[has])
            )
            for sample, pixels in zip(has, _rendered(images, kind, chosen, options), strict=True):
                digest = hashes[kind][sample].tobytes().hex()
                stem = PurePosixPath(sample_ids[sample]).with_suffix(".png")
                names = [f"{kind}/{view}/{stem}" for view in chosen]
                [*pool.map(_write_png, map(folder.joinpath, names), pixels)]
                rows += [
                    [kind, sample_ids[sample], here["pid"][sample], view, name, digest]
                    for view, name in zip(chosen, names, strict=True)
                ]
            height, width = images.sizes[kind]
            facts[kind] = (
                f"{len(has) * len(chosen)} images of {height} × {width}, {len(has)} samples"
            )
        write_text(folder / "views.csv", _as_csv(_COLUMNS, rows))
    return facts | {"views": ", ".join(map(str, chosen)), "folder": out}


def _require(out: Path, kinds: Sequence[str], views: Sequence[int], stored: int) -> None:
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"--kinds: {unknown[0]!r} must be one of {', '.join(KINDS)}")
    if not kinds or not views:
        raise InputError("--kinds and --views must name at least one each")
    if outside := [view for view in views if not 0 <= view < stored]:
        raise InputError(f"--views: {outside[0]} is none of the cache, which has 0 to {stored - 1}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out}: exists and is not empty; give another folder, or remove it")


def _images(options: Options, sample_ids: list[str]) -> pd.DataFrame:
    """The images that are here of a cache's samples, in its order; None where one isn't."""
    found = training_images(options).set_index("sample_id", drop=False).reindex(sample_ids)
    return found.where(found.notna(), None).reset_index(drop=True)


def _hashes(store: TargetStore, here: pd.DataFrame, kind: str, files: FileIndex) -> np.ndarray:
    """SHA-256 of the images of a kind, uint8 [N, 32]; zeros where one isn't here.

    Raises InputError: they are not those of the cache, or none is here.
    """
    sample_ids = store.column("sample_id")
    found = content_hashes(here[kind].tolist(), files)
    if not found.any():
        raise InputError(f"none of the {kind} images of {store.root} is here")
    column = f"{kind}_sha256"
    if column in store.columns:
        other = sample_ids[(found != store.column(column)).any(axis=1)].tolist()
        if other:
            raise InputError(
                f"{kind} of {some(other, _LISTED)}: not the image that the cache's "
                "targets were computed from. Put it back, or rebuild the cache",
                command="teacher-cache --force",
            )
    return found


def _rendered(
    images: ImageDataset, kind: str, views: Sequence[int], options: Options
) -> Iterator[np.ndarray]:
    """Of each sample its views, uint8 [V, H, W, 3], erased."""
    batches = [[(row, view) for view in views] for row in range(len(images))]
    loader = load(images, batches, options.data.workers, torch.device("cpu"))
    with bar(f"render {kind}", len(batches), "samples") as progress:
        for batch in iterate(loader):
            pixels = batch[kind]
            if kind != "mask":
                pixels = erase(pixels, batch["view_params"].numpy(), ERASED_PIXEL)
            yield pixels.permute(0, 2, 3, 1).numpy()
            progress.advance()


def _write_png(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 [H, W, 3]."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", compress_level=1)
    write_bytes(path, file.getvalue())
