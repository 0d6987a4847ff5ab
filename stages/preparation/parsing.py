"""Step 1: a label map for every body image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deskpro.cache.files import sha256
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.extras import loading, optional
from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.schemes import Scheme
from deskpro.stages.preparation.step import (
    Need,
    Outcome,
    Step,
    Unusable,
    each,
    encode,
    on_device,
    read_image,
    read_labels,
)


class LabelFiles(Step):
    """Existing label maps: PNGs of one channel, by the paths of the raw or prepared images."""

    name, reads, writes = "parsing", ("imgs",), "labels"
    params = ("scheme",)

    files = (
        Need(
            "parsing.labels",
            "the folder of label maps, or set prepare.parsing.method=segformer; without both, "
            "prepare.steps=[face,restoration] and prepare.face.method=yunet make faces alone",
            Path.is_dir,
        ),
    )

    def load(self) -> None:
        self.folder = Path(str(self.settings.parsing.labels))

    def inputs(self, sample: Sample) -> list[Path]:
        return [*super().inputs(sample), self._source(sample)]

    def _source(self, sample: Sample) -> Path:
        return self.beside(self.folder, sample, (".png", ".PNG"))

    def make(self, sample: Sample) -> Outcome:
        source = self._source(sample)
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
        count = len(self.scheme.names)
        unknown = ", ".join(str(i) for i in np.unique(labels) if i >= count)
        if unknown:
            raise Unusable(
                f"{source}: unknown class {unknown}; {self.scheme.title} has 0 to {count - 1}"
            )
        return Outcome(encode(Image.fromarray(labels)))


HUB = "hf:"
"""What precedes the name of a network on Hugging Face's hub; everything else is a path."""


class SegFormer(Step):
    """A SegFormer, or another semantic segmenter of transformers, with the classes of the scheme.

    Xie et al., SegFormer, NeurIPS 2021. Its logits are enlarged bilinearly to the image's size
    before the best class is taken.
    """

    name, reads, writes = "parsing", ("imgs",), "labels"
    params = ("scheme",)
    needs = ("transformers",)
    files = (
        Need(
            "parsing.model",
            f"a folder in the format of transformers, or {HUB}OWNER/NAME on Hugging Face's hub: "
            f"{HUB}mattmdjaga/segformer_b2_clothes, 110 MB, licence on its page, for scheme atr",
            lambda path: str(path).startswith(HUB) or path.is_dir(),
        ),
    )

    def load(self) -> None:
        given = self.settings.parsing.model
        name = str(given).removeprefix(HUB)
        transformers = optional("transformers", "prepare.parsing.method=segformer")
        transformers.utils.logging.disable_progress_bar()
        with loading("prepare.parsing.model", given, "a segmenter that transformers can load"):
            self.processor: Any = transformers.AutoImageProcessor.from_pretrained(name)
            self.model: Any = transformers.AutoModelForSemanticSegmentation.from_pretrained(name)
        _require_classes(self.model.config, self.scheme, f"prepare.parsing.model {name}")
        self.weights = {"model": getattr(self.model.config, "_commit_hash", None)}
        if Path(name).is_dir():
            self.weights["model"] = {
                path.name: sha256(path)
                for path in sorted(Path(name).iterdir())
                if path.suffix in (".json", ".safetensors", ".bin")
            }
        self.torch_device = on_device(self.model, self.device)

    def make(self, sample: Sample) -> Outcome:
        return self([sample])[0]

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        images = each(lambda sample: read_image(self.path("imgs", sample)), samples)
        maps = iter(self.parse([one for one in images if isinstance(one, Image.Image)]))
        return [
            Outcome(problem=str(image))
            if isinstance(image, Unusable)
            else Outcome(encode(Image.fromarray(next(maps))))
            for image in images
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


def _require_classes(config: Any, scheme: Scheme, where: str) -> None:
    """Refuse a network whose classes are not those of the scheme: its masks would be nonsense."""
    advice = "Set prepare.parsing.scheme to the scheme it was trained with"
    found, wanted = [config.id2label[i] for i in range(config.num_labels)], scheme.names
    if len(found) != len(wanted):
        raise InputError(
            f"{where}: has {len(found)} classes, {scheme.title} has {len(wanted)}. {advice}"
        )
    for i, names in enumerate(zip(found, wanted, strict=True)):
        theirs, ours = (re.sub(r"[^a-z]", "", name.lower()) for name in names)
        if not theirs.startswith("label") and theirs != ours:
            raise InputError(
                f"{where}: its class {i} is {found[i]!r}, that of {scheme.title} {wanted[i]!r}. "
                f"{advice}"
            )
