"""Ranks by counting, as a Triton kernel: each program ranks a few tokens of one row.

For a few thousand tokens, comparing all pairs takes a GPU less time than two sorts. Counts are
whole numbers, so equal input gives equal output.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

_TOKENS, _OTHERS = 32, 128  # the tokens of a program lie in one block of others


def ranks(scores_BN: Tensor) -> Tensor:
    """The rank ``[B, N]`` (int64) of each token: how many are higher, or equal and before it."""
    scores_BN = scores_BN.contiguous()
    ranks_BN = torch.empty_like(scores_BN, dtype=torch.int64)
    rows, tokens = scores_BN.shape
    # Triton's interpreter, which the tests use, runs on the CPU.
    with torch.cuda.device(scores_BN.device) if scores_BN.is_cuda else nullcontext():
        _count[(rows, triton.cdiv(tokens, _TOKENS))](
            scores_BN, ranks_BN, tokens, TOKENS=_TOKENS, OTHERS=_OTHERS, enable_fp_fusion=False
        )
    return ranks_BN


def try_out(device: torch.device) -> None:
    """Compile and launch the kernel."""
    ranks(torch.zeros(1, 2, device=device))


@triton.jit
def _ordered(scores):
    """Integers in the order of float32 scores; both zeros are equal."""
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _others(scores_ptr, there, tokens):
    # Beyond the row nothing is lower, and all comes after its tokens.
    scores = tl.load(scores_ptr + there, mask=there < tokens, other=0.0)
    return tl.where(there < tokens, _ordered(scores), -0x80000000)[None, :]


@triton.jit
def _count(scores_ptr, ranks_ptr, tokens, TOKENS: tl.constexpr, OTHERS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * tokens
    scores_ptr += row
    first = tl.program_id(1) * TOKENS
    at = first + tl.arange(0, TOKENS)
    own = _ordered(tl.load(scores_ptr + at, mask=at < tokens, other=0.0))[:, None]
    counts = tl.zeros([TOKENS, OTHERS], dtype=tl.int32)
    # Of equal scores the earlier one is better: all of the blocks before, none of those after.
    block = first // OTHERS * OTHERS
    for start in range(0, block, OTHERS):
        there = start + tl.arange(0, OTHERS)
        counts += (_others(scores_ptr, there, tokens) >= own).to(tl.int32)
    there = block + tl.arange(0, OTHERS)
    others, before = _others(scores_ptr, there, tokens), there[None, :] < at[:, None]
    counts += ((others > own) | ((others == own) & before)).to(tl.int32)
    for start in range(block + OTHERS, tokens, OTHERS):
        there = start + tl.arange(0, OTHERS)
        counts += (_others(scores_ptr, there, tokens) > own).to(tl.int32)
    tl.store(ranks_ptr + row + at, tl.sum(counts, 1).to(tl.int64), mask=at < tokens)
