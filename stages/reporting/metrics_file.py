"""What `metrics.json` holds: read by `report` and `compare`, written by `eval`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
SignedShare = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Ends = Annotated[list[float], Field(min_length=2, max_length=2)]
ShareEnds = Annotated[list[Share], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class SomeQueries(_Part):
    """Some of the queries; the figures are None where there are none."""

    queries: Count
    mAP: Share | None
    rank1: Share | None


class Intervals(_Part):
    """Of 95 %, over identities."""

    mAP: ShareEnds
    rank1: ShareEnds


class Spread(_Part):
    """Standard deviations over drawn galleries."""

    mAP: Share
    rank1: Share


class _Closed(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Refused(_Closed):
    """What there was too little of."""

    refused: str


class Decision(_Closed):
    """A threshold, None where nothing is accepted; FAR, which share of pairs of two people (of
    searches without the person) it accepts; rate, of pairs of one person (of searches, rightly)."""

    threshold: Annotated[float, Field(allow_inf_nan=False)] | None
    FAR: Share
    rate: Share
    interval: ShareEnds | None = None
    far_interval: ShareEnds | None = None


class Meaning(_Closed):
    """Of log-likelihood ratios: their cost in bits, and the expected calibration error; of each bin
    its weight, the mean probability that they say, and the share of pairs of one person."""

    Cllr: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    ECE: Share
    bins: list[Annotated[list[Share], Field(min_length=3, max_length=3)]]


class Clothes(_Closed):
    """Pairs of one person in the same, or in changed, clothes."""

    genuine: Count
    EER: Share | None
    TAR: dict[str, Share]


Decisions = dict[str, Decision | Refused]
"""False accept rate → what is accepted at it."""


class RocCurve(_Closed):
    """Accept rates of pairs of one person by those of two, with the ends of their intervals."""

    FAR: list[Share]
    TAR: list[Share]
    low: list[Share]
    high: list[Share]


class PairsOfCase(_Closed):
    """Pairs of one person and of two; `held_out`: at thresholds of held-out people."""

    genuine: Count
    impostors: Count
    identities: Count
    EER: Share | None
    ROC: RocCurve
    TAR: Decisions
    DIR: Decisions
    held_out: Decisions | None = None
    calibration: Meaning | Refused
    clothes: dict[str, Clothes]


class OutfitResults(_Closed):
    """How often wrong first images wear the query's outfit; expected: other people's images do."""

    share: Share
    expected: Share
    lift: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    interval: Ends


class Cameras(_Closed):
    """Wrong first images by camera of the query (rows) and of the image, in numbers of queries;
    expected: if each image of others were as likely."""

    query: list[int]
    gallery: list[int]
    wrong: list[list[float]]
    expected: list[list[float]]


class Changed(_Closed):
    """mAP of queries with positives in the same clothes and in others, by these alone."""

    queries: Count
    same: Share
    changed: Share
    difference: SignedShare
    interval: Ends


class Mistakes(_Closed):
    """Of queries whose first image is another person's."""

    wrong: Share
    outfit: OutfitResults | Refused
    cameras: Cameras | None = None
    changed: Changed | Refused | None = None


class OfQueries(_Closed):
    """Figures of some queries; gallery: images that a query is compared with, on average; chance:
    mAP of a random order."""

    queries: AtLeastOne
    identities: AtLeastOne
    gallery: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    mAP: Share
    rank1: Share
    chance: Share


class SameIntervals(_Closed):
    """Of 95 %, over identities."""

    mAP: ShareEnds
    rank1: ShareEnds
    difference: Ends


class SameQueries(OfQueries):
    """Over the queries that the longest gap scores, among the images of others that it leaves;
    difference: in mAP from no gap."""

    difference: SignedShare
    interval: SameIntervals


class Gap(OfQueries):
    """Over the queries that are scored where images of a shorter gap of time are removed; skipped:
    how many have no positive left."""

    gap: str
    seconds: Count
    skipped: Count
    interval: Intervals
    same: SameQueries


class Few(_Closed):
    """Queries with a positive, and their identities."""

    queries: Count
    identities: Count


class GapResults(_Closed):
    """Rows by gap of time, and gaps at which too few are scored."""

    rows: Annotated[list[Gap], Field(min_length=1)]
    few: dict[str, Few]


class Ranked(_Part):
    """The figures of a ranking, as shares in 0..1, and `rankR` of each rank asked for."""

    __pydantic_extra__: dict[str, Share] = Field(init=False)
    queries: AtLeastOne
    identities: AtLeastOne
    mAP: Share
    mINP: Share
    cmc: Annotated[list[Share], Field(min_length=1)]
    interval: Intervals


class Transductive(Ranked):
    """What a rule finds that looks at other queries, too; of `enrich` how many are enrolled, and
    the share of matched images that are of the query's person."""

    enrolled: Count | None = None
    right: Share | None = None


class StreamResults(Ranked):
    """The figures of a stream, and what else is said of it."""

    with_face: SomeQueries | None = Field(None, alias="with face")
    without_face: SomeQueries | None = Field(None, alias="without face")
    sd: Spread | None = None
    verification: dict[str, PairsOfCase] | None = None
    """By face case."""
    mistakes: Mistakes | None = None
    gaps: GapResults | Refused | None = None
    """Where times are known."""
    transductive: dict[str, Transductive] = {}


class ProtocolResults(_Part):
    """A protocol: its rule, how many galleries are drawn, what was counted."""

    rule: str
    draws: Count
    queries: Count
    skipped: Count
    gallery: Count
    streams: Annotated[dict[str, StreamResults], Field(min_length=1)]


class EvaluatedImages(_Part):
    """The test images."""

    root: str
    dataset: str
    queries: Count
    gallery: Count
    identities: Count
    digests: dict[str, str]
    unit: Literal["picture", "tracklet"] = "picture"
    """What queries and gallery are counted in."""
    without_face: dict[str, Count] = Field(alias="without face")
    without_hr_face: Count | None = Field(None, alias="without HR face")


class EvaluatedNetwork(_Part):
    """The weights, or the features of any network, that were evaluated."""

    file: str
    sha256: str
    kind: str


class AttentionResults(_Closed):
    """Of the student's attention on queries with a mask that has a head: mean intersection over
    union with the head, of the part of the image that is as large (`metrics.overlap`).

    uniform_iou: of an attention that is the same everywhere; mask_iou: of the mask at the
    attention's resolution; digest: of the images and masks.
    """

    queries: AtLeastOne
    identities: AtLeastOne
    without_mask: Count = Field(alias="without mask")
    unusable_mask: Count = Field(alias="unusable mask")
    without_head: Count = Field(alias="without head")
    digest: str
    head_iou: Share
    interval: ShareEnds
    uniform_iou: Share
    mask_iou: Share


class Metrics(_Part):
    """The whole file."""

    network: EvaluatedNetwork
    gallery_network: EvaluatedNetwork | None = None
    attention: AttentionResults | Refused | None = None
    data: EvaluatedImages
    flip: bool | None
    face_weight: Share | Literal["fitted"] | None
    metric: Literal["cosine", "euclidean"] | None = None
    """Of features of any network, as are `weights`, by part; these have no flip and no
    face_weight."""
    weights: dict[str, float] | None = None
    fusion: dict[str, float] | None = None
    transductive: dict[str, dict[str, float | int | None]]
    """Rule → its settings."""
    protocols: Annotated[dict[str, ProtocolResults], Field(min_length=1)]
