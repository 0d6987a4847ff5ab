"""What every section of the options is made of. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Side = Annotated[int, Field(ge=16)]
Size = Annotated[tuple[Side, Side], Field(strict=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
FilePath = Annotated[Path, Field(strict=False)]


@dataclass(frozen=True)
class NoEffect:
    """Marks an option on which no output depends, and says why: `Annotated[int, NoEffect("…")]`.

    Every other option is in the `params` of some stage (tests/house).
    """

    why: str


class Section(BaseModel):
    """A part of the options: unknown keys and wrong types are refused, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
