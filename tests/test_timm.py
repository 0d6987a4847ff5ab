"""Networks of timm as backbones of teacher and student, and teachers with a single head.

All weights are random; the small networks are those that timm has for tests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from deskpro.cache.reader import MappedReader
from deskpro.stages.base.errors import InputError
from deskpro.stages.data.views import PLAIN, render_view
from deskpro.stages.losses import distillation
from deskpro.stages.losses.agreement import agreement
from deskpro.stages.models import timm_networks
from deskpro.stages.models.backbones import map_size
from deskpro.stages.models.lmbn import LMBN, head_names
from deskpro.stages.models.student import Student, multiply_adds
from deskpro.stages.models.tokens import Tokens, gate
from deskpro.stages.models.warm_start import warm_start
from deskpro.stages.models.weights import (
    ModelInfo,
    load_student,
    load_teacher,
    read_metadata,
    save,
)
from tests.conftest import Project

TRANSFORMERS = ["test_vit", "test_vit2", "deit_tiny_distilled_patch16_224"]
"""One with a class token; without a final norm before the pooling; with two tokens beside."""


def sets(**options: object) -> list[str]:
    """`--set` for options of sections, written section__name."""
    pairs = [f"{name.replace('__', '.')}={value}" for name, value in options.items()]
    return [word for pair in pairs for word in ("--set", pair)]


def both(teacher: str, student: str) -> list[str]:
    """A recipe whose teacher and student stand on networks of timm."""
    backbones = sets(teacher__backbone=f"timm:{teacher}", student__backbone=f"timm:{student}")
    return backbones + sets(teacher__width=1.0, student__width=1.0)


# Cut in two


def seeded(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    torch.manual_seed(1)
    return make().eval()


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_both_halves_are_a_network_of_stages(name: str) -> None:
    whole = seeded(lambda: timm.create_model(name, features_only=True))
    torch.manual_seed(1)
    parts = timm_networks.cut(name)
    images = torch.rand(2, 3, 64, 96)
    expected = dict(zip(whole.feature_info.reduction(), whole(images), strict=True))
    found = parts.trunk.eval()(images)
    assert torch.equal(found, expected[parts.stride])
    assert torch.equal(parts.rest.eval()(found), [*expected.values()][-1])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_both_halves_are_a_transformer(name: str) -> None:
    whole = seeded(lambda: timm.create_model(name, num_classes=0, dynamic_img_size=True))
    torch.manual_seed(1)
    parts = timm_networks.cut(name)
    images = torch.rand(2, 3, 64, 96)
    tokens = whole.fc_norm(whole.forward_features(images))
    patches = tokens[:, whole.num_prefix_tokens :]
    found = parts.trunk.eval()(images)
    assert found.prefix.shape == (2, whole.num_prefix_tokens, parts.channels)
    deep = parts.rest.eval()(found)
    assert deep.shape == (2, parts.out_channels, 4, 6)
    torch.testing.assert_close(deep.flatten(2).transpose(1, 2), patches)


def test_attention_gates_the_patches_alone() -> None:
    cut = Tokens(torch.rand(2, 8, 3, 2), torch.rand(2, 1, 8))
    attention = torch.rand(2, 1, 3, 2)
    gated = gate(cut, attention)
    assert isinstance(gated, Tokens)
    assert torch.equal(gated.map, cut.map * attention)
    assert torch.equal(gated.prefix, cut.prefix)


@pytest.mark.parametrize("name", ["resnet50", "vit_small_patch16_224"])
def test_networks_of_common_size(name: str) -> None:
    network = LMBN(4, backbone=f"timm:{name}", feature_dim=16, attention=True)
    output = network(torch.rand(2, 3, 96, 48))
    assert output.logits.shape == (2, 7, 4)
    assert output.attention is not None
    rows, columns = map_size(f"timm:{name}", (96, 48))
    assert output.attention.shape == (2, 1, rows, columns)
    assert (rows, columns) == (96 // network.stride, 48 // network.stride)


def test_timms_initial_weights_stay_and_branches_begin_apart() -> None:
    network = LMBN(4, backbone="timm:test_vit", feature_dim=16)
    weights = [
        network.get_submodule(f"{branch}.backbone2.blocks.5.mlp.fc1").weight.detach()
        for branch in network.branches
    ]
    assert all(float(weight.std()) == pytest.approx(0.02, rel=0.1) for weight in weights)
    assert not torch.equal(weights[0], weights[1])
    assert network.get_submodule("part_branch.reduction_1.classifier").weight.std() < 0.002


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_batches_without_a_face(name: str) -> None:
    student = Student(3, backbone=f"timm:{name}", feature_dim=16)
    faces, bodies = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 64, 32)
    output = student(faces, bodies, torch.zeros(3, dtype=torch.bool))
    assert not output.logits[:, student.heads["face"]].any()
    (output.logits.sum() + output.before_neck.sum()).backward()
    # Each parameter has a gradient, which training on several processes waits for.
    assert not [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert multiply_adds(student, faces[:1], bodies[:1]) > 0


# Names and sizes that can't be used


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet5", "similar names: resnet50"),
        ("zzzz", "has no such network"),
        ("efficientnet_b0", "can't be cut in two"),
        ("swin_tiny_patch4_window7_224", "can't be cut in two"),
    ],
)
def test_networks_that_are_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        LMBN(3, backbone=f"timm:{name}")


def test_without_timm_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'deskpro\[backbones\]'"):
        timm_networks.cut("test_vit")


def test_images_that_are_no_multiple_of_a_patch_are_refused_before_training(
    project: Project,
) -> None:
    result = project("train-teacher", *both("test_vit", "osnet")[:2], *sets(teacher__width=1.0),
                     *sets(data__face_size="[40,32]"))  # fmt: skip
    assert result.code == 2
    assert "40 × 32 pixels; both sides must be multiples of its patches' 16" in result.err
    assert not (project.run / "teacher.safetensors").exists()


# Weights


@pytest.mark.parametrize("heads", ["lmbn", "global"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_networks_are_saved_with_their_heads(name: str, heads: str, tmp_path: Path) -> None:
    options = {"backbone": f"timm:{name}", "feature_dim": 16, "heads": heads}
    teacher, student = LMBN(3, **options).eval(), Student(3, **options).eval()
    save(tmp_path / "t.safetensors", teacher, ModelInfo("teacher", options, 3, None, None, None))
    save(tmp_path / "s.safetensors", student, ModelInfo("student", options, 3, None, None, None))
    faces, bodies = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 64, 32)
    loaded, info = load_teacher(tmp_path / "t.safetensors")
    assert info.heads == {"face": [*head_names(heads)]}
    assert torch.equal(loaded(faces).logits, teacher(faces).logits)
    again, info = load_student(tmp_path / "s.safetensors")
    assert info == read_metadata(tmp_path / "s.safetensors")
    assert info.heads == {key: [*head_names(heads)] for key in ("face", "body")}
    assert torch.equal(again(faces, bodies).features, student(faces, bodies).features)


def timm_file(path: Path, name: str) -> dict[str, torch.Tensor]:
    """A state dict as timm publishes it, with the classifier."""
    torch.manual_seed(5)
    state = timm.create_model(name).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return state


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_vit2"])
def test_a_local_file_fills_trunk_and_branches(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    state = timm_file(path, name)
    student = Student(3, backbone=f"timm:{name}", feature_dim=16)
    start = warm_start(student, path, [*"abc"])
    own = student.state_dict()
    assert set(start.loaded) == {n for n in own if "backbone" in n}
    assert all(used.startswith(("head.", "fc.", "norm_pre.")) for used in start.unused)
    assert start.unused
    body = student.streams["body"]
    images = torch.rand(1, 3, 64, 64)
    whole = timm.create_model(name, num_classes=0, **(
        {"dynamic_img_size": True} if "vit" in name else {}
    )).eval()  # fmt: skip
    whole.load_state_dict({k: v for k, v in state.items() if k in whole.state_dict()})
    deep = whole.forward_intermediates(images, 1, norm=False, intermediates_only=True)[0]
    if hasattr(whole, "blocks"):
        tokens = whole.fc_norm(whole.forward_features(images))[:, whole.num_prefix_tokens :]
        deep = tokens.transpose(1, 2).unflatten(2, deep.shape[2:])
    body.eval()
    for branch in body.branches:
        found = body.get_submodule(f"{branch}.backbone2")(body.backbone(images))
        torch.testing.assert_close(found, deep)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    timm_file(path, "test_vit2")
    before = LMBN(3, backbone="timm:test_vit", feature_dim=16)
    with pytest.raises(InputError, match="doesn't fit this network"):
        warm_start(before, path, [*"abc"])
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="not a safetensors file"):
        warm_start(before, path, [*"abc"])


def test_an_earlier_network_on_timm_is_a_start(tmp_path: Path) -> None:
    options = {"backbone": "timm:test_vit", "feature_dim": 16}
    teacher = LMBN(3, **options)
    path = tmp_path / "teacher.safetensors"
    save(path, teacher, ModelInfo("teacher", options, 3, [*"abc"], None, None))
    other = LMBN(3, **options)
    assert not warm_start(other, path, [*"abc"]).fresh
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in teacher.state_dict().items())


# A single head


def test_every_head_learns_from_the_one_of_a_teacher() -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(4, 7, 5), torch.randn(4, 1, 5)
    expected = sum(
        4 * functional.kl_div(
            (logits[:, head] / 2).log_softmax(1), (teacher[:, 0] / 2).softmax(1),
            reduction="batchmean",
        )
        for head in range(7)
    )  # fmt: skip
    torch.testing.assert_close(distillation(logits, teacher, temperature=2.0), expected)
    found = agreement(logits, teacher, 2.0, head_names())
    repeated = agreement(logits, teacher.repeat(1, 7, 1), 2.0, head_names())
    assert found.keys() == repeated.keys()
    assert all(torch.equal(found[name], repeated[name]) for name in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "teacher", "student"),
    [
        ("lmbn", "test_resnet", "test_vit"),
        pytest.param("global", "test_vit", "test_resnet", marks=pytest.mark.slow),
    ],
)
def test_all_stages(heads: str, teacher: str, student: str, project: Project) -> None:
    """A student of a teacher of the other kind; both its targets and its attention are used."""
    settings = [*both(teacher, student), *sets(teacher__heads=heads, mse__mse_weight=1)]
    project.ok("eval", *settings)
    info = read_metadata(project.run / "teacher.safetensors")
    assert info.heads == {"face": [*head_names(heads)]}
    history = pd.read_csv(project.run / "student_history.csv")
    assert {f"agree_{head}" for head in head_names()} <= {*history}
    assert (history["kd"] > 0).all()
    student_info = read_metadata(project.run / "student.safetensors")
    assert (student_info.network["backbone"], student_info.stride) == (
        f"timm:{student}", 16 if "vit" in student else 8
    )  # fmt: skip
    assert project("teacher-cache", *settings).code == 0  # fresh


@pytest.mark.finished("teacher-cache")
def test_heads_that_do_not_fit_are_refused(project: Project) -> None:
    result = project("train-student", *sets(student__heads="global"))
    assert result.code == 2
    assert "its target logits has 7 heads, the student's face stream 1" in result.err
    changed = sets(teacher__heads="global", embedding__weight=1)
    for stage in ("train-teacher", "teacher-cache"):
        project.ok(stage, *changed, "--force")
    result = project("train-student", *changed)
    assert result.code == 2
    assert "its target embedding has 1 head, the student's face stream 7" in result.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "face", "body"),
    [("resnet50", [32, 32], [64, 32]), ("vit_tiny_patch16_224", [64, 64], [96, 48])],
)
def test_all_stages_with_networks_of_common_size(
    name: str, face: list[int], body: list[int], project: Project
) -> None:
    sizes = sets(data__face_size=face, data__body_size=body)
    project.ok("eval", *both(name, name), *sizes)


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
@pytest.mark.parametrize("name", ["resnet50", "vit_small_patch16_224"])
def test_a_network_of_timm_is_one_more_teacher(name: str, project: Project, tmp_path: Path) -> None:
    """Its embeddings are timm's own pooled features of images normalised as timm says."""
    network = timm.create_model(name, pretrained=False, num_classes=5)
    wrapped = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(wrapped, tmp_path / "pretrained.pth")
    options = [
        f"teachers.big.weights={tmp_path}/pretrained.pth",
        f"teachers.big.backbone=timm:{name}",
    ]
    sets = [part for option in options for part in ("--set", option)]
    project.ok("teacher-cache", *sets)
    reader = MappedReader(project.run / "targets.zarr", "teachers/big/embedding")
    row = int(reader.valid.nonzero()[0][0])
    found = torch.from_numpy(reader.read([row], [0])["embedding"].astype(np.float32))[0, 0]
    path = project.data / "hr_face" / reader.column("sample_id")[row]
    with Image.open(path) as image:
        pixels = render_view(image.convert("RGB"), PLAIN, (32, 32))
    config = network.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    whole = timm.create_model(name, pretrained=False, num_classes=0,
                              **({"dynamic_img_size": True} if "vit" in name else {}))  # fmt: skip
    whole.load_state_dict(
        {k: v for k, v in network.state_dict().items() if k in whole.state_dict()}
    )
    with torch.no_grad():
        wanted = whole.eval()(((torch.from_numpy(pixels) / 255 - mean) / std)[None])[0]
    torch.testing.assert_close(found, wanted, rtol=5e-3, atol=5e-3)
    project.ok("train-student", "--force", *sets)
    other = [*sets[:2], "--set", "teachers.big.backbone=timm:resnet18"]
    wrong = project("teacher-cache", "--force", *other)
    assert wrong.code == 2
    assert "not the weights of timm:resnet18" in wrong.err
