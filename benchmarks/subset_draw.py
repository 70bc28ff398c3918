"""CPU time and accuracy of PaRe's relaxed draw: the closed form against the loop of softmaxes.

One training step draws two masks, k source tokens and N - k target tokens; both are drawn here,
forward and backward, in float32. The loop needs gigabytes for a large batch, so it can take it in
chunks. Run ``python benchmarks/subset_draw.py``; the defaults take half a minute. Where there is a
GPU, the closed form is timed there too, called from Python and replayed as a CUDA graph.

Shapes: B samples, N tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xmodal.ops import gumbel_noise, hard_subset, straight_through
from xmodal_pare.draw import relaxed_subset, relaxed_subset_exact

TEMPERATURE = 0.9
Draw = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Drawn:
    """What one way of drawing gave for a whole batch."""

    mask_BN: Tensor
    gradient_BN: Tensor
    seconds: float


def masked(method: Draw, keys_BN: Tensor, weight_BN: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """A mask, and the gradient of ``weight_BN`` times it. Leaves ``keys_BN`` without a gradient."""
    leaf_BN = keys_BN.detach().requires_grad_(True)
    mask_BN = straight_through(method(leaf_BN, k, TEMPERATURE), k, leaf_BN)
    (gradient_BN,) = torch.autograd.grad((mask_BN * weight_BN).sum(), leaf_BN)
    return mask_BN.detach(), gradient_BN


def draw(method: Draw, keys_BN: Tensor, weight_BN: Tensor, k: int, chunk: int) -> Drawn:
    """Draw a mask and backpropagate ``weight_BN`` through it, ``chunk`` rows at a time."""
    drawn = []
    start = time.process_time()
    for keys, weight in zip(keys_BN.split(chunk), weight_BN.split(chunk), strict=True):
        drawn.append(masked(method, keys, weight, torch.tensor(k)))
    seconds = time.process_time() - start
    masks, gradients = zip(*drawn, strict=True)
    return Drawn(torch.cat(masks), torch.cat(gradients), seconds)


def by_topk(ranking_BN: Tensor, k: int) -> Tensor:
    """The mask as torch's ``topk`` gives it, which leaves open what it takes of equal scores."""
    return torch.zeros_like(ranking_BN).scatter_(1, ranking_BN.topk(k, dim=1).indices, 1.0)


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """The median processor time of a call."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        spent.append(1e3 * (time.process_time() - start))
    return sorted(spent)[repeats // 2]


def on_gpu(keys_BN: Tensor, weight_BN: Tensor, k: int, repeats: int) -> tuple[float, float]:
    """Milliseconds of one draw on the GPU: called from Python, and replayed as a graph."""
    keys_BN, weight_BN = keys_BN.cuda(), weight_BN.cuda()
    number = torch.tensor(k, device="cuda")

    def once() -> None:
        masked(relaxed_subset, keys_BN, weight_BN, number)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):  # kernels are compiled before the capture
            once()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    found = []
    for function in (once, graph.replay):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10 * repeats):
            function()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / (10 * repeats))
    return found[0], found[1]


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
    ranked = milliseconds(lambda: hard_subset(keys_BN, options.k), options.repeats)
    taken = milliseconds(lambda: by_topk(keys_BN, options.k), options.repeats)
    print(f"hard mask alone: by rank {ranked:.2f} ms, by topk {taken:.2f} ms")
    if torch.cuda.is_available():
        for k in (options.k, options.tokens - options.k):
            called, replayed = on_gpu(keys_BN, weight_BN, k, options.repeats)
            name = torch.cuda.get_device_name()
            print(f"k={k} on {name}: {called:.3f} ms called, {replayed:.3f} ms in a graph")


if __name__ == "__main__":
    main()
