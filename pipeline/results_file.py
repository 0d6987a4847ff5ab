"""What was measured, as a CSV that may be tracked: rows of the same recipe and code count."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import read_json, sha256, write_aside
from deskpro.pipeline.stages import STAGES, stage_class
from deskpro.pipeline.studies import LONGER, PLAIN
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.params import relevant
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Dep, Digests
from deskpro.stages.data.layouts import KINDS, Files, image_folders

COLUMNS = {
    "study": str, "replicate": int, "variant": str, "stream": str, "protocol": str, "queries": int,
    "mAP": float, "rank1": float, "mAP_with_face": float, "minutes": float, "recipe": str,
    "code": str,
}  # fmt: skip
"""Columns and their types; mAP and rank1 are shares in 0..1, minutes those of training."""
_KEY = ("study", "replicate", "variant", "stream", "recipe", "code")
"""What tells a row from all others."""
_DIGITS = {"mAP": 6, "rank1": 6, "mAP_with_face": 6, "minutes": 2}
_DIGEST = 12

_PLACES = (
    "cache/**/*.py", "stages/**/*.py", "pipeline/references.py", "pipeline/replicates.py",
    "pipeline/students.py", "pipeline/studies.py",
)  # fmt: skip
"""The modules on which measured numbers depend, but for those of `_NO_NUMBERS`."""
_NO_NUMBERS = {
    "stages/reporting", "stages/preparation", "stages/base/display.py", "stages/base/log_file.py",
    "stages/base/prepare_options.py", "stages/base/progress.py", "stages/cache_plan.py",
    "stages/cache_tools.py", "stages/check_data.py", "stages/compare.py", "stages/embed.py",
    "stages/export.py", "stages/import_checkpoint.py", "stages/prepare.py",
    "stages/render_views.py", "stages/report.py", "stages/serving", "stages/base/workers.py",
}  # fmt: skip
"""Folders and modules that prepare, display, convert or use what is trained."""


class ResultsFile:
    """The rows of one study, recipe and code in a CSV; its other rows are kept as they are."""

    def __init__(
        self, path: Path, study: str, options: Options, given: Mapping[str, str] | None = None
    ) -> None:
        """given: what the students learn from and the recipe doesn't make (see `recipe_digest`)."""
        # Behind a link is one file with one lock, whatever it is called.
        self.path, self.study = path.resolve() if path.is_symlink() else path, study
        self.recipe, self.code = recipe_digest(options, given), code_digest()

    def rows(self) -> pd.DataFrame:
        """The rows of this study, recipe and code, in the order of their replicates."""
        every = self._read()
        return every[self._mine(every)].sort_values("replicate", kind="stable", ignore_index=True)

    def complete(self, variants: Collection[str]) -> set[int]:
        """The replicates that have a row of every variant."""
        rows = self.rows()
        return {
            number
            for number in rows["replicate"].unique().tolist()
            if {*variants} <= {*rows.loc[rows["replicate"] == number, "variant"]}
        }

    def add(self, replicate: int, rows: pd.DataFrame) -> None:
        """Add the rows of a replicate, in the place of those that it has; all of them or none."""
        new = rows.assign(study=self.study, recipe=self.recipe, code=self.code)
        new = new[[*COLUMNS]].round(_DIGITS)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):  # waits: it is a moment
            every = self._read()
            kept = every[~(self._mine(every) & (every["replicate"] == replicate))]
            with write_aside(self.path) as aside:
                text = [
                    part.to_csv(index=False, header=not i) for i, part in enumerate((kept, new))
                ]
                aside.write_text("".join(text), encoding="utf-8")

    def _mine(self, every: pd.DataFrame) -> pd.Series[bool]:
        own = {"study": self.study, "recipe": self.recipe, "code": self.code}
        return (every[[*own]] == [*own.values()]).all(axis=1)

    def _read(self) -> pd.DataFrame:
        if not self.path.exists():
            return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})
        try:
            found: pd.DataFrame = pd.read_csv(self.path, dtype=COLUMNS)
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path}: not a table of results ({error}). {_ELSE}") from None
        if [*found.columns] != [*COLUMNS]:
            raise InputError(
                f"{self.path}: its columns are {', '.join(map(str, found.columns))}; must be "
                f"{', '.join(COLUMNS)}. {_ELSE}"
            )
        if (repeated := found.duplicated([*_KEY])).any():
            line = f"line {2 + int(repeated.to_numpy().argmax())} repeats the {', '.join(_KEY)}"
            other = "remove one of the two, or give another file with --results"
            raise InputError(f"{self.path}: {line} of an earlier one; {other}")
        return found


_ELSE = "Give another file with --results, or remove this one"


def remaining(options: Options, path: Path) -> tuple[float, int] | None:
    """How much more mAP twice the steps give a student without targets, as it was measured.

    Args:
        path: a results file; rows of the recipe's study `parts` count, whatever their code.

    Returns:
        The mean difference of the widest stream, in points, and its number of replicates; None
        where none was measured.
    """
    from deskpro.stages.reporting.results import widest

    file = ResultsFile(path, "parts", options)
    rows = file._read()
    rows = rows[(rows["study"] == file.study) & (rows["recipe"] == file.recipe)]
    rows = rows[rows["variant"].isin([PLAIN, LONGER])]
    if {*rows["variant"]} != {PLAIN, LONGER}:
        return None
    rows = rows[rows["stream"] == widest(rows["stream"])]
    table = rows.pivot_table("mAP", ["code", "replicate"], "variant")
    gains = (table[LONGER] - table[PLAIN]).dropna()
    return (100 * float(gains.mean()), len(gains)) if len(gains) else None


def measured(folder: RunFolder) -> list[dict[str, Any]]:
    """The scores of an evaluated run under its first protocol, a row per stream."""
    protocols = json.loads(folder.metrics.read_text())["protocols"]
    protocol, scores = next(iter(protocols.items()))
    return [
        {
            "stream": stream,
            "protocol": protocol,
            "queries": numbers["queries"],
            "mAP": numbers["mAP"],
            "rank1": numbers["cmc"][0],
            "mAP_with_face": numbers.get("with face", {}).get("mAP"),
        }
        for stream, numbers in scores["streams"].items()
    ]


def recipe_digest(options: Options, given: Mapping[str, str] | None = None) -> str:
    """What tells a recipe from others: its options with an effect, its images (of a benchmark its
    options) and the content of weights that are given. An option that has its default doesn't
    count, so that the same recipe has the same digest where options are added: `code_digest` has
    the defaults.

    Args:
        options: the recipe.
        given: name → digest of what its run takes from elsewhere: a teacher, a cache, targets.
    """
    params = {param for name in STAGES for param in stage_class(name).params}
    files = [
        ("pre_train", options.pre_train),
        ("teacher.pre_train", options.teacher.pre_train),
        ("student.pre_train", options.student.pre_train),
        *(("cache.checkpoints", path) for path in options.cache.checkpoints),
        *((f"teachers.{name}.weights", t.weights) for name, t in options.teachers.items()),
    ]
    defaults = relevant(Options(), params)
    changed = {
        name: value
        for name, value in relevant(options, params).items()
        if name not in defaults or value != defaults[name]
    }
    facts = {
        "options": changed,
        "world": world_facts(options.data.root),
        "weights": [path and _content(option, path) for option, path in files],
    }
    if options.data.unlabelled is not None:
        facts["unlabelled"] = world_facts(options.data.unlabelled)
    if images := _images(options):
        facts["images"] = images
    if given:
        facts["given"] = dict(given)
    return _digest(json.dumps(facts, sort_keys=True))


def _content(option: str, path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise InputError(f"{option}: {path}: {error.strerror}; must be a file of weights") from None


def _images(options: Options) -> dict[str, str | None]:
    """The content of what is read and is not of the recipe's benchmark, by where it is read."""
    data, folders = options.data, dict[str, tuple[Path, Files]]()
    if not world_facts(data.root):
        folders |= image_folders(data.root, options.train_set, KINDS, ("train",))
    if options.test_root != data.root or not world_facts(data.root):
        held = image_folders(options.test_root, options.test_set, KINDS, ("query", "gallery"))
        folders |= {f"test: {role}": place for role, place in held.items()}
    if data.unlabelled is not None and not world_facts(data.unlabelled):
        folders |= {f"unlabelled: {kind}": (data.unlabelled / kind, "**/*") for kind in KINDS}
    digests = Digests(FileIndex())
    found = {role: digests.of(Dep(role, *place)) for role, place in folders.items()}
    return {role: digest for role, digest in found.items() if digest is not None}


def world_facts(root: Path) -> dict[str, Any]:
    """`format` and `options` of the synthetic benchmark in a folder; empty for another dataset."""
    path = root / "benchmark.json"
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
        return {"format": found["format"], "options": dict(found["options"])}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: cannot be read as the facts of a benchmark") from None


def code_digest(package: Path = Path(__file__).parents[1]) -> str:
    """What tells the code on which numbers depend from other code.

    Comments, format and documentation don't count, and neither does the version of Python.
    """
    shapes = {
        name: _shape(ast.parse((package / name).read_text(encoding="utf-8")))
        for place in _PLACES
        for name in sorted(path.relative_to(package).as_posix() for path in package.glob(place))
        if not any(f"{name}/".startswith(f"{other}/") for other in _NO_NUMBERS)
    }
    return _digest(json.dumps(shapes))


def _shape(node: Any) -> Any:
    """A syntax tree without its strings that are statements, and without empty fields.

    `ast.dump` writes the empty fields that its version of Python knows.
    """
    if isinstance(node, ast.AST):
        fields = {name: _shape(value) for name, value in ast.iter_fields(node)}
        return {type(node).__name__: {k: v for k, v in fields.items() if v not in (None, [])}}
    if isinstance(node, list):
        return [_shape(each) for each in node if not _is_text(each)]
    return None if node is None else repr(node)


def _is_text(node: Any) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
