"""What the students of a study are held against: chance, who reads clothes only, the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from deskpro.pipeline import runner
from deskpro.pipeline.config import override
from deskpro.pipeline.results_file import measured, world_facts
from deskpro.pipeline.tables import CHANCE, CLOTHES, TEACHER
from deskpro.stages.base.names import FACE_HR
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.index import read_index, tracklet_key
from deskpro.stages.data.layouts import layout_of
from deskpro.stages.metrics.protocols import PROTOCOLS, Protocol
from deskpro.stages.metrics.ranking import clothes_distances, random_order, rank_gallery
from deskpro.stages.targets.kinds import needs_teacher

if TYPE_CHECKING:
    import pandas as pd

Measure = Callable[["pd.DataFrame", "pd.DataFrame", Protocol], dict[str, float]]


def rows(
    options: Options, folder: RunFolder, student: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """What was measured of the references, a row per reference and stream.

    student: the rows of a student; the references are measured on its queries: of `face`
    and `face_hr` those that have one.
    """
    layout = layout_of(options.test_root, options.test_set)
    index = read_index(options.test_root, layout, ("query", "gallery"))[0]
    if options.eval.unit == "tracklet":
        index = index.drop_duplicates(tracklet_key(index))
    query, gallery = (
        index[index["split"] == split].reset_index(drop=True) for split in ("query", "gallery")
    )
    measures: dict[str, Measure] = {CHANCE: _chance}
    if world_facts(options.test_root):
        measures[CLOTHES] = _clothes
    for name, measure in measures.items():
        for row in student:
            seen = query["lr_face"].notna() | (row["stream"] not in ("face", FACE_HR))
            queries = query[seen].reset_index(drop=True)
            scores = measure(queries, gallery, PROTOCOLS[row["protocol"]])
            kept = {key: row[key] for key in ("stream", "protocol", "queries")}
            yield {"variant": name, **kept, **scores, "minutes": 0.0, "run": ""}
    yield from _teacher(options, folder)


def always(options: Options, folder: RunFolder) -> list[str]:
    """The references that every replicate has a row of."""
    return [CHANCE, TEACHER] if _has_teacher(options, folder) else [CHANCE]


def _has_teacher(options: Options, folder: RunFolder) -> bool:
    trained = RunFolder(folder.upstream).given() is None and needs_teacher(options)
    return options.pre_train is not None or trained


def _chance(query: pd.DataFrame, gallery: pd.DataFrame, protocol: Protocol) -> dict[str, float]:
    return {"mAP": float(random_order(query, gallery, protocol)["ap"].mean())}


def _clothes(query: pd.DataFrame, gallery: pd.DataFrame, protocol: Protocol) -> dict[str, float]:
    ranking = rank_gallery(query, gallery, clothes_distances(query, gallery), protocol)
    return {"mAP": ranking.mAP, "rank1": float(ranking.queries["rank1"].mean())}


def _teacher(options: Options, folder: RunFolder) -> Iterator[dict[str, Any]]:
    """The scores of the teacher, which sees HR faces; none where only its targets are here."""
    if not _has_teacher(options, folder):
        log(f"{folder.path}: the teacher is where its targets were made; its row is left out")
        return
    from deskpro.stages.evaluate import Evaluate

    home = RunFolder(folder.path / "ablation" / "teacher", folder.upstream)
    weights = options.pre_train or folder.teacher
    options = override(options, {"eval.gallery_network": "student"})  # it is evaluated alone
    evaluation = Evaluate(options, home, weights, kind="teacher")
    runner.run_stage(evaluation, options, home, update=True)
    for row in measured(home):
        yield {"variant": TEACHER, **row, "minutes": 0.0, "run": str(home.path)}
