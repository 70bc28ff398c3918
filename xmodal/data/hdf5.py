"""HDF5 files, and with them MATLAB's ``.mat`` files of version 7.3.

Soft and external links, virtual data sets and external storage are followed. HDF5 itself fills in
zeros for what it does not find; here that is an error.

MATLAB stores its arrays with the axes in reverse order and says so with an attribute of each array.
They are read with MATLAB's own order of axes, whatever the file is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from xmodal import text
from xmodal.data.rows import (
    Array,
    ArrayRows,
    Indices,
    NamedArray,
    Rows,
    dense_slice,
    described,
    of_items,
    reading,
    refuse_bomb,
    refuse_large,
    refuse_type,
    refused,
)
from xmodal.errors import DataError

_CLASS = "MATLAB_class"
_INTERNAL = ("#refs#", "#subsystem#")
_DEPTH = 32
"""How deep groups may be nested, so that links that lead back to a group above end somewhere."""


@dataclass
class H5Rows:
    """Rows of a data set; every process opens the file for itself.

    ``axis``: the axis of the stored array that counts samples. ``reverse``: MATLAB's order of axes
    is the reverse of the stored one. ``kind``: ``text``, ``logical`` or empty.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axis: int = 0
    reverse: bool = False
    kind: str = ""
    _data: Any = field(default=None, repr=False)
    _process: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}

    def read(self, index: slice | Indices) -> Array:
        """The samples at ``index``, in that order. Raises DataError for a damaged file."""
        with reading(_named(self.file, self.key)):
            if (stretch := dense_slice(index)) is not None:
                return self.read(stretch[0])[stretch[1]]
            if isinstance(index, slice):
                return self._shaped(self._read(index))
            # HDF5 accepts only increasing indices without repetition.
            rows, back = np.unique(index, return_inverse=True)
            return self._shaped(self._read(rows))[back]

    def _read(self, index: slice | Indices) -> Array:
        if self._data is None or self._process != os.getpid():
            import h5py

            data = _opened(h5py.File(self.file, "r"), self.key)
            self._data = data.asstr() if self.kind == "text" else data
            self._process = os.getpid()
        return np.asarray(self._data[(*(slice(None),) * self.axis, index)])

    def _shaped(self, stored: Array) -> Array:
        """Samples first, then the axes of a sample in the order of the user."""
        axis = self.axis
        if self.reverse:
            stored, axis = stored.T, stored.ndim - 1 - axis
        values = np.moveaxis(stored, axis, 0)
        if self.kind == "text":
            return values.astype(str)
        return values.astype(bool) if self.kind == "logical" else values


def hdf5(path: Path, last: bool = False) -> dict[str, NamedArray]:
    """The arrays of an HDF5 file, by path. ``last``: their last axis counts samples.

    Raises DataError.
    """
    import h5py

    with reading(path, "HDF5"), h5py.File(path, "r") as file:
        return dict(_entries(path, file, "", last, 0))


def _entries(
    path: Path, group: Any, prefix: str, last: bool, depth: int
) -> Iterator[tuple[str, NamedArray]]:
    import h5py

    for name in group:
        key = f"{prefix}{name}"
        if key in _INTERNAL:
            continue
        try:
            kind = h5py.h5o.get_info(group.id, os.fsencode(name)).type
            item = group[name] if kind == h5py.h5o.TYPE_GROUP else None
        except Exception as error:
            # A link to nowhere, or damage: it matters only if the array is needed.
            target = _target(group.get(name, getlink=True))
            says = "a link to nowhere" if target else "damaged"
            why = f"cannot be read: {target or text.shown(error, 300)}"
            yield key, refused(says, f"{_named(path, key)} {why}")
            continue
        if kind == h5py.h5o.TYPE_DATASET:
            yield key, _later(path, key, last)
        elif item is not None and not (own := _matlab(item)):
            if depth < _DEPTH and not _is_above(item, group):
                yield from _entries(path, item, f"{key}/", last, depth + 1)
        elif item is not None and "MATLAB_sparse" in item.attrs:
            yield key, _sparse(path, item, key, last)
        elif item is not None:
            why = f"is a MATLAB {own}, which is not read; save arrays"
            if own == "struct":
                names = ", ".join(f"{text.shown(key)}/{text.shown(field)}" for field in item)
                why = f"is a struct; name one of its fields: {text.shown(names, 300)}"
                yield from _entries(path, item, f"{key}/", last, depth + 1)
            yield key, refused(own, f"{_named(path, key)} {why}")


def _named(path: Path, key: str) -> str:
    return f"{path}: '{text.shown(key)}'"


def _later(path: Path, key: str, last: bool) -> NamedArray:
    """A data set that is looked at when it is asked for: there may be thousands of them."""

    @cache
    def entry() -> NamedArray:
        import h5py

        with reading(_named(path, key), "HDF5"), h5py.File(path, "r") as file:
            return _entry(path, _opened(file, key), key, last)

    def says() -> str:
        try:
            return entry().says()
        except DataError:
            return "damaged"

    return NamedArray(says, lambda: entry().open(), lambda: entry().files())


def _is_above(item: Any, group: Any) -> bool:
    """Whether a group holds ``group``, through a link that leads back."""
    while True:
        if item == group:
            return True
        if group.name in (None, "/"):
            return False
        group = group.parent


def _target(link: Any) -> str:
    """Where a link that cannot be followed leads; empty if it is no link."""
    import h5py

    if isinstance(link, h5py.ExternalLink):
        return f"it links to '{text.shown(link.path)}' in {text.shown(link.filename, 200)}"
    return f"it links to '{text.shown(link.path)}'" if isinstance(link, h5py.SoftLink) else ""


def _matlab(item: Any) -> str:
    """MATLAB's class of an array; empty if MATLAB did not write it."""
    import h5py

    if not h5py.h5a.exists(item.id, _CLASS.encode()):
        return ""
    value = item.attrs[_CLASS]
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _entry(path: Path, data: Any, key: str, last: bool) -> NamedArray:
    import h5py

    where, matlab = _named(path, key), _matlab(data)
    files = (path, *_elsewhere(path, data))
    if data.shape is None or "MATLAB_empty" in data.attrs:
        return refused("empty", f"{where} has no samples: it is empty")
    shape, dtype = tuple(data.shape), data.dtype
    if matlab in ("char", "cell"):
        unpack = _chars if matlab == "char" else _cells
        return NamedArray.of(f"{shape[::-1]} {matlab}", lambda: unpack(path, key), files)
    if matlab and matlab not in ("double", "single", "logical") and "int" not in matlab:
        message = f"{where} is a MATLAB {matlab}, which is not read; save arrays (cellstr of text)"
        return refused(f"MATLAB {matlab}", message)
    reverse, kind = bool(matlab), "logical" if matlab == "logical" else ""
    if h5py.check_string_dtype(dtype) is not None:
        kind, dtype = ("text", np.dtype(str)) if dtype.kind == "O" else (kind, dtype)
    axis = 0 if reverse == last or not shape else len(shape) - 1
    own = shape[::-1] if reverse else shape
    if last and own:
        own = (own[-1], *own[:-1])
    unequal = h5py.check_vlen_dtype(dtype) is not None
    says = f"{own} of unequal lengths" if unequal else described(own, dtype)

    def rows() -> Rows:
        if h5py.check_ref_dtype(data_type) is not None:
            raise DataError(f"{where} holds references to other arrays; name one of those")
        if not unequal:
            refuse_type(where, dtype)
        with reading(where, "HDF5"), h5py.File(path, "r") as file:
            _check_stored(where, _opened(file, key))
        values = np.dtype(bool) if kind == "logical" else dtype
        return H5Rows(path, key, own, values, axis, reverse, kind)

    data_type = data.dtype
    return NamedArray.of(says, rows, files)


def _opened(group: Any, key: str) -> Any:
    """An object of a file. External storage is looked for beside the file, as links are."""
    import h5py

    try:
        item = group[key]
        if not (isinstance(item, h5py.Dataset) and item.external):
            return item
        del item  # HDF5 refuses a second prefix while a data set is open
    except KeyError as error:
        if "external file prefix" not in str(error):
            raise
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_efile_prefix(b"${ORIGIN}")
    return h5py.Dataset(h5py.h5d.open(group.id, os.fsencode(key), access))


def _elsewhere(path: Path, data: Any, depth: int = 0) -> tuple[Path, ...]:
    """The other files that a data set draws on, and those that they draw on."""
    import h5py

    home = Path(data.file.filename)
    files = [] if home.resolve() == path.resolve() else [home]
    files += [home.parent / os.fsdecode(name) for name, *_ in data.external or ()]
    for file, key in _sources(data):
        files.append(file)
        if depth < _DEPTH and file.is_file() and file.resolve() != home.resolve():
            # What is wrong with it is said when it is read.
            with suppress(OSError, KeyError), h5py.File(file, "r") as other:
                files += _elsewhere(file, _opened(other, key), depth + 1)
    return tuple(dict.fromkeys(file for file in files if file.resolve() != path.resolve()))


def _sources(data: Any) -> list[tuple[Path, str]]:
    """The files and keys that a virtual data set is made of; a name with ``%b`` stands for many."""
    if not data.is_virtual:
        return []
    home = Path(data.file.filename)
    found = []
    for name, key in dict.fromkeys((s.file_name, s.dset_name) for s in data.virtual_sources()):
        if "%b" in name:
            found += [(file, key) for file in sorted(home.parent.glob(name.replace("%b", "*")))]
        elif name == ".":
            found.append((home, key))
        else:
            # HDF5 looks beside the file first, then in the working directory.
            beside = home.parent / name
            found.append((beside if beside.exists() else Path(name), key))
    return found


def _check_stored(where: str, data: Any, depth: int = 0) -> None:
    """Raise DataError if values are not there, or packed in a way that cannot be read here."""
    import h5py

    for file, key in _sources(data):
        if not file.is_file():
            raise DataError(f"{where} draws on {file}, and there is no such file")
        with reading(f"{where} draws on {file}", "HDF5"), h5py.File(file, "r") as other:
            source = _opened(other, key) if key in other else None
            if not isinstance(source, h5py.Dataset):
                name = text.shown(key)
                raise DataError(f"{where} draws on '{name}' in {file}, and there is no such array")
            if depth < _DEPTH:
                _check_stored(f"{file}: '{text.shown(key)}'", source, depth + 1)
    for name, start, size in data.external or ():
        file = Path(data.file.filename).parent / os.fsdecode(name)
        if not file.is_file():
            raise DataError(f"{where} draws on {file}, and there is no such file")
        if size < 1 << 62 and start + size > file.stat().st_size:
            raise DataError(f"{where}: {file} is cut off: it should hold {start + size} bytes")
    settings = data.id.get_create_plist()
    for number in range(settings.get_nfilters()):
        code, _, _, name = settings.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            raise DataError(
                f"{where} is packed with filter {code} ({text.shown(os.fsdecode(name))}), which is "
                "not installed; install hdf5plugin, or pack it anew: h5repack -f NONE"
            )
    size, stored = prod(data.shape) * data.dtype.itemsize, data.id.get_storage_size()
    if data.is_virtual or data.external or not size:
        return
    if not stored:
        raise DataError(f"{where} {data.shape} was declared, but nothing was written into it")
    refuse_bomb(where, size, stored)


def _sparse(path: Path, group: Any, key: str, last: bool) -> NamedArray:
    where = _named(path, key)
    shape = (int(group.attrs["MATLAB_sparse"]), len(group["jc"]) - 1)

    def rows() -> Rows:
        import h5py
        from scipy.sparse import csc_matrix

        refuse_large(where, prod(shape) * 8)
        with reading(where, "HDF5"), h5py.File(path, "r") as file:
            parts = file[key]
            # MATLAB leaves out the values of a matrix of zeros.
            data, at = (parts[n][:] if n in parts else np.zeros(0, int) for n in ("data", "ir"))
            values = csc_matrix((data, at, parts["jc"][:]), shape).toarray()
            return ArrayRows(values.T if last else values)

    return NamedArray.of(f"{shape[::-1] if last else shape} sparse", rows, (path,))


def _chars(path: Path, key: str) -> Rows:
    """A character matrix: every row is a text, padded with spaces."""
    import h5py

    with reading(_named(path, key), "HDF5"), h5py.File(path, "r") as file:
        return ArrayRows(np.array(_lines(file[key])))


def _lines(data: Any) -> list[str]:
    codes = np.atleast_2d(data[()].T).astype("<u2")
    return [row.tobytes().decode("utf-16-le").rstrip(" \0") for row in codes]


def _cells(path: Path, key: str) -> Rows:
    """A cell array: texts, or arrays in MATLAB's order of axes."""
    import h5py

    where = _named(path, key)
    with reading(where, "HDF5"), h5py.File(path, "r") as file:
        found = file[key][()].T
        items = np.empty(found.shape, object)
        for place in np.ndindex(found.shape):
            item = file[found[place]]
            kind = _matlab(item)
            if not isinstance(item, h5py.Dataset) or kind in ("cell", "struct"):
                items[place] = None
            elif "MATLAB_empty" in item.attrs:
                items[place] = "" if kind == "char" else np.zeros(0)
            elif kind == "char":
                items[place] = "".join(_lines(item))
            else:
                items[place] = item[()].T
        return of_items(where, items)
