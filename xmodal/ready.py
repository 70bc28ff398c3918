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
from xmodal.data.datasets import DataCard, Preparation, find_files
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
    """The publisher's files that are at ``path``, or anywhere below it, by their names.

    Raises DataError if they are not enough to prepare the data set.
    """
    found = find_files(path, card, "path:")
    if any(file.whole and file.name in found for file in card.files):
        return found
    needed = [file.name for file in card.files if not file.aside]
    absent = [name for name in needed if name not in found]
    # Files that are aside may make up for those that are needed: only ``prepare`` knows.
    if absent and found.keys() <= set(needed):
        raise DataError(f"path: {path} holds no {shortlist(absent)}, which '{card.name}' needs")
    return found


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
