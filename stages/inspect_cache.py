"""Look inside a target cache: what it holds, whether it is whole, how two differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from deskpro.cache.errors import CacheError
from deskpro.cache.fingerprint import differences, sample_differences
from deskpro.cache.reader import MappedReader, UnmappableError, ZarrReader, all_bytes
from deskpro.cache.schema import LEDGER_FILES
from deskpro.cache.verify import verify as damages
from deskpro.stages.base.progress import bar
from deskpro.stages.models.lmbn import HEADS
from deskpro.stages.targets.teachers import decode

Reader = MappedReader | ZarrReader

_FLOOR = 26
"""A byte of attention that stands for 0.1: not the head region (network.md)."""


def find_store(path: Path) -> Path:
    """The cache of a run folder, also one in the making; or the path itself, if it is a cache."""
    for name in ("targets.zarr", "targets.zarr.partial"):
        if (path / name).is_dir():
            return path / name
    if path.is_dir() and not (path / "zarr.json").is_file():
        raise CacheError(f"{path}: no target cache in this folder. Make it: make teacher-cache")
    return path


def info(path: Path) -> tuple[dict[str, object], list[tuple[str, str, str]]]:
    """Facts about a cache, and for each of the teacher's heads its name, top-1 and entropy.

    Top-1: percent of the cached views that the head gives to the right identity. Entropy: of its
    softmax at temperature 1, in nats, mean over views (ln C where it knows nothing).
    """
    store = find_store(path)
    reader = _open(store, unfinished=True)
    schema, fingerprint = reader.schema, reader.fingerprint
    labels = torch.from_numpy(reader.column("label"))
    right, entropy = torch.zeros(len(HEADS)), torch.zeros(len(HEADS), dtype=torch.float64)
    area, seen = 0.0, 0
    with bar("read", len(reader.ledger), "chunks") as progress:
        for block, view in sorted(reader.ledger):
            stored = {
                name: torch.from_numpy(np.array(reader.chunk(name, block, view)))
                for name in schema.fields
                if name != "pixels"
            }
            said = decode(stored)
            log_p = said["logits"].float().log_softmax(2)
            label = labels[schema.rows(block)]
            right += (log_p.argmax(2) == label[:, None]).sum(0)
            entropy -= (log_p.exp() * log_p).sum((0, 2))
            area += float((stored["attention"] > _FLOOR).float().mean((1, 2, 3)).sum())
            seen += len(label)
            progress.advance()
    size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    total = schema.blocks * schema.views
    facts: dict[str, object] = {
        "samples": schema.samples,
        "identities": f"{len(labels.unique())}, of {len(fingerprint['classes'])} classes",
        "views": f"{schema.views} of each sample"
        + ", the first plain" * fingerprint["views"]["plain_view"],
        "coverage": f"{len(reader.ledger)} of {total} (block, view), "
        + ("unfinished" if any(store.glob(LEDGER_FILES)) else "sealed"),
        "size": f"{size / 1e6:.1f} MB on disk, "
        f"{all_bytes(reader) / schema.samples / schema.views / 1e3:.2f} kB per sample and view",
    }
    for name, field in schema.fields.items():
        shape = ", ".join(map(str, (schema.samples, schema.views, *field.shape)))
        facts[name] = f"[{shape}] {field.dtype}: {field.description}"
    facts["mask area"] = f"{100 * area / max(seen, 1):.1f} % of the attention is head"
    for temperature, kl in sorted(_losses(reader).items()):
        facts[f"KL at T={temperature:g}"] = f"{kl:.2e} nats from float16, mean over heads"
    facts["teacher"] = f"weights {fingerprint['teacher']['weights'][:12]}…"
    facts["store"] = store
    heads = [
        (name, f"{100 * float(right[i]) / max(seen, 1):.1f}", f"{entropy[i] / max(seen, 1):.3f}")
        for i, name in enumerate(HEADS)
    ]
    return facts, heads


def _losses(reader: Reader) -> dict[float, float]:
    """What storing as int8 lost, by the temperature at which it was measured: mean KL over heads,
    views and samples."""
    found: dict[float, list[tuple[float, int]]] = {}
    for (block, _), entry in reader.ledger.items():
        if "kl" in entry.facts:
            rows = reader.schema.rows(block)
            weighted = (float(np.mean(entry.facts["kl"])), rows.stop - rows.start)
            found.setdefault(entry.facts["T"], []).append(weighted)
    return {
        temperature: float(np.average([kl for kl, _ in each], weights=[n for _, n in each]))
        for temperature, each in found.items()
    }


def verify(path: Path) -> list[str]:
    """A line for everything in a finished cache that isn't as it was written."""
    return [str(damage) for damage in damages(find_store(path))]


def diff(one: Path, other: Path) -> list[str]:
    """A line for each way in which two finished caches differ."""
    a, b = (_open(find_store(path)) for path in (one, other))
    lines = differences(a.fingerprint, b.fingerprint)
    lines += [f"{name} is only in {other}" for name in b.fingerprint if name not in a.fingerprint]
    lines += [f"the column {name} is only in one" for name in sorted({*a.columns} ^ {*b.columns})]
    shared = [name for name in a.columns if name in b.columns]
    columns_a, columns_b = ({name: reader.column(name) for name in shared} for reader in (a, b))
    lines += sample_differences(columns_a, columns_b)
    for name in sorted(a.schema.fields.keys() ^ b.schema.fields.keys()):
        lines.append(f"{name} is only in {one if name in a.schema.fields else other}")
    if a.schema.views != b.schema.views:
        lines.append(f"views was {a.schema.views}, is {b.schema.views}")
    return lines + list(_value_differences(a, b))


def _value_differences(a: Reader, b: Reader) -> Iterator[str]:
    """How far the targets of the samples and views that both have are apart."""
    rows_b = {name: row for row, name in enumerate(b.column("sample_id").tolist())}
    names = a.column("sample_id").tolist()
    pairs = [(row, rows_b[name]) for row, name in enumerate(names) if name in rows_b]
    for name, field in a.schema.fields.items():
        if b.schema.fields.get(name) != field:
            if name in b.schema.fields:
                yield f"{name} was {_kind(a, name)}, is {_kind(b, name)}"
            continue
        mine_of, theirs_of = (_open(reader.path, [name]) for reader in (a, b))
        places, largest = 0, 0.0
        for view in range(min(a.schema.views, b.schema.views)):
            for start in range(0, len(pairs), a.schema.block):
                part = pairs[start : start + a.schema.block]
                views = [view] * len(part)
                mine = mine_of.read([row for row, _ in part], views)[name]
                theirs = theirs_of.read([row for _, row in part], views)[name]
                differ = (mine != theirs).reshape(len(part), -1).any(axis=1)
                places += int(differ.sum())
                if differ.any():
                    gap = np.abs(mine.astype(np.float64) - theirs.astype(np.float64))
                    largest = max(largest, float(gap.max()))
        if places:
            by = "" if name == "pixels" else f", by up to {largest:.4g}"
            yield f"{name} of {places} (sample, view) differ{by}"


def _kind(reader: Reader, name: str) -> str:
    field = reader.schema.fields[name]
    return f"{field.dtype}{list(field.shape)}"


def _open(store: Path, fields: list[str] | None = None, *, unfinished: bool = False) -> Reader:
    try:
        return MappedReader(store, fields, unfinished=unfinished)
    except UnmappableError:
        return ZarrReader(store, fields, unfinished=unfinished)
