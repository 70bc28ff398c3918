"""CPU time and accuracy of PaRe's relaxed draw: the closed form against the loop of softmaxes.

One training step draws two masks, k source tokens and N - k target tokens; both are drawn here,
forward and backward, in float32. The loop needs gigabytes for a large batch, so it can take it in
chunks. Run ``python benchmarks/subset_draw.py``; the defaults take half a minute.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xmodal.ops import gumbel_noise, straight_through
from xmodal_pare.draw import relaxed_subset, relaxed_subset_exact

TEMPERATURE = 0.9
Draw = Callable[[Tensor, int, float], Tensor]


@dataclass(frozen=True)
class Drawn:
    """What one way of drawing gave for a whole batch."""

    mask_BN: Tensor
    gradient_BN: Tensor
    seconds: float


def draw(method: Draw, keys_BN: Tensor, weight_BN: Tensor, k: int, chunk: int) -> Drawn:
    """Draw a mask and backpropagate ``weight_BN`` through it, ``chunk`` rows at a time."""
    masks, gradients = [], []
    start = time.process_time()
    for keys, weight in zip(keys_BN.split(chunk), weight_BN.split(chunk), strict=True):
        leaf = keys.clone().requires_grad_(True)
        mask = straight_through(method(leaf, k, TEMPERATURE), k)
        gradients += torch.autograd.grad((mask * weight).sum(), leaf)
        masks.append(mask.detach())
    seconds = time.process_time() - start
    return Drawn(torch.cat(masks), torch.cat(gradients), seconds)


def compare(keys_BN: Tensor, weight_BN: Tensor, k: int, chunk: int, repeats: int) -> list[float]:
    """One row of the table: k, seconds of the loop and of the closed form, and how they differ."""
    loop = draw(relaxed_subset_exact, keys_BN, weight_BN, k, chunk)
    batch = keys_BN.shape[0]
    draw(relaxed_subset, keys_BN, weight_BN, k, batch)
    closed = [draw(relaxed_subset, keys_BN, weight_BN, k, batch) for _ in range(repeats)]
    seconds = sorted(drawn.seconds for drawn in closed)[repeats // 2]
    mismatches = (loop.mask_BN != closed[0].mask_BN).sum().item()
    cosine_B = torch.cosine_similarity(loop.gradient_BN, closed[0].gradient_BN, dim=1)
    norms_B = closed[0].gradient_BN.norm(dim=1) / loop.gradient_BN.norm(dim=1)
    return [
        k,
        loop.seconds,
        seconds,
        mismatches,
        cosine_B.mean().item(),
        cosine_B.min().item(),
        norms_B.mean().item(),
    ]


def main() -> None:
    """Print one line for each of the two masks, and the ratio of their total times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=3136)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--chunk", type=int, default=8, help="rows the loop handles at a time")
    parser.add_argument("--repeats", type=int, default=11, help="runs of the closed form")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, options.tokens)
    scores_BN = torch.sigmoid(0.5 * torch.randn(shape, generator=generator))
    keys_BN = scores_BN + gumbel_noise(scores_BN, generator)
    weight_BN = torch.randn(shape, generator=generator)
    print(f"B={options.batch} N={options.tokens} temperature={TEMPERATURE} float32 CPU seconds")
    header = ("k", "loop s", "closed s", "mask differs", "cosine mean", "cosine min", "norm ratio")
    print(" ".join(f"{name:>12}" for name in header))
    rows = []
    for k in (options.k, options.tokens - options.k):
        rows.append(compare(keys_BN, weight_BN, k, options.chunk, options.repeats))
        print(" ".join(f"{value:12.5g}" for value in rows[-1]), flush=True)
    loop, closed = sum(row[1] for row in rows), sum(row[2] for row in rows)
    print(f"both masks: {loop:.2f} s against {closed:.4f} s, ratio {loop / closed:.0f}")


if __name__ == "__main__":
    main()
