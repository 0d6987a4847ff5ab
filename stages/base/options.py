"""The options of every stage, as one frozen, validated tree. Torch-free.

Options keep the names of the published DeSKPro commands where they mean the same. `pipeline.config`
builds an `Options` from YAML and `--set`; stages read it and never change it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from deskpro.stages.base import training_options as training
from deskpro.stages.base.names import Name, require_groups
from deskpro.stages.base.prepare_options import Prepare
from deskpro.stages.base.section import (
    CONTENT,
    ROUNDING,
    FilePath,
    Fraction,
    InputPath,
    NoEffect,
    Positive,
    Precision,
    Processes,
    Section,
    Several,
    Size,
    Weight,
)

_PLACE = NoEffect("where work is done")


class Data(Section):
    """Where the images lie and how large the networks see them."""

    root: Annotated[FilePath, CONTENT] = Path("data/benchmark")
    """Folder in the prepared layout: {imgs,lr_face,hr_face,mask}/{bounding_box_train,query,…}; or
    of body images alone. Its dataset.csv, where it has one, says how it is read."""
    name: str | None = None
    """How names are read, in the place of `data_train`: a regular expression that the whole path of
    an image below its split's folder (train, query, gallery) must match. Group pid, and
    optionally camid, clothes, scene, tracklet, time."""
    test_root: InputPath = None
    """Folder whose query and gallery are evaluated; `root` where not given."""
    body_size: Size = (384, 128)
    """Height and width of body image and mask, pixels."""
    face_size: Size = (224, 224)
    """Height and width of LR and HR face, pixels."""
    workers: Annotated[int, Field(ge=0, le=256), NoEffect("values don't depend on workers")] = 2
    """Loader processes."""
    incomplete: Literal["refuse", "leave-out", "keep"] = "refuse"
    """Training samples with only some of their face files and mask, and identities with one
    image: an error; left out whole, as in the published DeSKPro; or used for whatever their files
    allow. A sample without any face file trains the body stream, unless this is leave-out."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the training identities that no network is trained on, chosen by a hash of their
    names. Their images give the mAP of `train_student.validate_every`, and fit
    `eval.face_weight`."""
    identities: Annotated[int, Field(ge=2, le=10**9)] | None = None
    """Train on so many of the other identities, chosen by the same hash; on all where not given."""
    unlabelled: InputPath = None
    """Folder of prepared images of people whom nobody named, `imgs/` and what targets are made of
    beside it. Their targets are cached; `train_student.unlabelled` of them are in each batch."""

    @field_validator("name")
    @classmethod
    def _known_groups(cls, name: str | None) -> str | None:
        example = r"(?P<pid>\d+)/c(?P<camid>\d)_.*"
        return None if name is None else require_groups(name, Name._fields[1:], example)

    @property
    def chosen(self) -> tuple[float, int | None]:
        """The arguments of `data.identities.Identities`."""
        return self.validation, self.identities


class Cache(Section):
    """How much of the teacher is cached, and how it is run for that."""

    views: Positive = 16
    """Views per sample."""
    plain_view: bool = True
    """View 0 is the plain image."""
    batch: Annotated[Positive, ROUNDING] = 64
    """Images per forward pass of the teacher."""
    block: Positive = 256
    """Samples per block, the unit that is written and resumed."""
    precision: Precision = "float32"
    """Autocast type of the teacher."""
    targets: Annotated[
        tuple[str, ...],
        Field(strict=False, min_length=1),
        NoEffect("a target is added beside others"),
    ] = ("logits", "parsing")
    """Targets that are stored; the student's losses say which it needs."""
    logits_dtype: Literal["float16", "int8"] = "float16"
    """How logits are stored; int8 has a scale for each head of each view, and halves them."""
    embedding_dtype: Literal["float16", "int8"] = "float16"
    """The same of embeddings."""
    mirror: bool = False
    """Average what a teacher gives for an image and for its mirror image."""
    checkpoints: Annotated[
        tuple[Annotated[FilePath, CONTENT], ...], Field(strict=False), CONTENT
    ] = ()
    """Further weights of the recipe's teacher: outputs are averaged over all of them."""
    reuse: Annotated[bool, NoEffect("equal chunks are kept or computed again")] = True
    """Take over blocks of an earlier cache that would come out the same."""
    memory: Annotated[Weight, NoEffect("where values are kept, not which")] = 2.0
    """GB in which a student may keep all targets, and eval all features, on the GPU or in RAM;
    beyond that they are read from their files."""


class Rerank(Section):
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017)."""

    enable: bool = False
    """Re-rank, too: numbers of their own, `transductive`, beside those of the plain ranking."""
    k1: Positive = 20
    """Neighbours that must be mutual."""
    k2: Positive = 6
    """Nearest images whose neighbourhoods are averaged."""
    weight: Fraction = 0.3
    """Of the old distance against the Jaccard distance."""


class Enrich(Section):
    """Gallery enrichment by faces (GEFF: Arkushin et al., WACV 2024)."""

    enable: bool = False
    """Rank the enriched gallery, too: numbers of their own, `transductive`."""
    far: Annotated[float, Field(gt=0, le=0.5)] = 1e-3
    """A query is enrolled under the gallery image of the most similar face, above the threshold
    that accepts this share of the pairs of two held-out people."""
    score: Annotated[float, Field(ge=-1, le=1)] | None = None
    """The least similarity of these faces, in the place of `far`."""


class Evaluation(Section):
    """How features are made and scored."""

    protocols: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Names of protocols, the first is the one that others read; the dataset's where not given."""
    face_weight: Fraction | Literal["fitted"] = 0.5
    """Of the face stream in `all`, the body stream has the rest; or `fitted`: as training found on
    held-out identities (`data.validation`)."""
    rerank: Rerank = Rerank()
    enrich: Enrich = Enrich()
    batch: Annotated[Positive, ROUNDING] = 64
    """Images per forward pass."""
    flip: bool = True
    """Add the feature of the mirrored image."""
    gallery_network: Literal["student", "teacher"] = "student"
    """teacher: also rank the teacher's features of the gallery's HR faces for the student's of the
    queries' LR faces, as the stream `face_hr`. For students that learned its embeddings."""
    unit: Literal["picture", "tracklet"] = "picture"
    """tracklet: the features of a tracklet's images are pooled, and tracklets are ranked, as the
    rules of ccvid and mevid say."""
    ranks: Annotated[
        tuple[Annotated[int, Field(ge=1, le=10**5)], ...], Field(strict=False, min_length=1)
    ] = (1, 5, 10, 20)
    """Ranks of the CMC that are printed and saved."""


class Launch(Section):
    """Where blocks of independent work run. No result depends on it at equal `threads`."""

    engine: Annotated[Literal["local", "ray"], _PLACE] = "local"
    """Processes of this machine, or workers of a Ray cluster."""
    workers: Annotated[Processes, _PLACE] = 1
    """Workers; a single local one is this process."""
    threads: Annotated[Processes | None, ROUNDING] = None
    """CPU threads of each worker; where not given, several share this machine's cores."""
    address: Annotated[Annotated[str, Field(pattern=r"^\S+:\d+$")] | None, _PLACE] = None
    """HOST:PORT of a Ray cluster; where not given, Ray starts on this machine."""
    gpus_per_worker: Annotated[Annotated[float, Field(gt=0, le=1)], _PLACE] = 1.0
    """Share of a GPU that a worker takes: small networks may share one, at 0.25 four of them."""
    max_restarts: Annotated[Annotated[int, Field(ge=0, le=1000)], _PLACE] = 3
    """How often Ray starts a worker that died again; a local one ends the command."""


class Options(Section):
    """All options of a recipe."""

    tag: Annotated[str, Field(pattern=r"^[\w.+-]*$"), NoEffect("names the run folder")] = ""
    """Appended to the name of the run folder."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$"), ROUNDING] = "auto"
    """auto, cpu, cuda or cuda:N."""
    data_train: str = "benchmark"
    """Name of the training set, which decides how its file names are read."""
    data_test: str | None = None
    """Name of the evaluated set; `data_train` where not given."""
    pre_train: InputPath = None
    """Teacher weights from elsewhere; `train-teacher` is then not needed."""
    forward_mode: Literal["face", "body", "all"] = "all"
    """Streams of the student."""
    batchid: Several = 5
    """P: identities in a batch of the student."""
    batchimage: Several = 6
    """K: images of each identity in a batch of the student."""
    data: Data = Data()
    prepare: Prepare | None = None
    """How `data.root` is made from a raw dataset; where not given, it is there."""
    teacher: training.Network = training.Network()
    student: training.Network = training.Network()
    train_teacher: training.TeacherTraining = training.TeacherTraining()
    train_student: training.StudentTraining = training.StudentTraining()
    loss: training.StudentLoss = training.StudentLoss()
    kd_loss: training.KDLoss = training.KDLoss()
    mse: training.MSE = training.MSE()
    embedding: training.Embedding = training.Embedding()
    teachers: dict[str, training.OtherTeacher] = Field(default_factory=dict)
    """Teachers beside the recipe's own, by name."""
    views: training.Views = training.Views()
    cache: Cache = Cache()
    checkpoints: training.Checkpointing = training.Checkpointing()
    tensorboard: training.TensorBoard = training.TensorBoard()
    eval: Evaluation = Evaluation()
    launch: Launch = Launch()

    @model_validator(mode="after")
    def _prepared_apart(self) -> Options:
        """What preparation writes must not lie among what it reads."""
        if self.prepare is None:
            return self
        raw, made = self.prepare.root, self.data.root
        kinds = [made / kind for kind in ("imgs", "labels", "mask", "lr_face", "hr_face")]
        parsing, restoration = self.prepare.parsing, self.prepare.restoration
        read = {"prepare.root": (raw, [made])}
        if parsing.method == "labels":
            read["prepare.parsing.labels"] = (parsing.labels, kinds)
        if restoration.method == "pictures":
            read["prepare.restoration.pictures"] = (restoration.pictures, kinds)
        for name, (path, written) in read.items():
            if path is None:
                continue
            if _within(made, path) or any(_within(path, folder) for folder in written):
                raise ValueError(
                    f"{name} {path} and data.root {made}: one lies in the other; set one of them "
                    "to a folder of its own"
                )
            counted = raw if self.train_set == "own" and name != "prepare.root" else None
            if counted is not None and _within(path, counted):
                raise ValueError(
                    f"{name} {path}: lies in prepare.root {raw}, where every image counts as a "
                    "body image; move it out"
                )
        return self

    @field_validator("data_train", "data_test")
    @classmethod
    def _known_dataset(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None:
            _require_known(name, str(info.field_name), info)
        return name

    @field_validator("teachers")
    @classmethod
    def _proper_names(cls, teachers: dict[str, Any]) -> dict[str, Any]:
        for name in teachers:
            training.require_teacher_name(name)
        return teachers

    @field_validator("cache")
    @classmethod
    def _known_targets(cls, cache: Cache, info: ValidationInfo) -> Cache:
        for name in cache.targets:
            _require_known(name, "cache.targets", info, prefix=f"targets: {name} ")
        return cache

    @field_validator("eval")
    @classmethod
    def _known_protocols(cls, evaluation: Evaluation, info: ValidationInfo) -> Evaluation:
        for name in evaluation.protocols or ():
            _require_known(name, "eval.protocols", info, prefix=f"protocols: {name} ")
        return evaluation

    @property
    def streams(self) -> tuple[str, ...]:
        """The student's streams, in the order of its heads."""
        return ("face", "body") if self.forward_mode == "all" else (self.forward_mode,)

    def recipe(self, network: Literal["teacher", "student"]) -> training.Recipe:
        """How a network is trained."""
        teacher, student = self.train_teacher, self.train_student
        if network == "teacher":
            batch = teacher.batchid, teacher.batchimage
            return training.Recipe(teacher, teacher, teacher.views, *batch, "train_teacher.")
        batch = self.batchid, self.batchimage
        shared = "unlabelled", "ema", "sync_batch_norm", "gather_triplets"
        across = {name: getattr(student, name) for name in shared}
        return training.Recipe(student, self, self.views, *batch, **across)

    @property
    def train_set(self) -> str:
        """How the names of `data.root` are read: the name of a layout, or a rule of its own."""
        return self.data.name or self.data_train

    @property
    def test_set(self) -> str:
        """How the names of `test_root` are read."""
        return self.data_test or self.train_set

    @property
    def test_root(self) -> Path:
        return self.data.test_root or self.data.root


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _require_known(name: str, option: str, info: ValidationInfo, prefix: str = "") -> None:
    """A name must be in a registry of a later room, which whoever validates gives as context."""
    known = (info.context or {}).get(option)
    if known and name not in known:
        raise ValueError(f"{prefix}must be one of {', '.join(sorted(known))}")
