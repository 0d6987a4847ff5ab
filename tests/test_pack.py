"""A cache that travels: packed to one file, checked to the last bit, unpacked, trained from."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import ZipStore

from deskpro.cache import pack
from deskpro.cache.errors import CacheError
from deskpro.cache.files import sha256, write_text
from deskpro.cache.verify import verify
from deskpro.stages import cache_tools
from deskpro.stages.base.run_folder import RunFolder
from tests.conftest import Once, Project, Result, slow
from tests.crash import crashes
from tests.test_cache import FINGERPRINT, SCHEMA, build
from tests.test_import_targets import digests, imported, made_up, save_npz, store

Command = Callable[..., Result]
Members = dict[str, tuple[zipfile.ZipInfo, bytes]]


@pytest.fixture(scope="module")
def packed(once: Once, tiny_run: Path) -> Path:
    """The tiny run's cache as one file; read it, don't change it."""
    made = once(
        "packed", lambda folder: pack.pack(tiny_run / "targets.zarr", folder / "t.zip", force=False)
    )
    return made / "t.zip"


@pytest.mark.finished("teacher-cache")
def test_an_unpacked_cache_has_the_same_bytes(project: Project, tmp_path: Path) -> None:
    """Targets of every teacher; zarr reads the file as it is; two packs are equal."""
    assert imported(project, save_npz(tmp_path / "mine", made_up(project))).code == 0
    out, again, other = tmp_path / "one.zip", tmp_path / "two.zip", tmp_path / "other"
    for file in (out, again):
        assert project.command("cache", "pack", str(project.run), str(file)).code == 0
    assert out.read_bytes() == again.read_bytes()
    shutil.copytree(store(project), tmp_path / "copy.zarr")  # with other times
    pack.pack(tmp_path / "copy.zarr", again, force=True)
    assert out.read_bytes() == again.read_bytes()

    there: Any = zarr.open(ZipStore(out, mode="r"), mode="r")
    here: Any = zarr.open(store(project), mode="r")
    assert {name for name, _ in here.members(None)} | {"manifest"} == {
        name for name, _ in there.members(None)
    }
    for name in ("teachers/other/embedding/embedding", "masks/parsing/parsing", "sample_id"):
        np.testing.assert_array_equal(there[name][...], here[name][...])

    files = there["manifest"].attrs[pack.ATTRIBUTE]["files"]
    assert {name: sha256 for name, (_, sha256) in files.items()} == digests(store(project))
    unpack = ("cache", "unpack", str(out), "--run", str(other))
    assert project.command(*unpack).code == 0
    assert digests(other / "targets.zarr") == digests(store(project))
    assert not verify(other / "targets.zarr")
    result = project.command(*unpack)
    assert result.code == 0
    assert "was there" in result.out + result.err


def test_25_flipped_bits_are_25_refusals(packed: Path, tmp_path: Path, command: Command) -> None:
    content, file = packed.read_bytes(), tmp_path / "flipped.zip"
    for place in np.linspace(0, len(content) - 1, 25).astype(int):
        changed = bytearray(content)
        changed[place] ^= 1 << int(place) % 8
        file.write_bytes(changed)
        result = command("cache", "unpack", str(file), "--run", str(tmp_path / "run"))
        assert result.code == 2, place
        assert "Traceback" not in result.err
        assert result.err.count("deskpro: ") == 1
        assert not (tmp_path / "run").exists()


def refused(content: bytes | bytearray, folder: Path) -> str:
    """Why a file is not opened; empty where it is."""
    file = folder / "changed.zip"
    file.write_bytes(content)
    try:
        with pack.opened(file):
            return ""
    except CacheError as error:
        return str(error)


def test_a_flip_in_any_field_of_the_zip_is_found(packed: Path, tmp_path: Path) -> None:
    """Every byte of the first and the manifest's header, of the ends of the directory, and of the
    comment, which Python's zipfile reads in part alone."""
    content = packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        last, start = archive.getinfo(pack.MANIFEST).header_offset, archive.start_dir
    places = [*range(60), *range(last, last + 60), *range(start, start + 80)]
    places += range(len(content) - 64 - 22 - 70, len(content))
    assert not refused(content, tmp_path)
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        assert refused(changed, tmp_path), place


@given(data=st.data())
def test_a_flip_anywhere_and_any_other_length_are_found(packed: Path, data: st.DataObject) -> None:
    content = packed.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    for other in (changed, content[:place], content + content[:1], content[:1] + content):
        assert refused(other, packed.parent), place


def members_of(file: Path) -> Members:
    with zipfile.ZipFile(file) as archive:
        return {info.filename: (info, archive.read(info)) for info in archive.infolist()}


def crafted(file: Path, members: Members, *, listed: bool = False) -> Path:
    """A zip that ends as `pack` ends it; listed: its manifest names these members."""
    if listed:
        files = {
            name: (len(content), hashlib.sha256(content).hexdigest())
            for name, (_, content) in members.items()
            if name != pack.MANIFEST
        }
        group = json.loads(members[pack.MANIFEST][1])
        group["attributes"][pack.ATTRIBUTE] |= pack.Manifest.of(files)._asdict()
        members = {**members, pack.MANIFEST: (plain(pack.MANIFEST), json.dumps(group).encode())}
    with zipfile.ZipFile(file, "w") as archive:
        for info, content in members.values():
            archive.writestr(info, content, info.compress_type)
        archive.comment = b"0" * 64
    content = file.read_bytes()[:-64]
    file.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
    return file


def plain(name: str, **other: Any) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.create_system = 0o100644 << 16, 3
    for key, value in other.items():
        setattr(info, key, value)
    return info


def added(name: str, content: bytes = b"", **other: Any) -> Callable[[Members], Members]:
    return lambda members: {**members, f"+{name}": (plain(name, **other), content)}


def without(name: str) -> Callable[[Members], Members]:
    return lambda members: {n: member for n, member in members.items() if n != name}


def edited(name: str, before: bytes, now: bytes) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        info, content = members[name]
        assert before in content
        return {**members, name: (info, content.replace(before, now, 1))}

    return change


SEAL = "masks/parsing/index/zarr.json"
CRAFTED = {
    "leaves": (added("../out"), True, "../out"),
    "leaves below": (added("masks/../../out"), True, "out"),
    "absolute": (added("/tmp/out"), True, "/tmp/out"),
    "a folder": (added("masks/more/"), True, "masks/more/"),
    "a link": (added("out", b"/etc", external_attr=0o120777 << 16), True, "link"),
    "bomb": (added("big", bytes(10**7), compress_type=zipfile.ZIP_DEFLATED), True, "larger"),
    "deflated": (added("x", b"12", compress_type=zipfile.ZIP_DEFLATED), True, "compressed"),
    "extra": (added("extra"), False, "extra"),
    "missing": (without(SEAL), False, SEAL),
    "no manifest": (without(pack.MANIFEST), False, pack.MANIFEST),
    "twice": (added("zarr.json"), False, "one name twice"),
    "not finished": (without(SEAL), True, "not finished"),
    "a file more": (added("more"), True, "not a file of this store"),
    "another content": (edited(SEAL, b"sha256", b"sha255"), False, SEAL),
    "another size": (edited(SEAL, b"}", b"} "), False, SEAL),
    "another format": (edited(pack.MANIFEST, b'"format": 3', b'"format": 9'), False, "format 9"),
    "no JSON": (edited(pack.MANIFEST, b"{", b"["), False, "not a packed cache"),
    "deep JSON": (edited(pack.MANIFEST, b"{", b"[" * 10**5), False, "not a packed cache"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_file_is_refused_and_writes_nothing(
    case: str, packed: Path, tmp_path: Path, command: Command
) -> None:
    change, listed, expected = CRAFTED[case]
    changed = change(members_of(packed))
    if listed:  # by the names that the members have in the zip
        changed = {info.filename: (info, content) for info, content in changed.values()}
    file, run = crafted(tmp_path / "bad.zip", changed, listed=listed), tmp_path / "runs" / "one"
    result = command("cache", "unpack", str(file), "--run", str(run))
    assert result.code == 2, result.out
    assert "Traceback" not in result.err
    assert expected in result.err
    assert str(file) in result.err
    assert len([line for line in result.err.splitlines() if line.startswith("deskpro: ")]) == 1
    assert not run.exists()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs" / "out").exists()


def test_an_honest_copy_of_the_members_unpacks(packed: Path, tmp_path: Path) -> None:
    """What `crafted` makes is refused for its change alone."""
    file = crafted(tmp_path / "good.zip", members_of(packed), listed=True)
    cache_tools.unpack(file, RunFolder(tmp_path / "run"), force=False)
    assert not verify(tmp_path / "run" / "targets.zarr")


@pytest.mark.finished("teacher-cache")
def test_what_can_not_be_packed_is_refused(project: Project, tmp_path: Path) -> None:
    out, root = tmp_path / "one.zip", store(project)

    def refuse(expected: str, *, file: Path = out) -> None:
        result = project.command("cache", "pack", str(project.run), str(file))
        assert result.code == 2, result.out
        assert expected in result.err
        assert not out.exists() or out.read_text() == "mine"

    refuse("must be a file outside of", file=root / "one.zip")
    out.write_text("mine")
    refuse("--force")
    out.unlink()
    (root / "foreign").touch()
    refuse("Move it away")
    (root / "foreign").unlink()
    chunk = next((root / "masks/parsing/parsing").glob("c.*"))
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refuse(f"Type: deskpro teacher-cache --run {project.run} --force")
    chunk.write_bytes(content)
    (root / SEAL).rename(tmp_path / "seal")
    refuse(f"Type: deskpro teacher-cache --run {project.run}")
    shutil.rmtree(root)
    refuse("no target cache here")


SMALL = replace(SCHEMA, samples=2, views=1, block=2, fields={"logits": SCHEMA.fields["logits"]})


@pytest.mark.parametrize("force", [False, *slow(True)])
def test_at_every_crash_point_the_same_command_completes(force: bool, tmp_path: Path) -> None:
    """Packing, to no file or to one that is replaced; unpacking, where there is no cache or
    another, leaves that, none or the new one."""
    root, out, folder = tmp_path / "one.zarr", tmp_path / "out/one.zip", RunFolder(tmp_path / "run")
    build(root, schema=SMALL)
    build(tmp_path / "other.zarr", FINGERPRINT | {"teacher": "other"}, SMALL)
    pack.pack(root, tmp_path / "wanted.zip", force=False)
    content = (tmp_path / "wanted.zip").read_bytes()
    wanted, own = digests(root), digests(tmp_path / "other.zarr")

    def start() -> None:
        for made in (out.parent, folder.path):
            shutil.rmtree(made, ignore_errors=True)
        if force:
            out.parent.mkdir()
            out.write_text("mine")
            shutil.copytree(tmp_path / "other.zarr", folder.targets)
            write_text(folder.manifest("teacher-cache"), "{}")

    def packs() -> None:
        pack.pack(root, out, force=force)

    for point in crashes(start, packs, out.parent):
        assert (out.read_bytes() if out.exists() else b"") in (b"mine" if force else b"", content)
        if force or not out.exists():
            packs()
        assert out.read_bytes() == content, point

    def unpacks() -> None:
        cache_tools.unpack(tmp_path / "wanted.zip", folder, force=force)

    points = 0
    for points in crashes(start, unpacks, folder.path):
        found = digests(folder.targets)
        assert found in ({}, own, wanted) if force else found in ({}, wanted), points
        assert (folder.given() is not None) == (found == wanted), points
        unpacks()
        assert digests(folder.targets) == wanted, points
        assert folder.given() is not None
    assert points > 20


@pytest.mark.finished("teacher-cache")
def test_another_cache_is_not_replaced_without_force(
    project: Project, packed: Path, tmp_path: Path
) -> None:
    unpack = ("cache", "unpack", str(packed), "--run")
    before = digests(project.run)
    result = project.command(*unpack, str(project.run))
    assert result.code == 2
    assert "--force" in result.err
    assert digests(project.run) == before
    student = RunFolder(tmp_path / "student", project.run)
    student.write_source()
    result = project.command(*unpack, str(student.path))
    assert result.code == 2
    assert f"its targets are those of {project.run}" in result.err
    assert project.command(*unpack, str(project.run), "--force").code == 0
    assert RunFolder(project.run).given() is not None


def given(project: Project, packed: Path) -> Project:
    """The project with an unpacked cache, and of images those alone that a student sees."""
    for kind in ("hr_face", "mask"):
        shutil.rmtree(project.data / kind)
    assert project.command("cache", "unpack", str(packed), "--run", str(project.run)).code == 0
    return project


@pytest.mark.slow
def test_a_student_of_an_unpacked_cache_is_that_of_its_maker(
    project: Project, packed: Path, finished_run: Callable[[str], Path], tmp_path: Path
) -> None:
    """It needs neither teacher, HR faces nor masks, and the result says whose cache it is."""
    given(project, packed)
    assert "is fresh" in project.ok("teacher-cache").err
    result = project.ok("all")
    assert "unpacked from t.zip, " in result.out + result.err
    assert not (project.run / "teacher.safetensors").exists()
    wanted = (finished_run("train-student") / "student.safetensors").read_bytes()
    assert (project.run / "student.safetensors").read_bytes() == wanted
    assert (project.run / "metrics.json").exists()
    other = replace(project, run=tmp_path / "other")
    result = other.ok("train-student", "--from", str(project.run))
    assert "unpacked from t.zip, " in result.out + result.err
    assert (other.run / "student.safetensors").read_bytes() == wanted


def test_what_needs_the_maker_of_an_unpacked_cache_is_refused(
    project: Project, packed: Path, tmp_path: Path
) -> None:
    given(project, packed)
    run = str(project.run)
    for words in (["audit", run], ["render", run, str(tmp_path / "out")]):
        result = project.command("cache", *words)
        assert result.code == 2
        assert f"unpacked from t.zip, without the recipe and teacher that cache {words[0]}" in (
            result.err
        )


def test_the_same_file_again_names_damage_and_force_replaces_it(
    project: Project, packed: Path
) -> None:
    given(project, packed)
    chunk = next((project.run / "targets.zarr/teachers/default/logits/logits").glob("c.*"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    unpack = ("cache", "unpack", str(packed), "--run", str(project.run))
    result = project.command(*unpack)
    assert result.code == 2
    assert f"{chunk.name}: block " in result.err
    again = f"Type: deskpro cache unpack t.zip --run {project.run} --force"
    assert project("train-student").err.strip().endswith(again)
    assert project.command(*unpack, "--force").code == 0
    assert not verify(project.run / "targets.zarr")


def test_other_images_or_another_recipe_than_its_makers_are_refused(
    project: Project, packed: Path
) -> None:
    given(project, packed)

    def refuse(expected: str, *options: str, stage: str = "train-student") -> None:
        result = project(stage, *options)
        assert result.code == 2, result.out
        assert expected in result.err

    for kind in ("lr_face", "imgs"):
        file = next(
            path for path in sorted((project.data / kind).rglob("*.*")) if "train" in str(path)
        )
        before, name = file.read_bytes(), str(file.relative_to(project.data / kind))
        other = next(path for path in file.parent.iterdir() if path.read_bytes() != before)
        file.write_bytes(other.read_bytes())
        refuse(f"{kind}_sha256 of {name} changed")
        file.unlink()
        refuse(name)
        file.write_bytes(before)
    refuse("unpacked from t.zip", "--set", "data.face_size=[16,16]")
    refuse("data.face_size", "--set", "data.face_size=[16,16]", stage="teacher-cache")
    assert not (project.run / "student.safetensors").exists()


@pytest.mark.finished("teacher-cache")
def test_a_cache_that_was_made_here_is_judged_as_before(project: Project, packed: Path) -> None:
    """A record that was left, or comes from elsewhere, makes no stale cache fresh."""
    root, folder = store(project), RunFolder(project.run)
    seals = {str(path.relative_to(root)): sha256(path) for path in root.rglob("index/zarr.json")}
    write_text(folder.unpacked, json.dumps({"file": "t.zip", "digest": "", "seals": seals}))
    assert folder.given() is None
    face = next((project.data / "hr_face").rglob("*.*"))
    face.write_bytes(next(p for p in face.parent.iterdir() if p != face).read_bytes())
    result = project("train-student")
    assert result.code == 2
    assert "hr_face_sha256" in result.err
    folder.manifest("teacher-cache").unlink()
    assert folder.given() is not None
    (root / SEAL).write_bytes((root / SEAL).read_bytes() + b" ")
    assert folder.given() is None
