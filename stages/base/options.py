"""The options of every stage, as one frozen, validated tree. Torch-free.

Options keep the names of the published DeSKPro commands where they mean the same. `pipeline.config`
builds an `Options` from YAML and `--set`; stages read it and never change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from deskpro.stages.base.prepare_options import Prepare
from deskpro.stages.base.section import (
    FilePath,
    Fraction,
    NoEffect,
    Positive,
    Section,
    Size,
    Weight,
)

WIDTHS = (0.25, 0.5, 0.75, 1.0)
"""Channel multipliers for which OSNet is defined (Zhou et al., ICCV 2019)."""


def _within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it."""
    path, folder = path.resolve(), folder.resolve()
    return path == folder or folder in path.parents


def _known(info: ValidationInfo, registry: str) -> tuple[str, ...]:
    """The names of a registry above this module, which whoever validates gives as context."""
    return tuple((info.context or {}).get(registry, ()))


class Data(Section):
    """Where the images lie and how large the networks see them."""

    root: Annotated[FilePath, NoEffect("contents count, not places")] = Path("data/benchmark")
    """Folder in the prepared layout: {imgs,lr_face,hr_face,mask}/{bounding_box_train,query,…}."""
    test_root: Annotated[FilePath | None, NoEffect("contents count, not places")] = None
    """Folder whose query and gallery are evaluated; `root` where not given."""
    body_size: Size = (384, 128)
    """Height and width of body image and mask, pixels."""
    face_size: Size = (224, 224)
    """Height and width of LR and HR face, pixels."""
    workers: Annotated[int, Field(ge=0), NoEffect("values don't depend on workers")] = 2
    """Loader processes."""
    incomplete: Literal["refuse", "leave-out"] = "refuse"
    """Training samples with only some of their face files and mask, and identities with one
    image: an error, or left out and listed."""


BACKBONE_NAMES = ("osnet",)
"""The rows of `models.backbones.BACKBONES`."""


class Network(Section):
    """One LMBN network (teacher) or one per stream (student)."""

    backbone: str = "osnet"
    """What the network stands on: a name of BACKBONE_NAMES."""

    width: float = 1.0
    """OSNet's channel multiplier."""
    block: Literal["osnet", "published"] = "osnet"
    """The OSNet block's gated sum: streams a+b+c+d, or a+a+c+d as in the published DeSKPro."""
    feature_dim: Annotated[int, Field(ge=8)] = 512
    """Length of each head's feature."""
    pre_train: Annotated[FilePath | None, NoEffect("contents count, not places")] = None
    """Weights that training starts from: OSNet's on ImageNet, or an earlier network."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What the network's class takes."""
        return self.model_dump(exclude={"pre_train"})

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, backbone: str) -> str:
        if backbone not in BACKBONE_NAMES:
            raise ValueError(f"must be one of {', '.join(BACKBONE_NAMES)}")
        return backbone

    @field_validator("width")
    @classmethod
    def _known_width(cls, width: float) -> float:
        if width not in WIDTHS:
            raise ValueError(f"must be one of {', '.join(map(str, WIDTHS))}")
        return width


class Loss(Section):
    """Weights of the identity losses (published as '1*CrossEntropy+1*Triplet')."""

    cross_entropy: Weight = 1.0
    triplet: Weight = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    margin: Weight = 0.7


class Views(Section):
    """What an augmented view may be; probabilities, and fractions of the image."""

    seed: Annotated[int, Field(ge=0)] = 0
    flip: Fraction = 0.5
    crop: Fraction = 0.5
    """Probability of enlarging by `enlarge` and cropping back at a random place."""
    enlarge: Annotated[float, Field(ge=1, le=2)] = 1.05
    erase: Fraction = 0.5
    """Probability of erasing a rectangle of the photographs (never of the mask)."""
    erase_area: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.02, 0.4)
    erase_aspect: Annotated[
        tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], Field(strict=False)
    ] = (0.3, 1 / 0.3)

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Views:
        for name in ("erase_area", "erase_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} ({low}, {high}) must ascend")
        return self


class Training(Section):
    """How long and how fast a network is trained. Adam; warm-up, then cosine (network.md)."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Initial weights, batches and the order of views."""
    epochs: Positive = 140
    warmup_epochs: Annotated[int, Field(ge=0)] = 10
    max_steps: Positive | None = None
    """Stop after so many steps; the learning-rate schedule stays that of `epochs`."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; 6e-4·√(batchid·batchimage/20) where not given (network.md)."""
    weight_decay: Weight = 5e-4
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
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
                f"warmup_epochs {self.warmup_epochs} must be less than epochs {self.epochs}"
            )
        return self


class TeacherTraining(Training):
    """A teacher is trained for itself: what the student's recipe says doesn't touch it."""

    batchid: Annotated[int, Field(ge=2)] = 5
    """P: identities in a batch."""
    batchimage: Annotated[int, Field(ge=2)] = 6
    """K: images of each identity in a batch."""
    loss: Loss = Loss()
    views: Views = Views()


class StudentTraining(Training):
    """What the student sees and hears of the cache. All but the defaults is for studies."""

    views: Positive | None = None
    """Use only the first so many views of the cache; all where not given."""
    fresh_views: bool = False
    """See a new view each epoch, as without a cache. Cached targets are then those of view 0, and
    don't match what is seen: the classic mistake of offline distillation."""
    live_teacher: bool = False
    """Ask the teacher itself about each view, as without a cache: needs HR faces and masks."""
    sync_batch_norm: bool = False
    """Of several processes: batch statistics of the whole batch instead of each process's part."""
    gather_triplets: bool = False
    """Of several processes: hardest pairs of the whole batch instead of each process's part."""


class KDLoss(Section):
    """Knowledge distillation from the teacher's cached logits."""

    enable: bool = True
    T: Annotated[float, Field(gt=0)] = 5.0
    """Temperature."""
    alpha: Fraction = 0.7
    """Weight of distillation against the cross-entropy of the face heads, which gets 1−alpha."""


class MSE(Section):
    """Supervision of the spatial attention by the cached attention."""

    mse_weight: Weight = 7.0
    spatial_attn_lr: Weight = 1.0
    """Multiplier on the learning rate of the attention's own parameters."""


class Cache(Section):
    """How much of the teacher is cached, and how it is run for that."""

    views: Positive = 16
    """Views per sample."""
    plain_view: bool = True
    """View 0 is the plain image."""
    batch: Annotated[Positive, NoEffect("values differ by rounding alone")] = 64
    """Images per forward pass of the teacher."""
    block: Positive = 256
    """Samples per block, the unit that is written and resumed."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast type of the teacher."""
    logits_dtype: Literal["float16", "int8"] = "float16"
    """How logits are stored; int8 has a scale for each head of each view, and halves the cache."""
    reuse: Annotated[bool, NoEffect("equal chunks are kept or computed again")] = True
    """Take over blocks of an earlier cache that would come out the same."""
    memory: Annotated[Weight, NoEffect("where values are kept, not which")] = 2.0
    """GB in which a student may hold all targets, and eval all features, on the GPU or in RAM;
    beyond that they are read from their files."""


class Checkpointing(Section):
    """What is kept of a training under way. No result depends on it."""

    every: Annotated[Positive, NoEffect("training resumes exactly")] = 1000
    """Steps between two checkpoints; every epoch ends with one in any case."""
    keep: Annotated[Positive, NoEffect("training resumes exactly")] = 2
    """The last so many are kept until training is done."""


class TensorBoard(Section):
    """What is shown of a training under way. No result depends on it."""

    enable: Annotated[bool, NoEffect("only shown")] = True
    every: Annotated[Positive, NoEffect("only shown")] = 20
    """Steps between two points of a curve."""
    overlays: Annotated[Positive, NoEffect("only shown")] = 5
    """Epochs between two images of the attention, the student's beside its target."""


class Rerank(Section):
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017)."""

    enable: bool = False
    k1: Positive = 20
    """Neighbours that must be mutual."""
    k2: Positive = 6
    """Nearest images whose neighbourhoods are averaged."""
    weight: Fraction = 0.3
    """Of the old distance against the Jaccard distance."""


class Evaluation(Section):
    """How features are made and scored."""

    protocols: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Names of protocols, the first is the one that others read; the dataset's where not given."""
    face_weight: Fraction = 0.5
    """Of the face stream in `all`; the body stream has the rest."""
    rerank: Rerank = Rerank()
    batch: Annotated[Positive, NoEffect("values differ by rounding alone")] = 64
    flip: bool = True
    """Add the feature of the mirrored image."""
    ranks: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] = (1, 5, 10, 20)
    """Ranks of the CMC that are printed and saved."""


class Launch(Section):
    """Where blocks of independent work run. No result depends on it at equal `threads`."""

    engine: Annotated[Literal["local", "ray"], NoEffect("where work is done")] = "local"
    """Processes of this machine, or workers of a Ray cluster."""
    workers: Annotated[Positive, NoEffect("where work is done")] = 1
    """Workers; a single local one is this process."""
    threads: Annotated[Positive | None, NoEffect("values differ by rounding alone")] = None
    """CPU threads of each worker; where not given, several share this machine's cores."""
    address: Annotated[
        Annotated[str, Field(pattern=r"^\S+:\d+$")] | None, NoEffect("where work is done")
    ] = None
    """HOST:PORT of a Ray cluster; where not given, Ray starts on this machine."""


class Recipe(NamedTuple):
    """How one network is trained, wherever the options say it."""

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
    sync_batch_norm: bool = False
    gather_triplets: bool = False


class Options(Section):
    """Everything that a recipe says."""

    tag: Annotated[str, Field(pattern=r"^[\w.+-]*$"), NoEffect("names the run folder")] = ""
    """Appended to the name of the run folder."""
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$"), NoEffect("values differ by rounding alone")
    ] = "auto"
    """auto, cpu, cuda or cuda:N."""
    data_train: str = "benchmark"
    """Name of the training set: says how its file names are read."""
    data_test: str | None = None
    """Name of the evaluated set; `data_train` where not given."""
    pre_train: Annotated[FilePath | None, NoEffect("contents count, not places")] = None
    """Teacher weights from elsewhere; `train-teacher` is then not needed."""
    forward_mode: Literal["face", "body", "all"] = "all"
    """Streams of the student."""
    batchid: Annotated[int, Field(ge=2)] = 5
    """P: identities in a batch of the student."""
    batchimage: Annotated[int, Field(ge=2)] = 6
    """K: images of each identity in a batch of the student."""
    data: Data = Data()
    prepare: Prepare | None = None
    """How `data.root` is made from a raw dataset; where not given, it is there."""
    teacher: Network = Network()
    student: Network = Network()
    train_teacher: TeacherTraining = TeacherTraining()
    train_student: StudentTraining = StudentTraining()
    loss: Loss = Loss()
    kd_loss: KDLoss = KDLoss()
    mse: MSE = MSE()
    views: Views = Views()
    cache: Cache = Cache()
    checkpoints: Checkpointing = Checkpointing()
    tensorboard: TensorBoard = TensorBoard()
    eval: Evaluation = Evaluation()
    launch: Launch = Launch()

    @model_validator(mode="after")
    def _prepared_apart(self) -> Options:
        """What is made must not lie among what it is made of."""
        if self.prepare is None:
            return self
        raw, made = self.prepare.root, self.data.root
        if raw is not None and (_within(raw, made) or _within(made, raw)):
            raise ValueError(
                f"prepare.root {raw} and data.root {made}: one lies in the other; set data.root to "
                "a folder of its own, where the prepared set is to be made"
            )
        parsing, restoration = self.prepare.parsing, self.prepare.restoration
        read = {
            "prepare.parsing.labels": parsing.labels if parsing.method == "labels" else None,
            "prepare.restoration.pictures": (
                restoration.pictures if restoration.method == "pictures" else None
            ),
        }
        kinds = ("imgs", "labels", "mask", "lr_face", "hr_face")
        for name, path in read.items():
            if path is None:
                continue
            if _within(made, path) or any(_within(path, made / kind) for kind in kinds):
                raise ValueError(
                    f"{name} {path}: is mixed with what is made in data.root {made}; set one of "
                    "them to a folder of its own"
                )
            if self.data_train == "own" and raw is not None and _within(path, raw):
                raise ValueError(
                    f"{name} {path}: lies in prepare.root {raw}, where every image is taken for "
                    "a photograph; move it out"
                )
        return self

    @field_validator("data_train", "data_test")
    @classmethod
    def _known_dataset(cls, name: str | None, info: ValidationInfo) -> str | None:
        known = _known(info, "datasets")
        if name is not None and known and name not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return name

    @field_validator("eval")
    @classmethod
    def _known_protocols(cls, evaluation: Evaluation, info: ValidationInfo) -> Evaluation:
        known = _known(info, "protocols")
        for name in evaluation.protocols or ():
            if known and name not in known:
                raise ValueError(f"protocols: {name} must be one of {', '.join(sorted(known))}")
        return evaluation

    @property
    def streams(self) -> tuple[str, ...]:
        """The student's streams, in the order of its heads."""
        return ("face", "body") if self.forward_mode == "all" else (self.forward_mode,)

    def recipe(self, network: Literal["teacher", "student"]) -> Recipe:
        """How a network is trained."""
        if network == "teacher":
            own = self.train_teacher
            return Recipe(own, own, own.views, own.batchid, own.batchimage, "train_teacher.")
        training = self.train_student
        return Recipe(
            training,
            self,
            self.views,
            self.batchid,
            self.batchimage,
            sync_batch_norm=training.sync_batch_norm,
            gather_triplets=training.gather_triplets,
        )

    @property
    def test_root(self) -> Path:
        return self.data.test_root or self.data.root


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        kinds = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
        below = [kind for kind in kinds if issubclass(kind, BaseModel)]
        if below:
            yield from _leaves(below[0], f"{prefix}{name}.")
        else:
            yield prefix + name, field


LEAVES = dict(_leaves(Options))
"""Every option as a dotted name, with its pydantic field."""
WITHOUT_EFFECT = {
    name: mark.why
    for name, field in LEAVES.items()
    for mark in field.metadata
    if isinstance(mark, NoEffect)
}
"""Options on which no output depends → why."""


def relevant(options: Options, params: Iterable[str]) -> dict[str, Any]:
    """The options that `params` name and that have an effect, by dotted name, as JSON has them.

    A section stands for all of its options.
    """
    flat = flatten(options.model_dump(mode="json"))
    return {
        name: value
        for name, value in flat.items()
        if name not in WITHOUT_EFFECT
        and any(name == param or name.startswith(f"{param}.") for param in params)
    }
