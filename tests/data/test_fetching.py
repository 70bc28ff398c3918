"""Fetching published files from a web server, from the first byte to a data set that is ready."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal.data import download, fetching
from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.obtain import DataOrder, obtain
from xmodal.data.store import Store
from xmodal.errors import DataError, MachineError, UsageError

from ..servers import Server

CONTENT = np.arange(100_000, dtype="<f4").tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    running = Server(CONTENT)
    yield running
    running.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def card(*urls: str, name: str = "numbers", **known: Any) -> DataCard:
    """A data set of one file."""
    prepared = known.pop("prepared", 0)
    file = RemoteFile("x.f4", urls, **known)
    return DataCard(name, "toys", "nobody", "CC0", len(CONTENT), (file,), prepared=prepared)


def prepare(wanted: Preparation, folder: Path) -> Mapping[str, Any]:
    np.save(folder / "x.npy", np.fromfile(wanted.files["x.f4"], "<f4"))
    return {"samples": len(CONTENT) // 4}


def fetched(store: Store, wanted: DataCard, **order: Any) -> np.ndarray:
    folder, _ = obtain(store, wanted, prepare, DataOrder(**order))
    return np.load(folder / "x.npy", mmap_mode="r")


@pytest.mark.parametrize("known", [{"md5": MD5}, {"sha256": SHA256, "size": len(CONTENT)}])
def test_a_file_with_a_published_checksum(
    store: Store, server: Server, known: dict[str, Any]
) -> None:
    assert fetched(store, card(server.url, **known))[-1] == 99_999
    assert not (store.root / "checksums").exists()
    fetched(store, card(server.url, **known))
    assert len(server.asked) == 1


def test_a_dropped_connection_is_continued_also_by_a_later_call(
    store: Store, server: Server
) -> None:
    server.cut_after = [70_000] * 4
    with pytest.raises(DataError, match="ended after 280000 of 400000 bytes"):
        fetched(store, card(server.url, md5=MD5))
    assert store.dataset(card(server.url)) is None
    assert len(fetched(store, card(server.url, md5=MD5))) == 100_000
    assert server.ranges[-1] == "bytes=280000-"


def test_the_next_mirror_where_the_first_does_not_have_it(store: Store, server: Server) -> None:
    missing = f"{server.root}/missing/x.f4"
    assert len(fetched(store, card(missing, server.url, md5=MD5))) == 100_000
    assert server.asked == ["/missing/x.f4", "/data.bin"]


def test_a_wrong_checksum_is_refused_and_nothing_is_ready(store: Store, server: Server) -> None:
    with pytest.raises(DataError, match=f"its MD5 is {MD5}, expected 000"):
        fetched(store, card(server.url, md5="0" * 32))
    assert store.dataset(card(server.url)) is None
    assert not list((store.root / "downloads").rglob("*.f4"))


def test_without_a_published_checksum_the_first_fetch_counts_for_every_mirror(
    store: Store, server: Server, tmp_path: Path
) -> None:
    fetched(store, card(server.url))
    shutil.rmtree(store.root / "downloads")  # to save space; what it was is kept
    server.files["/other.bin"] = CONTENT[:-4] + b"\0\0\0\0"
    other = card(f"{server.root}/other.bin")
    with pytest.raises(DataError, match=f"expected {SHA256}"):
        fetched(store, other, again=True)
    assert len(fetched(store, other)) == 100_000  # what was ready stays
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "x.f4").write_bytes(server.files["/other.bin"])
    with pytest.raises(DataError, match=r"is not the file 'x\.f4'(.|\n)*remove 'x\.f4' from that"):
        fetched(store, other, again=True, folder=mine)
    (mine / "x.f4").write_bytes(CONTENT)
    assert len(fetched(store, other, again=True, folder=mine)) == 100_000


def test_a_changed_size_is_refused_before_it_is_downloaded(store: Store, server: Server) -> None:
    fetched(store, card(server.url))
    shutil.rmtree(store.root / "downloads")
    server.content = CONTENT * 2
    with pytest.raises(DataError, match="it offers 800000 bytes, expected 400000"):
        fetched(store, card(server.url), again=True)


def test_a_slow_server_meets_the_deadline_and_what_came_stays(store: Store, server: Server) -> None:
    server.slow = threading.Event()
    with pytest.raises(DataError, match=r"the time is over; \d+ bytes came"):
        fetched(store, card(server.url, md5=MD5), minutes=0.1 / 60)
    server.slow.set()
    assert len(fetched(store, card(server.url, md5=MD5))) == 100_000
    assert (server.ranges[-1] or "").startswith("bytes=")


def test_the_disk_is_checked_before_the_first_byte(
    store: Store, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "shutil.disk_usage", lambda folder: type("Usage", (), {"free": 3 * len(CONTENT)})
    )
    large = card(server.url, size=len(CONTENT), prepared=3 * len(CONTENT))
    with pytest.raises(DataError, match=r"'numbers' ready needs 1\.60 MB but only 1\.20 MB are"):
        fetched(store, large)
    assert server.asked == []
    assert len(fetched(store, card(server.url, size=len(CONTENT)))) == 100_000


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_half_ready(
    store: Store, server: Server
) -> None:
    def full(wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        (folder / "x.npy").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(MachineError, match="No space left"):
        obtain(store, card(server.url), full, DataOrder())
    assert [path.name for path in (store.root / "datasets").iterdir()] == []
    assert len(fetched(store, card(server.url))) == 100_000
    assert len(server.asked) == 1


def _fetch_slowly(root: Path, url: str, log: Path) -> None:
    def slowly(wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        with log.open("a") as out:
            out.write("made\n")
        time.sleep(0.3)
        return prepare(wanted, folder)

    folder, made = obtain(Store(root), card(url), slowly, DataOrder())
    with log.open("a") as out:
        out.write(f"{made} {len(np.load(folder / 'x.npy'))}\n")


def test_two_processes_make_it_once(tmp_path: Path, server: Server) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "cache", server.url, tmp_path / "log")
    workers = [context.Process(target=_fetch_slowly, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines) == ["False 100000", "True 100000", "made"]


# --- the policy -----------------------------------------------------------------------------------


def test_never_fetches_from_nowhere(
    store: Store, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XMODAL_FETCH", "never")
    place = store.root / "downloads" / "numbers" / "x.f4"
    with pytest.raises(DataError) as caught:
        fetched(store, card(server.url))
    assert "XMODAL_FETCH is 'never'" in str(caught.value)
    assert f"place it at {place} by hand" in str(caught.value)
    for get in (
        lambda: store.wheel_files("demo-pkg", "1.0", {"demo_pkg/a.bin": "0" * 64}),
        lambda: store.debian_files("demo-data", ["usr/share/demo/*"]),
    ):
        with pytest.raises(DataError, match=r"is not fetched: XMODAL_FETCH is 'never'(.|\n)*ways"):
            get()
    assert server.asked == []
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(CONTENT)
    assert len(fetched(store, card(server.url))) == 100_000


def test_a_wrong_file_placed_by_hand_is_not_thrown_away(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XMODAL_FETCH", "never")
    place = store.root / "downloads" / "numbers" / "x.f4"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"a user's only copy")
    with pytest.raises(DataError, match="is not it: its MD5 is"):
        fetched(store, card("http://127.0.0.1:9/none", md5=MD5))
    assert place.read_bytes() == b"a user's only copy"


def test_what_is_done_decides_where_the_user_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XMODAL_FETCH", raising=False)
    assert fetching.why_not() == ""
    with fetching.doing("look"):
        assert "XMODAL_FETCH=always" in fetching.why_not()
        monkeypatch.setenv("XMODAL_FETCH", "always")
        assert fetching.why_not() == ""
        with fetching.doing("use"), fetching.doing("fit"):
            assert "used as it is" in fetching.why_not()
    monkeypatch.setenv("XMODAL_FETCH", "alway")
    with pytest.raises(UsageError, match="did you mean 'always'"):
        fetching.policy()


def test_weights_of_a_hub_are_not_fetched_either(monkeypatch: pytest.MonkeyPatch) -> None:
    from xmodal_backbones import weights

    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    monkeypatch.setenv("XMODAL_FETCH", "never")
    with pytest.raises(DataError) as caught:
        weights.resolve("nobody/has-this-model")
    assert "is not fetched: XMODAL_FETCH is 'never'" in str(caught.value)
    assert "set the path of a local folder" in str(caught.value)
