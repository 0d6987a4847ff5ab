"""How far a student agrees with its teacher, head by head, on the views that it is trained on.

The student is in training mode: batch statistics, and the top rows of a head zeroed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


@torch.no_grad()
def agreement(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float,
    heads: Sequence[str],
) -> dict[str, torch.Tensor]:
    """By head `agree_<head>`, the share of samples to which both give the same identity, and
    `divergence_<head>`, KL(softmax(teacher/T) ‖ softmax(student/T)) in nats: means over the batch.

    Both float [B, H, C], heads: their H names; scalars on their device.
    """
    same = (logits.argmax(2) == teacher_logits.argmax(2)).float().mean(0)
    student = (logits.float() / temperature).log_softmax(2)
    teacher = (teacher_logits.float() / temperature).log_softmax(2)
    kl = (teacher.exp() * (teacher - student)).sum(2).mean(0)
    shares = {f"agree_{head}": same[i] for i, head in enumerate(heads)}
    return shares | {f"divergence_{head}": kl[i] for i, head in enumerate(heads)}
