"""Write a student for other programs, and check that what is written scores as it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from deskpro.cache.file_index import FileIndex
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import KIND_OF
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log, table, working
from deskpro.stages.base.run_folder import ENCODER, RunFolder
from deskpro.stages.data.layouts import dataset_name

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from deskpro.stages.evaluation.sizes import Accuracy, Sizes
    from deskpro.stages.models.exported import Settings

Runtime = Literal["onnx", "torch"]
Place = Literal["outside", "inside"]
"""Who normalises: the caller, or the file."""
BothAccuracies = dict[str, dict[str, tuple[float, float]]]
"""Protocol → stream → mAP of the student and of the exported files."""

TOLERANCE = 0.001
"""Of mAP, in 0..1: 0.1 points."""
COSINE = 0.9999
"""The least of an exported part and the student's."""


class DiffersError(Exception):
    """The exported files are not the student; each argument is a line that says how."""


class Ask(NamedTuple):
    """What is to be exported.

    dim: length of each part of a vector, whole where None. int8: whether the files calculate with
    int8 numbers.
    """

    streams: tuple[str, ...]
    runtime: Runtime
    normalise: Place
    dim: int | None
    int8: bool


def write(
    folder: RunFolder, out: Path, ask: Ask, options: Options, index: FileIndex
) -> tuple[Path, Sizes | None]:
    """Write the network files of a run's student to an empty folder.

    Where vectors are projected, or the files are int8, that is fitted on training images, and what
    scores mean on held-out identities.

    Returns:
        Its encoder.json; where vectors are projected, what tells what that costs.

    Raises:
        InputError: the run has no student, the student no such stream, there are too few training
            images, an identity is held out that the student was trained on, or a library is
            missing.
    """
    import torch

    from deskpro.stages.base.distributed import pick_device
    from deskpro.stages.evaluation.feature_store import require_features
    from deskpro.stages.evaluation.sizes import Sizes, fit_directions, sample, trained_and_held_out
    from deskpro.stages.serving import export
    from deskpro.stages.serving.sources import open_source

    if ask.int8 and ask.runtime != "onnx":
        raise InputError(f"--int8: for ONNX files; --format is {ask.runtime}")
    source, sizes = open_source(folder.path, torch.device("cpu"), None), None
    form, student = export.Form(ask.runtime, ask.normalise), source.extractor
    require_features(folder.features, student, folder.student, source.flip)
    chosen = export.chosen_streams(student, ask.streams)
    fitted = ask.dim is not None or ask.int8
    if fitted:
        train, held_out = trained_and_held_out(options, student, index)
    if ask.dim is not None:
        quick = open_source(folder.path, pick_device(options.device), None).extractor
        directions = fit_directions(quick, chosen, train, ask.dim, options)
        sizes = Sizes.of(options, student, folder.features, directions, index)
        form = form._replace(directions=directions)
    if ask.int8:
        form = form._replace(images=sample(student, chosen, train, ask.normalise == "outside"))
    with working("export"):
        settings = export.write(source, folder.student, out, chosen, form)
    if fitted:
        export.write_settings(out / ENCODER, _refitted(settings, out / ENCODER, held_out, options))
    return out / ENCODER, sizes


def _refitted(settings: Settings, file: Path, held_out: pd.DataFrame, options: Options) -> Settings:
    """With the weights of the streams and what scores mean as these files tell of held-out people;
    without the latter where there are none."""
    from deskpro.stages.base.distributed import pick_device
    from deskpro.stages.evaluation.validation import Validation
    from deskpro.stages.models.extractor import open_extractor

    if not len(held_out):
        log("export: no identities are held out (data.validation), so no calibration is written")
        return replace(settings, calibration=None)
    device = pick_device(options.device)
    extractor = open_extractor(file, "student", (0, 0), (0, 0), device)
    facts = Validation(extractor, held_out, options, device, settings.mirror).facts()
    weights, fitted = settings.fusion, facts["fusion"]
    if weights is not None and weights == settings.fitted:
        weights = fitted
    return replace(settings, fitted=fitted, fusion=weights, calibration=facts["calibration"])


def finish(
    folder: RunFolder,
    settings_file: Path,
    evaluated: RunFolder,
    options: Options,
    sizes: Sizes | None,
) -> dict[str, object]:
    """Compare an exported folder with its run, and add to it what it scores and a model card.

    Args:
        folder: the evaluated run.
        settings_file: encoder.json.
        evaluated: the evaluation of the exported folder.
        options: of the run.
        sizes: where vectors are projected; the files are then compared with the student's projected
            vectors.

    Returns:
        What the summary shows.

    Raises:
        DiffersError: a part's cosine with the student's is below `COSINE`, or a mAP is off by more
            than `TOLERANCE`; int8 files may differ by anything, which is told.
    """
    from deskpro.cache.files import write_text
    from deskpro.stages.models.exported import read_settings
    from deskpro.stages.reporting.record import read_metrics
    from deskpro.stages.serving.card import card, size_rows
    from deskpro.stages.serving.export import write_settings

    settings, after = read_settings(settings_file), read_metrics(evaluated.path)
    if sizes is None:
        before, directions = _accuracy(read_metrics(folder.path)), None
    else:
        names, directions = [*after["protocols"]], sizes.directions
        before = sizes.accuracy(names, settings.fitted, sizes.dim)
        settings = replace(settings, sizes=sizes.table(names[0], settings.fitted))
        table(f"bytes of a vector and mAP of {names[0]}, %", *size_rows(settings))
    streams = [*settings.streams]
    difference, cosine = _parity(folder.features, evaluated.features, streams, directions)
    accuracy = _pairs(before, _accuracy(after))
    _show(accuracy)
    if settings.numbers == "float32" and (problems := _problems(accuracy, cosine)):
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


def _accuracy(metrics: Mapping[str, Any]) -> Accuracy:
    return {
        name: {stream: numbers["mAP"] for stream, numbers in protocol["streams"].items()}
        for name, protocol in metrics["protocols"].items()
    }


def _pairs(before: Accuracy, after: Accuracy) -> BothAccuracies:
    """Of streams in both."""
    return {
        name: {
            stream: (of_stream[stream], mAP)
            for stream, mAP in after[name].items()
            if stream in of_stream
        }
        for name, of_stream in before.items()
    }


def _problems(accuracy: BothAccuracies, cosine: float) -> list[str]:
    """What is not as it is in the student, a line each; cosine: the least of a part."""
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
    return problems


def _show(accuracy: BothAccuracies) -> None:
    rows = [
        (name, stream, f"{100 * old:.2f}", f"{100 * new:.2f}", f"{100 * (new - old):+.3f}")
        for name, of_stream in accuracy.items()
        for stream, (old, new) in of_stream.items()
    ]
    table("mAP, %", ("protocol", "stream", "student", "exported", "difference"), rows)


def _parity(
    before: Path, after: Path, streams: list[str], directions: Mapping[str, np.ndarray] | None
) -> tuple[float, float]:
    """The largest difference of a number of a part, of length 1, and the least cosine of a part.

    before, after: the stores of features of the student and of the exported files; directions: by
    which those of the student are projected, if at all.
    """
    import numpy as np

    from deskpro.cache.reader import MappedReader
    from deskpro.stages.data.loader import batched
    from deskpro.stages.evaluation.feature_store import GROUP
    from deskpro.stages.evaluation.image_digests import evaluate_again
    from deskpro.stages.evaluation.sizes import parts_of
    from deskpro.stages.metrics.compact import projected

    stores = [MappedReader(path, GROUP) for path in (before, after)]
    keys = [
        [row.tobytes() for row in np.concatenate(
            [store.column(f"{KIND_OF[stream]}_sha256") for stream in streams], axis=1)]
        for store in stores
    ]  # fmt: skip
    places = {key: row for row, key in enumerate(keys[1])}
    if not {*keys[0]} <= places.keys():
        command = evaluate_again(before.parent)
        raise InputError("images have changed since the evaluation", command=command)
    worst, least = 0.0, 1.0
    heads = [{s: slice(*store.fingerprint["heads"][s]) for s in streams} for store in stores]
    for rows in batched(range(len(keys[0])), 1024):
        same = [places[keys[0][row]] for row in rows]
        plain = [0] * len(rows)  # a store of features has one view
        of_student = parts_of(stores[0].read([*rows], plain)["features"], heads[0])
        of_files = parts_of(stores[1].read(same, plain)["features"], heads[1])
        for stream, new in of_files.items():
            old = of_student[stream]
            if directions is not None:
                old = projected(old, directions[stream])
            worst = max(worst, float(np.abs(new - old).max()))
            there = old.any(1)
            if there.any():
                least = min(least, float((old * new).sum(1)[there].min()))
    return worst, least


def _evaluation(metrics: dict[str, Any]) -> dict[str, Any]:
    """What encoder.json keeps of metrics.json."""
    numbers = ("queries", "identities", "mAP", "mINP", "interval")
    return {
        name: metrics["data"][name] for name in ("dataset", "queries", "gallery", "identities")
    } | {
        "protocols": {
            name: {
                "rule": protocol["rule"],
                "streams": {
                    # Of the CMC other ranks may have names (eval.ranks).
                    stream: {key: found[key] for key in numbers} | {"rank1": found["cmc"][0]}
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
        "training images": f"`{dataset_name(options.data.root, options.train_set)}`, "
        f"{settings.student['identities']} people",
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
