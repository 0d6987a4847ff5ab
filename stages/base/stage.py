"""What a stage is: its params, dependencies and outputs, and why an output is not fresh.

The words are those of DVC (params, deps, outs). A reason is a value; `pipeline.messages` words it.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from deskpro.cache.file_index import FileIndex
from deskpro.stages.base.options import Options, relevant
from deskpro.stages.base.run_folder import RunFolder


class Reason(NamedTuple):
    """Why an output is not what its stage would make now.

    effect: `rerun` replaces the output and needs --force; `extend` adds to it; `notice` still
    allows later stages to use it.
    """

    kind: Literal["no-record", "param", "dep", "out", "store"]
    name: str
    before: object = None
    now: object = None
    effect: Literal["rerun", "extend", "notice"] = "rerun"


class Dep(NamedTuple):
    """A file that a stage reads, or with `pattern` the files of a folder that match it."""

    role: str
    path: Path
    pattern: str | None = None


Record = Mapping[str, Any]
"""The manifest of a finished stage, as `pipeline.runner` writes it."""


@dataclass
class Digests:
    """Content digests of files and folders; each is computed once per command."""

    index: FileIndex
    deep: bool = False
    _known: dict[Dep, str | None] = field(default_factory=dict)

    def of(self, dep: Dep) -> str | None:
        """SHA-256 of a file's content, or over the names and contents of the files of a folder.

        None where nothing is there: an output stays fresh when its source was removed.
        """
        key = dep._replace(role="")
        if key not in self._known:
            self._known[key] = self._compute(dep)
        return self._known[key]

    def forget(self) -> None:
        """A stage has written files: look again."""
        self._known.clear()

    def _compute(self, dep: Dep) -> str | None:
        if dep.pattern is None:
            if not dep.path.is_file():
                return None
            return self.index.probe([dep.path], deep=self.deep)[str(dep.path)].sha256
        if not dep.path.is_dir():
            return None
        files = sorted(str(path) for path in dep.path.glob(dep.pattern) if path.is_file())
        facts = self.index.probe(files, deep=self.deep)
        digest = hashlib.sha256()
        for name in files:
            below = name.removeprefix(f"{dep.path}/")
            digest.update(f"{below}\0{facts[name].sha256}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class Job:
    """How a stage is run.

    force: existing output may be replaced. deep: every file is read again. provenance: by name,
    everything that the output depends on.
    """

    index: FileIndex
    force: bool = False
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
        """Raise InputError where it cannot run, before anything else is looked at."""

    def stale(self, record: Record | None, digests: Digests) -> list[Reason]:
        """Why the existing output is not what it would make now; empty where it is."""
        if record is None:
            return [Reason("no-record", self.name)]
        outs = self.out_digests(digests)
        if outs != record["outs"]:
            return [Reason("out", str(self.outs()[0]), record["outs"], outs)]
        return [
            *_param_reasons(record["params"], relevant(self.options, self.params)),
            *_dep_reasons(record["deps"], self.digests(digests)),
        ]

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


def _param_reasons(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Reason]:
    names = [*now, *(name for name in before if name not in now)]
    return [
        Reason("param", name, before.get(name), now.get(name))
        for name in names
        if name not in before or name not in now or before[name] != now[name]
    ]


def _dep_reasons(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> list[Reason]:
    """A dependency that is no longer there is no reason; one that is new or no longer used is."""
    changed = [
        Reason("dep", role, before[role], digest)
        for role, digest in now.items()
        if role in before and digest is not None and digest != before[role]
    ]
    other = [
        Reason("dep", role, before.get(role), now.get(role))
        for role in sorted(before.keys() ^ now.keys())
    ]
    return changed + other
