"""The student: a stream for the LR face, a stream for the body, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any
from zlib import crc32

import torch
from torch import nn

from deskpro.stages.models.lmbn import LMBN, Output

STREAMS = {"face": ("face",), "body": ("body",), "all": ("face", "body")}
"""Forward mode → its streams, in the order of the heads."""


class Student(nn.Module):
    """LR face and body image → one `Output` with the heads of all its streams, face first.

    A stream's initial weights don't depend on whether it has the other one beside it.

    Args:
        classes: number of identities.
        forward_mode: "face", "body" or "all"; options: keywords of each stream's `LMBN`.
    """

    def __init__(self, classes: int, *, forward_mode: str = "all", **options: Any) -> None:
        super().__init__()
        wanted, made = STREAMS[forward_mode], {}
        seeds = torch.randint(2**62, (len(STREAMS["all"]),), device="cpu").tolist()
        self.seeds = dict(zip(STREAMS["all"], seeds, strict=True))
        for stream, seed in self.seeds.items():
            if stream in wanted:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    made[stream] = LMBN(classes, attention=stream == "body", **options)
        self.lr_face_net, self.nocloth_net = made.get("face"), made.get("body")
        self.heads = head_slices({name: net.heads for name, net in self.streams.items()})
        """Stream → its slice of the head dimension of logits and features."""
        self.triplet = head_slices({s: net.triplet_heads for s, net in self.streams.items()})
        """Stream → its slice of the head dimension of `before_neck`."""
        self.projections = nn.ModuleDict()
        """Name of another teacher and a hyphen, as a module's own attributes (half) have none →
        projection into its space; not part of what is saved."""
        self._learners: dict[str, tuple[str, tuple[int, int]]] = {}

    def project(self, stream: str, teacher: str, shape: tuple[int, int]) -> None:
        """Add a projection of a stream's features, one head after the other, to the embeddings of
        another teacher. Its initial weights depend on the stream's and on the name.

        shape: heads and length of these embeddings.
        """
        network = self.streams[stream]
        length = len(network.heads) * network.feature_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seeds[stream] + crc32(teacher.encode())) % 2**63)
            self.projections[f"{teacher}-"] = nn.Linear(length, shape[0] * shape[1])
        self._learners[teacher] = stream, shape

    def kept(self) -> dict[str, torch.Tensor]:
        """The state that is saved: without projections."""
        state = self.state_dict()
        return {name: v for name, v in state.items() if not name.startswith("projections.")}

    @property
    def streams(self) -> dict[str, LMBN]:
        """Stream → its network, in the order of the heads."""
        networks = {"face": self.lr_face_net, "body": self.nocloth_net}
        return {name: network for name, network in networks.items() if network is not None}

    def forward(
        self,
        lr_faces: torch.Tensor | None,
        bodies: torch.Tensor | None,
        has_face: torch.Tensor | None = None,
    ) -> Output:
        """lr_faces [B, 3, h, w] and bodies [B, 3, H, W], normalised; None for an absent stream.

        has_face: bool [B], the samples with a face, all if None. The face stream doesn't see the
        others, so that its batch statistics are those of faces; its outputs for them are 0.
        """
        images = {"face": lr_faces, "body": bodies}
        outputs = [
            _of_some(network, images[name], has_face)
            if name == "face" and has_face is not None
            else network(images[name])
            for name, network in self.streams.items()
        ]
        features = torch.cat([output.features for output in outputs], 1)
        return Output(
            torch.cat([output.logits for output in outputs], 1),
            features,
            torch.cat([output.before_neck for output in outputs], 1),
            outputs[-1].attention,
            self._project(features) if self.training else {},
        )

    def _project(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for teacher, (stream, shape) in self._learners.items():
            joined = features[:, self.heads[stream]].flatten(1)
            found[teacher] = self.projections[f"{teacher}-"](joined).unflatten(1, shape)
        return found


def _of_some(network: LMBN, images: torch.Tensor | None, wanted: torch.Tensor) -> Output:
    """The network's output for the wanted images [B, …], zeros for the others."""
    assert images is not None
    rows = wanted.nonzero().flatten().to(images.device)
    if len(rows) < 2 and network.training:  # there are no batch statistics of one image
        found = network.eval()(images[rows])
        network.train()
    else:
        found = network(images[rows])

    def spread(values: torch.Tensor) -> torch.Tensor:
        blank = values.new_zeros(len(images), *values.shape[1:])
        return blank.index_copy(0, rows, values)

    return Output(spread(found.logits), spread(found.features), spread(found.before_neck), None)


@torch.no_grad()
def multiply_adds(network: nn.Module, *inputs: torch.Tensor | None) -> int:
    """Multiply-adds of convolutions and linear layers in one forward pass, in evaluation mode.

    The products of tokens in a transformer's attention are not counted.
    """
    counts, training = [0], network.training

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        counts.append(output.numel() * weight[0].numel())

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network.eval()(*inputs)
    network.train(training)
    for hook in hooks:
        hook.remove()
    return sum(counts)


def head_slices(heads: Mapping[str, Sequence[str]]) -> dict[str, slice]:
    """Stream → the slice of its heads, by their names, where those of all streams follow each
    other."""
    ends = accumulate(map(len, heads.values()))
    return {
        stream: slice(end - len(names), end)
        for (stream, names), end in zip(heads.items(), ends, strict=True)
    }
