"""Reads YAML 1.2 and remembers the position of every value.

Only plain data is allowed: tags, anchors and duplicate keys are errors, so a recipe can neither run
code nor expand without bound. libyaml finds the structure; what a plain scalar means is decided
here, because libyaml's own rules are those of YAML 1.1 (``no`` is false, ``1:30`` is 90).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from xmodal.errors import Problem, RecipeError
from xmodal.files import read_json
from xmodal.settings import FileText

Path_ = tuple[str | int, ...]
MAX_BYTES = 1_000_000
MAX_DEPTH = 100
_OTHER_VERSION = re.compile(r"^%YAML\s+(?!1\.2\b)", re.MULTILINE)
_TAG = "tag:yaml.org,2002:"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may be built without libyaml

# The core schema of YAML 1.2, and underscores between digits.
_NULL = re.compile(r"(~|null|Null|NULL)?")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0o[0-7_]+|0x[0-9a-fA-F_]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


def _integer(text: str) -> int:
    # Base 0 would refuse the leading zeros of 010.
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: tuple[tuple[str, re.Pattern[str], Callable[[str], Any]], ...] = (
    ("null", _NULL, lambda text: None),
    ("bool", _BOOL, lambda text: text.lower() == "true"),
    ("int", _INT, _integer),
    ("float", _FLOAT, _number),
)


class Origin(NamedTuple):
    """Where a value came from: a file position, or the command line."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


_NOT_TEXT = {"", *"~nNtTfF+-.0123456789"}
"""How a plain scalar begins that may be something else than text."""


@dataclass
class Document:
    """Plain data and the origin of every key path in it.

    Text in it is ``FileText`` if the document was read from a file.
    """

    data: dict[str, Any]
    origins: dict[Path_, Origin]


def read(path: Path, shown: str | None = None) -> Document:
    """Read a recipe file. Raises RecipeError with a position; ``shown`` is the name in messages."""
    name = shown or str(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RecipeError([Problem(name, "", f"cannot be read: {error.strerror}")]) from None
    if len(raw) > MAX_BYTES:
        raise RecipeError([Problem(name, "", f"is larger than {MAX_BYTES:,} bytes")])
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError([Problem(name, "", f"is not UTF-8 text (byte {error.start})")]) from None
    folder = Path(os.path.abspath(path)).parent
    return parse(text, name, Path.cwd() if _of_an_old_run(folder, path.name) else folder)


def _of_an_old_run(folder: Path, name: str) -> bool:
    """Whether a run of version 0.1 wrote the file; its paths start from the working directory."""
    manifest = read_json(folder / "manifest.json") if name == "resolved.yaml" else {}
    return "hash" in manifest and "format" not in manifest


def parse(text: str, name: str, folder: Path | None = None) -> Document:
    """Parse the text of a recipe; ``folder`` is where relative paths in it start."""
    document = Document({}, {})
    data = _Parser(name, document.origins, folder).document(text)
    if data is None:
        return document
    if not isinstance(data, dict):
        raise RecipeError([Problem(f"{name}:1:1", "", "a recipe is a mapping of keys to values")])
    document.data = data
    return document


def parse_value(text: str, where: str) -> Any:
    """Parse one value, as in ``key=value`` on the command line."""
    return _Parser(where, {}, None).document(text)


class _Parser:
    """Turns libyaml's events into plain data, records origins, and refuses everything else."""

    def __init__(self, name: str, origins: dict[Path_, Origin], folder: Path | None) -> None:
        self.name = name
        self.origins = origins
        self.folder = folder
        self.events: Iterator[Event] = iter(())

    def document(self, text: str) -> Any:
        """The only document in ``text``; None if there is none."""
        if _OTHER_VERSION.search(text):
            raise self.problem("recipes are YAML 1.2; remove the line %YAML")
        try:
            self.events = yaml.parse(text, Loader=_LOADER)
            next(self.events)  # the stream
            if isinstance(next(self.events), StreamEndEvent):
                return None
            value = self.value(next(self.events), ())
            next(self.events)  # the end of the document
            event = next(self.events)
        except UnicodeEncodeError as error:
            raise self.problem(f"is not UTF-8 text (character {error.start})") from None
        except yaml.reader.ReaderError as error:
            before = text.encode()[: error.position].decode(errors="ignore")
            where = Origin(self.name, before.count("\n") + 1, len(before) - before.rfind("\n"))
            message = f"not valid YAML: character U+{error.character:04X} is not allowed"
            raise RecipeError([Problem(str(where), "", message)]) from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            at = Origin(self.name, *((mark.line + 1, mark.column + 1) if mark else ()))
            raise RecipeError([Problem(str(at), "", f"not valid YAML: {error.problem}")]) from None
        if isinstance(event, DocumentStartEvent):
            raise self.refuse(event, (), "not valid YAML: another document starts here")
        return value

    def problem(self, message: str) -> RecipeError:
        return RecipeError([Problem(self.name, "", message)])

    def origin(self, event: Event) -> Origin:
        mark = event.start_mark
        return Origin(self.name, mark.line + 1, mark.column + 1)

    def refuse(self, event: Event, path: Path_, message: str) -> RecipeError:
        return RecipeError([Problem(str(self.origin(event)), dotted(path), message)])

    def value(self, event: Event, path: Path_) -> Any:
        """The value that begins with ``event``; reads up to its end."""
        if isinstance(event, AliasEvent) or event.anchor:
            raise self.refuse(event, path, "anchors and aliases are not allowed; use 'extends'")
        if len(path) > MAX_DEPTH:
            raise self.refuse(event, path[:3], f"is nested too deeply (over {MAX_DEPTH} levels)")
        tag = event.tag or ""
        if isinstance(event, ScalarEvent):
            return self.scalar(event, tag, path)
        if isinstance(event, MappingStartEvent) and tag in ("", "!", f"{_TAG}map"):
            return self.mapping(path)
        if isinstance(event, SequenceStartEvent) and tag in ("", "!", f"{_TAG}seq"):
            return self.sequence(path)
        raise self.refuse(event, path, f"tag {tag} is not allowed; recipes hold plain data")

    def sequence(self, path: Path_) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            at = (*path, len(items))
            self.origins[at] = self.origin(event)
            items.append(self.value(event, at))
        return items

    def mapping(self, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self.key(event, path)
            if key in result:
                raise self.refuse(event, (*path, key), "is given twice")
            self.origins[(*path, key)] = self.origin(event)
            result[key] = self.value(next(self.events), (*path, key))
        return result

    def key(self, event: Event, path: Path_) -> str:
        if isinstance(event, ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise self.refuse(
                event,
                path,
                "a merge key (<<) is not allowed; recipes hold plain data; use 'extends'",
            )
        key = self.value(event, path)
        if not isinstance(key, str):
            raise self.refuse(event, path, f"key {str(key)[:40]} is not text; write it in quotes")
        return str(key)

    def scalar(self, event: ScalarEvent, tag: str, path: Path_) -> Any:
        text = event.value
        if tag in (f"{_TAG}str", "!") or (not tag and not event.implicit[0]):
            return self.text(text)  # in quotes, or with a tag that says so
        if not tag and text[:1] not in _NOT_TEXT:
            return self.text(text)
        for name, pattern, meaning in _SCALARS:
            if tag == _TAG + name or (not tag and pattern.fullmatch(text)):
                try:
                    if pattern.fullmatch(text):
                        return meaning(text)
                except ValueError:
                    pass  # a number with ten thousand digits
                raise self.refuse(event, path, f"{text[:40]!r} is not a valid {name}")
        if tag:
            raise self.refuse(event, path, f"tag {tag} is not allowed; recipes hold plain data")
        return self.text(text)

    def text(self, text: str) -> str:
        return text if self.folder is None else FileText(text, self.folder)


def dotted(path: Path_) -> str:
    """A key path as users type it: ``stages.0.optimizer.lr``."""
    return ".".join(str(part) for part in path)
