"""Whole networks of timm as teachers: pre-trained elsewhere, frozen, one feature an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deskpro.stages.base.errors import InputError
from deskpro.stages.models.lmbn import Output
from deskpro.stages.models.teacher import Frozen
from deskpro.stages.models.timm_networks import TRANSFORMERS, require
from deskpro.stages.models.weights import read_tensors


class TimmTeacher(Frozen):
    """A whole network of timm with its own pooling, frozen and in evaluation mode."""

    def __init__(self, network: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        """mean, std: by RGB channel, of the images that it is given, normalised."""
        super().__init__()
        self.network, self.length = network.requires_grad_(False), int(network.num_features)
        own = network.pretrained_cfg
        given = torch.tensor([[*mean], [*std]]).view(2, 1, 3, 1, 1)
        wanted = torch.tensor([[*own["mean"]], [*own["std"]]]).view(2, 1, 3, 1, 1)
        self.scale = nn.Buffer(given[1] / wanted[1])
        self.shift = nn.Buffer((given[0] - wanted[0]) / wanted[1])
        self.eval()

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> Output:
        """float [B, 3, H, W] → features [B, 1, length], nothing else."""
        features = self.network(images * self.scale + self.shift)[:, None]
        nothing = features[..., :0]
        return Output(nothing, features, nothing, None)


def load_timm_teacher(
    name: str, path: Path, mean: Sequence[float], std: Sequence[float]
) -> TimmTeacher:
    """A network with the weights of a file, which are timm's of that network; in evaluation mode.

    Its images are normalised as timm says of its weights. mean, std: of the images that it gets.

    Raises:
        InputError: timm is absent or has no such network, or the file is not of it.
    """
    timm, tensors = require(name), read_tensors(path)
    if tensors is None:
        raise InputError(f"{path}: is a file of this project; leave the teacher's backbone out")
    transformer = timm.models.is_model_in_modules(name.partition(".")[0], TRANSFORMERS)
    options = {"dynamic_img_size": True} if transformer else {}
    network = timm.create_model(name, pretrained=False, num_classes=0, **options)
    wanted = network.state_dict()
    problems = [
        f"{key} is {[*tensors[key].shape] if key in tensors else 'missing'}"
        for key, like in wanted.items()
        if key not in tensors or tensors[key].shape != like.shape
    ]
    if problems:
        raise InputError(
            f"{path}: not the weights of timm:{name}: {problems[0]}, and {len(problems) - 1} more "
            "of its tensors don't fit. Allowed is a state dict of that network"
        )
    network.load_state_dict({key: tensors[key] for key in wanted})
    return TimmTeacher(network, mean, std)
