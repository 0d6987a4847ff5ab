"""The options of networks and of their training. Torch-free."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from deskpro.stages.base.section import (
    SHOWN,
    Count,
    Fraction,
    InputPath,
    NoEffect,
    Positive,
    Precision,
    Scale,
    Section,
    Several,
    Weight,
)

WIDTHS = (0.25, 0.5, 0.75, 1.0)
"""Channel multipliers for which OSNet is defined (Zhou et al., ICCV 2019)."""
BACKBONE_NAMES = ("osnet",)
"""The rows of `models.backbones.BACKBONES` that are whole names; `timm:NAME` is another."""
_OF_TIMM = "timm:NAME"


class Network(Section):
    """One LMBN network (teacher) or one per stream (student)."""

    backbone: Annotated[str, Field(json_schema_extra={"enum": [*BACKBONE_NAMES, _OF_TIMM]})] = (
        "osnet"
    )
    """What the network stands on: OSNet; or a network of timm, such as `timm:resnet50` or
    `timm:vit_small_patch16_224`, with the extra `backbones`."""
    heads: Literal["lmbn", "global"] = "lmbn"
    """The seven heads of LMBN's three branches; or one: global average pooling, BNNeck,
    classifier."""
    width: Annotated[float, Field(json_schema_extra={"enum": [*WIDTHS]})] = 1.0
    """OSNet's channel multiplier."""
    block: Literal["osnet", "published"] = "osnet"
    """The OSNet block's gated sum: streams a+b+c+d, or a+a+c+d as in the published DeSKPro."""
    feature_dim: Annotated[int, Field(ge=8, le=2**16)] = 512
    """Length of each head's feature."""
    init: Literal["he", "published"] = "he"
    """Initial weights behind the backbone: He's, as the backbone's; or those of the published
    DeSKPro, √6 smaller in the heads, √6 larger in the attention."""
    pre_train: InputPath = None
    """Weights that training starts from: OSNet's on ImageNet, a local file of timm's weights for a
    backbone of timm, or an earlier network; none: random ones."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What the network's class takes."""
        return self.model_dump(exclude={"pre_train"})

    @field_validator("backbone", "width")
    @classmethod
    def _known(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name == "backbone":
            known: tuple[object, ...] = (*BACKBONE_NAMES, _OF_TIMM)
            of_timm = re.fullmatch(r"timm:[\w.]+", str(value)) is not None
            fits = of_timm or value in BACKBONE_NAMES
        else:
            known, fits = WIDTHS, value in WIDTHS
        if not fits:
            raise ValueError(f"must be one of {', '.join(map(str, known))}")
        return value

    @model_validator(mode="after")
    def _osnets(self) -> Self:
        for name in ("width", "block"):
            value, default = getattr(self, name), type(self).model_fields[name].default
            if self.backbone.startswith("timm:") and value != default:
                raise ValueError(
                    f"{name} {value} is an option of OSNet: with backbone {self.backbone} it must "
                    f"be {default}"
                )
        return self


class Loss(Section):
    """Weights of the identity losses (published as '1*CrossEntropy+1*Triplet')."""

    cross_entropy: Weight = 1.0
    """Weight of the cross-entropy of the identities."""
    triplet: Weight = 1.0
    """Weight of the triplet loss with hard mining."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the cross-entropy's target that is spread over all identities."""
    margin: Weight = 0.7
    """Of the triplet loss: how much farther the hardest negative must be than the hardest
    positive."""


class StudentLoss(Loss):
    """The same of the student, whose streams may differ."""

    triplet_body: Weight | None = None
    """Weight of the body stream's triplet loss; that of `triplet` where not given."""


class Views(Section):
    """What an augmented view may be; probabilities, and fractions of the image."""

    seed: Count = 0
    """Decides, with sample and view, what a view is."""
    flip: Fraction = 0.5
    """Probability of the mirror image."""
    crop: Fraction = 0.5
    """Probability of enlarging by `enlarge` and cropping back at a random place."""
    enlarge: Annotated[float, Field(ge=1, le=2)] = 1.05
    """Factor by which an image is enlarged before it is cropped back."""
    erase: Fraction = 0.5
    """Probability of erasing a rectangle of the images (never of the mask)."""
    erase_area: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.02, 0.4)
    """Least and largest area of the rectangle, as a share of the image."""
    erase_aspect: Annotated[tuple[Scale, Scale], Field(strict=False)] = (0.3, 1 / 0.3)
    """Least and largest height of the rectangle over its width."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Views:
        for name in ("erase_area", "erase_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} ({low}, {high}) must ascend")
        return self


class Training(Section):
    """How long and how fast a network is trained, by Adam."""

    seed: Count = 0
    """Initial weights, batches and the order of views."""
    epochs: Positive = 140
    """Passes over the training samples."""
    schedule: Literal["step", "epoch"] = "step"
    """When the learning rate changes: each step, to 1 % of the peak in the last one; or each epoch,
    to 0.1 %, as in the published DeSKPro."""
    warmup_epochs: Weight = 10
    """The learning rate grows so long, linearly, before it falls as a cosine; parts of an epoch
    count where the schedule is by step."""
    max_steps: Positive | None = None
    """Stop after so many steps; the learning-rate schedule stays that of `epochs`."""
    lr: Scale | None = None
    """Peak learning rate; 6e-4·√(batchid·batchimage/20), as published, where not given."""
    weight_decay: Weight = 5e-4
    """Of Adam: L2 penalty that is added to the gradient."""
    precision: Precision = "float32"
    """Autocast type of the forward pass; weights and losses stay float32."""
    channels_last: bool = True
    """Keep activations channels-last in memory: faster wherever measured, other rounding."""
    tf32: bool = False
    """Let a GPU round the factors of float32 products to 10 bits: faster."""
    compile: bool = False
    """Compile the network (torch.compile): slow to start, faster steps on a GPU, other rounding."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Training:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}"
            )
        if self.schedule == "epoch" and self.warmup_epochs % 1:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} must be a whole number where the schedule "
                "is by epoch"
            )
        return self


class TeacherTraining(Training):
    """The teacher's own options: those of the student's training do not apply to it."""

    batchid: Several = 5
    """P: identities in a batch."""
    batchimage: Several = 6
    """K: images of each identity in a batch."""
    loss: Loss = Loss()
    views: Views = Views()


class StudentTraining(Training):
    """The student's own options: what it gets from the cache, and how several processes train."""

    views: Positive | None = None
    """Use only the first so many views of the cache; all where not given."""
    fresh_views: bool = False
    """See a new view each epoch, as without a cache. Cached targets are then those of view 0, and
    don't match what is seen: the classic mistake of offline distillation."""
    live_teacher: bool = False
    """Run the teacher on each view, as without a cache: needs HR faces and masks."""
    unlabelled: Annotated[int, Field(ge=0, le=10**4)] = 0
    """Images without labels (`data.unlabelled`) in each batch, beside its P×K."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of an exponential moving average of the weights, which is what is saved; 0:
    the weights of the last step are."""
    validate_every: Annotated[Positive, SHOWN] = 5
    """Epochs between two measurements of mAP on held-out identities (`data.validation`)."""
    sync_batch_norm: bool = False
    """Of several processes: batch statistics of the whole batch instead of each process's part."""
    gather_triplets: bool = False
    """Of several processes: hardest pairs of the whole batch instead of each process's part."""


class KDLoss(Section):
    """Knowledge distillation from the teacher's cached logits."""

    enable: bool = True
    """Learn from the logits."""
    T: Scale = 5.0
    """Temperature."""
    alpha: Fraction = 0.7
    """Weight of distillation against the cross-entropy of the face heads, which gets 1−alpha."""
    zscore: bool = False
    """Standardise both networks' logits over the classes before the temperature, by sample and
    head: the size of logits is then not learned. Choose T and alpha anew."""
    class_means: bool = False
    """Replace the logits of each view by their mean over all views of the identity. A control: they
    then say nothing that a table by class would not."""


class MSE(Section):
    """Supervision of the spatial attention by the cached parsing masks."""

    mse_weight: Weight = 7.0
    """Weight of the attention loss; 0 switches it off."""
    floor: Fraction = 0.1
    """What the attention should be where there is no head, in steps of 1/255."""
    spatial_attn_lr: Weight = 1.0
    """Multiplier on the learning rate of the attention's own parameters."""
    alone_steps: Count = 0
    """Steps at first in which the body stream learns its attention alone, before it can learn
    clothes. Without effect where the attention loss is off."""


class Embedding(Section):
    """Learning from the teacher's cached embeddings."""

    weight: Weight = 0.0
    """Weight of 1 − the cosine of the face stream's features and the teacher's, a sum over heads; 0
    switches it off."""


class OtherTeacher(Section):
    """A teacher beside the recipe's own, who may know other people: its embeddings are learned
    from, through a projection that only training has."""

    weights: InputPath = None
    """Its file, a teacher or student of this project, or timm's of `backbone`; none: its targets
    are imported (`deskpro cache import`)."""
    backbone: Annotated[str, Field(pattern=r"^timm:[\w.]+$")] | None = None
    """timm:NAME where the file is a state dict of that network of timm: its pooled features are the
    embedding. Not given for a file of this project."""
    input: Literal["hr_face", "lr_face", "imgs"] = "hr_face"
    """The images that it sees."""
    stream: Literal["face", "body"] | None = None
    """The student's stream that learns from it; where not given, body for one that sees imgs, else
    face."""
    weight: Weight = 10.0
    """Weight of 1 − the cosine of the stream's features, projected, and its embedding; 0 switches
    it off."""

    kd: Weight = 0.0
    """Weight of the distillation of its imported logits, as `kd_loss.T` and `kd_loss.zscore` say; 0
    switches it off."""

    @model_validator(mode="after")
    def _logits_are_imported(self) -> OtherTeacher:
        if self.kd and self.weights is not None:
            raise ValueError(
                f"kd {self.kd:g}: only imported logits can be distilled, as the classes of weights "
                "may be other people; leave weights out, or set kd to 0"
            )
        return self

    @property
    def learner(self) -> str:
        """The stream that learns from it."""
        return self.stream or ("body" if self.input == "imgs" else "face")


OWN_TEACHER = "default"
"""The name of the recipe's own teacher in the cache."""
_LONGEST = 64
"""Characters of a name."""


def require_teacher_name(name: str) -> str:
    """The name of another teacher; ValueError where it can't be one."""
    if name == OWN_TEACHER:
        raise ValueError(f"{name!r} is no name of another teacher: it is the cache's own teacher")
    if len(name) > _LONGEST:
        raise ValueError(f"{name[:9]}… is no name of another teacher: too long, above {_LONGEST}")
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII):
        raise ValueError(
            f"{name!r} is no name of another teacher: must be of letters, digits, _ and -, and "
            "begin with a letter or digit"
        )
    return name


class Checkpointing(Section):
    """What is kept of a training under way. No result depends on it."""

    every: Annotated[Positive, NoEffect("training resumes exactly")] = 1000
    """Steps between two checkpoints; every epoch ends with one in any case."""
    keep: Annotated[Positive, NoEffect("training resumes exactly")] = 2
    """The last so many are kept until training is done."""
    other_processes: Annotated[bool, NoEffect("only whether to go on")] = False
    """Go on from a checkpoint of another number of processes. The weights are then those of neither
    number, as batch norm and hardest triplets are of a process's share of the batch."""


class TensorBoard(Section):
    """What is shown of a training under way. No result depends on it."""

    enable: Annotated[bool, SHOWN] = True
    """Write event files for TensorBoard."""
    every: Annotated[Positive, SHOWN] = 20
    """Steps between two points of a curve."""
    overlays: Annotated[Positive, SHOWN] = 5
    """Epochs between two images of the attention, the student's beside its target."""


class Recipe(NamedTuple):
    """How one network is trained, wherever the options of it stand."""

    training: Training
    losses: Section
    """What has the options of its losses, such as `loss.margin`."""
    views: Views
    batchid: int
    """P: identities in a batch."""
    batchimage: int
    """K: images of each identity in a batch."""
    prefix: str = ""
    """What precedes batchid and batchimage in `--set`."""
    unlabelled: int = 0
    """Images without labels in a batch."""
    ema: float = 0.0
    sync_batch_norm: bool = False
    gather_triplets: bool = False
