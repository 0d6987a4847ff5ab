"""The commit in the record of a stage: known in a checkout alone, and never a reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deskpro.pipeline.commit import commit
from tests.conftest import REPOSITORY, Project

Git = Callable[..., str]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git isn't installed")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one commit, and a tag."""
    folder = tmp_path / "code"
    (folder / "below").mkdir(parents=True)
    (folder / "module.py").write_text("one\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.invalid")
    git(folder, *who, "commit", "--quiet", "-m", "one")
    git(folder, *who, "tag", "-a", "v1", "-m", "one")
    return folder


def git(folder: Path, *arguments: str) -> str:
    plain = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=plain, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_it_is_the_short_name_and_says_whether_tracked_files_differ(root: Path) -> None:
    short = git(root, "rev-parse", "--short", "HEAD")
    assert commit(root) == short
    (root / "notes.txt").write_text("not of the repository")
    assert commit(root) == short
    (root / "module.py").write_text("two\n")
    assert commit(root) == f"{short}, modified"


def test_the_repository_around_a_package_is_not_its_own(root: Path, tmp_path: Path) -> None:
    assert commit(root / "below") is None
    assert commit(tmp_path) is None
    linked = tmp_path / "linked"
    git(root, "worktree", "add", "--quiet", str(linked))
    assert commit(linked) == git(root, "rev-parse", "--short", "HEAD")


def test_a_repository_that_the_environment_names_is_not_asked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    for name, path in (("GIT_DIR", other / ".git"), ("GIT_WORK_TREE", other)):
        monkeypatch.setenv(name, str(path))
    assert commit(root) == git(root, "rev-parse", "--short", "HEAD")


def test_without_git_or_a_commit_nothing_is_known(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "--quiet")
    assert commit(empty) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(root) is None


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_a_stage_records_the_commit_that_it_started_with_and_stays_fresh(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deskpro.pipeline import runner

    asked = iter(["1234567, modified", "89abcde", None])
    monkeypatch.setattr(runner, "commit", lambda: next(asked))
    manifest = project.run / ".state" / "manifests" / "eval.json"
    for code in ("1234567, modified", "89abcde", None):
        project.ok("eval", "--force")
        assert json.loads(manifest.read_text())["versions"].get("commit") == code
        assert "is fresh" in project.ok("eval").err  # not asked again
    assert next(asked, "none is left") == "none is left"


def test_this_checkout_knows_its_commit() -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("the tests lie in no checkout")
    known = commit()
    assert known is not None
    assert known.removesuffix(", modified") == git(REPOSITORY, "rev-parse", "--short", "HEAD")
