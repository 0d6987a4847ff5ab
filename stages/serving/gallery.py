"""A gallery: descriptors of pictures of one encoder, to search for people in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from deskpro.cache.files import read_json, sha256, write_folder_aside, write_text
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import bar
from deskpro.stages.base.run_folder import ENCODER, RunFolder
from deskpro.stages.data.loader import batched
from deskpro.stages.metrics.calibration import CASES, face_cases, log_ratios
from deskpro.stages.models.exported import read_settings
from deskpro.stages.serving.encoder import DETECT, Encoder, Features
from deskpro.stages.serving.gallery_pictures import Picture, absolute, load
from deskpro.stages.serving.gallery_search import (
    MEMORY,
    Comparison,
    Hits,
    search,
    search_by_case,
)
from deskpro.stages.serving.gallery_table import FACTS, Filter, PictureTable, is_one_of

RECORD, FORMAT = "gallery.json", 1
COMMIT = 512
"""Pictures that are written at once."""


def identify(encoder: Encoder, path: Path) -> dict[str, Any]:
    """What descriptors and their scores depend on, and `digest`, its SHA-256. path: as loaded."""
    exported = path if path.name == ENCODER else path / ENCODER
    if exported.is_file():
        files = {name: each.sha256 for name, each in read_settings(exported).streams.items()}
    else:
        files = {"student": sha256(RunFolder(path).student if path.is_dir() else path)}
    fusion = encoder.source.fusion
    facts = {
        "weights": files,
        "parts": {name: part.stop - part.start for name, part in encoder.parts.items()},
        "fusion": None if fusion is None else asdict(fusion),
        "mirror": encoder.source.flip,
        "face_size": None if encoder.face_size is None else [*encoder.face_size],
        "body_size": None if encoder.body_size is None else [*encoder.body_size],
    }
    text = json.dumps(facts, sort_keys=True)
    return facts | {"digest": hashlib.sha256(text.encode()).hexdigest()}


class Gallery:
    """A folder with gallery.json, which says whose descriptors it holds, and a database."""

    def __init__(self, folder: Path) -> None:
        """Open one. Raises InputError where there is none."""
        self.folder = folder
        try:
            record = read_json(folder / RECORD)
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']}, known is {FORMAT}")
            self.encoder: dict[str, Any] = record["encoder"]
            self.student = Path(record["student"])
            parts = {str(name): int(length) for name, length in self.encoder["parts"].items()}
            str(self.encoder["digest"])
        except FileNotFoundError:
            what = "no gallery" if folder.exists() else "no such folder"
            raise InputError(
                f"{folder}: {what}; deskpro gallery add makes one, with {RECORD}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{folder / RECORD}: can't be read ({error!r}); must be what deskpro gallery add "
                "writes"
            ) from None
        self.table = PictureTable(folder, parts)

    @classmethod
    def open_or_create(cls, folder: Path, encoder: dict[str, Any], student: Path) -> Gallery:
        """The gallery of an encoder, as `identify` names it; a new one where nothing is.

        Raises:
            InputError: the folder is none, or holds descriptors of another encoder.
        """
        if not (folder / RECORD).exists():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise InputError(
                    f"{folder}: is no gallery, and is left as it is; name a new or empty folder"
                )
            with write_folder_aside(folder) as aside:
                PictureTable(aside, encoder["parts"], create=True)
                record = {"format": FORMAT, "encoder": encoder, "student": str(student.absolute())}
                write_text(aside / RECORD, json.dumps(record, indent=2) + "\n")
        found = cls(folder)
        found.require(encoder, student)
        return found

    def require(self, encoder: dict[str, Any], student: Path) -> None:
        """Raises InputError unless the descriptors are of this encoder."""
        if encoder["digest"] == self.encoder["digest"]:
            return
        differs = [name for name in encoder if encoder[name] != self.encoder.get(name)]
        raise InputError(
            f"{self.folder}: holds descriptors of encoder {self.encoder['digest'][:12]} "
            f"({self.student}); {student} is encoder {encoder['digest'][:12]}, with other "
            f"{', '.join(name for name in differs if name != 'digest')}. Use that student, or "
            "another gallery"
        )

    def add(
        self,
        encoder: Encoder,
        pictures: Sequence[Picture],
        digests: Sequence[str],
        detect: bool = False,
    ) -> dict[str, int]:
        """Add pictures that aren't in yet; returns how many were added, replaced and in already.

        COMMIT of them at a time are in, or none of these. One whose file has changed since it was
        added is replaced. The caller holds the lock of the folder.

        Args:
            digests: the SHA-256 of their files, by `examine`.
            detect: whether faces are cut from the pictures.

        Raises:
            InputError: a picture has changed since; those before it are in.
        """
        known = self._known([str(picture.path) for picture in pictures])
        new = [
            (picture, digest)
            for picture, digest in zip(pictures, digests, strict=True)
            if known.get(str(picture.path)) != digest
        ]
        replaced = sum(str(picture.path) in known for picture, _ in new)
        number = 1 + int(self.table.read(("number",))["number"].max(initial=-1))
        with bar("gallery add", len(new), "pictures") as progress:
            for rows in batched(range(len(new)), COMMIT):
                some = [new[row] for row in rows]
                found = describe(encoder, *zip(*some, strict=True), detect=detect)
                values = self._rows(some, found, encoder, number + rows.start)
                again = any(str(picture.path) in known for picture, _ in some)
                self.table.write(values, replace=again)
                progress.advance(len(some))
        if new:
            self.table.compact()
        added = len(new) - replaced
        return {"added": added, "replaced": replaced, "in already": len(pictures) - len(new)}

    def remove(self, where: Filter, paths: Sequence[Path] = ()) -> int:
        """Remove the pictures that are meant, at once; returns how many. The caller has the lock.

        paths: those of these files, or below these folders, alone.

        Raises:
            InputError: there are none.
        """
        chosen = self.rows(where, paths)["number"].tolist()
        if not chosen:
            raise InputError(f"{self.folder}: no picture of these is in it; nothing was removed")
        self.table.remove(is_one_of("number", chosen) if paths else where.sql or "true")
        self.table.compact()
        return len(chosen)

    def rows(self, where: Filter, paths: Sequence[Path] = ()) -> dict[str, Any]:
        """The facts of the pictures that are meant, in the order of adding."""
        found = self.table.read((*FACTS, "has_face"), where.sql)
        if not paths:
            return found
        named = {str(absolute(path)) for path in paths}
        keep = [
            i
            for i, path in enumerate(found["path"])
            if path in named or named.intersection(map(str, Path(path).parents))
        ]
        return {
            name: [values[i] for i in keep] if name in FACTS else values[keep]
            for name, values in found.items()
        }

    def search(
        self,
        encoder: Encoder,
        queries: Features,
        top: int,
        where: Filter,
        threshold: float | Mapping[str, float] | None = None,
        memory: int = MEMORY,
    ) -> list[list[dict[str, Any]]]:
        """The most similar pictures of each query, best first: rank, score, odds, case and facts.

        odds are those of `Encoder.odds`, None where the student can't tell.

        Args:
            threshold: the least score; or that of each face case, as `Encoder.threshold` gives
                them: pairs of a case without one aren't found.

        Raises:
            InputError: the gallery, or what `where` leaves of it, is empty.
        """
        if not self.table.count(where.sql):
            what = "is empty; deskpro gallery add" if not len(self.table) else "has"
            rest = "fills it" if not len(self.table) else "no picture of these cameras and times"
            raise InputError(f"{self.folder}: {what} {rest}")
        comparison = Comparison(encoder.parts, encoder.source.fusion, encoder.similarity)
        by_case = isinstance(threshold, Mapping)
        find: Callable[..., list[Hits]] = search_by_case if by_case else search
        hits = find(self.table, comparison, queries, top, where.sql, threshold, memory)
        calibration = encoder.calibration_if_any()
        facts = self.table.facts({int(number) for each in hits for number in each.numbers})
        found = []
        for each, face in zip(hits, queries.has_face, strict=True):
            cases = face_cases(np.array([face]), each.has_face)[0]
            ratios = log_ratios(calibration, each.scores, cases)
            rows = zip(each.numbers, each.scores, ratios, cases, strict=True)
            found.append(
                [
                    {
                        "rank": rank,
                        "score": float(score),
                        "odds": None if np.isnan(odds) else float(odds),
                        "case": CASES[case],
                        **facts[int(number)],
                    }
                    for rank, (number, score, odds, case) in enumerate(rows, 1)
                ]
            )
        return found

    def cases(self, queries: Features, where: Filter) -> dict[str, int]:
        """The pairs that a search compares, by face case."""
        total = self.table.count(where.sql)
        shown = int(self.table.read(("has_face",), where.sql)["has_face"].sum())
        of_gallery = np.array([total - shown, shown])
        of_queries = np.bincount(queries.has_face.astype(int), minlength=2)
        pairs = np.outer(of_queries, of_gallery)
        return dict(zip(CASES, (pairs[1, 1], pairs[0, 1] + pairs[1, 0], pairs[0, 0]), strict=True))

    def check(self) -> list[str]:
        """What is wrong with rows and pictures, one line each."""
        problems, paths = [], set[str]()
        columns = ("path", "sha256", "has_face", *self.table.parts)
        for block in self.table.batches(columns):
            wrong = _wrong_vectors(block, self.table.parts)
            for i, (path, digest) in enumerate(zip(block["path"], block["sha256"], strict=True)):
                if wrong[i]:
                    problems.append(
                        f"{path}: its descriptor is damaged; remove it, and add it again"
                    )
                if path in paths:
                    problems.append(f"{path}: is in twice; remove it, and add it again")
                paths.add(path)
                try:
                    same = sha256(Path(path)) == digest
                except OSError as error:
                    problems.append(
                        f"{path}: {error.strerror or error}; remove it from the gallery"
                    )
                else:
                    if not same:
                        problems.append(f"{path}: changed since it was added; add it again")
        return problems

    def info(self) -> dict[str, object]:
        """What it holds."""
        found = self.table.read(("has_face", "person", "camera", "time"))
        times = [time for time in found["time"] if time is not None]
        named = {n: {v for v in found[n] if v is not None} for n in ("person", "camera")}
        size = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        parts = self.encoder["parts"]
        return {
            "pictures": len(found["person"]),
            "with a face": int(np.sum(found["has_face"])),
            "persons": len(named["person"]),
            "cameras": len(named["camera"]),
            "times": f"{min(times)} to {max(times)}" if times else "none",
            "encoder": f"{self.encoder['digest']} ({self.student})",
            "descriptor": ", ".join(f"{name} {length}" for name, length in parts.items())
            + ", float16",
            "size": f"{size / 1e6:.1f} MB",
        }

    def _known(self, paths: Sequence[str]) -> dict[str, str]:
        """The digests of those of these paths that are in."""
        wanted = set(paths)
        return {
            path: digest
            for block in self.table.batches(("path", "sha256"))
            for path, digest in zip(block["path"], block["sha256"], strict=True)
            if path in wanted
        }

    @staticmethod
    def _rows(
        some: Sequence[tuple[Picture, str]], found: Features, encoder: Encoder, first: int
    ) -> dict[str, Any]:
        pictures = [picture for picture, _ in some]
        return {
            "number": np.arange(first, first + len(some)),
            "path": [str(picture.path) for picture in pictures],
            "sha256": [digest for _, digest in some],
            "face_path": [None if each.face is None else str(each.face) for each in pictures],
            **{name: [getattr(p, name) for p in pictures] for name in ("person", "camera", "time")},
            "has_face": found.has_face,
            **{name: found.vectors[:, part] for name, part in encoder.parts.items()},
        }


def describe(
    encoder: Encoder,
    pictures: Sequence[Picture],
    digests: Sequence[str] | None = None,
    *,
    detect: bool = False,
) -> Features:
    """The features of pictures; those of a student of faces alone are taken for face crops.

    digests: what the SHA-256 of each file must be.
    """
    parts = []
    for rows in batched(range(len(pictures)), encoder.batch):
        images = [load(pictures[i].path, None if digests is None else digests[i])[0] for i in rows]
        faces: Any = [None if (f := pictures[i].face) is None else load(f)[0] for i in rows]
        if detect:
            faces = DETECT
        elif not any(face is not None for face in faces):
            faces = None
        if "body" in encoder.parts or detect:
            parts.append(encoder(images, faces))
        else:
            parts.append(encoder(None, images))
    vectors, has_face = zip(*((part.vectors, part.has_face) for part in parts), strict=True)
    return Features(np.concatenate(vectors), np.concatenate(has_face))


def _wrong_vectors(block: dict[str, Any], parts: dict[str, int]) -> np.ndarray:
    """Which rows of a block have a part whose length is neither 1, nor 0 without a face."""
    wrong = np.zeros(len(block["path"]), bool)
    for name in parts:
        lengths = np.linalg.norm(block[name].astype(np.float32), axis=1)
        expected = block["has_face"] if name == "face" else 1.0
        wrong |= ~(np.abs(lengths - expected) <= 0.01)
    return wrong
