"""Writes the same samples and labels in many files, and files that lie about what they hold."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

RANDOM = np.random.default_rng(0)
X = (RANDOM.normal(size=(24, 3, 10)) * 4 + 7).astype(np.float32)
Y = np.arange(24) % 3
LENGTHS = np.arange(24) % 5 + 3
UNEQUAL = [np.arange(1, length + 1, dtype=np.float32) for length in LENGTHS]
Write = Callable[[Path], Path]


def npz(folder: Path, **arrays: Any) -> Path:
    """An ``.npz`` that is not packed."""
    np.savez(folder / "d.npz", **arrays)
    return folder / "d.npz"


def packed(folder: Path, **arrays: Any) -> Path:
    """A packed ``.npz``."""
    np.savez_compressed(folder / "d.npz", **arrays)
    return folder / "d.npz"


def npy(folder: Path, x: Any, y: Any = Y) -> Path:
    """``x.npy`` with ``y.npy`` beside it."""
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return folder / "x.npy"


def h5(folder: Path, fill: Callable[[Any], Any], name: str = "d.h5") -> Path:
    """An HDF5 file that ``fill`` writes into."""
    with h5py.File(folder / name, "w") as file:
        fill(file)
    return folder / name


def mat5(folder: Path, packed: bool = False, **arrays: Any) -> Path:
    """A ``.mat`` file of version 5, as SciPy writes it."""
    scipy.io.savemat(folder / "d.mat", arrays, do_compression=packed)
    return folder / "d.mat"


def mat73(folder: Path, fill: Callable[[Any], Any]) -> Path:
    """A ``.mat`` file of version 7.3: HDF5 behind MATLAB's own header of 512 bytes."""
    path = folder / "d.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        fill(file)
    content = bytearray(path.read_bytes())
    content[:124] = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(124)
    content[124:128] = b"\x00\x02IM"
    path.write_bytes(content)
    return path


def matlab(file: Any, name: str, values: Any, kind: str = "double") -> Any:
    """An array as MATLAB writes it: axes in reverse, and its class as an attribute."""
    data = file.create_dataset(name, data=np.ascontiguousarray(np.asarray(values).T))
    data.attrs["MATLAB_class"] = np.bytes_(kind)
    return data


def matlab_text(line: str) -> Any:
    """A line of text as MATLAB keeps it: 1 x n numbers of 16 bits."""
    return np.frombuffer(line.encode("utf-16-le"), "<u2")[None]


def matlab_cells(file: Any, name: str, items: list[tuple[Any, str]]) -> None:
    """A cell array (n x 1) of values and their classes."""
    group = file.require_group("#refs#")
    references = np.empty((1, len(items)), h5py.ref_dtype)
    for row, (values, kind) in enumerate(items):
        references[0, row] = matlab(group, f"{name}{row}", values, kind).ref
    data = file.create_dataset(name, data=references, dtype=h5py.ref_dtype)
    data.attrs["MATLAB_class"] = np.bytes_("cell")


def cells(items: list[Any]) -> Any:
    """A cell array (n x 1) for SciPy."""
    result = np.empty((len(items), 1), object)
    result[:, 0] = items
    return result


def header(shape: tuple[Any, ...], descr: str = "<f4") -> bytes:
    """The header of an ``.npy`` that says ``shape``."""
    stream = io.BytesIO()
    says = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, says)
    return stream.getvalue()


def npy_bytes(values: Any) -> bytes:
    """The content of an ``.npy``."""
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def pack(folder: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    """A ZIP file of these members, called ``d.npz``."""
    with zipfile.ZipFile(folder / "d.npz", "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return folder / "d.npz"


def flipped(path: Path, at: int, count: int = 4) -> Path:
    """The same file with some bytes changed."""
    content = bytearray(path.read_bytes())
    content[at : at + count] = bytes(value ^ 0xA5 for value in content[at : at + count])
    path.write_bytes(content)
    return path


def marked(path: Path, offsets: tuple[int, int], value: int) -> Path:
    """A ZIP file with two bytes set in every local and every central header of a member."""
    content = bytearray(path.read_bytes())
    for sign, offset in zip((b"PK\x03\x04", b"PK\x01\x02"), offsets, strict=True):
        at = content.find(sign)
        while at >= 0:
            content[at + offset : at + offset + 2] = struct.pack("<H", value)
            at = content.find(sign, at + 1)
    path.write_bytes(content)
    return path
