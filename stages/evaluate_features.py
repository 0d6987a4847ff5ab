"""Evaluate features that any network gave for the images of a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import FEATURES
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import start, warn
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Dep, Job, Result, Stage
from deskpro.stages.data.layouts import image_folders, layout_of, require_bodies

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from deskpro.stages.metrics.protocols import Protocol


@dataclass(frozen=True)
class EvaluateFeaturesResult(Result):
    """rules: of the protocols; parts: part → length, and images without it; extra: rows of no image
    of query or gallery; skipped: protocol → queries without a positive."""

    rules: Sequence[str]
    file: Path
    parts: Mapping[str, tuple[int, int]]
    extra: int
    skipped: Mapping[str, int]
    metrics: Path


class _Input(NamedTuple):
    """What is scored. images: query and gallery by name; features: part → float64 [images, D]."""

    images: pd.DataFrame
    features: dict[str, np.ndarray]
    weights: dict[str, float]
    protocols: list[Protocol]
    extra: list[str]
    others: list[str]


class EvaluateFeatures(Stage):
    """Evaluates a file of features by every protocol of the dataset: `eval` without a network."""

    name = "eval"
    params = (
        "data_train", "data.name", "data_test", "eval.protocols", "eval.rerank", "eval.enrich",
        "eval.ranks",
        "eval.unit",
    )  # fmt: skip

    def __init__(
        self,
        options: Options,
        folder: RunFolder,
        file: Path,
        weights: Mapping[str, float] | None = None,
        metric: Literal["cosine", "euclidean"] = "cosine",
    ) -> None:
        """Evaluate the features of a file.

        Args:
            options: of the dataset and the evaluation.
            folder: where the scores go.
            file: the features.
            weights: part → its weight in `all`; where not given, all weigh equally.
            metric: how features are compared.
        """
        super().__init__(options, folder)
        self.file, self.weights, self.metric = file, weights, metric
        self._found: _Input | None = None

    @property
    def dataset(self) -> str:
        return self.options.test_set

    def check(self) -> None:
        from deskpro.stages.evaluation.feature_files import require_file

        for rule in ("rerank", "enrich"):
            if getattr(self.options.eval, rule).enable and self.metric != "cosine":
                raise InputError(
                    f"--metric {self.metric}: eval.{rule}.enable needs cosine. Turn one of them "
                    "off",
                    command=f"eval --set eval.{rule}.enable=false",
                )
        require_bodies(self.options.test_root, self.dataset)
        require_file(self.file)
        if not self.folder.path.exists():
            self._found = self._read()  # so that nothing is written for bad input

    def param_values(self) -> dict[str, Any]:
        weights = self.weights and ",".join(f"{k}={v!r}" for k, v in sorted(self.weights.items()))
        return super().param_values() | {"weights": weights, "metric": self.metric}

    def deps(self) -> list[Dep]:
        from deskpro.stages.evaluation.feature_files import sources

        root, dataset = self.options.test_root, self.dataset
        folders = image_folders(root, dataset, ("imgs",), ("query", "gallery"))
        files = [
            Dep(f"{FEATURES}{path.suffix if number else ''}", path, pattern)
            for number, (path, pattern) in enumerate(sources(self.file))
        ]
        return [
            *files,
            *(
                Dep(name, root / name)
                for name in layout_of(root, dataset).side_files
                if name not in folders
            ),
            *(Dep(role, *place) for role, place in folders.items()),
        ]

    def outs(self) -> list[Path]:
        return [self.folder.metrics]

    def run(self, job: Job) -> Result:
        """Rank the gallery for every query, by each protocol and part."""
        from deskpro.stages.base.distributed import pick_device
        from deskpro.stages.data.index import content_hashes
        from deskpro.stages.evaluation.parts import measures_of_parts
        from deskpro.stages.evaluation.scoring import about_data, count_images, score, split
        from deskpro.stages.evaluation.tracklets import pool_parts, pool_tracklets

        options, device = self.options, pick_device(self.options.device)
        found = self._found or self._read()
        images, features = found.images, found.features
        start(self.name, device=device, samples=len(images), output=self.folder.metrics)
        self._warn(found)
        faces = [name for name in features if name == "face"]
        without = {name: int(images[name].isna().sum()) for name in features}
        contents = {"imgs": content_hashes(images["imgs"].tolist(), job.index)}
        data = about_data(options, images, contents, faces) | {"without part": without}
        if options.eval.unit == "tracklet":
            images, members = pool_tracklets(images, [*features])
            features = pool_parts(features, members, self.metric)
            data |= count_images(images, faces)
        measures = measures_of_parts(features, found.weights, self.metric, device)
        about = {
            "network": {"file": self.file.name, "sha256": _digest(job), "kind": "features"},
            "gallery_network": None,
            "data": data,
            "flip": None,
            "face_weight": None,
            "fusion": None,
            "metric": self.metric,
            "weights": found.weights,
        }
        query, gallery = split(images)
        report = score(
            about, options, measures, found.protocols, query, gallery, faces, self.folder.metrics
        )
        return EvaluateFeaturesResult(
            rules=[part["rule"] for part in report["protocols"].values()],
            file=self.file,
            parts={name: (v.shape[1], without[name]) for name, v in found.features.items()},
            extra=len(found.extra),
            skipped={name: part["skipped"] for name, part in report["protocols"].items()},
            metrics=self.folder.metrics,
        )

    def _read(self) -> _Input:
        """The images with their features. Raises InputError where one doesn't fit the other."""
        import numpy as np

        from deskpro.stages.data.check import check_data
        from deskpro.stages.evaluation.feature_files import (
            match_rows,
            read_features,
            require_names,
            used_values,
        )
        from deskpro.stages.evaluation.parts import choose_weights
        from deskpro.stages.evaluation.scoring import choose_protocols, split
        from deskpro.stages.evaluation.transductive import require_faces

        root, file, splits = self.options.test_root, self.file, ("query", "gallery")
        found = read_features(file)
        # Nothing here sees the images: they need not be readable.
        checked = check_data(root, self.dataset, splits=splits, test_needs=(), training=False)
        images = checked.require().table.sort_values("sample_id", ignore_index=True)
        require_names(file, found.parts, images.columns)
        require_faces(self.options, [*found.parts])
        weights = choose_weights([*found.parts], self.weights)
        bodies = layout_of(root, self.dataset).bodies(root)
        rows, extra = match_rows(file, found, images, root, bodies)
        features = {
            name: used_values(file, name, values, rows, found.paths)
            for name, values in found.parts.items()
        }
        there = {name: (values != 0).any(axis=1) for name, values in features.items()}
        if self.metric == "euclidean" and (zero := [n for n in there if not there[n].all()]):
            raise InputError(
                f"{file}: {zero[0]} is 0 for {(~there[zero[0]]).sum()} images, so it is not there, "
                "and no Euclidean distance says so. Use --metric cosine, or leave the part out"
            )
        images["row"] = np.arange(len(images))
        for name, seen in there.items():
            images[name] = np.array([name if here else None for here in seen], object)
        protocols = choose_protocols(self.options, *split(images))
        return _Input(images, features, weights, protocols, extra, found.others)

    def _warn(self, found: _Input) -> None:
        from deskpro.stages.base.foreign import some

        if found.extra:
            warn(
                f"{self.file}: {len(found.extra)} rows are of no image of query or gallery, and "
                f"are not used: {some(found.extra)}"
            )
        if found.others:
            warn(f"{self.file}: not used: {some(found.others)}")


def _digest(job: Job) -> str:
    """SHA-256 of the features file; of several, over theirs."""
    found = [str(v) for role, v in job.provenance.items() if role.startswith(FEATURES)]
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()
