"""Reads YAML 1.2 and remembers the position of every value.

Only plain data is allowed: tags, anchors and duplicate keys are errors, so a recipe can neither run
code nor expand without bound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from xmodal.errors import Problem, RecipeError

Path_ = tuple[str | int, ...]
MAX_BYTES = 1_000_000
_PLAIN = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")
}
# The library recognises these in text such as 2026-01-31, which is plain text in YAML 1.2.
_TEXT = {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}
_OTHER_VERSION = re.compile(r"^%YAML\s+(?!1\.2\b)", re.MULTILINE)


@dataclass(frozen=True)
class Origin:
    """Where a value came from: a file position, or the command line."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass
class Document:
    """Plain data and the origin of every key path in it."""

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
    return parse(text, name)


def parse(text: str, name: str) -> Document:
    """Parse the text of a recipe."""
    root = _compose(text, name)
    document = Document({}, {})
    if root is None:
        return document
    data = _plain(root, name, document.origins)
    if data is None:
        return document
    if not isinstance(data, dict):
        raise RecipeError([Problem(f"{name}:1:1", "", "a recipe is a mapping of keys to values")])
    document.data = data
    return document


def parse_value(text: str, where: str) -> Any:
    """Parse one value, as in ``key=value`` on the command line."""
    root = _compose(text, where)
    return None if root is None else _plain(root, where, {})


def _plain(root: Node, name: str, origins: dict[Path_, Origin]) -> Any:
    try:
        return _Walk(name, origins).value(root, ())
    except RecursionError:
        raise RecipeError([Problem(name, "", "is nested too deeply")]) from None


@lru_cache(maxsize=256)  # the recipes of a comparison share most of their layers
def _compose(text: str, name: str) -> Node | None:
    if _OTHER_VERSION.search(text):
        raise RecipeError([Problem(name, "", "recipes are YAML 1.2; remove the line %YAML")])
    try:
        return YAML(typ="safe", pure=True).compose(text)  # type: ignore[no-any-return]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise RecipeError([Problem(where, "", f"not valid YAML: {error.problem}")]) from None
    except (YAMLError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RecipeError([Problem(name, "", f"not valid YAML: {reason}")]) from None


class _Walk:
    """Turns a node tree into plain data, records origins, and refuses everything else."""

    def __init__(self, name: str, origins: dict[Path_, Origin]) -> None:
        self.name = name
        self.origins = origins
        self.construct = YAML(typ="safe", pure=True).constructor.construct_object

    def origin(self, node: Node) -> Origin:
        return Origin(self.name, node.start_mark.line + 1, node.start_mark.column + 1)

    def refuse(self, node: Node, path: Path_, message: str) -> RecipeError:
        return RecipeError([Problem(str(self.origin(node)), dotted(path), message)])

    def value(self, node: Node, path: Path_) -> Any:
        if node.anchor:
            raise self.refuse(node, path, "anchors and aliases are not allowed; use 'extends'")
        if str(node.tag) in _TEXT and isinstance(node, ScalarNode):
            return node.value
        if str(node.tag) not in _PLAIN:
            raise self.refuse(node, path, f"tag {node.tag} is not allowed; recipes hold plain data")
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.origins[(*path, index)] = self.origin(item)
                items.append(self.value(item, (*path, index)))
            return items
        assert isinstance(node, ScalarNode)
        try:
            return self.construct(node)
        except (ValueError, KeyError, YAMLError):
            # For example "!!int x", or a number with ten thousand digits.
            shown = repr(node.value[:40])
            raise self.refuse(
                node, path, f"{shown} is not a valid {str(node.tag).rpartition(':')[2]}"
            ) from None

    def mapping(self, node: MappingNode, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.value(key_node, path)
            if not isinstance(key, str):
                raise self.refuse(key_node, path, f"key {key!r} is not text")
            if key in result:
                raise self.refuse(key_node, (*path, key), "is given twice")
            self.origins[(*path, key)] = self.origin(key_node)
            result[key] = self.value(value_node, (*path, key))
        return result


def dotted(path: Path_) -> str:
    """A key path as users type it: ``stages.0.optimizer.lr``."""
    return ".".join(str(part) for part in path)
