"""CPU time and gradients of the distances to align by, against the published way of computing one.

The published call is enacted here: debiased Sinkhorn with the settings of the published code (one
step a scale, from the diameter down to blur sqrt(0.1), each half the last) on all points, with the
source's own term, and as many for all pairs of classes. It is timed part by part: classes of equal
size cost the same, so some pairs stand for all. One call, forward and backward, one thread,
float32. Run ``python benchmarks/alignment.py``; the defaults take about two minutes.

Shapes: n source points, m target points, D their width.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import ot
import torch
from torch import Tensor

from xmodal.batch import Points
from xmodal.interfaces import Distance
from xmodal.testing.tiny import tiny_context
from xmodal_orca.distances.bures import Bures
from xmodal_orca.distances.emd import EMD
from xmodal_orca.distances.l2 import L2
from xmodal_orca.distances.mmd import MMD
from xmodal_orca.distances.otdd import OTDD
from xmodal_orca.distances.sinkhorn import Sinkhorn
from xmodal_orca.distances.sliced import Sliced

REG = 0.1
SCALING = 0.5
WAYS: list[tuple[str, type[Distance], dict[str, Any]]] = [
    ("sinkhorn", Sinkhorn, {}),
    ("sinkhorn subsample=1000", Sinkhorn, {"subsample": 1000}),
    ("emd", EMD, {}),
    ("otdd", OTDD, {}),
    ("otdd inner=exact", OTDD, {"inner": "exact"}),
    ("otdd labels=gaussian", OTDD, {"labels": "gaussian"}),
    ("bures", Bures, {}),
    ("sliced", Sliced, {}),
    ("mmd", MMD, {}),
    ("l2", L2, {}),
]


def half_squared(x_ND: Tensor, z_MD: Tensor) -> Tensor:
    """½‖x − z‖² as the published solver computes it."""
    norms = x_ND.square().sum(1)[:, None] + z_MD.square().sum(1)[None]
    return 0.5 * norms - x_ND @ z_MD.T


def softmin(epsilon: float, cost_NM: Tensor, h_M: Tensor) -> Tensor:
    """−ε log Σ_j exp(h_j − C_ij/ε)."""
    return -epsilon * (h_M - cost_NM / epsilon).logsumexp(1)


def published(x_ND: Tensor, z_MD: Tensor, label_cost: float = 0.0) -> Tensor:
    """The debiased divergence with symmetric steps, one a scale, and a last one with a gradient."""
    costs = {
        "xz": half_squared(x_ND, z_MD.detach()) + label_cost,
        "zx": half_squared(z_MD, x_ND) + label_cost,
        "xx": half_squared(x_ND, x_ND),
        "zz": half_squared(z_MD, z_MD.detach()),
    }
    a, b = -math.log(len(x_ND)), -math.log(len(z_MD))
    both = torch.cat([x_ND, z_MD.detach()])
    diameter = float((both.amax(0) - both.amin(0)).norm())
    scales = [diameter**2]
    blur = diameter
    while blur > math.sqrt(REG):
        scales.append(blur**2)
        blur *= SCALING
    scales.append(REG)
    f, g, p, q = (torch.zeros(len(c)) for c in (x_ND, z_MD, x_ND, z_MD))

    def step(epsilon: float) -> tuple[Tensor, ...]:
        return (
            softmin(epsilon, costs["xz"], b + g / epsilon),
            softmin(epsilon, costs["zx"], a + f / epsilon),
            softmin(epsilon, costs["xx"], a + p / epsilon),
            softmin(epsilon, costs["zz"], b + q / epsilon),
        )

    with torch.no_grad():
        f, g, p, q = step(scales[0])
        for epsilon in scales:
            new = step(epsilon)
            f, g, p, q = (0.5 * (o + n) for o, n in zip((f, g, p, q), new, strict=True))
    f, g, p, q = step(REG)
    return (f - p).mean() + (g - q).mean()


def timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Process CPU seconds, and what came out."""
    begun = time.process_time()
    out = function()
    return time.process_time() - begun, out


def gradient_of(measure: Callable[[Tensor], Tensor], z_MD: Tensor) -> Tensor:
    """The gradient at ``z_MD``."""
    leaf = z_MD.clone().requires_grad_()
    return torch.autograd.grad(measure(leaf), leaf)[0]


def converged(x_ND: Tensor, z_MD: Tensor) -> Tensor:
    """The gradient of the same divergence by POT in float64, to a marginal error of 1e-6.

    POT's exact potentials are the start, since its entropic solver would need hours without.
    """
    x_ND, z_MD = x_ND.double(), z_MD.double()

    def transport(one: Tensor, other: Tensor) -> Tensor:
        cost = half_squared(one, other)
        a, b = (torch.full((len(p),), 1 / len(p), dtype=torch.float64) for p in (one, other))
        _, log = ot.emd(a, b, cost, log=True, numItermax=10_000_000)
        warm = (log["u"] / REG - a.log(), log["v"] / REG - b.log())
        plan: Tensor = ot.bregman.sinkhorn_log(
            a, b, cost, REG, numItermax=400, stopThr=1e-6, warmstart=warm, warn=False
        )
        error = float((plan.sum(0) - b).abs().sum() + (plan.sum(1) - a).abs().sum())
        print(f"  converged reference: marginal error {error:.1e}", flush=True)
        return plan

    cross, own = transport(x_ND, z_MD), transport(z_MD, z_MD)
    to_source = cross.sum(0)[:, None] * z_MD - cross.T @ x_ND
    to_itself = own.sum(0)[:, None] * z_MD - own.T @ z_MD
    return to_source - to_itself


def published_call(x_ND: Tensor, y_N: Tensor, z_MD: Tensor) -> tuple[float, Tensor]:
    """Seconds and gradient of one published call: outer problem, and all pairs of classes."""
    seconds, gradient = timed(lambda: gradient_of(lambda z: published(x_ND, z), z_MD))
    print(f"published, outer problem: {seconds:.2f} s", flush=True)
    count = int(y_N.max()) + 1
    # ‖x − x'‖² without the half is the same problem on points √2 as far apart.
    parts = [math.sqrt(2) * x_ND[y_N == c] for c in range(count)]
    with torch.no_grad():
        sampled = [timed(lambda i=i: published(parts[i], parts[i + 1]))[0] for i in range(3)]  # type: ignore[misc]
        target = math.sqrt(2) * z_MD
        crosses = [timed(lambda p=p: published(p, target))[0] for p in parts]  # type: ignore[misc]
    pairs = count * (count - 1) // 2
    within = pairs * sorted(sampled)[1]
    print(f"published, {pairs} pairs of source classes: {within:.2f} s (3 measured)")
    print(f"published, {count} pairs with the target: {sum(crosses):.2f} s", flush=True)
    return seconds + within + sum(crosses), gradient


def points(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Source points around class means, their classes, and target points elsewhere."""
    generator = torch.Generator().manual_seed(options.seed)

    def normal(*shape: int) -> Tensor:
        drawn: Tensor = options.spread * torch.randn(shape, generator=generator)
        return drawn

    y_N = torch.arange(options.source) % options.classes
    x_ND = normal(options.source, options.width) + normal(options.classes, options.width)[y_N]
    z_MD = 0.8 * normal(options.target, options.width) + options.shift * normal(1, options.width)
    return x_ND, y_N, z_MD


def main() -> None:
    """Print a line for each distance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=int, default=5000)
    parser.add_argument("--target", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--spread", type=float, default=1.0, help="standard deviation of a class")
    parser.add_argument("--shift", type=float, default=0.5, help="of the target, in such units")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x_ND, y_N, z_MD = points(options)
    reference, gradient = published_call(x_ND, y_N, z_MD)
    print(f"published, one call: {reference:.2f} s")
    exact = converged(x_ND, z_MD)
    names = ("distance", "fit s", "call s", "times less", "cos published", "cos converged")
    print(f"{names[0]:24}" + " ".join(f"{name:>14}" for name in names[1:]))
    print(_line("published", [0.0, reference, 1.0, 1.0, _cosine(gradient, exact)]))
    for name, kind, given in WAYS:
        distance: Any = kind(kind.Config(**given), tiny_context())
        begun = time.process_time()
        distance.fit(Points(x_ND, y_N))
        fit = time.process_time() - begun
        classes_M = torch.zeros(options.target, dtype=torch.int64)
        measure = lambda z, d=distance, c=classes_M: d(Points(z, c))  # noqa: E731
        runs = [timed(lambda m=measure: gradient_of(m, z_MD)) for _ in range(options.repeats)]  # type: ignore[misc]
        call = sorted(seconds for seconds, _ in runs)[options.repeats // 2]
        found = runs[0][1]
        cosines = [_cosine(found, gradient), _cosine(found, exact)]
        print(_line(name, [fit, call, reference / call, *cosines]), flush=True)


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0))


def _line(name: str, values: list[float]) -> str:
    return f"{name:24}" + " ".join(f"{value:14.4g}" for value in values)


if __name__ == "__main__":
    main()
