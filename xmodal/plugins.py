"""Finds plugins, isolates broken plugins, and looks up components by name.

This is the only module that uses pluggy. It loads the entry points of the group ``xmodal`` one by
one, each in its own ``try``. The components they list go into a ``Registry``, which holds only
names; ``Registry.load`` imports a class. Hooks are called through pluggy, one plugin at a time, so
that a failure affects only its own plugin.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import pluggy

from xmodal import hookspecs
from xmodal.errors import PluginError, UsageError, did_you_mean, nearest
from xmodal.files import contents
from xmodal.text import MOST_KNOWN, shortlist

log = logging.getLogger(__name__)
GROUP = "xmodal"
INTERFACES = "xmodal.interfaces"
ALLOW = "XMODAL_PLUGINS"
STRICT = "XMODAL_STRICT_PLUGINS"


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
    """A plugin that could not be loaded, and the reason in one line."""

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


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


@dataclass
class Registry:
    """Every installed component, by kind and name, and the plugins that provide them."""

    manager: pluggy.PluginManager = field(default_factory=_manager)
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    collisions: dict[tuple[str, str], tuple[Entry, ...]] = field(default_factory=dict)
    broken: list[BrokenPlugin] = field(default_factory=list)
    plugins: list[LoadedPlugin] = field(default_factory=list)

    def names(self, kind: str) -> list[str]:
        """The registered names of a kind, sorted."""
        return sorted(name for k, name in self.entries if k == kind)

    def entry(self, kind: str, name: str) -> Entry:
        """Look up a name. Raises UsageError with the nearest name, PluginError on a collision."""
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
        """The message for an unknown name: nearest match, installed components, broken plugins."""
        lines = [f"unknown {kind} '{name}'{did_you_mean(name, self.names(kind))}"]
        entries = [self.entries[kind, known] for known in self.names(kind)]
        shown = shortlist((f"{entry.name} ({entry.origin})" for entry in entries), MOST_KNOWN)
        lines.append(f"installed: {shown or 'none'}")
        lines += [f"not loaded: plugin '{b.plugin}': {b.reason}" for b in self.broken]
        return "\n".join(lines)

    def load(self, kind: str, name: str) -> type[Any]:
        """Import the class of a name and check that it implements the interface of its kind."""
        entry = self.entry(kind, name)
        announce_loading()
        module_name, _, attribute = entry.target.partition(":")
        try:
            loaded = getattr(importlib.import_module(module_name), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{kind} '{name}' of {entry.origin} cannot be imported from {entry.target}: "
                f"{reason(error)}"
            ) from error
        return checked(entry, loaded)

    def call(self, hook: str, plugin: LoadedPlugin, **arguments: Any) -> Any:
        """The return value of one plugin's hook; None if the plugin does not implement it."""
        others = [module for module in self.manager.get_plugins() if module is not plugin.module]
        answers = self.manager.subset_hook_caller(hook, others)(**arguments)
        return answers[0] if answers else None

    def offering(self, hook: str) -> list[LoadedPlugin]:
        """The plugins that implement a hook."""
        modules = [impl.plugin for impl in getattr(self.manager.hook, hook).get_hookimpls()]
        return [plugin for plugin in self.plugins if plugin.module in modules]

    def code(self, entry: Entry) -> str:
        """The digest of the code behind an entry, from which any edit can be told.

        Of a plugin file: it and the files beside it that it imports. Of a package: all files of
        the package that holds the class, whatever the version says, because a package in editable
        mode changes without it; the version, if the package is not made of files.
        """
        for plugin in self.plugins:
            if plugin.digest and (plugin.plugin, plugin.version) == (entry.plugin, entry.version):
                package = entry.target.partition(":")[0].partition(".")[0]
                own = package == plugin.module.__name__
                return plugin.digest if own else f"{plugin.digest} {_package(package)}"
        return _package(entry.target.partition(":")[0].partition(".")[0]) or entry.origin

    def hooks(self, plugin: LoadedPlugin) -> list[str]:
        """The hooks a plugin implements."""
        return [caller.name for caller in self.manager.get_hookcallers(plugin.module) or ()]

    def files(self) -> list[str]:
        """The absolute paths of the single-file plugins."""
        return [os.path.abspath(str(p.module.__file__)) for p in self.plugins if p.digest]

    def recipe_folders(self) -> list[tuple[str, Traversable]]:
        """Recipe folders of all plugins, as (distribution, folder)."""
        folders = []
        for plugin in self.offering("xmodal_recipes"):
            try:
                folders.append((plugin.distribution, self.call("xmodal_recipes", plugin)))
            except Exception as error:
                broken = BrokenPlugin(plugin.plugin, plugin.distribution, reason(error))
                self.broken += [] if broken in self.broken else [broken]
        return folders


@cache  # what a process has imported stays what it is
def _package(name: str) -> str:
    """The digest of the files of an installed package or module; empty if it has none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    if not folders:
        return contents(Path(spec.origin or ""))
    found = {
        file.relative_to(folder).as_posix(): file
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    return contents(found) if found else ""


def torch_is_loaded() -> bool:
    """Whether torch is already loaded, so that importing a component is fast."""
    return "torch" in sys.modules


def announce_loading() -> None:
    """Log, once per process, that torch will now be imported, which may take many seconds."""
    if not torch_is_loaded():
        log.info("loading torch and the required components ...")


def checked(entry: Entry, loaded: Any) -> type[Any]:
    """``loaded``, if it is a complete class of its kind. Raises PluginError."""
    if not (inspect.isclass(loaded) and any(_is_interface(c, entry.kind) for c in loaded.mro())):
        raise PluginError(
            f"{entry.kind} '{entry.name}' of {entry.origin}: {entry.target} is not a subclass of "
            f"{INTERFACES}.{entry.kind.capitalize()}"
        )
    if inspect.isabstract(loaded):
        missing = ", ".join(sorted(getattr(loaded, "__abstractmethods__", ())))
        raise PluginError(
            f"{entry.kind} '{entry.name}' of {entry.origin} does not implement: {missing}"
        )
    try:
        inspect.signature(loaded).bind(None, None)
    except TypeError:
        raise PluginError(
            f"{entry.kind} '{entry.name}' of {entry.origin}: {entry.target} must take the "
            "arguments (config, context); write __init__(self, config, context)"
        ) from None
    return loaded


def _is_interface(base: type, kind: str) -> bool:
    """Whether a class is the interface of a kind, judged by its module name without an import."""
    return base.__module__.startswith(f"{INTERFACES}.") and vars(base).get("kind") == kind


def reason(error: BaseException) -> str:
    """One line that describes an error in a plugin."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"


_SPECIAL_HOOKS = ("xmodal_recipes", "xmodal_data_recipe", "xmodal_commands")


def _plural_hooks() -> dict[str, str]:
    """Map each component kind to its hook: ``selector`` to ``xmodal_selectors``."""
    names = [name for name in vars(hookspecs) if name.startswith("xmodal_")]
    kinds = {name.removeprefix("xmodal_").removesuffix("s"): name for name in names}
    kinds["loss"] = kinds.pop("losse")  # the one irregular plural
    return {kind: hook for kind, hook in kinds.items() if hook not in _SPECIAL_HOOKS}


HOOKS = _plural_hooks()
"""The hook of each kind of component."""
KINDS = {hook: kind for kind, hook in HOOKS.items()}
"""The kind of component that each hook is for."""


def _load_entry_point(point: EntryPoint) -> types.ModuleType:
    module = point.load()
    if not isinstance(module, types.ModuleType):
        raise TypeError(f"entry point must name a module, not {type(module).__name__}")
    return module


def _unknown_hooks(module: types.ModuleType) -> list[str]:
    known = {name for name in vars(hookspecs) if name.startswith("xmodal_")}
    found = []
    for name, value in vars(module).items():
        marked = inspect.isfunction(value) and hasattr(value, "xmodal_impl")
        named = inspect.isfunction(value) and name.startswith("xmodal_")
        if (marked or named) and name not in known:
            found.append(f"unknown hook '{name}'{did_you_mean(name, known)}")
        elif named and not marked:
            found.append(f"hook '{name}' lacks the decorator @hookimpl")
    return found


def _register(registry: Registry, loaded: LoadedPlugin) -> None:
    """Register one module; on any failure list it as broken and leave nothing behind."""
    manager = registry.manager
    try:
        unknown = _unknown_hooks(loaded.module)
        if unknown:
            raise PluginError("; ".join(unknown))
        # Two distributions may use the same plugin name; only their component names must differ.
        manager.register(loaded.module, loaded.module.__name__)
        manager.check_pending()
        entries = [
            Entry(KINDS[hook], name, target, loaded.plugin, loaded.distribution, loaded.version)
            for hook in registry.hooks(loaded)
            if hook in KINDS
            for name, target in _table(hook, registry.call(hook, loaded)).items()
        ]
    except Exception as error:
        if manager.is_registered(loaded.module):
            manager.unregister(loaded.module)
        registry.broken.append(BrokenPlugin(loaded.plugin, loaded.distribution, reason(error)))
        return
    registry.plugins.append(loaded)
    for entry in entries:
        key = (entry.kind, entry.name)
        rival = registry.entries.pop(key, None)
        if key in registry.collisions:
            registry.collisions[key] += (entry,)
        elif rival is not None:
            registry.collisions[key] = (rival, entry)
        else:
            registry.entries[key] = entry


def _table(hook: str, table: Any) -> Mapping[str, str]:
    if not isinstance(table, Mapping):
        raise PluginError(f"hook '{hook}' must return a mapping, not {type(table).__name__}")
    for name, target in table.items():
        if not (isinstance(name, str) and isinstance(target, str) and target.count(":") == 1):
            raise PluginError(
                f"hook '{hook}': {name!r} must map to 'package.module:Class', not {target!r}"
            )
    return table


class _FileLoader(SourceFileLoader):
    """Compiles a plugin file itself.

    Python tells its cached bytecode from an edited file by size and whole seconds alone.
    """

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _from_file(path: str) -> LoadedPlugin:
    file = Path(path)
    if not os.path.isfile(file):
        raise UsageError(f"--plugin {path}: no such file")
    content = _content(path)
    # The digest distinguishes two files with the same name; plugins write f"{__name__}:Class".
    name = f"xmodal_plugin_{file.stem}_{content[:12]}"
    spec = importlib.util.spec_from_file_location(name, file, loader=_FileLoader(name, str(file)))
    if file.suffix != ".py" or spec is None or spec.loader is None:
        raise UsageError(f"--plugin {path}: not a Python file (.py)")
    _forget_helpers(file)
    module = importlib.util.module_from_spec(spec)
    # Register the module so that Registry.load can import its classes by name.
    sys.modules[name] = module
    # As for a script, what lies beside the file can be imported, wherever the command is called.
    # It stays so for what is imported later, within a function.
    folder = str(file.absolute().parent)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginError(f"--plugin {path}: {reason(error)}") from error
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)
    return LoadedPlugin(file.name, file.name, content[:12], module, content)


def _content(path: str) -> str:
    """The digest of a plugin file and its helpers; empty if it is missing, as discovery reports."""
    file = Path(path)
    helpers = _helpers(file) if os.path.isfile(file) else {}
    return contents({file.name: file, **helpers} if helpers else file)


def _helpers(file: Path) -> dict[str, Path]:
    """The files in the folder of a plugin file that it imports, directly or through each other."""
    folder = file.absolute().parent
    finder = ModuleFinder(path=[str(folder)])
    try:
        finder.run_script(str(file))
    except (SyntaxError, ValueError, OSError):
        return {}  # loading the file says what is wrong
    files = (getattr(module, "__file__", None) for module in finder.modules.values())
    found = (Path(name) for name in files if name)
    return {
        helper.relative_to(folder).as_posix(): helper
        for helper in found
        if helper.is_relative_to(folder) and helper != file.absolute()
    }


def _forget_helpers(file: Path) -> None:
    """Let a plugin file import its own helpers: not those of before it was edited, nor helpers of
    the same name that lie beside another plugin file of this process."""
    files = {key: getattr(module, "__file__", None) for key, module in sys.modules.items()}
    places = {
        Path(place).absolute().parent
        for key, place in files.items()
        if key.startswith("xmodal_plugin_") and place
    }
    for helper in _helpers(file):
        key = helper.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        known = files.get(key)
        if known and any(Path(known).absolute().is_relative_to(place) for place in places):
            del sys.modules[key]


def discover(files: tuple[str, ...] = ()) -> Registry:
    """Load all entry points and build a registry. ``files`` are single-file plugins."""
    registry = Registry()
    allowed = os.environ.get(ALLOW)
    wanted = None if allowed is None else {name.strip() for name in allowed.split(",")}
    points = sorted(
        entry_points(group=GROUP), key=lambda p: (p.dist.name if p.dist else "", p.name)
    )
    present = {point.name for point in points}
    for name in sorted((wanted or set()) - present - {""}):
        line = f"{ALLOW} names it, but it is not installed{did_you_mean(name, present)}"
        registry.broken.append(BrokenPlugin(name, "not installed", line))
    for point in points:
        if wanted is not None and point.name not in wanted:
            continue
        distribution = point.dist.name if point.dist else "unknown"
        version = point.dist.version if point.dist else ""
        try:
            module = _load_entry_point(point)
        except (Exception, SystemExit) as error:
            registry.broken.append(BrokenPlugin(point.name, distribution, reason(error)))
            continue
        _register(registry, LoadedPlugin(point.name, distribution, version, module))
    for path in files:
        before = len(registry.broken)
        _register(registry, _from_file(path))
        if len(registry.broken) > before:
            raise PluginError(f"--plugin {path}: {registry.broken[-1].reason}")
    if registry.broken and os.environ.get(STRICT) == "1":
        first = registry.broken[0]
        raise PluginError(f"plugin '{first.plugin}' ({first.distribution}): {first.reason}")
    return registry


def registry(files: tuple[str, ...] = ()) -> Registry:
    """The registry of this process; discovery runs once for each set of plugin files.

    A file that has changed since then is read again.
    """
    return _discovered(files, tuple(map(_content, files)))


@lru_cache(maxsize=8)
def _discovered(files: tuple[str, ...], contents: tuple[str, ...]) -> Registry:
    return discover(files)


def as_options(files: Iterable[str]) -> list[str]:
    """The options that let a command import plugin files, wherever it runs."""
    return [part for file in files for part in ("--plugin", os.path.abspath(file))]


def find_kind(name: str) -> str:
    """Check a kind's name. Raises UsageError with the nearest one."""
    if name not in HOOKS:
        hint = nearest(name, HOOKS)
        raise UsageError(
            f"unknown kind '{name}'"
            + (f"; did you mean '{hint}'?" if hint else "")
            + f"\nkinds: {', '.join(sorted(HOOKS))}"
        )
    return name


def add_commands(app: Any) -> list[str]:
    """Let plugins add commands to the CLI; return one line for each plugin that failed."""
    found, failures = registry(), []
    for plugin in found.offering("xmodal_commands"):
        try:
            found.call("xmodal_commands", plugin, app=app)
        except (Exception, SystemExit) as error:
            failures.append(f"plugin '{plugin.plugin}': {reason(error)}")
    return failures
