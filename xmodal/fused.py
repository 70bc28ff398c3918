"""Fused GPU kernels in Triton, and whether this machine can run them.

A component that has such kernels also has a plain form in torch, for all other devices and data
types. Triton compiles when a kernel is first launched, which needs a C compiler and the headers of
Python, so only a launch can tell.
"""

from __future__ import annotations

import importlib
import warnings
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._triton import has_triton

__all__ = ["fused_kernels", "launch_by_rows"]

# A row and the temporaries of a kernel have so many elements in each thread.
_PER_THREAD = 16


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


def launch_by_rows(kernel: Any, x_BN: Tensor, *more: Tensor, **settings: float) -> None:
    """Launch a Triton kernel with one program per row, which holds the whole row in registers.

    Its parameters are ``x_BN``, ``more``, N, ``settings`` by name, and ``BLOCK``, the power of two
    that N fits into. The tensors are contiguous, the rows have at most 16384 tokens.
    """
    rows, tokens = x_BN.shape
    block = 1 << (tokens - 1).bit_length()
    warps = min(max(block // (32 * _PER_THREAD), 1), 32)
    # Triton's interpreter, which the tests use, runs on the CPU.
    with torch.cuda.device(x_BN.device) if x_BN.is_cuda else nullcontext():
        kernel[(rows,)](
            x_BN, *more, tokens, **settings, BLOCK=block, num_warps=warps, enable_fp_fusion=False
        )
