"""The published system: its checkpoints, its numbers, and files that mean harm."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from deskpro.cache.reader import MappedReader
from deskpro.stages.base.errors import InputError
from deskpro.stages.data.views import parsing_target
from deskpro.stages.losses import attention, cross_entropy, distillation, triplet
from deskpro.stages.losses.attention import attention_target
from deskpro.stages.models import published
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import load_student, load_teacher, read_metadata
from deskpro.stages.targets.kinds import TARGETS, tensors
from tests.conftest import Project, Result, run_process, slow

PIDS = ["10", "100", "11", "2", "3", "9"]
"""The identities of the reference set, in class order: as strings."""


# -- checkpoints, made small ------------------------------------------------------------------


def small_state(classes: int = 4) -> dict[str, torch.Tensor]:
    """What a published student file holds, narrow: all three networks, branches under two names."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"width": 0.25, "block": "published", "feature_dim": 16}
    student = Student(classes, **shape)
    state = {f"face_net.{k}": v for k, v in LMBN(classes, **shape).state_dict().items()}
    state |= student.state_dict()
    for i, name in enumerate(("global_branch", "part_branch", "channel_branch")):
        for key in [key for key in state if f".{name}." in key]:
            state[key.replace(name, f"branches.{i}")] = state[key]
    return state


def lightning(state: dict[str, torch.Tensor], path: Path) -> Path:
    """A file as Lightning writes it, with hyper-parameters of a class that can't be imported here.

    Another process writes it, in which yacs.config.CfgNode exists.
    """
    torch.save({f"model.{key}": tensor for key, tensor in state.items()}, path)
    subprocess.run([sys.executable, "-c", LIGHTNING, path], check=True)
    return path


LIGHTNING = """
import sys, types
from pathlib import Path
import torch

class CfgNode(dict):
    def __init__(self, *args):
        super().__init__(*args)
        self.__dict__["_immutable"] = True

yacs = types.ModuleType("yacs")
yacs.config = types.ModuleType("yacs.config")
yacs.config.CfgNode = CfgNode
CfgNode.__module__ = "yacs.config"
sys.modules |= {"yacs": yacs, "yacs.config": yacs.config}
torch.save({
    "epoch": 139,
    "state_dict": torch.load(sys.argv[1]),
    "hyper_parameters": {"cfg": CfgNode({"kd_loss": CfgNode({"T": 5.0})})},
    "callbacks": {"score": torch.tensor(0.5), "path": Path("a/b.ckpt")},
}, sys.argv[1])
"""


@pytest.mark.parametrize("prefix", ["module.model.", *slow("", "module.", "model.")])
def test_prefixes_are_dropped(prefix: str, tmp_path: Path) -> None:
    state = small_state()
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": {prefix + key: tensor for key, tensor in state.items()}}, path)
    teacher, described = load_teacher(path)
    student, _ = load_student(path)
    assert described.num_classes == 4
    assert described.classes is None
    assert described.network == {"width": 0.25, "block": "published", "feature_dim": 16}
    for name, tensor in teacher.face_net.state_dict().items():
        assert torch.equal(tensor, state[f"face_net.{name}"])
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("keep", ["branches", "_branch.", "both"])
def test_either_name_of_a_branch_will_do(keep: str, tmp_path: Path) -> None:
    state = {
        key.removeprefix("face_net."): tensor
        for key, tensor in small_state().items()
        if key.startswith("face_net.") and (keep == "both" or keep in key or "branch" not in key)
    }  # a teacher's file without its network's name
    path = tmp_path / "teacher.pth"
    torch.save(state, path)
    teacher, _ = load_teacher(path)
    assert torch.equal(
        teacher.face_net.state_dict()["global_branch.reduction_1.bn.weight"],
        torch.ones(16),
    )


def test_two_names_of_one_tensor_must_agree(tmp_path: Path) -> None:
    state = small_state()
    name = "face_net.branches.1.reduction_2.bn.running_var"
    state[name] = state[name] + 1
    path = tmp_path / "teacher.pth"
    torch.save(state, path)
    with pytest.raises(InputError, match="two names of one tensor"):
        load_teacher(path)


@pytest.mark.slow
def test_hyper_parameters_of_a_library_that_is_not_installed_are_left_inert(tmp_path: Path) -> None:
    path = lightning(small_state(), tmp_path / "student.ckpt")
    student, described = load_student(path)
    assert described.kind == "student"
    assert list(student.heads) == ["face", "body"]


def test_keys_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = {k: v for k, v in small_state().items() if "branches" not in k}
    del state["face_net.backbone.3.gate.fc1.bias"]
    state["face_net.extra.weight"] = torch.zeros(1)
    state["face_net.part_branch.reduction_1.bn.weight"] = torch.zeros(3)
    path = tmp_path / "teacher.pth"
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        load_teacher(path)
    message = str(caught.value)
    assert "1 missing: backbone.3.gate.fc1.bias" in message
    assert "1 left over: extra.weight" in message
    assert "part_branch.reduction_1.bn.weight is [3], must be [16]" in message


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk", pickle.dumps([1, 2])])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"file\.pth"):
        load_teacher(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pth: no such weights file"):
        load_teacher(tmp_path / "absent.pth")


# -- files that mean harm -----------------------------------------------------------------------


class Call:
    """Pickles as a call of `function`: what a hostile file does."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(mark: Path) -> dict[str, object]:
    return {
        "os.system": Call(os.system, f"touch {mark}"),
        "builtins.eval": Call(eval, f"open({str(mark)!r}, 'w')"),
        "builtins.getattr": Call(getattr, Path, "touch"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(mark)]),
        "shutil.rmtree": Call(shutil.rmtree, str(mark.parent)),
        "torch.load": Call(torch.load, str(mark)),
        "builtins.open": Call(open, str(mark), "w"),
    }


@pytest.mark.parametrize("name", payloads(Path("x")))
@pytest.mark.parametrize("new_format", [True, *slow(False)])
def test_a_hostile_payload_is_refused_and_nothing_runs(
    name: str, new_format: bool, tmp_path: Path, command: Callable[..., Result]
) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / "hostile.pth"
    content = {"state_dict": small_state(), "extra": payloads(mark)[name]}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    result = command("import-checkpoint", str(path), "--out", str(tmp_path / "out"))
    assert result.code == 2
    assert "hostile.pth: refused: loading it would call" in result.err
    assert "Traceback" not in result.err
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    assert path.exists()


def test_the_payload_would_run_if_it_were_let(tmp_path: Path) -> None:
    """The side effect that the test above watches for is real."""
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Call(os.system, f"touch {mark}")))
    assert mark.exists()


def test_a_file_cannot_reach_torchs_own_functions(tmp_path: Path) -> None:
    """BUILD sets attributes of what a name stands for; that is never torch's function."""
    before = dict(torch._utils._rebuild_parameter.__dict__)
    attack = b"ctorch._utils\n_rebuild_parameter\n(N(dS'dump_patches'\nI01\nstb."
    stream = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + 2 * pickle.dumps(1001, 2) + attack
    path = tmp_path / "legacy.pth"
    path.write_bytes(stream + pickle.dumps([], 2))
    with pytest.raises(InputError):
        published.read_state(path)
    assert torch._utils._rebuild_parameter.__dict__ == before


@pytest.mark.parametrize("new_format", [True, False])
def test_a_persistent_id_that_is_no_storage_is_refused(new_format: bool, tmp_path: Path) -> None:
    attack = b"((S'module'\nS'x'\nS'y'\nS'z'\ntQ."
    path = tmp_path / "file.pth"
    if new_format:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", attack)
    else:
        head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + 2 * pickle.dumps(1001, 2)
        path.write_bytes(head + attack)
    with pytest.raises(InputError, match="refused: loading it would call the persistent id"):
        published.read_state(path)


def test_a_torchscript_program_is_refused_even_if_its_archive_is_odd(tmp_path: Path) -> None:
    path = tmp_path / "program.pth"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(InputError, match=r"program\.pth"):
        published.read_state(path)
    path.write_bytes(path.read_bytes()[:-3] + b"\xff\xff\xff")
    with pytest.raises(InputError, match=r"program\.pth"):
        published.read_state(path)


def test_a_storage_larger_than_its_file_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    pid = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nL9999999999999L\nNtQ."
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + 2 * pickle.dumps(1001, 2)
    path.write_bytes(head + pid)
    with pytest.raises(InputError, match="larger than the file"):
        published.read_state(path)


def rewritten(path: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]]) -> Path:
    """An archive of torch's with other entries: `change` gives those for each of its own."""
    torch.save({"a": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of equal names
        for name, content in entries:
            for new in change(name, content):
                archive.writestr(*new)
    return path


def test_a_storage_shorter_than_its_tensors_is_refused(tmp_path: Path) -> None:
    """Some versions of torch would read beyond the end of the record."""
    path = rewritten(
        tmp_path / "short.pth", lambda name, data: [(name, data[:8] if "data/0" in name else data)]
    )
    with pytest.raises(InputError, match="larger than the file"):
        published.read_state(path)


@pytest.mark.parametrize("alike", [str, str.upper])
def test_entries_whose_names_are_equal_to_torch_are_refused(
    alike: Callable[[str], str], tmp_path: Path
) -> None:
    def twice(name: str, content: bytes) -> list[tuple[str, bytes]]:
        if "data/0" not in name:
            return [(name, content)]
        folder, key = name.rsplit("data/", 1)
        return [(folder + alike("data/") + key, content[:4]), (name, content)]

    with pytest.raises(InputError, match="equal names"):
        published.read_state(rewritten(tmp_path / "twice.pth", twice))


def test_a_program_under_another_case_is_refused(tmp_path: Path) -> None:
    path = rewritten(
        tmp_path / "program.pth",
        lambda name, data: [(name, data), (name.replace("data.pkl", "CONSTANTS.PKL"), b"")][
            : 1 + name.endswith("data.pkl")
        ],
    )
    with pytest.raises(InputError, match="TorchScript"):
        published.read_state(path)


def test_a_tar_archive_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "pickle")
    with pytest.raises(InputError, match="not a checkpoint"):
        published.read_state(path)


def legacy(*parts: bytes) -> bytes:
    """torch's format of before 1.6: magic number, version and system, then these pickles."""
    return pickle.dumps(0x1950A86A20F9469CFC6C, 2) + 2 * pickle.dumps(1001, 2) + b"".join(parts)


_PID = b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\nNtQ"


@pytest.mark.parametrize(
    "size, keys, refusal",
    [
        (b"(I4\nt", [], "storages without values"),
        (b"(I5\nt", ["0"], "out of bounds"),
        (b"(I100000000\nt", ["0"], "out of bounds"),
    ],
)
def test_a_tensor_never_shows_memory_that_is_not_the_files(
    size: bytes, keys: list[str], refusal: str, tmp_path: Path
) -> None:
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + _PID + b"I0\n" + size + b"(I1\ntI00\nNtR"
    path = tmp_path / "file.pth"
    values = (4).to_bytes(8, "little") + torch.arange(4.0).numpy().tobytes()
    path.write_bytes(legacy(b"(dS'a'\n" + tensor + b"s.", pickle.dumps(keys, 2), values))
    with pytest.raises(InputError, match=refusal):
        published.read_state(path)
    good = tensor.replace(size, b"(I4\nt")
    path.write_bytes(legacy(b"(dS'a'\n" + good + b"s.", pickle.dumps(["0"], 2), values))
    assert published.read_state(path)["a"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("new_format", [True, False])
def test_what_training_programs_leave_in_a_checkpoint_does_no_harm(
    new_format: bool, tmp_path: Path
) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    content = {
        "state_dict": {"a": weight.T, "b": torch.nn.Parameter(weight[1:]), "c": weight.half()},
        "score": np.float64(0.5),
        "array": np.arange(3),
        "raw": b"bytes",
        "when": datetime.datetime(2022, 8, 25, tzinfo=datetime.UTC),
        "counts": collections.defaultdict(int, a=1),
        "arguments": argparse.Namespace(T=5),
        "dtype": torch.float32,
        "size": torch.Size([2, 3]),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}},
    }
    path = tmp_path / "full.pth"
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    state = published.read_state(path)
    for name, tensor in content["state_dict"].items():  # type: ignore[attr-defined]
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype


# -- import-checkpoint --------------------------------------------------------------------------


@pytest.mark.slow
def test_import_writes_both_networks_with_the_class_order(
    data: Path, tmp_path: Path, command: Callable[..., Result]
) -> None:
    path = lightning(small_state(4), tmp_path / "student.ckpt")
    out = tmp_path / "out"
    result = command("import-checkpoint", str(path), "--out", str(out), "--data", str(data))
    assert result.code == 0, result.err
    pids = sorted(
        {file.name.split("_")[0] for file in (data / "imgs/bounding_box_train").iterdir()}
    )
    for kind in ("teacher", "student"):
        beside = json.loads((out / f"{kind}.json").read_text())
        assert beside["classes"] == pids
        assert beside["num_classes"] == 4
        assert beside["network"]["block"] == "published"
        assert read_metadata(out / f"{kind}.safetensors").kind == kind


@pytest.mark.slow
def test_import_refuses_a_set_of_another_number_of_identities(
    data: Path, tmp_path: Path, command: Callable[..., Result]
) -> None:
    path = lightning(small_state(5), tmp_path / "student.ckpt")
    out = tmp_path / "out"
    result = command("import-checkpoint", str(path), "--out", str(out), "--data", str(data))
    assert result.code == 2
    assert "trained on 5 identities" in result.err
    assert "has 4 with complete samples" in result.err
    assert not out.exists()


@pytest.mark.slow
def test_a_published_teacher_goes_straight_into_the_cache(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "celeb_teacher.pth"
    torch.save({"state_dict": small_state(4)}, path)
    project.ok("teacher-cache", "--set", f"pre_train={path}")
    reader = MappedReader(project.run / "targets.zarr", TARGETS["logits"].group)
    assert reader.fingerprint["teacher"]["network"]["block"] == "published"
    torch.save({"state_dict": small_state(7)}, path)
    result = project("teacher-cache", "--set", f"pre_train={path}", "--run", str(tmp_path / "b"))
    assert result.code == 2
    assert "trained on 7 identities, the training set has 4" in result.err


# -- the published numbers, through the real commands -------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "celeb_student.pth"
    subprocess.run([sys.executable, reference / "fill_weights.py", path], check=True)
    return path


@pytest.fixture(scope="module")
def expected(reference: Path) -> Any:
    return np.load(reference / "expected_outputs.npz")


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference, in standard deviations of what is wanted."""
    return float(np.abs(found - wanted).max() / wanted.std())


@pytest.fixture(scope="module")
def published_run(
    reference: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A run whose cache was made by the published teacher, and the arguments that made it."""
    folder = tmp_path_factory.mktemp("run")
    config = folder / "celeb.yaml"
    config.write_text("data_train: celeb\ndevice: cpu\n")
    sets = (
        f"data.root={reference / 'prepared_sample'}", f"pre_train={checkpoint}", "cache.views=1",
        "cache.plain_view=true", "data.workers=0",
    )  # fmt: skip
    arguments = ["--config", str(config), "--run", str(folder / "run")]
    arguments += [part for text in sets for part in ("--set", text)]
    done = run_process("teacher-cache", *arguments)
    assert done.returncode == 0, done.stderr
    return folder / "run", arguments


@pytest.mark.slow
def test_teacher_cache_holds_the_published_logits_and_attention(
    published_run: tuple[Path, list[str]], expected: Any
) -> None:
    root = published_run[0] / "targets.zarr"
    names = "logits", "parsing"
    readers = {name: MappedReader(root, TARGETS[name].group) for name in names}
    reader = readers["logits"]
    samples = [Path(sample).name for sample in reader.column("sample_id")]
    assert samples == expected["train_names"].tolist()
    assert reader.fingerprint["classes"] == PIDS
    pids = [PIDS[label] for label in reader.column("label")]
    assert pids == [name.split("_")[0] for name in samples]
    cached = {
        name: TARGETS[name].decode(tensors(each.read(range(24), [0] * 24)))
        for name, each in readers.items()
    }
    assert np.abs(cached["logits"].numpy() - expected["teacher_logits"]).max() <= 1e-3
    attention = attention_target(cached["parsing"], 0.1).numpy()
    error = np.abs(attention - expected["attention_target"])
    assert error.max() <= 0.5 / 255 + 1e-6


@pytest.mark.slow
def test_train_student_computes_the_published_losses(
    published_run: tuple[Path, list[str]], checkpoint: Path, reference: Path
) -> None:
    """All 24 training images as one batch, one step from the published student."""
    run, arguments = published_run
    sets = (
        f"student.pre_train={checkpoint}", "student.block=published", "batchid=6", "batchimage=4",
        "train_student.max_steps=1", "train_student.channels_last=false",
    )  # fmt: skip
    done = run_process(
        "train-student", *arguments, *(part for text in sets for part in ("--set", text))
    )
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(run / "student_history.csv").iloc[0]
    wanted = json.loads((reference / "expected_losses.json").read_text())
    terms = {
        "ce_face": 0.3 * wanted["ce_face"],
        "ce_body": wanted["ce_body"],
        "triplet_face": wanted["tri_face"],
        "triplet_body": wanted["tri_body"],
        "kd": 0.7 * wanted["kd"],
        "attention": 7 * wanted["attn"],
        "total": wanted["total"],
    }
    for name, value in terms.items():
        # In the store, a byte a position, the target 0.1 is 26/255: all of the attention's error.
        tolerance = 5e-3 if name == "attention" else 1e-3
        assert found[name] == pytest.approx(value, rel=tolerance), name
    assert found["lr"] == pytest.approx(6e-4 * (24 / 20) ** 0.5 / 10, rel=1e-9)
    beside = json.loads((run / "student.json").read_text())
    assert beside["classes"] == PIDS


@pytest.mark.slow
def test_import_writes_identities_sorted_as_strings(
    reference: Path, checkpoint: Path, tmp_path: Path, command: Callable[..., Result]
) -> None:
    root = str(reference / "prepared_sample")
    result = command("import-checkpoint", str(checkpoint), "--out", str(tmp_path), "--data", root)
    assert result.code == 0, result.err
    for kind in ("teacher", "student"):
        assert json.loads((tmp_path / f"{kind}.json").read_text())["classes"] == PIDS
    again = command("import-checkpoint", str(checkpoint), "--out", str(tmp_path), "--data", root)
    assert again.code == 2
    assert "teacher.safetensors" in again.err
    assert "exists already; use --force or another --out" in again.err


@pytest.mark.parametrize("split", ["query", *slow("train", "gallery")])
def test_embed_gives_the_published_features(
    split: str, reference: Path, checkpoint: Path, expected: Any, tmp_path: Path,
    command: Callable[..., Result],
) -> None:  # fmt: skip
    out = tmp_path / "features.npz"
    root = str(reference / "prepared_sample")
    arguments = ("--checkpoint", str(checkpoint), "--data", root, "--split", split)
    sets = ("--set", "data_train=celeb", "--set", "device=cpu")
    result = command("embed", *arguments, "--out", str(out), *sets)
    assert result.code == 0, result.err
    found = np.load(out)
    name = {"train": "train", "query": "query", "gallery": "bounding_box_test"}[split]
    wanted = expected[f"{name}_features" + ("" if split == "train" else "_raw")].transpose(0, 2, 1)
    assert [Path(path).name for path in found["path"]] == expected[f"{name}_names"].tolist()
    has_face = np.ones(24, bool) if split == "train" else expected[f"{name}_has_face"]
    assert agreement(found["raw"][has_face, :7], wanted[has_face, :7]) <= 1e-4
    assert agreement(found["raw"][:, 7:], wanted[:, 7:]) <= 1e-4
    assert not found["raw"][~has_face, :7].any()
    lengths = np.linalg.norm(found["feature"].reshape(-1, 14, 512), axis=2)
    np.testing.assert_allclose(lengths[:, 7:], 1, rtol=1e-5)
    np.testing.assert_allclose(lengths[:, :7], has_face[:, None].repeat(7, 1), atol=1e-5)


@pytest.mark.slow
def test_the_published_losses(reference: Path, checkpoint: Path, expected: Any) -> None:
    """The training images as one batch: student in training mode, teacher in evaluation mode."""
    from deskpro.stages.base.training_options import Training
    from deskpro.stages.data.index import read_index
    from deskpro.stages.data.layouts import LAYOUTS
    from deskpro.stages.data.loader import ImageDataset, images_of
    from deskpro.stages.training.loop import default_peak, learning_rate

    wanted = json.loads((reference / "expected_losses.json").read_text())
    table, _ = read_index(reference / "prepared_sample", LAYOUTS["celeb"], ("train",))
    sizes = {"imgs": (384, 128), "mask": (384, 128), "lr_face": (224, 224), "hr_face": (224, 224)}
    images = ImageDataset(table, sizes)
    batch = torch.utils.data.default_collate([images[row, 0] for row in range(24)])
    rendered = {  # in the memory layout of the figures: hardest triplets magnify rounding
        k: images_of(batch, k, torch.device("cpu"), channels_last=False)
        for k in ("imgs", "lr_face", "hr_face")
    }
    teacher, _ = load_teacher(checkpoint)
    student, _ = load_student(checkpoint)
    with torch.no_grad():
        evaluated = student(rendered["lr_face"], rendered["imgs"])
        output = student.train()(rendered["lr_face"], rendered["imgs"])
        teacher_logits = teacher(rendered["hr_face"]).logits
    assert agreement(teacher_logits.numpy(), expected["teacher_logits"]) <= 1e-4
    assert agreement(evaluated.logits.numpy(), expected["train_student_logits"]) <= 1e-4
    assert evaluated.attention is not None
    assert agreement(evaluated.attention.numpy(), expected["student_attention"]) <= 1e-4

    label = torch.tensor([wanted["labels"][pid] for pid in table["pid"]])
    assert output.attention is not None
    heads, embeddings = student.heads, student.triplet
    # As published, without bytes: the loss sees 26/255 for 0.1.
    head = torch.nn.functional.interpolate(batch["mask"][:, :1] / 255, (48, 16), mode="bilinear")
    wanted_attention = torch.where(head == 0, 0.1, head)
    assert attention(output.attention, parsing_target(batch["mask"], (48, 16))) == pytest.approx(
        wanted["attn"], rel=5e-3
    )
    terms = {
        "ce_face": cross_entropy(output.logits[:, heads["face"]], label),
        "ce_body": cross_entropy(output.logits[:, heads["body"]], label),
        "tri_face": triplet(output.before_neck[:, embeddings["face"]], label),
        "tri_body": triplet(output.before_neck[:, embeddings["body"]], label),
        "kd": distillation(output.logits[:, heads["face"]], teacher_logits, temperature=5.0),
        "attn": torch.nn.functional.mse_loss(output.attention, wanted_attention),
    }
    weights = {"ce_face": 0.3, "kd": 0.7, "attn": 7.0}
    terms["total"] = sum(weights.get(name, 1.0) * term for name, term in terms.items())  # type: ignore[assignment]
    for name, term in terms.items():
        assert term.item() == pytest.approx(wanted[name], rel=1e-4), name
    published = Training(schedule="epoch")
    rates = [learning_rate(epoch, default_peak(30), published, 1) for epoch in range(140)]
    np.testing.assert_allclose(rates, wanted["lrs"], rtol=1e-9)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "ema"])
def test_tensors_one_or_two_levels_down_are_found(key: str, tmp_path: Path) -> None:
    path, state = tmp_path / "nested.pth", {"a": torch.arange(3)}
    for inner in (state, {"state_dict": state, "updates": 5}):
        torch.save({key: inner, "epoch": 3, "optimizer": {"state": {}}}, path)
        assert published.read_state(path)["a"].tolist() == [0, 1, 2]


def test_a_checkpoint_without_tensors_is_refused_with_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "nested.pth"
    torch.save({"weights": {"a": torch.arange(3)}, "epoch": 3}, path)
    with pytest.raises(InputError, match=r"has no tensors.*its keys: weights, epoch.*ema"):
        published.read_state(path)
