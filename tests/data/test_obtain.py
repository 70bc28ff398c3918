"""Data sets made ready: from the user's files or by a solver, once, and continued when cut off."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal.data.datasets import DataCard, Preparation, RemoteFile
from xmodal.data.mapped import MappedArray
from xmodal.data.obtain import DataOrder, obtain
from xmodal.data.store import Store
from xmodal.errors import DataError, UsageError
from xmodal.files import hashed_again
from xmodal.ready import published

SOLVED = DataCard("waves", "PDEBench", "nobody", "CC0", generable=True)
BY_HAND = DataCard(
    "letters",
    "stand-in",
    "nobody",
    "CC0",
    files=(RemoteFile("x.txt", by_hand="a form on the page of its author"),),
    stand_in="digits",
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


class Solver:
    """Writes one piece a sample into the scratch folder, and then all of them into one array."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at, self.solved = fails_at, 0

    def __call__(self, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        count = wanted.samples or 5
        for n in range(count):
            piece = wanted.scratch / f"{n}.npy"
            if piece.exists():
                continue
            if n == self.fails_at:
                raise KeyboardInterrupt
            np.save(piece, np.full(4, float(n)))
            self.solved += 1
        pieces = [np.load(wanted.scratch / f"{n}.npy") for n in range(count)]
        np.save(folder / "x.npy", np.stack(pieces))
        return {"samples": count}


def _copy(wanted: Preparation, folder: Path) -> Mapping[str, Any]:
    (folder / "copy.txt").write_bytes(wanted.files["x.txt"].read_bytes())
    return {}


def test_an_interrupted_generation_continues(store: Store) -> None:
    order = DataOrder(generate=True)
    with pytest.raises(KeyboardInterrupt):
        obtain(store, SOLVED, Solver(fails_at=3), order)
    assert store.dataset(SOLVED) is None
    rest = Solver()
    folder, made = obtain(store, SOLVED, rest, order)
    assert (made, rest.solved) == (True, 2)
    assert np.load(folder / "x.npy", mmap_mode="r")[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert not (store.root / "unfinished" / "waves").exists()
    assert json.loads((folder / "dataset.json").read_text())["samples"] == 5
    again = Solver()
    assert obtain(store, SOLVED, again, order) == (folder, False)
    assert again.solved == 0


def test_pieces_of_another_request_are_not_used(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        obtain(store, SOLVED, Solver(fails_at=3), DataOrder(generate=True, resolution=8))
    other = Solver()
    obtain(store, SOLVED, other, DataOrder(generate=True, resolution=16))
    assert other.solved == 5


def test_a_set_that_was_made_otherwise_is_not_taken_for_the_wanted_one(store: Store) -> None:
    folder, _ = obtain(store, SOLVED, Solver(), DataOrder(generate=True, samples=2))
    for order, asked in (
        (DataOrder(generate=True, samples=3), "generated, samples 3"),
        (DataOrder(generate=True, samples=2, resolution=9), "generated, samples 2, resolution 9"),
        (DataOrder(generate=True), "generated, as published"),
    ):
        with pytest.raises(UsageError) as caught:
            obtain(store, SOLVED, Solver(), order)
        assert str(caught.value) == (
            f"'waves' is ready, but made otherwise (generated, samples 2): {folder}\n"
            f"--again replaces it by what you ask for now ({asked})"
        )
    assert len(np.load(folder / "x.npy")) == 2
    assert obtain(store, SOLVED, Solver(), DataOrder(generate=True, samples=2)) == (folder, False)
    obtain(store, SOLVED, Solver(), DataOrder(generate=True, samples=3, again=True))
    assert len(np.load(folder / "x.npy")) == 3


def test_published_and_generated_are_told_apart(store: Store, tmp_path: Path) -> None:
    """The published files are what one generates 'as published'; the converse is not true."""
    card = DataCard("both", "toys", "", "", files=(RemoteFile("x.txt"),), generable=True)
    (tmp_path / "x.txt").write_bytes(b"published")

    def either(wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        content = b"generated" if wanted.generate else wanted.files["x.txt"].read_bytes()
        (folder / "copy.txt").write_bytes(content)
        return {}

    solve, fetch = DataOrder(generate=True), DataOrder(folder=tmp_path)
    folder, _ = obtain(store, card, either, solve)
    with pytest.raises(UsageError, match=r"\(generated, as published\)(.|\n)*from the published f"):
        obtain(store, card, either, fetch)
    obtain(store, card, either, replace(fetch, again=True))
    assert obtain(store, card, either, solve) == (folder, False)
    assert (folder / "copy.txt").read_bytes() == b"published"
    with pytest.raises(UsageError, match=r"\(from the published files\)(.|\n)*samples 3"):
        obtain(store, card, either, DataOrder(generate=True, samples=3))


def test_what_no_solver_makes_is_not_generated(store: Store) -> None:
    with pytest.raises(UsageError, match="'letters' cannot be generated"):
        obtain(store, BY_HAND, _copy, DataOrder(generate=True))


def test_files_of_the_user_are_read_where_they_lie(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "Downloads" / "deep" / "x.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("content")
    before = mine.stat().st_mtime_ns
    folder, _ = obtain(store, BY_HAND, _copy, DataOrder(folder=tmp_path / "Downloads"))
    assert (folder / "copy.txt").read_text() == "content"
    assert (mine.read_text(), mine.stat().st_mtime_ns) == ("content", before)


def test_files_that_only_a_person_can_get(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        obtain(store, BY_HAND, _copy, DataOrder())
    message = str(caught.value)
    assert "x.txt: a form on the page of its author" in message
    assert "xmodal data fetch letters --from FOLDER" in message
    assert "--task digits" in message
    with pytest.raises(DataError, match=r"--from .* holds no file of 'letters'"):
        obtain(store, BY_HAND, _copy, DataOrder(folder=tmp_path))


def test_a_file_without_a_published_checksum_must_stay_what_it_was(
    store: Store, tmp_path: Path
) -> None:
    mine = tmp_path / "mine" / "x.txt"
    mine.parent.mkdir()
    mine.write_text("first")
    obtain(store, BY_HAND, _copy, DataOrder(folder=mine.parent))
    mine.write_text("other")
    order = DataOrder(folder=mine.parent, again=True)
    with pytest.raises(DataError, match=r"its SHA256 is .*(.|\n)*remove 'x\.txt' from that file"):
        obtain(store, BY_HAND, _copy, order)
    (store.root / "checksums" / "letters.json").unlink()
    obtain(store, BY_HAND, _copy, order)
    assert (store.root / "datasets/letters/copy.txt").read_text() == "other"


def test_a_damaged_set_says_so_and_is_made_again(store: Store) -> None:
    folder, _ = obtain(store, SOLVED, Solver(), DataOrder(generate=True))
    digest = store.dataset_digest(SOLVED)
    content = bytearray((folder / "x.npy").read_bytes())
    content[-1] ^= 1
    (folder / "x.npy").write_bytes(content)
    assert store.dataset(SOLVED) == folder  # the size is what it was
    with hashed_again(), pytest.raises(DataError, match="is damaged"):
        store.dataset(SOLVED)
    (folder / "x.npy").write_bytes(content[:-8])
    with pytest.raises(DataError, match=r"x\.npy is not(.|\n)*xmodal data generate waves --again"):
        store.dataset(SOLVED)
    obtain(store, SOLVED, Solver(), DataOrder(generate=True))
    with hashed_again():
        assert store.dataset_digest(SOLVED) == digest


def test_what_is_generated_out_of_other_data(store: Store, tmp_path: Path) -> None:
    made_of = DataCard("sphere", "toys", "nobody", "CC0", generable_from="an .npy of images")

    def project(wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        np.save(folder / "x.npy", 2 * np.load(wanted.files["images"]))
        return {}

    with pytest.raises(UsageError, match=r"out of an \.npy of images; --from PATH"):
        obtain(store, made_of, project, DataOrder(generate=True))
    with pytest.raises(DataError, match="no such file or folder"):
        obtain(store, made_of, project, DataOrder(generate=True, folder=tmp_path / "no.npy"))
    with pytest.raises(UsageError, match="out of nothing else; leave out --from"):
        obtain(store, SOLVED, Solver(), DataOrder(generate=True, folder=tmp_path))
    for name, value in (("a.npy", 1.0), ("b.npy", 2.0)):
        np.save(tmp_path / name, np.full(3, value))
    a = DataOrder(generate=True, folder=tmp_path / "a.npy")
    folder, _ = obtain(store, made_of, project, a)
    assert np.load(folder / "x.npy").tolist() == [2, 2, 2]
    assert obtain(store, made_of, project, a) == (folder, False)
    b = DataOrder(generate=True, folder=tmp_path / "b.npy")
    with pytest.raises(UsageError, match=r"made otherwise \(generated, out of other data\)"):
        obtain(store, made_of, project, b)


def test_a_set_that_is_replaced_in_use_is_not_mixed(store: Store) -> None:
    folder, _ = obtain(store, SOLVED, Solver(), DataOrder(generate=True, samples=3))
    digest, reader = store.dataset_digest(SOLVED), MappedArray(folder / "x.npy")
    worker = pickle.dumps(reader)  # what a process that reads samples is given
    obtain(store, SOLVED, Solver(), DataOrder(generate=True, samples=4, again=True))
    assert len(reader.array) == 3  # what was opened stays what it was
    with pytest.raises(DataError, match="was replaced while it is in use"):
        _ = pickle.loads(worker).array
    assert store.dataset_digest(SOLVED) != digest
    again = MappedArray(folder / "x.npy")
    assert len(pickle.loads(pickle.dumps(again)).array) == 4


def test_an_unpacked_folder_of_the_user_makes_up_for_the_archive(
    store: Store, tmp_path: Path
) -> None:
    archive = RemoteFile("all.tar", ("http://127.0.0.1:9/all.tar",))
    frames = DataCard("frames", "toys", "", "", files=(archive, RemoteFile("frames", aside=True)))
    (tmp_path / "have" / "frames").mkdir(parents=True)
    (tmp_path / "have" / "frames" / "1.npy").write_bytes(b"1")

    def listed(wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        return {"names": [path.name for path in wanted.files["frames"].iterdir()]}

    folder, _ = obtain(store, frames, listed, DataOrder(folder=tmp_path / "have"))
    assert json.loads((folder / "dataset.json").read_text())["names"] == ["1.npy"]


def test_a_wrong_file_is_not_remembered_as_the_right_one(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "x.txt"
    mine.parent.mkdir()
    mine.write_text("<html>no such page</html>")

    def checked(wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        if wanted.files["x.txt"].read_text() != "letters":
            raise DataError("not letters")
        return _copy(wanted, folder)

    with pytest.raises(DataError, match="not letters"):
        obtain(store, BY_HAND, checked, DataOrder(folder=mine.parent))
    mine.write_text("letters")
    folder, made = obtain(store, BY_HAND, checked, DataOrder(folder=mine.parent))
    assert made
    assert (folder / "copy.txt").read_text() == "letters"
    assert json.loads((store.root / "checksums/letters.json").read_text())["x.txt"]["size"] == 7


@pytest.mark.parametrize("place", ["datasets/letters", "unfinished/letters"])
def test_what_a_user_keeps_in_the_cache_is_never_deleted(store: Store, place: str) -> None:
    mine = store.root / place / "x.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("first")
    for order in (DataOrder(folder=mine.parent), DataOrder(folder=mine.parent, again=True)):
        with pytest.raises(DataError, match=r"would be replaced, but holds .*: x\.txt"):
            obtain(store, BY_HAND, _copy, order)
        assert mine.read_text() == "first"
    moved = store.root / "downloads" / "letters" / "x.txt"
    moved.parent.mkdir(parents=True)
    mine.rename(moved)
    folder, _ = obtain(store, BY_HAND, _copy, DataOrder())
    assert (folder / "copy.txt").read_text() == "first"
    added = folder / "notes.txt"  # beside what was made: it is kept from --again, too
    added.write_text("mine")
    with pytest.raises(DataError, match=r"would be replaced, but holds .*: notes\.txt"):
        obtain(store, BY_HAND, _copy, DataOrder(again=True))
    assert added.read_text() == "mine"


def test_a_folder_is_not_taken_for_a_file_of_the_same_name(store: Store, tmp_path: Path) -> None:
    known = RemoteFile("train", md5="0" * 32, aside=True)
    card = DataCard("letters", "toys", "", "", files=(*BY_HAND.files, known))
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "x.txt").write_text("content")
    folder, _ = obtain(store, card, _copy, DataOrder(folder=tmp_path))
    assert (folder / "copy.txt").read_text() == "content"
    assert published(tmp_path, card) == {"x.txt": tmp_path / "x.txt"}


def test_files_that_differ_are_not_mixed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("same")
    assert published(tmp_path, BY_HAND) == {"x.txt": tmp_path / "a" / "x.txt"}
    (tmp_path / "b" / "x.txt").write_text("other")
    with pytest.raises(DataError, match=r"two files x\.txt, and they differ"):
        published(tmp_path, BY_HAND)
    (tmp_path / "x.txt").write_text("third")
    assert published(tmp_path, BY_HAND) == {"x.txt": tmp_path / "x.txt"}


def test_an_interruption_leaves_a_file_that_may_have_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = RemoteFile("about.json", ("http://127.0.0.1:9/about.json",), lasting=False)
    place = store.root / "downloads" / "table" / "about.json"
    place.parent.mkdir(parents=True)
    place.write_text("{}")

    def interrupted(*_: Any, **__: Any) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        obtain(store, DataCard("table", "toys", "", "", files=(about,)), _copy, DataOrder())
    assert place.read_text() == "{}"


def test_files_of_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    card = DataCard(
        "letters", "toys", "", "", files=(RemoteFile("train/x.txt"), RemoteFile("test/x.txt"))
    )
    for part in ("train", "test"):
        (tmp_path / "deep" / part).mkdir(parents=True)
        (tmp_path / "deep" / part / "x.txt").write_text(part)
    found = published(tmp_path, card)
    assert {name: path.read_text() for name, path in found.items()} == {
        "train/x.txt": "train",
        "test/x.txt": "test",
    }
