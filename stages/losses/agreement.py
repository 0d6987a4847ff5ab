"""How far a student agrees with its teacher, head by head, on the views that it is trained on.

The student is in training mode: batch statistics, and the top rows of a head zeroed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deskpro.stages.losses.distillation import mean_divergence


@torch.no_grad()
def agreement(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float,
    heads: Sequence[str],
    zscore: bool = False,
) -> dict[str, torch.Tensor]:
    """By head `agree_<head>`, the share of samples to which both give the same identity, and
    `divergence_<head>`, KL(softmax(teacher/T) ‖ softmax(student/T)) in nats: means over the batch.

    Both float [B, H, C], or the teacher's [B, 1, C] for all heads; heads: the H names; zscore: the
    divergence is that of standardised logits; scalars on their device.
    """
    same = (logits.argmax(2) == teacher_logits.argmax(2)).float().mean(0)
    kl = mean_divergence(logits, teacher_logits, temperature, zscore)
    shares = {f"agree_{head}": same[i] for i, head in enumerate(heads)}
    return shares | {f"divergence_{head}": kl[i] for i, head in enumerate(heads)}
