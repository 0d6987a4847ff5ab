"""Which pictures the benchmark holds: who wears what, in front of which camera, under what name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deskpro.stages.data.benchmark.options import BenchmarkOptions
from deskpro.stages.data.benchmark.streams import stream

TRAIN, QUERY, GALLERY = SPLITS = ("bounding_box_train", "query", "bounding_box_test")


@dataclass(frozen=True)
class Picture:
    """One picture to draw. `number` is its counter, `person` and `outfit` say whom to draw."""

    number: int
    split: str
    name: str
    person: int
    outfit: int
    camera: int
    back: bool

    @property
    def path(self) -> str:
        """Where the picture lies below `imgs/` and its three companions."""
        return f"{self.split}/{self.name}"


def plan_pictures(options: BenchmarkOptions) -> list[Picture]:
    """All pictures of the benchmark, in no telling order.

    Promises, for every picture in `query`: its outfit is worn in the gallery by two or more other
    people, and its own person wears only other outfits there, in another camera too. At least half
    of a person's pictures in each split show the face.
    """
    people = options.train_identities + options.test_identities
    rng = stream(options.seed, "plan")
    # Neither a pid, nor a frame, nor a picture's number may tell anything: all are shuffled.
    pids = rng.permutation(people) + 1
    wardrobes = np.concatenate(
        [_wardrobes(n, options, rng) for n in (options.train_identities, options.test_identities)]
    )
    rows: list[tuple[int, int, str, int, int, bool]] = []
    for person in range(people):
        mine = []
        for split, count, outfits, share in _shares(options, person, wardrobes[person]):
            worn = _deal(outfits, count, rng)
            cameras = _deal(np.arange(options.cameras), count, rng)
            backs = rng.random(count) < share
            backs[rng.permutation(np.flatnonzero(backs))[count // 2 :]] = False
            mine += [
                (split, int(outfit), int(camera), bool(back))
                for outfit, camera, back in zip(worn, cameras, backs, strict=True)
            ]
        frames = rng.permutation(len(mine))
        rows += [(person, int(frame), *row) for frame, row in zip(frames, mine, strict=True)]
    numbers = rng.permutation(len(rows))
    pictures = [
        Picture(int(number), split, f"{pids[who]:04d}_c{camera + 1}_{frame:04d}.jpg", who, outfit,
                camera, back)
        for number, (who, frame, split, outfit, camera, back) in zip(numbers, rows, strict=True)
    ]  # fmt: skip
    return sorted(pictures, key=lambda picture: picture.number)


def _shares(
    options: BenchmarkOptions, person: int, wardrobe: np.ndarray
) -> list[tuple[str, int, np.ndarray, float]]:
    """For each split a person is in: its name, number of pictures, outfits, share of back views."""
    if person < options.train_identities:
        return [(TRAIN, options.train_pictures, wardrobe, options.train_back_views)]
    for_query, for_gallery = np.split(wardrobe, [options.query_outfits])
    return [
        (QUERY, options.query_pictures, for_query, options.back_views),
        (GALLERY, options.gallery_pictures, for_gallery, options.back_views),
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
