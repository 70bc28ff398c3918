"""The bi-level gradient against brute force in float64, and its first-order reading.

e: a linear embedder and its shift; phi: a two-layer encoder, or the tiny transformer backbone.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from xmodal.batch import Tokens
from xmodal.data.store import Store
from xmodal.interfaces import Context, Facts
from xmodal.plugins import registry
from xmodal.testing.tiny import tiny_facts
from xmodal_mona.bilevel import Gradients, Weights, first_order, gradients
from xmodal_mona.terms import alignment, positive_pairs, uniformity

Inner = list[Callable[[Weights], Tensor]]
WEIGHT, ALPHA = 0.7, 0.3


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Small:
    """A whole problem of a dozen numbers, every function of it written out."""

    def __init__(self, micro: int = 8) -> None:
        self.e = [draw(3, 4, seed=1).requires_grad_(), draw(4, seed=2).requires_grad_()]
        self.phi = {"a": draw(4, 5, seed=3), "b": draw(5, seed=4), "c": draw(5, 3, seed=5)}
        self.x, self.y = draw(8, 3, seed=6), torch.arange(8) % 3
        self.source, self.labels = draw(6, 4, seed=7), torch.tensor([0, 0, 1, 1, 2, 0])
        self.head = draw(3, 3, seed=8)
        self.micro = micro

    def encode(self, phi: Weights, tokens: Tensor) -> Tensor:
        return torch.tanh(tokens @ phi["a"] + phi["b"]) @ phi["c"]

    def inner(self) -> Inner:
        def part(rows: slice) -> Callable[[Weights], Tensor]:
            def loss_of(phi: Weights) -> Tensor:
                tokens = self.x[rows] @ self.e[0] + self.e[1]
                logits = self.encode(phi, tokens) @ self.head
                share = len(self.y[rows]) / len(self.y)
                return share * functional.cross_entropy(logits, self.y[rows])

            return loss_of

        return [part(slice(i, i + self.micro)) for i in range(0, 8, self.micro)]

    def inner_loss(self) -> Tensor:
        return torch.stack([f(self.phi) for f in self.inner()]).sum()

    def outer(self, phi: Weights) -> Tensor:
        z = functional.normalize(self.encode(phi, self.source), dim=1)
        return alignment(z, positive_pairs(self.labels)) + uniformity(z)

    def objective(self, alpha: float = ALPHA) -> float:
        """weight * L_outer(phi'(e)) + L_inner(phi, e), with nothing of ``bilevel``."""
        phi = {n: p.clone().requires_grad_() for n, p in self.phi.items()}
        inner = torch.stack([f(phi) for f in self.inner()]).sum()
        steps = torch.autograd.grad(inner, list(phi.values()))
        adapted = {n: p - alpha * g for (n, p), g in zip(phi.items(), steps, strict=True)}
        return float((WEIGHT * self.outer(adapted) + inner).detach())

    def solve(self, **settings: object) -> Gradients:
        given = {"alpha": ALPHA, **settings}
        return gradients(self.inner(), self.outer, self.phi, self.e, **given)  # type: ignore[arg-type]


def total(found: Gradients) -> Tensor:
    parts = zip(found.first, found.second, strict=True)
    return torch.cat([(a + WEIGHT * b).flatten() for a, b in parts])


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def brute_force(problem: Small, h: float = 1e-5) -> Tensor:
    found = []
    for part in problem.e:
        for index in range(part.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    part.view(-1)[index] += sign * h
                values.append(problem.objective())
                with torch.no_grad():
                    part.view(-1)[index] -= sign * h
            found.append((values[0] - values[1]) / (2 * h))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("micro", [8, 3, 1])
def test_exact_gradient_is_that_of_the_whole_objective(micro: int) -> None:
    problem = Small(micro)
    found = problem.solve()
    torch.testing.assert_close(total(found), brute_force(problem), rtol=1e-7, atol=1e-9)
    value = float(WEIGHT * found.outer + found.inner)
    assert value == pytest.approx(problem.objective(), rel=1e-12)


def test_the_second_order_part_matters_in_that_comparison() -> None:
    found = Small().solve()
    assert flat(found.second).norm() > 0.05 * flat(found.first).norm()


@pytest.mark.parametrize("micro", [8, 3])
def test_finite_difference_is_close_to_exact(micro: int) -> None:
    exact = flat(Small().solve().second)
    rough = flat(Small(micro).solve(exact=False).second)
    assert functional.cosine_similarity(exact, rough, dim=0) > 1 - 1e-6
    assert rough.norm() / exact.norm() == pytest.approx(1, abs=1e-3)
    finer = flat(Small(micro).solve(exact=False, epsilon=1e-3).second)
    # The error of a central difference falls with the square of its step.
    assert (finer - exact).norm() < 0.02 * (rough - exact).norm()


def test_to_first_order_it_aligns_gradients() -> None:
    """objective = L_inner + w L_outer(phi) - w alpha <grad L_outer, grad L_inner> + O(alpha^2)."""
    problem = Small()
    phi = {n: p.clone().requires_grad_() for n, p in problem.phi.items()}
    inner, outer = problem.inner()[0](phi), problem.outer(phi)
    a = torch.autograd.grad(inner, list(phi.values()), retain_graph=True)
    b = torch.autograd.grad(outer, list(phi.values()))
    product = float(torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum())
    rest = []
    for alpha in (0.02, 0.01, 0.005):
        linear = float((inner + WEIGHT * outer).detach()) - WEIGHT * alpha * product
        rest.append(problem.objective(alpha) - linear)
    assert rest[0] / rest[1] == pytest.approx(4, rel=0.1)
    assert rest[1] / rest[2] == pytest.approx(4, rel=0.1)
    assert abs(rest[2]) < 0.05 * abs(WEIGHT * 0.005 * product)


def test_a_step_against_the_gradient_lowers_the_objective() -> None:
    problem = Small()
    before, step = problem.objective(), total(problem.solve())
    with torch.no_grad():
        start = 0
        for part in problem.e:
            part -= 0.01 * step[start : start + part.numel()].view_as(part)
            start += part.numel()
    assert problem.objective() < before


@pytest.mark.parametrize("exact", [True, False])
def test_nothing_is_left_behind(exact: bool) -> None:
    problem = Small()
    before = {n: p.clone() for n, p in problem.phi.items()}
    problem.solve(exact=exact)
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in problem.phi.items())
    assert all(not p.requires_grad for p in problem.phi.values())
    assert all(part.grad is None for part in problem.e)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("micro", [8, 4])
def test_an_outer_loss_without_gradient_says_nothing(exact: bool, micro: int) -> None:
    problem = Small(micro)
    found = gradients(
        problem.inner(),
        lambda phi: phi["a"].sum() * 0.0,
        problem.phi,
        problem.e,
        alpha=ALPHA,
        exact=exact,
    )
    assert not flat(found.second).any()
    value, alone = first_order([lambda _: problem.inner_loss()], problem.e)
    torch.testing.assert_close(found.first, alone)
    torch.testing.assert_close(found.inner, value)


@pytest.mark.parametrize("exact", [True, False])
def test_a_target_that_ignores_the_embedder_has_no_gradient(exact: bool) -> None:
    problem = Small()
    found = gradients(
        [lambda phi: phi["a"].square().sum()], problem.outer, problem.phi, problem.e, 0.1, exact
    )
    assert not flat(found.first + found.second).any()


def test_transformer_body_against_brute_force_along_directions() -> None:
    """Attention, GELU and LayerNorm have the right second derivatives too."""
    component = registry().load("backbone", "tiny")
    facts: Facts = tiny_facts()
    context = Context(facts, torch.Generator().manual_seed(0), Store())
    backbone = component(component.Config(), context).double()
    weights = {n: p.detach() for n, p in backbone.named_parameters()}
    e = draw(3, 32, seed=1).requires_grad_()
    x, y = draw(4, 6, 3, seed=2), draw(4, 32, seed=3)
    source, labels = draw(5, 6, 32, seed=4), torch.tensor([0, 1, 0, 1, 1])

    def encode(phi: Weights, tokens: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            out: Tensor = functional_call(backbone, phi, (Tokens(tokens, (6,)),)).x_BND
        return out.mean(dim=1)

    def inner(phi: Weights) -> Tensor:
        return (encode(phi, x @ e) - y).square().mean()

    def outer(phi: Weights) -> Tensor:
        z = functional.normalize(encode(phi, source), dim=1)
        return alignment(z, positive_pairs(labels)) + uniformity(z)

    def objective() -> float:
        phi = {n: p.clone().requires_grad_() for n, p in weights.items()}
        loss = inner(phi)
        steps = torch.autograd.grad(loss, list(phi.values()))
        adapted = {n: p - ALPHA * g for (n, p), g in zip(phi.items(), steps, strict=True)}
        return float((WEIGHT * outer(adapted) + loss).detach())

    exact = gradients([inner], outer, weights, [e], ALPHA)
    rough = gradients([inner], outer, weights, [e], ALPHA, exact=False)
    for seed in range(5):
        direction, h = draw(3, 32, seed=10 + seed), 1e-5
        values = []
        for step in (h, -2 * h):
            with torch.no_grad():
                e += step * direction
            values.append(objective())
        with torch.no_grad():
            e += h * direction
        slope = (values[0] - values[1]) / (2 * h)
        assert float((total(exact) * direction.flatten()).sum()) == pytest.approx(slope, rel=1e-6)
    assert functional.cosine_similarity(flat(exact.second), flat(rough.second), dim=0) > 0.9999
    assert flat(exact.second).norm() > 1e-3 * flat(exact.first).norm()
