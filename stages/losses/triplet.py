"""Batch-hard triplet loss (Hermans et al., "In Defense of the Triplet Loss", 2017, eq. 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def triplet(embeddings: torch.Tensor, labels: torch.Tensor, *, margin: float = 0.7) -> torch.Tensor:
    """max(0, margin + hardest positive − hardest negative): mean over batch, sum over heads.

    embeddings float [B, T, D]; labels int64 [B], at least two identities. Distances are Euclidean,
    computed from differences: the faster way through dot products loses near-duplicates in
    rounding. An image alone with its identity is its own positive, at distance 0. Float32 scalar.
    """
    import torch

    vectors = embeddings.float().transpose(0, 1)
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None, :]
    positive = distances.masked_fill(~same, -torch.inf).amax(-1)
    negative = distances.masked_fill(same, torch.inf).amin(-1)
    return torch.relu(margin + positive - negative).mean(1).sum()
