"""Fused GPU kernels in Triton, and whether this machine can run them.

A component that has such kernels also has a plain form in torch, for all other devices and data
types. Triton compiles when a kernel is first launched, which needs a C compiler and the headers of
Python, so only a launch can tell.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._triton import has_triton

__all__ = ["fused_kernels"]


def fused_kernels(module: str, x: Tensor) -> Any:
    """The imported ``module`` of Triton kernels if they run on the device of ``x``, or None.

    The module must have ``try_out(device)``, which launches a kernel on a few numbers. It is called
    once; if it fails, the plain form is used from then on, with one warning.
    """
    return _working(module, x.device) if x.device.type == "cuda" else None


@cache
def _working(module: str, device: torch.device) -> Any:
    if not has_triton():
        return None
    try:
        kernels = importlib.import_module(module)
        with torch.cuda.device(device):
            kernels.try_out(device)
    except Exception as error:  # a missing compiler shows as almost any exception
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        text = f"the fused kernels of '{module}' cannot be used, plain ones run instead: {first}"
        warnings.warn(text, stacklevel=3)
        return None
    return kernels
