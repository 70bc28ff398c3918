"""Small files in the form in which the benchmark's files are published."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from xmodal.data.store import Store
from xmodal.interfaces import Task

from ...any_parts import PARTS


def task(kind: type[Task], cache: Path, **settings: Any) -> Task:
    """A task with its own settings, and parts that do nothing."""
    config = kind.Config(**{**PARTS, **settings})
    return kind(config, SimpleNamespace(store=Store(cache)))  # type: ignore[arg-type]


def python_2_pickle(content: Any) -> bytes:
    """What Python 2 wrote for ``pickle.dumps(content, 2)``: text and array values as raw strings.

    Dictionaries, lists, text, whole numbers and uint8 matrices.
    """
    return b"\x80\x02" + _opcodes(content) + b"."


def _opcodes(value: Any) -> bytes:
    if isinstance(value, dict):
        items = b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return _string(value.encode("latin1"))
    assert value.dtype == np.uint8
    shape = b"".join(map(_opcodes, value.shape)) + b"\x86"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        + b"K\x00tb\x89"
        + _string(value.tobytes())
        + b"tb"
    )


def _string(raw: bytes) -> bytes:
    short = len(raw) < 256
    return (b"U" + bytes([len(raw)]) if short else b"T" + struct.pack("<i", len(raw))) + raw


def cifar_archive(
    folder: Path, train: int, test: int, seed: int = 0, classes: int = 100
) -> dict[str, np.ndarray]:
    """Write ``cifar-100-python.tar.gz``; returns images ``[n, 3, 32, 32]`` and classes."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    with tarfile.open(folder / "cifar-100-python.tar.gz", "w:gz") as archive:
        for part, count in (("train", train), ("test", test)):
            arrays[f"{part}_x"] = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
            arrays[f"{part}_y"] = random.integers(0, classes, count)
            content = {
                "filenames": [f"picture_{n}.png" for n in range(count)],
                "batch_label": f"{part}ing batch 1 of 1",
                "fine_labels": arrays[f"{part}_y"].tolist(),
                "coarse_labels": (arrays[f"{part}_y"] // 5).tolist(),
                "data": arrays[f"{part}_x"].reshape(count, -1),
            }
            _add(archive, f"cifar-100-python/{part}", python_2_pickle(content))
        names = {"fine_label_names": [f"class {n}" for n in range(100)]}
        _add(archive, "cifar-100-python/meta", python_2_pickle(names))
    return arrays


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def spherical_file(
    folder: Path, train: int, test: int, last: bool, protocol: int = 4
) -> dict[str, np.ndarray]:
    """Write ``s2_cifar100.gz``, with channels first or last; returns images, channels first."""
    random = np.random.default_rng(1)
    arrays, content = {}, {}
    for part, count in (("train", train), ("test", test)):
        x = random.integers(0, 256, (count, 3, 60, 60), dtype=np.uint8)
        y = random.integers(0, 100, count)
        stored = np.ascontiguousarray(np.moveaxis(x, 1, 3)) if last else x
        content[part] = {"images": stored, "labels": y}
        arrays |= {f"{part}_x": x, f"{part}_y": y}
    with gzip.open(folder / "s2_cifar100.gz", "wb", compresslevel=1) as file:
        pickle.dump(content, file, protocol)
    return arrays


def cosmic_arrays(folder: Path, seed: int = 2) -> dict[str, np.ndarray]:
    """deepCR's folders with three visits of galaxies, one other, and another filter.

    Returns every array by its path below ``folder``.
    """
    random = np.random.default_rng(seed)
    written: dict[str, np.ndarray] = {}
    visits = {
        "npy_train/f435w/10760/2": 5,
        "npy_train/f435w/12058/16": 4,
        "npy_train/f435w/10182/pb": 3,
        "npy_train/f435w/10595/2": 2,  # a globular cluster
        "npy_train/f814w/10760/2": 2,
        "npy_test/f435w/10342/3": 3,
        "npy_test/f435w/14704/1": 2,
        "npy_test/f435w/9425/2": 1,  # an extragalactic field
    }
    for place, count in visits.items():
        (folder / place).mkdir(parents=True)
        for n in range(1, count + 1):
            layers = 2 if place.endswith("14704/1") else 3
            image = random.gamma(2, 50, (layers, 256, 256))
            image[1:] = random.uniform(size=(layers - 1, 256, 256)) < 0.05
            # The eleventh exposure comes after the second one, not after the first.
            name = f"{place}/{n + 9 if n == 2 else n}_{n}.npy"
            written[name] = image.astype(np.float32)
        sky = random.uniform(20, 90, 12)
        if not place.endswith("10182/pb"):
            written[f"{place}/sky.npy"] = sky
    for name, array in written.items():
        np.save(folder / name, array)
    return written


def cosmic_tars(folder: Path, source: Path) -> None:
    """deepCR's two tar files out of such folders, their members in any order."""
    for part in ("train", "test"):
        with tarfile.open(folder / f"deepCR.ACS-WFC.{part}.tar", "w") as archive:
            for path in sorted((source / f"npy_{part}").rglob("*.npy"), key=lambda p: p.name[::-1]):
                archive.add(path, f"npy_{part}/{path.relative_to(source / f'npy_{part}')}")
