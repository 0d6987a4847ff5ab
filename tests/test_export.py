"""An exported student: the same vectors without this project, checked before it is kept."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deskpro import Encoder
from deskpro.cache.files import write_folder_aside, write_text
from deskpro.pipeline import runner
from deskpro.pipeline.config import load
from deskpro.stages import export as stage
from deskpro.stages.base.calibrated import Case
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import KIND_OF
from deskpro.stages.base.prepare_options import FaceBox
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.views import MEAN, STD
from deskpro.stages.metrics.calibration import CASES
from deskpro.stages.metrics.compact import principal_directions, projected
from deskpro.stages.metrics.fusion import Fusion
from deskpro.stages.models.backbones import BACKBONES, Backbone
from deskpro.stages.models.exported import Settings, read_settings
from deskpro.stages.models.extractor import FeatureExtractor
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import ModelInfo
from deskpro.stages.serving.card import card, program
from deskpro.stages.serving.export import Form, write
from deskpro.stages.serving.sources import Source
from tests.conftest import REPOSITORY, STAGES, Once, Project, with_cache, write_recipe
from tests.crash import crashes

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")

SIZES = {"lr_face": (32, 32), "imgs": (64, 32)}
RANDOM = np.random.default_rng(0)
BODIES = RANDOM.integers(0, 256, (7, 80, 40, 3), dtype=np.uint8)
FACES = [None, *RANDOM.integers(0, 256, (6, 24, 24, 3), dtype=np.uint8)]


def shallow(**_: Any) -> Backbone:
    """Two convolutions in the place of OSNet, whose export takes 20 seconds a stream."""
    trunk = nn.Sequential(nn.Conv2d(3, 16, 7, 8, 3), nn.BatchNorm2d(16), nn.ReLU())
    return Backbone(
        trunk, 16, 8, lambda: nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()), 32, nn.Identity
    )


@contextmanager
def shallow_networks() -> Iterator[None]:
    before = BACKBONES["osnet"]
    BACKBONES["osnet"] = shallow
    try:
        yield
    finally:
        BACKBONES["osnet"] = before


def source() -> Source:
    """A student of both streams, always the same."""
    torch.manual_seed(0)
    network = {"forward_mode": "all", "width": 0.25, "feature_dim": 8}
    with shallow_networks():
        student = Student(3, **network).eval()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    info = ModelInfo("student", network, 3, None, (32, 32), (64, 32)).of(student)
    extractor = FeatureExtractor(student, info, student.heads, KIND_OF, SIZES)
    return Source(extractor, True, Fusion(3.0, 1.5, -2.0, 2.5, -1.0), FaceBox())


EVALUATION = {
    "dataset": "benchmark", "queries": 1, "gallery": 1, "identities": 1,
    "protocols": {"market": {"rule": "a rule", "streams": {"all": {
        "mAP": 0.5, "rank1": 0.25, "interval": {"mAP": [0.1, 0.9], "rank1": [0.0, 1.0]}}}}},
}  # fmt: skip
PARITY = {"runtime": "onnxruntime 1", "max_difference": 1e-7, "min_cosine": 1.0}


def export(folder: Path, form: Form, *streams: str) -> Settings:
    weights = folder / "weights"
    weights.write_bytes(b"weights")
    return write(source(), weights, folder, streams, form)


@pytest.fixture(scope="session")
def exported(once: Once) -> Path:
    """An exported folder of both streams, with its model card; read it, don't change it."""

    def make(folder: Path) -> None:
        settings = replace(export(folder, Form()), evaluation=EVALUATION, parity=PARITY)
        write_text(folder / "README.md", card(settings, {"training images": "none"}))

    return once("exported", make)


def assert_same(found: Encoder, expected: Encoder, count: int) -> None:
    mine, theirs = (
        encoder(BODIES[:count], FACES[:count] if len(encoder.parts) > 1 else None)
        for encoder in (found, expected)
    )
    vectors = theirs.vectors[:, theirs.vectors.shape[1] - found.dim :]  # the body is the last part
    np.testing.assert_allclose(mine.vectors, vectors, atol=1e-5)
    for part in found.parts.values():
        there = mine.vectors[:, part].any(1)
        cosines = (mine.vectors[:, part] * vectors[:, part]).sum(1)[there]
        assert (cosines > 0.9999).all()
    if found.dim == expected.dim:
        np.testing.assert_array_equal(mine.has_face, theirs.has_face)
        scores = found.similarity(mine, mine), expected.similarity(theirs, theirs)
        np.testing.assert_allclose(*scores, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_an_exported_folder_is_the_student_for_any_number_of_images(
    count: int, exported: Path
) -> None:
    found, student = Encoder.load(exported, "cpu"), Encoder(source(), torch.device("cpu"), None, 64)
    assert (found.face_size, found.body_size) == ((32, 32), (64, 32))
    assert_same(found, student, count)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_file_that_normalises_takes_pixels_and_has_another_name(
    runtime: Any, tmp_path: Path
) -> None:
    settings = export(tmp_path, Form(runtime, "inside"), "body")
    [stream] = settings.streams.values()
    assert stream.file == f"body.normalised.{'onnx' if runtime == 'onnx' else 'pt2'}"
    assert settings.range == [0, 255]
    assert not (tmp_path / f"{stream.file}.metadata.json").exists()
    found = Encoder.load(tmp_path, "cpu")
    assert_same(found, Encoder(source(), torch.device("cpu"), None, 64), 3)
    if runtime == "onnx":
        session = onnxruntime.InferenceSession(tmp_path / stream.file)
        assert session.get_inputs()[0].type == "tensor(uint8)"
        assert session.get_modelmeta().custom_metadata_map["normalise"] == "inside"


DIRECTIONS = {
    stream: np.linalg.qr(np.random.default_rng(i).normal(size=(7 * 8, 5)))[0].astype(np.float32)
    for i, stream in enumerate(("face", "body"))
}


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "streams"), [("onnx", ("body",)), ("torch", ())])
def test_an_exported_folder_gives_projected_vectors_of_image_and_mirror_image(
    runtime: Any, streams: tuple[str, ...], tmp_path: Path
) -> None:
    settings = export(tmp_path, Form(runtime, directions=DIRECTIONS), *streams)
    assert not settings.mirror
    found, student = Encoder.load(tmp_path, "cpu"), Encoder(source(), torch.device("cpu"), None, 64)
    assert found.dim == 5 * len(settings.streams)
    for count in (1, 2, 7):
        whole = student(BODIES[:count], FACES[:count])
        short = [projected(whole.vectors[:, student.parts[s]], DIRECTIONS[s]) for s in found.parts]
        features = found(BODIES[:count], None if streams else FACES[:count])
        np.testing.assert_allclose(features.vectors, np.concatenate(short, 1), atol=1e-5)
    small = features.stored("int8")
    scores = found.similarity(features, features)
    np.testing.assert_allclose(found.similarity(small, features), scores, atol=0.05)
    np.testing.assert_allclose(found.similarity(small, small), scores, atol=0.1)
    half = features.stored("float16")
    np.testing.assert_allclose(found.similarity(half, half), scores, atol=0.01)


@pytest.mark.slow
def test_a_file_of_int8_numbers_is_nearly_the_student(tmp_path: Path) -> None:
    images = np.stack([np.asarray(Image.fromarray(b).resize((32, 64))) for b in BODIES])
    form = Form(normalise="inside", images={"body": images.transpose(0, 3, 1, 2)})
    settings = export(tmp_path, form, "body")
    [stream] = settings.streams.values()
    assert (settings.numbers, stream.file) == ("int8", "body.normalised.int8.onnx")
    session = onnxruntime.InferenceSession(tmp_path / stream.file)
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["numbers"], facts["normalise"]) == ("int8", "inside")
    import onnx

    [first] = [n for n in onnx.load(tmp_path / stream.file).graph.node if n.op_type == "Conv"][:1]
    assert "Dequantize" in first.input[1]
    found, student = Encoder.load(tmp_path, "cpu"), Encoder(source(), torch.device("cpu"), None, 64)
    mine, whole = found(BODIES).vectors, student(BODIES).vectors[:, student.parts["body"]]
    cosines = (mine * whole).sum(1)
    assert (cosines > 0.98).all()
    assert cosines.min() < 0.99999


@pytest.mark.slow
def test_an_exported_folder_keeps_what_scores_mean(tmp_path: Path) -> None:
    whole = source()
    assert whole.fusion is not None
    cases = {
        name: Case(2.0 + i, -1.0 - i, 50, 5000, "", [0.1 * i + 0.01 * step for step in range(24)])
        for i, name in enumerate(CASES)
    }
    calibration = {"face": {}, "body": {}, "all, 0.5": {}, "all, fitted": cases}
    info = replace(whole.extractor.info, fusion=whole.fusion.facts(), calibration=calibration)
    whole = whole._replace(extractor=replace(whole.extractor, info=info))
    (tmp_path / "weights").touch()
    write(whole, tmp_path / "weights", tmp_path, (), Form("torch"))
    found, student = Encoder.load(tmp_path, "cpu"), Encoder(whole, torch.device("cpu"), None, 64)
    assert found.calibration() == cases
    assert found.threshold(1e-2) == student.threshold(1e-2)
    assert [*found.threshold(1e-2)] == [*CASES]
    mine, theirs = found(BODIES, FACES), student(BODIES, FACES)
    odds = student.odds(theirs, theirs)
    np.testing.assert_allclose(found.odds(mine, mine), odds, atol=1e-3)
    with pytest.raises(InputError, match=r"no calibration for 0\.3"):
        Encoder.load(tmp_path, "cpu", face_weight=0.3).calibration()


def test_the_file_says_what_it_takes_and_nothing_of_this_machine(exported: Path) -> None:
    import onnx

    content = (exported / "body.onnx").read_bytes()
    assert str(REPOSITORY).encode() not in content
    model = onnx.load_from_string(content)
    assert [each.version for each in model.opset_import if not each.domain] == [18]
    assert model.ir_version <= 10  # the newest that onnxruntime 1.20 reads
    session = onnxruntime.InferenceSession(exported / "body.onnx")
    [given] = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(float)", [3, 64, 32])
    assert isinstance(given.shape[0], str)
    assert [output.name for output in session.get_outputs()] == ["features", "heads"]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["normalise"] == "outside"
    assert json.loads(facts["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(facts["mirror"]) is True


def test_what_boxmot_does_with_a_file_gives_vectors(exported: Path) -> None:
    """Its contract: a dict beside the file; normalised crops, the first output, a row each."""
    facts = json.loads((exported / "body.onnx.metadata.json").read_text())
    assert isinstance(facts["model_name"], str)
    assert facts["preprocess"] == "resize"
    height, width = facts["model_kwargs"]["img_size"]
    crops = np.stack([np.asarray(Image.fromarray(b).resize((width, height))) for b in BODIES])
    batch = crops.transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean, std = (np.float32(values).reshape(3, 1, 1) for values in (MEAN, STD))
    session = onnxruntime.InferenceSession(exported / "body.onnx")
    name = session.get_inputs()[0].name
    features = session.run([session.get_outputs()[0].name], {name: (batch - mean) / std})[0]
    assert features.shape == (7, 7 * 8)
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, atol=1e-5)


ALONE = """
import runpy, sys
sys.path[:] = [path for path in sys.path if "site-packages" not in path] + [sys.argv.pop(1)]
sys.modules["torch"] = None
try:
    import deskpro
except ImportError:
    runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
"""An interpreter without this project, whose editable install needs the module `site`."""


def run_program(folder: Path, out: Path, images: list[Path]) -> np.ndarray:
    """What the program of an exported README makes of the images of one person."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 40
    script = out.with_suffix(".py")
    script.write_text(code)
    libraries = Path(np.__file__).parents[1]
    command = [sys.executable, "-I", "-S", "-c", ALONE, libraries, script, folder, out, *images]
    subprocess.run([*map(str, command)], check=True, cwd=out.parent)
    vector: np.ndarray = np.load(out)
    return vector


def test_the_program_in_the_readme_makes_the_vectors_without_this_project(
    exported: Path, tmp_path: Path
) -> None:
    for name, pixels in (("body.png", BODIES[1]), ("face.png", FACES[1])):
        Image.fromarray(pixels).save(tmp_path / name)
    images = [tmp_path / "body.png", tmp_path / "face.png"]
    found = run_program(exported, tmp_path / "vector.npy", images)
    expected = Encoder.load(exported, "cpu")(*images)
    np.testing.assert_allclose(found, expected.vectors[0], atol=1e-3)


def test_the_card_has_data_numbers_limits_and_licence(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    for heading in ("Use", "Data and recipe", "Numbers", "Limits", "Licence"):
        assert f"## {heading}\n" in text
    assert "| market | all | 50.0 [10.0, 90.0] | 25.0 [0.0, 100.0] |" in text
    assert "-2 + 3·cos(face) + 1.5·cos(body)" in text
    assert len(program("torch").splitlines()) <= 40


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "network changed": (lambda f: (f / "body.onnx").write_bytes(b"other"), "differs from its"),
    "network missing": (lambda f: (f / "body.onnx").unlink(), "body.onnx: missing"),
    "other format": (
        lambda f: edit(f, lambda s: s | {"format": 2}),
        "format: Input should be 1; must be what",
    ),
    "file elsewhere": (
        lambda f: edit(f, lambda s: s["streams"]["body"].update(file="../body.onnx")),
        "lies outside",
    ),
    "unknown stream": (
        lambda f: edit(f, lambda s: s["streams"].update(feet=s["streams"].pop("body"))),
        "streams are",
    ),
    "no such margin": (
        lambda f: edit(f, lambda s: s["face_box"].update(margin=9)),
        "face_box: .*margin: ",
    ),
    "no weight of the body": (
        lambda f: edit(f, lambda s: s["fusion"].pop("body") and s),
        "fusion: .*must be face, body, bias",
    ),
    "no weights": (lambda f: edit(f, lambda s: s | {"fusion": None}), "fusion must weigh"),
    "other fitted weights": (
        lambda f: edit(f, lambda s: s | {"fitted": {"face": 1.0}}),
        "fitted: .*found face",
    ),
    "no identities": (
        lambda f: edit(f, lambda s: s["student"].pop("identities") and s),
        "student: .*identities: must be a number",
    ),
    "no JSON": (lambda f: (f / "encoder.json").write_text("{"), "encoder.json: "),
}


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    settings = json.loads((folder / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps(change(settings) or settings))


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_folder_is_refused_in_one_line(what: str, exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    change, message = CHANGES[what]
    change(folder)
    with pytest.raises(InputError, match=message) as error:
        Encoder.load(folder)
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_library_is_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"needs the package onnxruntime.*'\.\[export\]'"):
        Encoder.load(exported)


@pytest.fixture
def evaluated(
    project: Project, once: Once, tiny_benchmark: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A finished run of shallow networks."""

    def make(folder: Path) -> None:
        write_recipe(folder / "tiny.yaml", tiny_benchmark)
        for name in STAGES:
            runner.run_stage(name, load(folder / "tiny.yaml"), RunFolder(folder / "run"))

    monkeypatch.setitem(BACKBONES, "osnet", shallow)
    return with_cache(project, once("shallow", make) / "run", tiny_benchmark)


@pytest.mark.finished("eval")
def test_the_card_has_the_first_rank_whichever_ranks_were_named(project: Project) -> None:
    metrics = json.loads((project.run / "metrics.json").read_text())
    numbers = metrics["protocols"]["market"]["streams"]["all"]
    assert numbers.pop("rank1") == numbers["cmc"][0]  # eval.ranks=[5]
    kept = stage._evaluation(metrics)["protocols"]["market"]["streams"]["all"]
    assert kept["rank1"] == numbers["cmc"][0]


def body_accuracy(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: p["streams"]["body"]["mAP"] for name, p in metrics["protocols"].items()}


@pytest.mark.slow
def test_an_export_is_evaluated_as_it_is_and_kept_only_if_it_is_right(
    evaluated: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, out = str(evaluated.run), evaluated.run / "export"
    done = evaluated.command("export", run)
    assert done.code == 0, done.err
    assert not [*evaluated.run.glob(".*partial*")]
    names = {"body.onnx", "body.onnx.metadata.json", "face.onnx", "encoder.json", "README.md"}
    assert {path.name for path in out.iterdir()} == names
    settings = read_settings(out / "encoder.json")
    assert settings.fusion == Fusion.fixed(0.5).facts()
    assert settings.parity["min_cosine"] > 0.9999
    expected = body_accuracy(json.loads((evaluated.run / "metrics.json").read_text()))
    assert body_accuracy(settings.evaluation) == pytest.approx(expected, abs=0.001)

    alone = evaluated.command(
        "eval", "--checkpoint", str(out), "--data", str(evaluated.data), "--dataset", "benchmark",
        "--run", str(tmp_path / "alone"), "--config", str(evaluated.config),
    )  # fmt: skip
    assert alone.code == 0, alone.err
    again = json.loads((tmp_path / "alone/metrics.json").read_text())
    assert body_accuracy(again) == pytest.approx(expected, abs=0.001)

    before = (out / "encoder.json").read_bytes()
    refused = evaluated.command("export", run)
    assert refused.code == 2
    assert "exists already; use --force or another --out" in refused.err

    monkeypatch.setattr(stage, "COSINE", 1.5)
    monkeypatch.setattr(stage, "TOLERANCE", -1)
    failed = evaluated.command("export", run, "--streams", "body", "--format", "torch", "--force")
    assert failed.code == 1
    assert "market, body: mAP " in failed.out
    assert "the least cosine" in failed.out
    assert (out / "encoder.json").read_bytes() == before
    assert not [*evaluated.run.glob(".*partial*")]

    monkeypatch.undo()
    monkeypatch.setitem(BACKBONES, "osnet", shallow)
    body = evaluated.command("export", run, "--streams", "body", "--format", "torch", "--force")
    assert body.code == 0, body.err
    assert {path.name for path in out.iterdir()} == {"body.pt2", "encoder.json", "README.md"}
    assert read_settings(out / "encoder.json").fusion is None


@pytest.mark.slow
def test_projections_are_of_training_images_and_their_cost_is_told(
    evaluated: Project, tmp_path: Path
) -> None:
    out = evaluated.run / "export"
    done = evaluated.command("export", str(evaluated.run), "--dim", "8", "--format", "torch")
    assert done.code == 0, done.err
    assert "no identities are held out" in done.err
    settings = read_settings(out / "encoder.json")
    assert settings.calibration is None
    names = [(row["numbers"], row["storage"], row["bytes"]) for row in settings.sizes]
    full = settings.sizes[0]["numbers"]
    assert names[::3] == [(n, "float32", 2 * 4 * n) for n in (full, 8, 4, 2)]
    assert names[3:6] == [(8, "float32", 64), (8, "float16", 32), (8, "int8", 16)]
    metrics = json.loads((evaluated.run / "metrics.json").read_text())["protocols"]
    first = next(iter(metrics))
    for stream, numbers in metrics[first]["streams"].items():
        assert settings.sizes[0]["mAP"][stream] == pytest.approx(numbers["mAP"], abs=1e-6)
        short = settings.evaluation["protocols"][first]["streams"][stream]["mAP"]
        assert settings.sizes[3]["mAP"][stream] == pytest.approx(short, abs=0.001)
    card_rows = [r for r in (out / "README.md").read_text().splitlines() if "| int8 |" in r]
    assert len(card_rows) == 4

    found, student = (Encoder.load(path, "cpu") for path in (out, evaluated.run))
    images = {
        split: [sorted((evaluated.data / kind / split).iterdir()) for kind in ("imgs", "lr_face")]
        for split in ("bounding_box_train", "query")
    }
    by_name = {path.name: path for path in images["query"][1]}
    faces = [by_name.get(path.name) for path in images["query"][0]]
    whole = student(images["bounding_box_train"][0]).vectors[:, student.parts["body"]]
    directions = principal_directions(whole.T.astype(np.float64) @ whole)[:, :8]
    queries = student(images["query"][0], faces).vectors[:, student.parts["body"]]
    expected = projected(queries, directions)
    mine = found(images["query"][0], faces).vectors[:, found.parts["body"]]
    np.testing.assert_allclose(mine @ mine.T, expected @ expected.T, atol=1e-4)


@pytest.mark.slow
def test_what_int8_costs_is_told_and_scores_mean_what_its_own_pairs_tell(
    evaluated: Project, tmp_path: Path
) -> None:
    others = Path(shutil.copytree(evaluated.data, tmp_path / "others"))
    for file in [*others.glob("*/bounding_box_train/*")]:
        file.rename(file.with_name(f"2{file.name}"))  # nobody whom the student was trained on
    command = ("export", str(evaluated.run), "--int8", "--streams", "face")
    places = (f"data.root={others}", f"data.test_root={evaluated.data}", "data.validation=0.5")
    done = evaluated.command(*command, *(word for place in places for word in ("--set", place)))
    assert done.code == 0, done.err
    folder = evaluated.run / "export"
    settings = read_settings(folder / "encoder.json")
    assert {path.name for path in folder.iterdir()} == {
        "face.int8.onnx",
        "encoder.json",
        "README.md",
    }
    assert settings.calibration is not None
    assert settings.calibration["face"]["face-face"].impostors == 25
    assert "What int8 costs" in (folder / "README.md").read_text()
    assert not settings.sizes


def test_a_folder_is_whole_or_absent_at_every_kill(tmp_path: Path) -> None:
    folder = tmp_path / "made"

    def make(text: str) -> None:
        with write_folder_aside(folder) as aside:
            for name in ("a", "b"):
                write_text(aside / name, text)

    def found() -> list[str]:
        return [(folder / name).read_text() for name in ("a", "b")] if folder.exists() else []

    seen = []
    for _ in crashes(lambda: make("old"), lambda: make("new"), tmp_path):
        seen.append(found())
        make("new")
        assert found() == ["new", "new"]
    assert all(each in ([], ["old", "old"], ["new", "new"]) for each in seen)
    assert seen[0] == ["old", "old"]

    def fail() -> None:
        with write_folder_aside(folder) as aside:
            (aside / "a").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert found() == ["new", "new"]


def test_a_folder_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "made", Path.rename
    folder.mkdir()
    (folder / "a").write_text("old")

    def refuse(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial") and "-old" not in path.name:
            raise PermissionError(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError), write_folder_aside(folder):
        pass
    assert (folder / "a").read_text() == "old"
    assert [*tmp_path.iterdir()] == [folder]


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_the_whole_student_as_onnx(project: Project, tmp_path: Path) -> None:
    done = project.command("export", str(project.run), "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    found, student = (Encoder.load(path, "cpu") for path in (tmp_path / "out", project.run))
    for count in (1, 2, 7):
        assert_same(found, student, count)
    images = [sorted((project.data / kind / "query").iterdir())[0] for kind in ("imgs", "lr_face")]
    made = run_program(tmp_path / "out", tmp_path / "vector.npy", images)
    np.testing.assert_allclose(made, student(*images).vectors[0], atol=1e-3)


@pytest.mark.slow
def test_a_student_of_full_size_as_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = Student(3, forward_mode="all").eval()
    network = {"forward_mode": "all", "feature_dim": 512}
    info = ModelInfo("student", network, 3, None, (224, 224), (384, 128)).of(student)
    sizes = {"lr_face": (224, 224), "imgs": (384, 128)}
    extractor = FeatureExtractor(student, info, student.heads, KIND_OF, sizes)
    full = Source(extractor, True, Fusion.fixed(0.5), FaceBox())
    (tmp_path / "weights").touch()
    write(full, tmp_path / "weights", tmp_path, (), Form())
    for count in (1, 2, 7):
        assert_same(
            Encoder.load(tmp_path, "cpu"), Encoder(full, torch.device("cpu"), None, 64), count
        )
