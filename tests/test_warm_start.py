"""Starting from OSNet's ImageNet weights, or from an earlier network."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from deskpro.stages.base.errors import InputError
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.osnet import CHANNELS, Conv1x1, ConvLayer, OSBlock, transition
from deskpro.stages.models.student import Student
from deskpro.stages.models.warm_start import warm_start
from deskpro.stages.models.weights import ModelInfo, save
from tests.conftest import Project

PEOPLE = [*"abcde"]


def osnet(width: float) -> nn.Module:
    """OSNet under the names of torchreid's model zoo, with its ImageNet classifier."""
    c1, c2, c3, c4 = CHANNELS[width]
    return nn.Sequential(
        OrderedDict(
            conv1=ConvLayer(3, c1, 7, 2),
            conv2=nn.Sequential(OSBlock(c1, c2), OSBlock(c2, c2), transition(c2)),
            conv3=nn.Sequential(OSBlock(c2, c3), OSBlock(c3, c3), transition(c3)),
            conv4=nn.Sequential(OSBlock(c3, c4), OSBlock(c4, c4)),
            conv5=Conv1x1(c4, c4),
            fc=nn.Sequential(nn.Linear(c4, 512), nn.BatchNorm1d(512), nn.ReLU()),
            classifier=nn.Linear(512, 1000),
        )
    )


def test_missing_weights_are_refused_before_data_are_read(project: Project) -> None:
    option = "teacher.pre_train=models/osnet_x1_0_imagenet.pth"
    result = project("train-teacher", "--set", option, "--set", "data.root=nowhere")
    assert result.code == 2
    said = result.err.strip().splitlines()[-1]
    assert "teacher.pre_train: models/osnet_x1_0_imagenet.pth is missing" in said
    assert "--set teacher.pre_train=none" in said
    assert project("train-teacher", "--set", "teacher.pre_train=none").code == 0


@pytest.fixture
def zoo(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    state = osnet(0.25).state_dict()
    path = tmp_path / "osnet_x0_25_imagenet.pth"
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    return path, state


def test_osnet_fills_the_trunk_and_every_branch(
    zoo: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, state = zoo
    network = LMBN(5, width=0.25, feature_dim=16, attention=True)
    start = warm_start(network, path, PEOPLE)
    own = network.state_dict()
    for name, source in {
        "backbone.0.conv.weight": "conv1.conv.weight",
        "backbone.2.1.conv2d.3.bn.running_var": "conv2.1.conv2d.3.bn.running_var",
        "backbone.2.2.0.conv.weight": "conv2.2.0.conv.weight",
        "backbone.3.downsample.conv.weight": "conv3.0.downsample.conv.weight",
    }.items():
        assert torch.equal(own[name], state[source])
    for branch in ("global_branch", "part_branch", "channel_branch"):
        for name, source in {
            "backbone2.0.1.gate.fc1.bias": "conv3.1.gate.fc1.bias",
            "backbone2.0.2.0.bn.weight": "conv3.2.0.bn.weight",
            "backbone2.1.1.conv2b.1.conv2.weight": "conv4.1.conv2b.1.conv2.weight",
            "backbone2.2.conv.weight": "conv5.conv.weight",
        }.items():
            assert torch.equal(own[f"{branch}.{name}"], state[source])
    backbone = {name for name in own if "backbone" in name}
    assert set(start.loaded) == backbone
    assert set(start.fresh) == own.keys() - backbone
    assert {name.split(".")[0] for name in start.unused} == {"fc", "classifier"}


def test_osnet_fills_both_streams_of_a_student(
    zoo: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, state = zoo
    student = Student(5, width=0.25, feature_dim=16)
    start = warm_start(student, path, PEOPLE)
    assert {name.split(".")[0] for name in start.unused} == {"fc", "classifier"}
    for stream in ("lr_face_net", "nocloth_net"):
        weight = student.state_dict()[f"{stream}.part_branch.backbone2.2.conv.weight"]
        assert torch.equal(weight, state["conv5.conv.weight"])


def test_osnet_fills_a_network_with_one_head(zoo: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = zoo
    network = LMBN(5, width=0.25, feature_dim=16, heads="global")
    start = warm_start(network, path, PEOPLE)
    assert start.fresh == [name for name in network.state_dict() if "backbone" not in name]
    weight = network.state_dict()["single_branch.backbone2.0.2.0.conv.weight"]
    assert torch.equal(weight, state["conv3.2.0.conv.weight"])


def test_another_width_is_refused(zoo: tuple[Path, dict[str, torch.Tensor]]) -> None:
    with pytest.raises(InputError, match=r"backbone.0.conv.weight is \[16, 3, 7, 7\]"):
        warm_start(LMBN(5, width=0.5, feature_dim=16), zoo[0], PEOPLE)


def test_a_file_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.conv.weight": torch.zeros(1), "layer1.0.weight": torch.zeros(2)}, path)
    network = LMBN(5, width=0.25, feature_dim=16)
    with pytest.raises(InputError, match=r"backbone.0.conv.weight is \[1\]"):
        warm_start(network, path, PEOPLE)


def test_a_file_without_a_tensor_of_the_backbone_is_refused(
    zoo: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    """As OSNet-IBN and -AIN, whose other layers have the names and shapes of OSNet's."""
    path, state = zoo
    network = LMBN(5, width=0.25, feature_dim=16)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    instance = {"conv2.0.IN.weight": torch.zeros(64)}
    gone = "conv4.1.gate.fc1.bias"
    torch.save({name: t for name, t in state.items() if name != gone} | instance, path)
    with pytest.raises(InputError, match="looks like OSNet-IBN or -AIN") as raised:
        warm_start(network, path, PEOPLE)
    assert "part_branch.backbone2.1.1.gate.fc1.bias is absent" in str(raised.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.slow
def test_classifiers_of_other_people_are_fresh_though_they_are_as_many(tmp_path: Path) -> None:
    path, first = tmp_path / "student.safetensors", Student(5, width=0.25, feature_dim=16)
    info = ModelInfo("student", {"width": 0.25, "feature_dim": 16}, 5, PEOPLE, (32, 32), (64, 32))
    save(path, first, info)
    for people, count in ((PEOPLE, 0), ([*"vwxyz"], 14), ([*"edcba"], 14)):
        start = warm_start(Student(5, width=0.25, feature_dim=16), path, people)
        assert len(start.fresh) == count
        assert all("classifier" in name for name in start.fresh)


@pytest.mark.slow
def test_an_earlier_student_starts_one_for_other_people(project: Project, tmp_path: Path) -> None:
    project.ok("train-student")
    first = tmp_path / "first.safetensors"
    (project.run / "student.safetensors").rename(first)
    result = project.ok("train-student", "--set", f"student.pre_train={first}",
                        "--set", "train_student.max_steps=1")  # fmt: skip
    assert "started from" in result.err
    assert "fresh         0 tensors" in result.err or "0 tensors: none" in result.err
    student = Student(9, width=0.25, feature_dim=16)
    start = warm_start(student, first, [*PEOPLE, *"fghi"])
    assert {name.rsplit(".", 2)[1] for name in start.fresh} == {"classifier"}
    assert len(start.unused) == len(start.fresh) == 14
