"""What every section of the options is made of. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError


@dataclass(frozen=True)
class NoEffect:
    """Marks an option on which no output depends, with the reason: `Annotated[int, NoEffect("…")]`.

    Every other option is in the `params` of some stage (tests/house).
    """

    why: str


ROUNDING = NoEffect("values differ by rounding alone")
SHOWN = NoEffect("only shown")
CONTENT = NoEffect("contents count, not places")

Side = Annotated[int, Field(ge=16, le=4096)]
Size = Annotated[tuple[Side, Side], Field(strict=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Several = Annotated[int, Field(ge=2, le=10**4)]
Count = Annotated[int, Field(ge=0, le=2**32 - 1)]
Processes = Annotated[int, Field(ge=1, le=1024)]
Weight = Annotated[float, Field(ge=0)]
Scale = Annotated[float, Field(gt=0)]
FilePath = Annotated[Path, Field(strict=False)]
InputPath = Annotated[
    FilePath | None, BeforeValidator(lambda path: None if path == "none" else path), CONTENT
]
"""A file or folder that is read; None, or `none` in YAML and `--set`, where there is none."""
Precision = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A part of the options: unknown keys and wrong types are refused, values never change.

    The docstring of an option is what `deskpro options` and configs/README.md say of it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def first_error(error: ValidationError, whole: str = "") -> str:
    """Where the first error is, and what is wrong there; whole: where it is of no one field."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"
