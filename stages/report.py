"""Write the report of a run: one HTML file that needs no network and no other file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from deskpro.cache.errors import CacheError
from deskpro.cache.files import write_text
from deskpro.cache.reader import MappedReader
from deskpro.cache.store import TargetStore
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import warn
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.identities import Identities
from deskpro.stages.data.index import has_cameras, read_index
from deskpro.stages.data.layouts import LAYOUTS, layout_of
from deskpro.stages.evaluation.attention import Seen, seen_queries
from deskpro.stages.evaluation.image_digests import evaluated_images
from deskpro.stages.evaluation.paired import LEVEL, gain
from deskpro.stages.evaluation.study import studied
from deskpro.stages.metrics.intervals import holm
from deskpro.stages.reporting import (
    decisions,
    gap_rows,
    heatmap,
    histories,
    ranked,
    record,
    results,
)
from deskpro.stages.reporting.images import Thumbnails, from_pixels
from deskpro.stages.reporting.page import render
from deskpro.stages.targets.comparison import compare

SHRUNK = {"query": (144, 288), "gallery": (96, 192), "face": (112, 112)}
"""Width and height that an image is shrunk to fit, by where it is shown: about twice its size on
the page, for dense screens."""


def run(
    options: Options,
    folder: RunFolder,
    out: Path,
    *,
    good: int,
    failed: int,
    samples: int,
    against: Sequence[Path] = (),
    anyway: bool = False,
) -> dict[str, object]:
    """Write the page of an evaluated run to `out`; equal inputs give equal bytes.

    All files of the run but metrics.json may be absent: their part is then left out.

    Args:
        options: those that the run was evaluated with.
        good, failed: number of queries to show with their ranked lists.
        samples: number of queries, and of training samples, that are shown with attention.
        against: evaluated runs that the page says the difference from; where none is given, the
            student without targets and the teacher, if a study of the run has evaluated them.
        anyway: report the evaluation of another student than the folder's.

    Returns:
        The facts for the summary.

    Raises:
        InputError: there is no evaluation to report, or to compare with.
    """
    metrics = record.read_metrics(folder.path, anyway=anyway)
    show = Thumbnails(SHRUNK)
    test, no_images = evaluated_images(metrics, options.test_root)
    cameras = _has_cameras(metrics, test)
    cards, no_cards = _cards(metrics, test, folder.path, show, good, failed)
    comparisons, no_comparisons = _comparisons(options, folder, samples)
    others, outdated = _others(options, folder, against)
    parts = {
        **_gains(folder, others, outdated),
        "title": folder.path.resolve().name,
        "metrics": metrics,
        **_results(metrics, folder.path, cameras),
        "no_images": no_images,
        "cards": cards,
        "no_cards": no_cards,
        "comparisons": comparisons,
        "no_comparisons": no_comparisons,
        **_attention(options, metrics, folder, test, samples, others),
        **_training(options, folder),
        **_provenance(options, test, folder, cameras),
    }
    write_text(out, page := render("report", parts))
    facts: dict[str, object] = {
        "queries": no_cards or _outcomes(cards),
        "training samples": no_comparisons or len(comparisons),
    }
    if show.missing:
        facts["missing"] = f"{show.missing} images cannot be read and are shown as placeholders"
    if no_images:
        facts["images"] = f"{no_images}; to name their folder: --set {_root_of(options)}=DIR"
    return facts | {"report": f"{out} ({len(page.encode()) / 1e6:.1f} MB)"}


def _root_of(options: Options) -> str:
    """The option that says where query and gallery are."""
    return "data.test_root" if options.data.test_root else "data.root"


def _results(metrics: Mapping[str, Any], folder: Path, cameras: bool) -> dict[str, Any]:
    name, protocol = next(iter(metrics["protocols"].items()))
    protocols = results.merged(metrics["protocols"])
    stream = results.widest(protocol["streams"])
    table = record.read_table(folder / "breakdown.csv")
    return {
        "primary": name,
        "widest": stream,
        "protocols": protocols,
        "accuracy_chart": results.accuracy_chart(protocols),
        "pairs": results.pair_rows(protocols),
        "pair_columns": results.PAIR_COLUMNS,
        "gaps": [*gap_rows.widest_gaps(protocols)],
        "gap_rows": gap_rows,
        "gap_chart": gap_rows.chart(protocols),
        "transductive": results.transductive_rows(protocols),
        "transductive_columns": results.TRANSDUCTIVE_COLUMNS,
        "cmc_charts": results.cmc_charts(protocols),
        "decision_charts": decisions.charts(protocol["streams"][stream].get("verification") or {}),
        "by_camera": results.breakdown(table, name, stream, "camid") if cameras else [],
        "by_identity": results.breakdown(table, name, stream, "pid", worst=10),
        "cameras": cameras,
        "mistakes": protocol["streams"][stream].get("mistakes") or {},
        "confused": results.confused_cameras(protocol["streams"][stream]) if cameras else [],
        "kinds": ranked.KINDS,
    }


def _outcomes(cards: Sequence[Mapping[str, Any]]) -> str:
    found = [card["outcome"] for card in cards]
    return f"{found.count('good')} good  {found.count('failed')} failed"


Others = Sequence[tuple[Path, str]]
"""Evaluated runs, and what they are called."""


def _others(
    options: Options, folder: RunFolder, against: Sequence[Path]
) -> tuple[Others, list[str]]:
    """The runs that are compared with, and why some of the run's study are not.

    Raises:
        InputError: one that is named has no evaluation.
    """
    if against:
        for path in against:
            record.read_metrics(path, anyway=True)  # `_gains` refuses another student's
        return [(path, path.resolve().name) for path in against], []
    return studied(folder, options.pre_train or folder.teacher)


def _gains(folder: RunFolder, others: Others, outdated: Sequence[str]) -> dict[str, Any]:
    """The differences from other runs, each with its `name`, and p adjusted for their number, as
    `compare` has it; and why others have none. outdated: such reasons."""
    found, refused = [], [*outdated]
    for path, name in others:
        try:
            found.append(gain(folder.path, path) | {"name": name})
        except InputError as error:
            refused.append(f"{name}: {error}")
    for why in refused:
        warn(f"not compared with {why}")
    for each, p in zip(found, holm([each["p"] for each in found]), strict=True):
        each["p"] = float(p)
    return {"gains": found, "no_gains": refused, "level": LEVEL}


def _figures_of(others: Others) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and figures of attention of the others; `_gains` says why one can't be read."""
    for path, name in others:
        with suppress(InputError):
            yield name, record.read_metrics(path).get("attention") or {}


def _has_cameras(metrics: Mapping[str, Any], test: pd.DataFrame) -> bool:
    """Whether the dataset names cameras; if not, each image counts as a camera.

    test: its images; without rows where they are gone, and what its layout reads decides.
    """
    if not test.empty:
        return has_cameras(test)
    layout = LAYOUTS.get(metrics["data"]["dataset"])
    return layout is None or any("camid" in rule.groupindex for rule in layout.rules)


def _cards(
    metrics: Mapping[str, Any],
    test: pd.DataFrame,
    folder: Path,
    show: Thumbnails,
    good: int,
    failed: int,
) -> tuple[list[dict[str, Any]], str]:
    """The ranked lists of the first protocol's widest stream, or why there are none."""
    queries, lists = (record.read_table(folder / name) for name in ("queries.csv", "ranked.csv"))
    if queries is None or lists is None:
        absent = "queries.csv" if queries is None else "ranked.csv"
        return [], f"{absent} is not in the run folder, or cannot be read."
    name, protocol = next(iter(metrics["protocols"].items()))
    stream = results.widest(protocol["streams"])
    mine = queries[(queries["protocol"] == name) & (queries["stream"] == stream)]
    # Single-shot draws repeat a query: the lists are of the first draw.
    outfits = "share" in protocol["streams"][stream].get("mistakes", {}).get("outfit", {})
    queries = mine.drop_duplicates("sample_id")
    chosen = ranked.choose(queries, lists, good, failed, outfits=outfits)
    paths: dict[str, Any] = {row["sample_id"]: row for row in test.to_dict("records")}
    cards = ranked.cards(chosen, lists, paths, show)
    return cards, "" if cards else "No queries were requested."


def _comparisons(
    options: Options, folder: RunFolder, samples: int
) -> tuple[list[dict[str, Any]], str]:
    """Training samples with their images as data URIs, or why there are none."""
    if not samples:
        return [], "No training samples were requested."
    for path in (folder.targets, folder.student):
        if not path.exists():
            return [], f"{path.name} is not in the run folder."
    data = options.data
    sizes, floor = (data.face_size, data.body_size), options.mse.floor
    try:
        compared = compare(
            folder.targets, folder.student, data.root, options.train_set, sizes, samples, floor
        )
    except (InputError, CacheError) as error:
        return [], f"{error}."
    kinds = ("body", "attention", "target", "lr_face", "hr_face")
    pixels = [{kind: getattr(each, kind) for kind in kinds} for each in compared]
    return [
        vars(each) | {k: None if array is None else from_pixels(array) for k, array in of.items()}
        for each, of in zip(compared, pixels, strict=True)
    ], ""


def _attention(
    options: Options,
    metrics: Mapping[str, Any],
    folder: RunFolder,
    test: pd.DataFrame,
    samples: int,
    others: Others,
) -> dict[str, Any]:
    """The attention on queries: figures of this run and of others, and some of the queries."""
    figures, digest = metrics.get("attention") or {}, metrics["network"]["sha256"]
    seen, why = list[Seen](), figures.get("refused", "this network has no attention") + "."
    if "head_iou" in figures:
        try:
            seen, why = seen_queries(folder.attention, digest, test, samples)
        except (InputError, CacheError) as error:
            why = f"{error}."
    top = max((float(each.attention.max()) for each in seen), default=1.0)
    compared = [
        (name, found, found["digest"] == figures.get("digest"))
        for name, found in _figures_of(others)
        if "head_iou" in found
    ]
    return {
        "attention": figures,
        "other_attention": compared,
        "seen_top": top,
        "seen_scale": heatmap.scale() if seen else "",
        "no_seen": why,
        "held_out": options.data.validation,
        "seen": [
            {
                "sample_id": each.sample_id,
                "pid": each.pid,
                "head_iou": each.head_iou,
                "image": heatmap.outlined(each.image, each.head, each.highest),
                "map": heatmap.coloured(each.attention, top, each.head),
            }
            for each in seen
        ],
    }


def _training(options: Options, folder: RunFolder) -> dict[str, Any]:
    parts = []
    heads, metrics_table = [], None
    for who in ("student", "teacher"):
        history = record.read_table(folder.history(who))
        if history is None or history.empty:
            continue
        _, metrics = histories.split(history.columns)
        others = [name for name in history.columns if name not in ("epoch", *metrics)]
        table = histories.numbers(history, others)
        parts.append({"who": who, "charts": histories.charts(who, history), "table": table})
        if who == "student" and metrics:
            heads = histories.heads(history)
            metrics_table = histories.numbers(history, metrics)
    return {
        "training": parts,
        "measures": heads,
        "metrics_table": metrics_table,
        "temperature": options.kd_loss.T,
    }


def _finished(stages: Sequence[Mapping[str, Any]], name: str) -> tuple[str, str]:
    """When a stage finished, and by which code; empty where that isn't known."""
    found: Mapping[str, Any] = next((stage for stage in stages if stage["name"] == name), {})
    versions = found.get("versions", {})
    code = [f"{what} {versions[what]}" for what in ("deskpro", "commit") if what in versions]
    return found.get("finished", ""), ", ".join(code)


def _provenance(
    options: Options, test: pd.DataFrame, folder: RunFolder, cameras: bool
) -> dict[str, Any]:
    """The data, the options and what everything was made from."""
    root, train = options.data.root, test[:0]
    with suppress(InputError):
        train = read_index(root, layout_of(root, options.train_set), ("train",))[0]
    tables = [
        (str(name), rows)
        for table in (Identities(*options.data.chosen).choose(train), test)
        for name, rows in table.groupby("split", sort=False)
    ]
    fingerprint: dict[str, str] = {}
    used, problem = None, ""
    if folder.targets.exists():
        try:
            store = TargetStore(folder.targets)
            used = store.samples
            for group in store.groups():
                values = record.as_texts(MappedReader(folder.targets, group).fingerprint)
                fingerprint |= {f"{group}: {name}": value for name, value in values.items()}
        except CacheError as error:
            problem = str(error)
    stages = record.stages(folder.manifest("eval").parent)
    left_out = record.read_table(folder.left_out)
    trained, evaluated = (_finished(stages, name) for name in ("train-student", "eval"))
    return {
        "splits": record.splits(tables, used, cameras),
        "left_out": [] if left_out is None else left_out.to_dict("records"),
        "stages": stages,
        "evaluated": evaluated[0],
        "evaluated_by": evaluated[1],
        "trained": trained[0],
        "trained_by": trained[1],
        "versions": stages[-1]["versions"] if stages else {},
        "fingerprint": fingerprint,
        "cache_problem": problem,
        "is_digest": record.is_digest,
        "config": record.read_text(folder.path / "config.yaml"),
    }
