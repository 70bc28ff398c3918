"""A program for ``test_fused``: all kernels in Triton's interpreter against their plain forms."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.plugins.pare.test_draw_on_device import rows
from tests.test_ops import KINDS, scores
from xmodal import rank_kernels
from xmodal.ops import ranks
from xmodal_beyond import capped_simplex, capped_simplex_kernels
from xmodal_pare import draw_kernels as kernels
from xmodal_pare.draw import _loop, relaxed_subset

# Rows shorter than, equal to and longer than a power of two; all edges of k.
CLOSED = [(1, 1, 0.9), (1, 0, 0.9), (7, 7, 0.05), (64, 1, 0.9), (64, 63, 10.0), (64, 0, 0.9),
          (200, 70, 0.05), (200, 70, 0.9), (200, 199, 0.9)]  # fmt: skip
SIMPLEX = [(2, 1, 1.0), (7, 6, 0.1), (64, 32, 1.0), (200, 70, 1.0), (200, 199, 0.1)]
LOOP = [(5, 0, 0.9), (5, 1, 0.9), (23, 11, 0.9), (23, 22, 0.9), (16, 16, 0.9)]


def wide(keys_BN: Tensor, weight_BN: Tensor, method, *more) -> tuple[Tensor, Tensor]:
    """Value and gradient of the plain form in the precision of the keys."""
    leaf_BN = keys_BN.clone().requires_grad_()
    khot_BN = method(leaf_BN, *more) + 0 * leaf_BN
    (found_BN,) = torch.autograd.grad((khot_BN * weight_BN.to(keys_BN.dtype)).sum(), leaf_BN)
    return khot_BN.detach().float(), found_BN.float()


def closed(keys_BN: Tensor, weight_BN: Tensor, k: int, temperature: float) -> None:
    """The closed form; keys and weights need not be contiguous."""
    number = torch.tensor(k)
    khot_BN, r_BN = kernels.closed_form(keys_BN.T.contiguous().T, number, temperature, 12)
    found_BN = kernels.closed_form_gradient(r_BN, weight_BN.T.contiguous().T)
    plain, expected = wide(keys_BN.double(), weight_BN, relaxed_subset, k, temperature)
    torch.testing.assert_close(khot_BN, plain, rtol=1e-5, atol=2e-6 * max(k, 1))
    torch.testing.assert_close(found_BN, expected, rtol=1e-4, atol=1e-5)
    assert ((khot_BN.double().sum(1) - k).abs() <= 2e-6 * k).all()


def simplex(scores_BN: Tensor, weight_BN: Tensor, k: int, temperature: float) -> None:
    """The projection onto the capped simplex."""
    number, steps = torch.tensor(k), capped_simplex._STEPS
    x_BN = capped_simplex_kernels.solve(
        scores_BN.T.contiguous().T, ranks(scores_BN), number, temperature, steps
    )
    expected_BN = capped_simplex._solve(scores_BN.double(), number, temperature).sigmoid()
    torch.testing.assert_close(x_BN.sigmoid(), expected_BN.float(), rtol=0, atol=1e-5)


def loop(keys_BN: Tensor, weight_BN: Tensor, k: int, temperature: float) -> None:
    """The loop against the plain one in float32: rounding grows in it, whatever computes it."""
    number = torch.tensor(k)
    khot_BN, p_BJN = kernels.loop(keys_BN, number, temperature)
    p_BJN[:, k:] = torch.nan  # what the kernel does not set
    found_BN = kernels.loop_gradient(p_BJN, number, weight_BN, temperature)
    plain, expected = wide(keys_BN, weight_BN, _loop, k, temperature)
    torch.testing.assert_close(khot_BN, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_BN, expected, rtol=1e-3, atol=1e-4)


def counted() -> None:
    """Ranks of ties, zeros of both signs, infinities, and rows around the sizes of a program."""
    for kind in KINDS:
        scores_BN = scores(kind).float()
        assert torch.equal(rank_kernels.ranks(scores_BN), ranks(scores_BN)), kind
    for tokens in (1, 32, 33, 128, 130):
        scores_BN = (4 * torch.randn(2, tokens)).round()
        scores_BN[0, 0], scores_BN[1, -1] = torch.inf, -torch.inf
        assert torch.equal(rank_kernels.ranks(scores_BN), ranks(scores_BN)), tokens
    # What is not a number has some rank of its own.
    scores_BN[0, :2], scores_BN[1, :2] = torch.nan, -torch.tensor(torch.nan)
    assert torch.equal(rank_kernels.ranks(scores_BN).sort().values[1], torch.arange(130))


def main() -> None:
    """Compare all cases."""
    counted()
    print("ranks")  # noqa: T201
    tables = (("closed form", CLOSED, closed), ("simplex", SIMPLEX, simplex), ("loop", LOOP, loop))
    for name, cases, compare in tables:
        for tokens, k, temperature in cases:
            keys_BN = rows(tokens)[: 3 if compare is loop else 5]
            weight_BN = torch.randn(keys_BN.shape, generator=torch.Generator().manual_seed(3))
            compare(keys_BN, weight_BN, k, temperature)
        print(name)  # noqa: T201
    for module in (rank_kernels, kernels, capped_simplex_kernels):
        module.try_out(torch.device("cpu"))


if __name__ == "__main__":
    main()
