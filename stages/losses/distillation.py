"""Knowledge distillation (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_EPSILON = 1e-6
"""Added to the variance of logits, so that logits without any have a gradient."""


def distillation(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    temperature: float,
    zscore: bool = False,
) -> torch.Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)): mean over the batch, sum over the heads.

    logits float [B, H, C] and teacher_logits [B, H, C] of the same heads, or [B, 1, C] of a teacher
    with a single head: every head of the student then learns from the one. Raw, in the same class
    order. zscore: both are standardised first. T² keeps the gradient's size the same for every T.
    Float32 scalar.
    """
    return temperature**2 * mean_divergence(logits, teacher_logits, temperature, zscore).sum()


def mean_divergence(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float, zscore: bool
) -> torch.Tensor:
    """KL(softmax(teacher/T) ‖ softmax(student/T)) by head, in nats: float32 [H], the batch's mean.

    The arguments are those of `distillation`.
    """
    from torch.nn import functional

    pair = logits.float(), teacher_logits.float()
    if zscore:
        pair = standardise(pair[0]), standardise(pair[1])
    student, teacher = (functional.log_softmax(each / temperature, dim=-1) for each in pair)
    teacher = teacher.expand_as(student)
    found = functional.kl_div(student, teacher, reduction="none", log_target=True)
    return found.sum(-1).mean(0)


def standardise(logits: torch.Tensor) -> torch.Tensor:
    """Logits with mean 0 and standard deviation 1 over the classes, the last axis.

    The student then learns the order and the relative distances of the teacher's logits, not their
    size (Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024).
    """
    centred = logits - logits.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred * (variance + _EPSILON).rsqrt()
