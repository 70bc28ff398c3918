"""Parameters that forward passes write into, such as the moving averages of a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A block in which ``parameters`` are copied before anything but an optimizer changes them."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._whole = {p.untyped_storage().data_ptr(): p for p in parameters}
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # The update of a fused optimizer is one operation, which can be told to change nothing.
        if func._schema.is_mutable and not func.overloadpacket.__name__.startswith("_fused_"):
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._keep(tree_leaves(value))
        return func(*args, **(kwargs or {}))

    def _keep(self, written: Iterable[Any]) -> None:
        for tensor in written:
            if isinstance(tensor, Tensor):
                whole = self._whole.pop(tensor.untyped_storage().data_ptr(), None)
                if whole is not None:
                    self._before.append((whole, whole.detach().clone()))

    @torch.no_grad()
    def undo(self) -> None:
        """Give the parameters back what they had before."""
        for parameter, value in self._before:
            parameter.data.copy_(value)
