"""torchreid's OSNet in `Encoder.load`, beside OSNet written out from its paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from deskpro import Encoder
from deskpro.stages.base.errors import InputError
from tests.conftest import Project

SPOTS = np.random.default_rng(0).integers(0, 256, (3, 7, 4, 3), dtype=np.uint8)
IMAGES = SPOTS.repeat(10, 1).repeat(10, 2)


class Written:
    """OSNet of Zhou et al. (ICCV 2019), layer by layer; weights are drawn where they are used.

    Their names are those of torchreid's files.
    """

    def __init__(self, width: float) -> None:
        self.channels = [int(width * full) for full in (64, 256, 384, 512)]
        self.state: dict[str, Tensor] = {}
        self.random = torch.Generator().manual_seed(0)

    def weight(self, name: str, *shape: int) -> Tensor:
        if name not in self.state:
            values = torch.rand(shape, generator=self.random)
            if name.endswith("running_var"):
                values = 0.5 + values
            else:
                scale = np.prod(shape[1:]) if len(shape) > 1 else 1
                values = (values - 0.5) * (12 * 2 / scale) ** 0.5
            self.state[name] = values
        return self.state[name]

    def norm(self, x: Tensor, name: str) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        values = [self.weight(f"{name}.{part}", x.shape[1]) for part in parts]
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(3)
        return functional.batch_norm(x, *values)

    def conv(self, x: Tensor, name: str, out: int, kernel: int = 1, **more: Any) -> Tensor:
        inputs = x.shape[1] // more.get("groups", 1)
        weight = self.weight(f"{name}.weight", out, inputs, kernel, kernel)
        return functional.conv2d(x, weight, padding=kernel // 2, **more)

    def layer(self, x: Tensor, name: str, out: int, kernel: int = 1, stride: int = 1) -> Tensor:
        x = self.conv(x, f"{name}.conv", out, kernel, stride=stride)
        return self.norm(x, f"{name}.bn").relu()

    def light(self, x: Tensor, name: str) -> Tensor:
        count = x.shape[1]
        x = self.conv(x, f"{name}.conv1", count)
        return self.norm(self.conv(x, f"{name}.conv2", count, 3, groups=count), f"{name}.bn").relu()

    def gate(self, x: Tensor, name: str) -> Tensor:
        count, hidden = x.shape[1], x.shape[1] // 16
        mean = functional.adaptive_avg_pool2d(x, 1)
        low = self.conv(mean, f"{name}.fc1", hidden, bias=self.weight(f"{name}.fc1.bias", hidden))
        high = self.conv(
            low.relu(), f"{name}.fc2", count, bias=self.weight(f"{name}.fc2.bias", count)
        )
        return x * high.sigmoid()

    def block(self, x: Tensor, name: str, out: int) -> Tensor:
        start, total = self.layer(x, f"{name}.conv1", out // 4), torch.zeros(())
        for scale in (1, 2, 3, 4):
            path, at = start, f"{name}.conv2{'abcd'[scale - 1]}"
            for i in range(scale):
                path = self.light(path, at if scale == 1 else f"{at}.{i}")
            total = total + self.gate(path, f"{name}.gate")
        found = self.norm(self.conv(total, f"{name}.conv3.conv", out), f"{name}.conv3.bn")
        if x.shape[1] != out:
            x = self.norm(self.conv(x, f"{name}.downsample.conv", out), f"{name}.downsample.bn")
        return (found + x).relu()

    def __call__(self, x: Tensor) -> Tensor:
        first, *others = self.channels
        x = functional.max_pool2d(self.layer(x, "conv1", first, 7, stride=2), 3, 2, 1)
        for number, out in enumerate(others, 2):
            x = self.block(self.block(x, f"conv{number}.0", out), f"conv{number}.1", out)
            if number < 4:
                x = functional.avg_pool2d(self.layer(x, f"conv{number}.2.0", out), 2)
        x = self.layer(x, "conv5", others[-1]).mean((2, 3))
        x = functional.linear(
            x, self.weight("fc.0.weight", 512, others[-1]), self.weight("fc.0.bias", 512)
        )
        return functional.normalize(self.norm(x, "fc.1").relu())


def written(width: float) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Vectors of the images, and the file of the network that makes them."""
    network = Written(width)
    resized = [Image.fromarray(i).resize((128, 256), Image.Resampling.BILINEAR) for i in IMAGES]
    pixels = torch.from_numpy(np.stack([np.asarray(i) for i in resized])).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    vectors = network((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)).numpy()
    classifier = {"classifier.weight": torch.zeros(7, 512), "classifier.bias": torch.zeros(7)}
    return vectors, network.state | classifier


@pytest.mark.parametrize("width", [1.0, 0.75, 0.5, 0.25])
def test_a_file_of_torchreid_gives_the_vectors_of_its_network(width: float, tmp_path: Path) -> None:
    vectors, state = written(width)
    assert vectors.std(0).mean() > 1e-4  # so far apart are images: a hundred times the tolerance
    torch.save(
        {"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 3},
        tmp_path / "model.pth.tar-3",
    )
    encoder = Encoder.load(tmp_path / "model.pth.tar-3", "cpu")
    assert (encoder.face_size, encoder.body_size) == (None, (256, 128))
    assert encoder.parts == {"body": slice(0, 512)}
    found = encoder(IMAGES)
    np.testing.assert_allclose(found.vectors, vectors, rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity(found, found), vectors @ vectors.T, atol=1e-5)


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: t for name, t in state.items() if part not in name}


CHANGED: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "no fc": (without("fc.0.bias"), "with its layer fc"),
    "instance norm": (lambda s: s | {"conv2.0.IN.weight": torch.ones(64)}, "OSNet-IBN and -AIN"),
    "another width": (
        lambda s: s | {"conv1.conv.weight": torch.ones(20, 3, 7, 7)},
        "must be osnet",
    ),
    "no width": (lambda s: s | {"conv1.conv.weight": torch.ones(())}, "must be osnet"),
    "a tensor gone": (without("conv4.1.gate.fc1.bias"), "1 missing: conv4.1.gate.fc1.bias"),
    "a tensor more": (lambda s: s | {"conv6.weight": torch.ones(1)}, "1 left over: conv6.weight"),
    "another shape": (lambda s: s | {"fc.1.bias": torch.ones(3)}, r"fc.1.bias is \[3\]"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_another_file_is_refused(what: str, tmp_path: Path) -> None:
    _, state = written(0.25)
    change, message = CHANGED[what]
    torch.save(change(state), tmp_path / "osnet.pth")
    with pytest.raises(InputError, match=message):
        Encoder.load(tmp_path / "osnet.pth")


def test_an_old_file_without_counts_loads_and_is_evaluated(
    project: Project, tmp_path: Path
) -> None:
    _, state = written(0.25)
    torch.save(without("num_batches_tracked")(state), tmp_path / "osnet.pth")
    assert Encoder.load(tmp_path / "osnet.pth", "cpu").dim == 512
    done = project.command(
        "eval", "--checkpoint", str(tmp_path / "osnet.pth"), "--data", str(project.data),
        "--dataset", "benchmark", "--run", str(tmp_path / "alone"), "--config", str(project.config),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "body" in done.out
