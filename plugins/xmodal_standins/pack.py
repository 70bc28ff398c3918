"""What the stand-ins have in common: packs of one ``.npz``, and archives of repositories.

A pack holds everything in one file. Where there is none, the publisher's own files are read, which
need no account.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xmodal.data.datasets import RemoteFile
from xmodal.errors import DataError

Array = NDArray[Any]


def pack(name: str, sha256: str) -> RemoteFile:
    """The pack of a stand-in: this file alone is the data set."""
    return RemoteFile(name, sha256=sha256, aside=True, whole=True)


def repository(owner: str, name: str, commit: str) -> RemoteFile:
    """Everything in a repository of GitHub at one commit, as an archive."""
    address = f"https://codeload.github.com/{owner}/{name}/zip/{commit}"
    return RemoteFile(f"{name}.zip", urls=(address,))


def raw(owner: str, name: str, commit: str, path: str) -> RemoteFile:
    """One file of a repository of GitHub at one commit."""
    address = f"https://raw.githubusercontent.com/{owner}/{name}/{commit}/{path}"
    return RemoteFile(path.rsplit("/", 1)[-1], urls=(address,))


def read_pack(path: Path, *keys: str) -> dict[str, Array]:
    """Arrays of a pack. Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in keys}
    except KeyError as error:
        raise DataError(f"{path}: holds no array {error}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an .npz pack ({error})") from error


def members(path: Path, wanted: Callable[[str], bool]) -> Mapping[str, Callable[[], bytes]]:
    """The files of an archive whose path within the repository is wanted, in order; with how to
    read each. Raises DataError."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as a zip archive ({error})") from error
    found = {}
    for name in sorted(archive.namelist()):
        inner = name.split("/", 1)[-1]  # the first folder is named after the commit
        if wanted(inner):
            found[inner] = lambda name=name: archive.read(name)
    return found
