"""The base of every part: a nested ``Config``, a ``Context``, and checks before a run.

The recipe block of a part *is* its ``Config``. A part learns about the rest of the run from
``Facts`` and receives run-time objects in a ``Context``.
"""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from xmodal import randomness
from xmodal.data.store import Store
from xmodal.facts import NO_FACTS, Facts, Target
from xmodal.files import contents
from xmodal.settings import Settings


@dataclass(frozen=True)
class Context:
    """The run-time objects that a component is built with.

    ``generator`` is the component's own source of randomness (on the CPU); its state is saved with
    every checkpoint. ``components`` holds the parts that the component uses (a mixer gets
    ``selector`` and ``scheduler``, an embedder gets ``backbone``; a predictor gets that, and the
    recipe's ``Use`` of the task as ``task``). ``output`` is what a predictor must predict. ``note``
    records one line for the user.

    Every part gets a context; trackers, launchers and exporters get one from ``Context.outside``.
    """

    facts: Facts
    generator: torch.Generator
    store: Store
    components: Mapping[str, Any] = field(default_factory=dict)
    output: Target | None = None
    note: Callable[[str], None] = lambda line: None

    @classmethod
    def outside(
        cls,
        store: Store,
        name: str = "",
        seed: int = 0,
        facts: Facts = NO_FACTS,
        note: Callable[[str], None] = lambda line: None,
        **components: Any,
    ) -> Context:
        """The context of a part that does not belong to a run.

        ``facts`` is ``NO_FACTS`` if no task and backbone are known. The generator equals that of
        the part ``name`` in a run with this seed.
        """
        generator = randomness.generator(seed, "component", name)
        return cls(facts, generator, store, components, note=note)


class Component(ABC):
    """A named, configurable part.

    Concrete classes nest a ``Config`` that derives from ``Settings``. ``citation`` names the source
    of the idea in one line.
    """

    kind: ClassVar[str]
    Config: ClassVar[type[Settings]] = Settings
    citation: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not (inspect.isclass(cls.Config) and issubclass(cls.Config, Settings)):
            raise TypeError(
                f"{cls.__qualname__}.Config must derive from xmodal.interfaces.Settings"
            )

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def renamed(cls, name: str, settings: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Translate an old recipe block of this part into today's name and settings.

        This serves recipes written before a part or a setting was renamed. The default changes
        nothing.
        """
        return name, settings

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Problems of this component in this run that can be found before loading weights."""
        return ()

    @classmethod
    def missing(cls, config: Any, store: Store) -> Iterable[str]:
        """Files that the user must fetch first: which, how large, from where, where to put them."""
        return ()

    @classmethod
    def contents(cls, config: Any, store: Store) -> Mapping[str, str]:
        """Digests of the files that settings name, by setting, for the identity of a run.

        A digest stands there in place of the setting, so that files can be moved, but not edited.
        Only settings that are text, or of which some files alone are read, need to be listed: any
        other setting that is a ``Path``, or called ``path``, counts by all that lies there. A
        setting that names no file stays out. ``xmodal.files.contents`` makes digests. Raises
        DataError.
        """
        path = getattr(config, "path", None)
        digest = contents(Path(path).expanduser()) if path and isinstance(path, str) else ""
        return {"path": digest} if digest else {}
