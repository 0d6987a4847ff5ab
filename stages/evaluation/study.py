"""The runs of a study that the report of its run compares with, while they belong to it."""

from __future__ import annotations

from pathlib import Path

from deskpro.cache.files import sha256
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.params import both_named, flatten, names_option
from deskpro.stages.base.run_folder import RunFolder, read_manifest
from deskpro.stages.losses.terms import TERMS, active_terms

PLAIN, TEACHER = "plain", "teacher"
STUDIED = {PLAIN: "the same student without targets", TEACHER: "the teacher, on HR faces"}
"""Folders of a study (`pipeline.students`, `pipeline.references`), and what they hold."""
_TARGETS = ("kd_loss", "teachers", *(t.weight for t in TERMS.values() if t.target != "label"))
"""What a student without targets has otherwise."""


def targets_off(options: Options, *kept: str) -> dict[str, object]:
    """Option → value, by which a student learns no target, or those of the terms `kept` alone."""
    terms = active_terms(options, options.streams)
    off = [terms[name] for name in terms if terms[name].target != "label" and name not in kept]
    return {term.enabled: False for term in off if term.enabled} | {
        term.weight: 0.0 for term in off if not term.enabled
    }


def studied(folder: RunFolder, teacher: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """The evaluated runs of the study of a run, by what they are; and why others don't count.

    teacher: its weights.
    """
    found, refused = [], []
    for name, text in STUDIED.items():
        path = folder.path / "ablation" / name
        if not (path / folder.metrics.name).exists():
            continue
        try:
            why = _other_options(folder, path) if name == PLAIN else _other_weights(path, teacher)
        except InputError as error:
            why = str(error)
        if why:
            refused.append(f"{text}: {why}")
        else:
            found.append((path, text))
    return found, refused


def _other_options(folder: RunFolder, plain: Path) -> str:
    """In which options a student differs from that of the run, beside its targets; empty: none."""
    own = read_manifest(folder.manifest("train-student"))
    other = read_manifest(RunFolder(plain).manifest("eval"))
    if own is None or other is None:
        return "how they were trained is not recorded"
    mine, theirs = both_named(own["params"], flatten(other["config"]))
    differing = [
        f"{name} is {theirs.get(name)}, here {mine[name]}"
        for name in own["params"]
        if mine[name] != theirs.get(name) and not any(names_option(t, name) for t in _TARGETS)
    ]
    if not differing:
        return ""
    return f"{'; '.join(differing)}. The study makes it again: deskpro ablation"


def _other_weights(path: Path, teacher: Path) -> str:
    """How the weights of an evaluated teacher differ from the run's; empty: in nothing that is
    known."""
    from deskpro.stages.reporting import record

    evaluated = record.read_metrics(path)["network"]["sha256"]
    now = sha256(teacher) if teacher.is_file() else evaluated
    if now == evaluated:
        return ""
    return f"it is of other weights ({evaluated[:12]}) than {teacher} ({now[:12]})"
