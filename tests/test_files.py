"""Files and folders appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from xmodal import files
from xmodal.errors import DataError, MachineError
from xmodal.files import (
    PARTIAL,
    atomically,
    contents,
    digest,
    digests,
    hashed_again,
    write_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sole", [False, True])
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path, sole: bool) -> None:
    target = tmp_path / "a"
    for content in ("old", "new"):
        with atomically(target, sole=sole) as new:
            new.mkdir()
            (new / content).write_text(content)
            assert names(tmp_path) != ["a"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("sole", [False, True])
def test_a_failed_block_changes_and_leaves_nothing(tmp_path: Path, sole: bool) -> None:
    write_atomically(tmp_path / "a", "old")

    def fail() -> None:
        with atomically(tmp_path / "a", sole=sole) as new:
            new.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_the_holder_of_a_lock_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    leftover = tmp_path / f"{PARTIAL}a" / "new"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("x")
    with atomically(tmp_path / "a", sole=True) as new:
        new.mkdir()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == []


@pytest.mark.parametrize("durable", [True, False])
def test_content_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append("sync")
        fsync(descriptor)

    def named(path: Path, target: Path) -> Path:
        done.append("name")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named)
    write_atomically(tmp_path / "a", b"content", durable=durable)
    assert done == (["sync", "name", "sync"] if durable else ["name"])


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_atomically(tmp_path / "a", "x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_names_that_are_not_utf8_are_escaped_or_refused(tmp_path: Path) -> None:
    strange = os.fsdecode(b"x\xff")
    assert json.loads(files.as_json({strange: [strange]})) == {"x\\udcff": ["x\\udcff"]}
    write_atomically(tmp_path / "a", "as it was")
    with pytest.raises(DataError, match=r"a cannot hold 'path: x\\udcff', which is not UTF-8"):
        write_atomically(tmp_path / "a", f"path: {strange}")
    assert (tmp_path / "a").read_text() == "as it was"


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "sub" / "b").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest(tmp_path / "a" / "sub" / "b") == contents(tmp_path / "a" / "sub" / "b") == empty
    assert digests(tmp_path / "a") == {"sub/b": empty}
    first = contents(tmp_path / "a")
    (tmp_path / "a" / "sub" / "b").rename(tmp_path / "a" / "sub" / "c")
    assert contents(tmp_path / "a") != first
    assert contents(tmp_path / "missing") == ""


def test_a_mapping_stands_for_a_folder_wherever_its_files_lie(tmp_path: Path) -> None:
    for name in ("a/x", "a/sub/y", "far/p", "q"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(Path(name).name.translate(str.maketrans("pq", "xy")))
    there = contents({"x": tmp_path / "far" / "p", "sub/y": tmp_path / "q"})
    assert contents(tmp_path / "a") == there
    assert contents({"x": tmp_path / "q", "sub/y": tmp_path / "far" / "p"}) != there


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    for folder in ("a", "real"):
        (tmp_path / folder).mkdir()
    (tmp_path / "real" / "image").write_text("1")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "real")
    first = contents(tmp_path / "a")
    image = tmp_path / "real" / "image"
    assert first == contents({"link/image": image, "again/image": image})
    image.write_text("2")
    assert contents(tmp_path / "a") != first


def test_names_that_are_no_text_have_a_digest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff")).write_text("x")
    except OSError:
        pytest.skip("this file system knows only names of text")
    assert len(contents(tmp_path / "a")) == 64


# --- remembered digests ---

LARGE = 2**22


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read for their digest; the cache is empty."""
    monkeypatch.setenv(files.CACHE, str(tmp_path / "cache"))
    names: list[str] = []

    def counted(path: Path, *rest: Any) -> str:
        names.append(path.name)
        return digest(path, *rest)

    monkeypatch.setattr(files, "digest", counted)
    return names


def large(path: Path, content: bytes = b"a", *, old: bool = True) -> str:
    """Write a file that is worth remembering; returns its SHA-256."""
    path.write_bytes(content * LARGE)
    if old:
        wait_for_the_clock(path)
    return hashlib.sha256(content * LARGE).hexdigest()


def wait_for_the_clock(path: Path) -> None:
    """Let the last change of a file be further back than a tick."""
    while time.time_ns() <= path.stat().st_ctime_ns + files._TICK:
        time.sleep(0.01)


def test_large_files_are_read_once(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_TICK", 10**7)
    path = tmp_path / "a"
    expected = large(path)
    assert contents(path) == contents(path) == expected
    assert read == ["a"]
    with hashed_again():
        assert contents(path) == contents(path) == expected
    assert read == ["a", "a"]
    (tmp_path / "small").write_text("x")
    assert contents(tmp_path / "small") == contents(tmp_path / "small")
    assert read == ["a", "a", "small", "small"]


def test_every_mark_of_a_change_counts(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_TICK", 10**7)
    path, status = tmp_path / "a", (tmp_path / "a").with_name("b")
    large(path)
    contents(path)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    changed = large(path, b"b")
    os.utime(path, ns=times)  # the same size, and the old time of modification
    wait_for_the_clock(path)
    assert contents(path) == changed
    large(status, b"c")
    os.utime(status, ns=times)
    wait_for_the_clock(status)
    contents(path)
    status.replace(path)  # another inode
    assert contents(path) == hashlib.sha256(b"c" * LARGE).hexdigest()
    assert read == ["a", "a", "a"]


def test_only_what_changed_in_a_folder_is_read(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_TICK", 10**7)
    (tmp_path / "in").mkdir()
    for name in "xyz":
        large(tmp_path / "in" / name)
    first = contents(tmp_path / "in")
    large(tmp_path / "in" / "y", b"b")
    assert contents(tmp_path / "in") != first
    assert sorted(read) == ["x", "y", "y", "z"]


def test_a_file_that_was_just_modified_is_not_remembered(tmp_path: Path, read: list[str]) -> None:
    path = tmp_path / "a"
    large(path, old=False)
    contents(path)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    second = large(path, b"b", old=False)
    os.utime(path, ns=times)
    assert contents(path) == second
    assert not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"NAME": 3}', '{"NAME": [[1, 2], 5]}', None])
def test_a_damaged_cache_costs_only_time(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr(files, "_TICK", 10**7)
    path = tmp_path / "a"
    expected = large(path)
    contents(path)
    (entry,) = (tmp_path / "cache" / "digests").glob("*.json")
    if content is None:
        (tmp_path / "cache" / "digests").rename(tmp_path / "elsewhere")
        (tmp_path / "cache" / "digests").write_text("a file where the folder should be")
    else:
        entry.write_text(content.replace("NAME", str(path)))
    assert contents(path) == expected
    assert read == ["a", "a"]


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("half")

    def written_meanwhile(name: Path) -> str:
        path.write_text("half and more")
        return digest(name)

    monkeypatch.setattr(files, "digest", written_meanwhile)
    with pytest.raises(DataError, match="changed while it was read"):
        contents(path)


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(MachineError) as caught:
            write_atomically(tmp_path / "a", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == f"{tmp_path / 'a'}: File too large"
    assert isinstance(caught.value, OSError)  # what may fail can be caught as before
    assert caught.value.exit_code == 4
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=f"{tmp_path}/no/a: No such file or directory"):
        write_atomically(tmp_path / "no" / "a", "x")


def test_leftovers_of_ended_processes_are_removed(tmp_path: Path) -> None:
    host, child = files._here(), os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    gone = tmp_path / f"{PARTIAL}{host}-{child}-abcdefgh"
    alive = tmp_path / f"{PARTIAL}{host}-{os.getppid()}-abcdefgh"
    elsewhere = tmp_path / f"{PARTIAL}other-{child}-abcdefgh"
    old = tmp_path / f"{PARTIAL}other-1-abcdefgh"
    theirs = tmp_path / f"{PARTIAL}download"
    for folder in (gone, alive, elsewhere, old, theirs):
        (folder / "new").mkdir(parents=True)
    os.utime(old, (0, 0))
    write_atomically(tmp_path / "a", "x")
    assert names(tmp_path) == sorted(["a", *(folder.name for folder in (alive, elsewhere, theirs))])
