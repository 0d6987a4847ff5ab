"""The networks: their shapes, their wiring, and a teacher that never trains."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from deskpro.stages.base import training_options
from deskpro.stages.base.errors import InputError
from deskpro.stages.models.backbones import BACKBONES, make_backbone, map_size
from deskpro.stages.models.lmbn import LMBN, drop_top_rows, head_names
from deskpro.stages.models.osnet import CHANNELS, OSBlock
from deskpro.stages.models.student import Student, multiply_adds
from deskpro.stages.models.teacher import Teacher
from deskpro.stages.models.tokens import map_of
from deskpro.stages.models.weights import ModelInfo, load_student, load_teacher, read_metadata, save
from tests.conftest import Once


@pytest.mark.parametrize("width", CHANNELS)
def test_every_width_gives_seven_heads(width: float) -> None:
    network = LMBN(5, width=width, feature_dim=32, attention=True).eval()
    output = network(torch.zeros(2, 3, 64, 32))
    assert output.logits.shape == (2, len(head_names()), 5)
    assert output.features.shape == (2, len(head_names()), 32)
    assert output.before_neck.shape == (2, len(head_names()[:3]), 32)
    assert output.attention is not None
    assert output.attention.shape == (2, 1, 8, 4)


@pytest.mark.parametrize("side", [*range(32, 50), 101, 224, 390])
def test_any_input_size_will_do_and_the_map_is_as_large_as_said(side: int) -> None:
    network = LMBN(3, width=0.25, feature_dim=16, attention=True).eval()
    output = network(torch.zeros(1, 3, side, 40))
    assert output.logits.shape == (1, 7, 3)
    assert output.attention is not None
    assert tuple(output.attention.shape[2:]) == map_size(network.backbone_name, (side, 40))


@pytest.mark.parametrize("mode", ["face", "body", "all"])
@pytest.mark.parametrize("training", [True, False])
def test_a_student_gives_one_type_in_both_modes_and_names_its_streams(
    mode: str, training: bool
) -> None:
    student = Student(4, forward_mode=mode, width=0.25, feature_dim=16).train(training)
    faces = torch.zeros(4, 3, 32, 32) if mode != "body" else None
    bodies = torch.zeros(4, 3, 64, 32) if mode != "face" else None
    output = student(faces, bodies)
    streams = {"face": ["face"], "body": ["body"], "all": ["face", "body"]}[mode]
    assert list(student.heads) == list(student.triplet) == streams
    assert output.logits.shape == (4, 7 * len(streams), 4)
    assert output.before_neck.shape == (4, 3 * len(streams), 16)
    assert (output.attention is None) == (mode == "face")


def test_the_slices_are_the_streams_own_heads() -> None:
    student = Student(4, width=0.25, feature_dim=16).eval()
    faces, bodies = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 64, 32)
    assert student.lr_face_net is not None
    assert student.nocloth_net is not None
    output = student(faces, bodies)
    for stream, alone in (
        ("face", student.lr_face_net(faces)),
        ("body", student.nocloth_net(bodies)),
    ):
        torch.testing.assert_close(output.logits[:, student.heads[stream]], alone.logits)
        torch.testing.assert_close(
            output.before_neck[:, student.triplet[stream]], alone.before_neck
        )


def test_the_published_wiring_counts_stream_a_twice_and_never_uses_b() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 16, 8, 8)
    right, published = OSBlock(16, 64).eval(), OSBlock(16, 64, "published").eval()
    published.load_state_dict(right.state_dict())
    assert not torch.allclose(right(x), published(x))
    before = {"osnet": right(x), "published": published(x)}
    for block in (right, published):
        for parameter in block.conv2b.parameters():
            parameter.data.mul_(3).add_(1)
    assert torch.equal(published(x), before["published"])
    assert not torch.equal(right(x), before["osnet"])
    right.conv2b[0].load_state_dict(right.conv2a.state_dict())
    right.conv2b[1] = torch.nn.Identity()  # stream b made a copy of a: the two wirings agree
    published.load_state_dict({**published.state_dict(), **{
        k: v for k, v in right.state_dict().items() if not k.startswith("conv2b")}})  # fmt: skip
    torch.testing.assert_close(right(x), published(x))


def test_top_drop_block_zeroes_the_rows_with_the_strongest_position() -> None:
    x = torch.full((2, 4, 6, 3), 0.1)
    x[0, :, 1, 2] = 9
    x[0, :, 4, 0] = 5
    x[1, :, 5, 1] = 2
    x[1, :, 0, 1] = 1
    dropped = drop_top_rows(x)
    assert [(row == 0).all().item() for row in dropped[0].unbind(1)] == [0, 1, 0, 0, 1, 0]
    assert [(row == 0).all().item() for row in dropped[1].unbind(1)] == [1, 0, 0, 0, 0, 1]
    torch.testing.assert_close(dropped[0][:, [0, 2, 3, 5]], x[0][:, [0, 2, 3, 5]])


def test_rows_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    branch = LMBN(3, width=0.25, feature_dim=16).global_branch
    x = torch.rand(4, 96, 8, 8)
    for module in branch.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.momentum = 0.0
    before = [branch.train(mode)(x)[1].before_neck for mode in (True, False)]
    assert not torch.allclose(*before)


def test_a_teacher_stays_in_evaluation_mode_whatever_its_caller_does() -> None:
    teacher = Teacher(LMBN(3, width=0.25, feature_dim=16).train())
    holder = torch.nn.ModuleList([teacher]).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    faces = torch.rand(4, 3, 32, 32)
    together = holder[0](faces).logits
    alone = torch.cat([holder[0](face[None]).logits for face in faces])
    assert not any(module.training for module in teacher.modules())
    assert not together.requires_grad
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_bias_before_a_classifier_is_frozen_at_zero() -> None:
    network = LMBN(3, width=0.25, feature_dim=16)
    for name, parameter in network.named_parameters():
        frozen = "reduction_" in name and name.endswith("bn.bias")
        assert parameter.requires_grad != frozen, name
        if frozen:
            assert not parameter.any()


DESCRIPTION = ModelInfo(
    "student", {"width": 0.25, "feature_dim": 16}, 3, ["1", "10", "2"], (32, 32), (64, 32)
)


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    student = Student(3, width=0.25, feature_dim=16)
    save(path, student, DESCRIPTION)
    loaded, description = load_student(path)
    heads = {stream: list(head_names()) for stream in ("face", "body")}
    assert description == replace(DESCRIPTION, heads=heads, stride=8) == read_metadata(path)
    assert not loaded.training
    found = loaded.state_dict()
    for name, tensor in student.state_dict().items():
        np.testing.assert_array_equal(tensor, found[name])
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "student.json"}


def test_a_weights_file_of_the_wrong_kind_or_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save(path, Student(3, width=0.25, feature_dim=16), DESCRIPTION)
    with pytest.raises(InputError, match="is a student, a teacher is needed"):
        load_teacher(path)
    with pytest.raises(InputError, match="no such weights file"):
        load_teacher(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match=rf"not a regular file.*Give a file in it: {path}"):
        load_teacher(tmp_path)
    path.write_bytes(b"junk")
    with pytest.raises(InputError, match="not a weights file of this project"):
        load_student(path)


WRONG = {
    "a list": ([], "its metadata"),
    "null": (None, "its metadata"),
    "no network": ({"network": None}, "network is None"),
    "an unknown key": ({"depth": 3}, "depth is 3"),
    "an unknown option": ({"network": {"depth": 3}}, "depth is 3"),
    "an unknown mode": ({"network": {"forward_mode": "head"}}, "network.forward_mode"),
    "a mode of a list": ({"network": {"forward_mode": []}}, "network.forward_mode"),
    "another width": ({"network": {"width": 0.3}}, "width is 0.3"),
    "a width as text": ({"network": {"width": "0.25"}}, "width is '0.25'"),
    "a huge feature": ({"network": {"width": 0.25, "feature_dim": 65536}}, "65536"),
    "a negative feature": ({"network": {"width": 0.25, "feature_dim": -1}}, "feature_dim is -1"),
    "no classes": ({"num_classes": -1}, "num_classes is -1"),
    "classes as text": ({"num_classes": "3"}, "num_classes is '3'"),
    "classes that no memory holds": ({"num_classes": 10**9}, "1000000000"),
    "another number of classes": ({"classes": ["1"]}, "classes has 1"),
    "classes as numbers": ({"classes": [1, 2, 3]}, "classes.0 is 1"),
    "a tiny face": ({"face_size": [5, 32]}, "face_size.0 is 5"),
    "a face of one side": ({"face_size": [32]}, "face_size"),
    "heads without names": ({"heads": {"face": 7}}, "heads.face is 7"),
    "a kind of its own": ({"kind": "cousin"}, "kind is 'cousin'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_metadata_that_are_wrong_are_named(case: str, tmp_path: Path, once: Once) -> None:
    def make(folder: Path) -> None:
        save(folder / "student.safetensors", Student(3, width=0.25, feature_dim=16), DESCRIPTION)

    path, (fields, found) = tmp_path / "student.safetensors", WRONG[case]
    with safe_open(once("small student", make) / path.name, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kept = json.loads(file.metadata()["deskpro"])
    changed = kept | fields if isinstance(fields, dict) else fields
    save_file(tensors, path, {"deskpro": json.dumps(changed)})
    with pytest.raises(InputError, match=re.escape(found)) as raised:
        load_student(path)
    assert "\n" not in str(raised.value)


def test_the_published_initial_weights() -> None:
    """Standard deviations: torch's 1/√(3·fan-in) in the heads, √(2/fan-in) in the attention."""
    torch.manual_seed(0)
    network = LMBN(3, attention=True, init="published")
    expected = {
        "part_branch.reduction_1.reduction": (1 / 3 / 512) ** 0.5,
        "global_branch.reduction_2.reduction": (1 / 3 / 512) ** 0.5,
        "channel_branch.shared.0": (1 / 3 / 256) ** 0.5,
        "global_branch.batch_drop_block.drop_batch_bottleneck.conv1.conv": (1 / 3 / 512) ** 0.5,
        "spatial_attn.conv1": (2 / 384) ** 0.5,
        "part_branch.backbone2.2.conv": (2 / 512) ** 0.5,
    }
    for name, std in expected.items():
        assert network.get_submodule(name).weight.std().item() == pytest.approx(std, rel=0.02), name
    torch.manual_seed(0)
    own = LMBN(3, attention=True)
    ratio = (
        own.part_branch.reduction_1.reduction.weight.std()
        / expected["part_branch.reduction_1.reduction"]
    )
    assert ratio.item() == pytest.approx(6**0.5, rel=0.02)


@pytest.mark.cuda
def test_a_student_gives_the_same_on_cuda() -> None:
    torch.manual_seed(0)
    student = Student(4, width=0.25, feature_dim=16).eval()
    inputs = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 64, 32)
    expected = student(*inputs).features
    found = student.cuda()(*(x.cuda() for x in inputs)).features.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


TINY_BACKBONE = """
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deskpro.stages.models.backbones import Backbone


def tiny(width: float = 1.0, block: str = "osnet") -> Backbone:
    return Backbone(
        trunk=nn.Conv2d(3, 4, 3, stride=4, padding=1),
        channels=4,
        stride=4,
        branch=lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
        out_channels=6,
        bottleneck=lambda: nn.Conv2d(6, 6, 1),
    )
"""


def test_a_backbone_is_added_in_two_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function of its row, and its name: a student of it trains, is saved and loaded."""
    (tmp_path / "tiny_backbone.py").write_text(TINY_BACKBONE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKBONES, "tiny", importlib.import_module("tiny_backbone").tiny)
    monkeypatch.setattr(training_options, "BACKBONE_NAMES", ("osnet", "tiny"))
    torch.manual_seed(0)
    options = {"backbone": "tiny", "width": 1.0, "block": "osnet", "feature_dim": 8}
    student = Student(3, **options)
    faces, bodies, label = torch.rand(6, 3, 32, 32), torch.rand(6, 3, 64, 32), torch.arange(6) % 3
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    losses = []
    for _ in range(2):
        output = student(faces, bodies)
        assert output.attention is not None
        assert output.attention.shape == (6, 1, 16, 8)
        loss = torch.nn.functional.cross_entropy(output.logits.mean(1), label)
        loss = loss + output.attention.square().mean() + output.before_neck.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert map_size(student.streams["body"].backbone_name, (64, 32)) == (16, 8)

    info = ModelInfo("student", options, 3, None, (32, 32), (64, 32))
    save(tmp_path / "student.safetensors", student, info)
    loaded, info = load_student(tmp_path / "student.safetensors")
    assert (info.network["backbone"], info.stride) == ("tiny", 4)
    assert info.heads is not None
    assert sum(map(len, info.heads.values())) == output.logits.shape[1]
    student.eval()
    assert torch.equal(loaded(faces, bodies).features, student(faces, bodies).features)

    monkeypatch.setattr(training_options, "BACKBONE_NAMES", ("osnet",))
    with pytest.raises(InputError, match="backbone is 'tiny': must be one of osnet, timm:NAME"):
        load_student(tmp_path / "student.safetensors")


@pytest.mark.parametrize(
    "name", ["osnet", "timm:test_resnet", "timm:test_convnext", "timm:test_vit", "timm:test_vit2"]
)
def test_every_backbone_is_as_its_row_describes(name: str) -> None:
    assert name.partition(":")[0] in BACKBONES
    parts = make_backbone(name)
    side = 4 * parts.stride
    found = parts.trunk(torch.zeros(2, 3, side, 2 * side))
    assert map_of(found).shape == (2, parts.channels, 4, 8)
    assert map_size(name, (side, 2 * side)) == (4, 8)
    first, second = parts.branch(), parts.branch()
    assert {id(p) for p in first.parameters()}.isdisjoint(map(id, second.parameters()))
    deep = first(found)
    assert deep.shape[1] == parts.out_channels
    assert parts.bottleneck()(deep).shape == deep.shape


def test_the_size_of_the_map_leaves_the_random_state_unchanged() -> None:
    before = torch.random.get_rng_state()
    map_size.cache_clear()
    assert map_size("osnet", (64, 32)) == (8, 4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_are_written_through_python_files(tmp_path: Path) -> None:
    """So that the tests of crashes see every write."""
    opened: list[str] = []
    recording = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if recording and event == "open" and "w" in str(arguments[1]):
            opened.append(Path(str(arguments[0])).suffix)

    sys.addaudithook(hook)
    save(tmp_path / "student.safetensors", Student(3, width=0.25, feature_dim=16), DESCRIPTION)
    recording.clear()
    assert {".safetensors", ".json"} <= set(opened)


def test_the_face_stream_does_not_see_samples_without_a_face() -> None:
    torch.manual_seed(0)
    student = Student(3, width=0.25, feature_dim=16).train()
    faces, bodies = torch.randn(5, 3, 32, 32), torch.randn(5, 3, 64, 32)
    has = torch.tensor([True, False, True, True, False])
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = student(faces, bodies, has)
    mixed = {name: value.clone() for name, value in student.state_dict().items()}
    student.load_state_dict(before)
    few = student(faces[has], bodies[has])
    faces_alone = student.state_dict()
    for name, part in (
        ("logits", slice(0, 7)),
        ("features", slice(0, 7)),
        ("before_neck", slice(0, 3)),
    ):
        values = getattr(found, name)[:, part]
        assert torch.equal(values[has], getattr(few, name)[:, part])
        assert not values[~has].any()
    for name, value in mixed.items():
        assert name.startswith("nocloth_net") or torch.equal(value, faces_alone[name])
    student.load_state_dict(before)
    for count in (0, 1):  # no batch statistics of so few
        few_faces = torch.arange(5) < count
        output = student(faces, bodies, few_faces)
        assert torch.isfinite(output.logits).all()
        assert not output.logits[count:, :7].any()
        output.logits.sum().backward()
    assert student.training
    assert all(module.training for module in student.modules())


@pytest.mark.parametrize("mode", ["face", "body", "all"])
def test_multiply_adds_are_those_that_torch_counts(mode: str) -> None:
    student = Student(5, forward_mode=mode, width=0.25, feature_dim=16).train()
    faces, bodies = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 64, 32)
    images = faces if mode != "body" else None, bodies if mode != "face" else None
    found = multiply_adds(student, *images)
    assert student.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        student.eval()(*images)
    assert found == counter.get_total_flops() // 2
    assert not any(layer._forward_hooks for layer in student.modules())
