"""Train a teacher on HR faces, where there is none: cross-entropy and batch-hard triplet loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deskpro.stages.base import distributed
from deskpro.stages.base.options import Options
from deskpro.stages.losses.terms import teacher_terms


@dataclass(frozen=True)
class Inputs:
    """file_index: known images; provenance: by name,
    everything that the weights depend on, for checkpoints."""

    file_index: Path
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Outputs:
    """teacher: weights; history: CSV, a row per epoch; left_out: CSV of samples not used;
    checkpoints, tensorboard: folders; replace: checkpoints of another recipe may be removed."""

    teacher: Path
    history: Path
    left_out: Path
    checkpoints: Path
    tensorboard: Path
    replace: bool = False


@distributed.shared_errors()
def run(options: Options, inputs: Inputs, outputs: Outputs) -> dict[str, object]:
    """Train on every complete training sample; returns the facts for the summary."""
    import torch

    from deskpro.stages.data.check import check_data
    from deskpro.stages.data.views import DrawnViews
    from deskpro.stages.models.lmbn import LMBN
    from deskpro.stages.models.warm_start import warm_start
    from deskpro.stages.training import recipe

    device = distributed.pick_device(options.device)
    with distributed.rank_zero_first():
        # All kinds and splits, not just HR faces: nothing must be found wrong after hours of work.
        checked = check_data(
            options.data.root,
            options.data_train,
            incomplete=options.data.incomplete,
            file_index=inputs.file_index,
        ).require()
    table, settings = checked.split("train"), options.train_teacher
    views = DrawnViews(settings.views, table["sample_id"].tolist())
    data = recipe.training_set(table, views, settings.epochs)
    torch.manual_seed(settings.seed)
    network = LMBN(len(data.classes), **options.teacher.arguments)
    start = options.teacher.pre_train
    started = warm_start(network, start).facts(start) if start is not None else {}
    setup = recipe.Setup(
        kind="teacher",
        options=options,
        network=network,
        arguments=options.teacher.arguments,
        data=data,
        device=device,
        images={"face": "hr_face"},
        call=lambda forward, images: {"face": forward(images["face"])},
        terms=teacher_terms(),
        files=recipe.Files(
            outputs.teacher, outputs.history, outputs.checkpoints, outputs.tensorboard
        ),
    )
    job = recipe.Job(inputs.provenance, outputs.replace)
    return {**checked.facts(outputs.left_out), **started, **recipe.train(setup, job)}
