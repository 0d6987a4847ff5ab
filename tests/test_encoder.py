"""The encoder gives what `eval` ranks by, in whatever form images come; the unclear is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deskpro import Encoder, Features
from deskpro.cache.reader import MappedReader
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.prepare_options import FaceBox, Prepare
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.evaluation.feature_store import FeatureStore
from deskpro.stages.evaluation.measures import measures_of
from deskpro.stages.metrics.fusion import Fusion
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import ModelInfo, save
from deskpro.stages.preparation.faces import YuNet
from deskpro.stages.serving import encoder as serving
from deskpro.stages.serving.boxes import crops
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def run(finished_run: Callable[[str], Path]) -> Path:
    return finished_run("eval")


@pytest.fixture(scope="module")
def images(run: Path, tiny_benchmark: Path) -> pd.DataFrame:
    """The images of the run's feature store, in its order."""
    table, _ = read_index(tiny_benchmark, LAYOUTS["benchmark"], ("query", "gallery"))
    names = MappedReader(run / "features.zarr", "features").column("sample_id")
    return table.set_index("sample_id").loc[names].reset_index()


@pytest.fixture(scope="module")
def stored(run: Path) -> np.ndarray:
    """What eval ranks by: float32 [N, heads, D], each head of length 1 or 0."""
    reader = MappedReader(run / "features.zarr", "features")
    return reader.read([*range(reader.schema.samples)], [0] * reader.schema.samples)["features"]


@pytest.fixture(scope="module")
def encoder(run: Path) -> Encoder:
    return Encoder.load(run, "cpu")


def opened(path: str | None) -> np.ndarray | None:
    return None if path is None else np.asarray(Image.open(path).convert("RGB"))


FORMS: dict[str, Callable[[list[str]], Any]] = {
    "paths": lambda paths: paths,
    "Path objects": lambda paths: [Path(path) for path in paths],
    "PIL images": lambda paths: [Image.open(path) for path in paths],
    "arrays": lambda paths: [opened(path) for path in paths],
    "a batch": lambda paths: np.stack([opened(path) for path in paths]),
    "a batch, channels first": lambda paths: np.stack(
        [opened(path).transpose(2, 0, 1) for path in paths]  # type: ignore[union-attr]
    ),
    "BGR": lambda paths: np.stack([opened(path)[..., ::-1] for path in paths]),  # type: ignore[index]
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_descriptors_that_eval_ranks_by(
    form: str, encoder: Encoder, images: pd.DataFrame, stored: np.ndarray
) -> None:
    color = "bgr" if form == "BGR" else "rgb"
    faces = images["lr_face"].tolist()
    single = FORMS["arrays" if form.endswith("channels first") else form]
    given = [None if path is None else single([path])[0] for path in faces]
    found = encoder(FORMS[form](images["imgs"].tolist()), given, color=color)
    np.testing.assert_array_equal(found.has_face, images["lr_face"].notna())
    assert 0 < found.has_face.sum() < len(images)
    expected = stored.reshape(len(images), -1) / np.sqrt(7)
    assert np.linalg.norm(found.vectors - expected, axis=1).max() <= 1e-6
    for name, part in encoder.parts.items():
        there = found.has_face if name == "face" else np.ones(len(found), bool)
        lengths = np.linalg.norm(found.vectors[:, part], axis=1)
        np.testing.assert_allclose(lengths, there, atol=1e-6)


def test_a_batch_and_a_single_image_give_the_same(
    encoder: Encoder, images: pd.DataFrame, run: Path
) -> None:
    bodies, faces = images["imgs"].tolist()[:5], images["lr_face"].tolist()[:5]
    together, few = encoder(bodies, faces), Encoder.load(run, "cpu", batch=2)(bodies, faces)
    np.testing.assert_allclose(together.vectors, few.vectors, atol=1e-6)
    alone = encoder(bodies[0], faces[0])
    np.testing.assert_allclose(alone.vectors, together[:1].vectors, atol=1e-6)
    np.testing.assert_array_equal([each.vectors[0] for each in together], together.vectors)
    assert (len(together[-1]), together[-1].has_face.tolist()) == (1, [bool(faces[-1])])
    assert len(encoder([], [])) == 0
    assert encoder([]).vectors.shape == (0, encoder.dim)
    assert not encoder(bodies).has_face.any()
    assert not encoder(bodies).vectors[:, encoder.parts["face"]].any()


@pytest.mark.parametrize("fusion", [None, Fusion(3.0, 1.5, -2.0, 2.5, -1.0)])
def test_similarity_is_what_eval_ranks_all_by(
    fusion: Fusion | None, run: Path, images: pd.DataFrame, encoder: Encoder
) -> None:
    source = encoder.source
    weight: Any = source.fusion.face if source.fusion is not None else None
    if fusion is not None:
        info = source.extractor.info.__class__(
            **{**vars(source.extractor.info), "fusion": fusion.facts()}
        )
        extractor = source.extractor.__class__(**{**vars(source.extractor), "info": info})
        source, weight = source._replace(extractor=extractor, fusion=fusion), "fitted"
    found = Encoder(source, torch.device("cpu"), None, 64)
    features = found(images["imgs"].tolist(), images["lr_face"].tolist())
    rows = images.assign(row=range(len(images)))
    store = FeatureStore(run / "features.zarr", torch.device("cpu"), 1e9)
    measure = measures_of(source.extractor, store, weight)["all"].measure
    distances = measure(rows[:10], rows)(slice(0, 10))
    similarity = found.similarity(features[:10], features)
    assert similarity.dtype == np.float32
    assert source.fusion is not None
    np.testing.assert_allclose(similarity, source.fusion.highest - distances, atol=2e-6)


def test_similarity_of_double_precision_is_not_rounded(encoder: Encoder) -> None:
    """A gallery scores what it found in double precision, so that equal pictures score equally."""
    vectors = np.random.default_rng(0).normal(size=(5, encoder.dim))
    parts = [vectors[:, part] @ vectors[:, part].T for part in encoder.parts.values()]
    found = Features(vectors, np.ones(5, bool))
    both = encoder.source.fusion
    assert both is not None
    expected = both.scores(*parts, np.ones((5, 5), bool))
    np.testing.assert_array_equal(encoder.similarity(found, found), expected)


@given(st.integers(0, 999), st.floats(0, 1))
def test_fixed_weights_are_a_weighted_sum_in_which_a_missing_face_is_0(
    seed: int, weight: float
) -> None:
    random = np.random.default_rng(seed)
    face, body = random.uniform(-1, 1, (2, 4, 5)).astype(np.float32)
    seen = random.random((4, 5)) < 0.7
    found = Fusion.fixed(weight).scores(face, body, seen)
    np.testing.assert_allclose(found, weight * face * seen + (1 - weight) * body, atol=1e-6)


def student(folder: Path, mode: str, **options: Any) -> Path:
    torch.manual_seed(0)
    network = {"forward_mode": mode, "width": 0.25, "feature_dim": 16, **options}
    info = ModelInfo("student", network, 3, None, (32, 32), (64, 32))
    save(folder / f"{mode}.safetensors", Student(3, **network), info)
    return folder / f"{mode}.safetensors"


NOISE = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), dtype=np.uint8)


def test_students_of_one_stream(tmp_path: Path) -> None:
    body = Encoder.load(student(tmp_path, "body"), "cpu")
    assert (body.face_size, body.body_size, [*body.parts]) == (None, (64, 32), ["body"])
    found = body(NOISE)
    assert found.vectors.shape == (3, body.dim) == (3, 7 * 16)
    assert not found.has_face.any()
    np.testing.assert_allclose(np.diag(body.similarity(found, found)), 1, atol=1e-5)
    with pytest.raises(InputError, match="no face stream"):
        body(NOISE, NOISE)

    face = Encoder.load(student(tmp_path, "face"), "cpu")
    found = face(None, [NOISE[0], None])
    assert found.has_face.tolist() == [True, False]
    assert not found.vectors[1].any()
    with pytest.raises(InputError, match="sees faces alone"):
        face(None)
    with pytest.raises(InputError, match="Encode both sets with one encoder"):
        face.similarity(found, Features(np.zeros((1, 3), np.float32), np.zeros(1, bool)))


@pytest.mark.slow
def test_the_student_of_a_run_a_weights_file_and_a_published_file(
    run: Path, encoder: Encoder, tmp_path: Path
) -> None:
    assert encoder.source.fusion == Fusion.fixed(0.5)
    alone = Encoder.load(
        run / "student.safetensors", "cpu", face_weight=np.float32(0.25), batch=np.int64(8)
    )
    assert alone.source.fusion == Fusion.fixed(0.25)
    np.testing.assert_array_equal(alone(NOISE).vectors, encoder(NOISE).vectors)
    torch.manual_seed(0)
    network = Student(3, width=0.25, feature_dim=16, block="published").eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "published.pth")
    published = Encoder.load(tmp_path / "published.pth", "cpu")
    assert (published.face_size, published.body_size) == ((224, 224), (384, 128))
    assert published(NOISE[:1], NOISE[:1]).vectors.shape == (1, 2 * 7 * 16)


def test_a_run_is_encoded_as_it_was_evaluated(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    manifest = copied / ".state/manifests/eval.json"
    record = json.loads(manifest.read_text())
    record["config"]["eval"] |= {"flip": False, "face_weight": 0.9}
    manifest.write_text(json.dumps(record))
    source = Encoder.load(copied, "cpu").source
    assert (source.flip, source.fusion) == (False, Fusion.fixed(0.9))
    manifest.unlink()  # then by its recipe
    source = Encoder.load(copied, "cpu").source
    assert (source.flip, source.fusion) == (True, Fusion.fixed(0.5))
    (copied / "config.yaml").write_text("eval: {flip: 3}")
    with pytest.raises(InputError, match=r"config\.yaml: eval\.flip: .*load its student"):
        Encoder.load(copied)


def test_faces_are_cut_as_prepare_cuts_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a detector that finds two faces in bright images and none in dark ones."""

    class Finder:
        def __init__(self, *settings: object) -> None:
            pass

        def __call__(self, body: Image.Image) -> tuple[np.ndarray, np.ndarray]:
            boxes = np.array([[2, 3, 5, 6], [9, 4, 11, 12]], np.float32)
            bright = np.asarray(body).mean() > 100
            return boxes[: 2 * bright], np.array([0.9, 0.8])[: 2 * bright]

    monkeypatch.setattr(serving, "FaceDetector", Finder)
    monkeypatch.setattr("deskpro.stages.preparation.faces.FaceDetector", Finder)
    file = tmp_path / "yunet.onnx"
    file.touch()
    bodies = np.stack([NOISE[0], NOISE[1] // 8])
    step = YuNet(Prepare(face=FaceBox(method="yunet", model=file)), tmp_path, "cpu")
    boxes = [step.find(Image.fromarray(body), None).box for body in bodies]
    assert boxes[0] is not None
    assert boxes[1] is None
    encoder = Encoder.load(run, "cpu", detector=file)
    found = encoder(bodies, "detect")
    expected = encoder(bodies, [boxes[0].cut(Image.fromarray(bodies[0])), None])
    assert found.has_face.tolist() == [True, False]
    np.testing.assert_array_equal(found.vectors, expected.vectors)


def test_a_real_face_is_found(run: Path) -> None:
    files = sorted((REPOSITORY.parent / "shared" / "models").glob("*yunet*.onnx"))
    if not files:
        pytest.skip("needs YuNet's ONNX file in ../shared/models")
    from skimage.data import astronaut

    encoder = Encoder.load(run, "cpu", detector=files[0])
    assert encoder([astronaut(), NOISE[0]], "detect").has_face.tolist() == [True, False]


FRAME = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
"""BGR, as OpenCV reads videos."""


class Detections:
    """What Roboflow's trackers give, as far as it is read."""

    def __init__(self, xyxy: object) -> None:
        self.xyxy = xyxy


def test_trackers_get_a_row_for_each_box(encoder: Encoder) -> None:
    boxes = np.array([[10.4, 5.6, 42.0, 70.0, 0.9, 0], [-20, 40, 30, 200, 0.8, 0]], np.float32)
    found = encoder.get_features(boxes, FRAME)
    bodies = [FRAME[6:70, 10:42, ::-1], FRAME[40:90, 0:30, ::-1]]
    np.testing.assert_allclose(found, encoder(bodies).vectors[:, encoder.parts["body"]], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    again = encoder.extract_features(Detections(boxes[:, :4]), FRAME)
    np.testing.assert_array_equal(again, found)
    np.testing.assert_allclose(encoder.get_features(boxes[0], FRAME), found[:1], atol=1e-6)


@pytest.mark.parametrize("empty", [np.array([]), np.zeros((0, 4)), []])
def test_no_boxes_give_no_rows(empty: object, encoder: Encoder) -> None:
    body = encoder.parts["body"]
    found = encoder.get_features(empty, FRAME)
    assert found.shape == (0, body.stop - body.start)
    assert found.dtype == np.float32


@given(st.lists(st.tuples(*[st.floats(-300, 300) | st.just(float("nan"))] * 4), max_size=4))
def test_boxes_anywhere_give_what_the_frame_has_there(boxes: list[tuple[float, ...]]) -> None:
    for box, crop in zip(boxes, crops(boxes, FRAME), strict=True):
        inside = np.zeros((90, 120), bool)
        if np.isfinite(box).all():
            left, top, right, bottom = (round(edge) for edge in box)
            y, x = np.mgrid[:90, :120]
            inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        expected = FRAME[inside] if inside.any() else np.zeros((1, 3))
        np.testing.assert_array_equal(crop.reshape(-1, 3), expected)


@pytest.mark.parametrize(
    ("boxes", "frame", "message"),
    [
        ([[1, 2, 3]], FRAME, r"boxes: an array of shape \(1, 3\)"),
        ([[1, 2, 3, 4]], FRAME / 255, "frame: float64"),
        ([[1, 2, 3, 4]], FRAME[..., 0], "frame: uint8 .*must be a uint8 array H×W×3"),
        ([[1, 2, 3, 4]], None, "must be a uint8 array"),
    ],
)
def test_unclear_boxes_and_frames_are_refused(
    boxes: Any, frame: Any, message: str, encoder: Encoder
) -> None:
    with pytest.raises(InputError, match=message):
        encoder.get_features(boxes, frame)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "floats": (lambda: NOISE / 255, "an array of float64; must be uint8"),
    "signed": (lambda: [NOISE[0].astype(np.int16)], r"bodies\[0\]: an array of int16"),
    "grey": (lambda: [NOISE[0, :, :, 0]], r"shape \(64, 32\); must be H×W×3"),
    "four channels": (lambda: [np.zeros((8, 8, 4), np.uint8)], r"shape \(8, 8, 4\); must be H×W×3"),
    "channels first, alone": (lambda: NOISE[0].transpose(2, 0, 1), "must be H×W×3"),
    "no pixels": (lambda: [NOISE[0][:0]], r"shape \(0, 32, 3\)"),
    "no size": (lambda: Image.new("RGB", (0, 5)), "image of 0 × 5, without a pixel"),
    "two readings": (lambda: np.zeros((2, 3, 8, 3), np.uint8), "is both N×H×W×3 and N×3×H×W"),
    "no reading": (lambda: np.zeros((2, 8, 8, 4), np.uint8), "is neither N×H×W×3 nor N×3×H×W"),
    "five dimensions": (lambda: np.zeros((1, 2, 3, 8, 3), np.uint8), "is neither"),
    "a tensor": (lambda: torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "a Tensor; must be a path"),
    "tensors": (lambda: [torch.zeros(8, 8, 3)], r"bodies\[0\]: a Tensor; must be a path"),
    "a number": (lambda: 3, "a int; must be a path"),
    "nothing": (lambda: None, "bodies: None"),
    "a gap": (lambda: [NOISE[0], None], r"bodies\[1\]: a NoneType"),
    "no file": (lambda: "nowhere.jpg", "nowhere.jpg: unreadable image"),
    "no image": (lambda: __file__, "test_encoder.py: unreadable image: not an image file"),
    "16 bits": (lambda: Image.new("I;16", (8, 8)), r"bodies\[0\]: unreadable image: more than 8"),
}


@pytest.mark.parametrize("what", BAD)
def test_an_unclear_image_is_refused_in_one_line(what: str, encoder: Encoder) -> None:
    make, message = BAD[what]
    with pytest.raises(InputError, match=message) as error:
        encoder(make())
    assert len(str(error.value).splitlines()) == 1


def test_arguments_that_do_not_fit_are_refused_in_one_line(
    encoder: Encoder, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="color is 'hsv'; must be one of rgb, bgr"):
        encoder(NOISE, color="hsv")
    with pytest.raises(InputError, match="faces: 1 for 3 bodies"):
        encoder(NOISE, [None])
    with pytest.raises(InputError, match="faces='detect' needs a detector: --detector FILE, in"):
        encoder(NOISE, "detect")
    for device in ("cud", "mps", "cuda:x"):
        with pytest.raises(InputError, match=f"device is '{device}'; must be auto, cpu, cuda or"):
            Encoder.load(run, device)
    for path, message in (
        (tmp_path, "holds no student"),
        (tmp_path / "absent", "no such weights file"),
        (run / "teacher.safetensors", "is a teacher, a student is needed"),
        (run / "config.yaml", "not a checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            Encoder.load(path)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"face_weight": 2}, "face_weight is 2; must be 0 to 1"),
        ({"face_weight": "fitted"}, "were not fitted"),
        ({"batch": 0}, "batch is 0"),
        ({"device": "cuda:7"}, "CUDA devices"),
        ({"detector": "absent.onnx"}, "detector absent.onnx: no such file"),
    ]
    for arguments, message in wrong:
        with pytest.raises(InputError, match=message):
            Encoder.load(run, **arguments)


def test_broken_weights_are_named_with_the_image(encoder: Encoder, tmp_path: Path) -> None:
    path = student(tmp_path, "body")
    broken = Encoder.load(path, "cpu")
    next(broken.source.extractor.network.parameters()).data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"bodies\[0\]: its feature isn't finite"):
        broken(NOISE)
