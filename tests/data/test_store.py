"""The cache: downloads that continue, safe unpacking, wheels through pip, folders built once."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import multiprocessing
import os
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xmodal.data import download
from xmodal.data.store import Store
from xmodal.errors import DataError

from ..servers import Server

pytestmark = pytest.mark.slow

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    running = Server(CONTENT)
    yield running
    running.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "here"))
    assert Store().root == tmp_path / "here"
    monkeypatch.delenv("XMODAL_CACHE")
    assert Store().root.name == "xmodal"


# --- download -------------------------------------------------------------------------------------


def test_download_checks_and_caches(store: Store, server: Server) -> None:
    path = store.download([server.url], "a.bin", sha256=SHA256, md5=MD5, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert store.download([server.url], "a.bin", sha256=SHA256) == path
    assert len(server.ranges) == 1
    assert not list(path.parent.glob("*.part*"))


@pytest.mark.parametrize("etag", ['"one"', None, 'W/"weak"'])
def test_download_continues_after_a_cut(store: Store, server: Server, etag: str | None) -> None:
    server.etag = etag
    server.cut_after = [300_000, 200_000]
    path = store.download([server.url], "a.bin", sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_download_starts_again_where_continuing_is_not_safe(store: Store, server: Server) -> None:
    server.etag = None
    server.cut_after = [300_000]
    assert store.download([server.url], "a.bin").read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_download_continues_in_a_later_run(store: Store, server: Server) -> None:
    server.cut_after = [100_000, 100_000, 100_000, 100_000]
    with pytest.raises(DataError, match=r"ended after 400000 of 1024000 bytes(.|\n)*ways out"):
        store.download([server.url], "a.bin", sha256=SHA256)
    assert store.download([server.url], "a.bin", sha256=SHA256).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=400000-"


def test_download_drops_a_part_of_another_version(store: Store, server: Server) -> None:
    server.cut_after = [300_000]
    server.codes = []
    server.content = b"x" * 400_000
    with pytest.raises(DataError, match="SHA256 is"):
        store.download([server.url], "a.bin", sha256=SHA256)
    server.content = CONTENT
    server.etag = '"two"'
    assert store.download([server.url], "a.bin", sha256=SHA256).read_bytes() == CONTENT


def test_download_tries_the_next_mirror_and_forgives_busy_servers(
    store: Store, server: Server
) -> None:
    missing = server.url.replace("/data", "/missing")
    server.codes = [503]
    path = store.download([missing, server.url], "a.bin", md5=MD5)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1024000\r\n\r\n", r"less than 10\.0 kB a second"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1024000\r\n\r\n" + CONTENT[:99], "less than 10"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", "no answer within 0.3 s"),
        (b"", "no answer within 0.3 s"),
    ],
)
def test_a_server_that_sends_a_byte_now_and_then_is_left(
    store: Store, monkeypatch: pytest.MonkeyPatch, head: bytes, said: str
) -> None:
    monkeypatch.setattr(download, "_ANSWER", 0.3)
    monkeypatch.setattr(download, "_PATIENCE", 0.2)
    monkeypatch.setattr(download, "_SLOWEST", 10_000.0)
    over = threading.Event()

    def drip(listening: socket.socket) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), listening.accept()[0] as client:
                client.recv(4096)
                client.sendall(head)
                while head and not over.wait(0.02):
                    client.sendall(b"a")
                over.wait(1)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        threading.Thread(target=drip, args=(listening,), daemon=True).start()
        start = time.monotonic()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/a"
        with pytest.raises(DataError, match=said):
            store.download([address], "a.bin", rounds=2)
        over.set()
    assert time.monotonic() - start < 5


def test_download_lists_every_mirror_in_its_error(store: Store, server: Server) -> None:
    missing = server.url.replace("/data", "/missing")
    with pytest.raises(DataError) as caught:
        store.download([missing, "file:///etc/hostname"], "a.bin")
    message = str(caught.value)
    assert f"{missing}: HTTP 404" in message
    assert "only http and https" in message
    assert str(store.root / "downloads" / "a.bin") in message


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"sha256": "0" * 64}, "SHA256 is"),
        ({"md5": "0" * 32}, "MD5 is"),
        ({"size": 5}, "expected 5"),
    ],
)
def test_download_refuses_the_wrong_file(
    store: Store, server: Server, expected: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        store.download([server.url], "a.bin", **expected)
    assert not (store.root / "downloads" / "a.bin").exists()


def test_download_checks_the_disk_first(
    store: Store, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match=r"1\.00 kB are free(.|\n)*XMODAL_CACHE"):
        store.download([server.url], "a.bin")


def test_download_accepts_a_file_placed_by_hand(store: Store) -> None:
    path = store.root / "downloads" / "a.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert store.download(["http://127.0.0.1:9/none"], "a.bin", sha256=SHA256) == path


# --- unpack ---------------------------------------------------------------------------------------


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        for info, content in members:
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


def _info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_unpack_tar_zip_and_gz_once(store: Store, tmp_path: Path) -> None:
    tar = _tar(tmp_path / "a.tar.gz", (_info("in/one.txt"), b"1"))
    zipped = tmp_path / "a.zip"
    with zipfile.ZipFile(zipped, "w") as opened:
        opened.writestr("in/two.txt", "2")
    (tmp_path / "three.txt.gz").write_bytes(gzip.compress(b"3"))
    assert (store.unpack(tar, "tar") / "in/one.txt").read_bytes() == b"1"
    assert (store.unpack(zipped, "zip") / "in/two.txt").read_bytes() == b"2"
    assert (store.unpack(tmp_path / "three.txt.gz", "gz") / "three.txt").read_bytes() == b"3"
    (store.root / "unpacked/tar/in/one.txt").write_bytes(b"kept")
    tar.unlink()
    assert (store.unpack(tar, "tar") / "in/one.txt").read_bytes() == b"kept"


@pytest.mark.parametrize(
    "info",
    [
        _info("../outside.txt"),
        _info("/absolute/../../outside.txt"),
        _info("link", tarfile.SYMTYPE, "../../outside"),
        _info("link", tarfile.SYMTYPE, "/etc/passwd"),
        _info("link", tarfile.LNKTYPE, "../../outside"),
        _info("device", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.linkname}",
)
def test_unpack_refuses_tar_members_that_escape(
    store: Store, tmp_path: Path, info: tarfile.TarInfo
) -> None:
    archive = _tar(tmp_path / "a.tar.gz", (info, b""))
    with pytest.raises(DataError, match="refusing"):
        store.unpack(archive, "x")
    assert not (store.root / "unpacked" / "x").exists()
    assert not list(tmp_path.rglob("outside*"))


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/x", "a\\..\\..\\b", "C:/x"])
def test_unpack_refuses_zip_members_that_escape(store: Store, tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(name, "x")
    with pytest.raises(DataError, match="leads outside"):
        store.unpack(archive, "x")


def test_unpack_refuses_zip_links(store: Store, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="refusing the link"):
        store.unpack(archive, "x")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "gz"])
def test_unpack_refuses_bombs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(download, "MIN_LIMIT", 2**20)
    archive, bomb = tmp_path / f"a.{kind}", bytes(8 * 2**20)
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("bomb", bomb)
    elif kind == "gz":
        archive.write_bytes(gzip.compress(bomb))
    else:
        _tar(archive, (_info("bomb"), bomb))
    with pytest.raises(DataError, match="would unpack to more than"):
        store.unpack(archive, "x")
    assert not list((store.root / "unpacked").iterdir())


def test_unpack_checks_the_disk_first(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("zeros", bytes(2**20))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 2**19}))
    with pytest.raises(DataError, match=r"unpacking a\.zip needs 1\.05 MB"):
        store.unpack(archive, "x")


def test_an_archive_that_is_damaged_inside(store: Store, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("numbers", CONTENT[:5000])
    content = bytearray(archive.read_bytes())
    content[60:80] = b"\xff" * 20
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip cannot be unpacked"):
        store.unpack(archive, "x")
    gz = gzip.compress(CONTENT)
    (tmp_path / "b.gz").write_bytes(gz[:30] + b"\xff" * 30 + gz[60:])
    with pytest.raises(DataError, match=r"b\.gz cannot be unpacked"):
        store.unpack(tmp_path / "b.gz", "y")


@pytest.mark.parametrize("name", ["in/../../x", "in//../../x", "./../x", "in/..", "~/x", "C:\\x"])
def test_no_name_in_an_archive_leads_out(store: Store, tmp_path: Path, name: str) -> None:
    archive, tar = tmp_path / "a.zip", _tar(tmp_path / "a.tar.gz", (_info(name), b"x"))
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(name, "x")
    for number, one in enumerate((archive, tar)):
        with contextlib.suppress(DataError):  # refused, or within the folder
            store.unpack(one, f"deep/{number}")
    outside = {path for path in tmp_path.rglob("*") if path.is_file()} - {archive, tar}
    assert all("unpacked/deep/" in path.as_posix() or "locks" in path.parts for path in outside)


def test_a_link_is_no_way_out_for_the_members_after_it(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    link = _info("door", tarfile.SYMTYPE, str(victim))
    with pytest.raises(DataError, match="refusing"):
        store.unpack(_tar(tmp_path / "a.tar.gz", (link, b""), (_info("door/x"), b"x")), "x")
    assert not list(victim.iterdir())


def test_one_member_of_a_large_zip_is_streamed(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("large.bin", bytes(40 * 2**20))
        opened.writestr("small.txt", "x")
    download.take_members(archive, ["small.txt"], tmp_path / "warm")
    tracemalloc.start()
    download.take_members(archive, ["large.bin"], tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out" / "large.bin").stat().st_size == 40 * 2**20
    assert peak < 8 * 2**20


@pytest.mark.parametrize("content", [b"no archive", b"\x1f\x8bbroken", b"PK\x03\x04broken"])
def test_unpack_names_a_damaged_archive(store: Store, tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "a.bin"
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.bin"):
        store.unpack(archive, "x")


# --- build ----------------------------------------------------------------------------------------


def test_build_makes_once_and_again_when_damaged(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(1)
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("content")

    folder = store.build("thing", {"b": 1, "a": [2]}, make)
    assert store.build("thing", {"a": [2], "b": 1}, make) == folder
    assert store.build("thing", {"a": [3], "b": 1}, make) != folder
    assert len(made) == 2
    (folder / "sub" / "a.txt").write_text("c0ntent")
    with caplog.at_level(logging.WARNING, "xmodal.data"):
        store.build("thing", {"a": [2], "b": 1}, make)
    assert "damaged" in caplog.text
    assert (folder / "sub" / "a.txt").read_text() == "content"


def test_build_leaves_nothing_behind_when_it_fails(store: Store) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        store.build("thing", {}, make)
    assert not list((store.root / "built").iterdir())


def _slow_build(root: Path, log: Path) -> None:
    import time

    def make(folder: Path) -> None:
        with log.open("a") as out:
            out.write("made\n")
        time.sleep(0.5)
        (folder / "a").write_text("x")

    assert (Store(root).build("thing", {"k": 1}, make) / "a").read_text() == "x"


def test_build_of_two_processes_happens_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "cache", tmp_path / "log")
    workers = [context.Process(target=_slow_build, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


# --- packages -------------------------------------------------------------------------------------


def _wheel(folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "demo_pkg-1.0-py3-none-any.whl", "w") as opened:
        opened.writestr("demo_pkg/__init__.py", "raise SystemExit('imported')")
        opened.writestr("demo_pkg/data/a.bin", CONTENT)
        opened.writestr(
            "demo_pkg-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: demo-pkg\nVersion: 1.0\n",
        )
        opened.writestr("demo_pkg-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        opened.writestr("demo_pkg-1.0.dist-info/RECORD", "")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


MEMBERS = {"demo_pkg/data/a.bin": SHA256}


def test_wheel_files_follow_the_users_pip_settings(
    store: Store, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wheel(offline)
    found = store.wheel_files("demo-pkg", "1.0", MEMBERS)
    path = found["demo_pkg/data/a.bin"]
    assert path.read_bytes() == CONTENT
    assert not list(store.root.rglob("__init__.py"))
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("fetched twice"))
    assert store.wheel_files("demo-pkg", "1.0", MEMBERS) == found


@pytest.mark.long
def test_wheel_files_fetch_a_damaged_file_again(store: Store, offline: Path) -> None:
    _wheel(offline)
    path = store.wheel_files("demo-pkg", "1.0", MEMBERS)["demo_pkg/data/a.bin"]
    path.write_bytes(CONTENT[:-1])
    store.wheel_files("demo-pkg", "1.0", MEMBERS)
    assert path.read_bytes() == CONTENT


def test_wheel_files_say_every_way_out(store: Store, offline: Path) -> None:
    offline.mkdir()
    with pytest.raises(DataError) as caught:
        store.wheel_files("demo-pkg", "1.0", MEMBERS, ["set pretrained: false"])
    message = str(caught.value)
    assert "demo-pkg==1.0" in message
    assert "No matching distribution" in message
    assert "set pretrained: false" in message
    by_hand = store.root / "wheels" / "demo-pkg-1.0" / "demo_pkg/data/a.bin"
    assert str(by_hand) in message
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(CONTENT)
    assert store.wheel_files("demo-pkg", "1.0", MEMBERS) == {"demo_pkg/data/a.bin": by_hand}


@pytest.mark.parametrize(
    ("members", "said"),
    [({"demo_pkg/data/a.bin": "0" * 64}, SHA256), ({"demo_pkg/b": SHA256}, "no member demo_pkg/b")],
)
def test_wheel_files_refuse_other_content(
    store: Store, offline: Path, members: dict[str, str], said: str
) -> None:
    _wheel(offline)
    with pytest.raises(DataError, match=said):
        store.wheel_files("demo-pkg", "1.0", members)
    assert not list(store.root.rglob("a.bin"))


@pytest.mark.skipif(sys.platform != "linux", reason="Debian tools")
def test_debian_files_keep_what_matches(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    fields = "Package: demo\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\n"
    (tree / "DEBIAN/control").write_text(fields + "Description: demo\n")
    (tree / "usr/share/demo").mkdir(parents=True)
    (tree / "usr/share/demo/a.png").write_bytes(b"a")
    (tree / "usr/share/demo/b.wav").write_bytes(b"b")
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb")
    command = ["dpkg-deb", "-b", str(tree), str(tmp_path / "demo_1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-get").write_text(f"#!/bin/sh\ncp {tmp_path}/demo_1_all.deb .\n")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    folder = store.debian_files("demo", ["usr/share/demo/*.png"])
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    assert [name for name in files if not name.startswith(".")] == ["usr/share/demo/a.png"]
    (tools / "apt-get").write_text("#!/bin/sh\nexit 1\n")
    assert store.debian_files("demo", ["usr/share/demo/*.png"]) == folder


def test_debian_files_without_apt(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match=r"apt-get and dpkg-deb are not on this(.|\n)*ways out"):
        store.debian_files("demo", ["usr/*"])
