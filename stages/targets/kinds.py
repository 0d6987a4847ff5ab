"""The kinds of targets: what each is computed from, how it is stored, compared and described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from deskpro.stages.base.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from deskpro.cache.schema import Field
    from deskpro.stages.models.lmbn import Output

Arrays = dict[str, "np.ndarray"]
Tensors = Mapping[str, "torch.Tensor"]

TOLERANCE = {"float32": 2e-3, "bfloat16": 3e-2, "float16": 5e-3}
"""How far a logit computed again may be from the stored one, by the teacher's precision, as a share
of its head's largest: rounding, another batch, another device."""
_BACKGROUND = 26
"""The byte of an attention of 0.1: not the head region."""


class Settings(NamedTuple):
    """What targets depend on besides images, views and weights; plain values."""

    classes: int
    face_size: tuple[int, int]
    body_size: tuple[int, int]
    """Height and width of faces, and of body images and masks, pixels."""
    map_size: tuple[int, int]
    """Height and width of the student's attention."""
    precision: str
    logits_dtype: str
    heads: tuple[str, ...]
    """Names of the teacher's heads."""

    def size(self, kind: str) -> tuple[int, int]:
        """Height and width of a kind of image."""
        return self.face_size if kind.endswith("face") else self.body_size


class Target:
    """One kind of target of B samples, with K parts that are compared separately."""

    group: str
    """Its folder in the store."""
    sees: tuple[str, ...]
    """The kinds of images that it is computed from, under the view."""
    of_teacher: bool
    """Whether the teacher network computes it."""
    depends: tuple[str, ...]
    """The settings that its values depend on."""
    parts: str = ""
    """The setting that names its K parts; empty for one part."""

    def fields(self, settings: Settings) -> dict[str, Field]:
        """The arrays that it is stored in."""
        raise NotImplementedError

    def compute(self, batch: Mapping[str, Any], output: Output | None, s: Settings) -> torch.Tensor:
        """Its values [B, …] for a batch on its device; `output` is the teacher's, where it ran."""
        raise NotImplementedError

    def encode(self, value: torch.Tensor, settings: Settings) -> Arrays:
        """Its values as stored. Raises InputError for values that no teacher should give."""
        raise NotImplementedError

    def decode(self, rows: Tensors) -> torch.Tensor:
        """The stored arrays as the values that a student is trained on."""
        raise NotImplementedError

    def differs(self, live: Arrays, stored: Arrays) -> np.ndarray:
        """How far stored arrays are from those computed again: float64 [B, K]."""
        raise NotImplementedError

    def tolerance(self, settings: Settings) -> float:
        """The largest value of `differs` that rounding explains."""
        raise NotImplementedError

    def describe(self, rows: Arrays, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Statistics of stored arrays, by name: means over the samples, float64 [K]."""
        return {}

    def loss(self, value: torch.Tensor, rows: Arrays, settings: Settings) -> dict[str, np.ndarray]:
        """What storing loses, by name: sums over the samples, float64 [K]."""
        return {}


class Logits(Target):
    """The teacher's raw logits [B, H, C]: float16, or int8 with a scale per head."""

    group, sees, of_teacher = "teachers/default/logits", ("hr_face",), True
    depends, parts = ("face_size", "precision", "logits_dtype", "heads"), "heads"

    def fields(self, settings: Settings) -> dict[str, Field]:
        from deskpro.cache.schema import Field

        shape, dims = (len(settings.heads), settings.classes), ("head", "class")
        text = "the teacher's raw logits, before any temperature"
        if settings.logits_dtype == "float16":
            return {"logits": Field(shape, "float16", dims, "1", text)}
        scale = Field(shape[:1], "float32", dims[:1], "1", "logits = this × the int8 numbers")
        text += ", divided by logits_scale"
        return {"logits": Field(shape, "int8", dims, "1", text), "logits_scale": scale}

    def compute(self, batch: Mapping[str, Any], output: Output | None, s: Settings) -> torch.Tensor:
        assert output is not None
        return output.logits

    def encode(self, value: torch.Tensor, settings: Settings) -> Arrays:
        import torch

        logits, half = value.float(), torch.finfo(torch.float16)
        if not torch.isfinite(logits).all() or logits.abs().max() > half.max:
            raise InputError(
                "the teacher's logits are not finite, or too large for float16: these weights are "
                "broken. To train it again",
                command="train-teacher --force",
            )
        if settings.logits_dtype == "float16":
            return {"logits": logits.half().cpu().numpy()}
        scale = logits.abs().amax(dim=2).clamp(min=half.tiny) / 127
        whole = (logits / scale[..., None]).round().to(torch.int8)
        return {"logits": whole.cpu().numpy(), "logits_scale": scale.cpu().numpy()}

    def decode(self, rows: Tensors) -> torch.Tensor:
        """float16, or float32 from int8."""
        if "logits_scale" in rows:
            return rows["logits"].float() * rows["logits_scale"][..., None]
        return rows["logits"]

    def differs(self, live: Arrays, stored: Arrays) -> np.ndarray:
        """As a share of the head's largest logit."""
        mine, theirs = (self.decode(tensors(rows)).double() for rows in (live, stored))
        return ((mine - theirs).abs().amax(2) / mine.abs().amax(2).clamp(min=1e-6)).numpy()

    def tolerance(self, settings: Settings) -> float:
        return TOLERANCE[settings.precision] + (settings.logits_dtype == "int8") / 127

    def describe(self, rows: Arrays, labels: np.ndarray) -> dict[str, np.ndarray]:
        import torch

        log_p = self.decode(tensors(rows)).double().log_softmax(2)
        right = log_p.argmax(2) == torch.from_numpy(labels)[:, None]
        entropy = -(log_p.exp() * log_p).sum(2)
        means = {"top-1, %": 100 * right.double().mean(0), "entropy, nats": entropy.mean(0)}
        return {name: mean.numpy() for name, mean in means.items()}

    def loss(self, value: torch.Tensor, rows: Arrays, settings: Settings) -> dict[str, np.ndarray]:
        """The KL divergence of int8 from float16, in nats."""
        if settings.logits_dtype == "float16":
            return {}
        stored = self.decode(tensors(rows))
        return {"KL of int8, nats": divergence(value.half().cpu(), stored).numpy()}


class Attention(Target):
    """The student's spatial attention as it should be, [B, 1, h, w] in 0..1: a byte each."""

    group, sees, of_teacher = "masks/attention", ("mask",), False
    depends = ("body_size", "map_size")

    def fields(self, settings: Settings) -> dict[str, Field]:
        from deskpro.cache.schema import Field

        shape, dims = (1, *settings.map_size), ("channel", "height", "width")
        text = "what the student's spatial attention should be, 0..255 for 0..1"
        return {"attention": Field(shape, "uint8", dims, "1/255", text)}

    def compute(self, batch: Mapping[str, Any], output: Output | None, s: Settings) -> torch.Tensor:
        from deskpro.stages.data.views import attention_target

        return attention_target(batch["mask"], s.map_size)

    def encode(self, value: torch.Tensor, settings: Settings) -> Arrays:
        return {"attention": (value * 255).round().byte().cpu().numpy()}

    def decode(self, rows: Tensors) -> torch.Tensor:
        """float32."""
        return rows["attention"] / 255

    def differs(self, live: Arrays, stored: Arrays) -> np.ndarray:
        import numpy as np

        step = np.abs(live["attention"].astype(float) - stored["attention"].astype(float))
        return step.max(axis=(1, 2, 3))[:, None] / 255

    def tolerance(self, settings: Settings) -> float:
        return 1.01 / 255

    def describe(self, rows: Arrays, labels: np.ndarray) -> dict[str, np.ndarray]:
        import numpy as np

        return {"head region, %": np.array([100 * (rows["attention"] > _BACKGROUND).mean()])}


TARGETS: dict[str, Target] = {"logits": Logits(), "attention": Attention()}
"""To add a target: its class, and a row."""


def stored_fields(name: str, settings: Settings) -> dict[str, Field]:
    """The arrays of a target's group: with the hash of the pixels that it is about."""
    from deskpro.cache.schema import Field

    pixels = Field((), "uint64", (), "1", f"hash of the pixels of {', '.join(TARGETS[name].sees)}")
    return TARGETS[name].fields(settings) | {"pixels": pixels}


def tensors(rows: Arrays) -> dict[str, torch.Tensor]:
    """A target's arrays as tensors, without the hash of pixels."""
    import torch

    return {name: torch.from_numpy(v) for name, v in rows.items() if name != "pixels"}


def divergence(logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(softmax(logits) ‖ softmax(other)) of [B, H, C] logits, in nats: float64 [H], a sum over
    the batch."""
    ours, theirs = logits.double().log_softmax(2), other.double().log_softmax(2)
    return (ours.exp() * (ours - theirs)).sum((0, 2))
