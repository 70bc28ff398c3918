"""Files of arrays: the same values from every file, and one message for every file that lies."""

from __future__ import annotations

import os
import pickle
import re
import resource
import socket
import struct
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from xmodal.data import lengths
from xmodal.data import rows as rows_module
from xmodal.data.arrays import open_container, row_labels
from xmodal.errors import DataError

from .array_files import (
    LENGTHS,
    UNEQUAL,
    X,
    Y,
    cells,
    flipped,
    h5,
    header,
    marked,
    mat5,
    mat73,
    matlab,
    matlab_cells,
    matlab_text,
    npy,
    npy_bytes,
    npz,
    pack,
    packed,
)

Fill = Callable[[Any], Any]
TEXT = [f"class {label}" for label in Y]


def both(file: Any) -> None:
    file["x"], file["y"] = X, Y


def values(path: Path, key: str = "x", axis: Any = "first") -> Any:
    """All rows, read as a slice, and again as indices in another order."""
    rows = open_container(path, axis).get(key, "x:")
    whole, back = rows.read(slice(None)), rows.read(np.arange(rows.shape[0])[::-1])
    assert whole.shape == rows.shape
    np.testing.assert_array_equal(whole[::-1], back)
    assert pickle.loads(pickle.dumps(rows)).read(slice(1, 3)).tolist() == whole[1:3].tolist()
    return whole


def virtual(folder: Path) -> Path:
    h5(folder, lambda f: f.__setitem__("v", X), "source.h5")
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource("source.h5", "v", X.shape)
    return h5(folder, lambda f: f.create_virtual_dataset("x", layout))


def virtual_of_external(folder: Path) -> Path:
    external(folder).rename(folder / "inner.h5")
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource("inner.h5", "x", X.shape)
    return h5(folder, lambda f: f.create_virtual_dataset("x", layout))


def external(folder: Path) -> Path:
    where = folder / "raw.bin"
    path = h5(folder, lambda f: f.create_dataset(
        "x", X.shape, X.dtype, external=[(b"raw.bin", 0, X.nbytes)]
    ))  # fmt: skip
    where.write_bytes(X.tobytes())
    return path


def linked(folder: Path) -> Path:
    h5(folder, both, "other.h5")

    def fill(file: Any) -> None:
        file["deep/signals"] = X
        file["x"] = h5py.SoftLink("/deep/signals")
        file["far"] = h5py.ExternalLink("other.h5", "/x")
        file["deep/up"] = h5py.SoftLink("/")

    return h5(folder, fill)


def one_a_sample(folder: Path, samples: Any) -> Path:
    (folder / "x").mkdir()
    for row, sample in enumerate(samples):
        np.save(folder / "x" / f"s{row}.npy", sample)
    return folder


@pytest.mark.parametrize(
    "write",
    [
        lambda d: npz(d, x=X),
        lambda d: npz(d, x=X.astype("f8")),
        lambda d: npz(d, x=X.astype(">f4")),
        lambda d: npz(d, x=X.astype(np.longdouble)),
        lambda d: npz(d, x=np.asfortranarray(X)),
        lambda d: packed(d, x=X),
        lambda d: packed(d, x=np.asfortranarray(X)),
        lambda d: pack(d, [("a.txt", b"hello"), ("x.npy", npy_bytes(X))], zipfile.ZIP_LZMA),
        lambda d: pack(d, [("../../x.npy", b""), ("x.npy", npy_bytes(X))], zipfile.ZIP_BZIP2),
        lambda d: npy(d, X),
        lambda d: npy(d, np.asfortranarray(X)),
        lambda d: npy(d, X).parent,
        lambda d: one_a_sample(d, X),
        lambda d: h5(d, both),
        lambda d: h5(d, lambda f: f.create_dataset("x", data=X, chunks=(7, 2, 5), compression=3)),
        lambda d: h5(d, lambda f: f.create_dataset("x", data=X.astype(">f8"))),
        lambda d: h5(d, lambda f: matlab(f, "x", X, "single"), "matlab.h5"),
        virtual,
        external,
        linked,
        lambda d: mat5(d, x=X),
        lambda d: mat5(d, packed=True, x=X),
        lambda d: mat73(d, lambda f: matlab(f, "x", X, "single")),
    ],
)
def test_every_file_gives_the_same_values(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    os.chdir("/")  # the parts of a file are beside it, wherever the user is
    np.testing.assert_array_equal(values(path), X)


@pytest.mark.parametrize(
    "write",
    [
        lambda d, x: npz(d, x=x),
        lambda d, x: npy(d, x),
        lambda d, x: h5(d, lambda f: f.__setitem__("x", x)),
        lambda d, x: mat5(d, x=x),
        lambda d, x: mat73(d, lambda f: matlab(f, "x", x, "single")),
    ],
)
def test_samples_may_be_on_the_last_axis(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path, np.moveaxis(X, 0, -1))
    np.testing.assert_array_equal(values(path, axis="last"), X)


@pytest.mark.parametrize(
    ("write", "right"),
    [
        (lambda d: npz(d, y=np.array(TEXT, "S")), TEXT),
        (lambda d: h5(d, lambda f: f.__setitem__("y", TEXT)), TEXT),
        (lambda d: h5(d, lambda f: f.__setitem__("y", np.array(TEXT, "S"))), TEXT),
        (lambda d: mat5(d, y=np.array(TEXT)), TEXT),
        (lambda d: mat5(d, y=cells(TEXT)), TEXT),
        (lambda d: mat5(d, y=cells(TEXT).T), TEXT),
        (
            lambda d: mat73(
                d, lambda f: matlab_cells(f, "y", [(matlab_text(t), "char") for t in TEXT])
            ),
            TEXT,
        ),
        (
            lambda d: mat73(
                d, lambda f: matlab(f, "y", np.concatenate([*map(matlab_text, TEXT)]), "char")
            ),
            TEXT,
        ),
        (lambda d: mat5(d, y=(Y > 1)[:, None]), (Y > 1).tolist()),
        (
            lambda d: mat73(d, lambda f: matlab(f, "y", (Y > 1)[:, None], "logical")),
            (Y > 1).tolist(),
        ),
        (lambda d: mat73(d, lambda f: matlab(f, "y", Y[None])), Y.tolist()),
        (lambda d: npz(d, y=Y[None]), Y.tolist()),
        (lambda d: npz(d, y=Y[:, None, None]), Y.tolist()),
        (lambda d: npz(d, y=Y.astype(">u8")), Y.tolist()),
        (
            lambda d: h5(
                d,
                lambda f: f.create_dataset("y", data=Y, dtype=h5py.enum_dtype({"a": 0, "c": 2})),
            ),
            Y.tolist(),
        ),
    ],
)
def test_labels(tmp_path: Path, write: Callable[[Path], Path], right: list[Any]) -> None:
    rows = row_labels(open_container(write(tmp_path)).get("y", "y:"), 24)
    found = rows.read(slice(None))
    assert np.ravel(found).tolist() == right
    assert len(found) == 24
    assert found.dtype.kind == np.array(right).dtype.kind or found.dtype.kind in "iuf"


def test_sparse_matrices_of_matlab_are_filled_up(tmp_path: Path) -> None:
    dense = np.where(X[:, 0] > 9, X[:, 0], 0).astype(np.float64)
    sparse = scipy.sparse.csc_matrix(dense)
    np.testing.assert_array_equal(values(mat5(tmp_path, x=sparse)), dense)

    def fill(file: Any) -> None:
        group = file.create_group("x")
        group.attrs["MATLAB_sparse"], group.attrs["MATLAB_class"] = 24, np.bytes_("double")
        group["data"], group["ir"], group["jc"] = sparse.data, sparse.indices, sparse.indptr

    path = mat73(tmp_path, fill)
    np.testing.assert_array_equal(values(path), dense)
    np.testing.assert_array_equal(values(path, axis="last"), dense.T)


# --- unequal lengths ------------------------------------------------------------------------------


def vlen(folder: Path) -> Path:
    return h5(folder, lambda f: f.create_dataset(
        "x", data=np.array(UNEQUAL, object), dtype=h5py.vlen_dtype(np.float32)
    ))  # fmt: skip


UNEQUAL_FILES = [
    vlen,
    lambda d: one_a_sample(d, UNEQUAL),
    lambda d: mat5(d, x=cells([sample[None] for sample in UNEQUAL])),
    lambda d: mat5(d, x=cells([sample[:, None] for sample in UNEQUAL])),
    lambda d: mat73(d, lambda f: matlab_cells(f, "x", [(s[None], "single") for s in UNEQUAL])),
]


@pytest.mark.parametrize("write", UNEQUAL_FILES)
def test_samples_of_unequal_lengths(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    rows = open_container(write(tmp_path)).get("x", "x:")
    assert lengths.is_unequal(rows)
    found = lengths.measure([(rows, "x")])
    assert (found.axis, found.shortest, found.longest) == (0, 3, 7)
    padded = lengths.even(rows, "x", (7,), 0)
    for row, sample in enumerate(padded.read(slice(None))):
        np.testing.assert_array_equal(sample[: LENGTHS[row]], UNEQUAL[row])
        assert np.isnan(sample[LENGTHS[row] :]).all()
    np.testing.assert_array_equal(
        lengths.even(rows, "x", (3,), 0).read(np.array([5, 0])), [UNEQUAL[5][:3], UNEQUAL[0][:3]]
    )


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([np.ones((2, 3)), np.ones((4, 5))], r"more than axis 0: row 0 is \(2, 3\), row 1 "),
        ([np.ones(3), np.ones((4, 5))], r"has 2 axes"),
        ([np.ones(3), np.zeros(0)], r"row 1 is empty"),
        ([np.ones(3), np.array(["a", "b"])], r"holds <U1, not numbers|holds text"),
        ([np.ones(3), np.array([1, np.nan])], r"NaN or infinite values; first: row 1"),
    ],
)
def test_what_cannot_get_one_length(tmp_path: Path, samples: list[Any], message: str) -> None:
    rows = open_container(one_a_sample(tmp_path, samples))

    def read() -> Any:
        x = rows.get("x", "x:")
        return lengths.even(x, "x", lengths.measure([(x, "x")]).shape, 0).read(slice(None))

    with pytest.raises(DataError, match=message):
        read()


def test_padding_is_nan_at_the_end_of_all_channels() -> None:
    x = np.ones((5, 2, 4))
    x[1, :, 2:] = np.nan
    x[2, 0, 3] = np.nan
    x[3, :, 1] = np.nan
    x[4] = np.nan
    assert lengths.wrong_padding(x, 1).tolist() == [False, False, True, True, True]


# --- files that lie -------------------------------------------------------------------------------


def lying(shape: tuple[Any, ...], method: int = zipfile.ZIP_STORED) -> Callable[[Path], Path]:
    return lambda d: pack(d, [("x.npy", header(shape) + X.tobytes())], method)


def bytes_npy(content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "x.npy").write_bytes(content)
        return folder / "x.npy"

    return write


def twice(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pack(folder, [("x.npy", npy_bytes(X)), ("x.npy", npy_bytes(X + 1))])


def missing(write: Callable[[Path], Path], name: str, size: int | None) -> Callable[[Path], Path]:
    def damaged(folder: Path) -> Path:
        path = write(folder)
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        if size is not None:
            (folder / name).write_bytes(content[:size])
        return path

    return damaged


def other_key(folder: Path) -> Path:
    path = virtual(folder)
    with h5py.File(folder / "source.h5", "r+") as file:
        file.move("v", "w")
    return path


def unknown_filter(folder: Path) -> Path:
    path = h5(folder, lambda f: f.create_dataset("x", data=X, compression="lzf"))
    content = path.read_bytes()
    at = content.rfind(struct.pack("<H", 32000), 0, content.find(b"lzf"))
    path.write_bytes(content[:at] + struct.pack("<H", 32017) + content[at + 2 :])
    return path


def struct73(file: Any) -> None:
    group = file.create_group("x")
    group.attrs["MATLAB_class"] = np.bytes_("struct")
    matlab(group, "a", X)
    matlab(group, "b", X)


RECORDS = np.zeros(24, [("age", "f4"), ("size", "i4")])
LONG = np.arange(60_000, dtype=np.float32)
OBJECTS = header((999_999_999,), "|O") + pickle.dumps(1)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lying((24, 3, 660_000_000)), r"d\.npz: 'x' is damaged or cut off: .* 190,080,000,000 byt"),
        (lying((24, 3, 660_000_000), zipfile.ZIP_DEFLATED), r"'x' is damaged .* file holds 2,880 "),
        (lying((24, -3, 10)), r"'x' is damaged: its header says shape \(24, -3, 10\)"),
        (lying((2**62, 2**62)), r"'x' is damaged or cut off"),
        (lying((True, 720)), r"'x' is damaged: its header says shape"),
        (lying((720, *(1,) * 70)), r"'x' is damaged: its header says shape"),
        (bytes_npy(header((24, 3, 660_000_000)) + X.tobytes()), r"x\.npy: 'x' is damaged or cut"),
        (bytes_npy(header((24, -3, 10)) + X.tobytes()), r"x\.npy: 'x' is damaged"),
        (bytes_npy(npy_bytes(X)[:900]), r"x\.npy: 'x' is damaged or cut off"),
        (bytes_npy(npy_bytes(X) * 2), r"holds more than its header says, .* save them one by one"),
        (bytes_npy(OBJECTS), r"x\.npy: 'x' holds Python objects \(pickle\), which are never read"),
        (lambda d: pack(d, [("x.npy", OBJECTS)]), r"'x' holds Python objects \(pickle\)"),
        (bytes_npy(b"\x93NUMPY\x01\x00\x84\x03" + b"(" * 900), r"x\.npy: cannot be read as \.npy"),
        (bytes_npy(b"\x93NUMPY\x09\x00" + npy_bytes(X)[8:]), r"unknown version \(9, 0\)"),
        (bytes_npy(b"PK\x03\x04" + bytes(99)), r"x\.npy: cannot be read as \.npy"),
        (lambda d: flipped(npz(d, x=LONG), 99_999), r"'x' is damaged: its checksum \(CRC\) is wr"),
        (lambda d: flipped(packed(d, x=LONG), 29_999), r"d\.npz: 'x': cannot be read: .*"),
        (lambda d: flipped(npz(d, x=X), 1000), r"d\.npz: 'x\.npy': cannot be read: Bad CRC-32"),
        (lambda d: marked(npz(d, x=X), (6, 8), 1), r"'x\.npy': cannot be read: .*encrypted"),
        (lambda d: marked(npz(d, x=X), (8, 10), 97), r"d\.npz: .*compression method"),
        (twice, r"d\.npz: there are 2 arrays 'x' in it"),
        (lambda d: pack(d, [("x", npy_bytes(X)), ("x.npy", npy_bytes(X))]), r"there are 2 arrays"),
        (lambda d: npz(d, x=RECORDS), r"'x' holds records with the fields age, size; save each"),
        (lambda d: npz(d, x=X.astype("c8")), r"'x' holds complex numbers; save .* two channels"),
        (lambda d: npz(d, x=X.astype("i8").astype("M8[s]")), r"'x' holds dates; save them as numb"),
        (lambda d: npz(d, x=np.array([b"a", b"\xe9"])), r"'x' row 1: b'\\xe9' is not UTF-8 text"),
        (lambda d: npz(d, x=np.array(3.0)), r"'x' has no samples, shape \(\)"),
        (lambda d: h5(d, lambda f: f.__setitem__("x", h5py.Empty("f4"))), r"'x' has no samples"),
        (lambda d: h5(d, lambda f: f.__setitem__("x", RECORDS)), r"records with the fields age, s"),
        (lambda d: h5(d, lambda f: f.create_dataset("x", (24,), h5py.ref_dtype)), r"holds ref"),
        (lambda d: h5(d, lambda f: f.__setitem__("x", h5py.SoftLink("/no"))), r"it links to '/no'"),
        (
            lambda d: h5(d, lambda f: f.__setitem__("x", h5py.ExternalLink("no.h5", "/x"))),
            r"'x' cannot be read: it links to '/x' in no\.h5",
        ),
        (
            lambda d: h5(
                d, lambda f: f.create_dataset("x", (9, 3, 88_000_000), "f4", chunks=(1, 1, 999))
            ),
            r"'x' \(9, 3, 88000000\) was declared, but nothing was written into it",
        ),
        (missing(virtual, "source.h5", None), r"'x' draws on .*source\.h5, and there is no such"),
        (missing(virtual_of_external, "raw.bin", None), r"inner\.h5: 'x' draws on .*raw\.bin, and"),
        (other_key, r"'x' draws on 'v' in .*source\.h5, and there is no such array"),
        (missing(external, "raw.bin", None), r"'x' draws on .*raw\.bin, and there is no such file"),
        (missing(external, "raw.bin", 99), r"raw\.bin is cut off: it should hold 2880 bytes"),
        (unknown_filter, r"'x' is packed with filter 32017 \(lzf\), which is not installed"),
        (missing(lambda d: h5(d, both), "d.h5", 2500), r"d\.h5: cannot be read as HDF5"),
        (lambda d: mat5(d, x={"a": X, "b": X}), r"'x' is a struct with the fields a, b; save them"),
        (lambda d: mat73(d, struct73), r"'x' is a struct; name one of its fields: x/a, x/b"),
        (lambda d: mat5(d, x=X * 1j), r"'x' holds complex numbers"),
        (lambda d: mat5(d, x=cells([1.0, "a"])), r"'x' row 1: text and numbers are mixed"),
        (lambda d: mat5(d, x=cells([{"a": 1}])), r"'x' row 0: the cell holds neither text nor"),
        (missing(lambda d: mat5(d, x=X), "d.mat", 900), r"d\.mat: .*cannot be read as \.mat"),
    ],
)  # fmt: skip
def test_files_that_lie_or_are_damaged(
    tmp_path: Path, write: Callable[[Path], Path], message: str
) -> None:
    path = write(tmp_path)
    start = time.monotonic()
    tracemalloc.start()
    with pytest.raises(DataError, match=message) as raised:
        open_container(path).get("x", "x:").read(slice(None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - start < 5
    assert peak < 20_000_000
    assert len(str(raised.value)) < 1000


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    os.chdir(path.parent)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


@pytest.mark.parametrize("name", ["d.npz", "x.npy", "d.h5", "d.mat"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pipe, r"is a pipe \(FIFO\), not a file"),
        (unix_socket, "is a socket, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.symlink_to("no"), "no such file"),
        (lambda path: path.touch(), "the file is empty"),
    ],
)
def test_what_is_no_file_is_never_opened(
    tmp_path: Path, name: str, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match=rf"{re.escape(name)}: {message}"):
        open_container(tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b.npz", "n" * 300 + ".npz", "~nobody-at-all/x.npz"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    path = Path(name) if name[0] == "~" else tmp_path / name
    with pytest.raises(DataError) as raised:
        open_container(path)
    assert "\0" not in str(raised.value)


def test_all_files_that_an_array_draws_on_are_known(tmp_path: Path) -> None:
    """So that a run is another one if any of them changes."""
    found = open_container(virtual_of_external(tmp_path)).files("x")
    assert [file.name for file in found] == ["d.h5", "inner.h5", "raw.bin"]
    (tmp_path / "more").mkdir()
    samples = open_container(one_a_sample(tmp_path / "more", X)).files("x")
    assert [file.name for file in samples] == [f"s{row}.npy" for row in range(24)]


def test_what_is_not_asked_for_does_not_matter(tmp_path: Path) -> None:
    npy(tmp_path, X)
    (tmp_path / "damaged.npy").write_bytes(b"junk")
    pipe(tmp_path / "pipe.npy")
    np.testing.assert_array_equal(values(tmp_path), X)

    def fill(file: Any) -> None:
        both(file)
        file["gone"], file["far"] = h5py.SoftLink("/no"), h5py.ExternalLink("no.h5", "/x")
        file["void"] = h5py.Empty("f4")

    np.testing.assert_array_equal(values(h5(tmp_path, fill)), X)
    with pytest.raises(DataError, match="'z'; it has 'far' a link to nowhere, 'gone' a link"):
        open_container(tmp_path / "d.h5").get("z", "x:")


def test_long_lists_and_names_are_cut_and_shown(tmp_path: Path) -> None:
    many = h5(tmp_path, lambda f: [f.__setitem__(f"group_{i}/s", i) for i in range(400)])
    with pytest.raises(DataError, match=r"it has 'group_0/s' \(\) int64, .* \.\.\. \(400\)") as cut:
        open_container(many).get("x", "x:")
    assert len(str(cut.value)) < 800
    names = [("\x1b[31m" + "k" * 60_000 + ".npy", npy_bytes(X))]
    with pytest.raises(
        DataError, match=r"'\\x1b\[31mkkk.*\(60005 .*\(24, 3, 10\) float32 \("
    ) as shown:
        open_container(pack(tmp_path, names)).get("x", "x:")
    assert len(str(shown.value)) < 800


def test_what_is_packed_too_well_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "LARGE", 1_000_000)
    zeros = np.zeros((20, 10_000))
    for path in (packed(tmp_path, x=zeros), mat5(tmp_path, packed=True, x=zeros)):
        rows = open_container(path)
        with pytest.raises(DataError, match=r"'x' would unpack to 1\.60\d? MB from .* 200 times"):
            rows.get("x", "x:").read(slice(None))
    np.testing.assert_array_equal(values(npz(tmp_path, x=zeros)), zeros)


@pytest.mark.parametrize("write", [packed, npz])
def test_large_arrays_are_read_in_pieces(tmp_path: Path, write: Any) -> None:
    """32 MB are read in less than 4 MB of memory."""
    x = np.resize(np.arange(251, dtype=np.uint8), (2048, 128, 128))
    rows = open_container(write(tmp_path, x=x)).get("x", "x:")
    tracemalloc.start()
    total = sum(int(rows.read(slice(i, i + 64)).sum()) for i in range(0, 2048, 64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == int(x.sum())
    assert peak < 4_000_000


def test_what_does_not_fit_into_memory_is_an_error(tmp_path: Path) -> None:
    rows = open_container(packed(tmp_path, x=np.zeros((40, 200_000)))).get("x", "x:")
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**25, before[1]))
    try:
        with pytest.raises(DataError, match=r"d\.npz: 'x': does not fit into memory"):
            rows.read(np.arange(40))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_row_has_its_number_in_the_file_whatever_is_read_with_it(tmp_path: Path) -> None:
    names = np.array([b"a", b"b", b"c", b"\xe9", b"e"])
    for path in (npz(tmp_path, x=names), h5(tmp_path, lambda f: f.__setitem__("x", names))):
        rows = open_container(path).get("x", "x:")
        assert rows.read(slice(1, 3)).tolist() == ["b", "c"]
        for index in (slice(2, 5), np.array([4, 3])):
            with pytest.raises(DataError, match=r"'x' row 3: b'\\xe9' is not UTF-8 text"):
                rows.read(index)
