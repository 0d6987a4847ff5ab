"""What changes from camera to camera and from picture to picture, as parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deskpro.stages.data.benchmark.options import BenchmarkOptions

SCENES = ("street", "corridor", "park", "shop", "garage")
OCCLUDERS = ("pole", "crate", "bag", "plant", "railing")


@dataclass(frozen=True)
class Camera:
    """A camera: how it sees and what stands in front of it."""

    tint: tuple[float, float, float]
    """Factors of red, green and blue."""
    contrast: float
    brightness: float
    blur: float
    """Standard deviation in pixels of what the camera resolves."""
    height: int
    """Height in pixels of what the camera resolves."""
    noise: float
    """Standard deviation in grey levels of 0..255."""
    quality: int
    """JPEG quality of the recording."""
    scenes: tuple[str, ...]


@dataclass(frozen=True)
class Pose:
    """How somebody stands and looks. Angles in radians, 0 is upright and straight ahead."""

    yaw: float
    pitch: float
    roll: float
    smile: float
    mouth_open: float
    eye_open: float
    gaze: float
    arms: tuple[float, float]
    elbows: tuple[float, float]
    legs: tuple[float, float]
    knees: tuple[float, float]
    lean: float


@dataclass(frozen=True)
class Shot:
    """One moment in front of a camera. Nothing here depends on who stands there."""

    pose: Pose
    scale: float
    """Height of a person of stature 1, as a share of the picture's height."""
    x: float
    """Where the feet stand, as a share of the width from the middle."""
    ground: float
    """How low the feet stand, as a share of the height."""
    height: int
    """Pixels that the picture really resolves from top to bottom."""
    light: float
    light_slope: float
    """How much brighter the right edge is than the left, as a share."""
    scene: str
    occluder: str | None
    occluder_at: float
    """Side and place of the occluder, -1 far left to 1 far right."""
    face_occluder_at: float | None
    """Side and closeness of what covers a part of the face, negative is left."""
    box_shift: complex
    box_scale: float
    """Error of the face detector: shift in sides of the box, and factor of its side."""


def draw_camera(rng: np.random.Generator, options: BenchmarkOptions) -> Camera:
    """A camera."""
    strength = options.degradation
    red, green, blue = (float(1 + strength * t) for t in rng.uniform(-0.1, 0.1, 3))
    return Camera(
        tint=(red, green, blue),
        contrast=float(1 + strength * rng.uniform(-0.22, 0.1)),
        brightness=float(strength * rng.uniform(-14, 14)),
        blur=float(strength * rng.uniform(0.4, 0.9)),
        height=int(rng.integers(options.low_height, options.high_height + 1)),
        noise=float(strength * rng.uniform(3, 7)),
        quality=int(np.clip(95 - strength * rng.uniform(20, 50), 20, 95)),
        scenes=tuple(rng.choice(SCENES, 3, replace=False).tolist()),
    )


def draw_shot(rng: np.random.Generator, camera: Camera, options: BenchmarkOptions) -> Shot:
    """A moment in front of a camera."""
    turn = np.deg2rad(options.head_turn)
    pose = Pose(
        yaw=float(turn * rng.triangular(-1, 0, 1)),
        pitch=float(rng.uniform(-0.06, 0.08)),
        roll=float(rng.normal(0, 0.05)),
        smile=float(rng.normal(0.02, 0.025)),
        mouth_open=float(max(0.0, rng.normal(0, 0.03))),
        eye_open=float(rng.uniform(0.75, 1.1)),
        gaze=float(rng.uniform(-0.4, 0.4)),
        arms=_pair(rng.uniform(0.06, 0.38, 2)),
        elbows=_pair(rng.choice([0.1, 0.25, 1.1], 2, p=[0.4, 0.4, 0.2]) * rng.uniform(-0.4, 1, 2)),
        legs=_pair(rng.uniform(-0.02, 0.2, 2)),
        knees=_pair(rng.uniform(-0.12, 0.03, 2)),
        lean=float(rng.normal(0, 0.02)),
    )
    low, high = options.low_height, options.high_height
    covers_face = rng.random() < options.face_occlusion
    covers_body = rng.random() < options.occlusion
    return Shot(
        pose=pose,
        scale=float(rng.uniform(0.84, 0.92)),
        x=float(rng.uniform(-0.07, 0.07)),
        ground=float(rng.uniform(0.955, 0.985)),
        height=int(np.clip(round(camera.height * rng.uniform(0.92, 1.08)), low, high)),
        light=float(rng.uniform(0.85, 1.12)),
        light_slope=float(rng.uniform(-0.22, 0.22)),
        scene=str(rng.choice(camera.scenes)),
        occluder=str(rng.choice(OCCLUDERS)) if covers_body else None,
        occluder_at=float(rng.uniform(-1, 1)),
        face_occluder_at=float(rng.choice([-1, 1]) * rng.uniform(0.35, 0.9)) if covers_face
        else None,
        box_shift=complex(*rng.normal(0, 0.025, 2)),
        box_scale=float(rng.uniform(0.94, 1.08)),
    )  # fmt: skip


def _pair(values: np.ndarray) -> tuple[float, float]:
    return float(values[0]), float(values[1])
