"""The facts of an image's name. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

FACE_HR = "face_hr"
"""The stream of `eval.gallery_network: teacher`: the student's LR faces of the queries against the
teacher's HR faces of the gallery."""

KIND_OF = {"face": "lr_face", "body": "imgs"}
"""Stream of a student → the kind of image that it sees."""

FEATURES = "the features"
"""The role of a features file in the manifest of its evaluation, which is known by it."""


class Name(NamedTuple):
    """The facts of an image's name, and the columns that index, ranking and digests read.

    To add a kind of fact: a field here, and a named group in a layout's rule.
    """

    pid: str
    """Identity; one whose digits differ is another one."""
    camid: int | None = None
    """Camera; None where no camera exists."""
    clothes: str | None = None
    scene: str | None = None
    """What a protocol of the dataset takes for the camera."""
    tracklet: str | None = None
    """The images of a person that one camera took one after the other."""
    time: str | None = None
    """When it was taken, as it is written (`data.times`); for the evaluation alone."""


def require_groups(rule: str, optional: Sequence[str], example: str) -> str:
    """A regular expression for the names of images, whose groups are pid and some of `optional`.

    Raises ValueError for any other text; the message has the example.
    """
    needed = f"needs the group (?P<pid>…), may have {', '.join(optional)}, as in {example}"
    try:
        groups = {*re.compile(rule).groupindex}
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"must be a regular expression ({error}); {needed}") from None
    if "pid" not in groups or groups - {"pid", *optional}:
        raise ValueError(f"{needed}; it has {', '.join(sorted(groups)) or 'none'}")
    return rule
