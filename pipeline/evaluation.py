"""Evaluation of a weights file alone, without a recipe's other stages."""

from __future__ import annotations

from pathlib import Path

from deskpro.cache.file_index import FileIndex
from deskpro.pipeline import config, runner
from deskpro.pipeline.stages import STAGES
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Digests


def on_dataset(options: Options, root: Path, dataset: str) -> Options:
    """The options with another dataset to evaluate."""
    config.require_dataset(dataset)
    changes = {"data.root": root, "data.test_root": None, "data_train": dataset, "data_test": None}
    return config.override(options, changes)


def evaluate_weights(
    options: Options, weights: Path, run: Path | None, *, force: bool = False, deep: bool = False
) -> None:
    """Evaluate a student or teacher on `data.root`: no cache, no teacher, no earlier stage.

    Raises:
        InputError: the file does not exist, or the run folder holds other stages.
    """
    from deskpro.stages.evaluate import Evaluate

    folder = RunFolder(run or Path("runs") / f"eval-{weights.stem}")
    if not weights.is_file():
        raise InputError(f"{weights}: no such file. --checkpoint takes a weights file")
    if any(folder.manifest(name).exists() for name in STAGES if name != "eval"):
        raise InputError(
            f"{folder.path}: holds other stages of a run. For its own student leave --checkpoint "
            "out; for these weights give another folder with --run"
        )
    stage = Evaluate(options, folder, weights)
    runner.run_stage(stage, options, folder, force=force, digests=Digests(FileIndex(), deep))
