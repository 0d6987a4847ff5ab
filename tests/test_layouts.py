"""Names of every dataset: ten thousand drawn ones are read back whole, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from deskpro.stages.data.layouts import LAYOUTS
from tests.conftest import slow

DRAWN = pytest.mark.parametrize("drawn", [300, *slow(10_000)])


class Drawn(NamedTuple):
    """What a name says, as it is written."""

    pid: str
    camid: str
    clothes: str
    number: str
    letter: str


def draw(random: np.random.Generator) -> Drawn:
    def digits(most: int) -> str:
        length = random.integers(1, most + 1)
        return "".join(map(str, random.integers(0, 10, length)))

    return Drawn(digits(6), digits(9), digits(4), digits(7), "ABC"[random.integers(3)])


Written = tuple[str, str, int | None, str | None]
"""A path, and its pid, camid and clothes; None for what it doesn't say."""


def by_camera(n: Drawn) -> Written:
    return f"query/{n.pid}_c{n.camid}_{n.number}.jpg", n.pid, int(n.camid), None


def no_camera(n: Drawn) -> Written:
    return f"query/{n.pid}_{n.number}_0.jpg", n.pid, None, None


def market(n: Drawn) -> Written:
    name = f"{n.pid}_c{n.camid}s{n.clothes}_{n.number}_00.jpg"
    return f"bounding_box_train/{name}", n.pid, int(n.camid), None


def prcc_raw(n: Drawn) -> Written:
    camera = "ABC".index(n.letter) + 1
    path = f"rgb/test/{n.letter}/{n.pid}/cropped_rgb{n.number}.jpg"
    if int(n.number) % 2:
        path = f"rgb/train/{n.pid}/{n.letter}_cropped_rgb{n.number}.jpg"
    return path, n.pid, camera, "C" if n.letter == "C" else "AB"


def celeb_light(n: Drawn) -> Written:
    return f"query/{n.pid}_{n.camid}_{n.number}.jpg", n.pid, int(n.camid), None


def own(n: Drawn) -> Written:
    return f"query/person {n.pid}_c{n.camid}_{n.number}.png", f"person {n.pid}", int(n.camid), None


def ltcc(n: Drawn) -> Written:
    path = f"train/{n.pid}_{n.clothes}_c{n.camid}_{n.number}.png"
    return path, n.pid, int(n.camid), n.clothes


def vcclothes(n: Drawn) -> Written:
    path = f"gallery/{n.pid}-{n.camid}-{n.clothes}-{n.number}.jpg"
    return path, n.pid, int(n.camid), n.clothes


def deepchange(n: Drawn) -> Written:
    return f"train-set/P{n.pid}_C{n.camid}_T{n.number}.jpg", n.pid, int(n.camid), None


def last(n: Drawn) -> Written:
    path = f"test/gallery/{n.pid}/{n.pid}_{n.number}_{n.clothes}.jpg"
    return path, n.pid, None, n.clothes


def ccvid(n: Drawn) -> Written:
    camera = n.camid[-4:]
    return f"session3/{n.pid}_{camera}/{n.number}.jpg", n.pid, int(camera), None


def mevid(n: Drawn) -> Written:
    path = f"bbox_test/0007/{n.pid}O{n.clothes}C{n.camid}T{n.number}F00012.jpg"
    return path, n.pid, int(n.camid), None


def dukemtmc(n: Drawn) -> Written:
    return f"query/{n.pid}_c{n.camid}_f{n.number}.jpg", n.pid, int(n.camid), None


WRITERS: dict[str, Callable[[Drawn], Written]] = {
    "benchmark": by_camera,
    "celeb": by_camera,
    "celeb-light": celeb_light,
    "prcc": by_camera,
    "own": own,
    "celeb-raw": no_camera,
    "celeb-light-raw": no_camera,
    "prcc-raw": prcc_raw,
    "ltcc": ltcc,
    "vcclothes": vcclothes,
    "deepchange": deepchange,
    "ccvid": ccvid,
    "mevid": mevid,
    "last": last,
    "market1501": market,
    "dukemtmc": dukemtmc,
}


def test_every_layout_has_a_writer() -> None:
    assert WRITERS.keys() == LAYOUTS.keys() - {"csv"}  # whose names say nothing


@DRAWN
@pytest.mark.parametrize("dataset", WRITERS)
def test_drawn_names_are_read_back(dataset: str, drawn: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(drawn):
        path, pid, camid, clothes = WRITERS[dataset](draw(random))
        name = LAYOUTS[dataset].parse(path)
        assert name is not None, path
        assert (name.pid, name.camid, name.clothes) == (pid, camid, clothes), path


@DRAWN
@pytest.mark.parametrize("dataset", WRITERS)
def test_a_changed_name_is_refused_or_its_numbers_are_read_whole(dataset: str, drawn: int) -> None:
    random, letters, refused = np.random.default_rng(1), [*"0189_-csABC. x/"], 0
    for _ in range(drawn):
        path = [*WRITERS[dataset](draw(random))[0]]
        place = int(random.integers(len(path)))
        path[place : place + random.integers(0, 2)] = [letters[random.integers(len(letters))]]
        changed = "".join(path)
        name = LAYOUTS[dataset].parse(changed)
        if name is None:
            refused += 1
            continue
        assert re.search(rf"(?<!\d){re.escape(name.pid)}(?!\d)", changed), (changed, name)
        if name.camid is not None and dataset != "prcc-raw":
            assert re.search(rf"(?<!\d)0*{name.camid}(?!\d)", changed), (changed, name)
    assert 0 < refused < drawn
