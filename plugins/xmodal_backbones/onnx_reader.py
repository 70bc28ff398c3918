"""Reads the weights in an ONNX file, without the onnx package.

It reads only the initializers, and which node uses each of them. The graph is never run. Field
numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.errors import DataError

_GRAPH = 7
_NODE, _INITIALIZER = 1, 5
_NODE_INPUT, _NODE_NAME = 1, 3
_DIMS, _DATA_TYPE, _NAME, _RAW = 1, 2, 8, 9
_TYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 7: np.dtype("<i8")}


@dataclass(frozen=True)
class Weights:
    """Initializers by name, and the nodes that read each name."""

    tensors: dict[str, np.ndarray[Any, Any]]
    readers: dict[str, list[str]]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one protobuf message, as (number, integer or bytes)."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        value: int | memoryview
        if kind == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            if at + size > len(data):
                raise ValueError("the file ends early")
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _text(value: int | memoryview) -> str:
    assert isinstance(value, memoryview)
    return bytes(value).decode()


def _packed(value: int | memoryview) -> Iterator[int]:
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _tensor(data: memoryview) -> tuple[str, np.ndarray[Any, Any] | None]:
    shape: list[int] = []
    name, kind, raw = "", 0, None
    for number, value in _fields(data):
        if number == _DIMS:
            shape += _packed(value)
        elif number == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == _NAME:
            name = _text(value)
        elif number == _RAW:
            raw = value
    if raw is None or kind not in _TYPES or not isinstance(raw, memoryview):
        return name, None
    if len(raw) != math.prod(shape) * _TYPES[kind].itemsize:
        raise ValueError(f"the size of '{name}' does not fit its shape")
    return name, np.frombuffer(raw, _TYPES[kind]).reshape(shape)


def read_weights(path: Path) -> Weights:
    """Read all initializers that are stored as raw numbers. Raises DataError."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    readers: dict[str, list[str]] = {}
    try:
        model = memoryview(path.read_bytes())
        graph = next(value for number, value in _fields(model) if number == _GRAPH)
        assert isinstance(graph, memoryview)
        for number, value in _fields(graph):
            if number == _INITIALIZER and isinstance(value, memoryview):
                name, tensor = _tensor(value)
                if tensor is not None:
                    tensors[name] = tensor
            elif number == _NODE and isinstance(value, memoryview):
                fields = list(_fields(value))
                node = next((_text(v) for n, v in fields if n == _NODE_NAME), "")
                for source in (_text(v) for n, v in fields if n == _NODE_INPUT):
                    readers.setdefault(source, []).append(node)
    except (OSError, ValueError, KeyError, IndexError, StopIteration) as error:
        raise DataError(f"{path} is not a readable ONNX file: {error}") from error
    return Weights(tensors, readers)
