"""Which commit of the code runs, where it is a git checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
"""The checkout, or the folder of an installed package, which has no `.git` of its own."""
_PATIENCE = 5.0
"""Seconds for git, on a poor network disk."""


def commit(root: Path = _ROOT) -> str | None:
    """The short name of the checkout's commit, with `, modified` where tracked files differ.

    None where the code is no checkout, or git doesn't tell. An environment inside the repository of
    somebody else's project isn't asked for theirs.
    """
    if not (root / ".git").exists():
        return None
    # One call; no tag, no lock on the index, and no repository that a hook's environment names.
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=, modified"]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
