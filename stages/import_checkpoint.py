"""Turn a published checkpoint into weights files of this project."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from deskpro.stages.base.errors import InputError
from deskpro.stages.data.index import KINDS, class_order, read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import ModelInfo, kinds, load_student, load_teacher, save


@dataclass(frozen=True)
class Inputs:
    """checkpoint: a published file; data: root of the set it was trained on, if at hand."""

    checkpoint: Path
    data: Path | None


@dataclass(frozen=True)
class Outputs:
    """folder: gets teacher.safetensors and student.safetensors, as far as the file holds them."""

    folder: Path


def run(inputs: Inputs, outputs: Outputs, dataset: str, force: bool = False) -> dict[str, object]:
    """Import everything that the file holds; nothing is written unless all of it fits.

    Weights that lie there already are replaced only by `force`.

    With data, the class order is that of its complete training samples, read by the naming rule of
    `dataset`, and their identities must be as many as the checkpoint's classes. Returns the facts
    for the summary.
    """
    classes = None if inputs.data is None else _classes(inputs.data, dataset)
    networks: dict[str, tuple[LMBN | Student, ModelInfo]] = {}
    for kind in kinds(inputs.checkpoint):
        if kind == "teacher":
            teacher, info = load_teacher(inputs.checkpoint)
            networks[kind] = teacher.face_net, info
        else:
            networks[kind] = load_student(inputs.checkpoint)
    for kind, (network, info) in networks.items():
        if classes is not None and len(classes) != info.num_classes:
            raise InputError(
                f"{inputs.checkpoint}: its {kind} was trained on {info.num_classes} "
                f"identities, {inputs.data} has {len(classes)} with complete samples. Give the set "
                "that it was trained on, or leave --data out"
            )
        networks[kind] = network, replace(info, classes=classes)
    facts: dict[str, object] = {}
    paths = {kind: outputs.folder / f"{kind}.safetensors" for kind in networks}
    present = [str(path) for path in paths.values() if path.exists()]
    if present and not force:
        raise InputError(f"{', '.join(present)}: exists already; --force replaces, or other --out")
    for kind, (network, info) in networks.items():
        path = paths[kind]
        save(path, network, info)
        options = ", ".join(f"{name} {value}" for name, value in info.network.items())
        facts[kind] = f"{path} ({info.num_classes} identities; {options})"
    facts["class order"] = (
        "not known; --data ROOT says it"
        if classes is None
        else ", ".join(classes[:8]) + ", …" * (len(classes) > 8)
    )
    return facts


def _classes(root: Path, dataset: str) -> list[str]:
    table, problems = read_index(root, LAYOUTS[dataset], ("train",))
    if problems:
        raise InputError("\n".join(map(str, problems)))
    return class_order(table.loc[table[list(KINDS)].notna().all(axis=1), "pid"])
