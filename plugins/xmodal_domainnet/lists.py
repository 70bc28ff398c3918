"""Which images of DomainNet belong to a task, and where images and lists can be had.

There are two choices of classes. ``126``: miniDomainNet, lists of Dassl. ``40``: the lists of COAL
and SENTRY, which the released ORCA and PaRe read. A line of a list is ``path label``.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xmodal.data.datasets import DataCard, RemoteFile
from xmodal.errors import DataError
from xmodal.text import shortlist, shown

SPLITS = ("train", "test")
LISTS = "splits_mini.zip"
COUNTS: Mapping[str, tuple[int, int]] = {
    "clipart": (3707, 1616),
    "painting": (6727, 2909),
    "real": (16141, 6943),
    "sketch": (5537, 2399),
}
"""Images to train and test with 40 classes. Nobody has published these numbers for 126."""
_IMAGES = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
_SENTRY = "https://raw.githubusercontent.com/virajprabhu/SENTRY/"
_COMMITS = ("5b26aaf37d1a1a13d1cda7418eee43b51f79ac83", "660ae3f30e4eb6cef2411b426c3239e1b8f4bb1b")
_DRIVE = "https://drive.google.com/file/d/15rrLDCrzyi6ZY-1vJar3u7plgLe4COL7/view"
_SIZES = {"clipart": 1.3e9, "painting": 3.7e9, "real": 6.1e9, "sketch": 2.7e9}


def card(domain: str, classes: int, resolution: int) -> DataCard:
    """The files of one domain; what is made of them depends on classes and resolution."""
    images = tuple(f"{_IMAGES}{folder}{domain}.zip" for folder in ("groundtruth/", ""))
    files = [RemoteFile(f"{domain}.zip", images)]
    if classes == 40:
        for split in SPLITS:
            name = f"{domain}_{split}_mini.txt"
            urls = tuple(f"{_SENTRY}{at}/data/DomainNet/txt/{name}" for at in _COMMITS)
            files.append(RemoteFile(name, urls))
    else:
        files.append(RemoteFile(LISTS, by_hand=f"download it at {_DRIVE} (no account is needed)"))
        files += [RemoteFile(f"{domain}_{split}.txt", aside=True) for split in SPLITS]
    usual = (classes, resolution) == (126, 224)
    return DataCard(
        name=f"domainnet/{domain}" if usual else f"domainnet/{domain}-{classes}-{resolution}",
        benchmark="miniDomainNet",
        source="Peng et al. 2019 (DomainNet, cleaned), http://ai.bu.edu/M3SDA; lists: Zhou et al. "
        "2021 (126 classes), Prabhu et al. 2021 (40 classes)",
        licence="fair use, for research; the images belong to their owners",
        size=int(_SIZES[domain]),
        files=tuple(files),
        stand_in="pacs",
        note="photographs and drawings: a transfer within the modality, not between modalities",
    )


@dataclass(frozen=True)
class Listed:
    """The images of one split: paths in the archive, and classes 0 .. K-1."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]


def read_lists(files: Mapping[str, Path], domain: str, classes: int) -> dict[str, Listed]:
    """Both lists of a domain, checked. Raises DataError with the line."""
    ending = "_mini.txt" if classes == 40 else ".txt"
    found = {}
    for split in SPLITS:
        name = f"{domain}_{split}{ending}"
        text, where = _text(files, name)
        found[split] = _parsed(text, where, domain, classes)
    if both := {*found["train"].paths} & {*found["test"].paths}:
        raise DataError(f"{domain}: {len(both)} images train and test: {shortlist(sorted(both))}")
    counts = tuple(len(found[split].paths) for split in SPLITS)
    if classes == 40 and counts != COUNTS[domain]:
        raise DataError(f"{domain}: {counts} images to train and test, expected {COUNTS[domain]}")
    class_names(found, domain)
    return found


def _text(files: Mapping[str, Path], name: str) -> tuple[str, str]:
    """A list, from a file of its own or out of the archive of all lists."""
    try:
        if name in files:
            return files[name].read_text(encoding="utf-8"), f"{files[name]}"
        with zipfile.ZipFile(files[LISTS]) as opened:
            member = next((m for m in opened.namelist() if Path(m).name == name), None)
            if member is None:
                raise DataError(f"{files[LISTS]}: has no file {name}")
            return opened.read(member).decode("utf-8"), f"{files[LISTS]}/{member}"
    except (OSError, ValueError, zipfile.BadZipFile, LookupError) as error:
        raise DataError(f"{name}: cannot be read: {shown(error)}") from error


def _parsed(text: str, where: str, domain: str, classes: int) -> Listed:
    paths, labels = [], []
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        inside = path.startswith(f"{domain}/") and path.count("/") == 2
        if not inside or not label.isdecimal() or int(label) >= classes:
            raise DataError(
                f"{where}: line {number} is '{shown(line.strip())}', expected "
                f"'{domain}/CLASS/IMAGE LABEL' with a label in 0 .. {classes - 1}"
            )
        paths.append(path)
        labels.append(int(label))
    if lacking := {*range(classes)} - {*labels}:
        raise DataError(f"{where}: no image of class {shortlist(sorted(lacking))}")
    if len({*paths}) < len(paths):
        raise DataError(f"{where}: an image is listed twice")
    return Listed(tuple(paths), tuple(labels))


def class_names(lists: Mapping[str, Listed], domain: str) -> tuple[str, ...]:
    """The names of the classes: the folders of their images. Raises DataError."""
    names: dict[int, str] = {}
    for listed in lists.values():
        for path, label in zip(listed.paths, listed.labels, strict=True):
            folder = path.split("/")[1]
            if names.setdefault(label, folder) != folder:
                raise DataError(f"{domain}: class {label} is '{names[label]}' and '{folder}'")
    return tuple(names[label] for label in sorted(names))
