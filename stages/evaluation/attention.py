"""Where the student looks on queries, whom it has never seen, and how much of that is the head.

A figure beside the scores. The network sees body images alone; masks meet its attention when that
is computed, and no score depends on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import sha256
from deskpro.cache.reader import ZarrReader
from deskpro.cache.schema import Field, Schema
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar, warn
from deskpro.stages.data.check import check_masks
from deskpro.stages.data.loader import ImageDataset, batched, images_of, iterate, load
from deskpro.stages.data.masks import LIT
from deskpro.stages.evaluation.feature_store import distinct_images, open_writer
from deskpro.stages.evaluation.image_digests import contents_digest
from deskpro.stages.metrics.intervals import interval
from deskpro.stages.metrics.overlap import highest, region_iou, uniform_iou
from deskpro.stages.models.backbones import map_size
from deskpro.stages.models.extractor import FeatureExtractor
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.student import Student

GROUP = "attention"
BLOCK = 256
"""Queries per block of the store."""
_FIGURES = ("head", "head_iou", "mask_iou")
"""Of a query: the share of its image that is head; the IoU of attention and head; that of the mask
itself, at the resolution of the attention."""
_VERSION = 1
"""Raise it when the same files give other figures: stored ones are then computed again."""
_SHOWN = 256
"""Images are shown about so high, pixels, in whole multiples of what the student sees."""


def score_attention(
    path: Path,
    extractor: FeatureExtractor,
    weights: Path,
    query: pd.DataFrame,
    options: Options,
    index: FileIndex,
    device: torch.device,
) -> dict[str, Any] | None:
    """What metrics.json says of the attention on all queries that have a mask with a head.

    Args:
        path: the store of maps and figures; what is there of the same weights and images is kept.
        weights: the file of the extractor's network.
        query: the table of queries.

    Returns:
        `head_iou` (a mean over queries) with its 95 % `interval` over identities, and for
        comparison `uniform_iou`, of an attention that is the same everywhere, and `mask_iou`, of
        the mask at the attention's resolution; how many queries there are, and aren't, and why.
        `refused` where there is none; None for a network without attention.
    """
    network = extractor.network.nocloth_net if isinstance(extractor.network, Student) else None
    if network is None:
        return None
    table, unused = _masked(query, options.test_root, index)
    if table.empty:
        return {"refused": unused["refused"] or "the queries have no masks"}
    figures, contents = _store(path, network, weights, extractor, table, options, index, device)
    there = figures[:, 0] > 0
    if not there.any():
        return {"refused": f"none of the {len(table)} masks of queries has a head"}
    # By content: then no digit depends on file names.
    order = np.lexsort(contents[there].T)
    found, pids = figures[there][order], table["pid"].to_numpy()[there][order]
    return {
        "queries": len(found),
        "identities": len({*pids}),
        "without mask": unused["without mask"],
        "unusable mask": unused["unusable mask"],
        "without head": int((~there).sum()),
        "digest": contents_digest(contents[there][order]),
        "head_iou": float(found[:, 1].mean()),
        "interval": interval(found[:, 1], pids),
        "uniform_iou": float(np.mean([uniform_iou(share) for share in found[:, 0]])),
        "mask_iou": float(found[:, 2].mean()),
    }


def _masked(
    query: pd.DataFrame, root: Path, index: FileIndex
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The queries with a mask that can be used, and why the others aren't; warns of bad masks."""
    masked = query[query["mask"].notna()]
    problems = check_masks(masked, root, index)
    for problem in problems[:1]:
        more = f" ({len(problems)} such masks)" if len(problems) > 1 else ""
        warn(f"not used to measure the attention: {problem}{more}")
    whole = [problem.what for problem in problems if problem.path == root / "mask"]
    bad = {str(problem.path) for problem in problems}
    used = masked[~masked["mask"].isin(bad)] if not whole else masked[:0]
    return used.reset_index(drop=True), {
        "refused": whole[0] if whole else problems and f"no mask can be used: {problems[0]}",
        "without mask": len(query) - len(masked),
        "unusable mask": len(masked) - len(used),
    }


def _store(
    path: Path,
    network: LMBN,
    weights: Path,
    extractor: FeatureExtractor,
    table: pd.DataFrame,
    options: Options,
    index: FileIndex,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Bring the store to the table's images: `_FIGURES` of each, float64 [N, 3], and the contents
    of its files, uint8 [N, 64]. Images of equal content have one row."""
    distinct, size = distinct_images(table, ("imgs", "mask"), index), extractor.sizes["imgs"]
    images = len(distinct.table)
    shape = map_size(network.backbone_name, size)
    maps = Field(shape, "float32", ("height", "width"), "1", "attention, 0..1")
    numbers = Field((len(_FIGURES),), "float64", ("figure",), "1", ", ".join(_FIGURES))
    schema = Schema(images, 1, BLOCK, {"attention": maps, "figures": numbers})
    fingerprint = {"weights": sha256(weights), "size": list(size), "version": _VERSION}
    with open_writer(path, GROUP, schema, distinct, fingerprint) as writer:
        blocks = [range(*schema.rows(block).indices(images)) for block in writer.missing]
        computed = _compute(network, distinct.table, size, blocks, options, device)
        for block, fields in zip(writer.missing, computed, strict=True):
            writer.write(block, fields)
        writer.seal()
    return _stored_figures(ZarrReader(path, GROUP))[distinct.rows], distinct.contents


def _stored_figures(stored: ZarrReader) -> np.ndarray:
    """`_FIGURES` of every row of the store, float64 [N, 3]."""
    blocks = range(stored.schema.blocks)
    return np.concatenate([stored.chunk("figures", block, 0) for block in blocks])


def _compute(
    network: LMBN,
    table: pd.DataFrame,
    size: tuple[int, int],
    blocks: Sequence[range],
    options: Options,
    device: torch.device,
) -> Iterator[dict[str, np.ndarray]]:
    """The fields of each block, [rows, 1, …]. The network sees plain images, not mirrored ones."""
    plan = [batched(rows, options.eval.batch) for rows in blocks]
    wanted = [[(row, 0) for row in rows] for batches in plan for rows in batches]
    images = ImageDataset(table, {"imgs": size, "mask": size})
    with bar("attention", sum(map(len, blocks)), "images") as progress:
        loader = iterate(load(images, wanted, options.data.workers, device))
        for batches in plan:
            maps, figures = [], []
            for rows in batches:
                rendered = next(loader)
                with torch.inference_mode():
                    attention = network.attend(images_of(rendered, "imgs", device)).float().cpu()
                maps.append(attention[:, 0].numpy())
                figures.append(_figures(attention, rendered["mask"]))
                progress.advance(len(rows))
            parts = {"attention": np.concatenate(maps), "figures": np.concatenate(figures)}
            yield {name: values[:, None] for name, values in parts.items()}


def _figures(attention: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
    """`_FIGURES` of attention float [B, 1, h, w] and masks uint8 [B, 3, H, W]: float64 [B, 3]."""
    size = masks.shape[-2], masks.shape[-1]
    lit = masks[:, :1] >= LIT
    # The share of each position, whole: a target, as published, is of four of its pixels alone.
    share = torch.nn.functional.interpolate(lit.double(), attention.shape[-2:], mode="area")
    heads = lit[:, 0].numpy()
    own, best = enlarge(attention, size), enlarge(share, size)
    return np.array(
        [
            (head.mean(), region_iou(mine, head), region_iou(reached, head))
            for head, mine, reached in zip(heads, own, best, strict=True)
        ]
    ).reshape(-1, len(_FIGURES))


def enlarge(maps: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Maps [B, 1, h, w] at the size of images, bilinearly: float64 [B, H, W].

    Six decimals: what differs by rounding alone is equal.
    """
    large = torch.nn.functional.interpolate(maps.double(), size, mode="bilinear")
    found: np.ndarray = large[:, 0].numpy().round(6)
    return found


class Seen(NamedTuple):
    """A query as it is shown, at one size [H, W]."""

    sample_id: str
    pid: str
    head_iou: float
    image: np.ndarray
    """uint8 [3, H, W]."""
    head: np.ndarray
    """bool, of the mask."""
    attention: np.ndarray
    """float64, 0..1."""
    highest: np.ndarray
    """bool, the part of highest attention that is as large as the head."""


def seen_queries(
    path: Path, weights_digest: str, table: pd.DataFrame, count: int
) -> tuple[list[Seen], str]:
    """Up to `count` queries, evenly spaced from the lowest head IoU to the highest.

    Args:
        path: the store of maps.
        weights_digest: SHA-256 of the weights that were evaluated.
        table: test images with the paths of body image and mask.

    Returns:
        The queries, or why there are none.

    Raises:
        CacheError: the store is damaged.
        InputError: an image can't be read.
    """
    if not path.exists():
        return [], f"{path.name} is not in the run folder."
    absent = "their images are not found."
    if table.empty:
        return [], absent
    stored = ZarrReader(path, GROUP)
    if stored.fingerprint.get("weights") != weights_digest:
        return [], f"{path.name} is of other weights."
    place = {name: row for row, name in enumerate(stored.column("sample_id").tolist())}
    usable = table[table["sample_id"].isin(place)].dropna(subset=["imgs", "mask"])
    usable = usable.drop_duplicates("sample_id").reset_index(drop=True)
    if usable.empty:
        return [], absent
    rows = np.array([place[name] for name in usable["sample_id"]])
    iou = _stored_figures(stored)[rows, 1]
    order = np.lexsort([usable["sample_id"].to_numpy(str), iou])
    order = order[~np.isnan(iou[order])]
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    chosen = order[places].tolist()
    if not chosen:
        return [], "no queries were requested."
    maps = stored.read(rows[chosen].tolist(), [0] * len(chosen))["attention"]
    height, width = stored.fingerprint["size"]
    times = max(1, round(_SHOWN / height))
    size = height * times, width * times
    images = ImageDataset(usable, {"imgs": size, "mask": size})
    found = []
    for row, grid in zip(chosen, maps, strict=True):
        rendered: Mapping[str, Any] = images[row, 0]
        head = (rendered["mask"][0] >= LIT).numpy()
        attention = enlarge(torch.from_numpy(grid)[None, None], size)[0]
        most = highest(attention, int(head.sum())) >= 0.5
        pid, name = (str(usable[column].iloc[row]) for column in ("pid", "sample_id"))
        found.append(Seen(name, pid, iou[row], rendered["imgs"].numpy(), head, attention, most))
    return found, ""
