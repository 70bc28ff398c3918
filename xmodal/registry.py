"""The table of everything that plugins registered: look a component up by kind and name.

It holds names only; a class is imported when ``Registry.load`` is asked for it.
"""

from __future__ import annotations

import importlib
import inspect
import types
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from xmodal.errors import PluginError, UsageError, did_you_mean

if TYPE_CHECKING:
    from xmodal.interfaces import Component

ALLOW = "XMODAL_PLUGINS"


@dataclass(frozen=True)
class Entry:
    """One registered component."""

    kind: str
    name: str
    target: str
    plugin: str
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """Distribution and version, as shown to users."""
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be loaded, and the one line that says why."""

    plugin: str
    distribution: str
    reason: str


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that was loaded."""

    plugin: str
    distribution: str
    version: str
    module: types.ModuleType
    digest: str = ""


@dataclass
class Registry:
    """Every component that is installed, by kind and name."""

    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    collisions: dict[tuple[str, str], tuple[Entry, ...]] = field(default_factory=dict)
    broken: list[BrokenPlugin] = field(default_factory=list)
    plugins: list[LoadedPlugin] = field(default_factory=list)

    def names(self, kind: str) -> list[str]:
        """The registered names of a kind, sorted."""
        return sorted(name for k, name in self.entries if k == kind)

    def entry(self, kind: str, name: str) -> Entry:
        """Look a name up. Raises UsageError with the nearest name, PluginError on a collision."""
        if (kind, name) in self.collisions:
            rivals = " and ".join(entry.origin for entry in self.collisions[kind, name])
            raise PluginError(
                f"{kind} '{name}' is provided by both {rivals}; uninstall one or set {ALLOW}"
            )
        found = self.entries.get((kind, name))
        if found is None:
            raise UsageError(self.unknown(kind, name))
        return found

    def unknown(self, kind: str, name: str) -> str:
        """The message for an unknown name: nearest match, what is installed, what is broken."""
        lines = [f"unknown {kind} '{name}'{did_you_mean(name, self.names(kind))}"]
        shown = ", ".join(f"{e.name} ({e.origin})" for e in self._of(kind))
        lines.append(f"installed: {shown or 'none'}")
        lines += [f"not loaded: plugin '{b.plugin}': {b.reason}" for b in self.broken]
        return "\n".join(lines)

    def _of(self, kind: str) -> list[Entry]:
        return [self.entries[key] for key in sorted(self.entries) if key[0] == kind]

    def load(self, kind: str, name: str) -> type[Component]:
        """Import the class behind a name and check that it implements the interface of its kind."""
        entry = self.entry(kind, name)
        module_name, _, attribute = entry.target.partition(":")
        try:
            loaded = getattr(importlib.import_module(module_name), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{kind} '{name}' of {entry.origin} cannot be imported from {entry.target}: "
                f"{reason(error)}"
            ) from error
        return checked(entry, loaded)

    def recipe_folders(self) -> list[tuple[str, Traversable]]:
        """Recipe folders of all plugins, as (distribution, folder)."""
        folders = []
        for plugin in self.plugins:
            hook = getattr(plugin.module, "xmodal_recipes", None)
            if hook is not None:
                try:
                    folders.append((plugin.distribution, hook()))
                except Exception as error:
                    broken = BrokenPlugin(plugin.plugin, plugin.distribution, reason(error))
                    self.broken += [] if broken in self.broken else [broken]
        return folders


def checked(entry: Entry, loaded: Any) -> type[Component]:
    """What was loaded, if it is a complete class of its kind. Raises PluginError."""
    from xmodal.interfaces import INTERFACES

    base = next(interface for interface in INTERFACES if interface.kind == entry.kind)
    if not (inspect.isclass(loaded) and issubclass(loaded, base)):
        raise PluginError(
            f"{entry.kind} '{entry.name}' of {entry.origin}: {entry.target} is not a subclass of "
            f"xmodal.interfaces.{base.__name__}"
        )
    if inspect.isabstract(loaded):
        missing = ", ".join(sorted(loaded.__abstractmethods__))
        raise PluginError(
            f"{entry.kind} '{entry.name}' of {entry.origin} does not implement: {missing}"
        )
    return loaded


def reason(error: BaseException) -> str:
    """One line that says what went wrong in a plugin."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"
