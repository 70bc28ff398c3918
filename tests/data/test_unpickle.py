"""Pickles of arrays, read without running code, with the values left in the file."""

from __future__ import annotations

import mmap
import os
import pickle
import struct
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
