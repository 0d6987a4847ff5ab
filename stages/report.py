"""Write the report of a run: one HTML file that needs no network and no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from deskpro.cache.errors import CacheError
from deskpro.cache.files import write_aside
from deskpro.cache.reader import MappedReader
from deskpro.cache.store import TargetStore
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.reporting import histories, ranked, record, results
from deskpro.stages.reporting.images import Thumbnails, from_pixels
from deskpro.stages.reporting.page import render
from deskpro.stages.targets.comparison import Compared, compare

SHRUNK = {"query": (144, 288), "gallery": (96, 192), "face": (112, 112)}
"""Width and height that an image is shrunk to fit, by where it is shown: about twice what it has
on the page, for dense screens."""


@dataclass(frozen=True)
class Inputs:
    """The files of a run; all but `metrics` may be absent, and their part is then left out.

    metrics, queries, ranked, breakdown: what eval wrote; student_history, teacher_history: CSV, a
    row per epoch; config: the resolved options; manifests: folder of the stages' records; left_out:
    CSV of samples not used; cache: the zarr store; student: its weights.
    """

    metrics: Path
    queries: Path
    ranked: Path
    breakdown: Path
    student_history: Path
    teacher_history: Path
    config: Path
    manifests: Path
    left_out: Path
    cache: Path
    student: Path


@dataclass(frozen=True)
class Outputs:
    """report: HTML."""

    report: Path


def run(
    options: Options, inputs: Inputs, outputs: Outputs, *, good: int, failed: int, samples: int
) -> dict[str, object]:
    """Show up to `good` and `failed` queries and `samples` training samples beside all figures.

    Returns the facts for the summary. Raises InputError where there is no evaluation to report.
    """
    metrics = _metrics(inputs.metrics)
    show = Thumbnails(SHRUNK)
    root = Path(metrics["data"]["root"])
    root = root if root.is_dir() else options.test_root  # the images may have moved since
    cards, no_cards = _cards(metrics, root, inputs, show, good, failed)
    comparisons, no_comparisons = _comparisons(options, inputs, samples)
    parts = {
        "title": inputs.metrics.parent.resolve().name,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "metrics": metrics,
        **_results(metrics, inputs),
        "cards": cards,
        "no_cards": no_cards,
        "comparisons": comparisons,
        "no_comparisons": no_comparisons,
        **_training(options, inputs),
        **_origin(options, metrics, root, inputs),
    }
    page = render("report", parts)
    with write_aside(outputs.report) as aside:
        aside.write_text(page, encoding="utf-8")
    facts: dict[str, object] = {
        "queries": no_cards
        or "  ".join(
            f"{sum(card.outcome == outcome for card in cards)} {outcome}"
            for outcome in ("good", "failed")
        ),
        "training samples": no_comparisons or len(comparisons),
    }
    if show.missing:
        facts["missing"] = f"{show.missing} images can't be read: placeholders stand for them"
    if not root.is_dir():
        facts["images"] = f"not at {root}; --set data.root=DIR says where they are"
    return facts | {"report": f"{outputs.report} ({len(page.encode()) / 1e6:.1f} MB)"}


def _metrics(path: Path) -> dict[str, Any]:
    """What eval found; InputError where there is none, or one of another version."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no evaluation in this run folder. Make one first: make eval"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: unreadable ({error}). Make it anew: make eval FORCE=1") from None
    protocols = metrics.get("protocols") if isinstance(metrics, dict) else None
    if not isinstance(protocols, dict) or not all(p.get("streams") for p in protocols.values()):
        raise InputError(
            f"{path}: written by another version: it must name its protocols and their streams. "
            "Make it anew: make eval FORCE=1"
        )
    return metrics


def _results(metrics: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    protocols = metrics["protocols"]
    name, primary = next(iter(protocols.items()))
    stream = results.widest(primary)
    table = record.read_table(inputs.breakdown)
    return {
        "primary": name,
        "widest": stream,
        "headline": primary["streams"][stream],
        "legend": results.legend(protocols),
        "accuracy": results.accuracy(protocols),
        "by_face": results.by_face(protocols),
        "cmc": results.cmc_charts(protocols),
        "by_camera": results.breakdown(table, name, stream, "camid") if _cameras(metrics) else [],
        "cameras": _cameras(metrics),
        "by_identity": results.breakdown(table, name, stream, "pid", worst=10),
    }


def _cameras(metrics: Mapping[str, Any]) -> bool:
    """Whether the data have cameras; where they haven't, each image counts as one of its own."""
    layout = LAYOUTS.get(metrics["data"]["dataset"])
    return layout is None or any("camid" in rule.groupindex for rule in layout.rules)


def _cards(
    metrics: Mapping[str, Any],
    root: Path,
    inputs: Inputs,
    show: Thumbnails,
    good: int,
    failed: int,
) -> tuple[list[ranked.Card], str]:
    """The ranked lists of the primary protocol's widest stream, or why there are none."""
    queries, lists = (record.read_table(path) for path in (inputs.queries, inputs.ranked))
    if queries is None or lists is None:
        absent = inputs.queries if queries is None else inputs.ranked
        return [], f"{absent.name} isn't in the run folder, so no ranked list can be shown."
    name, protocol = next(iter(metrics["protocols"].items()))
    mine = (queries["protocol"] == name) & (queries["stream"] == results.widest(protocol))
    numeric = queries[mine].astype({"ap": float, "first": float, "positives": float})
    # Single-shot draws repeat a query: the lists are of the first draw.
    chosen = ranked.choose(numeric.drop_duplicates("sample_id"), good, failed)
    return ranked.cards(chosen, lists, _paths(root, metrics["data"]["dataset"]), show), ""


def _paths(root: Path, dataset: str) -> dict[str, dict[str, Any]]:
    """sample_id → paths of its images; nothing where the images aren't here any more."""
    if not root.is_dir() or dataset not in LAYOUTS:
        return {}
    index, _ = read_index(root, LAYOUTS[dataset], ("query", "gallery"))
    rows = index[["imgs", "lr_face", "hr_face"]].to_dict("records")
    return dict(zip(index["sample_id"], rows, strict=True))


def _comparisons(
    options: Options, inputs: Inputs, samples: int
) -> tuple[list[tuple[Compared, dict[str, str | None]]], str]:
    """Training samples with their images as data URIs, or why there are none."""
    if not samples:
        return [], "No training sample was asked for."
    for path, what in ((inputs.cache, "target cache"), (inputs.student, "student")):
        if not path.exists():
            return [], f"There is no {what} ({path.name}) in the run folder."
    data = options.data
    try:
        compared = compare(
            inputs.cache,
            inputs.student,
            data.root,
            options.data_train,
            (data.face_size, data.body_size),
            samples,
        )
    except (InputError, CacheError) as error:
        return [], f"It could not be made: {error}."
    kinds = ("body", "attention", "target", "lr_face", "hr_face")
    shown = [
        {
            kind: None if (pixels := getattr(each, kind)) is None else from_pixels(pixels)
            for kind in kinds
        }
        for each in compared
    ]
    return list(zip(compared, shown, strict=True)), ""


def _training(options: Options, inputs: Inputs) -> dict[str, Any]:
    read = {
        "student": record.read_table(inputs.student_history, text=False),
        "teacher": record.read_table(inputs.teacher_history, text=False),
    }
    return {
        "training": [
            {"who": who, "curves": histories.curves(who, history), "numbers": numbers}
            for who, history in read.items()
            if (numbers := histories.numbers(history)) is not None
        ],
        "heads": histories.heads(read["student"]),
        "heads_numbers": histories.numbers(read["student"], metrics=True),
        "temperature": options.kd_loss.T,
    }


def _origin(
    options: Options, metrics: Mapping[str, Any], test_root: Path, inputs: Inputs
) -> dict[str, Any]:
    """The data, the options and what everything was made from."""
    tables: list[tuple[str, pd.DataFrame]] = []
    for root, dataset, names in (
        (options.data.root, options.data_train, ("train",)),
        (test_root, metrics["data"]["dataset"], ("query", "gallery")),
    ):
        if root.is_dir() and dataset in LAYOUTS:
            index, _ = read_index(root, LAYOUTS[dataset], names)
            tables += [(name, index[index["split"] == name]) for name in names]
    sealed: dict[str, str] = {}
    used, why = None, ""
    if inputs.cache.exists():
        try:
            store = TargetStore(inputs.cache)
            used = store.samples
            for group in store.groups():
                sealed |= record.fingerprint(MappedReader(inputs.cache, group).fingerprint)
        except CacheError as error:
            why = str(error)
    stages = record.stages(inputs.manifests)
    left_out = record.read_table(inputs.left_out)
    return {
        "splits": record.splits(tables, used, _cameras(metrics)),
        "left_out": [] if left_out is None else left_out.to_dict("records"),
        "stages": stages,
        "versions": stages[-1]["versions"] if stages else {},
        "fingerprint": sealed,
        "no_fingerprint": why,
        "is_digest": record.is_digest,
        "config": record.read_text(inputs.config),
    }
