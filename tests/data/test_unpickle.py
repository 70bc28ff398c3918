"""Pickles of arrays, read without running code, with the values left in the file."""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal.data.unpickle import read_npy, read_pickle
from xmodal.errors import DataError

RNG = np.random.default_rng(0)
CONTENT: dict[str, Any] = {
    "large": RNG.normal(size=(50, 60)),
    "columns first": np.asfortranarray(RNG.normal(size=(70, 90)).astype(">f4")),
    "small": np.arange(5, dtype=np.int16),
    "bytes": RNG.integers(0, 255, (3, 32, 32, 8), dtype=np.uint8),
    "list": [RNG.normal(size=3000), ("a", RNG.normal(size=2500))],
    "number": np.float32(0.5),
}
RECORDS = np.empty(4, dtype=object)
RECORDS[:] = [RNG.integers(-9, 9, n).astype(np.int16) for n in (9000, 20, 12000, 8500)]


def same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key, value in wanted.items():
            same(found[key], value)
    elif isinstance(wanted, list | tuple) or (
        isinstance(wanted, np.ndarray) and wanted.dtype == object
    ):
        assert type(found) is type(wanted)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
    else:
        np.testing.assert_array_equal(found, wanted)
        assert np.asarray(found).dtype.newbyteorder("=") == np.asarray(wanted).dtype.newbyteorder(
            "="
        )


def in_file(array: Any) -> bool:
    """Whether the values of an array are those of a mapped file."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, memoryview) and isinstance(array.obj, mmap.mmap)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(tmp_path: Path, protocol: int, mapped: bool) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(CONTENT | {"records": RECORDS}, protocol))
    found = read_pickle(tmp_path / "x.pkl", mapped)
    same(found, CONTENT | {"records": RECORDS})
    large = (found["large"], found["bytes"], found["columns first"], found["records"][2])
    # Protocol 2 of Python 3 has no bytes, so it writes them as text.
    assert all(map(in_file, large)) == (mapped and protocol > 2)


def test_a_file_that_python_2_wrote(tmp_path: Path) -> None:
    """As ``pickle.dump({"data": array}, file, 2)`` wrote it there: values in BINSTRING."""
    array = RNG.integers(0, 255, (20, 3072), dtype=np.uint8)
    raw = array.tobytes()
    content = b"\x80\x02}U\x04data"
    content += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    content += b"(K\x01K\x14M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    content += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content += b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tbs."
    (tmp_path / "x.pkl").write_bytes(content)
    for mapped in (False, True):
        found = read_pickle(tmp_path / "x.pkl", mapped)
        same(found, {"data": array})
        assert in_file(found["data"]) == mapped


@pytest.mark.parametrize("mapped", [False, True])
def test_npy_files(tmp_path: Path, mapped: bool) -> None:
    satellite = {"data": RNG.normal(size=(300, 46)), "label": RNG.integers(1, 25, 300)}
    for name, value in (("dict", satellite), ("records", RECORDS), ("plain", CONTENT["large"])):
        np.save(tmp_path / f"{name}.npy", np.asarray(value), allow_pickle=True)
    found = read_npy(tmp_path / "dict.npy", mapped).item()
    same(found, satellite)
    assert in_file(found["data"]) == mapped
    same(read_npy(tmp_path / "records.npy", mapped), RECORDS)
    same(read_npy(tmp_path / "plain.npy", mapped), CONTENT["large"])


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_refused(tmp_path: Path, mapped: bool) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"data": Harmful()}))
    with pytest.raises(DataError, match="refuses to run code from data files: it asks for"):
        read_pickle(tmp_path / "x.pkl", mapped)
    whole = pickle.dumps(CONTENT)
    for size in (0, 10, 3000, len(whole) - 3):
        (tmp_path / "x.pkl").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"x\.pkl: damaged pickle"):
            read_pickle(tmp_path / "x.pkl", mapped)
    with pytest.raises(DataError, match=r"none\.pkl: No such file"):
        read_pickle(tmp_path / "none.pkl", mapped)


HUGE = 10**11
GLOBALS = b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n"
ARRAY, DTYPE, RECONSTRUCT = GLOBALS
NO_SIZE = b"J\xff\xff\xff\xff"
OBJECTS = DTYPE + b"U\x02O8K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * NO_SIZE + b"K?tb"
NUMBER = b"\x8a\x06" + HUGE.to_bytes(6, "little")
ASKS: dict[str, bytes] = {
    "an array by its class": ARRAY + NUMBER + b"\x85\x85R.",
    "an empty array": RECONSTRUCT + b"(" + ARRAY + NUMBER + b"\x85U\x01bt" + b"R.",
    "objects": RECONSTRUCT
    + b"(" + ARRAY + b"K\x00\x85U\x01btR(K\x01" + NUMBER + b"\x85" + OBJECTS + b"\x89]K\x01atb.",
    "a string": b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"x.",
    "a byte array": b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b"x.",
    "a text": b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b"x.",
    "a number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "a frame": b"\x80\x04\x95" + struct.pack("<Q", HUGE) + b"K\x01.",
    "a place in the memo": b"\x80\x02K\x01r" + struct.pack("<I", 2**32 - 1) + b"0K\x02.",
    "one value of a large type": b"cnumpy.core.multiarray\nscalar\n"
    + DTYPE + b"VV2000000000\n" + b"K\x00K\x01\x87RU\x01x\x86R.",
}  # fmt: skip


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("what", ASKS)
def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path, what: str, mapped: bool) -> None:
    file = tmp_path / "x.pkl"
    file.write_bytes(ASKS[what])
    read_pickle(_warm(tmp_path), mapped)
    tracemalloc.start()
    try:
        if what in ("a place in the memo", "an empty array"):  # harmless: nothing is allocated
            read_pickle(file, mapped)
        else:
            with pytest.raises(DataError, match=r"x\.pkl"):
                read_pickle(file, mapped)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def _warm(folder: Path) -> Path:
    (folder / "warm.pkl").write_bytes(pickle.dumps(CONTENT))
    return folder / "warm.pkl"


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(np.zeros(2**17), 4),
        b"\x80\x02" + b"]" * 2**15 + b"0" * (2**15 - 1) + b".",
        # One text of 64 kB in the memo, which is turned into bytes forty times.
        b"\x80\x02X" + struct.pack("<I", 2**16) + b"a" * 2**16 + b"q\x000"
        + b"".join(b"c_codecs\nencode\nh\x00U\x06latin1\x86R" for _ in range(40)) + b".",
        # A text that takes four bytes a letter, for one letter that needs them.
        pickle.dumps("a" * 2**19 + "\U0001f600", 2),
        b"V" + b"a" * 2**20 + b"\n.",
    ],
    ids=["an array", "many lists", "copies", "wide letters", "a line"],
)  # fmt: skip
def test_what_exceeds_the_limit_is_refused(tmp_path: Path, content: bytes, mapped: bool) -> None:
    file = tmp_path / "x.pkl"
    file.write_bytes(content)
    if not (mapped and len(content) > 2**20 and content[-1:] == b"." and b"numpy" in content):
        with pytest.raises(DataError, match=r"would take more than 1\.05 MB of memory"):
            read_pickle(file, mapped, limit=2**20)
    read_pickle(file, mapped, limit=2**24)


def test_headers_of_npy_files_cannot_ask_for_more_than_there_is(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.zeros(4))
    file.write_bytes(file.read_bytes().replace(b"(4,)", b"(4000000000000,)"))
    for mapped in (False, True):
        with pytest.raises(DataError, match="it ends within the array"):
            read_npy(file, mapped)
    np.save(file, np.zeros(4))
    with pytest.raises(DataError, match=r"would take more than 31\.0 B|more than 31 B"):
        read_npy(file, limit=31)
    assert read_npy(file, mapped=True, limit=31).sum() == 0


def test_no_state_is_given_to_the_reader_itself(tmp_path: Path) -> None:
    """A slot state would set attributes of our own functions."""
    (tmp_path / "x.pkl").write_bytes(b"c_codecs\nencode\nN}U\x07__doc__U\x01xs\x86b.")
    with pytest.raises(DataError, match="it gives a method a state"):
        read_pickle(tmp_path / "x.pkl")


def test_tuples_that_share_parts_are_read_in_no_time(tmp_path: Path) -> None:
    """Each of sixty tuples holds the one before it twice."""
    content = b"\x80\x02K\x01q\x00" + b"".join(b"2\x86q\x00" for _ in range(60)) + b"."
    (tmp_path / "x.pkl").write_bytes(content)
    found, depth = read_pickle(tmp_path / "x.pkl"), 0
    while isinstance(found, tuple):
        assert found[0] is found[1]
        found, depth = found[0], depth + 1
    assert (found, depth) == (1, 60)


STATES = {
    "flags": "(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb",
    "names that are no names": "(K\x03U\x01|NK\x07NJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb",
    "fields": "(K\x03U\x01|U\x01aU\x01bNK\x04K\x01K\x00tb",
    "nothing": ")b",
    "a number": "K\x01b",
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_damaged_type_of_numbers_crashes_nothing(tmp_path: Path, state: str) -> None:
    # NumPy's own dtype.__setstate__ ends the process for some of these.
    kind = b"\x80\x02cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R" + state.encode("latin1")
    path = tmp_path / "x.pkl"
    path.write_bytes(kind + b".")
    if state == STATES["flags"]:
        assert read_pickle(path) == np.dtype(object)
        return
    with pytest.raises(DataError):
        read_pickle(path)


def test_one_order_of_bytes_for_all_arrays_of_a_type(tmp_path: Path) -> None:
    kind = np.dtype(">f8")  # shared: its order comes once, for both
    wanted = [np.arange(3, dtype=kind), np.arange(4, dtype=kind)[::-1].copy(), np.zeros((0, 2))]
    for protocol in range(6):
        path = tmp_path / "x.pkl"
        path.write_bytes(pickle.dumps(wanted, protocol))
        for found, array in zip(read_pickle(path), wanted, strict=True):
            np.testing.assert_array_equal(found, array)
            assert found.dtype == array.dtype
