"""Losses against their definitions, written out plainly; every row of TERMS by the contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deskpro.stages.base.options import Options
from deskpro.stages.base.training_options import MSE, StudentLoss, Training
from deskpro.stages.losses import attention, cross_entropy, distillation, triplet
from deskpro.stages.losses.attention import attention_target
from deskpro.stages.losses.terms import (
    TERMS,
    Term,
    active_terms,
    compute_losses,
    is_loss,
    params,
    targets_needed,
    teacher_terms,
)
from deskpro.stages.models.lmbn import Output
from deskpro.stages.training.loop import learning_rate

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
SHAPES = {"logits": (7, 3), "features": (7, 8), "before_neck": (3, 8), "attention": (1, 4, 2)}
"""Of a sample, by field of Output; a target of the same name has the same shape."""


def an_output(seed: int, samples: int = 6) -> Output:
    random = torch.Generator().manual_seed(seed)
    return Output(**{k: torch.rand(samples, *s, generator=random) for k, s in SHAPES.items()})


def a_target(name: str) -> torch.Tensor:
    """Of six samples: what another network gives."""
    output = an_output(1)
    head = (255 * output.attention).byte()
    parsing = torch.cat([head, 255 - head, 0 * head, 0 * head + 1], 1)
    found = {"label": LABELS, "embedding": output.features, "parsing": parsing}
    return (output._asdict() | found)[name]


def a_loss(term: Term) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """A prediction for a term, and the term's loss as a function of it."""
    target = a_target(term.target)
    options = {name: attrgetter(path)(Options()) for name, path in term.settings.items()}
    return getattr(an_output(0), term.output), lambda x: term.loss(x, target, **options)


@pytest.mark.parametrize("name", TERMS)
def test_a_loss_is_a_finite_scalar_that_descent_makes_smaller(name: str) -> None:
    prediction, loss = a_loss(TERMS[name])
    before = loss(prediction.requires_grad_())
    assert before.shape == ()
    assert before.dtype == torch.float32
    before.backward()
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()
    assert 0 <= loss(prediction - 1e-2 * prediction.grad) < before


@pytest.mark.parametrize("name", TERMS)
def test_a_loss_is_computed_in_float32_whatever_the_network_gave(name: str) -> None:
    prediction, loss = a_loss(TERMS[name])
    half = loss(prediction.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(prediction.bfloat16().float()))


@pytest.mark.parametrize("name", TERMS)
def test_the_options_of_a_term_exist(name: str) -> None:
    for path in params([TERMS[name]]):
        assert isinstance(attrgetter(path)(Options()), float | bool | int | None)


def losses_of(
    options: object, terms: dict[str, Term] = TERMS, **more: Any
) -> dict[str, torch.Tensor]:
    """The losses of a batch of six samples."""
    outputs = {"face": an_output(0), "body": an_output(2)}
    return compute_losses(
        terms, options, outputs, {t.target: a_target(t.target) for t in terms.values()}, **more
    )


WEIGHTS = {"ce_face": 1 - 0.7, "kd": 0.7, "attention": 7.0, "embedding": 0.0}
"""Of the terms by default, where not 1."""


def test_distillation_takes_its_weight_off_the_faces_classification() -> None:
    options = Options()
    whole = {name: float(a_loss_of(term)) for name, term in TERMS.items()}
    found = losses_of(options)
    assert [*found] == [*TERMS]
    for name, loss in found.items():
        assert float(loss) == pytest.approx(WEIGHTS.get(name, 1.0) * whole[name], rel=1e-6)


def test_the_body_may_have_a_triplet_weight_of_its_own() -> None:
    first = losses_of(Options())
    own = losses_of(Options(loss=StudentLoss(triplet=3.0, triplet_body=0.5)))
    assert float(own["triplet_face"]) == pytest.approx(3 * float(first["triplet_face"]))
    assert float(own["triplet_body"]) == pytest.approx(0.5 * float(first["triplet_body"]))
    shared = losses_of(Options(loss=StudentLoss(triplet=3.0)))
    assert float(shared["triplet_body"]) == pytest.approx(3 * float(first["triplet_body"]))


def test_the_attention_is_learned_alone_for_its_first_steps() -> None:
    options, waiting = Options(mse=MSE(alone_steps=5)), {"ce_body", "triplet_body"}
    first = losses_of(Options())
    for step in (0, 4, 5, 6):
        for name, loss in losses_of(options, step=step).items():
            waits = name in waiting and step < 5
            assert float(loss) == (0 if waits else float(first[name]))
    outputs = {"face": an_output(0), "body": an_output(2)}
    logits = outputs["body"].logits.requires_grad_()  # no gradient, not one of 0
    targets = {term.target: a_target(term.target) for term in TERMS.values()}
    waits = compute_losses(TERMS, options, outputs, targets, step=0)["ce_body"]
    assert logits.requires_grad
    assert not waits.requires_grad
    plain = {name: term for name, term in TERMS.items() if name != "attention"}
    found = losses_of(options, plain, step=0)
    assert all(found[name] > 0 for name in waiting)


def a_loss_of(term: Term) -> torch.Tensor:
    output = {"face": an_output(0), "body": an_output(2)}[term.stream]
    return a_loss(term)[1](getattr(output, term.output))


@pytest.mark.parametrize(
    ("changes", "streams", "needed"),
    [
        ({}, ("face", "body"), {"logits", "parsing"}),
        ({}, ("face",), {"logits"}),
        ({}, ("body",), {"parsing"}),
        ({"kd_loss": {"enable": False}}, ("face", "body"), {"parsing"}),
        ({"kd_loss": {"alpha": 0.0}, "mse": {"mse_weight": 0.0}}, ("face", "body"), set()),
    ],
)
def test_a_student_needs_the_targets_of_its_terms(
    changes: dict[str, Any], streams: tuple[str, ...], needed: set[str]
) -> None:
    options = Options.model_validate(changes)
    assert targets_needed(options, streams) == needed
    terms = active_terms(options, streams)
    assert {term.target for term in terms.values()} == needed | {"label"}
    assert {f"{loss}_{stream}" for loss in ("ce", "triplet") for stream in streams} <= {*terms}


def test_a_teacher_has_the_terms_without_targets() -> None:
    assert {*teacher_terms()} == {"ce", "triplet"}
    options = Options().train_teacher
    found = compute_losses(teacher_terms(), options, {"face": an_output(0)}, {"label": LABELS})
    assert torch.equal(found["ce"], a_loss_of(TERMS["ce_face"]))
    assert all(map(is_loss, (*TERMS, *found, "total")))
    assert not is_loss("agree_global")


@pytest.mark.parametrize("target", ["logits", "parsing"])
def test_a_sample_without_a_target_is_left_out_of_the_mean(target: str) -> None:
    options, valid = Options(), torch.tensor([True, False, True, True, False, True])
    found, all_there = losses_of(options, valid={target: valid}), losses_of(options)
    for name, term in TERMS.items():
        if term.target != target:
            assert torch.equal(found[name], all_there[name])
            continue
        output = {"face": an_output(0), "body": an_output(2)}[term.stream]
        rows = {term.stream: Output(*(x[valid] for x in output[:-1] if x is not None))}
        few = {target: a_target(target)[valid]}
        assert torch.equal(found[name], compute_losses({name: term}, options, rows, few)[name])
    ones = torch.ones(6, dtype=torch.bool)
    assert losses_of(options, valid={target: ones}) == all_there
    none = losses_of(options, valid={target: ~ones})
    assert all(float(none[n]) == 0 for n, term in TERMS.items() if term.target == target)


@pytest.mark.parametrize("stream", ["face", "body"])
def test_a_sample_that_a_stream_does_not_see_is_left_out_of_its_means(stream: str) -> None:
    options, seen = Options(), torch.tensor([True, False, True, True, False, True])
    found, all_there = losses_of(options, valid={stream: seen}), losses_of(options)
    for name, term in TERMS.items():
        if term.stream != stream:
            assert torch.equal(found[name], all_there[name])
        else:
            output = getattr({"face": an_output(0), "body": an_output(2)}[stream], term.output)
            target = a_target(term.target)
            settings = {key: attrgetter(path)(options) for key, path in term.settings.items()}
            mean = float(term.loss(output[seen], target[seen], **settings))
            assert float(found[name]) == pytest.approx(WEIGHTS.get(name, 1.0) * mean, rel=1e-6)


def test_pairs_are_those_of_all_ranks() -> None:
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x])

    found, alone = losses_of(Options(), gather=doubled), losses_of(Options())
    for name, term in TERMS.items():
        same = torch.equal(found[name], alone[name])
        assert same or term.pairs, name


def test_a_loss_that_is_added_is_computed_with_its_option() -> None:
    def scaled_error(x: torch.Tensor, target: torch.Tensor, *, scale: float) -> torch.Tensor:
        return scale * (x - target).square().mean()

    options = SimpleNamespace(mine=SimpleNamespace(weight=2.0, on=True, scale=3.0))
    term = Term(
        scaled_error, "body", "features", "features", "mine.weight", enabled="mine.on",
        settings={"scale": "mine.scale"},
    )  # fmt: skip
    expected = 6 * (an_output(2).features - an_output(1).features).square().mean()
    torch.testing.assert_close(losses_of(options, {"mine": term})["mine"], expected)
    assert params([term]) == {"mine.weight", "mine.on", "mine.scale"}
    options.mine.on = False
    assert losses_of(options, {"mine": term})["mine"] == 0


def numbers(*shape: int) -> st.SearchStrategy[np.ndarray]:
    count = math.prod(shape)
    floats = st.lists(st.floats(-5, 5, width=32), min_size=count, max_size=count)
    return floats.map(lambda values: np.asarray(values, np.float32).reshape(shape))


@given(numbers(4, 2, 3), st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_cross_entropy_is_the_smoothed_definition(logits: np.ndarray, labels: list[int]) -> None:
    expected = 0.0
    for head in range(2):
        for row, label in enumerate(labels):
            z = logits[row, head].astype(np.float64)
            log_p = z - np.log(np.exp(z).sum())
            wanted = np.full(3, 0.1 / 3)
            wanted[label] += 0.9
            expected -= (wanted * log_p).sum() / 4
    found = cross_entropy(torch.from_numpy(logits), torch.tensor(labels))
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(numbers(5, 2, 3), st.permutations([0, 0, 1, 1, 2]))
def test_triplet_takes_the_hardest_pairs(embeddings: np.ndarray, labels: list[int]) -> None:
    expected = 0.0
    for head in range(2):
        for i in range(5):
            away = [np.linalg.norm(embeddings[i, head] - embeddings[j, head]) for j in range(5)]
            positive = max(d for j, d in enumerate(away) if labels[j] == labels[i])
            negative = min(d for j, d in enumerate(away) if labels[j] != labels[i])
            expected += max(0.0, 0.7 + positive - negative) / 5
    found = triplet(torch.from_numpy(embeddings), torch.tensor(labels))
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(numbers(3, 2, 4), numbers(3, 2, 4), st.floats(0.5, 20))
def test_distillation_is_t_squared_times_the_divergence(
    student: np.ndarray, teacher: np.ndarray, temperature: float
) -> None:
    def softmax(z: np.ndarray) -> np.ndarray:
        z = np.exp(z.astype(np.float64) / temperature)
        return z / z.sum(-1, keepdims=True)

    p, q = softmax(teacher), softmax(student)
    expected = temperature**2 * (p * np.log(p / q)).sum(-1).mean(0).sum()
    found = distillation(
        torch.from_numpy(student), torch.from_numpy(teacher), temperature=temperature
    )
    assert found.item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_distillation_is_zero_only_for_the_teachers_own_prediction() -> None:
    teacher = torch.randn(4, 7, 5)
    assert distillation(teacher + 3, teacher, temperature=2.0) < 1e-6  # a shift changes nothing
    assert distillation(teacher.flip(-1), teacher, temperature=2.0) > 0.1


@given(numbers(3, 2, 4), numbers(3, 2, 4), st.floats(0.5, 20))
def test_distillation_of_z_scores_is_that_of_standardised_logits(
    student: np.ndarray, teacher: np.ndarray, temperature: float
) -> None:
    def log_softmax(z: np.ndarray) -> np.ndarray:
        z = z.astype(np.float64)
        variance = np.mean((z - z.mean(-1, keepdims=True)) ** 2, axis=-1, keepdims=True)
        z = (z - z.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-6) / temperature
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(teacher), log_softmax(student)
    expected = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1).mean(0).sum()
    pair = torch.from_numpy(student), torch.from_numpy(teacher)
    found = distillation(*pair, temperature=temperature, zscore=True)
    assert found.item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_z_scores_forget_the_size_of_logits() -> None:
    teacher, student = torch.randn(4, 7, 5), torch.randn(4, 7, 5)
    first = distillation(student, teacher, temperature=2.0, zscore=True)
    scaled = distillation(9 * student + 3, 5 * teacher, temperature=2.0, zscore=True)
    torch.testing.assert_close(scaled, first, rtol=1e-4, atol=1e-5)
    assert distillation(9 * teacher, teacher, temperature=2.0, zscore=True) < 1e-5
    assert distillation(9 * teacher, teacher, temperature=2.0) > 1


@pytest.mark.parametrize("both", [True, False])
def test_z_scores_of_equal_logits_have_a_finite_gradient(both: bool) -> None:
    student = torch.full((2, 7, 5), 3.0, requires_grad=True)
    teacher = torch.full((2, 7, 5), -1.0) if both else torch.randn(2, 7, 5)
    distillation(student, teacher, temperature=1.0, zscore=True).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert both or student.grad.abs().max() > 0


def test_without_z_scores_distillation_is_the_same_bit_for_bit() -> None:
    student, teacher = torch.randn(8, 7, 33, requires_grad=True), torch.randn(8, 7, 33).half()
    log_q = torch.log_softmax(student / 5.0, -1)
    log_p = torch.log_softmax(teacher.float() / 5.0, -1)
    kl = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    expected = 5.0**2 * kl.mean(0).sum()
    found = distillation(student, teacher, temperature=5.0)
    assert torch.equal(found, expected)
    ours, theirs = (torch.autograd.grad(each, student)[0] for each in (found, expected))
    assert torch.equal(ours, theirs)


def test_attention_is_the_mean_squared_error() -> None:
    """From the share of head, and from the floor where there is none; traces of a head stay."""
    predicted = torch.rand(2, 1, 3, 2)
    parsing = torch.randint(0, 256, (2, 4, 3, 2), dtype=torch.uint8)
    parsing[:, 0, 0], parsing[:, 3] = 0, 1
    parsing[0, 3, 0] = 0
    for floor, byte in ((0.1, 26), (0.0, 0), (0.5, 128), (1.0, 255)):
        target = parsing[:, :1].double() / 255
        target[0, 0, 0] = byte / 255
        expected = ((predicted - target) ** 2).mean()
        found = attention(predicted, parsing, floor=floor)
        torch.testing.assert_close(found.double(), expected)
        torch.testing.assert_close(attention_target(parsing, floor).double(), target)


def test_the_published_rate_is_by_epoch_and_falls_to_a_thousandth() -> None:
    published = Training(schedule="epoch")
    steps = [learning_rate(step, 1.0, published, 3) for step in range(3 * 140)]
    rates = steps[::3]
    assert steps[1::3] == steps[2::3] == rates
    assert rates[:10] == pytest.approx([(epoch + 1) / 10 for epoch in range(10)])
    assert rates[10] == 1.0
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1e-3)
    assert learning_rate(0, 2.0, Training(schedule="epoch", epochs=1, warmup_epochs=0), 5) == 2.0


@given(
    st.integers(1, 40), st.integers(2, 60), st.floats(0, 1, exclude_max=True), st.floats(1e-5, 1)
)
def test_the_rate_changes_each_step_and_falls_to_a_hundredth(
    epochs: int, epoch_steps: int, share: float, peak: float
) -> None:
    training = Training(epochs=epochs, warmup_epochs=share * epochs)
    steps = epochs * epoch_steps
    rates = [learning_rate(step, peak, training, epoch_steps) for step in range(steps)]
    warm = round(share * epochs * epoch_steps)
    assert rates[:warm] == pytest.approx([peak * (i + 1) / warm for i in range(warm)])
    assert max(rates) == pytest.approx(peak)
    falling = rates[warm:]
    assert all(later < earlier for earlier, later in pairwise(falling))
    if len(falling) > 1:
        assert falling[0] == pytest.approx(peak)
        assert falling[-1] == pytest.approx(peak / 100)
