"""The archive of FSD50K as NAS-Bench-360 cut it: tables of pieces, WAV files, noises.

Nothing is unpacked: a piece is read out of the archive, becomes a spectrogram, and is written.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xmodal.data.mapped import ArrayWriter
from xmodal.data.progress import meter
from xmodal.data.sound import BANDS, FRAMES, RATE, centred, log_mel, packed, read_wav
from xmodal.errors import DataError

ARCHIVE = "audio.zip"
KINDS = 200
TABLES = {"train": "tr", "validation": "val", "test": "eval"}
_AT_ONCE = 64


class Archive:
    """The members of the archive, found by the end of their path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: cannot be read as a zip archive ({error})") from error
        self.named: dict[str, list[str]] = {}
        for name in self.zip.namelist():
            if not name.endswith("/"):
                self.named.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def find(self, wanted: str) -> str:
        """The member with the last part of a path; of several, the one that agrees the longest.

        The tables hold paths of the machine that they were made on. Raises DataError.
        """
        found = self.named.get(wanted.rsplit("/", 1)[-1], [])
        if len(found) > 1:
            found = sorted(found, key=lambda name: -_agreement(name, wanted))
            if _agreement(found[0], wanted) > _agreement(found[1], wanted):
                found = found[:1]
        if len(found) != 1:
            many = f"{len(found)} files" if found else "no file"
            raise DataError(f"{self.path}: {many} for '{wanted}'")
        return found[0]

    def read(self, member: str) -> bytes:
        """The content of a member. Raises DataError."""
        try:
            return self.zip.read(member)
        except (OSError, zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise DataError(f"{self.path}: {member} is damaged ({error})") from error

    def sounds(self, members: Iterable[str]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The sound of every member, with its place among them. Raises DataError."""
        for place, member in enumerate(members):
            where = f"{self.path}: {member}"
            rate, wave = read_wav(self.read(member), where)
            if rate != RATE:
                raise DataError(f"{where}: {rate} Hz, expected {RATE}")
            # Shorter ones are repeated, as released.
            yield place, wave if len(wave) >= RATE else np.resize(wave, RATE)


def _agreement(one: str, other: str) -> int:
    pairs = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    count = 0
    for left, right in pairs:
        if left != right:
            break
        count += 1
    return count


def prepare(path: Path, folder: Path, fewest: Mapping[str, float]) -> dict[str, Any]:
    """Write the spectrograms and labels of all parts, and the noises. Raises DataError.

    ``fewest``: how many clips a part must have.
    """
    archive = Archive(path)
    kinds = _kinds(archive)
    about: dict[str, Any] = {"clips": {}, "samples": {}, "kinds": list(kinds), "left_out": 0}
    for part, short in TABLES.items():
        clips = _clips(archive, short, kinds)
        if len(clips) < fewest.get(part, 1):
            raise DataError(
                f"{path}: {len(clips):,} clips in {short}.csv, at least {fewest.get(part, 1):,.0f} "
                "are published\nway out: fetch the whole file, or set partial: true"
            )
        kept, left_out = _write_part(archive, folder, part, clips)
        about["clips"][part] = len(clips)
        about["samples"][part] = len(clips) if part == "train" else kept
        about["left_out"] += left_out
    about["noise"] = _write_noise(archive, folder)
    if not about["noise"] and fewest:
        raise DataError(f"{path}: holds no noise_22050/*.wav; fetch the whole file")
    return about


def _kinds(archive: Archive) -> dict[str, int]:
    member = archive.find("lbl_map.json")
    try:
        found = {str(name): int(place) for name, place in json.loads(archive.read(member)).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{archive.path}: {member} is no table of kinds ({error})") from error
    if sorted(found.values()) != list(range(KINDS)):
        raise DataError(f"{archive.path}: {member} has {len(found)} kinds, expected 0 .. 199")
    return dict(sorted(found.items(), key=lambda item: item[1]))


Clip = tuple[list[str], NDArray[np.uint8]]


def _clips(archive: Archive, short: str, kinds: Mapping[str, int]) -> list[Clip]:
    """The members and labels of every clip, clips and pieces in the order of their names."""
    member = archive.find(f"chunks/{short}.csv")
    where = f"{archive.path}: {member}"
    pieces: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    rows = csv.DictReader(io.StringIO(archive.read(member).decode("utf-8", "replace")))
    if not {"files", "labels", "ext"} <= {*(rows.fieldnames or ())}:
        raise DataError(f"{where}: has columns {rows.fieldnames}, expected files, labels, ext")
    for line, row in enumerate(rows, 2):
        clip = row["ext"]
        if not row["files"] or not clip or labels.setdefault(clip, row["labels"]) != row["labels"]:
            raise DataError(f"{where}: line {line} lacks a value, or gives a clip other labels")
        pieces.setdefault(clip, []).append(row["files"])
    found = []
    for clip in sorted(pieces, key=lambda name: (len(name), name)):
        y = np.zeros(KINDS, np.uint8)
        for name in labels[clip].split(","):
            if name not in kinds:
                raise DataError(f"{where}: clip {clip} has the unknown label '{name}'")
            y[kinds[name]] = 1
        members = sorted(archive.find(file) for file in pieces[clip])
        found.append((members, y))
    return found


def _write_part(archive: Archive, folder: Path, part: str, clips: list[Clip]) -> tuple[int, int]:
    """Write the pieces of all clips; how many were kept, and left out as not of a second."""
    clip_N = np.repeat(np.arange(len(clips)), [len(members) for members, _ in clips])
    members = [member for some, _ in clips for member in some]
    keep: list[int] = []
    held: list[NDArray[np.float32]] = []
    shape = (BANDS, FRAMES)
    with (
        meter(f"FSD50K, {part}", len(members), unit="pieces") as count,
        ArrayWriter(folder / f"{part}_x.npy", shape, np.int16) as writer,
    ):

        def flush() -> None:
            if held:
                writer.add(packed(centred(log_mel(torch.from_numpy(np.stack(held))))))
                held.clear()

        for place, wave in archive.sounds(members):
            if len(wave) == RATE:
                keep.append(place)
                held.append(wave)
            if len(held) == _AT_ONCE:
                flush()
            count(1)
        flush()
    clip_N = clip_N[keep]
    if len(np.unique(clip_N)) != len(clips):
        lost = sorted({*range(len(clips))} - {*clip_N.tolist()})[0]
        raise DataError(f"{archive.path}: no piece of {clips[lost][0][0]}'s clip lasts a second")
    np.save(folder / f"{part}_clip.npy", clip_N)
    np.save(folder / f"{part}_y.npy", np.stack([y for _, y in clips]))
    return len(keep), len(members) - len(keep)


def _write_noise(archive: Archive, folder: Path) -> int:
    """Write the background noises, frames end to end; how many there are."""
    members = sorted(
        name
        for names in archive.named.values()
        for name in names
        if "noise_22050" in name.split("/")[:-1] and name.endswith(".wav")
    )
    lengths = []
    with ArrayWriter(folder / "noise_x.npy", (BANDS,), np.int16) as writer:
        for _, wave in archive.sounds(members):
            noise = packed(centred(log_mel(torch.from_numpy(wave)[None])))[0]
            writer.add(np.ascontiguousarray(noise.T))
            lengths.append(noise.shape[1])
    np.save(folder / "noise_length.npy", np.array(lengths, dtype=np.int64))
    return len(lengths)
