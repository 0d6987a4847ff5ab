"""Identity classification with label smoothing (Szegedy et al., CVPR 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float = 0.1
) -> torch.Tensor:
    """Cross-entropy, mean over the batch and sum over the heads: a float32 scalar.

    logits float [B, H, C]; labels int64 [B]; the smoothed target keeps 1−ε+ε/C for the label.
    """
    from torch.nn import functional

    repeated = labels[:, None].expand(-1, logits.shape[1])
    losses = functional.cross_entropy(
        logits.float().transpose(1, 2), repeated, reduction="none", label_smoothing=label_smoothing
    )
    return losses.mean(0).sum()
