"""Write a student for other programs, and check that what is written scores as it does."""

from __future__ import annotations

import shlex
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import table, working
from deskpro.stages.base.run_folder import ENCODER, RunFolder

if TYPE_CHECKING:
    import numpy as np

    from deskpro.stages.models.exported import Settings

Runtime = Literal["onnx", "torch"]
Place = Literal["outside", "inside"]
"""Who normalises: the caller, or the file."""

TOLERANCE = 0.001
"""Of mAP, in 0..1: 0.1 points."""
COSINE = 0.9999
"""The least of an exported part and the student's."""


class DiffersError(Exception):
    """The exported files are not the student; each argument is a line that says how."""


def write(
    folder: RunFolder,
    out: Path,
    *,
    streams: tuple[str, ...],
    runtime: Runtime,
    normalise: Place,
) -> Path:
    """Write the network files of a run's student to an empty folder; returns its encoder.json.

    Raises:
        InputError: the run has no student, the student no such stream, or a library is missing.
    """
    import torch

    from deskpro.stages.serving import export
    from deskpro.stages.serving.sources import open_source

    source = open_source(folder.path, torch.device("cpu"), None)
    with working("export"):
        export.write(source, folder.student, out, streams, export.Form(runtime, normalise))
    return out / ENCODER


def finish(
    folder: RunFolder, settings_file: Path, evaluated: RunFolder, options: Options
) -> dict[str, object]:
    """Compare an exported folder with its run, and add to it what it scores and a model card.

    Args:
        folder: the evaluated run.
        settings_file: encoder.json.
        evaluated: the evaluation of the exported folder.
        options: of the run.

    Returns:
        What the summary shows.

    Raises:
        DiffersError: a part's cosine with the student's is below `COSINE`, or a mAP is off by more
            than `TOLERANCE`.
    """
    from deskpro.cache.files import write_text
    from deskpro.stages.models.exported import read_settings
    from deskpro.stages.reporting.record import read_metrics
    from deskpro.stages.serving.card import card
    from deskpro.stages.serving.export import write_settings

    settings = read_settings(settings_file)
    before, after = read_metrics(folder.path), read_metrics(evaluated.path)
    difference, cosine = _parity(folder.features, evaluated.features, [*settings.streams])
    accuracy = _accuracies(before, after)
    _show(accuracy)
    problems = [
        f"{protocol}, {stream}: mAP {100 * new:.2f} % in place of {100 * old:.2f} %; at most "
        f"{100 * TOLERANCE:g} points are allowed"
        for protocol, of_stream in accuracy.items()
        for stream, (old, new) in of_stream.items()
        if abs(new - old) > TOLERANCE
    ]
    if not cosine >= COSINE:
        problems.append(
            f"the least cosine with the student's parts is {cosine:.6f}, below {COSINE}"
        )
    if problems:
        raise DiffersError(*problems)
    library = {"onnx": "onnxruntime", "torch": "torch"}[settings.runtime]
    runtime = f"{library} {version(library)}"
    parity = {"runtime": runtime, "max_difference": difference, "min_cosine": cosine}
    settings = replace(
        settings,
        evaluation=_evaluation(after),
        parity=parity | {"mAP": accuracy},
    )
    write_settings(settings_file, settings)
    write_text(settings_file.with_name("README.md"), card(settings, _recipe(options, settings)))
    return {
        "files": ", ".join(stream.file for stream in settings.streams.values()),
        "largest difference": f"{difference:.2e} of a part's length",
        "least cosine": f"{cosine:.7f}",
        "runtime": runtime,
    }


def _accuracies(
    before: dict[str, Any], after: dict[str, Any]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Protocol → stream → mAP of the student and of the exported files, of streams in both."""
    return {
        name: {
            stream: (protocol["streams"][stream]["mAP"], numbers["mAP"])
            for stream, numbers in after["protocols"][name]["streams"].items()
            if stream in protocol["streams"]
        }
        for name, protocol in before["protocols"].items()
    }


def _show(accuracy: dict[str, dict[str, tuple[float, float]]]) -> None:
    rows = [
        (name, stream, f"{100 * old:.2f}", f"{100 * new:.2f}", f"{100 * (new - old):+.3f}")
        for name, of_stream in accuracy.items()
        for stream, (old, new) in of_stream.items()
    ]
    table("mAP, %", ("protocol", "stream", "student", "exported", "difference"), rows)


def _parity(before: Path, after: Path, streams: list[str]) -> tuple[float, float]:
    """The largest difference of a number of a part, of length 1, and the least cosine of a part.

    before, after: the stores of features of the student and of the exported files.
    """
    import numpy as np

    from deskpro.cache.reader import MappedReader
    from deskpro.stages.evaluation.feature_store import GROUP
    from deskpro.stages.models.extractor import KIND_OF

    stores = [MappedReader(path, GROUP) for path in (before, after)]
    keys = [
        [row.tobytes() for row in np.concatenate(
            [store.column(f"{KIND_OF[stream]}_sha256") for stream in streams], axis=1)]
        for store in stores
    ]  # fmt: skip
    places = {key: row for row, key in enumerate(keys[1])}
    if not {*keys[0]} <= places.keys():
        command = shlex.join(["eval", "--run", str(before.parent), "--force"])
        raise InputError("images have changed since the evaluation", command=command)
    parts = [store.fingerprint["heads"] for store in stores]
    worst, least = 0.0, 1.0
    for start in range(0, len(keys[0]), 1024):
        rows = range(start, min(start + 1024, len(keys[0])))
        same = [places[keys[0][row]] for row in rows]
        read = _features(stores[0], [*rows]), _features(stores[1], same)
        for stream in streams:
            old, new = (
                features[:, slice(*heads[stream])].reshape(len(rows), -1)
                for features, heads in zip(read, parts, strict=True)
            )
            count = parts[0][stream][1] - parts[0][stream][0]
            worst = max(worst, float(np.abs(new - old).max()) / count**0.5)
            there = old.any(1)
            if there.any():
                least = min(least, float(((old * new).sum(1) / count)[there].min()))
    return worst, least


def _features(store: Any, rows: list[int]) -> np.ndarray:
    features: np.ndarray = store.read(rows, [0] * len(rows))["features"]
    return features


def _evaluation(metrics: dict[str, Any]) -> dict[str, Any]:
    """What encoder.json keeps of metrics.json."""
    numbers = ("queries", "identities", "mAP", "mINP", "rank1", "interval")
    return {
        name: metrics["data"][name] for name in ("dataset", "queries", "gallery", "identities")
    } | {
        "protocols": {
            name: {
                "rule": protocol["rule"],
                "streams": {
                    stream: {key: found[key] for key in numbers if key in found}
                    for stream, found in protocol["streams"].items()
                },
            }
            for name, protocol in metrics["protocols"].items()
        },
    }


def _recipe(options: Options, settings: Settings) -> dict[str, object]:
    """What the model card says of the training."""
    student, training = options.student, options.train_student
    return {
        "training images": f"`{options.data_train}`, {settings.student['identities']} people",
        "network": f"LMBN on {student.backbone}, width {student.width:g}, features of "
        f"{student.feature_dim}",
        "starts from": student.pre_train.name if student.pre_train else "random weights",
        "training": f"{training.epochs} epochs, {options.batchid} × {options.batchimage} images a "
        "batch",
        "distillation": f"alpha {options.kd_loss.alpha:g}, T {options.kd_loss.T:g}"
        if options.kd_loss.enable
        else "none",
        "attention": f"weight {options.mse.mse_weight:g}" if options.mse.mse_weight else "none",
        "weights": f"SHA-256 {settings.student['sha256']}",
    }
