"""When images were taken: times of names and lists, on one scale. No torch, no pandas."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

READABLE = (
    "seconds below 10^11 (12.5), or a date, also with a time of day and a time zone, of ISO 8601 "
    "(2024-03-01T12:30:00+01:00)"
)
"""What a time must be, in words."""
_SECONDS = re.compile(r"[+-]?\d{1,11}(?:\.\d+)?", re.ASCII)
# No minus and no colon need be in a name: 20240301T123000. An underscore is common there, too.
_DATE = re.compile(r"(\d{4}-\d\d-\d\d|\d{8})(?:[Tt _]([^\s_]+))?", re.ASCII)
_COMPACT = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:[01]\d|2[0-3])?")
"""Digits alone, which count as seconds, that are more likely a date, or a date and an hour."""
_MICROSECOND = timedelta(microseconds=1)
_SHOWN = 3


def read_time(text: str) -> tuple[str, int]:
    """The form of a time in words, and the time in microseconds: since 1970 if it has a date.

    Digits alone are seconds. A date alone counts as its midnight; a time without a zone as one of
    UTC, whatever the clock was set to: only differences are used.

    Raises:
        ValueError: it is none.
    """
    if _SECONDS.fullmatch(text):
        return "seconds", round(Decimal(text) * 1_000_000)
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    date, clock = match.groups()
    time = datetime.fromisoformat(date if clock is None else f"{date}T{clock}")
    form = "dates" if clock is None else "dates with a time of day"
    if time.tzinfo is not None:
        form += " and a time zone"
    since = time.replace(tzinfo=time.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return form, since // _MICROSECOND


def is_time(text: str) -> bool:
    """Whether a text can be read as a time."""
    try:
        read_time(text)
    except ValueError:
        return False
    return True


def read_times(images: Sequence[str], texts: Sequence[str | None]) -> tuple[list[int | None], str]:
    """The times of images in microseconds, None where unknown; and what is wrong with them.

    All must have one form. Where something is wrong, none is known.
    """
    forms = defaultdict[str, list[str]](list)
    times, wrong, compact = list[int | None](), list[str](), True
    for image, text in zip(images, texts, strict=True):
        times.append(None)
        if text is not None:
            shown = f"{text!r} of {image}"
            try:
                form, times[-1] = read_time(text)
            except ValueError:
                wrong.append(shown)
            else:
                forms[form].append(shown)
                compact = compact and _COMPACT.fullmatch(text) is not None
    nothing: list[int | None] = [None] * len(times)
    if wrong:
        return nothing, f"time {_first(wrong)}: must be {READABLE}"
    if len(forms) > 1:
        ordered = sorted(forms, key=lambda form: len(forms[form]))
        counts = " and ".join(f"{form} ({len(forms[form])})" for form in ordered)
        what = f"times must have one form in a dataset, here are {counts}"
        return nothing, f"{what}: {_first(forms[ordered[0]])}"
    if forms and compact:
        [(_, found)] = forms.items()
        what = "digits alone are seconds, and these look like dates; write a date as 2024-03-01"
        return nothing, f"time {_first(found)}: {what}"
    return times, ""


def _first(found: Sequence[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
