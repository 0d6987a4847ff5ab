"""What a network costs to run."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def multiply_adds(network: nn.Module, *inputs: torch.Tensor | None) -> int:
    """Multiply-adds of convolutions and matrix products in one forward pass, in evaluation mode."""
    training = network.training
    network.eval()
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    network.train(training)
    return int(counter.get_total_flops() // 2)
