"""One batch shared among several processes: averaged gradients, and what each sees of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import StudentTraining
from deskpro.stages.base.ranks import Ranks
from deskpro.stages.training.loop import setup_model


def distribute(
    network: nn.Module, recipe: StudentTraining, device: torch.device, team: Ranks
) -> nn.Module:
    """The module to call in training; in a team its gradients are those of the whole batch.

    Losses are means over a process's part of the batch, all parts are alike in size, and gradients
    are averaged: so they are those of one process with the whole batch, but for batch statistics
    (unless `sync_batch_norm`) and hardest triplets (unless `gather_triplets`).
    """
    if team.size == 1:
        return setup_model(network, recipe)
    if recipe.sync_batch_norm:
        if device.type != "cuda":
            raise InputError(
                "train_student.sync_batch_norm: torch synchronises batch norm on GPUs only, the "
                f"device is {device.type}. Allowed here is false"
            )
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place
    forward = setup_model(network, recipe)
    return DistributedDataParallel(
        forward,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,  # the first process's are saved; each keeps its own while training
    )


def gather(
    embeddings: torch.Tensor, labels: torch.Tensor, team: Ranks
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [B, T, D] and labels [B] of all processes, [B·size, …]; gradients flow back."""
    if team.size == 1:
        return embeddings, labels
    everyone = [torch.empty_like(labels) for _ in range(team.size)]
    distributed.all_gather(everyone, labels)
    gathered: torch.Tensor = _Gather.apply(embeddings.contiguous(), team)
    return gathered, torch.cat(everyone)


class _Gather(torch.autograd.Function):
    """All processes' tensors, one after the other; the gradient sums up what all say of it."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, team: Ranks) -> torch.Tensor:
        ctx.team, ctx.count = team, len(own)
        parts = [torch.empty_like(own) for _ in range(team.size)]
        distributed.all_gather(parts, own)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        whole = gradients[0].contiguous()
        distributed.all_reduce(whole)
        start = ctx.team.rank * ctx.count
        return whole[start : start + ctx.count], None
