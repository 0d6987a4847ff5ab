"""Inspect a target cache: what it holds, whether it is undamaged, whether it is right."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pandas as pd

from deskpro.cache import pack
from deskpro.cache.errors import absent
from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import write_text
from deskpro.cache.lock import hold
from deskpro.cache.reader import MappedReader, all_bytes
from deskpro.cache.store import TargetStore
from deskpro.cache.verify import verify as damages
from deskpro.stages.base import distributed
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.training_options import OWN_TEACHER
from deskpro.stages.data.loader import ImageDataset, MultiViewDataset, batched, iterate, load
from deskpro.stages.data.views import StoredViews
from deskpro.stages.targets import provenance
from deskpro.stages.targets.class_share import class_share
from deskpro.stages.targets.kinds import (
    OF_TEACHERS,
    TARGETS,
    Arrays,
    OfHeads,
    Target,
    all_targets,
    is_imported,
    stored_fields,
)
from deskpro.stages.targets.teachers import LiveTeacher

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Title, columns and rows."""


def find_store(path: Path) -> Path:
    """The cache whose targets a run folder uses, or the path itself, if it is a cache."""
    if (store := RunFolder.open(path).targets).is_dir():
        return store
    if path.is_file():
        raise InputError(
            f"{path}: a file; must be a run folder or a cache. One that was packed is read in a "
            f"folder: {shlex.join(['deskpro', 'cache', 'unpack', str(path), '--run'])} DIR"
        )
    if path.is_dir() and not (path / "zarr.json").is_file():
        raise absent(path)
    return path


def verify(path: Path) -> list[str]:
    """A line for everything in a finished cache that isn't as it was written."""
    return [str(damage) for damage in damages(find_store(path))]


def unpack(file: Path, folder: RunFolder, *, force: bool) -> dict[str, object]:
    """Put a packed cache into a run folder, whole or not at all; what the summary shows.

    The run folder records whose it is (`RunFolder.given`). The same file again changes nothing.
    force: a cache that is there is replaced.

    Raises:
        CacheError: the file can't be used, or a command works on the run folder.
        InputError: another cache is there, or this one and damaged; the run uses that of another.
    """
    root, new = folder.targets, not folder.path.exists()
    if folder.source is not None:
        raise InputError(
            f"{folder.path}: its targets are those of {folder.source}. Give another folder with "
            "--run"
        )
    with pack.opened(file) as packed, ExitStack() as locks:
        files, digest, seals = (*packed.manifest, packed.manifest.seals)
        facts: dict[str, object] = {
            "files": f"{len(files)}, {sum(size for size, _ in files.values()) / 1e6:.1f} MB",
            "digest": digest,
            "cache": root,
        }
        if not force and (folder.given() or {}).get("digest") == digest:
            if found := damages(root):
                raise InputError(f"{found[0]}. Replace this cache with --force")
            return facts | {"cache": f"{root} was there"}
        if root.is_symlink():
            raise InputError(f"{root}: is a link. Remove it, or give another folder with --run")
        if root.exists() and not force:
            raise InputError(
                f"{root}: exists. Give another folder with --run, or replace it with --force"
            )
        locks.enter_context(hold(folder.path, "cache unpack"))
        if root.exists():
            locks.enter_context(hold(root, "cache unpack"))
        try:
            with pack.unpacking(packed, root):
                # A kill from here on leaves a cache that counts as no one's, or this one.
                record = {"file": file.name, "digest": digest, "seals": seals}
                write_text(folder.unpacked, json.dumps(record) + "\n")
                folder.manifest("teacher-cache").unlink(missing_ok=True)
        except BaseException:
            if new:
                with suppress(OSError):  # it is not empty
                    folder.path.rmdir()
            raise
    return facts


def info(path: Path) -> tuple[dict[str, object], list[Table]]:
    """Facts about a cache, finished or not, and a table for each target that has several parts.

    Top-1: percent of the stored views that a head assigns to the right identity. Entropy: of its
    softmax at temperature 1, mean over views (ln C at chance). By class: the share of the target
    that a table by class explains, see `targets.class_share`. Samples without a label, -1, don't
    count where classes do.
    """
    root = find_store(path)
    store = TargetStore(root)
    labels = store.column("label")
    size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    named = labels[labels >= 0]
    facts: dict[str, object] = {"samples": store.samples, "identities": len(np.unique(named))}
    if len(named) < len(labels):
        facts["without labels"] = f"{len(labels) - len(named)} of the samples"
    tables: list[Table] = []
    for name, target in _targets_of(store.groups()).items():
        reader = MappedReader(root, target.group, unfinished=True)
        facts |= _contents(name, reader)
        found = _statistics(target, reader, labels)
        if not target.parts:
            facts |= {key: _number(values[0]) for key, values in found.items()}
            continue
        if isinstance(target, OfHeads):
            found["by class, %"] = 100 * class_share(target, reader, labels)
        columns = ("part", *found)
        rows = [
            (part, *(_number(values[i]) for values in found.values()))
            for i, part in enumerate(_parts(target, reader))
        ]
        tables.append((name, columns, rows))
    facts["size"] = f"{size / 1e6:.1f} MB on disk"
    return facts | {"store": root}, tables


def _targets_of(groups: Sequence[str]) -> dict[str, Target]:
    """The targets that lie in groups, by name, those of other teachers as NAME/embedding."""
    own = {name: target for name, target in TARGETS.items() if target.group in groups}
    others = {}
    for group in groups:
        teacher, _, kind = group.removeprefix("teachers/").partition("/")
        if group.startswith("teachers/") and teacher != OWN_TEACHER and kind in OF_TEACHERS:
            others[f"{teacher}/{kind}"] = OF_TEACHERS[kind](teacher)
    return own | others


def _parts(target: Target, reader: MappedReader) -> list[str]:
    """The names of a target's parts; numbers where its teacher was another program."""
    count = next(iter(reader.schema.fields.values())).shape[0]
    return list(reader.fingerprint.get(target.parts) or [f"head {i}" for i in range(count)])


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4g}"


def _contents(name: str, reader: MappedReader) -> dict[str, object]:
    """What a group holds and what it was made from."""
    schema, fingerprint = reader.schema, reader.fingerprint
    total, each = schema.blocks * schema.views, all_bytes(reader) / schema.samples / schema.views
    facts: dict[str, object] = {
        name: f"{len(reader.records)} of {total} (block, view), "
        f"{'sealed' if reader.sealed else 'unfinished'}; {each / 1e3:.2f} kB per sample and view",
        ("views" if "/" not in name else f"{name}: views"): f"{schema.views} of each sample"
        + ", the first plain" * fingerprint["views"]["plain_view"],
    }
    if not reader.valid.all():
        facts[f"{name}: samples"] = f"{reader.valid.sum()} of {schema.samples} have it"
    for field, stored in schema.fields.items():
        shape = ", ".join(map(str, (schema.samples, schema.views, *stored.shape)))
        facts[f"{name}: {field}"] = f"[{shape}] {stored.dtype}: {stored.description}"
    if "teacher" in fingerprint:
        made_by, classes = fingerprint["teacher"], fingerprint.get("classes")
        kind = "weights" if "weights" in made_by else "imported"
        about = f"{kind} {made_by[kind][:12]}…" + (f", {len(classes)} classes" if classes else "")
        facts["teacher" if "/" not in name else f"{name}: teacher"] = about
    return facts


def _statistics(target: Target, reader: MappedReader, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Means over the views of the samples that have the target: of what it describes, and of the
    facts that were recorded with the chunks; by name float64 [parts]."""
    sums: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray | int] = {}
    with bar("read", len(reader.records), "chunks") as progress:
        for (block, view), record in sorted(reader.records.items()):
            here = reader.schema.rows(block)
            valid, label = reader.valid[here], labels[here][reader.valid[here]]
            fields = reader.schema.fields
            rows = {n: reader.chunk(n, block, view)[: len(valid)][valid] for n in fields}
            found = target.describe(rows, label) if len(label) else {}
            for key, values in found.items():
                sums[key] = sums.get(key, 0.0) + np.nansum(values, axis=0)
                seen[key] = seen.get(key, 0) + np.count_nonzero(~np.isnan(values), axis=0)
            for key, means in record.facts.items():
                sums[key] = sums.get(key, 0.0) + len(label) * np.asarray(means)
                seen[key] = seen.get(key, 0) + len(label)
            progress.advance()
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no sample has it
        return {key: total / seen[key] for key, total in sums.items()}


def audit(
    options: Options, folder: RunFolder, *, samples: int, seed: int, deep: bool
) -> tuple[dict[str, object], list[str]]:
    """Compute the targets of `samples` (sample, view), drawn with `seed`, again, and compare.

    Gives facts for the summary, and a line for each difference, none where the cache is right.

    deep: every image file is read again. Imported targets can't be computed again. Raises
    InputError where a teacher isn't here.
    """
    root, weights = folder.targets, options.pre_train or folder.teacher
    store, files = TargetStore(root), provenance.TeacherFiles(options, weights)
    index = provenance.training_images(options)
    groups, every = store.groups(), all_targets(options)
    there = {name: target for name, target in every.items() if target.group in groups}
    found = [
        *provenance.option_differences(root, options, weights, there.values()),
        *provenance.image_differences(
            store, options, index, there.values(), FileIndex(), deep=deep
        ),
    ]
    passes: dict[str, dict[str, Target]] = {}
    for name, target in there.items():
        if not is_imported(target, options):
            passes.setdefault(target.teacher or OWN_TEACHER, {})[name] = target
    facts: dict[str, object] = {}
    for teacher, targets in passes.items():
        if teacher not in files.paths and any(target.teacher for target in targets.values()):
            path = weights if teacher == OWN_TEACHER else options.teachers[teacher].weights
            raise InputError(f"{path}: teacher weights not found; an audit needs them")
        if any(
            MappedReader(root, target.group).schema.fields
            != stored_fields(target, files.settings(teacher))
            for target in targets.values()
        ):
            found.append("the targets would have other shapes or types: nothing was compared")
            return {"computed again": "nothing", "differences": len(found)}, found
        device = distributed.pick_device(options.device)
        live = LiveTeacher.load(files, targets, device)
        facts |= _audit(options, store, index, live, found, (samples, seed))
    return facts | {"differences": len(found)}, found


def _audit(
    options: Options,
    store: TargetStore,
    index: pd.DataFrame,
    teacher: LiveTeacher,
    found: list[str],
    chosen: tuple[int, int],
) -> dict[str, object]:
    """Compare the targets of one teacher; what differs is added to `found`.

    chosen: how many (sample, view), and the seed that draws them.
    """
    readers = {
        name: MappedReader(store.root, target.group) for name, target in teacher.targets.items()
    }
    sample_ids = store.column("sample_id").tolist()
    here = index.set_index("sample_id", drop=False).reindex(sample_ids)
    absent = np.zeros(len(here), bool)
    for name, reader in readers.items():
        seen = here[list(teacher.targets[name].sees)]
        absent |= reader.valid & seen.isna().any(axis=1).to_numpy()
    views = min(reader.schema.views for reader in readers.values())
    pairs = _draw(len(sample_ids), views, *chosen)
    known = [(row, view) for row, view in pairs if not absent[row]]
    for row in sorted({row for row, _ in pairs if absent[row]}):
        found.append(f"{sample_ids[row]}: its {' or '.join(teacher.sees)} isn't here")
    images = ImageDataset(
        here.where(here.notna(), None),
        {kind: teacher.settings.size(kind) for kind in teacher.sees},
        StoredViews(store.column("views")),
    )
    largest = dict.fromkeys(readers, 0.0)
    for part, live in _compute(teacher, images, known, options):
        for name, reader in readers.items():
            stored = reader.read([row for row, _ in part], [view for _, view in part])
            has = np.flatnonzero(reader.valid[[row for row, _ in part]])
            mine, theirs = (
                {field: v[has] for field, v in rows.items()} for rows in (live[name], stored)
            )
            lines, gap = _compare(name, teacher, mine, theirs)
            largest[name] = max(largest[name], gap)
            compared = [part[i] for i in has]
            found += [
                f"{sample_ids[compared[i][0]]}, view {compared[i][1]}: {line}" for i, line in lines
            ]
    facts: dict[str, object] = {"computed again": f"{len(known)} (sample, view), seed {chosen[1]}"}
    for name, gap in largest.items():
        allowed = teacher.targets[name].tolerance(teacher.settings)
        facts[name] = f"differ by up to {gap:.1e}, allowed is {allowed:.1e}"
    return facts


def _draw(rows: int, views: int, samples: int, seed: int) -> list[tuple[int, int]]:
    """Distinct (sample, view), sorted; all of them where there are no more."""
    total = rows * views
    chosen = np.random.default_rng(seed).choice(total, min(samples, total), replace=False)
    return [divmod(int(place), views) for place in np.sort(chosen)]


def _compute(
    teacher: LiveTeacher, images: ImageDataset, pairs: list[tuple[int, int]], options: Options
) -> Iterator[tuple[list[tuple[int, int]], dict[str, Arrays]]]:
    """Pairs (sample, view), some at a time, with their targets as they would be stored."""
    parts = batched(pairs, options.cache.batch)
    hashed = {name: target.sees for name, target in teacher.targets.items()}
    batches = [[(row, (view,)) for row, view in part] for part in parts]
    loader = load(MultiViewDataset(images, hashed), batches, options.data.workers, teacher.device)
    with bar("audit", len(pairs), "views") as progress:
        for part, batch in zip(parts, iterate(loader), strict=True):
            values = teacher({kind: batch[kind][:, 0] for kind in (*teacher.sees, "view_params")})
            yield (
                part,
                {
                    name: teacher.targets[name].encode(value, teacher.settings)
                    | {"pixels": batch["pixels"][name][:, 0].numpy().view(np.uint64)}
                    for name, value in values.items()
                },
            )
            progress.advance(len(part))


def _compare(
    name: str, teacher: LiveTeacher, live: Arrays, stored: Arrays
) -> tuple[list[tuple[int, str]], float]:
    """(row, what differs), and the largest difference of a target's values."""
    target, settings = teacher.targets[name], teacher.settings
    gap, allowed = target.differs(live, stored), target.tolerance(settings)
    seen = " and ".join(target.sees)
    lines = [
        (int(i), f"the pixels of {seen} differ from those that {name} was computed from")
        for i in np.flatnonzero(live["pixels"] != stored["pixels"])
    ]
    for i, part in np.argwhere(~(gap <= allowed)):
        what = f"{name} of {getattr(settings, target.parts)[part]}" if target.parts else name
        lines.append((int(i), f"{what} differs by {gap[i, part]:.2g}, allowed is {allowed:.2g}"))
    return lines, float(gap.max(initial=0.0))
