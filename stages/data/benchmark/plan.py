"""Which images the benchmark holds: who wears what, in front of which camera, under what name."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from deskpro.stages.data.benchmark.options import BenchmarkOptions

TRAIN, QUERY, GALLERY = SPLITS = ("bounding_box_train", "query", "bounding_box_test")


class Sample(NamedTuple):
    """One image to draw. `number` is its counter, `person` and `outfit` say whom to draw."""

    number: int
    split: str
    name: str
    person: int
    outfit: int
    camera: int
    back: bool

    @property
    def path(self) -> str:
        """Where the image lies below `imgs/` and its companions."""
        return f"{self.split}/{self.name}"


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A fresh generator for one purpose: the same whoever draws from it, in whatever order."""
    entropy = [seed, zlib.crc32(purpose.encode()), *numbers]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def plan_samples(options: BenchmarkOptions) -> list[Sample]:
    """All images of the benchmark, by number.

    Promises, for every image in `query`: its outfit is worn in the gallery by two or more other
    people, and its own person wears only other outfits there, in another camera too.
    """
    rng, groups = stream(options.seed, "plan"), (options.train_identities, options.test_identities)
    # Neither a pid, nor a frame, nor an image's number may tell anything: all are shuffled.
    pids = rng.permutation(sum(groups)) + 1
    wardrobes = np.concatenate([_wardrobes(people, options, rng) for people in groups])
    samples = []
    for person, (pid, wardrobe) in enumerate(zip(pids, wardrobes, strict=True)):
        mine = []
        for split, count, outfits, share in _shares(options, person, wardrobe):
            worn = _deal(outfits, count, rng)
            cameras = _deal(np.arange(options.cameras), count, rng)
            backs = rng.permutation(count) < int(count * share + rng.random())
            mine += [(split, *each) for each in zip(worn, cameras, backs, strict=True)]
        frames = rng.permutation(len(mine))
        for frame, (split, outfit, camera, back) in zip(frames, mine, strict=True):
            name = f"{pid:04d}_c{camera + 1}_{frame:04d}.jpg"
            samples.append(Sample(0, split, name, person, int(outfit), int(camera), bool(back)))
    order = rng.permutation(len(samples))
    return [samples[place]._replace(number=number) for number, place in enumerate(order)]


def _shares(
    options: BenchmarkOptions, person: int, wardrobe: np.ndarray
) -> list[tuple[str, int, np.ndarray, float]]:
    """For each split a person is in: its name, number of images, outfits, share of back views."""
    if person < options.train_identities:
        return [(TRAIN, options.train_images, wardrobe, options.train_back_views)]
    for_query, for_gallery = np.split(wardrobe, [options.outfits_per_identity // 2])
    return [
        (QUERY, options.query_images, for_query, options.query_back_views),
        (GALLERY, options.gallery_images, for_gallery, options.gallery_back_views),
    ]


def _wardrobes(people: int, options: BenchmarkOptions, rng: np.random.Generator) -> np.ndarray:
    """int [people, outfits_per_identity]: everyone's outfits, all different within a row.

    People come in rounds of `outfits`. Within a round each column is a permutation of all outfits,
    so that every outfit is worn equally often and none belongs to anyone.
    """
    rounds = []
    for _ in range(-(-people // options.outfits)):
        first = rng.permutation(options.outfits)
        steps = rng.choice(options.outfits, options.outfits_per_identity, replace=False)
        rounds.append((first[:, None] + steps) % options.outfits)
    return np.concatenate(rounds)[:people]


def _deal(cards: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the cards, each as often as any other up to one, shuffled."""
    return rng.permutation(np.resize(rng.permutation(cards), count))
