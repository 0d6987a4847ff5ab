"""What can be wrong with a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class CacheError(Exception):
    """A cache cannot be used; the message says why and what to type.

    differences: what a refusal is about, as `cache.fingerprint` finds it.
    """

    def __init__(self, message: str, differences: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.differences = list(differences)
