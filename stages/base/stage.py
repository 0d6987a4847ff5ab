"""What a stage is: its params, deps and outs (DVC's words), and why an output is not fresh."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from deskpro.cache.file_index import FileIndex
from deskpro.stages.base.files import IMAGE_SUFFIXES, list_images
from deskpro.stages.base.options import Options
from deskpro.stages.base.params import both_named, relevant
from deskpro.stages.base.run_folder import RunFolder


class Reason(NamedTuple):
    """Why an output is not what its stage would make now; `pipeline.messages` words it.

    effect: `rerun` replaces the output and needs --force; `extend` adds to it; `notice` still
    allows later stages to use it.
    """

    kind: Literal["no-record", "param", "dep", "out", "store"]
    name: str
    before: object = None
    now: object = None
    effect: Literal["rerun", "extend", "notice"] = "rerun"


class Dep(NamedTuple):
    """A file that a stage reads, or of a folder the images that match a pattern (files of another
    kind where it ends in their extension), or what has one of some paths below it."""

    role: str
    path: Path
    pattern: str | tuple[str, ...] | None = None


@dataclass
class Digests:
    """Content digests of files and folders; each is computed once per command."""

    index: FileIndex
    deep: bool = False
    _known: dict[tuple[Path, str | tuple[str, ...] | None], str | None] = field(
        default_factory=dict
    )

    def of(self, dep: Dep) -> str | None:
        """SHA-256 of a file's content, or over the names and contents of the files of a folder.

        None where nothing is there: an output stays fresh when its source was removed.
        """
        _, path, pattern = dep
        if (path, pattern) not in self._known:
            there = path.is_file() if pattern is None else path.is_dir()
            self._known[path, pattern] = self._compute(path, pattern) if there else None
        return self._known[path, pattern]

    def forget(self) -> None:
        """A stage has written files: read them again."""
        self._known.clear()

    def _compute(self, path: Path, pattern: str | tuple[str, ...] | None) -> str:
        if pattern is None:
            return self.index.probe([path], deep=self.deep)[str(path)].sha256
        files = sorted(str(file) for file in _files(path, pattern) if file.is_file())
        digest = hashlib.sha256()
        for name, facts in self.index.probe(files, deep=self.deep).items():
            line = f"{name.removeprefix(f'{path}/')}\0{facts.sha256}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()


def _files(folder: Path, pattern: str | tuple[str, ...]) -> Iterator[Path]:
    """The files that are read: what nobody reads, as a file manager's, makes nothing stale."""
    if isinstance(pattern, str):
        ending = pattern.rpartition("*")[2]
        pattern = tuple(list_images(folder, pattern, (ending,) if ending else IMAGE_SUFFIXES))
    return map(folder.joinpath, pattern)


@dataclass(frozen=True)
class Job:
    """How a stage is run.

    replaces: existing output may be replaced. anew: a half-trained network is not resumed. deep:
    every file is read again. provenance: by name, everything that the output depends on.
    """

    index: FileIndex
    replaces: bool = False
    anew: bool = False
    deep: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a stage did; a dataclass per stage, whose fields `pipeline.messages` words."""


class Stage(ABC):
    """A command with the files that it reads and makes.

    To add one: a module with its class, and a row in `pipeline.stages.STAGES`.
    """

    name: ClassVar[str]
    params: ClassVar[tuple[str, ...]]
    """Options that the output depends on; a section stands for all of its options."""
    distributed: ClassVar[bool] = False
    """Whether torchrun may start it."""
    incremental: ClassVar[bool] = False
    """Whether running it again replaces only what other files changed: with --deep, no --force is
    needed for that."""
    required: ClassVar[bool] = False
    """Whether later stages read its output even where they have run before."""

    def __init__(self, options: Options, folder: RunFolder) -> None:
        self.options, self.folder = options, folder

    def param_values(self) -> dict[str, Any]:
        """What its output depends on beside files: the options of `params`, by name."""
        return relevant(self.options, self.params)

    @property
    def home(self) -> RunFolder:
        """Where its manifest lies: elsewhere for what several runs share."""
        return self.folder

    def upstream(self) -> str | None:
        """The name of the stage whose output it needs."""
        return None

    @abstractmethod
    def deps(self) -> list[Dep]:
        """What it reads."""

    @abstractmethod
    def outs(self) -> list[Path]:
        """The files that it makes and later stages read; the stage is done when all exist."""

    def scratch(self) -> list[Path]:
        """Folders that are not needed once the manifest is written."""
        return []

    def check(self) -> None:  # noqa: B027  most stages have nothing to check
        """Raise InputError where it cannot run, before anything else is checked."""

    def stale(self, record: Mapping[str, Any] | None, digests: Digests) -> list[Reason]:
        """Why the existing output is not what it would make now; empty where it is.

        record: its manifest, as `pipeline.runner` writes it.
        """
        if record is None:
            return [Reason("no-record", self.name)]
        outs, recorded = self.out_digests(digests), record["outs"]
        if differ := [n for n in {**outs, **recorded} if outs.get(n) != recorded.get(n)]:
            return [Reason("out", differ[0], recorded, outs)]
        return [
            *_changes("param", *both_named(record["params"], self.param_values())),
            *_changes("dep", record["deps"], self.digests(digests)),
        ]

    @property
    def output(self) -> Path:
        """What messages call its output."""
        return self.outs()[0]

    def out_digests(self, digests: Digests) -> dict[str, str | None]:
        """The content of its outputs, by their path below its home."""
        return {
            os.path.relpath(path, self.home.path): digests.of(Dep("", path)) for path in self.outs()
        }

    def digests(self, digests: Digests) -> dict[str, str | None]:
        """The content of its dependencies, by role."""
        return {dep.role: digests.of(dep) for dep in self.deps()}

    @abstractmethod
    def run(self, job: Job) -> Result:
        """Make the outputs; torch is imported here and not before."""


def _changes(
    kind: Literal["param", "dep"], before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[Reason]:
    """What is new, no longer used or different; a dependency that is no longer there is neither,
    nor is one that never was, or an option of a teacher that is None and comes or goes with it."""
    return [
        Reason(kind, name, before.get(name), now.get(name))
        for name in {**now, **before}
        if before.get(name) != now.get(name) and (kind == "param" or now.get(name, "") is not None)
    ]
