"""Evaluate a student (or a teacher): features of query and gallery, scored by every protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deskpro.cache.files import sha256
from deskpro.stages.base import distributed
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import Name
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log, start, table
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Dep, Job, Result, Stage
from deskpro.stages.data.layouts import LAYOUTS, image_folders
from deskpro.stages.evaluation.asymmetric import refuse_options, require_hr_faces, require_teacher
from deskpro.stages.losses.terms import targets_needed

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from deskpro.stages.evaluation.feature_store import FeatureStore
    from deskpro.stages.metrics.protocols import Protocol
    from deskpro.stages.metrics.ranking import Ranking
    from deskpro.stages.models.extractor import FeatureExtractor


@dataclass(frozen=True)
class EvaluateResult(Result):
    """rules: of the protocols; kept: blocks of features that were there, of `blocks`; of_teacher:
    what was done for the gallery's features by the teacher, if any; without_face: split → images,
    empty without a face stream; skipped: protocol → queries without a positive."""

    rules: Sequence[str]
    kept: int
    blocks: int
    features: Path
    of_teacher: Mapping[str, Any]
    without_face: Mapping[str, int]
    skipped: Mapping[str, int]
    metrics: Path


class Evaluate(Stage):
    """Evaluates a student (or a teacher) by every protocol of the dataset."""

    name = "eval"
    params = (
        "data_train",
        "data_test",
        "data.face_size",
        "data.body_size",
        "eval.protocols",
        "eval.face_weight",
        "eval.rerank",
        "eval.flip",
        "eval.ranks",
        "eval.gallery_network",
    )
    incremental = True

    def __init__(
        self,
        options: Options,
        folder: RunFolder,
        weights: Path | None = None,
        kind: str | None = None,
    ) -> None:
        """Evaluate the run's student, or the network of a weights file alone.

        Args:
            options: of the recipe.
            folder: where the scores go.
            weights: another network than the run's student.
            kind: student or teacher, where the weights file holds both.
        """
        super().__init__(options, folder)
        self.alone = weights is not None
        self.weights = weights or folder.student
        self.kind = kind if self.alone else "student"

    @property
    def dataset(self) -> str:
        return self.options.data_test or self.options.data_train

    @property
    def teacher(self) -> Path | None:
        """The weights of the teacher that sees the gallery; None where the student does."""
        own = self.options.pre_train or self.folder.teacher
        return own if self.options.eval.gallery_network == "teacher" else None

    def upstream(self) -> str | None:
        return None if self.alone else "train-student"

    def check(self) -> None:
        bodies = LAYOUTS[self.dataset].bodies(self.options.test_root)
        if not bodies.is_dir():
            raise InputError(
                f"{self.options.test_root}: no such folder, or none of body images in it. Set "
                "data.test_root, or data.root"
            )
        if self.teacher is not None:
            refuse_options(self.options, alone=self.weights != self.folder.student)
            if not self.folder.metrics.exists() and not self._makes_teacher():
                require_teacher(self.teacher, self.options)

    def _makes_teacher(self) -> bool:
        """Whether the stages before it are about to train the teacher."""
        options, done = self.options, self.alone or self.folder.student.exists()
        made = not done and options.pre_train is None
        return made and bool(targets_needed(options, options.streams))

    def deps(self) -> list[Dep]:
        root, layout = self.options.test_root, LAYOUTS[self.dataset]
        # A teacher sees HR faces.
        kinds = ("imgs", "lr_face", "hr_face") if self.alone else ("imgs", "lr_face")
        folders = image_folders(root, self.dataset, kinds, ("query", "gallery"))
        if self.teacher is not None:
            folders |= image_folders(root, self.dataset, ("hr_face",), ("gallery",))
        return [
            Dep("the network" if self.alone else "the student", self.weights),
            *(Dep("the teacher", path) for path in (self.teacher,) if path is not None),
            *(Dep(name, root / name) for name in layout.side_files),
            *(Dep(role, *place) for role, place in folders.items()),
        ]

    def outs(self) -> list[Path]:
        return [self.folder.metrics]

    def run(self, job: Job) -> Result:
        """Rank the gallery for every query, by each protocol and stream."""
        import pandas as pd

        from deskpro.stages.evaluation.feature_store import FeatureStore, store_features
        from deskpro.stages.evaluation.gallery import GalleryTeacher
        from deskpro.stages.evaluation.measures import measures_of
        from deskpro.stages.evaluation.mistakes import add_mistakes, show_mistakes
        from deskpro.stages.evaluation.pairs import add_pairs, show_pairs
        from deskpro.stages.evaluation.rankings import rank_all
        from deskpro.stages.evaluation.scores import write_scores
        from deskpro.stages.models.extractor import open_extractor

        options, data, folder = self.options, self.options.data, self.folder
        device = distributed.pick_device(options.device)
        extractor = open_extractor(self.weights, self.kind, data.face_size, data.body_size, device)
        teacher = GalleryTeacher.open(self.teacher, extractor, options, device)
        query, gallery = self._images(extractor, job)
        protocols = _protocols(options, query, gallery)
        images = pd.concat([query, gallery], ignore_index=True)
        start(self.name, device=device, samples=len(images), output=folder.metrics)
        made = store_features(folder.features, extractor, self.weights, images, options, job.index)
        budget = options.cache.memory * 1e9
        stored = FeatureStore(folder.features, device, budget)
        # In the order of their contents: then no number depends on file names.
        images = images.assign(row=made.rows).sort_values(["row", "sample_id"], ignore_index=True)
        query, gallery = (
            images[images["split"] == split].reset_index(drop=True)
            for split in ("query", "gallery")
        )
        seen = teacher and teacher.store(
            folder.gallery_features, gallery, job.index, budget - stored.resident
        )
        measures = measures_of(extractor, stored, options.eval.face_weight, seen and seen.stored)
        ranked = gallery if seen is None else seen.table
        scores = rank_all(options, measures, protocols, query, ranked)
        faces = [kind for stream, kind in extractor.kinds.items() if stream == "face"]
        images = images.sort_values("sample_id")
        report = self._report(extractor, stored, images, scores, query, gallery, faces)
        if teacher and seen:
            report["gallery_network"] = teacher.facts()
            report["data"]["digests"] |= seen.digests()
            report["data"]["without HR face"] = seen.without_face
        add_pairs(report, measures, extractor, query, ranked)
        shared = LAYOUTS[self.dataset].shared_clothes
        add_mistakes(report, scores, measures, query, ranked, shared)
        write_scores(report, scores, query, gallery, faces, folder.metrics)
        _show(report, options)
        show_pairs(report)
        show_mistakes(report)
        return EvaluateResult(
            rules=[part["rule"] for part in report["protocols"].values()],
            kept=made.kept,
            blocks=made.blocks,
            features=folder.features,
            of_teacher=seen.facts() if seen else {},
            without_face=report["data"]["without face"],
            skipped={name: part["skipped"] for name, part in report["protocols"].items()},
            metrics=folder.metrics,
        )

    def _images(self, extractor: FeatureExtractor, job: Job) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The tables of query and gallery."""
        from deskpro.stages.data.check import check_data

        root = self.options.test_root
        checked = check_data(
            root,
            self.dataset,
            splits=("query", "gallery"),
            test_needs=extractor.needs,
            gallery_needs=() if self.teacher is None else ("hr_face",),
            training=False,
            index=job.index,
        ).require()
        query, gallery = checked.split("query"), checked.split("gallery")
        if self.teacher is not None:
            require_hr_faces(gallery, root)
        return query, gallery

    def _report(
        self,
        extractor: FeatureExtractor,
        stored: FeatureStore,
        images: pd.DataFrame,
        scores: Mapping[str, Mapping[str, Ranking]],
        query: pd.DataFrame,
        gallery: pd.DataFrame,
        faces: Sequence[str],
    ) -> dict[str, Any]:
        """What metrics.json holds."""
        from deskpro.stages.evaluation.scores import protocol_numbers
        from deskpro.stages.metrics.protocols import PROTOCOLS

        settings = self.options.eval
        rerank = settings.rerank.model_dump(exclude={"enable"})
        return {
            "network": {
                "file": self.weights.name,
                "sha256": sha256(self.weights),
                "kind": extractor.info.kind,
            },
            "gallery_network": None,
            "data": {
                "root": str(self.options.test_root),
                "dataset": self.dataset,
                "queries": len(query),
                "gallery": len(gallery),
                "identities": int(query["pid"].nunique()),
                "digests": _digests(images, stored),
                "without face": {
                    name: int(part[face].isna().sum())
                    for name, part in (("query", query), ("gallery", gallery))
                    for face in faces
                },
            },
            "flip": settings.flip,
            "face_weight": settings.face_weight,
            "fusion": extractor.info.fusion if settings.face_weight == "fitted" else None,
            "rerank": rerank if settings.rerank.enable else None,
            "protocols": {
                name: protocol_numbers(
                    PROTOCOLS[name], of_stream, query, gallery, faces, settings.ranks
                )
                for name, of_stream in scores.items()
            },
        }


def _protocols(options: Options, query: pd.DataFrame, gallery: pd.DataFrame) -> list[Protocol]:
    """Those that are asked for; of the dataset's own, those that can be computed."""
    from deskpro.stages.metrics.protocols import PROTOCOLS

    names = options.eval.protocols or LAYOUTS[options.data_test or options.data_train].protocols
    chosen, refused = [], []
    for protocol in (PROTOCOLS[name] for name in names):
        why = _impossible(options, protocol, query, gallery)
        if why is None:
            chosen.append(protocol)
        else:
            refused.append(why)
    if refused and (options.eval.protocols or not chosen):
        possible = [
            p.name for p in PROTOCOLS.values() if not _impossible(options, p, query, gallery)
        ]
        advice = "No protocol can be computed: check the data (deskpro check-data)"
        if possible:
            advice = (
                "Check the data (deskpro check-data), or choose of the protocols that can be "
                f"computed ({', '.join(possible)}): --set eval.protocols=[{possible[0]}]"
            )
        raise InputError(f"{options.test_root}: {'; '.join(refused)}. {advice}")
    for why in refused:
        log(f"eval: {why}; it is left out")
    return chosen


def _impossible(
    options: Options, protocol: Protocol, query: pd.DataFrame, gallery: pd.DataFrame
) -> str | None:
    """Why a protocol can't be computed; None where it can."""
    from deskpro.stages.metrics.ranking import has_positive

    missing = protocol.missing_labels(query) + protocol.missing_labels(gallery)
    if missing:
        return (
            f"protocol {protocol.name} needs the {' and '.join(protocol.needs)} of every image; "
            f"{len(missing)} of {len(query) + len(gallery)} have none, {missing[0]} for one"
        )
    if not has_positive(query, gallery, protocol):
        return f"no query has a positive in the gallery under the rule '{protocol.rule}'"
    if options.eval.rerank.enable and protocol.draws > 1:
        return f"protocol {protocol.name} draws its gallery, and eval.rerank needs a fixed one"
    return None


def _rows(table: pd.DataFrame) -> np.ndarray:
    return table["row"].to_numpy()


def _digests(images: pd.DataFrame, stored: FeatureStore) -> dict[str, str]:
    """What tells these images from others: SHA-256 of their labels, and of the contents of each
    kind that the network sees."""
    labels = images[["sample_id", *Name._fields]].to_csv(index=False)
    found = {"labels": hashlib.sha256(labels.encode()).hexdigest()}
    for kind, contents in stored.contents().items():
        found[kind] = hashlib.sha256(contents[_rows(images)].tobytes()).hexdigest()
    return found


def _show(report: dict[str, Any], options: Options) -> None:
    """Print a row for each stream; protocols with the same results stand one below the other."""
    from itertools import zip_longest

    from deskpro.stages.reporting import cells
    from deskpro.stages.reporting.results import merged

    ranks = options.eval.ranks
    rows = []
    for names, protocol in merged(report["protocols"]).items():
        lines = []
        for stream, numbers in protocol["streams"].items():
            mean = cells.within(*(100 * x for x in (numbers["mAP"], *numbers["interval"]["mAP"])))
            if "sd" in numbers:
                mean += f" ± {100 * numbers['sd']['mAP']:.1f}"
            lines.append([stream, mean, *(f"{100 * numbers[f'rank{r}']:.1f}" for r in ranks)])
        for name, line in zip_longest(names.split(" "), lines, fillvalue=""):
            rows.append([name, *(line or [""] * (2 + len(ranks)))])
    data = report["data"]
    title = (
        f"{report['network']['kind']}: {data['queries']} queries of {data['identities']} "
        f"identities, {data['gallery']} gallery images (%; 95 % interval over identities)"
    )
    table(title, ["protocol", "stream", "mAP", *(f"R{r}" for r in ranks)], rows)
