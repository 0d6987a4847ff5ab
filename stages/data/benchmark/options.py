"""How large and how hard the benchmark is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkOptions:
    """Size and difficulty of the made benchmark. Everything in it follows from these values.

    Raises:
        ValueError: if a value is impossible; it names the field, the value and what is allowed.
    """

    seed: int = 0
    """Every random choice is drawn from this and a counter. 0 or more."""

    train_identities: int = 60
    """People in `bounding_box_train`."""
    test_identities: int = 60
    """People in `query` and `bounding_box_test`, none of whom is in training."""
    train_pictures: int = 16
    """Pictures of each training identity."""
    query_pictures: int = 4
    """Pictures of each test identity in `query`."""
    gallery_pictures: int = 10
    """Pictures of each test identity in `bounding_box_test`."""
    cameras: int = 4
    """Cameras, each with its own colours, sharpness and places. At least 2."""

    outfits: int = 20
    """Outfits in all. Every one is worn by many people, in training and in test."""
    outfits_per_identity: int = 4
    """Outfits each person owns. In test, half of them (rounded down) are worn in `query` only."""

    body_height: int = 256
    """Height of the stored body pictures and masks, in pixels."""
    body_width: int = 128
    """Width of the stored body pictures and masks, in pixels."""
    face_size: int = 112
    """Side of the stored face pictures, in pixels."""

    low_height: int = 80
    """Height in pixels that the poorest camera really resolves, before enlargement."""
    high_height: int = 128
    """Height in pixels that the best camera really resolves, before enlargement."""
    degradation: float = 1.0
    """Strength of blur, noise, compression and tint of the cameras. 0 is a perfect camera."""
    restoration: float = 1.0
    """Strength of what face restoration adds or loses in `hr_face`. 0 is the true face."""

    looks: int = 40
    """Different looks (skin, hair, glasses, beard), shared evenly. Fewer is harder."""
    face_spread: float = 1.0
    """How far faces differ from the average face. Smaller is harder; 0 leaves only the colours."""
    head_turn: float = 28.0
    """Largest turn of the head to either side, in degrees. At most 45."""
    occlusion: float = 0.35
    """Share of the pictures with something in front of the body."""
    face_occlusion: float = 0.08
    """Share of the pictures with something in front of a part of the face."""
    back_views: float = 0.1
    """Share of the test pictures that show the back of the head: no face, no mask."""
    train_back_views: float = 0.0
    """The same for the training pictures."""

    def __post_init__(self) -> None:
        at_least = {
            "seed": 0, "train_identities": 1, "test_identities": 3, "looks": 1, "train_pictures": 1,
            "query_pictures": 1, "gallery_pictures": 2, "cameras": 2, "outfits": 3,
            "outfits_per_identity": 2, "body_height": 32, "body_width": 16, "face_size": 16,
            "low_height": 24, "high_height": 24,
        }  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            self._require(name, type(value) is int and value >= least, f"a whole number >= {least}")
        between = {
            "degradation": (0, 3), "restoration": (0, 3), "face_spread": (0, 2),
            "head_turn": (0, 45), "occlusion": (0, 1), "face_occlusion": (0, 1),
            "back_views": (0, 0.5), "train_back_views": (0, 0.5),
        }  # fmt: skip
        for name, (low, high) in between.items():
            value = getattr(self, name)
            number = type(value) in (int, float)
            self._require(name, number and low <= value <= high, f"a number in [{low}, {high}]")

        self._require("body_height", self.body_height <= 1024, "at most 1024")
        narrow = self.body_height * 0.4 <= self.body_width <= self.body_height
        self._require("body_width", narrow, "between 0.4 and 1 times body_height")
        self._require("face_size", self.face_size <= 512, "at most 512")
        highest = f"between low_height ({self.low_height}) and 1024"
        self._require("high_height", self.low_height <= self.high_height <= 1024, highest)

        owned = self.outfits_per_identity
        self._require("outfits_per_identity", owned <= self.outfits, "at most outfits")
        fewest = f"at least {self.gallery_outfits}, one for each outfit worn there"
        enough = self.gallery_pictures >= self.gallery_outfits
        self._require("gallery_pictures", enough, fewest)
        wearers = self.test_identities // self.outfits * self.gallery_outfits
        few = "few enough that test_identities // outfits * (outfits worn in the gallery) >= 2"
        self._require("outfits", wearers >= 2, few)

    @property
    def query_outfits(self) -> int:
        """Outfits that a test identity wears in `query` and never in the gallery."""
        return self.outfits_per_identity // 2

    @property
    def gallery_outfits(self) -> int:
        """Outfits that a test identity wears in the gallery and never in `query`."""
        return self.outfits_per_identity - self.query_outfits

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name}: {getattr(self, name)!r} is not allowed; use {allowed}")
