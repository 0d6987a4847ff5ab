"""What a student can be loaded from: a run folder, a weights file, or an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from pydantic import ValidationError

from deskpro.cache.files import read_text
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.prepare_options import FaceBox
from deskpro.stages.base.run_folder import ENCODER, RunFolder, read_manifest
from deskpro.stages.base.section import first_error
from deskpro.stages.metrics.fusion import Fusion, choose_fusion
from deskpro.stages.models.exported import read_settings
from deskpro.stages.models.extractor import FeatureExtractor, open_extractor
from deskpro.stages.models.osnet import OSNet

FaceWeight = float | Literal["fitted"] | None
"""As `eval.face_weight`; None: as the run was evaluated, else fitted, else the default."""


class Source(NamedTuple):
    """A student, and how its features are made and compared."""

    extractor: FeatureExtractor
    flip: bool
    fusion: Fusion | None
    """None for a student of one stream."""
    face: FaceBox
    """How faces are cut from body images."""


def open_source(path: Path, device: torch.device, face_weight: FaceWeight) -> Source:
    """The student of a run folder, an exported folder or a weights file: ours, published, or of
    torchreid's OSNet.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    if path.name == ENCODER or (path / ENCODER).is_file():
        return _exported(path if path.name == ENCODER else path / ENCODER, device, face_weight)
    if path.is_dir():
        folder = RunFolder(path)
        if not folder.student.is_file():
            raise InputError(
                f"{path}: holds no student; a run folder has {folder.student.name}, which "
                f"train-student writes, an exported one {ENCODER}"
            )
        return _opened(folder.student, _options(folder), device, face_weight)
    return _opened(path, None, device, face_weight)


def _opened(
    weights: Path, recipe: Options | None, device: torch.device, face_weight: FaceWeight
) -> Source:
    options = recipe or Options()
    sizes = options.data.face_size, options.data.body_size
    extractor = open_extractor(weights, "student", *sizes, device)
    if face_weight is None:
        fitted = recipe is None and extractor.info.fusion is not None
        face_weight = "fitted" if fitted else options.eval.face_weight
    both = len(extractor.heads) > 1
    fusion = choose_fusion(extractor.info.fusion, face_weight) if both else None
    face = FaceBox() if options.prepare is None else options.prepare.face
    flip = options.eval.flip and not isinstance(extractor.network, OSNet)  # as torchreid does
    return Source(extractor.fitted_for(flip), flip, fusion, face)


def _exported(path: Path, device: torch.device, face_weight: FaceWeight) -> Source:
    """path: encoder.json."""
    settings = read_settings(path)
    extractor = open_extractor(path, "student", (0, 0), (0, 0), device)
    fusion = None if settings.fusion is None else Fusion(**settings.fusion)
    if face_weight is not None and fusion is not None:
        fusion = choose_fusion(settings.fitted, face_weight)
    face = FaceBox.model_validate(settings.face_box)
    return Source(extractor, settings.mirror, fusion, face)


def _options(folder: RunFolder) -> Options:
    """Those of the run's evaluation, or else of its recipe."""
    record = read_manifest(folder.manifest("eval"))
    try:
        tree: Any = record["config"] if record else yaml.safe_load(read_text(folder.config))
        return Options.model_validate(tree)
    except ValidationError as error:
        raise InputError(
            f"{folder.config}: {first_error(error)}. Fix the recipe of the run, or load its "
            f"{folder.student.name} alone"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"{folder.config}: can't be read ({why}). Load {folder.student} alone"
        ) from None
