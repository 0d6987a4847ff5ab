"""Each step of preparation alone: masks, face boxes, restorers."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.extras import optional
from deskpro.stages.base.prepare_options import STEPS, FaceBox, Parsing, Prepare, Restoration
from deskpro.stages.data.faces import square
from deskpro.stages.preparation.faces import (
    AT_EDGE,
    BACK,
    FOUND,
    NONE,
    OUTSIDE,
    SEVERAL,
    SMALL,
    Head,
    YuNet,
)
from deskpro.stages.preparation.masks import Regions
from deskpro.stages.preparation.methods import METHODS
from deskpro.stages.preparation.parsing import LabelFiles
from deskpro.stages.preparation.restoration import Bicubic, HighResolution, Spandrel
from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.schemes import CHANNELS, SCHEMES
from deskpro.stages.preparation.step import Unusable, read_image
from tests.conftest import REPOSITORY

ATR = SCHEMES["atr"]
HAIR, FACE, SHIRT = (ATR.names.index(name) for name in ("Hair", "Face", "Upper-clothes"))
ROOT = Path("nowhere")
HEADS = {
    "lip": {"Hat", "Hair", "Sunglasses", "Face"},
    "atr": {"Hat", "Hair", "Sunglasses", "Face"},
    "cihp": {"Hat", "Hair", "Sunglasses", "Face"},
    "pascal": {"Head"},
}
SKIN = {
    "lip": {"Left-arm", "Right-arm", "Left-leg", "Right-leg"},
    "atr": {"Left-arm", "Right-arm", "Left-leg", "Right-leg"},
    "cihp": {"Left-arm", "Right-arm", "Left-leg", "Right-leg", "Torso-skin"},
    "pascal": {"Lower-arms"},
}


# Schemes and masks


@pytest.mark.parametrize(("name", "count"), [("lip", 20), ("atr", 18), ("pascal", 7), ("cihp", 20)])
def test_every_class_but_the_background_has_one_channel(name: str, count: int) -> None:
    scheme = SCHEMES[name]
    assert len(scheme.classes) == len({*scheme.names}) == count
    assert scheme.ids("") == [0]
    assert sorted(i for channel in CHANNELS for i in scheme.ids(channel)) == [*range(1, count)]
    assert {scheme.names[i] for i in scheme.ids("head")} == HEADS[name]
    assert {scheme.names[i] for i in scheme.ids("skin")} == SKIN[name]


@given(st.sampled_from(sorted(SCHEMES)), st.integers(0, 10_000))
def test_a_mask_is_the_table_applied_to_each_pixel(name: str, number: int) -> None:
    scheme = SCHEMES[name]
    labels = np.random.default_rng(number).integers(0, len(scheme.classes), (5, 4), np.uint8)
    drawn = scheme.mask(labels)
    assert drawn.shape == (5, 4, 3)
    for row in range(5):
        for column in range(4):
            channel = scheme.classes[labels[row, column]][1]
            expected = [255 if each == channel else 0 for each in CHANNELS]
            assert drawn[row, column].tolist() == expected


# Methods


def test_the_options_have_the_names_of_all_methods_and_schemes() -> None:
    assert tuple(METHODS) == STEPS
    for step, methods in METHODS.items():
        field = type(getattr(Prepare(), step)).model_fields["method"]
        assert get_args(field.annotation) == tuple(methods)
        assert all(method.name == step and method.__doc__ for method in methods.values())
    assert get_args(Parsing.model_fields["scheme"].annotation) == tuple(SCHEMES)


def test_another_process_builds_the_same_step(tmp_path: Path) -> None:
    sections = {
        "parsing": {"labels": tmp_path},
        "face": {"margin": 0.4},
        "restoration": {"pictures": tmp_path, "size": 32},
    }
    settings = Prepare.model_validate(sections)
    for method in (LabelFiles, Regions, Head, Bicubic, HighResolution):
        step = method(settings, ROOT, "auto")
        step.unpicklable = lambda: None  # type: ignore[attr-defined]  # stands for a network
        copy = pickle.loads(pickle.dumps(step.worker))()
        assert type(copy) is method
        assert (copy.settings, copy.root, copy.device) == (settings, ROOT, "auto")
        assert copy.provenance() == step.provenance()


# Face boxes


@given(
    st.integers(4, 200),
    st.integers(4, 200),
    st.tuples(*4 * [st.floats(0, 1)]),
    st.floats(0, 1),
)
def test_a_face_box_is_a_square_in_the_picture_about_what_was_found(
    width: int, height: int, shares: tuple[float, float, float, float], margin: float
) -> None:
    left, right = sorted(round(share * width) for share in shares[:2])
    top, bottom = sorted(round(share * height) for share in shares[2:])
    assume(left < right and top < bottom)
    box, moved = square(left, top, right, bottom, margin, (width, height))
    assert 0 <= box.left <= width - box.side
    assert 0 <= box.top <= height - box.side
    wanted = max(right - left, bottom - top) * (1 + 2 * margin)
    if wanted <= min(width, height):
        assert abs(box.side - wanted) <= 0.5
        assert box.left <= left + 1
        assert box.top <= top + 1
        assert box.left + box.side >= right - 1
        assert box.top + box.side >= bottom - 1
    else:
        assert box.side == min(width, height)
    if not moved:
        assert abs(box.left + box.side / 2 - (left + right) / 2) <= 2
        assert abs(box.top + box.side / 2 - (top + bottom) / 2) <= 2


def head_at(labels: np.ndarray, top: int, left: int, side: int, face: float = 0.6) -> None:
    """Draw a head whose lower part is face."""
    labels[top : top + side, left : left + side] = HAIR
    labels[top + round((1 - face) * side) : top + side, left : left + side] = FACE


def person(*heads: tuple[int, int, int], face: float = 0.6) -> np.ndarray:
    labels = np.zeros((128, 64), np.uint8)
    labels[60:120, 10:54] = SHIRT
    for top, left, side in heads:
        head_at(labels, top, left, side, face)
    return labels


def found(labels: np.ndarray | None, **options: float) -> tuple[object, ...]:
    head = Head(Prepare(face=FaceBox(margin=0.25, **options)), ROOT, "cpu")
    return tuple(head.find(Image.new("RGB", (64, 128)), labels))


def test_the_head_region_gives_a_square_with_a_margin() -> None:
    decision, box, seen, score, doubts = found(person((20, 22, 20)))
    assert (decision, box, seen, score, doubts) == (FOUND, (17, 15, 30), 1, None, ())


def test_of_two_people_the_larger_head_is_taken_and_said() -> None:
    decision, box, seen, _, doubts = found(person((30, 2, 12), (10, 36, 20)))
    assert (decision, seen, doubts) == (FOUND, 2, (SEVERAL,))
    assert box == (31, 5, 30)


def test_specks_of_the_head_class_are_nobody() -> None:
    labels = person((20, 22, 20))
    labels[100, 5] = HAIR
    assert found(labels)[2:] == (1, None, ())
    assert found(labels)[1] == (17, 15, 30)


def test_the_back_of_a_head_a_speck_and_nothing_are_no_faces() -> None:
    assert found(person((20, 22, 20), face=0.05))[:2] == (BACK, None)
    assert found(person((20, 22, 4)))[:2] == (SMALL, None)
    assert found(person())[:2] == (NONE, None)
    assert found(person((20, 22, 4)), min_side=6)[0] == FOUND


def test_a_box_at_the_edge_is_moved_into_the_picture_and_said() -> None:
    decision, box, *_, doubts = found(person((0, 0, 20)))
    assert (decision, box, doubts) == (FOUND, (0, 0, 30), (AT_EDGE,))


def test_a_scheme_without_a_face_class_takes_any_head() -> None:
    labels = np.zeros((128, 64), np.uint8)
    labels[20:40, 22:42] = 1
    head = Head(Prepare(parsing=Parsing(scheme="pascal")), ROOT, "cpu")
    assert head.find(Image.new("RGB", (64, 128)), labels).decision == FOUND


@pytest.fixture(scope="session")
def yunet() -> Path:
    """The detector's file; it lies beside the project, not in it."""
    files = sorted((REPOSITORY.parent / "shared" / "models").glob("*yunet*.onnx"))
    if not files:
        pytest.skip("needs YuNet's ONNX file in ../shared/models")
    return files[0]


@pytest.fixture(scope="session")
def portrait() -> Image.Image:
    """A real portrait, NASA's, public domain: 512 × 512, the face about (225, 115)."""
    from skimage.data import astronaut

    return Image.fromarray(astronaut())


def detect(yunet: Path, image: Image.Image, labels: np.ndarray | None = None, **options: object):  # type: ignore[no-untyped-def]
    face = FaceBox(method="yunet", model=yunet, **options)  # type: ignore[arg-type]
    return YuNet(Prepare(face=face), ROOT, "cpu").find(image, labels)


def test_yunet_finds_a_real_face_at_any_size(yunet: Path, portrait: Image.Image) -> None:
    for scale in (1, 2, 4):
        image = portrait.resize((512 // scale, 512 // scale))
        seen = detect(yunet, image)
        assert seen.decision == FOUND
        assert seen.box is not None
        x, y = (
            (seen.box.left + seen.box.side / 2) * scale,
            (seen.box.top + seen.box.side / 2) * scale,
        )
        assert abs(x - 225) < 30
        assert abs(y - 115) < 30
        assert 80 < seen.box.side * scale < 220
        assert seen.seen == 1
        assert 0.6 <= (seen.score or 0) <= 1


def test_opencv_does_not_warn_at_each_image(
    yunet: Path, portrait: Image.Image, capfd: pytest.CaptureFixture[str]
) -> None:
    detect(yunet, portrait.resize((64, 64)))
    assert capfd.readouterr().err == ""


def test_yunet_on_nobody_and_on_two(yunet: Path, portrait: Image.Image) -> None:
    assert detect(yunet, Image.new("RGB", (64, 128), (90, 120, 60))).decision == NONE
    two = Image.new("RGB", (768, 512))
    two.paste(portrait.resize((256, 256)), (0, 128))
    two.paste(portrait.crop((0, 0, 512, 512)), (256, 0))
    seen = detect(yunet, two)
    assert (seen.decision, seen.seen) == (FOUND, 2)
    assert SEVERAL in seen.doubts
    assert seen.box is not None
    assert seen.box.left > 256


def test_a_face_outside_the_head_region_is_dropped(yunet: Path, portrait: Image.Image) -> None:
    elsewhere = np.zeros((512, 512), np.uint8)
    head_at(elsewhere, 350, 350, 100)
    assert detect(yunet, portrait, elsewhere).decision == OUTSIDE
    assert detect(yunet, portrait, elsewhere, inside_head=False).decision == FOUND
    there = np.zeros((512, 512), np.uint8)
    head_at(there, 50, 160, 130)
    assert detect(yunet, portrait, there).decision == FOUND


def test_a_file_that_is_no_detector_is_refused_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(InputError, match=r"broken\.onnx: not a YuNet that OpenCV can load"):
        YuNet(Prepare(face=FaceBox(method="yunet", model=broken)), ROOT, "cpu")


# Restoration


def small_restoreformer() -> torch.nn.Module:
    from spandrel.architectures.RestoreFormer import RestoreFormer

    return RestoreFormer(  # type: ignore[no-any-return]
        ch=32, ch_mult=(1,) * 6, n_embed=16, embed_dim=32, z_channels=32, num_res_blocks=1
    )


def gfpgan() -> torch.nn.Module:
    from spandrel.architectures.GFPGAN import GFPGAN

    return GFPGAN(  # type: ignore[no-any-return]
        out_size=512, channel_multiplier=2, input_is_latent=True, different_w=True, sft_half=True
    )


def codeformer() -> torch.nn.Module:
    from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

    return CodeFormer()  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_restoreformer, gfpgan, codeformer])
def test_a_restoration_network_is_loaded_from_its_file(make: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "network.pth"
    torch.save(make().state_dict(), file)  # type: ignore[operator]
    settings = Prepare(restoration=Restoration(method="spandrel", model=file))
    network = Spandrel(settings, ROOT, "cpu")
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    face = Image.fromarray(noise).resize((40, 40))
    sample = Sample("train/1_c1_0.jpg", Path("x"), "train", "1", 1)
    first = network.restore(face, sample)
    assert first.size == (512, 512)
    assert np.asarray(first).std() > 0
    if make is gfpgan:  # it adds noise, which is the image's own
        torch.rand(3)  # whatever else was drawn meanwhile
        assert np.array_equal(first, network.restore(face, sample))
    shutil.rmtree(tmp_path)


def test_networks_made_for_minus_one_to_one_are_given_that() -> None:
    from types import SimpleNamespace

    from deskpro.stages.preparation.restoration import run_network

    seen: list[tuple[float, float]] = []

    def model(pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        seen.append((float(pixels.min()), float(pixels.max())))
        return pixels, None

    for name in ("GFPGAN", "CodeFormer"):
        network = SimpleNamespace(architecture=SimpleNamespace(id=name), model=model)
        pixels = torch.linspace(0, 1, 12).view(1, 3, 2, 2)
        assert torch.allclose(run_network(network, pixels), pixels, atol=1e-6)
    assert seen == [(-1.0, 1.0)] * 2


@pytest.mark.parametrize("content", [b"nothing of the kind", b""])
def test_a_file_that_is_no_network_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "network.pth"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"network\.pth: not a network that spandrel can load"):
        Spandrel(Prepare(restoration=Restoration(method="spandrel", model=file)), ROOT, "cpu")


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        InputError, match=r"yunet needs the package cv2.*pip install '\.\[prepare\]'"
    ):
        optional("cv2", "prepare.face.method=yunet")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pixels_that_would_be_clipped_are_refused(mode: str, tmp_path: Path) -> None:
    file = tmp_path / ("deep.png" if mode == "I;16" else "deep.tif")
    Image.new("I" if mode == "I;16" else mode, (4, 4), 30_000).convert(mode).save(file)
    with pytest.raises(Unusable, match="more than 8 bits a channel"):
        read_image(file)


@pytest.mark.cuda
def test_a_restoration_network_gives_on_a_gpu_what_it_gives_on_a_cpu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "network.pth"
    torch.save(small_restoreformer().state_dict(), file)
    settings = Prepare(restoration=Restoration(method="spandrel", model=file))
    face = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    sample = Sample("train/1_c1_0.jpg", Path("x"), "train", "1", 1)
    here, there = (
        np.asarray(Spandrel(settings, ROOT, device).restore(face, sample))
        for device in ("cpu", "cuda:0")
    )
    assert np.abs(here.astype(int) - there.astype(int)).mean() < 1
