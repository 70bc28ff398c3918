"""A fix for the library's Swin layer, which loses its window size on small grids."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.swin.modeling_swin import SwinLayer, window_partition


class SteadyLayer(SwinLayer):  # type: ignore[misc]
    """A Swin layer for grids of any size, which may change between calls.

    The library's layer shrinks its window permanently when it meets a smaller grid, and then no
    longer fits its own position table. This layer keeps its window, and pads and masks small grids,
    which equals a smaller window with the middle part of the table.
    """

    @classmethod
    def convert(cls, layer: Any) -> None:
        """Turn a layer of the library into a ``SteadyLayer``, in place."""
        layer.full_shift = layer.shift_size
        layer.__class__ = cls

    def set_shift_and_window_size(self, input_resolution: tuple[int, int]) -> None:
        """Choose the shift for this grid only."""
        self.resolution = input_resolution
        self.shift_size = 0 if min(input_resolution) <= self.window_size else self.full_shift

    def get_attn_mask(
        self, height: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> Any:
        """The library's mask, or a mask of the padding if the grid is smaller than the window."""
        if min(self.resolution) >= self.window_size:
            return super().get_attn_mask(height, width, dtype, device)
        hidden_1HW1 = torch.full((1, height, width, 1), -100.0, dtype=dtype, device=device)
        hidden_1HW1[:, : self.resolution[0], : self.resolution[1]] = 0.0
        area = self.window_size**2
        windows = window_partition(hidden_1HW1, self.window_size)
        return windows.reshape(-1, 1, area).expand(-1, area, -1)
