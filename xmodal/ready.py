"""Where the arrays of a task are: the ready data set of the cache, or what ``path`` names.

``path`` may be a prepared folder, the publisher's file, or a folder that holds the publisher's
files. These are converted once, into the cache; what was converted depends on their content alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xmodal.data import Store
from xmodal.data.datasets import DataCard, Preparation
from xmodal.errors import DataError
from xmodal.files import contents, read_json, scratch, write_json
from xmodal.interfaces import Task
from xmodal.text import shortlist

ABOUT = "dataset.json"


@dataclass(frozen=True)
class Ready:
    """A folder of arrays, and what ``prepare`` said of them."""

    folder: Path
    about: Mapping[str, Any]

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def checksum(self) -> str:
        """A digest of all arrays, the same wherever they lie."""
        return contents({path.name: path for path in self.folder.glob("*.npy")})


def find(task: type[Task], config: Any, store: Store) -> Ready | None:
    """The ready data set, without converting anything; None if there is none yet."""
    card = _card(task, config)
    if config.path is None:
        folder = store.dataset(card)
        return None if folder is None else Ready(folder, read_json(folder / ABOUT))
    return _prepared(Path(config.path).expanduser(), card)


def get(
    task: type[Task],
    config: Any,
    store: Store,
    *settings: str,
    raw: tuple[Mapping[str, Path], str] | None = None,
) -> Ready:
    """The arrays of a task; what ``path`` names is converted if it is not prepared.

    ``settings`` name those that decide what ``prepare`` makes. ``raw``: the files to convert, and
    their digest, where ``path`` alone does not tell. Raises DataError, also for a data set that was
    prepared with other settings.
    """
    card = _card(task, config)
    found = find(task, config, store)
    wanted = {name: getattr(config, name) for name in settings}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in wanted.items()}
    if found is None and config.path is None and raw is None:
        raise DataError("\n".join(task.missing(config, store)))
    if found is None:
        files = raw[0] if raw else published(Path(config.path).expanduser(), card)
        known = raw[1] if raw else {name: contents(at) for name, at in files.items()}
        key = {"form": card.form, "files": known, **plain}

        def make(folder: Path) -> None:
            with scratch(store.root) as spare:
                about = task.prepare(config, Preparation(scratch=spare, files=files), folder)
            write_json(folder / ABOUT, {"form": card.form, "name": card.name, **about})

        folder = store.build(card.name, key, make)
        return Ready(folder, read_json(folder / ABOUT))
    for name, value in plain.items():
        if found.about.get(name, value) != value:
            raise DataError(
                f"{found.folder} was prepared with {name}: {found.about[name]}, but {name} is "
                f"{value}\nways out: set {name}: {found.about[name]}, or prepare it again: "
                f"xmodal data fetch {card.name} --again"
            )
    return found


def look(task: type[Task], config: Any, store: Store, *settings: str) -> Ready | None:
    """For facts: what ``path`` names is converted; without a path, what lies in the cache, if any.

    Raises DataError.
    """
    if config.path is None:
        return find(task, config, store)
    return get(task, config, store, *settings)


def published(path: Path, card: DataCard) -> dict[str, Path]:
    """The publisher's files that are at ``path``, or in it, or one folder below, by their names.

    A file that is all that a card needs may have any name. Raises DataError if they are not enough
    to prepare the data set.
    """
    if not path.exists():
        raise DataError(f"path: {path} does not exist\n{_needed(card)}")
    needed = [file for file in card.files if not file.aside]
    if path.is_file():
        named = [file for file in card.files if Path(file.name).name == path.name]
        alone = named or [file for file in needed if Path(file.name).suffix == path.suffix]
        if len(alone) != 1:
            raise DataError(f"path: {path.name} is no file of '{card.name}'\n{_needed(card)}")
        found = {alone[0].name: path}
    else:
        places = [path, *sorted(inner for inner in path.iterdir() if inner.is_dir())]
        found = {}
        for file in card.files:
            here = [p / file.name for p in places if file.may_be(p / file.name)]
            inner = here[1:] if here and here[0].parent != path else []
            if other := next((p for p in inner if contents(p) != contents(here[0])), None):
                raise DataError(
                    f"path: {path} holds two files {file.name}, and they differ: {here[0]} and "
                    f"{other}\nway out: name the folder of one of them"
                )
            if here:
                found[file.name] = here[0]
    if any(file.whole and file.name in found for file in card.files):
        return found
    absent = [file.name for file in needed if file.name not in found]
    # Files that are aside may make up for those that are needed: only ``prepare`` knows.
    if not found or (absent and found.keys() <= {file.name for file in needed}):
        lacking = shortlist(absent) if found else f"file of '{card.name}'"
        raise DataError(f"path: {path} holds no {lacking}\n{_needed(card)}")
    return found


def _needed(card: DataCard) -> str:
    names = shortlist([file.name for file in card.files if not file.aside])
    whole = [file.name for file in card.files if file.aside and file.whole]
    other = f", or {shortlist(whole)}" if whole else ""
    return f"'{card.name}' is a prepared folder, or the published files: {names}{other}"


def _card(task: type[Task], config: Any) -> DataCard:
    card = task.card(config)
    assert card is not None
    return card


def _prepared(path: Path, card: DataCard) -> Ready | None:
    about = read_json(path / ABOUT)
    if not about:
        return None
    if (about.get("name"), about.get("form")) != (card.name, card.form):
        raise DataError(
            f"path: {path} holds '{about.get('name')}' in form {about.get('form')}, expected "
            f"'{card.name}' in form {card.form}"
        )
    return Ready(path, about)
