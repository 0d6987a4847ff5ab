"""The studies of `ablation`: which variants of a recipe are compared, and which streams differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from deskpro.pipeline import config
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import FACE_HR
from deskpro.stages.base.options import Options
from deskpro.stages.base.params import WITHOUT_EFFECT, flatten, names_option
from deskpro.stages.evaluation.study import targets_off
from deskpro.stages.losses.terms import TERMS, params

if TYPE_CHECKING:
    import pandas as pd

Changes = Mapping[str, object]
"""Option → its value in a variant."""
Variants = Mapping[str, Changes]
"""Name of each variant → what it changes in the recipe."""
Network = Literal["teacher", "student"]
NETWORKS: tuple[Network, ...] = get_args(Network)


class Curve(NamedTuple):
    """How the variants of a study are drawn: the quantity of the axis, and where each one is."""

    label: str
    places: Mapping[str, tuple[str, float]]
    """Variant → the name of its line, and its value on the axis."""


class Axis(NamedTuple):
    """What the levels of a study differ in."""

    levels: Callable[[Options], Variants]
    """Ending of a variant's name → what that level changes in the recipe."""
    label: str = ""
    values: Callable[[Options], Mapping[str, float]] | None = None
    """Ending of a variant's name → its value on the axis of a chart; None: there is no chart."""


class Study(NamedTuple):
    """Variants of a recipe that are compared."""

    lines: Callable[[Options], Variants]
    """What is trained, at each level of the axis; every recipe has lines of the same names."""
    base: str
    """The line from which differences are counted, at the same level."""
    help: str
    axis: Axis | None = None
    parts: tuple[str, ...] = ("kd_loss.enable", "mse.mse_weight", "forward_mode")
    """What of the recipe must be on, since variants switch it off."""
    views: int = 1
    """The most views of a sample that a variant trains on."""

    def variants(self, options: Options) -> Variants:
        """The variants of a recipe: each line at each level."""
        if self.axis is None:
            return self.lines(options)
        return {
            line + level: {**changes, **own}
            for level, changes in self.axis.levels(options).items()
            for line, own in self.lines(config.override(options, changes)).items()
        }

    def base_of(self, variant: str) -> str:
        """The variant from which the difference of another is counted."""
        if self.axis is None:
            return self.base
        lines = (line for line in self.lines(Options()) if variant.startswith(line))
        return self.base + variant.removeprefix(max(lines, key=len, default=""))

    def curve(self, options: Options) -> Curve | None:
        """How the variants of a recipe are drawn; None where they are not."""
        if self.axis is None or self.axis.values is None:
            return None
        values, lines = self.axis.values(options), self.lines(options)
        places = {line + level: (line, at) for level, at in values.items() for line in lines}
        return Curve(self.axis.label, places)


PLAIN, LONGER = "plain", "plain, 2× steps"
"""Without targets, at the length of the recipe and at twice that."""
_NO_KD: Changes = {"kd_loss.enable": False}
_EMBEDDING: Changes = {"embedding.weight": 10.0}
_UNLABELLED = {"loss.cross_entropy": 0.0, "loss.triplet": 0.0, "loss.triplet_body": 0.0}
_LENGTHS = {" ×½": 0.5, "": 1.0, " ×2": 2.0, " ×4": 4.0}
_SHARES = (1 / 8, 1 / 4, 1 / 2)


def _parts(options: Options) -> Variants:
    plain, kd, attention = (targets_off(options, *kept) for kept in ([], ["kd"], ["attention"]))
    return {
        PLAIN: plain,
        "kd": kd,
        "kd-class": {"kd_loss.class_means": True, **kd},
        "attention": attention,
        "both": {},
        LONGER: {**plain, **_longer(options, 2)},
    }


def _plain_and_both(options: Options) -> Variants:
    return {PLAIN: targets_off(options), "both": {}}


def _targets(options: Options) -> Variants:
    """What of the recipe's own teacher the face stream learns."""
    plain, kd = (targets_off(options, "attention", *kept) for kept in ([], ["kd"]))
    return {
        PLAIN: plain,
        "kd": kd,
        "kd-class": {"kd_loss.class_means": True, **kd},
        "embedding": {**plain, **_EMBEDDING},
        "kd + embedding": {**kd, **_EMBEDDING},
        "embedding, no labels": {**plain, **_EMBEDDING, **_UNLABELLED},
    }


def _others(options: Options) -> Variants:
    """Without targets, also with as many images in each of as many steps; with those of other
    teachers; and with images without labels, too."""
    few: Changes = {**_NO_KD, "train_student.unlabelled": 0}
    weights = [f"teachers.{name}.{of}" for name in options.teachers for of in ("weight", "kd")]
    plain = {**few, **dict.fromkeys(weights, 0.0)}
    more = -(-options.train_student.unlabelled // options.batchimage)
    larger = {
        **plain,
        **_longer(options, 1 + more / options.batchid),
        "batchid": options.batchid + more,
    }
    return {
        PLAIN: plain,
        "plain, larger batch": larger,
        "others": few,
        "others + unlabelled": _NO_KD,
    }


def _views(options: Options) -> Variants:
    return {
        "unmatched": {"train_student.fresh_views": True},
        "V=1": {"train_student.views": 1},
        "V=4": {"train_student.views": 4},
        "V=16": {"train_student.views": 16},
        "live": {"train_student.fresh_views": True, "train_student.live_teacher": True},
    }


def _doubled(options: Options) -> Variants:
    return {"": {}, " ×2": _longer(options, 2)}


def _lengths(options: Options) -> Variants:
    return {name: _longer(options, factor) for name, factor in _LENGTHS.items()}


def _steps(options: Options) -> Mapping[str, float]:
    """Ending of a variant's name → steps of its training."""
    epochs, batches = options.train_student.epochs, _batches(options, "student")
    return {
        name: batches * float(str(changes.get("train_student.epochs", epochs)))
        for name, changes in _lengths(options).items()
    }


def _batches(options: Options, network: Network) -> int:
    """Batches in an epoch of a network."""
    from deskpro.stages.data.sampler import pk_batches

    labels = _training_table(options)["pid"].astype("category").cat.codes.to_numpy()
    recipe = options.recipe(network)
    return len(pk_batches(labels, recipe.batchid, recipe.batchimage, recipe.training.seed, 0))


def _numbers_of_identities(options: Options) -> Variants:
    """Fewer identities, in as many steps of both networks as near as whole epochs allow: otherwise
    the study would be one of length."""
    return {
        name: _fewer(options, count) if name else {} for name, count in _identities(options).items()
    }


def _fewer(options: Options, count: float) -> Changes:
    changes: Changes = {"data.identities": count}
    few = config.override(options, changes)
    for network in NETWORKS:
        factor = _batches(options, network) / _batches(few, network)
        changes = {**changes, **_longer(options, factor, network)}
    return changes


def _longer(options: Options, factor: float, network: Network = "student") -> Changes:
    """So many times the epochs of the recipe; the warm-up keeps its share."""
    training = options.recipe(network).training
    epochs = max(round(training.epochs * factor), 1)
    if epochs == training.epochs:
        return {}
    warmup = training.warmup_epochs * epochs / training.epochs
    warmup = warmup // 1 if training.schedule == "epoch" else warmup
    return {f"train_{network}.epochs": epochs, f"train_{network}.warmup_epochs": warmup}


def _identities(options: Options) -> Mapping[str, float]:
    """Ending of a variant's name → training identities; at least those of a batch."""
    every = _training_table(options)["pid"].nunique()
    least = max(options.batchid, options.train_teacher.batchid)
    counts = {max(round(share * every), least) for share in _SHARES} - {every}
    return {f", {count} identities": count for count in sorted(counts) if count < every} | {
        "": every
    }


def _training_table(options: Options) -> pd.DataFrame:
    """The images of the identities that the recipe trains on."""
    from deskpro.stages.data.identities import Identities, training_index

    chosen = Identities(*options.data.chosen)
    return training_index(options.data.root, options.train_set, chosen)


_STEPS = Axis(_lengths, "training steps", _steps)
_IDENTITIES = Axis(_numbers_of_identities, "training identities", _identities)
_OF_OTHERS = ("teachers", "train_student.unlabelled")

STUDIES: dict[str, Study] = {
    "parts": Study(_parts, PLAIN, "plain, KD, KD of class means, attention, both, twice the steps"),
    "length": Study(
        _plain_and_both, PLAIN, "plain and both at ½, 1, 2 and 4 times the epochs", _STEPS
    ),
    "labels": Study(
        _plain_and_both,
        PLAIN,
        "plain and both with 1/8 to all of the identities, in as many steps",
        _IDENTITIES,
    ),
    "targets": Study(
        _targets,
        PLAIN,
        "what of the teacher the face stream learns, at 1 and 2 times the epochs",
        Axis(_doubled),
        parts=("kd_loss.enable",),
    ),
    "others": Study(
        _others,
        PLAIN,
        "other teachers and images without labels, at ½, 1, 2 and 4 times the epochs",
        _STEPS,
        _OF_OTHERS,
    ),
    "others-labels": Study(
        _others, PLAIN, "the same with 1/8 to all of the identities", _IDENTITIES, _OF_OTHERS
    ),
    "views": Study(_views, "unmatched", "how many, matched or not, live teacher", views=16),
}
"""Name → study."""


def require_parts(options: Options, study: str) -> None:
    """Raises InputError where the recipe lacks what the study switches off, or views.

    It reads no data: they may not be drawn or prepared yet.
    """
    on = {
        "kd_loss.enable": options.kd_loss.enable and options.kd_loss.alpha,
        "mse.mse_weight": options.mse.mse_weight,
        "forward_mode": options.forward_mode == "all",
        "teachers": options.teachers,
        "train_student.unlabelled": options.train_student.unlabelled,
    }
    if off := [name for name in STUDIES[study].parts if not on[name]]:
        raise InputError(
            f"an ablation switches parts of the recipe off one by one: {', '.join(off)} must be on"
        )
    if options.cache.views < (most := STUDIES[study].views):
        raise InputError(
            f"the study of {study} needs {most} views a sample, cache.views is "
            f"{options.cache.views}: --set cache.views={most}"
        )


def changes_of(stream: str, options: Options, changes: Changes) -> dict[str, object]:
    """What a variant changes of the options that a stream depends on.

    A section that only losses of the other stream name (`mse`, for the face) is none of them.
    """
    sections = {
        name: {option.partition(".")[0] for option in params([term]) if option}
        for name, term in TERMS.items()
    }
    own = {part for name, parts in sections.items() for part in parts
           if TERMS[name].stream == stream}  # fmt: skip
    others = {part for parts in sections.values() for part in parts} - own
    others |= {f"teachers.{n}" for n, t in options.teachers.items() if t.learner != stream}
    before = flatten(options.model_dump(mode="json"))
    now = flatten(config.override(options, changes).model_dump(mode="json"))
    return {
        name: value
        for name, value in now.items()
        if name not in WITHOUT_EFFECT
        and not any(names_option(other, name) for other in others)
        and (name not in before or value != before[name])
    }


def same_cells(
    options: Options, variants: Variants, base_of: Callable[[str], str]
) -> set[tuple[str, str]]:
    """(variant, stream) whose stream is that of the variant's base: no difference by construction.

    A stream is trained by losses of its own and shares no parameter with the other.
    """
    found = set()
    for variant, changes in variants.items():
        base = variants[base_of(variant)]
        alike = {
            stream: changes_of(stream, options, changes) == changes_of(stream, options, base)
            for stream in options.streams
        }
        alike["all"] = all(alike.values())
        if options.eval.gallery_network == "teacher":
            alike[FACE_HR] = alike.get("face", False)
        if variant != base_of(variant):
            found |= {(variant, stream) for stream, is_same in alike.items() if is_same}
    return found
