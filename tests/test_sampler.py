"""Batches are a function of (seed, epoch), and of nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deskpro.stages.data.sampler import PKSampler, pk_batches, view_of

labels = st.lists(st.integers(0, 8), min_size=1, max_size=80).map(np.asarray)


@given(labels, st.integers(2, 4), st.integers(2, 4), st.integers(0, 9), st.integers(0, 9))
def test_a_batch_holds_k_images_of_each_of_p_identities(
    labels: np.ndarray, identities: int, images: int, seed: int, epoch: int
) -> None:
    batches = pk_batches(labels, identities, images, seed, epoch)
    for rows in batches:
        counts = Counter(labels[rows].tolist())
        assert len(counts) == identities
        assert set(counts.values()) == {images}
    used = Counter(np.concatenate(batches).tolist() if batches else [])
    sizes = Counter(labels.tolist())
    for row, times in used.items():
        enough = sizes[int(labels[row])] >= images
        assert times == 1 or not enough  # only an identity with fewer than K repeats an image
    assert bool(batches) == (len(sizes) >= identities)


@given(labels, st.integers(0, 9), st.integers(0, 9))
def test_batches_repeat_only_for_the_same_seed_and_epoch(
    labels: np.ndarray, seed: int, epoch: int
) -> None:
    once, again = (pk_batches(labels, 2, 2, seed, epoch) for _ in range(2))
    np.testing.assert_equal(once, again)


def test_epochs_and_seeds_differ() -> None:
    labels = np.repeat(np.arange(10), 8)
    batches = [pk_batches(labels, 5, 4, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    flat = [np.concatenate(rows).tolist() for rows in batches]
    assert flat[0] != flat[1]
    assert flat[0] != flat[2]


def test_where_identities_have_equally_many_images_all_are_used() -> None:
    labels = np.repeat(np.arange(12), 8)
    rows = np.concatenate(pk_batches(labels, 4, 4, 0, 0))
    assert sorted(rows.tolist()) == list(range(96))


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(0, 5))
def test_every_view_of_a_sample_is_shown_in_turn(row: int, views: int, seed: int) -> None:
    shown = [view_of(row, epoch, 0, views, seed) for epoch in range(2 * views)]
    assert set(Counter(shown).values()) == {2}


def test_a_repeated_sample_is_shown_under_another_view() -> None:
    sampler = PKSampler(np.array([0, 1, 1, 1]), 2, 3, views=4, seed=0)
    [batch] = list(sampler)
    alone = [view for row, view in batch if row == 0]
    assert len(alone) == len(set(alone)) == 3
    assert len(sampler) == 1


def test_on_a_long_tailed_set_everybody_comes_early_and_late() -> None:
    """Few people have most images. Half of what each shows lies in the first half of an epoch.

    Were those with most images left taken first, the first tenth would show 10 people, not 52.
    """
    sizes = np.maximum(4, (800 / np.arange(1, 201)).astype(int))
    labels = np.repeat(np.arange(200), sizes)
    places: list[list[float]] = [[] for _ in range(200)]
    early = []
    for epoch in range(20):
        batches = pk_batches(labels, 8, 4, 0, epoch)
        for number, rows in enumerate(batches):
            for label in np.unique(labels[rows]):
                places[label].append((number + 0.5) / len(batches))
        tenth = np.concatenate(batches[: len(batches) // 10])
        early.append(len(np.unique(labels[tenth])))
    assert np.mean(early) > 45
    for few in (slice(8, 50), slice(50, 200)):  # the first are so many that they are in every batch
        middle = np.mean([place for own in places[few] for place in own])
        assert 0.4 < middle < 0.6


@given(labels, st.integers(2, 4), st.integers(2, 4), st.integers(0, 9))
def test_there_are_as_many_batches_as_the_groups_allow(
    labels: np.ndarray, identities: int, images: int, seed: int
) -> None:
    """As many as there are if those with most groups left always go first, which is the most."""
    sizes = np.unique(labels, return_counts=True)[1]
    left = [max(1, size // images) for size in sizes]
    most = 0
    while sum(count > 0 for count in left) >= identities:
        left = [count - (place < identities) for place, count in enumerate(sorted(left)[::-1])]
        most += 1
    assert len(pk_batches(labels, identities, images, seed, 0)) == most
