"""The encoder: a trained student that takes images in any form and gives what `eval` ranks by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deskpro.stages.base.calibrated import Case
from deskpro.stages.base.distributed import pick_device
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.prepare_options import FaceBox
from deskpro.stages.data.faces import FaceDetector, largest, square
from deskpro.stages.data.loader import batched
from deskpro.stages.data.views import PLAIN, normalise, render_view
from deskpro.stages.metrics.calibration import (
    calibration_name,
    face_cases,
    log_ratios,
    require_far,
)
from deskpro.stages.metrics.compact import STORAGE, restored, stored
from deskpro.stages.models.extractor import NotFiniteError
from deskpro.stages.serving.boxes import crops
from deskpro.stages.serving.images import Images
from deskpro.stages.serving.sources import FaceWeight, Source, open_source

DETECT = "detect"
"""In the place of faces: they are cut from the bodies."""


@dataclass(frozen=True, eq=False)
class Features:
    """What an encoder gives for N images.

    vectors: float32 [N, D], one slice for each part (`Encoder.parts`), of length 1, or 0 where the
    part isn't there. The dot product of a part is the cosine that `eval` ranks its stream by.
    has_face: which images have a face, bool [N].

    `stored` keeps them in fewer bytes.
    """

    vectors: np.ndarray
    has_face: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> Features:
        """Some of the images; of a number, one."""
        rows = [rows] if isinstance(rows, int | np.integer) else rows
        return Features(self.vectors[rows], self.has_face[rows])

    def stored(self, storage: str) -> Features:
        """Vectors of "float16" or "int8" numbers, which `Encoder.similarity` takes, too.

        int8: each row is scaled so that its largest number is 127; its parts have length 1 again
        where they are compared.

        Raises:
            InputError: it is another storage, or the vectors are of fewer bytes already.
        """
        if storage not in STORAGE or self.vectors.dtype != np.float32:
            raise InputError(
                f"storage is {storage!r}, of vectors of {self.vectors.dtype}; must be one of "
                f"{', '.join(STORAGE)}, of vectors of float32"
            )
        return Features(stored(self.vectors, storage), self.has_face)


class Encoder:
    """A student with all that it takes to use it: `Encoder.load(path)`.

    Attributes:
        parts: "face" and "body", whichever it has → slice of a vector.
        dim: length D of a vector.
        face_size, body_size: height and width that the student sees, None without that stream;
            images of any size are resized.
    """

    def __init__(
        self, source: Source, device: torch.device, detector: Path | None, batch: int
    ) -> None:
        self.source, self.device, self.batch = source, device, batch
        extractor = source.extractor
        length = extractor.shape[1]
        self.parts = {
            stream: slice(heads.start * length, heads.stop * length)
            for stream, heads in extractor.heads.items()
        }
        self.dim = extractor.shape[0] * length
        sizes = {stream: extractor.sizes[kind] for stream, kind in extractor.kinds.items()}
        self.face_size, self.body_size = sizes.get("face"), sizes.get("body")
        self._faces = None if detector is None else _FaceCutter(detector, source.face)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        *,
        face_weight: FaceWeight = None,
        detector: str | Path | None = None,
        batch: int = 64,
    ) -> Encoder:
        """The student of a run folder, an exported folder, or a weights file: ours, published, or
        of torchreid's OSNet, which sees bodies of 256 × 128, without the mirrored image.

        Args:
            path: the folder or file.
            device: auto (a GPU where there is one), cpu, cuda or cuda:N.
            face_weight: how much the face counts in `similarity`, 0 to 1, or "fitted": by the
                weights that training fitted. Unless given, a run folder's is that of its
                evaluation, an exported folder's that of its run; a weights file's is fitted, or
                0.5 where nothing was fitted.
            detector: YuNet's ONNX file, for faces="detect". Unless given, that of the run's recipe.
            batch: images per forward pass.

        Raises:
            InputError: there is no student at `path`, or an argument cannot be used.
        """
        number = isinstance(face_weight, Real) and 0 <= face_weight <= 1
        if not (number or face_weight in (None, "fitted")):
            raise InputError(f"face_weight is {face_weight!r}; must be 0 to 1, or 'fitted'")
        if not isinstance(batch, Integral) or batch < 1:
            raise InputError(f"batch is {batch!r}; must be a number from 1 on")
        chosen = pick_device(device)
        source = open_source(Path(path), chosen, face_weight)
        if detector is None and source.face.method == "yunet" and source.face.model is not None:
            detector = source.face.model if source.face.model.is_file() else None
        return cls(source, chosen, None if detector is None else Path(detector), batch)

    def __call__(self, bodies: Any, faces: Any = None, color: str = "rgb") -> Features:
        """The features of N images.

        Args:
            bodies: images of bodies: a path, a PIL image or a uint8 array H×W×3; a list of these;
                or a uint8 array [N, H, W, 3] or [N, 3, H, W]. None for a student of faces alone.
            faces: the face crops of the same people in the same forms, None in the place of one
                that isn't there; or None: no faces; or "detect": they are cut from the bodies, as
                `prepare` cuts them.
            color: "rgb" or "bgr", the order of the channels of arrays.

        Raises:
            InputError: an image is unreadable, of another form, dtype or number of channels; or
                bodies and faces don't fit each other, or the student.
        """
        given = self._given(bodies, faces, color)
        rows = range(len(next(iter(given.values()))))
        vectors, has_face = [np.zeros((0, self.dim), np.float32)], [np.zeros(0, bool)]
        with ThreadPoolExecutor() as pool:
            parts = batched(rows, self.batch)
            for some, pixels in zip(parts, self._pixels(pool, given, parts), strict=True):
                found = self._described(pixels, given, some)
                vectors.append(found[0])
                has_face.append(found[1])
        return Features(np.concatenate(vectors), np.concatenate(has_face))

    def similarity(self, a: Features, b: Features) -> np.ndarray:
        """How alike two sets of images are: float32 [len(a), len(b)], larger is more alike.

        It ranks as `eval` ranks by the stream `all`, or by the student's only one. Each part gives
        a cosine; `source.fusion` weighs them (`metrics.fusion.Fusion`): fitted weights give the
        log-odds that both images show one person, with a case of its own where one of them has no
        face; fixed weights give w·face + (1 − w)·body, where a missing face counts as 0.
        """
        for name, found in (("a", a), ("b", b)):
            if found.vectors.shape[1:] != (self.dim,):
                raise InputError(
                    f"{name}: vectors of shape {found.vectors.shape}; this encoder's are "
                    f"[N, {self.dim}]. Encode both sets with one encoder"
                )
        cosines = {
            name: restored(a.vectors[:, part]) @ restored(b.vectors[:, part]).T
            for name, part in self.parts.items()
        }
        if self.source.fusion is None:
            return next(iter(cosines.values()))
        seen = a.has_face[:, None] & b.has_face[None]
        return self.source.fusion.scores(cosines["face"], cosines["body"], seen)

    def odds(self, a: Features, b: Features) -> np.ndarray:
        """What `similarity` means: log-likelihood ratios, float32 [len(a), len(b)].

        exp of it says how many times likelier two images are of one person than of two: 0 means
        even odds where both are equally frequent. Fitted in training on held-out people, apart for
        pairs with two faces, one and none; nan for pairs of a case that could not be fitted
        (`calibration`). It never falls where the similarity rises within a case.

        Raises:
            InputError: the student has no calibration for its `face_weight`.
        """
        found = self.calibration()
        cases = face_cases(a.has_face, b.has_face)
        return log_ratios(found, self.similarity(a, b), cases)

    def threshold(self, far: float = 1e-3) -> dict[str, float]:
        """The lowest `similarity` that accepts at most a share `far` of pairs of two people.

        Of held-out people, by face case: "face-face", "face-none" and "none-none", those of which
        there were enough pairs: 10 / far.

        Raises:
            InputError: no case has enough pairs, or the student has no calibration.
        """
        require_far(far)
        cases = self.calibration()
        found = {name: case.threshold(far) for name, case in cases.items()}
        known = {name: limit for name, limit in found.items() if limit is not None}
        if not known:
            pairs = ", ".join(f"{case.impostors:,} {name}" for name, case in cases.items())
            lowest = min((case.lowest_far for case in cases.values()), default=np.inf)
            advice = f"ask for {lowest:.2g} or more, or " if lowest < np.inf else ""
            raise InputError(
                f"far is {far:g}; the student's held-out identities have too few pairs of two "
                f"people: {pairs or 'none'}; {10 / far:,.0f} are needed. So {advice}train with "
                "more held-out identities (data.validation)"
            )
        return known

    def calibration(self) -> dict[str, Case]:
        """What its scores mean, by face case, with the pairs that tell.

        Raises:
            InputError: the student has no calibration for its `face_weight`.
        """
        if found := self.calibration_if_any():
            return found
        facts = self.source.extractor.info.calibration
        name = calibration_name(next(iter(self.parts)), self.source.fusion)
        if not facts:
            raise InputError(
                "the student has no calibration: no identities were held out in its training, an "
                "older version trained it, or eval.flip is off, and it was fitted with mirror "
                "images. Train with --set data.validation=0.1, evaluate with eval.flip=true"
            )
        raise InputError(
            f"face_weight: no calibration for {name.removeprefix('all, ')}; the student has some "
            f"for {' and '.join(n.removeprefix('all, ') for n in facts if n.startswith('all'))}. "
            "Load it with one of these: Encoder.load(path, face_weight='fitted')"
        )

    def calibration_if_any(self) -> dict[str, Case]:
        """`calibration`, empty where there is none."""
        facts = self.source.extractor.info.calibration or {}
        return facts.get(calibration_name(next(iter(self.parts)), self.source.fusion), {})

    def get_features(self, xyxy: Any, image: np.ndarray) -> np.ndarray:
        """The body part of people in a frame, as BoxMOT calls it: float32 [N, D of the body].

        Each row has length 1. A box outside of the frame, or without area, counts as a black image.

        Args:
            xyxy: boxes [N, 4 or more] in pixels: left, top, right, bottom.
            image: the frame, uint8 [H, W, 3], BGR.

        Raises:
            InputError: either is of another form, or the student has no body stream.
        """
        if "body" not in self.parts:
            raise InputError("this student has no body stream; trackers give bodies")
        return self(crops(xyxy, image), color="bgr").vectors[:, self.parts["body"]]

    def extract_features(self, detections: Any, frame: np.ndarray) -> np.ndarray:
        """`get_features` as Roboflow's trackers call it; detections: their boxes are `.xyxy`."""
        return self.get_features(detections.xyxy, frame)

    def _given(self, bodies: Any, faces: Any, color: str) -> dict[str, Images]:
        """The images of each stream; of bodies also where faces are cut from them."""
        detect = isinstance(faces, str) and faces == DETECT
        if bodies is None and ("body" in self.parts or detect):
            raise InputError("bodies: None; must be images")
        if bodies is None and faces is None:
            raise InputError("faces: None; must be images, this student sees faces alone")
        if faces is not None and "face" not in self.parts:
            raise InputError("faces: this student has no face stream; leave faces out")
        if detect and self._faces is None:
            raise InputError(
                "faces='detect' needs a detector: --detector FILE, in Python Encoder.load(path, "
                "detector=FILE); YuNet's ONNX file, face_detection_yunet_2023mar.onnx of "
                "opencv/opencv_zoo on GitHub"
            )
        given = {} if bodies is None else {"body": Images(bodies, "bodies", color)}
        if faces is not None and not detect:
            given["face"] = Images(faces, "faces", color, gaps=True)
            if bodies is not None and len(given["face"]) != len(given["body"]):
                raise InputError(
                    f"faces: {len(given['face'])} for {len(given['body'])} bodies; must be as "
                    "many, with None in the place of one that isn't there"
                )
        elif detect:
            given[DETECT] = given["body"]
        return given

    def _pixels(
        self, pool: ThreadPoolExecutor, given: dict[str, Images], parts: Sequence[range]
    ) -> Iterator[dict[str, list[np.ndarray | None]]]:
        """Of each batch and stream, the images as it sees them, uint8 [3, h, w], or None.

        While a batch is used the next one is loaded.
        """

        def rendered(row: int) -> dict[str, np.ndarray | None]:
            body = given["body"][row] if "body" in given else None
            face = given["face"][row] if "face" in given else None
            if DETECT in given and self._faces is not None and body is not None:
                face = self._faces(body)
            images = {"face": (face, self.face_size), "body": (body, self.body_size)}
            return {
                stream: None if image is None or size is None else render_view(image, PLAIN, size)
                for stream, (image, size) in images.items()
            }

        coming = [pool.map(rendered, rows) for rows in parts[:1]]
        for i in range(len(parts)):
            found = [*coming.pop()]
            coming = [pool.map(rendered, rows) for rows in parts[i + 1 : i + 2]]
            yield {stream: [images[stream] for images in found] for stream in self.parts}

    def _described(
        self, pixels: dict[str, list[np.ndarray | None]], given: dict[str, Images], rows: range
    ) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of some images, float32 [n, D], and which have a face, bool [n]."""
        extractor, images, missing = self.source.extractor, {}, {}
        for stream, kind in extractor.kinds.items():
            batch = torch.zeros(len(rows), *extractor.sizes[kind], 3, dtype=torch.uint8)
            for i, image in enumerate(pixels[stream]):
                if image is not None:
                    batch[i] = torch.from_numpy(image).permute(1, 2, 0)
            missing[stream] = torch.tensor([image is None for image in pixels[stream]])
            seen = batch.to(self.device).permute(0, 3, 1, 2)
            if extractor.normalised:
                seen = normalise(seen).contiguous(memory_format=torch.channels_last)
            images[kind] = seen
        try:
            _, features = extractor.describe(images, missing, self.source.flip)
        except NotFiniteError as error:
            where = next(iter(given.values())).where(rows[error.row])
            raise InputError(
                f"{where}: its feature isn't finite; these weights are broken, use others"
            ) from None
        counts = [heads.stop - heads.start for heads in extractor.heads.values()]
        scale = np.repeat(np.asarray(counts, np.float32) ** -0.5, counts)[:, None]
        has_face = ~missing["face"].numpy() if "face" in missing else np.zeros(len(rows), bool)
        return (features.numpy() * scale).reshape(len(rows), -1), has_face


class _FaceCutter:
    """Cuts the face from a body image as the step `face` of `prepare` does, by YuNet."""

    def __init__(self, file: Path, settings: FaceBox) -> None:
        self.settings = settings
        if not file.is_file():
            raise InputError(f"detector {file}: no such file; must be YuNet's ONNX file")
        self.detector = FaceDetector(file, settings.score, settings.height, "detector")

    def __call__(self, body: Image.Image) -> Image.Image | None:
        boxes, _ = self.detector(body)
        if not len(boxes):
            return None
        box, _ = square(*largest(boxes)[1], self.settings.margin, body.size)
        return None if box.side < self.settings.min_side else box.cut(body)
