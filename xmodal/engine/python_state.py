"""State that components keep in Python between steps, which a replayed step would not change.

Seen are the attributes of components and of what they hold: plain values, containers of them,
tensors that are no parameters or buffers of the model, and random generators. Large tensors are not
copied, so ``restore`` leaves them as they are.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from xmodal.engine.session import RunSession
from xmodal.interfaces import Component

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_TORCH = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
_DEPTH = 8
_COPIED = 2**26
"""Bytes of the largest tensors that are copied."""
_MOST = 10_000
"""Of more entries in one container only the number is looked at."""


class PythonState:
    """The state of ``roots``, by name, at one moment."""

    def __init__(self, roots: Mapping[str, object], apart: Iterable[Tensor]) -> None:
        """``apart``: tensors that are watched elsewhere."""
        self.values: dict[str, Any] = {}
        """By where it is: something that differs after a change."""
        self._undo: list[Callable[[], object]] = []
        self._seen: dict[int, object] = {}
        self._apart = {id(tensor) for tensor in apart}
        for name, root in roots.items():
            self._look(name, root, _DEPTH)

    @classmethod
    def of(cls, session: RunSession) -> Self:
        """The state of the components of a run."""
        stages = {f"stage {number}": stage for number, stage in enumerate(session.stages)}
        model = session.model
        tensors = [*model.parameters(), *model.buffers()]
        return cls({**dict(model.named_children()), **stages}, tensors)

    def changed(self, later: PythonState) -> str | None:
        """Where ``later`` differs first, or None."""
        for name in self.values | later.values:
            if name not in self.values or name not in later.values:
                return name
            if self.values[name] != later.values[name]:
                return name
        return None

    def restore(self) -> None:
        """Put everything back."""
        for undo in self._undo:
            undo()

    def _look(self, name: str, value: object, depth: int) -> None:
        if id(value) in self._apart:
            return
        if isinstance(value, _PLAIN):
            self.values[name] = repr(value)
        elif id(value) in self._seen:
            self.values[name] = id(value)
        elif depth:
            self._seen[id(value)] = value  # kept, so that no other object gets its id
            self._enter(name, value, depth - 1)

    def _enter(self, name: str, value: Any, depth: int) -> None:
        match value:
            case Tensor():
                self.values[name] = (id(value), _version(value))
                if value.nbytes <= _COPIED:
                    self._undo.append(_tensor(value))
            case np.ndarray():
                kept = value.copy()
                self.values[name] = kept.tobytes() if kept.dtype != object else id(value)
                if value.flags.writeable:
                    self._undo.append(lambda: np.copyto(value, kept))
            case torch.Generator():
                state = value.get_state()
                self.values[name] = state.numpy().tobytes()
                self._undo.append(lambda: value.set_state(state))
            case np.random.Generator():
                bits = value.bit_generator
                numbers = bits.state
                self.values[name] = repr(numbers)
                self._undo.append(lambda: setattr(bits, "state", numbers))
            case np.random.RandomState():
                numbers = value.get_state(legacy=False)
                self.values[name] = repr(numbers)
                self._undo.append(lambda: value.set_state(numbers))
            case random.Random():
                now = value.getstate()
                self.values[name] = now
                self._undo.append(lambda: value.setstate(now))
            case dict() | list() | deque() | set() | tuple() | frozenset():
                self._look_into(name, value, depth)
            case _ if _is_state(value):
                self._look_into_object(name, value, depth)

    def _look_into(self, name: str, value: Any, depth: int) -> None:
        if isinstance(value, dict | list | deque | set):
            kind = dict if isinstance(value, dict) else set if isinstance(value, set) else list
            kept: Any = kind(value)  # a copy of a subclass might want arguments
            self._undo.append(lambda: _refill(value, kept))
        self.values[f"len({name})"] = len(value)
        if isinstance(value, set | frozenset):
            self.values[name] = hash(frozenset(map(id, value)))
        elif len(value) <= _MOST:
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for key, entry in entries:
                self._look(f"{name}[{key!r}]", entry, depth)

    def _look_into_object(self, name: str, value: Any, depth: int) -> None:
        held = vars(value)
        kept = dict(held)
        self._undo.append(lambda: _refill(held, kept))
        for key, entry in kept.items():
            if not isinstance(value, nn.Module):
                self._look(f"{name}.{key}", entry, depth)
            elif key in ("_parameters", "_buffers", "_modules"):
                for inner, child in entry.items():
                    self._look(f"{name}.{inner}", child, _DEPTH)
            elif key not in _TORCH:
                self._look(f"{name}.{key}", entry, depth)


def _is_state(value: Any) -> bool:
    """Whether an object is a component or a helper of one, not the engine or a library."""
    package = type(value).__module__.partition(".")[0]
    library = package in ("builtins", "torch", "numpy", "functools", "accelerate", "pydantic")
    engine = type(value).__module__.startswith(("xmodal.engine.session", "xmodal.data"))
    data = isinstance(value, torch.utils.data.Dataset | torch.optim.Optimizer)
    named = hasattr(value, "__dict__") and isinstance(vars(value), dict)
    return isinstance(value, nn.Module) or (named and not (library or engine or data))


def _version(value: Tensor) -> int | None:
    """How often a tensor was written into; None if it does not count."""
    return None if value.is_inference() else value._version


def _tensor(value: Tensor) -> Callable[[], object]:
    version, kept = _version(value), value.detach().clone()

    def undo() -> None:
        if version is None or _version(value) != version:
            with torch.no_grad():
                value.copy_(kept)

    return undo


def _refill(container: Any, kept: Any) -> None:
    """Give a container its entries back, if it has others."""
    if _entries(container) == _entries(kept):
        return
    container.clear()
    if isinstance(container, list | deque):
        container.extend(kept)
    else:
        container.update(kept)


def _entries(container: Any) -> Any:
    if isinstance(container, dict):
        return [(key, id(entry)) for key, entry in container.items()]
    ids = map(id, container)
    return frozenset(ids) if isinstance(container, set) else list(ids)


def attributes(session: RunSession) -> dict[str, Any]:
    """The attributes of modules, components and stages; of tensors not the values, but the places.

    Modules have their parameters and buffers in attributes, too.
    """
    stages = {f"stage {number}": stage for number, stage in enumerate(session.stages)}
    owners = (*_owners(session.model), *stages.items())
    return {where: _content(vars(owner)) for where, owner in owners}


def _owners(model: nn.Module) -> Iterator[tuple[str, object]]:
    """All modules and the components that they hold, by path."""
    for path, module in model.named_modules():
        yield path, module
        for name, value in vars(module).items():
            if isinstance(value, Component):
                yield f"{path}.{name}", value


def _content(value: Any) -> Any:
    if isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, Tensor):
        place = value.data_ptr() if value.layout == torch.strided else id(value)
        return place, value.requires_grad
    if isinstance(value, list | tuple):
        return [_content(entry) for entry in value]
    return {key: _content(entry) for key, entry in value.items()} if type(value) is dict else None
