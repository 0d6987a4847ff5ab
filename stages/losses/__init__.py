"""The losses, a file each, of one signature: (prediction, target, **settings) → scalar.

To add one: write its file, name it in `LOSSES` (tests/test_losses.py then tests it by itself), and
give it a term in the stage that minimises it.
"""

from collections.abc import Callable

import torch

from deskpro.stages.losses.attention import attention
from deskpro.stages.losses.cross_entropy import cross_entropy
from deskpro.stages.losses.distillation import distillation
from deskpro.stages.losses.triplet import triplet

LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": cross_entropy,
    "triplet": triplet,
    "distillation": distillation,
    "attention": attention,
}

__all__ = ["LOSSES", "attention", "cross_entropy", "distillation", "triplet"]
