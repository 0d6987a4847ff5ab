"""Step 1: a label map for every body image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deskpro.cache.files import sha256
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.prepare_options import Prepare
from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.schemes import SCHEMES, Scheme, unknown_classes
from deskpro.stages.preparation.step import (
    Outcome,
    Step,
    Unusable,
    each,
    on_device,
    one_line,
    optional,
    png,
    read_image,
    read_labels,
)


class LabelFiles(Step):
    """Existing label maps: PNGs of one channel, by the paths of the raw or prepared images."""

    name, reads, writes = "parsing", ("imgs",), "labels"

    def __init__(self, settings: Prepare, root: Path, device: str) -> None:
        super().__init__(settings, root, device)
        folder = settings.parsing.labels
        if folder is None or not folder.is_dir():
            raise InputError(
                f"prepare.parsing.labels {folder}: no such folder. Set it to the folder of label "
                "maps, or set prepare.parsing.method=segformer"
            )
        self.folder = folder

    def provenance(self) -> Mapping[str, object]:
        return {"method": "labels", "scheme": self.settings.parsing.scheme, "version": 1}

    def inputs(self, sample: Sample) -> list[Path]:
        return [*super().inputs(sample), self._source(sample)]

    def _source(self, sample: Sample) -> Path:
        """By the path in the raw set, where a parser was run; else by that in the prepared set."""
        paths, root = [Path(sample.id)], self.settings.root
        if root is not None and sample.source.is_relative_to(root):
            raw = sample.source.relative_to(root)
            below_imgs = [Path(*raw.parts[1:])] if raw.parts[0] == "imgs" else []
            paths = [raw, *below_imgs, *paths]
        files = [
            (self.folder / path).with_suffix(suffix)
            for path in paths
            for suffix in (".png", ".PNG")
        ]
        return next((file for file in files if file.is_file()), files[0])

    def make(self, sample: Sample) -> Outcome:
        source, scheme = self._source(sample), SCHEMES[self.settings.parsing.scheme]
        if not source.is_file():
            raise Unusable(f"{source}: missing: no label map of {sample.id} in {self.folder}")
        labels = read_labels(source)
        body = read_image(self.path("imgs", sample))
        if labels.shape != (body.height, body.width):
            height, width = labels.shape
            raise Unusable(
                f"{source}: label map of {width}×{height} pixels, its body image has "
                f"{body.width}×{body.height}"
            )
        unknown = unknown_classes(labels, scheme)
        if unknown:
            raise Unusable(
                f"{source}: unknown class {', '.join(map(str, unknown))}; {scheme.title} has "
                f"0 to {len(scheme.classes) - 1}"
            )
        return Outcome(png(labels))


class SegFormer(Step):
    """A SegFormer, or another semantic segmenter of transformers, with the classes of the scheme.

    Xie et al., SegFormer, NeurIPS 2021. Its logits are enlarged bilinearly to the image's size
    before the best class is taken.
    """

    name, reads, writes = "parsing", ("imgs",), "labels"
    needs = ("transformers",)

    def __init__(self, settings: Prepare, root: Path, device: str) -> None:
        super().__init__(settings, root, device)
        name = settings.parsing.model
        if name is None:
            raise InputError(
                "prepare.parsing.model: not set. Set it to a local folder in the format of "
                "transformers, or a name on its hub"
            )
        transformers = optional("transformers", "prepare.parsing.method=segformer")
        transformers.utils.logging.disable_progress_bar()
        try:
            self.processor: Any = transformers.AutoImageProcessor.from_pretrained(name)
            self.model: Any = transformers.AutoModelForSemanticSegmentation.from_pretrained(name)
        except Exception as error:  # noqa: BLE001 — loaders raise anything for a broken folder
            raise InputError(
                f"prepare.parsing.model {name!r}: no segmenter that transformers can load: "
                f"{one_line(error)}"
            ) from None
        scheme = SCHEMES[settings.parsing.scheme]
        _require_classes(self.model.config, scheme, f"prepare.parsing.model {name!r}")
        self.digest: object = getattr(self.model.config, "_commit_hash", None)
        if Path(name).is_dir():
            self.digest = {
                path.name: sha256(path)
                for path in sorted(Path(name).iterdir())
                if path.suffix in (".json", ".safetensors", ".bin")
            }
        self.torch_device = on_device(self.model, device)

    def provenance(self) -> Mapping[str, object]:
        scheme = self.settings.parsing.scheme
        return {"method": "segformer", "scheme": scheme, "model": self.digest, "version": 1}

    def make(self, sample: Sample) -> Outcome:
        return self([sample])[0]

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        images = each(lambda sample: read_image(self.path("imgs", sample)), samples)
        maps = iter(self.parse([one for one in images if not isinstance(one, Unusable)]))
        return [
            Outcome(problem=str(image)) if isinstance(image, Unusable) else Outcome(png(next(maps)))
            for sample, image in zip(samples, images, strict=True)
        ]

    def parse(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """The label map of each RGB image, uint8 [H, W] of its size, in one batch."""
        import torch

        if not images:
            return []
        batch = self.processor(images=list(images), return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(pixel_values=batch["pixel_values"].to(self.torch_device)).logits
        maps = []
        for one, image in zip(logits, images, strict=True):
            size = image.height, image.width
            full = torch.nn.functional.interpolate(
                one[None].float(), size, mode="bilinear", align_corners=False
            )
            maps.append(full[0].argmax(0).to(torch.uint8).cpu().numpy())
        return maps


PARSERS: dict[str, type[Step]] = {"labels": LabelFiles, "segformer": SegFormer}


def _require_classes(config: Any, scheme: Scheme, where: str) -> None:
    """Refuse a network whose classes are not those of the scheme: its masks would be nonsense."""
    advice = "Set prepare.parsing.scheme to the scheme it was trained with"
    found = [config.id2label[i] for i in range(config.num_labels)]
    if len(found) != len(scheme.classes):
        raise InputError(
            f"{where}: has {len(found)} classes, {scheme.title} has {len(scheme.classes)}. {advice}"
        )
    for i, (theirs, ours) in enumerate(zip(map(_plain, found), scheme.names, strict=True)):
        if not theirs.startswith("label") and theirs != _plain(ours):
            raise InputError(
                f"{where}: its class {i} is {found[i]!r}, that of {scheme.title} {ours!r}. {advice}"
            )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
