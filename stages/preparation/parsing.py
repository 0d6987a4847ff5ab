"""Step 1: a label map for every body image."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deskpro.cache.files import sha256
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.prepare_options import Parsing
from deskpro.stages.preparation.samples import Places, Sample
from deskpro.stages.preparation.schemes import SCHEMES, Scheme, unknown_classes
from deskpro.stages.preparation.step import (
    Outcome,
    Step,
    Unusable,
    each,
    optional,
    outcomes,
    png,
    read_image,
    read_labels,
)


class LabelFiles:
    """Label maps that exist: PNGs of one channel, by the paths of the raw or prepared images."""

    name = "parsing"

    def __init__(self, options: Parsing, places: Places, root: Path | None, device: str) -> None:
        if options.labels is None:
            raise InputError(
                "prepare.parsing.labels: needed by the method labels. Set it to the folder of "
                "label maps, or set prepare.parsing.method=segformer"
            )
        if not options.labels.is_dir():
            raise InputError(f"{options.labels}: no such folder. Set prepare.parsing.labels")
        self.folder, self.places, self.root = options.labels, places, root
        self.scheme = SCHEMES[options.scheme]
        self.scheme_name = options.scheme

    def provenance(self) -> Mapping[str, object]:
        return {"method": "labels", "scheme": self.scheme_name, "version": 1}

    def needs(self, sample: Sample) -> Sequence[Path]:
        return [self.places.body(sample.id), self._source(sample)]

    def makes(self, sample: Sample) -> Sequence[Path]:
        return [self.places.labels(sample.id)]

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return outcomes(self._read, samples)

    def _source(self, sample: Sample) -> Path:
        """By the path in the raw set, which is what a parser was run on; else in the prepared."""
        ways = [sample.id]
        if self.root is not None and sample.source.is_relative_to(self.root):
            raw = sample.source.relative_to(self.root)
            ways = [
                str(raw),
                *([str(Path(*raw.parts[1:]))] if raw.parts[0] == "imgs" else []),
                *ways,
            ]
        files = [
            (self.folder / way).with_suffix(suffix) for way in ways for suffix in (".png", ".PNG")
        ]
        return next((file for file in files if file.is_file()), files[0])

    def _read(self, sample: Sample) -> Outcome:
        source = self._source(sample)
        if not source.is_file():
            raise Unusable(f"{source}: missing: no label map of {sample.id} in {self.folder}")
        labels = read_labels(source)
        body = read_image(self.places.body(sample.id))
        if labels.shape != (body.height, body.width):
            height, width = labels.shape
            raise Unusable(
                f"{source}: label map of {width}×{height} pixels, its body image has "
                f"{body.width}×{body.height}"
            )
        unknown = unknown_classes(labels, self.scheme)
        if unknown:
            raise Unusable(
                f"{source}: unknown class {', '.join(map(str, unknown))}; {self.scheme.title} has "
                f"0 to {len(self.scheme.classes) - 1}"
            )
        return Outcome({self.places.labels(sample.id): png(labels)})


class SegFormer:
    """A SegFormer, or another semantic segmenter of transformers, whose classes are the scheme's.

    Xie et al., SegFormer, NeurIPS 2021. Its logits are enlarged bilinearly to the image's size
    before the best class is taken.
    """

    name = "parsing"

    def __init__(self, options: Parsing, places: Places, root: Path | None, device: str) -> None:
        if options.model is None:
            raise InputError(
                "prepare.parsing.model: needed by the method segformer. Set it to a local folder "
                "in the format of transformers, or a name on its hub"
            )
        transformers = optional("transformers", "prepare.parsing.method=segformer")
        transformers.utils.logging.disable_progress_bar()
        import torch

        self.torch: Any = torch
        self.places, self.device = places, device
        self.scheme_name = options.scheme
        scheme = SCHEMES[options.scheme]
        local = Path(options.model)
        try:
            self.processor: Any = transformers.AutoImageProcessor.from_pretrained(options.model)
            self.model: Any = transformers.AutoModelForSemanticSegmentation.from_pretrained(
                options.model
            )
        # Whatever a broken folder makes a loader raise is told in one line.
        except Exception as error:  # noqa: BLE001
            why = " ".join(str(error).split())[:300]
            raise InputError(
                f"prepare.parsing.model {options.model!r}: no segmenter that transformers can "
                f"load: {why}"
            ) from None
        _same_classes(self.model.config, scheme, options)
        self.model.to(device).eval()
        self.digest: object = (
            {path.name: sha256(path) for path in model_files(local)}
            if local.is_dir()
            else getattr(self.model.config, "_commit_hash", None)
        )

    def provenance(self) -> Mapping[str, object]:
        return {
            "method": "segformer",
            "scheme": self.scheme_name,
            "model": self.digest,
            "version": 1,
        }

    def needs(self, sample: Sample) -> Sequence[Path]:
        return [self.places.body(sample.id)]

    def makes(self, sample: Sample) -> Sequence[Path]:
        return [self.places.labels(sample.id)]

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        images = each(lambda sample: read_image(self.places.body(sample.id)), samples)
        good = [image for image in images if not isinstance(image, Unusable)]
        maps = iter(self.parse(good))
        return [
            Outcome(problem=str(image))
            if isinstance(image, Unusable)
            else Outcome({self.places.labels(sample.id): png(next(maps))})
            for sample, image in zip(samples, images, strict=True)
        ]

    def parse(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """The label map of each image, uint8 of its size, in one batch."""
        if not images:
            return []
        torch = self.torch
        batch = self.processor(images=list(images), return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(pixel_values=batch["pixel_values"].to(self.device)).logits.float()
        maps = []
        for one, image in zip(logits, images, strict=True):
            size = image.height, image.width
            full = torch.nn.functional.interpolate(
                one[None], size, mode="bilinear", align_corners=False
            )
            maps.append(full[0].argmax(0).to(torch.uint8).cpu().numpy())
        return maps


PARSERS: dict[str, Callable[[Parsing, Places, Path | None, str], Step]] = {
    "labels": LabelFiles,
    "segformer": SegFormer,
}


def model_files(folder: Path) -> list[Path]:
    """The files of a local model that say what it computes."""
    return sorted(
        path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin")
    )


def _same_classes(config: Any, scheme: Scheme, options: Parsing) -> None:
    """Refuse a network whose classes aren't those of the scheme: its masks would be nonsense."""
    found = [config.id2label[i] for i in range(config.num_labels)]
    where = f"prepare.parsing.model {options.model!r}"
    if len(found) != len(scheme.classes):
        raise InputError(
            f"{where}: has {len(found)} classes, {scheme.title} has {len(scheme.classes)}. Set "
            "prepare.parsing.scheme to the scheme it was trained with"
        )
    plain = {i: re.sub(r"[^a-z]", "", name.lower()) for i, name in enumerate(found)}
    for i, name in enumerate(scheme.names):
        if not plain[i].startswith("label") and plain[i] != re.sub(r"[^a-z]", "", name.lower()):
            raise InputError(
                f"{where}: its class {i} is {found[i]!r}, that of {scheme.title} {name!r}. Set "
                "prepare.parsing.scheme to the scheme it was trained with"
            )
