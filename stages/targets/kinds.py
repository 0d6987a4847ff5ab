"""The kinds of targets: what each is computed from, how it is stored, compared and described."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.training_options import OWN_TEACHER

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
REGIONS = ("head", "clothes", "other skin")
"""What the channels of a mask show."""


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
    embedding_dtype: str
    embedding_dim: int
    """Length of each head's feature."""
    heads: tuple[str, ...]
    """Names of the teacher's heads."""
    mirror: bool = False
    """Whether outputs are means over an image and its mirror image."""

    def size(self, kind: str) -> tuple[int, int]:
        """Height and width of a kind of image."""
        return self.face_size if kind.endswith("face") else self.body_size


class Target(ABC):
    """One kind of target of B samples, with K parts that are compared separately."""

    group: str
    """Its folder in the store."""
    sees: tuple[str, ...]
    """The kinds of images that it is computed from, under the view."""
    teacher: str = ""
    """The name of the teacher whose network computes it; empty for none."""
    depends: tuple[str, ...]
    """The settings that its values depend on."""
    parts: str = ""
    """The setting that names its K parts; empty for one part."""

    @abstractmethod
    def fields(self, settings: Settings) -> dict[str, Field]:
        """The arrays that it is stored in."""

    @abstractmethod
    def compute(self, batch: Tensors, output: Output | None, settings: Settings) -> torch.Tensor:
        """Its values [B, …] for a batch on its device; `output` is the teacher's, where it ran."""

    @abstractmethod
    def encode(self, value: torch.Tensor, settings: Settings) -> Arrays:
        """Its values as stored. Raises InputError for values that no teacher should give."""

    @abstractmethod
    def decode(self, rows: Tensors) -> torch.Tensor:
        """The stored arrays as the values that a student is trained on."""

    @abstractmethod
    def differs(self, live: Arrays, stored: Arrays) -> np.ndarray:
        """How far stored arrays are from those computed again: float64 [B, K]."""

    @abstractmethod
    def tolerance(self, settings: Settings) -> float:
        """The largest value of `differs` that rounding explains."""

    def describe(self, rows: Arrays, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Statistics of stored arrays, by name: float64 [B, K]. NaN where a sample has none.

        labels: int64 [B], −1 for a sample without.
        """
        return {}

    def lost(self, value: torch.Tensor, rows: Arrays, settings: Settings) -> dict[str, np.ndarray]:
        """What storing loses, by name: sums over the samples, float64 [K]."""
        return {}


class OfHeads(Target):
    """What the teacher gives for each head, [B, H, L]: float16, or int8 with a scale per head."""

    parts = "heads"
    """Empty in a class whose value is one row, [B, 1, L], and of no head of the student."""
    name: str
    """Of the array."""
    output: str
    """The field of the teacher's `Output` that it is."""
    length: str
    """The setting that is L."""
    dim: str
    """The name of the last axis."""
    text: str

    def __init__(self, teacher: str = OWN_TEACHER, sees: str = "hr_face") -> None:
        """sees: the kind of image that the teacher sees."""
        self.teacher, self.sees = teacher, (sees,)
        self.group = f"teachers/{teacher}/{self.name}"
        size = "face_size" if sees.endswith("face") else "body_size"
        dtype = f"{self.name}_dtype"
        self.depends = (size, "precision", *([dtype] if dtype in Settings._fields else []))

    def dtype(self, settings: Settings) -> str:
        """float16 or int8, as the setting NAME_dtype says; float16 where there is none."""
        found: str = getattr(settings, f"{self.name}_dtype", "float16")
        return found

    def fields(self, settings: Settings) -> dict[str, Field]:
        from deskpro.cache.schema import Field

        heads = len(settings.heads) if self.parts else 1
        shape, dims = (heads, getattr(settings, self.length)), ("head", self.dim)
        if self.dtype(settings) == "float16":
            return {self.name: Field(shape, "float16", dims, "1", self.text)}
        scale = f"{self.name}_scale"
        factor = Field(
            shape[:1], "float32", dims[:1], "1", f"{self.name} = this × the int8 numbers"
        )
        text = f"{self.text}, divided by {scale}"
        return {self.name: Field(shape, "int8", dims, "1", text), scale: factor}

    def compute(self, batch: Tensors, output: Output | None, settings: Settings) -> torch.Tensor:
        value: torch.Tensor = getattr(output, self.output)
        return value

    def encode(self, value: torch.Tensor, settings: Settings) -> Arrays:
        import torch

        found, half = value.float(), torch.finfo(torch.float16)
        if not torch.isfinite(found).all() or found.abs().max() > half.max:
            raise InputError(
                f"the teacher's {self.name} are not finite, or too large for float16: these "
                "weights are broken. To train it again",
                command="train-teacher --force",
            )
        if self.dtype(settings) == "float16":
            return {self.name: found.half().cpu().numpy()}
        scale = found.abs().amax(dim=2).clamp(min=half.tiny) / 127
        whole = (found / scale[..., None]).round().to(torch.int8)
        return {self.name: whole.cpu().numpy(), f"{self.name}_scale": scale.cpu().numpy()}

    def decode(self, rows: Tensors) -> torch.Tensor:
        """float16, or float32 from int8."""
        if f"{self.name}_scale" in rows:
            return rows[self.name].float() * rows[f"{self.name}_scale"][..., None]
        return rows[self.name]

    def differs(self, live: Arrays, stored: Arrays) -> np.ndarray:
        """As a share of the head's largest number."""
        mine, theirs = (self.decode(tensors(rows)).double() for rows in (live, stored))
        return ((mine - theirs).abs().amax(2) / mine.abs().amax(2).clamp(min=1e-6)).numpy()

    def tolerance(self, settings: Settings) -> float:
        return TOLERANCE[settings.precision] + (self.dtype(settings) == "int8") / 127

    def points(self, rows: Tensors) -> torch.Tensor:
        """What `class_share` takes means of: float64 [B, H, L]."""
        return self.decode(rows).double()

    def convex(self, points: torch.Tensor) -> torch.Tensor:
        """The convex function by which `class_share` says how far points lie apart: [..., H, L] →
        [..., H]."""
        return points.square().sum(-1)


class LogitsTarget(OfHeads):
    """The teacher's raw logits [B, H, C]."""

    name, length, dim = "logits", "classes", "class"
    output, text = "logits", "the teacher's raw logits, before any temperature"

    def describe(self, rows: Arrays, labels: np.ndarray) -> dict[str, np.ndarray]:
        import torch

        log_p = self.decode(tensors(rows)).double().log_softmax(2)
        label = torch.from_numpy(labels)[:, None]
        right = torch.where(label >= 0, (log_p.argmax(2) == label).double(), torch.nan)
        entropy = -(log_p.exp() * log_p).sum(2)
        return {"top-1, %": (100 * right).numpy(), "entropy, nats": entropy.numpy()}

    def points(self, rows: Tensors) -> torch.Tensor:
        return self.decode(rows).double().softmax(2)

    def convex(self, points: torch.Tensor) -> torch.Tensor:
        """The negative entropy, nats."""
        return points.xlogy(points).sum(-1)

    def lost(self, value: torch.Tensor, rows: Arrays, settings: Settings) -> dict[str, np.ndarray]:
        """The KL divergence of int8 from float16, in nats."""
        if settings.logits_dtype == "float16":
            return {}
        stored = self.decode(tensors(rows))
        return {"KL of int8, nats": divergence(value.half().cpu(), stored).numpy()}


class EmbeddingTarget(OfHeads):
    """The teacher's features [B, H, D], behind the BNNeck: what re-identification compares."""

    name, length, dim = "embedding", "embedding_dim", "feature"
    output, text = "features", "the teacher's features behind the BNNeck, not normalised"

    def describe(self, rows: Arrays, labels: np.ndarray) -> dict[str, np.ndarray]:
        found = self.decode(tensors(rows)).double()
        return {"mean": found.mean(2).numpy(), "sd": found.std(2, correction=0).numpy()}

    def lost(self, value: torch.Tensor, rows: Arrays, settings: Settings) -> dict[str, np.ndarray]:
        """1 − the cosine of int8 and float16."""
        from torch.nn import functional

        if settings.embedding_dtype == "float16":
            return {}
        stored = self.decode(tensors(rows)).double()
        cosine = functional.cosine_similarity(value.half().cpu().double(), stored, dim=2)
        return {"1 − cosine of int8": (1 - cosine).sum(0).numpy()}


class ParsingTarget(Target):
    """What the mask shows on the student's map, [B, 4, h, w]: `views.parsing_target`.

    The same bytes live and cached. The attention is made of it in the loss, so that options of the
    attention need no other cache.
    """

    group, sees = "masks/parsing", ("mask",)
    depends = ("body_size", "map_size")

    def fields(self, settings: Settings) -> dict[str, Field]:
        from deskpro.cache.schema import Field

        height, width = settings.map_size
        text = f"how much of a position is {', '.join(REGIONS)}, 0..255 for 0..1"
        shape, dims = (len(REGIONS), height, width), ("region", "height", "width")
        bits = "whether a position has any head: a bit each, row by row, the highest bit first"
        return {
            "parsing": Field(shape, "uint8", dims, "1/255", text),
            "any_head": Field((-(-height * width // 8),), "uint8", ("byte",), "1", bits),
        }

    def compute(self, batch: Tensors, output: Output | None, settings: Settings) -> torch.Tensor:
        from deskpro.stages.data.views import parsing_target

        return parsing_target(batch["mask"], settings.map_size)

    def encode(self, value: torch.Tensor, settings: Settings) -> Arrays:
        import numpy as np

        found = value.cpu().numpy()
        bits = np.packbits(found[:, -1].reshape(len(found), -1), axis=1)
        return {"parsing": found[:, :-1], "any_head": bits}

    def decode(self, rows: Tensors) -> torch.Tensor:
        """uint8."""
        import torch

        regions = rows["parsing"]
        places = torch.arange(7, -1, -1, device=regions.device)
        bits = (rows["any_head"][..., None] >> places & 1).flatten(1).byte()
        any_head = bits[:, : regions.shape[2] * regions.shape[3]].view(-1, 1, *regions.shape[2:])
        return torch.cat([regions, any_head], 1)

    def differs(self, live: Arrays, stored: Arrays) -> np.ndarray:
        import numpy as np

        step = np.abs(live["parsing"].astype(float) - stored["parsing"].astype(float))
        other = (live["any_head"] != stored["any_head"]).any(axis=1, keepdims=True)
        return np.maximum(step.max(axis=(1, 2, 3))[:, None] / 255, other)

    def tolerance(self, settings: Settings) -> float:
        return 1.01 / 255

    def describe(self, rows: Arrays, labels: np.ndarray) -> dict[str, np.ndarray]:
        shares = 100 * rows["parsing"].mean(axis=(2, 3)) / 255
        return {f"{name}, %": shares[:, i : i + 1] for i, name in enumerate(REGIONS)}


TARGETS: dict[str, Target] = {
    "logits": LogitsTarget(),
    "parsing": ParsingTarget(),
    "embedding": EmbeddingTarget(),
}
"""To add a target: its class, and a row."""
OF_TEACHERS: dict[str, type[OfHeads]] = {"logits": LogitsTarget, "embedding": EmbeddingTarget}
"""Those that any teacher may give: the last part of its group → class."""


def all_targets(options: Options) -> dict[str, Target]:
    """Every target that a student of this recipe may learn from: `TARGETS`, and `NAME/embedding` of
    each other teacher; of one whose targets are imported `NAME/logits`, too."""
    others: dict[str, Target] = {}
    for name, teacher in options.teachers.items():
        others[f"{name}/embedding"] = EmbeddingTarget(name, teacher.input)
        if teacher.weights is None:
            others[f"{name}/logits"] = LogitsTarget(name, teacher.input)
    return {**TARGETS, **others}


def stored_targets(options: Options) -> dict[str, Target]:
    """The targets that `teacher-cache` computes and stores, in the order of `all_targets`.

    Those of a teacher without a file are imported.
    """
    wanted = {*options.cache.targets}
    wanted |= {f"{name}/embedding" for name, t in options.teachers.items() if t.weights is not None}
    return {name: target for name, target in all_targets(options).items() if name in wanted}


def needs_teacher(options: Options) -> bool:
    """Whether a target that is stored is of the recipe's own teacher; masks alone need none."""
    return any(target.teacher == OWN_TEACHER for target in stored_targets(options).values())


def is_imported(target: Target, options: Options) -> bool:
    """Whether it is of a teacher that no file is given of."""
    teacher = options.teachers.get(target.teacher)
    return teacher is not None and teacher.weights is None


def stored_fields(target: Target, settings: Settings) -> dict[str, Field]:
    """The arrays of a target's group: with the hash of the pixels that it is about."""
    from deskpro.cache.schema import Field

    pixels = Field((), "uint64", (), "1", f"hash of the pixels of {', '.join(target.sees)}")
    return target.fields(settings) | {"pixels": pixels}


def tensors(rows: Arrays) -> dict[str, torch.Tensor]:
    """A target's arrays as tensors, without the hash of pixels."""
    import torch

    return {name: torch.from_numpy(v) for name, v in rows.items() if name != "pixels"}


def divergence(logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(softmax(logits) ‖ softmax(other)) of [B, H, C] logits, in nats: float64 [H], a sum over
    the batch."""
    ours, theirs = logits.double().log_softmax(2), other.double().log_softmax(2)
    return (ours.exp() * (ours - theirs)).sum((0, 2))
