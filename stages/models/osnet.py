"""OSNet's building blocks (Zhou et al., "Omni-Scale Feature Learning for Person Re-ID", ICCV 2019).

Every block maps float [B, C, h, w] to the same. Parameter names are those of the published
checkpoints, so that importing one is a renaming.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

CHANNELS = {
    1.0: (64, 256, 384, 512),
    0.75: (48, 192, 288, 384),
    0.5: (32, 128, 192, 256),
    0.25: (16, 64, 96, 128),
}
"""Width → channels after conv1, conv2, conv3 and conv4/conv5."""


class ConvLayer(nn.Module):
    """conv (no bias), batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu_()


class Conv1x1(ConvLayer):
    """1×1 convolution (no bias), batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)


class Conv1x1Linear(Conv1x1):
    """`Conv1x1` without the ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


class LightConv3x3(nn.Module):
    """1×1 convolution, 3×3 depthwise convolution (no biases), batch norm, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv2(self.conv1(x))).relu_()


class ChannelGate(nn.Module):
    """Multiplies each channel by a gate in 0..1 computed from the mean of the map; reduction 16."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(mean))))


class OSBlock(nn.Module):
    """Omni-scale residual block: streams a to d of 1 to 4 light convolutions, gated and summed.

    x [B, inputs, h, w] → [B, outputs, h, w]. wiring: "osnet" for the sum a+b+c+d of the OSNet
    paper, or "published" for the sum a+a+c+d of the published DeSKPro, whose checkpoints need it;
    their stream b is never used.
    """

    def __init__(self, inputs: int, outputs: int, wiring: str = "osnet") -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = Conv1x1(inputs, middle)
        self.conv2a = LightConv3x3(middle)
        self.conv2b = nn.Sequential(*(LightConv3x3(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LightConv3x3(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LightConv3x3(middle) for _ in range(4)))
        self.gate = ChannelGate(middle)
        self.conv3 = Conv1x1Linear(middle, outputs)
        self.downsample = Conv1x1Linear(inputs, outputs) if inputs != outputs else None
        self.wiring = wiring
        if wiring == "published":  # DDP waits for the gradient of every parameter
            self.conv2b.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = self.conv1(x)
        a = self.gate(self.conv2a(start))
        second = a if self.wiring == "published" else self.gate(self.conv2b(start))
        mixed = a + second + self.gate(self.conv2c(start)) + self.gate(self.conv2d(start))
        identity = x if self.downsample is None else self.downsample(x)
        return (self.conv3(mixed) + identity).relu_()


def transition(channels: int) -> nn.Sequential:
    """What follows the blocks of conv2 and conv3: Conv1x1, then 2×2 average pooling."""
    return nn.Sequential(Conv1x1(channels, channels), nn.AvgPool2d(2))


def trunk(width: float, wiring: str) -> nn.Sequential:
    """conv1, max-pool, conv2 and the first block of conv3: [B, 3, H, W] → [B, c3, H/8, W/8]."""
    c1, c2, c3, _ = CHANNELS[width]
    conv2 = nn.Sequential(OSBlock(c1, c2, wiring), OSBlock(c2, c2, wiring), transition(c2))
    return nn.Sequential(
        ConvLayer(3, c1, 7, stride=2), nn.MaxPool2d(3, 2, 1), conv2, OSBlock(c2, c3, wiring)
    )


def branch(width: float, wiring: str) -> nn.Sequential:
    """The rest of conv3, conv4 and conv5: [B, c3, h, w] → [B, c4, h/2, w/2].

    The parts of conv3 keep their positions in OSNet's own conv3, and so their names.
    """
    _, _, c3, c4 = CHANNELS[width]
    conv3 = nn.Sequential(OrderedDict([("1", OSBlock(c3, c3, wiring)), ("2", transition(c3))]))
    conv4 = nn.Sequential(OSBlock(c3, c4, wiring), OSBlock(c4, c4, wiring))
    return nn.Sequential(conv3, conv4, Conv1x1(c4, c4))


class OSNet(nn.Module):
    """OSNet itself, under the names of torchreid's files, without the classifier.

    Bodies, normalised float [B, 3, H, W] → float32 [B, 1, D]: the map's mean, a linear layer, batch
    norm, ReLU.

    Args:
        width: a row of `CHANNELS`.
        dim: length D of a feature.
    """

    def __init__(self, width: float, dim: int) -> None:
        super().__init__()
        self.conv1, self.maxpool, self.conv2, first = trunk(width, "osnet")
        others, self.conv4, self.conv5 = branch(width, "osnet")
        assert isinstance(others, nn.Sequential)
        self.conv3 = nn.Sequential(first, *others)
        channels = CHANNELS[width][-1]
        self.fc = nn.Sequential(nn.Linear(channels, dim), nn.BatchNorm1d(dim), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv3(self.conv2(self.maxpool(self.conv1(images))))
        return self.fc(self.conv5(self.conv4(x)).mean((2, 3)))[:, None]
