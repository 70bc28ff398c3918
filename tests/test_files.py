"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xmodal.files import PARTIAL, atomically, contents, digest, digests, write_atomically


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
