"""Parts whose data somebody has published, or a solver generates: tasks and sources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from xmodal.data import fetching
from xmodal.data.datasets import DataCard, Preparation, State
from xmodal.data.obtain import DataOrder, obtain
from xmodal.data.store import Store
from xmodal.errors import DataError
from xmodal.interfaces.component import Component, Context
from xmodal.text import size

SMALL = 200_000_000
"""A run fetches data of up to so many bytes by itself."""


class WithData(Component):
    """A part that reads data. Of those that are published or generated it has a ``card``.

    Such data lie in the cache, made ready by ``prepare`` (``store.dataset(card)``), or at the
    setting ``path``. A generable part may have the settings ``samples`` and ``resolution``: if one
    is not the default, it generates just that, into ``store.build``, and does not look at the ready
    data set. ``context`` is kept for ``load``, which finds the cache in ``store``.
    """

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.context = context

    @cached_property  # not a property: a part of somebody else's may set it
    def store(self) -> Store:
        """The cache of this run."""
        return self.context.store

    @classmethod
    def card(cls, config: Any) -> DataCard | None:
        """What is known of the data before they are there; None if there is nothing to get.

        The same for every ``path``.
        """
        return None

    @classmethod
    def ready(cls, config: Any, store: Store) -> bool:
        """Whether ``load`` has all that it needs. The default looks for the data set."""
        card = cls.card(config)
        if card is None or _elsewhere(config, card):
            return True
        try:
            return store.dataset(card) is not None
        except DataError:
            return False

    @classmethod
    def state(cls, config: Any, store: Store) -> State:
        """What a user can do with the data now."""
        card = cls.card(config)
        if card is None:
            return "needs your files" if any(cls.missing(config, store)) else "ready"
        if cls.ready(config, store):
            return "ready"
        if card.generable:
            return "generable"
        return "fetchable" if card.fetchable else "needs your files"

    @classmethod
    def prepare(cls, config: Any, wanted: Preparation, folder: Path) -> Mapping[str, Any]:
        """Check the fetched files, or generate, and write the data set into the empty ``folder``.

        Streams: memory does not grow with the data. Returns plain values to keep with the data,
        for notes of later runs (``{"samples": 1000, "solver": 1}``). Raises DataError, and
        UsageError for ``samples`` or a ``resolution`` that cannot be made.
        """
        raise DataError(f"{cls.__name__} has no data to prepare")

    @classmethod
    def obtain(cls, config: Any, store: Store, order: DataOrder) -> tuple[Path, bool]:
        """Make the data set ready; its folder, and whether it was made just now.

        Raises DataError, and UsageError if it is ready, but made otherwise than wanted.
        """
        card = cls.card(config)
        if card is None:
            raise DataError(f"{cls.__name__} has no data to prepare")
        settings = {"config": config.model_dump(mode="json"), **(order.settings or {})}
        prepare = partial(cls.prepare, config)
        return obtain(store, card, prepare, replace(order, settings=settings))

    @classmethod
    def fetched_by_runs(cls, config: Any, store: Store) -> DataCard | None:
        """The card, if a run is to get the data: they are missing, small, and nobody has to help.

        None, too, if nothing may be fetched now.
        """
        card = cls.card(config)
        if card is None or not 0 < card.size <= SMALL or fetching.why_not():
            return None
        return card if cls.state(config, store) == "fetchable" else None

    @classmethod
    def missing(cls, config: Any, store: Store) -> Iterable[str]:
        """How to get the data, if they are missing."""
        card = cls.card(config)
        if card is None or cls.ready(config, store):
            return ()
        return (how_to_get(card, store),)

    @classmethod
    def contents(cls, config: Any, store: Store) -> Mapping[str, str]:
        """Where a data set is read from the cache: its digest, as if ``path`` named its folder."""
        card = cls.card(config)
        if card is None or _elsewhere(config, card):
            return super().contents(config, store)
        found = store.dataset_digest(card)
        return {"path": found} if found else {}


def _elsewhere(config: Any, card: DataCard) -> bool:
    """Whether the settings name other data than the data set in the cache."""
    if getattr(config, "path", None):
        return True
    fields = type(config).model_fields
    asked = [name for name in ("samples", "resolution") if name in fields]
    return card.generable and any(getattr(config, n) != fields[n].default for n in asked)


def how_to_get(card: DataCard, store: Store) -> str:
    """What a user types to get a data set, for an error message."""
    try:
        store.dataset(card)
    except DataError as error:
        return str(error)
    lines = [f"no data for '{card.name}' in {store.root / 'datasets' / card.name}"]
    if card.generable:
        lines.append(f"generate them: xmodal data generate {card.name}")
    if card.generable_from:
        lines.append(f"generate them: xmodal data generate {card.name} --from PATH")
    if card.fetchable:
        lines.append(f"fetch them ({size(card.size)}): xmodal data fetch {card.name}")
    if card.files:
        names = ", ".join(file.name for file in card.files if not file.aside)
        lines.append(f"if you have {names}: xmodal data fetch {card.name} --from FOLDER")
    lines += [f"{file.name}: {file.by_hand}" for file in card.files if file.by_hand]
    if card.stand_in:
        lines.append(
            f"or use its stand-in, which is other data: xmodal run pare_{card.stand_in}, "
            f"or compare with --task {card.stand_in}"
        )
    return "\n".join(lines)
