"""What `metrics.json` holds: read by `report` and `compare`, written by `eval`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Group(_Part):
    """Some of the queries; the figures are None where there are none."""

    queries: Count
    mAP: Share | None
    rank1: Share | None


class Intervals(_Part):
    """Of 95 %, over identities."""

    mAP: Interval
    rank1: Interval


class Spread(_Part):
    """Standard deviations over drawn galleries."""

    mAP: Share
    rank1: Share


class Stream(_Part):
    """The figures of a stream, as shares in 0..1, and `rankR` of each rank asked for."""

    __pydantic_extra__: dict[str, Share] = Field(init=False)
    with_face: Group | None = Field(None, alias="with face")
    without_face: Group | None = Field(None, alias="without face")
    sd: Spread | None = None
    queries: Annotated[int, Field(ge=1)]
    identities: Annotated[int, Field(ge=1)]
    mAP: Share
    mINP: Share
    cmc: Annotated[list[Share], Field(min_length=1)]
    interval: Intervals


class Protocol(_Part):
    """A protocol: its rule, how many galleries are drawn, what was counted."""

    rule: str
    draws: Count
    queries: Count
    skipped: Count
    gallery: Count
    streams: Annotated[dict[str, Stream], Field(min_length=1)]


class Data(_Part):
    """The test images."""

    root: str
    dataset: str
    queries: Count
    gallery: Count
    identities: Count
    digests: dict[str, str]
    without_face: dict[str, Count] = Field(alias="without face")
    without_hr_face: Count | None = Field(None, alias="without HR face")


class Network(_Part):
    """The weights that were evaluated."""

    file: str
    sha256: str
    kind: str


class Metrics(_Part):
    """The whole file."""

    network: Network
    gallery_network: Network | None = None
    data: Data
    flip: bool
    face_weight: Share | Literal["fitted"]
    fusion: dict[str, float] | None = None
    rerank: dict[str, float | int | bool] | None
    protocols: Annotated[dict[str, Protocol], Field(min_length=1)]
