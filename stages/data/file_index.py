"""What is known of image files, remembered as long as size and time of change stay the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from deskpro.cache.files import sha256, write_aside
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import bar


class FileIndex:
    """A JSON file: path → size, time of change, and facts by name. It is only a shortcut.

    Deleting it makes every image be read again. Threads may share one.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            try:
                remembered = json.loads(path.read_text())
            except ValueError:
                remembered = None
            if isinstance(remembered, dict):
                self._known = {k: v for k, v in remembered.items() if isinstance(v, dict)}

    def recall(self, file: str, fact: str, find_out: Callable[[], Any]) -> Any:
        """A fact about a file, found out only if the file isn't as it was then. Raises OSError."""
        status = Path(file).stat()
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._known.get(file)
        if known is None or known.get("stamp") != stamp:
            known = self._known[file] = {"stamp": stamp}
        if fact not in known:
            known[fact] = find_out()
        return known[fact]

    def save(self) -> None:
        if self.path is not None:
            with write_aside(self.path) as aside:
                aside.write_text(json.dumps(self._known))


def content_hashes(paths: Sequence[str | None], file_index: FileIndex) -> np.ndarray:
    """SHA-256 of each file's content, uint8 [N, 32]; zeros where there is no file.

    Raises InputError for a file that can't be read.
    """

    def content(path: str | None) -> bytes:
        if path is None:
            return bytes(hashlib.sha256().digest_size)
        try:
            return bytes.fromhex(file_index.recall(path, "sha256", lambda: sha256(Path(path))))
        except OSError as error:
            raise InputError(f"{path}: unreadable image: {error}") from None

    found = np.zeros((len(paths), hashlib.sha256().digest_size), np.uint8)
    with bar("hash", len(paths), "images") as progress, ThreadPoolExecutor() as pool:
        for row, digest in enumerate(pool.map(content, paths)):
            found[row] = np.frombuffer(digest, np.uint8)
            progress.advance()
    return found
