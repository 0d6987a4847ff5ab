"""What passes from a backbone's trunk to its branches: a map, for transformers with more tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tokens(NamedTuple):
    """The map of a transformer, and the tokens that stand for no place in the image."""

    map: torch.Tensor
    """[B, C, h, w]: the tokens of the patches."""
    prefix: torch.Tensor
    """[B, P, C]: class, distillation and register tokens."""


Cut = torch.Tensor | Tokens
"""The map [B, C, h, w] at which a network is cut in two, with what else the rest needs of it."""


def map_of(cut: Cut) -> torch.Tensor:
    """The map alone, [B, C, h, w]."""
    return cut.map if isinstance(cut, Tokens) else cut


def gate(cut: Cut, attention: torch.Tensor) -> Cut:
    """The map times an attention [B, 1, h, w]; tokens without a place stay as they are."""
    if isinstance(cut, Tokens):
        return cut._replace(map=cut.map * attention)
    return cut * attention
