"""The report: its content, that it is self-contained, and that no data break it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from deskpro.pipeline import runner as running
from deskpro.pipeline.config import load
from deskpro.pipeline.inspect_cli import report
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.reporting import figures, histories, ranked, results
from deskpro.stages.reporting import page as page_module
from deskpro.stages.reporting.cells import percent
from deskpro.stages.reporting.images import Thumbnails
from tests.browser import CHROMIUM, Page, browse
from tests.conftest import Project, Result, run_process, with_cache, write_recipe

BOXES = "Array.from(document.querySelectorAll('.box'))"
HOSTILE = "<img src=x onerror=alert(1)>"
"""Part of the name of one query's images."""


def needs_browser(test: Callable[..., None]) -> Callable[..., None]:
    """A slow test that skips where there is no browser."""
    missing = pytest.mark.skipif(CHROMIUM is None, reason="chromium isn't installed")
    return pytest.mark.slow(missing(test))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def evaluated(
    tiny_benchmark: Path, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An evaluated run on its own copy of the data, one query with a hostile name; read-only."""
    folder = tmp_path_factory.mktemp("reported")
    data, run = folder / "data", RunFolder(folder / "run")
    shutil.copytree(tiny_benchmark, data)
    shutil.copytree(tiny_student, run.path)
    for manifest in (run.path / ".state" / "manifests").iterdir():
        manifest.write_text(manifest.read_text().replace(str(tiny_benchmark), str(data)))
    first = sorted((data / "imgs" / "query").iterdir())[0]
    hostile = "_".join([*first.stem.split("_")[:2], HOSTILE])
    for kind in ("imgs", "lr_face", "hr_face", "mask"):
        for path in (data / kind / "query").glob(f"{first.stem}.*"):
            path.rename(path.with_stem(hostile))
    copy_into_gallery(data, sorted((data / "imgs" / "query").iterdir())[-1].stem)
    clothes = data / "clothes.csv"
    clothes.write_text(clothes.read_text().replace(f"query/{first.stem}.", f"query/{hostile}."))
    write_recipe(folder / "tiny.yaml", data)
    running.run_stage("eval", load(folder / "tiny.yaml"), run)
    return run.path


def copy_into_gallery(data: Path, query: str) -> None:
    """Make a gallery image of the same identity and another camera equal: a match at rank 1."""
    pid, camera, _ = query.split("_", 2)
    galleries = (data / "imgs" / "bounding_box_test").glob(f"{pid}_*")
    other = next(path.stem for path in sorted(galleries) if path.stem.split("_")[1] != camera)
    for kind in ("imgs", "lr_face"):
        for path in (data / kind / "query").glob(f"{query}.*"):
            shutil.copy(path, data / kind / "bounding_box_test" / f"{other}{path.suffix}")


def make(run: Path, *arguments: str) -> Path:
    """`deskpro report RUN ARGUMENTS` and its file."""
    result = CliRunner().invoke(report, [str(run), *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def page_file(evaluated: Path) -> Path:
    return make(evaluated, "--good", "20", "--failed", "20", "--samples", "3")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browse(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, page_file: Path) -> Page:
    """The report, freshly opened in a wide window."""
    browser.events.clear()
    browser.media()
    browser.size(1200, 900)
    browser.open(page_file)
    return browser


def shown(page: Page, what: str) -> list[str]:
    """A data attribute of the visible cards, in their order."""
    return list(
        page.evaluate(
            "Array.from(document.querySelectorAll('.card')).filter(c => c.offsetParent)"
            f".map(c => c.dataset.{what})"
        )
    )


@needs_browser
def test_it_opens_from_a_file_without_messages_and_requests_nothing_else(
    page: Page, page_file: Path
) -> None:
    assert page.evaluate("document.readyState") == "complete"
    messages = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert page.named(*messages) == []
    urls = [event["request"]["url"] for event in page.named("Network.requestWillBeSent")]
    assert [url for url in urls if not url.startswith("data:")] == [page_file.as_uri()]
    broken = "Array.from(document.images).filter(i => !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate("document.images.length") > 20
    assert page_file.stat().st_size < 4e6


@needs_browser
def test_a_hostile_name_is_text_and_runs_nothing(page: Page) -> None:
    assert HOSTILE in page.evaluate("document.querySelector('#cards').innerText")
    assert page.evaluate("document.querySelectorAll('[onerror], [src=x]').length") == 0
    assert page.named("Page.javascriptDialogOpening") == []


@needs_browser
def test_the_policy_stops_what_escaping_might_miss(page: Page) -> None:
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', "
        '\'<img src="https://example.invalid/a.png" onerror="window.hurt = 1">\')'
    )
    page.evaluate("new Promise(done => setTimeout(done, 200))")
    assert page.evaluate("window.hurt") is None
    failed = page.named("Network.loadingFailed")
    assert [event.get("blockedReason") for event in failed] == ["csp"]


@needs_browser
def test_filter_search_and_sort_by_mouse(page: Page) -> None:
    outcomes = shown(page, "outcome")
    assert {*outcomes} == {"good", "failed"}
    for outcome in ("failed", "good"):
        page.click(f"input[value={outcome}]")
        assert shown(page, "outcome") == [outcome] * outcomes.count(outcome)
        status = page.evaluate("document.querySelector('[aria-live]').textContent")
        assert status == f"{outcomes.count(outcome)} of {len(outcomes)} queries shown"
    page.click("input[value=all]")
    pid = shown(page, "pid")[0]
    page.click("#search")
    page.call("Input.insertText", text=pid)
    assert {*shown(page, "pid")} == {pid}
    page.call("Input.insertText", text="nobody")
    assert shown(page, "pid") == []
    assert "No query matches" in page.evaluate("document.querySelector('[aria-live]').textContent")


@needs_browser
def test_sort_and_filter_by_keyboard_alone(page: Page) -> None:
    assert shown(page, "ap") == sorted(shown(page, "ap"), key=float)
    page.evaluate("document.querySelector('input[value=all]').focus()")
    page.press("ArrowRight")  # the next radio button
    assert {*shown(page, "outcome")} == {"failed"}
    page.evaluate("document.querySelector('input[value=all]').click()")
    page.evaluate("document.querySelector('input[value=all]').focus()")
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "search"
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "order"
    orders = {
        "best": ("ap", lambda value: -float(value)),
        "first": ("first", lambda value: -float(value)),
        "pid": ("pid", int),
    }
    for order, (what, key) in orders.items():
        page.press("ArrowDown")  # the next choice of a closed list
        assert page.evaluate("document.activeElement.value") == order
        assert shown(page, what) == sorted(shown(page, what), key=key)
    focused = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(focused) == "solid"


@needs_browser
@pytest.mark.parametrize("medium", ["", "print"])
@pytest.mark.parametrize("width", [360, 600, 601, 768, 1280])
def test_no_page_is_wider_than_its_screen(page: Page, width: int, medium: str) -> None:
    page.media(medium)
    page.size(width, 740, phone=width < 500)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
@pytest.mark.parametrize("width", [360, 600])
def test_on_a_phone_rows_are_blocks_of_labelled_lines(page: Page, width: int) -> None:
    page.size(width, 740, phone=True)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    scrolls = (
        "Array.from(document.querySelectorAll('main *')).filter(e => e.scrollWidth > e.clientWidth"
        " && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)).map(e => e.outerHTML)"
    )
    assert page.evaluate(scrolls) == []
    assert page.evaluate(f"{BOXES}.filter(b => b.scrollWidth > b.clientWidth).length") == 0
    assert page.evaluate("document.querySelector('thead').offsetParent") is None
    # In a row each cell is below the one before, says its column, and fits.
    broken = page.evaluate(
        "Array.from(document.querySelectorAll('tbody tr')).flatMap(row => {"
        " const cells = Array.from(row.cells).filter(c => c.offsetParent);"
        " return cells.filter((c, i) => i && c.offsetTop + 1 < cells[i - 1].offsetTop"
        "   + cells[i - 1].offsetHeight || c.scrollWidth > c.clientWidth"
        "   || (c.dataset.label && getComputedStyle(c, '::before').content"
        "       !== JSON.stringify(c.dataset.label))).map(c => c.outerHTML); })"
    )
    assert broken == []
    # The protocol stands in each block, though wide tables name it once for several rows.
    first = "Array.from(document.querySelector('tbody').rows).map(r => Array.from(r.cells)"
    names = page.evaluate(f"{first}.filter(c => c.offsetParent)[0].dataset.label)")
    assert {*names} == {"protocol"}
    assert len(names) > 1


@needs_browser
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_text_of_charts_is_at_least_12_pixels_high(page: Page, width: int) -> None:
    page.size(width, 740, phone=width < 500)
    sizes = page.evaluate(
        "Array.from(document.querySelectorAll('svg.chart')).flatMap(chart => {"
        " const scale = chart.getBoundingClientRect().width / chart.viewBox.baseVal.width;"
        " return Array.from(chart.querySelectorAll('text')).map(text =>"
        "   scale * parseFloat(getComputedStyle(text).fontSize)); })"
    )
    assert len(sizes) > 50
    assert min(sizes) >= 12


@needs_browser
def test_wide_screens_have_wide_tables(page: Page) -> None:
    page.size(768, 900)
    assert {*page.evaluate(f"{BOXES}.map(b => getComputedStyle(b.firstElementChild).display)")} == {
        "table"
    }
    assert page.evaluate("getComputedStyle(document.querySelector('thead')).display") != "none"
    hidden = "Array.from(document.querySelectorAll('td.phone')).filter(c => c.offsetParent).length"
    assert page.evaluate("document.querySelectorAll('td.phone').length") > 1
    assert page.evaluate(hidden) == 0


@pytest.mark.slow
def test_each_cell_says_the_column_that_it_is_below(page_file: Path) -> None:
    class Tables(HTMLParser):
        """Of each row of a body: the labels of its cells, None for a cell without one."""

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[list[tuple[str | None, str]]] = []
            self.table = self.part = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = {name: value or "" for name, value in attrs}
            if tag == "table":
                self.table = given.get("class", "")
            elif tag in ("thead", "tbody"):
                self.part = tag
            elif tag == "tr" and self.part == "tbody" and "facts" not in self.table:
                self.rows.append([])
            elif tag in ("td", "th") and self.part == "tbody" and "facts" not in self.table:
                self.rows[-1].append((given.get("data-label"), given.get("class", "")))

    parsed = Tables()
    parsed.feed(page_file.read_text())
    assert len(parsed.rows) > 30
    for row in parsed.rows:
        for label, kind in row:
            assert label or kind in ("phone group", "text bar")


@needs_browser
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_pages_of_comparisons_and_searches_fit_their_screen(
    browser: Page, tmp_path: Path, width: int
) -> None:
    name = "a_very_long_name_without_any_space_" * 4
    hit = {"image": None, "match": True, "rank": 1, "pid": name, "score": "0.9", "odds": "1.2",
           "case": "face-face", "person": name, "camera": name, "time": name, "path": name,
           "name": name}  # fmt: skip
    query = {"image": None, "name": name, "pid": name, "hits": [hit] * 3,
             "lists": [{"run": name, "ap": 0.5, "hits": [hit] * 3}]}  # fmt: skip
    pair = {"winner": name, "loser": name, "count": 3, "queries": [query]}
    compared = {"names": [name], "stream": "all", "protocol": name, "rule": name, "pairs": [pair]}
    pages = {
        "compare": page_module.render("compare", compared, style="search"),
        "search": page_module.render("search", {"title": name, "about": name, "queries": [query]}),
    }
    for which, text in pages.items():
        path = tmp_path / f"{which}.html"
        path.write_text(text)
        for medium in ("", "print"):
            browser.media(medium)
            browser.size(width, 740, phone=width < 500)
            browser.open(path)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, which


@needs_browser
def test_headings_are_in_order_and_images_and_tables_are_labelled(page: Page) -> None:
    levels = page.evaluate(
        "Array.from(document.querySelectorAll('h1,h2,h3,h4,h5,h6')).map(h => +h.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for rule in ("img:not([alt])", "img[alt='']", "th:not([scope])", "svg:not([aria-hidden]):not("
                 "[role=img])", "svg[role=img]:not(:has(title)), svg[role=img]:not(:has(desc))",
                 "table:not(:has(th))", "[style]", "html:not([lang])"):  # fmt: skip
        assert page.evaluate(f"document.querySelectorAll({json.dumps(rule)}).length") == 0, rule
    ids = page.evaluate("Array.from(document.querySelectorAll('[id]')).map(e => e.id)")
    assert len(ids) == len({*ids})
    named = page.evaluate(
        "Array.from(document.querySelectorAll('[aria-labelledby]'))"
        ".flatMap(e => e.getAttribute('aria-labelledby').split(' '))"
    )
    assert {*named} <= {*ids}
    for landmark in ("main", "body > header", "nav", "footer"):
        assert page.evaluate(f"document.querySelectorAll('{landmark}').length") == 1


@needs_browser
def test_text_is_legible_in_light_and_dark(page: Page) -> None:
    """WCAG AA: 4.5 to 1 for every colour of text on the page's and the cards' ground."""
    for scheme in ("light", "dark"):
        page.media(prefers_color_scheme=scheme)
        colours = page.evaluate(
            "Object.fromEntries(['page', 'card', 'mark', 'ink', 'soft', 'right', 'wrong', 'link']"
            ".map(n => [n, getComputedStyle(document.documentElement).getPropertyValue('--' + n)]))"
        )
        light = {name: luminance(colour.strip()) for name, colour in colours.items()}
        for text in ("ink", "soft", "right", "wrong", "link"):
            for ground in ("page", "card", "mark"):
                low, high = sorted((light[text], light[ground]))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, text, ground)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 25)"


def luminance(colour: str) -> float:
    """Relative luminance (WCAG) of #rrggbb."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@needs_browser
def test_print_shows_collapsed_and_filtered_parts_and_hides_the_controls(page: Page) -> None:
    page.click("input[value=good]")
    page.media("print")
    page.size(720, 1000)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert {*shown(page, "outcome")} == {"good", "failed"}
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    assert page.evaluate("getComputedStyle(document.querySelector('#controls')).display") == "none"
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details[open]').length") == 0


def test_its_numbers_are_those_of_the_evaluation(evaluated: Path, page_file: Path) -> None:
    text = page_file.read_text()
    metrics = json.loads((evaluated / "metrics.json").read_text())
    for name, protocol in metrics["protocols"].items():
        assert re.search(rf"\b{name}\b[^<]*</th>", text)
        for numbers in protocol["streams"].values():
            for value in (numbers["mAP"], numbers["rank1"]):
                assert f"<b>{percent(value)}</b>" in text
    assert re.search(r"Content-Security-Policy\" content=\"default-src &#39;none&#39;", text)
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert str(pd.read_csv(evaluated / "student_history.csv")["epoch"].iloc[-1]) in text
    for stage in ("train-teacher", "teacher-cache", "train-student", "eval"):
        assert f"<summary>{stage}, finished" in text
    assert metrics["network"]["sha256"] in text


@pytest.mark.slow
def test_the_head_names_the_code_that_trained_and_evaluated(run: Path) -> None:
    def head() -> str:
        text = make(run, "--samples", "0", "--good", "0", "--failed", "0").read_text()
        return text[: text.index("<nav")]

    manifests = {
        name: run / ".state" / "manifests" / f"{name}.json" for name in ("train-student", "eval")
    }
    for name, code in (("train-student", "1234567, modified"), ("eval", "89abcde")):
        record = json.loads(manifests[name].read_text())
        record["versions"] |= {"deskpro": "9.8", "commit": code}
        manifests[name].write_text(json.dumps(record))
    assert " by deskpro 9.8, commit 1234567, modified, evaluated " in head()
    assert " by deskpro 9.8, commit 89abcde.</p>" in head()
    same = manifests["eval"].read_text().replace("89abcde", "1234567, modified")
    manifests["eval"].write_text(same)
    assert head().count("commit 1234567, modified") == 1
    for manifest in manifests.values():
        record = json.loads(manifest.read_text())
        del record["versions"]["commit"]
        manifest.write_text(json.dumps(record))
    assert " by deskpro 9.8.</p>" in head()


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change; its images are those of the original."""
    return Path(shutil.copytree(evaluated, tmp_path / "run"))


@pytest.mark.slow
def test_each_stage_shows_what_it_did_and_the_digests_of_its_files(run: Path) -> None:
    text = make(run).read_text()
    for stage in ("train-teacher", "teacher-cache", "train-student", "eval"):
        record = json.loads((run / ".state" / "manifests" / f"{stage}.json").read_text())
        assert record["deps"]
        assert record["outs"]
        for digest in (*record["deps"].values(), *record["outs"].values()):
            assert digest in text
    assert '<th scope="row">training.steps</th><td class="wrap">' in text


@pytest.mark.slow
def test_the_answers_come_first_and_are_those_of_compare(run: Path, tmp_path: Path) -> None:
    plain, other = run / "ablation" / "plain", tmp_path / "other"
    for folder in (plain, other):
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("ablation", "*.zarr"))
    queries = pd.read_csv(plain / "queries.csv", dtype={"sample_id": str, "pid": str})
    worse = queries.assign(ap=queries["ap"] / 2, rank1=0.0)
    worse.to_csv(plain / "queries.csv", index=False)
    text = make(run, "--good", "0", "--failed", "0", "--samples", "0").read_text()
    head = text[: text.index("<nav")]
    answer = re.search(r"<b>Better than the same student without targets</b>: \+([\d.]+) mAP", head)
    assert answer is not None
    mine = queries[(queries["protocol"] == "market") & (queries["stream"] == "all")]
    assert float(answer[1]) == pytest.approx(100 * mine["ap"].mean() / 2, abs=0.051)
    again = make(run, "--against", str(plain), "--against", str(plain), "--samples", "0")
    alone, *both = re.findall(r", p ([\d.e-]+)</li>", head + again.read_text())
    assert [float(p) for p in both] == pytest.approx([2 * float(alone)] * 2, rel=0.1)

    # One that has fewer streams is compared by those.
    queries[queries["stream"] == "body"].to_csv(other / "queries.csv", index=False)
    assert "difference from other</b>: 0.0 mAP" in make(run, "--against", str(other)).read_text()
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["data"]["digests"]["imgs"] = "0" * 64
    (other / "metrics.json").write_text(json.dumps(metrics))
    text = make(run, "--against", str(other), "--samples", "0").read_text()
    assert "Not compared with other: they cannot be compared" in text
    assert "without targets" not in text[: text.index("<nav")]


@pytest.mark.slow
def test_a_study_of_another_student_or_teacher_is_not_compared(run: Path) -> None:
    none = ("--good", "0", "--failed", "0", "--samples", "0")
    for name in ("plain", "teacher"):
        other = run / "ablation" / name
        ignore = shutil.ignore_patterns("ablation", "*.zarr", "*.safetensors")
        shutil.copytree(run, other, ignore=ignore)
    metrics = run / "ablation/teacher/metrics.json"
    record = json.loads(metrics.read_text())
    digest = hashlib.sha256((run / "teacher.safetensors").read_bytes()).hexdigest()
    record["network"] = {"file": "teacher.safetensors", "kind": "teacher", "sha256": digest}
    metrics.write_text(json.dumps(record))
    manifest = run / "ablation/plain/.state/manifests/eval.json"
    config = json.loads(manifest.read_text())
    config["config"]["kd_loss"] |= {"enable": False, "T": 9.0}  # without targets: no other recipe
    config["config"]["mse"]["mse_weight"] = 0.0
    manifest.write_text(json.dumps(config))
    assert "Not compared" not in make(run, *none).read_text()

    config["config"]["train_student"]["epochs"] = 9
    manifest.write_text(json.dumps(config))
    (run / "teacher.safetensors").write_bytes(b"another teacher")
    text = make(run, *none).read_text()
    assert (
        "Not compared with the same student without targets: train_student.epochs is 9, here 2"
    ) in text
    assert "Not compared with the teacher, on HR faces: it is of other weights" in text
    manifest.unlink()
    assert "how they were trained is not recorded" in make(run, *none).read_text()


@pytest.mark.slow
def test_images_that_were_not_evaluated_are_not_shown(
    run: Path, tmp_path: Path, command: Callable[..., Result]
) -> None:
    few = ("--good", "1", "--failed", "1", "--samples", "0")
    data = Path(json.loads((run / "metrics.json").read_text())["data"]["root"])
    other = Path(shutil.copytree(data, tmp_path / "other"))
    text = make(run, *few, "--set", f"data.root={other}").read_text()
    assert "not those that were evaluated" not in text
    assert "data:image/jpeg" in text
    one, two, *_ = sorted((other / "imgs" / "query").iterdir())
    shutil.copy(one, two)
    text = make(run, *few, "--set", f"data.root={other}").read_text()
    assert f"The images at {other} are not those that were evaluated (imgs differ)" in text
    assert "data:image/jpeg" not in text
    assert "data:image/jpeg" in make(run, *few).read_text()
    two.unlink()
    words = ("report", str(run), *few, "--set", f"data.test_root={other}")
    assert "(labels differ); to name their folder: --set data.test_root=DIR" in " ".join(
        command(*words).err.split()
    )


@pytest.mark.slow
def test_equal_inputs_give_equal_bytes(evaluated: Path, page_file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.html"
    make(evaluated, "--good", "20", "--failed", "20", "--samples", "3", "--out", str(again))
    assert again.read_bytes() == page_file.read_bytes()


@pytest.mark.slow
def test_another_process_at_another_time_writes_the_same_bytes(run: Path, tmp_path: Path) -> None:
    before = make(run).read_bytes()
    for path in run.rglob("*"):
        os.utime(path, (10**9, 10**9))
    again = tmp_path / "again.html"
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    done = run_process("report", str(run), "--out", str(again), env=environment)
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == before


@pytest.mark.slow
def test_without_cache_or_student_the_attention_is_left_out_with_the_reason(run: Path) -> None:
    shutil.rmtree(run / "targets.zarr")
    text = make(run).read_text()
    assert "Not shown: targets.zarr is not in the run folder." in text
    assert "The run folder has no target cache." in text
    (run / "student.safetensors").unlink()
    assert "Not shown: targets.zarr" in make(run).read_text()


def test_zero_requested_shows_none(run: Path) -> None:
    text = make(run, "--good", "0", "--failed", "0", "--samples", "0").read_text()
    assert "No queries were requested." in text
    assert "No training samples were requested." in text


def test_a_damaged_cache_is_said_and_stops_nothing(run: Path) -> None:
    for chunk in (run / "targets.zarr" / "teachers").rglob("c.*"):
        if chunk.is_file():
            chunk.write_bytes(b"nothing")
    assert "Not shown: " in make(run).read_text()


def test_a_run_without_its_other_files_still_has_a_report(run: Path) -> None:
    for name in ("queries.csv", "ranked.csv", "breakdown.csv", "student_history.csv",
                 "teacher_history.csv", "config.yaml", "left_out.csv"):  # fmt: skip
        (run / name).unlink()
    text = make(run).read_text()
    for sentence in ("queries.csv is not in the run folder", "has no training history",
                     "has no comparison with a teacher", "has no config.yaml"):  # fmt: skip
        assert sentence in text


@pytest.mark.slow
def test_missing_images_are_placeholders_and_may_have_moved(run: Path, tmp_path: Path) -> None:
    metrics = run / "metrics.json"
    record = json.loads(metrics.read_text())
    record["data"]["root"] = str(tmp_path / "nowhere")
    metrics.write_text(json.dumps(record))
    assert "image not found" not in make(run).read_text()  # data.root still has them
    text = make(run, "--set", f"data.root={tmp_path / 'nowhere'}").read_text()
    assert "image not found" in text
    assert "The images are not found at" in text
    assert "Not shown: " in text


def test_without_an_evaluation_the_error_names_the_command(run: Path) -> None:
    (run / "metrics.json").write_text('{"streams": {}}')
    with pytest.raises(InputError, match="of another version"):
        make(run)
    (run / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"metrics\.json: missing, or has no manifest"):
        make(run)


@pytest.mark.slow
def test_a_student_of_one_stream_has_a_report(
    project: Project, tiny_run: Path, tiny_benchmark: Path
) -> None:
    with_cache(project, tiny_run, tiny_benchmark).ok("eval", "--set", "forward_mode=body")
    text = make(project.run).read_text()
    assert "This network has no face stream" in text
    assert "Teacher&#39;s prediction" in text or "Teacher's prediction" in text
    assert "Student&#39;s prediction" not in text
    assert "Student's prediction" not in text
    assert "has no comparison with a teacher" in text


def test_queries_are_chosen_by_average_precision_and_never_twice() -> None:
    queries = pd.DataFrame(
        {"sample_id": list("abcdef"), "ap": [1, 0.1, 0.9, 0.1, 0.5, 0.3], "pid": list("uvwxyz"),
         "rank1": [1, 0, 1, 0.5, 1, 0]}
    )  # fmt: skip
    lists = pd.DataFrame(
        {"query": list("abcdef"), "clothes": "red", "camid": "1", "positive": "False"}
    )
    chosen = ranked.choose(queries, lists, 2, 2, outfits=False)
    assert chosen["sample_id"].tolist() == ["b", "d", "a", "c"]
    assert chosen["outcome"].tolist() == ["failed", "failed", "good", "good"]
    assert len(ranked.choose(queries, lists, 9, 9, outfits=False)) == 6
    one = queries.assign(pid="u")
    chosen = ranked.choose(one, lists, 9, 9, outfits=False)  # an identity once
    assert chosen["sample_id"].tolist() == ["b", "a"]


def test_failed_queries_are_chosen_by_kind_in_turn() -> None:
    queries = pd.DataFrame(
        {"sample_id": list("abcdefg"), "pid": list("tuvwxyz"), "rank1": 0.0,
         "ap": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], "camid": "1",
         "clothes": ["red", "red", "red", "blue", "blue", "blue", "blue"],
         "face": ["False", "True", "True", "False", "False", "True", "True"]}
    )  # fmt: skip
    lists = pd.DataFrame(
        {
            "query": list("abcdefg"),
            "clothes": "red",
            "camid": ["1", "1", "2", "1", "2", "1", "2"],
            "positive": "False",
        }
    )
    every = ranked.choose(queries, lists, 9, 9, outfits=True)
    kinds = dict(zip(every["sample_id"], every["kind"], strict=True))
    assert kinds == {"a": "outfit", "b": "outfit", "c": "outfit", "d": "no face", "e": "no face",
                     "f": "camera", "g": "face"}  # fmt: skip
    few = ranked.choose(queries, lists, 0, 5, outfits=True)["sample_id"].tolist()
    assert few == ["a", "b", "d", "f", "g"]  # a second of the first kind before a third
    by_person = ranked.choose(queries, lists, 9, 9, outfits=False)
    assert "outfit" not in {*by_person["kind"]}


def test_thumbnails_only_shrink_and_skip_files_that_are_no_images(tmp_path: Path) -> None:
    Image.new("RGB", (400, 100)).save(tmp_path / "wide.png")
    Image.new("L", (10, 20)).save(tmp_path / "small.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    show = Thumbnails({"a": (40, 40)})
    assert show("a", None) is None
    for name in ("wide.png", "small.jpg"):
        uri = show("a", str(tmp_path / name))
        assert uri is not None
        assert uri.startswith("data:image/jpeg;base64,")
    assert show("a", str(tmp_path / "broken.jpg")) is None
    assert show("a", str(tmp_path / "absent.jpg")) is None
    assert show.missing == 2


def test_colours_of_figures_are_those_of_the_page() -> None:
    css = Path(page_module.__file__).with_name("report.css").read_text().split("@media")[0]
    assert figures.COLOURS.items() <= dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", css)).items()


def test_an_inline_chart_has_text_variables_for_colours_and_no_style() -> None:
    drawn = figures.to_svg(
        figures.cmc({"face": [0.2, 0.8], "all": [0.3, 1.0]}, "CMC"), "n", "<b>", "a & b"
    )
    assert drawn == figures.to_svg(
        figures.cmc({"face": [0.2, 0.8], "all": [0.3, 1.0]}, "CMC"), "n", "<b>", "a & b"
    )
    root = ElementTree.fromstring(drawn)
    assert {"face", "all", "rank", "matching rate, %"} <= {t.text for t in root.iter("text")}
    assert [root.find("title").text, root.find("desc").text] == ["<b>", "a & b"]  # type: ignore[union-attr]
    assert "style" not in drawn
    assert set(re.findall(r"#[0-9a-f]{6}", drawn)) == set()
    assert {"var(--face)", "var(--all)", "var(--rule)"} <= set(re.findall(r"var\(--\w+\)", drawn))


@pytest.mark.parametrize(
    "values", [[1.0, math.nan, 3.0], [math.inf, 1.0], [math.nan], [0.0], [-2.0]]
)
def test_charts_leave_out_values_that_are_not_finite(values: list[float]) -> None:
    chart = figures.history_chart("x", range(len(values)), values, "face")
    for figure in (chart, figures.spark(values, 3.0, "all")):
        assert "nan" not in figures.to_svg(figure, "n", "x")


def test_rows_of_runs_with_any_name_are_labelled(tmp_path: Path) -> None:
    rows = [
        figures.Interval("market", name, "all", 50, math.nan, 60) for name in ("_a", "$b$", "c<")
    ]
    drawn = figures.to_svg(figures.intervals(rows, "mAP over $b^$"), "n", "mAP")
    texts = {text.text for text in ElementTree.fromstring(drawn).iter("text")}
    assert {"_a", "$b$", "c<", "market", "50.0", "mAP over $b^$"} <= texts
    for name in ("a", "b/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        figures.write_figure(figures.intervals(rows, "mAP"), tmp_path / name)
    for suffix in ("png", "svg"):
        one, other = (tmp_path / f"{name}.{suffix}" for name in ("a", "b/a"))
        assert one.read_bytes() == other.read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"


def test_a_cmc_marks_the_usual_ranks_and_names_its_curves_without_overlap() -> None:
    curves = {"face": [0.5, *[1.0] * 29], "body": [0.1] * 30, "all": [0.2, *[1.0] * 29]}
    [axes] = figures.cmc(curves, "CMC", (1, 30), {"face": "face (n = 5)"}).axes
    assert axes.get_xticks().tolist() == [1, 5, 10, 20, 30]
    assert axes.get_xlim() == (1, 30)
    assert axes.get_legend() is None
    heights = {text.get_text(): text.xy[1] for text in axes.texts}  # type: ignore[attr-defined]
    assert {*heights} == {"face (n = 5)", "body", "all"}
    assert abs(heights["face (n = 5)"] - heights["all"]) >= 6
    assert heights["body"] == pytest.approx(10)


def test_labels_are_apart_and_as_near_as_can_be() -> None:
    assert figures.apart([], 1) == []
    assert figures.apart([5, 1, 3], 1) == [5, 1, 3]
    assert figures.apart([2, 2, 9], 2) == [1, 3, 9]
    assert figures.apart([10, 10], 2, top=10) == [8, 10]
    assert figures.apart([0, 1, 9], 4, bottom=0) == [0, 4, 9]
    assert figures.apart([0, 0, 0], 5, top=8, bottom=0) == [-2, 3, 8]


def test_points_of_a_scatter_are_named_without_overlap() -> None:
    points = [figures.Point(f"T={t}, w={w}", w, 20 + t * w, 1.0) for t in (1, 2, 3) for w in (1, 2)]
    [axes] = figures.scatter(points, "mAP", "cost", "all").axes
    assert {text.get_text() for text in axes.texts} == {point.name for point in points}
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(box.count_overlaps(boxes[:i]) for i, box in enumerate(boxes))


def test_protocols_with_the_same_results_are_one() -> None:
    one, other = {"all": {"mAP": 0.1}}, {"all": {"mAP": 0.2}}
    protocols = {"a": {"streams": one}, "b": {"streams": other}, "c": {"streams": dict(one)}}
    assert [*results.merged(protocols)] == ["a, c", "b"]


def test_losses_and_metrics_are_known_by_the_order_of_columns() -> None:
    history = pd.DataFrame(
        {"epoch": [0, 1], "lr": [1e-3, 1e-5], "ce_face": [2.0, 1.0], "novel": [1.0, 1.0],
         "total": [3.0, 2.0], "agree_part_0": [0.1, 0.6], "divergence_part_0": [1.0, 0.5],
         "gap": [4.0, 5.0], "images_per_s": [9.0, 9.0]}
    )  # fmt: skip
    losses, metrics = histories.split(history.columns)
    assert losses == ["ce_face", "novel", "total"]
    assert metrics == ["agree_part_0", "divergence_part_0", "gap"]
    charts = histories.charts("student", history)
    assert [re.findall("<title[^>]*>(.*?)</title>", chart)[0] for chart in charts] == [
        f"student: {name} by epoch" for name in ("total", "ce face", "novel", "lr")
    ]
    agreement, divergence, gap = histories.heads(history)
    assert agreement["heads"]["part 0"][:2] == ("10.0", "60.0")
    assert divergence["heads"]["part 0"][:2] == ("1", "0.5")
    assert gap["title"] == "gap"
    blank = histories.heads(history.assign(agree_part_0=math.nan))  # measured in no epoch
    assert blank[0]["heads"]["part 0"] == ("–", "–", "")
    assert histories.heads(history[["epoch", "total"]]) == []
    assert histories.numbers(history, ["gap"])["rows"] == [["0", "4"], ["1", "5"]]
