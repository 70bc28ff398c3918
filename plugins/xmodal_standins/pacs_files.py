"""PACS: the images, where they can be had, and which of them test.

The archive holds ``PACS/DOMAIN/CLASS/IMAGE.jpg``, 227 x 227; the pack the same images of 96 x 96.
The publisher has no split. Ours takes a fifth of each domain and class, and keeps images that are
nearly the same on one side; ``TEST`` says of every image, sorted by name, whether it tests.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xmodal.data.arrays import open_container
from xmodal.data.datasets import DataCard, RemoteFile
from xmodal.errors import DataError
from xmodal.text import shown

Array = NDArray[Any]
Encoded = Iterator[tuple[str, bytes]]
"""Images by their names, in the order of the names."""
SIDE = 96
DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
COUNTS: Mapping[str, tuple[int, int]] = {
    "art_painting": (2048, 409),
    "cartoon": (2344, 467),
    "photo": (1670, 333),
    "sketch": (3929, 786),
}
"""All images of a domain, and those of them that test."""
TOTAL = sum(count for count, _ in COUNTS.values())
PACK, ARCHIVE = "pacs96.npz", "pacs.zip"
_REPOSITORY = "MachineLearning2020/Homework3-PACS"
_COMMIT = "d586a6cf3db84896fb6cc465c7bf51bdaf6d65d8"
_NAMES = "35f53f0142797cb5"
"""The first digits of the SHA-256 of all names, sorted, one a line."""
_TEST = (
    "hAAgAQsIAwEBEAysAAUIAoQAQBTIAAICAZwoCiKYIIUGEAJABAFBACJgAhB0QywBAUAFBxCQBAAAyAgMCMJAyCBoRSFA"
    "GhAQEKAUBQAQgRoAEAASiI9CAEpSBACQAACIgShEAFCAoaSAIigRAIKAUCAAJwQCoAEAAgfsAAQAAAEhQQggUMQgjcAV"
    "qMQUBdQAAISAAgwAKAAApgAYCQoAASAjAQAAgIXAAICBUBAB8AA5CUBCJEAIQQwiAEDSAYQEARoKyASKBABywIBG4QJI"
    "jhkSBUAEASACGYCATAFDEGCIAkKAAAIABAAYANGQIIIUEAKABJQgCIAkAYgGQKAAAUgIUQDBBUBaEEAAgEQAgsIEkIkA"
    "QHCcDYFEJLwhRQIAAABAAAQEAQFkSQAKAEgYABFACAIUAEYgAFEUgQgEAAQEAAABkTAQG6oAEKIDAEBAiFUIMKhgQAFG"
    "AKGEUIAAiiQVAQgRRkMAABASBUQkAYIIYgAAsCuGhCADIgAACICBKAEQKBQEiDNgCggYgAgIMAADkCBAUAEIAkBBEAQA"
    "EwAkCBQOokZiABpKhSRAhCAQQAbgoCViEBAAECgEkiAADJggCAAFQOABAAgIKACyDFhxQIiICgQgAAQGAACAAElJCgbI"
    "ACCwGQqAgBhAAAEBScgAGpRCByQoCAwzgCAEQgAgARkCIMFCBcQCQAERAIAADkgqQIgAIAAAACJAAAZIUgIQxZQAAQoH"
    "qAAEwoAkAAAAAhgBEkCh0SgQwhBAiogJBAREHADgCQbABCA4ECACASAUAQASQiIQABADpwBAQCCPEghCogBAACQhUQgA"
    "tIDhAEDgJQUgCAgABAKEAIKIheEAAEAAgYHAUCMAAoSFDIAAgAAAAwIR6AAoiKg4AiQEAhAAakREQSQwiEicSQOCEIEB"
    "AABJCAFQAQEASIAZEIIIxQYAQAAIp8kCUgJIgAAEIIogSIAAAAg4ATQhAYQAMjBAABIAEDDACAniCgANIIQAkRAJFQAB"
    "IBUkwAAAOAAwgkQAIhATExQBBAIwCAAAACEKQ5CAiIAAAAiBgAEoR4hCIAAoGZgQjCIkBE4YRAkAALkwCCkQAxABCJAB"
    "EckgwAKLApggSIAoEAAMIIYgUAAAACgsRoAwAAEAiwgjgAAMoAOEVAgDQEQQIBAhAIIgBEIAeAwKBgRCACAABEYyGIBx"
    "SibACCAQAawCwBEAA2QMAABCiAEQCIAGYkQEBAAkECRAAJEACGACahKCDjMIAIBIgYEEQEEsaC0BA4sAEAAAFAqAQgFF"
    "ABmgAQQCIiaYICiAQhIgAjABAABAIAhAACgIWxAJEJAHCBiAiQBAVqBGOQCAMAAAhKAAQAIAYEkwKAJJAAETLKBDAQAV"
    "hCKAAABSCEQgYQLWxQAATgQiEpAYAUCQJwgIAEEAqAQIAACCCBEAAAEUgJEGAAAADAAEAFMMCETwAgDpKABAoggAIwAC"
    "AtZCYhBCEAShIlRIKCYIURiGQQi1gAQAAkhQAASCASEAAAQCAdQUAoHIBAABUHcAAAAgAABgHEAJABEGBgIlBIcJQGgK"
    "AJgRB0ARQEAEKCBYMgRACQRQGREggCCiAgwKuUUFgBIQBohAAEiAIIAAgAgACCAClUAgEkEEIBgYJESAiIgQIgDYAAQD"
    "WAIADACA5A=="
)
_MEMBER = re.compile(r"(?:[^/]+/)?PACS/([^/]+/[^/]+/[^/]+\.(?:jpg|png))")

CARD = DataCard(
    name="pacs",
    benchmark="stand-in",
    source="Li et al. 2017 (PACS), https://github.com/" + _REPOSITORY,
    licence="none stated, for research; images from Caltech-256, Sketchy, TU-Berlin and the web",
    size=190_000_000,
    prepared=TOTAL * 3 * SIDE * SIDE,
    files=(
        RemoteFile(
            ARCHIVE,
            (
                f"https://github.com/{_REPOSITORY}/archive/{_COMMIT}.zip",
                f"https://codeload.github.com/{_REPOSITORY}/zip/{_COMMIT}",
            ),
        ),
        RemoteFile(PACK, aside=True, whole=True, by_hand="all images of 96 x 96 in one pack"),
    ),
    note="the stand-in for miniDomainNet; photographs and drawings, a transfer within the modality",
)


def testing_images() -> Array:
    """Whether each image tests, sorted by name; bool ``[9991]``."""
    bits = np.frombuffer(base64.b64decode("".join(_TEST)), dtype=np.uint8)
    return np.unpackbits(bits, count=TOTAL).astype(bool)


def images(files: Mapping[str, Path]) -> Encoded:
    """All images of the pack or of the publisher's archive. Raises DataError."""
    found = _of_pack(files[PACK]) if PACK in files else _of_archive(files[ARCHIVE])
    names = hashlib.sha256()
    for number, (name, data) in enumerate(found):
        names.update(("\n" if number else "").encode() + name.encode())
        yield name, data
    if names.hexdigest()[:16] != _NAMES:
        raise DataError(f"{files.get(PACK, files.get(ARCHIVE))}: not the 9,991 images of PACS")


def _of_pack(path: Path) -> Encoded:
    pack = open_container(path)
    jpeg, offset, names = (pack.get(key, "path:").read(slice(None)) for key in _KEYS)
    if jpeg.dtype != np.uint8 or len(offset) != len(names) + 1 or offset[-1] != len(jpeg):
        raise DataError(f"{path}: jpeg, offset and name do not belong together")
    for index in np.argsort(names):
        yield str(names[index]), jpeg[offset[index] : offset[index + 1]].tobytes()


_KEYS = ("jpeg", "offset", "name")


def _of_archive(path: Path) -> Encoded:
    try:
        with zipfile.ZipFile(path) as opened:
            found = {m[1]: m[0] for m in map(_MEMBER.fullmatch, opened.namelist()) if m}
            for name in sorted(found):
                yield name, opened.read(found[name])
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{path}: cannot be read: {shown(error)}\nway out: delete it and fetch it again"
        ) from error


def decoded(name: str, data: bytes) -> tuple[Array, int, int]:
    """An image ``[3, 96, 96]`` uint8, its class and its domain. Raises DataError."""
    domain, label, *_ = name.split("/")
    if domain not in DOMAINS or label not in CLASSES:
        raise DataError(f"PACS has no image '{shown(name)}'")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: no image that can be read: {shown(error)}") from error
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    x = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    return x, CLASSES.index(label), DOMAINS.index(domain)
