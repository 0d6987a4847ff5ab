"""Records that another version wrote, or an editor spoiled: refused by name, or left out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deskpro.cache.file_index import FileIndex
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.files import list_images
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Dep, Digests
from deskpro.stages.reporting import record
from tests.conftest import Project, Result

VALUES = (None, 7, "text", [], {}, [1, "x"], {"a": 1})


def spoiled(tree: object, depth: int) -> Iterator[tuple[str, object]]:
    """What was done, and the tree with one key removed or one value of another type."""
    if not isinstance(tree, dict) or not depth:
        return
    for key in tree:
        yield f"without {key}", {name: tree[name] for name in tree if name != key}
        for value in VALUES:
            yield f"{key} = {value!r}", tree | {key: value}
        for what, inner in spoiled(tree[key], depth - 1):
            yield f"{key}: {what}", tree | {key: inner}


@pytest.mark.slow
@pytest.mark.finished("eval")
@pytest.mark.parametrize("name", ["train-teacher", "teacher-cache", "train-student", "eval"])
def test_a_spoiled_manifest_is_as_none_or_stale(name: str, project: Project) -> None:
    path = project.run / ".state" / "manifests" / f"{name}.json"
    kept = json.loads(path.read_text())
    before = (project.run / "student.safetensors").read_bytes()
    for what, tree in spoiled(kept, 1):
        path.write_text(json.dumps(tree))
        result = project("all")
        assert result.code in (0, 2), what
        assert "Traceback" not in result.err, what
        assert result.code == 0 or "--force" in result.err, what
    assert (project.run / "student.safetensors").read_bytes() == before


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_spoiled_figures_are_refused(project: Project, command: Callable[..., Result]) -> None:
    path = project.run / "metrics.json"
    kept, accepted, refused = json.loads(path.read_text()), list[str](), list[str]()
    for what, tree in spoiled(kept, 6):
        path.write_text(json.dumps(tree))
        try:
            record.read_metrics(project.run, anyway=True)
        except InputError as error:
            refused.append(str(error))
        else:
            accepted.append(what)
    assert all("not readable, or of another version" in said for said in refused)
    assert not any("\n" in said for said in refused)
    # What may be anything, be absent, or be any text or number of its kind.
    free = ("skipped", "face", "flip", "sd", "file", "kind", "sha256", "root", "dataset", "rule",
            "digest", "labels", "imgs", "queries", "gallery", "draws", "identities", "fusion",
            "transductive", "verification = ", "mistakes = ", "cameras = ",
            "changed = ", "without attention", "attention = None",
            " mask = ", "without head = ")  # fmt: skip
    strict = [what for what in accepted if not any(name in what for name in free)]
    assert all(": without " in what for what in strict)
    protocols = {**kept["protocols"], "market": {**kept["protocols"]["market"], "streams": {}}}
    path.write_text(json.dumps(kept | {"protocols": protocols}))
    for words in (["report", str(project.run)], ["compare", str(project.run), str(project.run)]):
        result = command(*words)
        assert result.code == 2
        assert "metrics.json: not readable" in result.err
        assert "protocols.market.streams" in result.err


@pytest.mark.finished("eval")
@pytest.mark.parametrize("name", record.COLUMNS)
def test_a_spoiled_table_is_left_out_with_a_warning(
    name: str, project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    path, (texts, numbers) = project.run / name, record.COLUMNS[name]
    whole = pd.read_csv(io.StringIO(path.read_text()), dtype=str, keep_default_na=False)
    assert {*texts, *numbers} <= {*whole}
    for column in (*texts, *numbers):
        whole.drop(columns=column).to_csv(path, index=False)
        assert record.read_table(path) is None
        assert f"{name}: cannot be read and is left out (it has no column {column}" in (
            capfd.readouterr().err
        )
    for column in numbers if len(whole) else ():
        for word in ("text", "nan", "1e999", ""):
            whole.assign(**{column: word}).to_csv(path, index=False)
            assert record.read_table(path) is None, (column, word)
    for content in (b"", b"\xff\xfe\x00", b'"', b"a,b\n1,2,3\n"):
        path.write_bytes(content)
        assert record.read_table(path) is None
    whole.to_csv(path, index=False)
    table = record.read_table(path)
    assert table is not None
    assert all(np.issubdtype(table[column].dtype, np.floating) for column in numbers)
    path.unlink()
    assert record.read_table(path) is None


def test_a_source_that_is_not_named_is_the_run_itself(tmp_path: Path) -> None:
    (tmp_path / ".state").mkdir()
    for content in ("{}", '{"a": 1}', "[]", "7", "{"):
        (tmp_path / ".state" / "from.json").write_text(content)
        assert RunFolder.open(tmp_path).source is None


def test_a_recorded_source_is_found_through_a_link_and_after_a_move(tmp_path: Path) -> None:
    source, run = tmp_path / "runs" / "source", tmp_path / "runs" / "deep" / "run"
    (source / ".state").mkdir(parents=True)
    RunFolder(run, source).write_source()
    link = tmp_path / "link"
    link.symlink_to(run)
    assert RunFolder.open(link).upstream == source
    moved = run.rename(tmp_path / "moved")
    assert RunFolder.open(moved).upstream == source  # where it was
    moved.rename(run)
    (tmp_path / "runs").rename(tmp_path / "all")
    together, other = (tmp_path / "all" / name for name in ("deep/run", "other"))
    assert RunFolder.open(together).upstream == tmp_path / "all/source"
    (tmp_path / "all/source").rename(other)
    with pytest.raises(InputError, match="no run folder"):
        RunFolder.open(together)
    assert RunFolder.open(together, other).upstream == other  # given anew
    RunFolder(together, other).write_source()
    (tmp_path / "all/source/.state").mkdir(parents=True)
    with pytest.raises(InputError, match="its targets are those of"):
        RunFolder.open(together, tmp_path / "all/source")


def test_the_files_that_are_read_are_those_whose_content_counts(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for path in (folder / "a/1.jpg", elsewhere / "2.jpg"):
        path.parent.mkdir(parents=True)
        path.write_bytes(path.name.encode())
    index = FileIndex(tmp_path / "index")

    def digests() -> list[str | None]:
        found = Digests(index)
        return [found.of(Dep("", folder, pattern)) for pattern in ("**/*", "*/*", ("a/1.jpg",))]

    before = digests()
    for name in (".DS_Store", "a/.DS_Store", "a/._1.jpg", "a/Thumbs.db", ".hidden/3.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"nobody reads it")
    assert digests() == before
    (folder / "b").symlink_to(elsewhere)
    linked = digests()
    assert [one != other for one, other in zip(before, linked, strict=True)] == [True, True, False]
    (elsewhere / "4.jpg").write_bytes(b"4")
    assert [one != other for one, other in zip(linked, digests(), strict=True)] == [
        True, True, False
    ]  # fmt: skip
    assert list_images(folder, "**/*") == ["a/1.jpg", "b/2.jpg", "b/4.jpg"]
