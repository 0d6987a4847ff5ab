"""Identity classification with label smoothing (Szegedy et al., CVPR 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float = 0.1
) -> torch.Tensor:
    """Cross-entropy, mean over the batch and sum over the heads: a float32 scalar.

    logits float [B, H, C]; labels int64 [B]; the smoothed target keeps 1−ε+ε/C for the label.
    """
    heads = logits.shape[1]
    repeated = labels[:, None].expand(-1, heads)
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), repeated, reduction="none", label_smoothing=label_smoothing
    )
    return losses.mean(0).sum()
