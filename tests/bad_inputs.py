"""The catalogue of bad inputs: what is wrong, the command, and what its message must say.

To add one: a row. `{config}`, `{run}`, `{data}` and `{tmp}` stand for a recipe, its finished run,
its data and the folder that holds them; a command without `--config` gets both. The command must
exit with 2, print one message that holds the expected words, and change no file.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

Change = Callable[[Path], None]
"""Puts something bad in the place of a path; whatever is there has been moved away."""


class Row(NamedTuple):
    """One bad input."""

    what: str
    command: str
    expected: str
    changes: Mapping[str, Change] = {}
    """Path in the project's folder → what is put there."""
    environment: Mapping[str, str] = {}
    code: int = 2


def text(content: str) -> Change:
    def put(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    return put


def raw(content: bytes) -> Change:
    def put(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return put


def missing(path: Path) -> None:
    """Nothing is there."""


def folder(path: Path) -> None:
    path.mkdir(parents=True)


def fifo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def link(target: str) -> Change:
    return lambda path: path.symlink_to(target)


def copied(name: str) -> Change:
    """A copy of the folder of that name beside it."""

    def put(path: Path) -> None:
        shutil.copytree(path.with_name(name), path)

    return put


def edited(change: Callable[[bytes], bytes]) -> Change:
    """The file that was there, with other bytes."""
    return lambda path: path.write_bytes(change(before(path).read_bytes()))


def before(path: Path) -> Path:
    """Where the test keeps what was at a path."""
    return path.with_name(path.name + ".before")


def edited_json(**values: Any) -> Change:
    """The JSON file that was there, with some keys of its top level replaced."""
    return edited(lambda content: json.dumps(json.loads(content) | values).encode())


def image(size: tuple[int, int] = (32, 32), mode: str = "RGB", kind: str = "PNG") -> Change:
    def put(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(path, kind)

    return put


def recipe(content: str) -> dict[str, Change]:
    return {"bad.yaml": text(content)}


BAD = "train-student --config {tmp}/bad.yaml --run {run}"


def option(what: str, value: str, expected: str, stage: str = "train-student") -> Row:
    """A value given by --set; expected: the option's name, or what the message says."""
    return Row(what, f"{stage} --force --set {shlex.quote(value)}", expected)


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefghi")
)
RECIPES = [
    Row("no such recipe", "train-student --config {tmp}/none.yaml --run {run}", "no such config"),
    Row("recipe is a folder", BAD, "bad.yaml", {"bad.yaml": folder}),
    Row("recipe is a FIFO", BAD, "bad.yaml", {"bad.yaml": fifo}),
    Row("recipe is endless", BAD, "bad.yaml", {"bad.yaml": link("/dev/zero")}),
    Row("recipe is a broken link", BAD, "no such config", {"bad.yaml": link("nowhere")}),
    Row("recipe isn't text", BAD, "bad.yaml", {"bad.yaml": raw(b"\xff\xfe\x00a")}),
    Row("recipe is an image", BAD, "bad.yaml", {"bad.yaml": image()}),
    Row("list at the top", BAD, "mapping", recipe("- a\n- b\n")),
    Row("number at the top", BAD, "mapping", recipe("5")),
    Row("open bracket", BAD, "not valid YAML", recipe("data: [")),
    Row("open quote", BAD, "not valid YAML", recipe("data: 'a")),
    Row("tab as indent", BAD, "not valid YAML", recipe("data:\n\troot: a")),
    Row("key given twice", BAD, "given twice", recipe("batchid: 2\nbatchid: 3\n")),
    Row("impossible date", BAD, "not valid YAML", recipe("tag: 2020-99-99")),
    Row("tagged integer of letters", BAD, "not valid YAML", recipe("batchid: !!int abc")),
    Row("tagged float of letters", BAD, "not valid YAML", recipe("lr: !!float abc")),
    Row("tagged binary of letters", BAD, "not valid YAML", recipe("tag: !!binary é")),
    Row("unknown tag", BAD, "not valid YAML", recipe("tag: !!python/object:os.system a")),
    Row("unknown anchor", BAD, "not valid YAML", recipe("tag: *here")),
    Row("a list as key", BAD, "not valid YAML", recipe("? [a, b]\n: 1\n")),
    Row("a mapping as key", BAD, "not valid YAML", recipe("? {a: b}\n: 1\n")),
    Row("5,000 brackets", BAD, "not valid YAML", recipe("data: " + "[" * 5000)),
    Row("5,000 digits", BAD, "5000 digits", recipe("batchid: " + "9" * 5000)),
    Row("an alias of itself", BAD, "bad.yaml", recipe("data: &a\n  root: *a\n")),
    Row("a billion laughs", BAD, "bad.yaml", recipe(LAUGHS)),
    Row("5,000 brackets", BAD, "more than 50 brackets", recipe("data: " + "[" * 5000)),
    Row("unknown option", BAD, "unknown option", recipe("bathid: 2")),
    Row("unknown section", BAD, "unknown option", recipe("datas: {root: a}")),
    Row("number as section", BAD, "data", recipe("data: 5")),
    Row("list as section", BAD, "data", recipe("data: [1]")),
    Row("null as section", BAD, "data", recipe("data:")),
    Row("number as key", BAD, "5", recipe("5: 6")),
    Row("null as key", BAD, "bad.yaml", recipe("~: 6")),
    Row("merge of a number", BAD, "not valid YAML", recipe("<<: 5\n")),
    Row("two documents", BAD, "not valid YAML", recipe("a: 1\n---\nb: 2\n")),
    Row("empty run folder", "train-student --run {tmp}/empty", "config", {"empty": folder}),
]  # fmt: skip

OPTIONS = [
    option("no value", "batchid", "key=value"),
    option("no key", "=5", "key=value"),
    option("unknown", "nosuch=1", "unknown option"),
    option(
        "unknown in a section",
        "kd_loss.t=1",
        "did you mean kd_loss.T",
    ),
    option("below a value", "batchid.a=1", "single value"),
    option("dots alone", "...=1", "unknown option"),
    option("open bracket", "eval.ranks=[", "eval.ranks"),
    option("word for a number", "batchid=two", "batchid"),
    option("float for an integer", "batchid=2.5", "batchid"),
    option("bool for an integer", "batchid=true", "batchid"),
    option("null for an integer", "batchid=null", "batchid"),
    option("list for an integer", "batchid=[2]", "batchid"),
    option("mapping for an integer", "batchid={a: 2}", "batchid"),
    option("date for an integer", "batchid=2020-01-01", "batchid"),
    option("tagged integer of letters", "batchid=!!int abc", "batchid"),
    option("5,000 digits", "batchid=" + "9" * 5000, "batchid"),
    option("5,000 brackets", "batchid=" + "[" * 5000, "batchid"),
    option("P of one", "batchid=1", "batchid"),
    option("K of one", "batchimage=1", "batchimage"),
    option("2^70 as a seed", f"train_student.seed={2**70}", "train_student.seed"),
    option("2^70 as views' seed", f"views.seed={2**70}", "views.seed"),
    option("2^70 identities", f"batchid={2**70}", "batchid"),
    option("a million images each", "batchimage=1000000000", "batchimage"),
    option("10^12 views", "cache.views=1000000000000", "cache.views"),
    option("100,000 loaders", "data.workers=100000", "data.workers"),
    option("100,000 workers", "launch.workers=100000", "launch.workers"),
    option("10^12 threads", "launch.threads=1000000000000", "launch.threads"),
    option("negative workers", "data.workers=-1", "data.workers"),
    option("a body a million high", "data.body_size=[1000000,128]", "data.body_size"),
    option("a body of no width", "data.body_size=[128,0]", "data.body_size"),
    option("a body of one side", "data.body_size=[128]", "data.body_size"),
    option("a body of three sides", "data.body_size=[128,64,3]", "data.body_size"),
    option("a size of words", "data.face_size=[a,b]", "data.face_size"),
    option("a face of 5", "data.face_size=[5,5]", "data.face_size"),
    option("a root of a number", "data.root=5", "data.root"),
    option("unknown dataset", "data_train=nosuch", "data_train"),
    option("unknown test set", "data_test=nosuch", "data_test"),
    option("a rule without pid", "data.name=(.*)_x", "data.name: needs the group (?P<pid>"),
    option("unknown protocol", "eval.protocols=[nosuch]", "protocols: nosuch must be one of"),
    option("no protocol", "eval.protocols=[]", "eval.protocols"),
    option("rank 0", "eval.ranks=[0]", "eval.ranks"),
    option("no ranks", "eval.ranks=[]", "eval.ranks"),
    option("rank 10^12", "eval.ranks=[1000000000000]", "eval.ranks"),
    option("unknown backbone", "student.backbone=resnet", "student.backbone"),
    option("a backbone of timm that isn't a name", "student.backbone=timm:../x", "timm:NAME"),
    option("OSNet's width for timm", "teacher.backbone=timm:resnet50", "width 0.25 is an option"),
    option("unknown heads", "teacher.heads=two", "teacher.heads"),
    option("unknown width", "student.width=0.3", "student.width"),
    option("features of length 1", "student.feature_dim=1", "student.feature_dim"),
    option("features of length 10^12", "student.feature_dim=1000000000000", "student.feature_dim"),
    option("unknown stream", "forward_mode=legs", "forward_mode"),
    option("unknown device", "device=tpu", "device"),
    option("no such GPU", "device=cuda:99", "cuda:99"),
    option("a GPU of 11 digits", "device=cuda:99999999999", "device"),
    option("a negative GPU", "device=cuda:-1", "device"),
    option("T of 0", "kd_loss.T=0", "kd_loss.T"),
    option("T of nan", "kd_loss.T=.nan", "kd_loss.T"),
    option("T of inf", "kd_loss.T=.inf", "kd_loss.T"),
    option("alpha of 1.5", "kd_loss.alpha=1.5", "kd_loss.alpha"),
    option("a negative weight", "loss.triplet=-1", "loss.triplet"),
    option("an endless weight", "loss.triplet=.inf", "loss.triplet"),
    option("smoothing of 1", "loss.label_smoothing=1", "loss.label_smoothing"),
    option("a learning rate of 0", "train_student.lr=0", "train_student.lr"),
    option("a learning rate of nan", "train_student.lr=.nan", "train_student.lr"),
    option("no epochs", "train_student.epochs=0", "train_student.epochs"),
    option("warm-up as long as training", "train_student.warmup_epochs=2", "warmup_epochs"),
    option("unknown precision", "train_student.precision=float8", "precision"),
    option("areas that descend", "views.erase_area=[0.4,0.1]", "erase_area"),
    option("an aspect of 0", "views.erase_aspect=[0,1]", "erase_aspect"),
    option("enlarged three times", "views.enlarge=3", "views.enlarge"),
    option("blocks of 0", "cache.block=0", "cache.block"),
    option("unknown type of logits", "cache.logits_dtype=float64", "logits_dtype"),
    option("negative memory", "cache.memory=-1", "cache.memory"),
    option("a tag with a slash", "tag=a/b", "tag"),
    option("an address without a port", "launch.address=here", "launch.address"),
    option("unknown engine", "launch.engine=slurm", "launch.engine"),
    option("no weights there", "pre_train={tmp}/none.pth", "none.pth", "teacher-cache"),
    option("weights that are a folder", "pre_train={tmp}", "{tmp}", "teacher-cache"),
    option("prepare without a section", "prepare.parsing=5", "prepare"),
    option("face weight of 2", "eval.face_weight=2", "eval.face_weight", "eval"),
    option("no neighbours", "eval.rerank.k1=0", "eval.rerank.k1", "eval"),
    Row("unknown stage", "train-pupil", "No such command"),
    Row("unknown flag", "train-student --nosuch", "No such option"),
    Row("a flag without its value", "train-student --run {run} --config", "requires an argument"),
    Row("a word too many", "train-student more", "unexpected"),
    Row("a plan of half a sample", "cache plan --samples 4.5 --config {config}", "whole number"),
    Row("a plan of no sample", "cache plan --samples 0 --config {config}", "whole number"),
    Row("a plan of many", "cache plan --samples many --config {config}", "whole number"),
    Row("a plan of 10^12 samples", "cache plan --samples 1e12 --config {config}", "whole number"),
    Row("a plan without a recipe", "cache plan --samples 9", "--config"),
    Row(
        "a plan of a teacher that isn't there",
        "cache plan --samples 9 --config {config} --set teachers.clip.weights={tmp}/none",
        "teachers.clip.weights",
    ),
    Row("a plan of a run without one", "cache plan --samples 9 --run {data}", "no config.yaml"),
    Row(
        "a plan of an unknown number of identities",
        "cache plan --samples 9 --config {config} --set data.root={tmp}/none",
        "--identities 1000",
    ),
    Row("no command in cache", "cache nosuch", "No such command"),
]

STUDIES = (
    [
        Row(what, f"sweep --grid {grid} {more}", expected)
        for what, grid, more, expected in [
            ("no values", "kd_loss.T=", "", "kd_loss.T"),
            ("no equals sign", "kd_loss.T", "", "kd_loss.T"),
            ("no key", "=1,2", "", "=1,2"),
            ("unknown option", "nosuch=1,2", "", "nosuch"),
            ("a section as option", "kd_loss=1,2", "", "kd_loss"),
            ("below an absent section", "prepare.parsing.batch=1,2", "", "prepare"),
            ("below a value", "batchid.a=1,2", "", "batchid"),
            ("one impossible value", "kd_loss.T=1,0", "", "kd_loss.T"),
            ("a word", "kd_loss.T=1,hot", "", "kd_loss.T"),
            ("the same value twice", "kd_loss.T=1,1", "", "kd_loss.T"),
            ("the same value, written in two ways", "kd_loss.T=1,1.0", "", "kd_loss.T"),
            ("open bracket", "kd_loss.T=[", "", "kd_loss.T"),
            ("5,000 digits", "batchid=" + "9" * 5000, "", "batchid"),
            ("the same option twice", "kd_loss.T=1 --grid kd_loss.T=2", "", "kd_loss.T"),
            ("no seeds", "kd_loss.T=1,2", "--seeds 0", "--seeds"),
            ("half a seed", "kd_loss.T=1,2", "--seeds 1.5", "--seeds"),
            ("10^12 seeds", "kd_loss.T=1,2", "--seeds 1000000000000", "--seeds"),
            ("no jobs", "kd_loss.T=1,2", "--jobs 0", "--jobs"),
            ("100,000 jobs", "kd_loss.T=1,2", "--jobs 100000", "--jobs"),
        ]
    ]
    + [
        Row(what, f"make-benchmark --out {{tmp}}/made {arguments}", expected)
        for what, arguments, expected in [
            ("unknown field", "--set nosuch=1", "nosuch"),
            ("no value", "--set seed", "seed"),
            ("a word for a number", "--set seed=a", "seed"),
            ("a negative seed", "--set seed=-1", "seed"),
            ("5,000 digits", "--set seed=" + "9" * 5000, "seed"),
            ("open bracket", "--set seed=[", "seed"),
            ("impossible date", "--set seed=2020-99-99", "seed"),
            ("10^12 identities", "--set train_ids=1000000000000", "train_ids"),
            ("no workers", "--workers 0", "--workers"),
            ("100,000 workers", "--workers 100000", "--workers"),
        ]
    ]
    + [
        Row("a folder that exists", "make-benchmark --out {data}", "exist"),
        Row("a folder below a file", "make-benchmark --out {config}/made", "tiny.yaml"),
    ]
)

TRAIN = "data/imgs/bounding_box_train/"
FIRST = TRAIN + "0001_c1_0002.jpg"


def replaced(
    what: str, path: str, expected: str, command: str, *changes: tuple[str, Change]
) -> list[Row]:
    """The file of a path replaced in several ways; `what` names it."""
    return [Row(f"{what} {how}", command, expected, {path: change}) for how, change in changes]


NOT_FILES: tuple[tuple[str, Change], ...] = (
    ("is a FIFO", fifo),
    ("is a folder", folder),
    ("is endless", link("/dev/zero")),
    ("is a broken link", link("nowhere")),
)
NOT_JSON: tuple[tuple[str, Change], ...] = (
    ("is empty", raw(b"")),
    ("isn't text", raw(b"\xff\xfe\x00")),
    ("is cut short", edited(lambda content: content[: len(content) // 2])),
    ("is a list", text("[]")),
    ("is a number", text("5")),
    ("is null", text("null")),
    ("is nested too deep", text("[" * 100_000)),
)
DATASETS = [
    *replaced(
        "a body image", FIRST, FIRST.removeprefix("data/"), "train-teacher --force",
        ("is empty", raw(b"")),
        ("is text", text("no image")),
        ("is cut short", edited(lambda content: content[: len(content) // 2])),
        ("is the head of a JPEG", raw(b"\xff\xd8\xff\xe0")),
        ("has 16 bits", image(mode="I;16")),
        ("has 32 bits", image(mode="I", kind="TIFF")),
        ("is of floats", image(mode="F", kind="TIFF")),
        *NOT_FILES,
    ),
    *replaced("the folder of bodies", "data/imgs", "imgs", "train-teacher --force",
              ("is missing", missing), ("is a file", text("")), ("is empty", folder)),
    *replaced("the dataset", "data", "data", "train-teacher --force",
              ("is missing", missing), ("is a file", text("")), ("is empty", folder)),
    *replaced("the folder of masks", "data/mask", "mask", "train-teacher --force",
              ("is missing", missing), ("is empty", folder)),
    *replaced("the query folder", "data/imgs/query", "query", "eval --force",
              ("is missing", missing), ("is empty", folder), ("is a file", text(""))),
    *replaced("a name", TRAIN + "nobody.jpg", "nobody.jpg", "train-teacher --force",
              ("without an identity", image(kind="JPEG"))),
    *replaced("a name", TRAIN + "0001_c99999999999999999999_0000.jpg", "0001_c9999",
              "train-teacher --force", ("with a camera beyond int64", image(kind="JPEG"))),
    *replaced("a second image of one name", FIRST.replace(".jpg", ".png"), "in the extension alone",
              "train-teacher --force", ("among the bodies", image())),
    *replaced("a second image of one name", "data/hr_face/bounding_box_train/0001_c1_0002.png",
              "in the extension alone", "train-teacher --force", ("among the faces", image())),
    *replaced("a row", "data/clothes.csv", "two kinds of clothes", "eval --force", (
        "that contradicts another",
        edited(lambda content: content + content.splitlines()[1].split(b",")[0] + b",other\n"),
    )),
    *replaced("the folder of masks", "data/mask", "look like label maps", "train-teacher --force",
              ("has label maps", copied("labels"))),
    *replaced("the folder of masks", "data/mask", "look like label maps", "teacher-cache --force",
              ("has label maps", copied("labels"))),
    *replaced("each row", "data/clothes.csv", "names an image", "eval --force",
              ("that matches nothing", text("path;clothes\nimages/1.jpg;red\n"))),
    *replaced("clothes.csv", "data/clothes.csv", "clothes.csv", "eval --force",
              ("isn't text", raw(b"\xff\xfe\x00")), ("has other columns", text("a,b\n1,2\n")),
              ("is a FIFO", fifo), ("is a folder", folder), ("is endless", link("/dev/zero"))),
]  # fmt: skip
TEACHER = "eval --force --gallery-network teacher"
GALLERIES = [
    Row("the teacher's gallery without a face stream", f"{TEACHER} --set forward_mode=body",
        "this one has body alone"),
    Row("the teacher's gallery of a network alone",
        f"{TEACHER} --checkpoint {{run}}/student.safetensors --data {{data}} --run {{tmp}}/alone",
        "Leave --checkpoint out, or add --gallery-network student"),
    Row("the gallery of nobody", "eval --force --gallery-network pupil", "'student', 'teacher'"),
    option("the gallery of nobody in a recipe", "eval.gallery_network=pupil",
           "eval.gallery_network", "eval"),
    Row("the gallery's teacher is missing", TEACHER, "train-teacher",
        {"run/teacher.safetensors": missing}),
    Row("the gallery's teacher isn't the student's", TEACHER, "the content of the teacher",
        {"run/teacher.safetensors": text("weights")}),
    Row("pre_train is missing", f"{TEACHER} --set pre_train={{tmp}}/none.pth", "none.pth"),
    *replaced("an HR face of the gallery", "data/hr_face/bounding_box_test/0010_c1_0001.jpg",
              "0010_c1_0001.jpg", TEACHER, ("is text", text("face"))),
]  # fmt: skip
RUNS = [
    *replaced("metrics.json", "run/metrics.json", "metrics.json", "compare {run} {run}",
              *NOT_JSON, ("is an empty object", text("{}")), *NOT_FILES),
    *replaced("queries.csv", "run/queries.csv", "queries.csv", "compare {run} {run}",
              ("is empty", raw(b"")), ("has other columns", text("a,b\n1,2\n")),
              ("isn't text", raw(b"\xff\xfe\x00")), *NOT_FILES),
    Row("no run to say the difference from", "report {run} --against {tmp}/none",
        "Type: deskpro eval --run {tmp}/none"),
    *replaced("the eval manifest", "run/.state/manifests/eval.json", "eval", "report {run}",
              *NOT_JSON, *NOT_FILES),
    *replaced("the student", "run/student.safetensors", "student.safetensors",
              "embed --checkpoint {run}/student.safetensors --data {data} --split query "
              "--out {tmp}/x.npz",
              ("is empty", raw(b"")), ("is text", text("weights")), ("is missing", missing),
              ("has a head of 10^15 bytes", raw((10**15).to_bytes(8, "little"))),
              ("is cut short", edited(lambda content: content[: len(content) // 2])),
              *NOT_FILES),
    *[
        Row(f"{command} to a folder", f"{command} {{run}} --out .", "File '.' is a directory")
        for command in ("report", "gallery list")
    ],
    Row("features to a folder",
        "embed --checkpoint {run}/student.safetensors --data {data} --split query --out {data}",
        "is a directory"),
    Row("features to a file that is no .npz",
        "embed --checkpoint {run}/student.safetensors --data {data} --split query --out {tmp}/x.y",
        "written as .npz; give {tmp}/x.npz"),
    Row("a run in the place of its weights",
        "embed --checkpoint {run} --data {data} --split query --out {tmp}/x.npz",
        "no such weights file"),
    *replaced("a checkpoint", "old.pth", "old.pth",
              "import-checkpoint {tmp}/old.pth --out {tmp}/imported",
              ("is empty", raw(b"")), ("is text", text("weights")), ("is missing", missing),
              ("is half a zip", raw(b"PK\x03\x04")), ("is a pickle that ends", raw(b"\x80\x02")),
              ("is an image", image()), *NOT_FILES),
]  # fmt: skip
LOGITS = "run/targets.zarr/teachers/default/logits/"
STORES = [
    *replaced("a group's metadata", LOGITS + "zarr.json", "logits", "train-student --force",
              ("is missing", missing), ("is empty", raw(b"")),
              ("is cut short", edited(lambda content: content[: len(content) // 2])), *NOT_FILES),
    *[row for name in ("index/zarr.json", "logits/c.0.0.0.0", "valid/c.0")
      for row in replaced(name, LOGITS + name, "logits", "train-student --force", *NOT_FILES[:3])],
    *replaced("the store", "run/targets.zarr",
              "no target cache here. Type: deskpro teacher-cache --run {run}", "cache verify {run}",
              ("is a file", text("")), ("is an empty folder", folder), ("is a FIFO", fifo),
              ("is missing", missing)),
    *replaced("a packed cache", "a.zip", "a.zip: ", "cache unpack {tmp}/a.zip --run {tmp}/new",
              ("is missing", missing), ("is empty", raw(b"")), *NOT_FILES),
    *[replaced("a packed cache", "a.zip", "cache unpack {tmp}/a.zip --run DIR",
               f"cache {tool} {{tmp}}/a.zip", ("isn't unpacked", raw(b"PK")))[0]
      for tool in ("verify", "info")],
    Row("no cache to pack", "cache pack {tmp}/new {tmp}/out.zip",
        "Type: deskpro teacher-cache --run {tmp}/new"),
]  # fmt: skip
EXPORTS = [
    *replaced("metrics.json", "run/metrics.json", "metrics.json", "export {run}",
              *NOT_JSON, ("is an empty object", text("{}")), *NOT_FILES),
    *replaced("the evaluation", "run/.state/manifests/eval.json",
              "Type: deskpro eval --run {run}", "export {run}", ("is missing", missing)),
    *replaced("the features", "run/features.zarr", "features.zarr: missing", "export {run}",
              ("are missing", missing)),
    *replaced("the student", "run/student.safetensors", "student.safetensors", "export {run}",
              ("is empty", raw(b"")), ("is missing", missing)),
    Row("no run folder", "export {tmp}/nowhere", "Type: deskpro eval --run {tmp}/nowhere"),
    Row("a stream that isn't there", "export {run} --streams feet", "it has face, body"),
    Row("too many directions", "export {run} --dim 113", "must be at most"),
    Row("people held out afterwards", "export {run} --int8 --set data.validation=0.5",
              "the student was trained on"),
    Row("a program with int8 numbers", "export {run} --int8 --format torch", "for ONNX files"),
    Row("an export that exists", "export {run} --out {data}", "use --force or another --out"),
    Row("a folder of one's own", "export {run} --out {data} --force", "is no exported folder"),
    *replaced("encoder.json", "exported/encoder.json", "encoder.json",
              "eval --checkpoint {tmp}/exported --data {data} --run {tmp}/alone",
              ("is empty", raw(b"")), ("is a list", text("[]")), ("is an object", text("{}"))),
]  # fmt: skip
ENVIRONMENT = [
    Row(what, "train-student --force", what.split("=")[0], environment=environment)
    for what, environment in [
        ("RANK=abc", {"RANK": "abc", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}),
        ("WORLD_SIZE=two", {"WORLD_SIZE": "two"}),
        ("WORLD_SIZE=-1", {"WORLD_SIZE": "-1"}),
        ("WORLD_SIZE=2", {"WORLD_SIZE": "2"}),
        ("WORLD_SIZE=2 and a rank alone", {"WORLD_SIZE": "2", "RANK": "0"}),
    ]
]
