"""What networks are trained for: a row per loss term. Importing this module loads no torch.

To add a loss: write its file, and its row in `TERMS`. The targets that a student needs, the columns
of its history, the options it depends on and the tests of losses follow from the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from deskpro.stages.losses.attention import attention
from deskpro.stages.losses.cross_entropy import cross_entropy
from deskpro.stages.losses.distillation import distillation
from deskpro.stages.losses.embedding import embedding
from deskpro.stages.losses.triplet import triplet

if TYPE_CHECKING:
    import torch

Loss = Callable[..., "torch.Tensor"]
"""(prediction [B, …], target [B, …], **settings) → float32 scalar, a mean over the batch."""


class Term(NamedTuple):
    """A weighted loss of one stream; weight, enabled and settings name options ("kd_loss.T")."""

    loss: Loss
    stream: str
    """face or body."""
    output: str
    """Field of the stream's `Output` that is the prediction, dotted in one that is a mapping."""
    target: str
    """label, or the name of a teacher's target."""
    weight: str
    otherwise: str = ""
    """Option with the weight, where `weight` is not given."""
    enabled: str = ""
    """Option that switches the term on; always on if empty."""
    less: str = ""
    """Term whose weight w is taken off this one: the weight is multiplied by 1 − w."""
    after: tuple[str, str] = ("", "")
    """Term that is alone at first, and the option that says for how many steps: this one's weight
    is 0 then, if that term is on."""
    settings: Mapping[str, str] = {}
    """Keyword of the loss → option."""
    pairs: bool = False
    """Whether samples are compared with each other, so that other ranks' samples may take part."""


_CROSS_ENTROPY = Term(
    cross_entropy, "face", "logits", "label", "loss.cross_entropy",
    settings={"label_smoothing": "loss.label_smoothing"},
)  # fmt: skip
_TRIPLET = Term(
    triplet, "face", "before_neck", "label", "loss.triplet",
    settings={"margin": "loss.margin"}, pairs=True,
)  # fmt: skip

TERMS: dict[str, Term] = {
    # Distillation takes its share of the face heads' classification (DeSKPro, ICIP 2022).
    "ce_face": _CROSS_ENTROPY._replace(less="kd"),
    "triplet_face": _TRIPLET,
    "ce_body": _CROSS_ENTROPY._replace(stream="body", after=("attention", "mse.alone_steps")),
    "triplet_body": _TRIPLET._replace(
        stream="body", weight="loss.triplet_body", otherwise="loss.triplet",
        after=("attention", "mse.alone_steps"),
    ),
    "kd": Term(
        distillation, "face", "logits", "logits", "kd_loss.alpha", enabled="kd_loss.enable",
        settings={"temperature": "kd_loss.T", "zscore": "kd_loss.zscore"},
    ),
    "embedding": Term(embedding, "face", "features", "embedding", "embedding.weight"),
    "attention": Term(
        attention, "body", "attention", "parsing", "mse.mse_weight",
        settings={"floor": "mse.floor"},
    ),
}  # fmt: skip
"""Name, which is also the column of the history, → term."""
OTHER_TEACHERS = (
    "teachers.*.weight", "teachers.*.kd", "teachers.*.stream", "teachers.*.input",
)  # fmt: skip
"""The options of the terms of other teachers."""


def _of_other(teacher: str, stream: str) -> dict[str, Term]:
    """The terms of another teacher: of its embeddings, which a stream's projected features meet,
    and of its logits."""
    option = f"teachers.{teacher}"
    return {
        f"embedding_{teacher}": Term(
            embedding, stream, f"projected.{teacher}", f"{teacher}/embedding", f"{option}.weight"
        ),
        f"kd_{teacher}": Term(
            distillation, stream, "logits", f"{teacher}/logits", f"{option}.kd",
            settings=TERMS["kd"].settings,
        ),
    }  # fmt: skip


def active_terms(options: Any, streams: Iterable[str]) -> dict[str, Term]:
    """The terms of a student with these streams.

    A term about a target that has no weight is left out: the target is then not needed.
    """
    every = dict(TERMS)
    for name, teacher in options.teachers.items():
        every |= _of_other(name, teacher.learner)
    terms = {name: term for name, term in every.items() if term.stream in {*streams}}
    return {
        name: term
        for name, term in terms.items()
        if _is_on(term, options) and (term.target == "label" or _weight(term, terms, options))
    }


def teacher_terms() -> dict[str, Term]:
    """The terms of a network that sees faces and has no teacher."""
    return {
        name.removesuffix("_face"): term
        for name, term in TERMS.items()
        if term.stream == "face" and term.target == "label"
    }


def targets_needed(options: object, streams: Iterable[str]) -> set[str]:
    """The teacher's targets that a student with these streams needs."""
    return {term.target for term in active_terms(options, streams).values()} - {"label"}


def params(terms: Iterable[Term]) -> set[str]:
    """The options that the terms read."""
    return {
        name
        for term in terms
        for name in (
            term.weight, term.otherwise, term.enabled, term.after[1], *term.settings.values()
        )
        if name
    }  # fmt: skip


def is_loss(column: str) -> bool:
    """Whether a column of the history is a loss term or their total."""
    known = "total", *TERMS, *teacher_terms()
    return column in known or column.startswith(("embedding_", "kd_"))  # of other teachers


def compute_losses(
    terms: Mapping[str, Term],
    options: object,
    outputs: Mapping[str, Any],
    targets: Mapping[str, torch.Tensor],
    valid: Mapping[str, torch.Tensor] | None = None,
    step: int = 0,
    gather: Callable[[torch.Tensor], torch.Tensor] | None = None,
    mean_of_ranks: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The weighted losses of a batch of B samples: float32 scalars by term, to be summed.

    Args:
        terms: those to compute.
        options: what has the options that terms name as attributes.
        outputs: stream → its `Output`, fields [B, …].
        targets: name → [B, …]; `label` int64 [B].
        valid: stream or target → bool [B] on the CPU: the samples that have it, all if absent. The
            others are left out of the mean; where no sample has it the loss is 0.
        step: how many were taken before.
        gather: makes [B, …] the samples of all ranks; used by terms with `pairs`.
        mean_of_ranks: of several ranks, the mean of a number over them: each rank's loss then
            counts by its samples that have the target, so that their mean is that of all samples.
    """
    losses = {}
    for name, term in terms.items():
        loss = _loss(term, options, outputs, targets, valid or {}, gather, mean_of_ranks)
        if _waits(term, terms, options, step):
            # Not 0 times it: Adam's weight decay would shrink what has a gradient of 0.
            losses[name] = 0.0 * loss.detach()
        else:
            losses[name] = _weight(term, terms, options) * loss
    return losses


def _loss(
    term: Term,
    options: object,
    outputs: Mapping[str, Any],
    targets: Mapping[str, torch.Tensor],
    valid: Mapping[str, torch.Tensor],
    gather: Callable[[torch.Tensor], torch.Tensor] | None,
    mean_of_ranks: Callable[[torch.Tensor], torch.Tensor] | None,
) -> torch.Tensor:
    """A term's loss without its weight."""
    prediction, target = option(outputs[term.stream], term.output), targets[term.target]
    has = usable(term, valid)
    if term.pairs and gather is not None:
        prediction, target = gather(prediction), gather(target)
        has = None if has is None else gather(has.to(target.device).long()).bool().cpu()
    if has is not None and not has.all():
        rows = has.nonzero().flatten().to(prediction.device)
        prediction, target = prediction[rows], target[rows]
    settings = {keyword: option(options, path) for keyword, path in term.settings.items()}
    loss = term.loss(prediction, target, **settings) if len(target) else prediction.sum() * 0.0
    if has is not None and mean_of_ranks is not None:
        count = loss.new_tensor(len(target))
        loss = loss * (count / mean_of_ranks(count).clamp(min=1e-9))
    return loss


def usable(term: Term, valid: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The samples that have a term's stream and target, bool [B]; None where all must have them."""
    found = [valid[name] for name in (term.stream, term.target) if name in valid]
    return found[0] & found[-1] if found else None


def option(tree: Any, path: str) -> Any:
    """What lies at a dotted path of attributes and keys."""
    for name in path.split("."):
        tree = tree[name] if isinstance(tree, Mapping) else getattr(tree, name)
    return tree


def _is_on(term: Term, options: object) -> bool:
    return not term.enabled or bool(option(options, term.enabled))


def any_waits(terms: Mapping[str, Term], options: object, step: int) -> bool:
    """Whether some term is not trained in a step."""
    return any(_waits(term, terms, options, step) for term in terms.values())


def _waits(term: Term, terms: Mapping[str, Term], options: object, step: int) -> bool:
    """Whether another term is still trained alone."""
    first, steps = term.after
    return first in terms and step < option(options, steps)


def _weight(term: Term, terms: Mapping[str, Term], options: object) -> float:
    less = _weight(terms[term.less], terms, options) if term.less in terms else 0.0
    weight: float | None = option(options, term.weight)
    if weight is None:
        weight = option(options, term.otherwise)
    return (1 - less) * weight if _is_on(term, options) else 0.0
