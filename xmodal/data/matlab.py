"""MATLAB's ``.mat`` files: version 4 and 5 through SciPy, version 7.3 through HDF5.

Axes keep MATLAB's order; the first one counts samples unless the user says ``last``. Text is a
character matrix or a cell array. Of structs and objects only the names are told.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from xmodal import text
from xmodal.data.hdf5 import hdf5
from xmodal.data.rows import (
    Array,
    ArrayRows,
    NamedArray,
    Rows,
    of_items,
    reading,
    refuse_bomb,
    refuse_large,
    refuse_type,
    refused,
)
from xmodal.errors import DataError

_BYTES = {"double": 8, "single": 4, "logical": 1, "char": 4, "sparse": 8, "cell": 8}
_BYTES |= {f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)}


def matlab(path: Path, last: bool = False) -> dict[str, NamedArray]:
    """The arrays of a ``.mat`` file. ``last``: their last axis counts samples. Raises DataError."""
    import h5py
    from scipy.io import whosmat

    if h5py.is_hdf5(path):
        return hdf5(path, last)
    with reading(path, ".mat"):
        return {key: _entry(path, key, shape, kind, last) for key, shape, kind in whosmat(path)}


def _entry(path: Path, key: str, shape: tuple[int, ...], kind: str, last: bool) -> NamedArray:
    where = f"{path}: '{text.shown(key)}'"
    if kind not in _BYTES and kind != "struct":
        message = f"{where} is a MATLAB {kind}, which is not read; save arrays (cellstr of text)"
        return refused(f"MATLAB {kind}", message)

    def rows() -> Rows:
        size = prod(shape) * _BYTES.get(kind, 1)
        refuse_bomb(where, size, path.stat().st_size)
        refuse_large(where, size)
        values = _load(path, key, where)
        if kind == "struct":
            names = text.shortlist(values.dtype.names or ())
            raise DataError(
                f"{where} is a struct with the fields {names}; save them as variables: "
                "save('mine.mat', '-struct', ...)"
            )
        if kind == "cell":
            return of_items(where, values)
        if kind == "char":
            return ArrayRows(np.char.rstrip(values.ravel(), " \0"))
        refuse_type(where, values.dtype)
        values = values.astype(bool) if kind == "logical" else values
        return ArrayRows(np.moveaxis(values, -1, 0) if last else values)

    own = (shape[-1], *shape[:-1]) if last and shape else shape
    return NamedArray.of(f"{own} {kind}", rows, (path,))


def _load(path: Path, key: str, where: str) -> Array:
    from scipy.io import loadmat
    from scipy.sparse import issparse

    with reading(where, ".mat"):
        found = loadmat(path, variable_names=[key])[key]
        return np.asarray(found.toarray() if issparse(found) else found)
