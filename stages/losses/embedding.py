"""Distillation of embeddings: features that point where the teacher's point."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def embedding(features: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 − cosine: mean over the batch, sum over the heads.

    features and teacher float [B, H, D], of the same heads. Float32 scalar; the length of neither
    matters. Raises ValueError for features of another length D.
    """
    from torch.nn import functional

    if features.shape != teacher.shape:
        raise ValueError(f"features are {[*features.shape]}, the teacher's {[*teacher.shape]}")
    cosine = functional.cosine_similarity(features.float(), teacher.float(), dim=-1)
    return (1 - cosine).mean(0).sum()
