"""Losses against their definitions, written out plainly; every entry of LOSSES by the contract."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deskpro.stages.losses import LOSSES, attention, cross_entropy, distillation, triplet
from deskpro.stages.training.schedule import learning_rate

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
PREDICTIONS = {
    "cross_entropy": ((6, 7, 3), LABELS, {}),
    "triplet": ((6, 3, 8), LABELS, {}),
    "distillation": ((6, 7, 3), torch.randn(6, 7, 3), {"temperature": 5.0}),
    "attention": ((6, 1, 4, 2), torch.rand(6, 1, 4, 2), {}),
}


def test_every_loss_is_covered_here() -> None:
    assert set(PREDICTIONS) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_finite_scalar_that_descent_makes_smaller(name: str) -> None:
    shape, target, settings_ = PREDICTIONS[name]
    torch.manual_seed(0)
    prediction = torch.randn(shape).requires_grad_()
    before = LOSSES[name](prediction, target, **settings_)
    assert before.shape == ()
    assert before.dtype == torch.float32
    before.backward()
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()
    after = LOSSES[name](prediction - 1e-2 * prediction.grad, target, **settings_)
    assert 0 <= after < before


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_computed_in_float32_whatever_the_network_gave(name: str) -> None:
    shape, target, settings_ = PREDICTIONS[name]
    prediction = torch.randn(shape)
    half = LOSSES[name](prediction.bfloat16(), target, **settings_)
    assert half.dtype == torch.float32
    full = LOSSES[name](prediction.bfloat16().float(), target, **settings_)
    torch.testing.assert_close(half, full)


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


def test_distillation_is_zero_only_for_the_teachers_own_opinion() -> None:
    teacher = torch.randn(4, 7, 5)
    assert distillation(teacher + 3, teacher, temperature=2.0) < 1e-6  # a shift changes nothing
    assert distillation(teacher.flip(-1), teacher, temperature=2.0) > 0.1


def test_attention_is_the_mean_squared_error() -> None:
    predicted, target = torch.rand(2, 1, 3, 2), torch.rand(2, 1, 3, 2)
    expected = ((predicted - target) ** 2).mean()
    torch.testing.assert_close(attention(predicted, target), expected)


def test_the_rate_warms_up_and_falls_to_a_thousandth() -> None:
    rates = [learning_rate(epoch, 1.0, 140, 10) for epoch in range(140)]
    assert rates[:10] == pytest.approx([(epoch + 1) / 10 for epoch in range(10)])
    assert rates[10] == 1.0
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1e-3)
    assert learning_rate(0, 2.0, 1, 0) == 2.0
