"""Turn a published checkpoint into weights files of this project."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deskpro.stages.base.errors import InputError
from deskpro.stages.data.index import KINDS, class_order, read_index
from deskpro.stages.data.layouts import layout_of


def run(
    checkpoint: Path, folder: Path, data: Path | None, dataset: str, force: bool = False
) -> dict[str, object]:
    """Write teacher.safetensors and student.safetensors, whichever the checkpoint has.

    Nothing is written unless everything fits.

    Args:
        checkpoint: a published file.
        folder: gets the weights.
        data: root of the dataset that it was trained on, if available: the class order is that of
            its complete training samples.
        dataset: the layout of that dataset.
        force: whether weights in the folder are replaced.

    Returns:
        What the summary shows.
    """
    from deskpro.stages.models.teacher import Teacher
    from deskpro.stages.models.weights import kinds, load_student, load_teacher, save

    classes = None if data is None else _classes(data, dataset)
    facts: dict[str, object] = {}
    networks = {}
    for kind in kinds(checkpoint):
        loaded, info = load_teacher(checkpoint) if kind == "teacher" else load_student(checkpoint)
        if classes is not None and len(classes) != info.num_classes:
            raise InputError(
                f"{checkpoint}: its {kind} was trained on {info.num_classes} identities, {data} "
                f"has {len(classes)} with complete samples. Use the dataset that it was trained "
                "on, or leave out --data"
            )
        path = folder / f"{kind}.safetensors"
        network = loaded.face_net if isinstance(loaded, Teacher) else loaded
        networks[path] = network, replace(info, classes=classes)
        options = ", ".join(f"{name} {value}" for name, value in info.network.items())
        facts[kind] = f"{path} ({info.num_classes} identities; {options})"
    present = [str(path) for path in networks if path.exists()]
    if present and not force:
        raise InputError(f"{', '.join(present)}: exists already; use --force or another --out")
    for path, (network, info) in networks.items():
        save(path, network, info)
    names = ["unknown; add --data ROOT"] if classes is None else classes
    return facts | {"class order": ", ".join(names[:8]) + ", …" * (len(names) > 8)}


def _classes(root: Path, dataset: str) -> list[str]:
    table, problems = read_index(root, layout_of(root, dataset), ("train",))
    if problems:
        raise InputError("\n".join(map(str, problems)))
    return class_order(table.loc[table[list(KINDS)].notna().all(axis=1), "pid"])
