"""Writes the reference pages of the site from the code: interfaces, hooks, and all settings.

A hook of mkdocs (``hooks:`` in mkdocs.yml): the pages exist in the built site alone, so that they
cannot differ from the code. ``pages()`` gives their text.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xmodal import batch, hookspecs, interfaces
from xmodal.authoring import describe
from xmodal.data import Store
from xmodal.interfaces import INTERFACES, Component
from xmodal.plugins import HOOKS, registry
from xmodal.recipe.datasets import NamedData, all_named
from xmodal.text import size

FOLDER = "reference"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those that mkdocs builds."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Every generated page by its path below docs/."""
    made = {"index": _index(), "data": _data(), "datasets": _datasets()}
    made |= {interface.kind: _kind(interface) for interface in INTERFACES}
    return {f"{FOLDER}/{name}.md": text for name, text in made.items()}


def _index() -> str:
    rows = []
    for name, hook in vars(hookspecs).items():
        if name.startswith("xmodal_"):
            kind = next((k for k, h in HOOKS.items() if h == name), None)
            page = f"[{kind}]({kind}.md)" if kind else ""
            rows.append((f"`{name}`", page, _first(hook)))
    return _page(
        "Reference",
        "Made from the code when this site is built. [Writing a plugin](../plugins.md) explains "
        "how the pieces fit together; [Data](data.md) lists what flows between them.",
        "## Hooks",
        _table(("hook", "kind", "what it gives"), rows),
        "## What all components have",
        _doc(Component),
        *_methods(Component, Component),
    )


def _data() -> str:
    parts = []
    for module in (batch, interfaces):
        found = [v for v in vars(module).values() if inspect.isclass(v)]
        for cls in found:
            if dataclasses.is_dataclass(cls) and cls.__module__.startswith("xmodal."):
                known = f"### {cls.__name__}"
                if known not in parts:
                    parts += [known, _doc(cls), _table(("field", "type", "default"), _fields(cls))]
    return _page("Data", "Plain records, most of them frozen: return new ones.", *parts)


def _fields(cls: type[Any]) -> Iterator[tuple[str, str, str]]:
    for field in dataclasses.fields(cls):
        given = field.default is not dataclasses.MISSING
        made = field.default_factory is not dataclasses.MISSING
        default = _code(repr(field.default)) if given else ("empty" if made else "required")
        if given and callable(field.default):
            default = "nothing"
        yield _code(field.name), _code(str(field.type)), default


def _datasets() -> str:
    """Every data set with a card, by benchmark: what ``xmodal data list`` knows of it."""
    store = Store(Path("nowhere"))  # as published, whatever is here
    named = [one for one in all_named(registry()) if isinstance(one, NamedData) and one.card]
    rows: dict[str, list[tuple[str, ...]]] = {}
    for one in named:
        card, facts = one.card, one.use.component.describe(*_asked(one, store))
        assert card is not None
        shape = "x".join(map(str, getattr(facts, "shape", ()))) or facts.modality
        metric = one.use.config.metric.name if one.recipe else ""
        ways = [("generate", card.generable), ("fetch", card.fetchable)]
        how = ", ".join(word for word, can in ways if can) or "your files"
        samples = getattr(facts, "samples", {})
        row = (
            _code(one.name), shape, f"{facts.target.kind} {facts.target.size}",
            "/".join(map(str, samples.values())), _code(metric) if metric else "",
            size(card.size), card.licence, how,
            _code(card.stand_in) if card.stand_in else "", card.source,
        )  # fmt: skip
        rows.setdefault(card.benchmark, []).append(row)
    columns = (
        "name", "sample", "label", "training/validation/test", "metric", "size", "licence",
        "made ready by", "stand-in", "source",
    )  # fmt: skip
    parts = [part for name in sorted(rows) for part in (f"## {name}", _table(columns, rows[name]))]
    return _page(
        "Data sets",
        "What can be fetched or generated, as published: `xmodal data list` shows what is ready "
        "here. [Data](../data.md) says how to get it.",
        *parts,
    )


def _asked(one: NamedData, store: Store) -> tuple[Any, ...]:
    return (one.use.config, store) if one.recipe else (one.use.config,)


def _kind(interface: type[Component]) -> str:
    kind, hook = interface.kind, HOOKS[interface.kind]
    found = registry()
    built_in = [n for n in found.names(kind) if found.entry(kind, n).distribution == "xmodal"]
    parts = []
    for name in built_in:
        component = found.load(kind, name)
        settings = describe.settings(component)
        rows = [(_code(n), _code(t), _code(d), w) for n, t, d, w in settings]
        parts += [f"### {name}", _doc(component)]
        parts.append(
            _table(("setting", "type", "default", "what"), rows) if rows else "No settings."
        )
        parts += [f"From: {component.citation}"] if component.citation else []
    return _page(
        f"{interface.__name__}",
        f"Hook `{hook}`: {_first(getattr(hookspecs, hook))}",
        f"Class `xmodal.interfaces.{interface.__name__}`:",
        _doc(interface),
        "## Interface",
        *_attributes(interface),
        *_methods(interface, Component),
        f"## Built-in {hook.removeprefix('xmodal_')}",
        *parts,
    )


def _attributes(interface: type[Component]) -> list[str]:
    """What a class of the kind may set, with what holds if it does not."""
    rows = [
        (
            _code(name),
            _code(repr(getattr(interface, name)) if hasattr(interface, name) else "set it"),
        )
        for name in inspect.get_annotations(interface)
        if not name.startswith("_")
    ]
    return [_table(("attribute", "default"), rows)] if rows else []


def _methods(interface: type[Component], base: type[Component]) -> Iterator[str]:
    """Every public method and property that an interface brings, the ones to write first."""
    own = interface is base
    names = [n for n in vars(interface) if not n.startswith("_") or n in ("__call__", "__init__")]
    members = {n: inspect.getattr_static(interface, n) for n in names}
    methods = {n: m for n, m in members.items() if _function(m) is not None}
    order = sorted(methods, key=lambda n: n not in interface.__abstractmethods__)
    for name in order:
        function = _function(methods[name])
        assert function is not None
        must = name in interface.__abstractmethods__
        state = "to be written" if must else "given; may be replaced"
        if own and name == "__init__":
            state = "given; extend it where something must be kept"
        yield f"### `{name}` ({state})"
        yield f"```text\n{_signature(name, methods[name])}\n```"
        yield inspect.cleandoc(function.__doc__ or "")


def _function(member: Any) -> Any:
    if isinstance(member, property):
        return member.fget
    if isinstance(member, classmethod | staticmethod):
        return member.__func__
    return member if inspect.isfunction(member) else None


def _signature(name: str, member: Any) -> str:
    function = _function(member)
    # As it is written, not as it is evaluated: the names of the interfaces, not their modules.
    signature = str(inspect.signature(function)).replace("'", "")
    if isinstance(member, property):
        return f"@property\n{name}{signature}"
    return (
        f"@classmethod\n{name}{signature}" if isinstance(member, classmethod) else name + signature
    )


def _doc(cls: type[Any]) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


def _first(documented: Any) -> str:
    return describe.first_sentence(documented.__doc__ or "")


def _code(text: str) -> str:
    return f"`{text}`"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", *(part for part in parts if part)]) + "\n"
