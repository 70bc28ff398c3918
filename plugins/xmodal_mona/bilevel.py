"""The gradient of MoNA's bi-level objective with respect to the embedder.

    inner    phi'(e) = phi - alpha * grad_phi L_inner(phi, e)
    outer    min over e of  weight * L_outer(phi'(e)) + L_inner(phi, e)

L_outer reads e only through phi'. With v = grad L_outer at phi'(e), the chain rule gives

    grad_e L_outer(phi'(e)) = -alpha * grad_e < grad_phi L_inner(phi, e), v >,   v held constant,

which is additive over the micro-batches of L_inner. The product of the mixed second derivative
with v is computed exactly, by a second backward pass, or as a central difference (DARTS, Liu et
al., ICLR 2019, section 2.3). This module never writes to a parameter or to a ``.grad``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]
LossOf = Callable[[Weights], Tensor]
Tensors = list[Tensor]


@dataclass(frozen=True)
class Gradients:
    """Both losses and their gradients at the embedder, in the order of its parameters."""

    inner: Tensor
    outer: Tensor
    first: Tensors
    second: Tensors


def gradients(
    inner: Sequence[LossOf],
    outer: LossOf,
    phi: Weights,
    embedder: Sequence[Tensor],
    alpha: float,
    exact: bool = True,
    epsilon: float = 0.01,
    mean: Callable[[Tensors], Tensors] = lambda tensors: tensors,
) -> Gradients:
    """grad_e L_inner(phi, e) and grad_e L_outer(phi'(e)).

    ``inner`` holds one function of phi per micro-batch, already weighted by the micro-batch's
    share. Each may be called several times and must give the same loss for the same phi. ``mean``
    averages over processes. ``epsilon`` scales the central difference: its step is
    epsilon / ||v||.
    """
    phi = _leaves(phi)
    # A single micro-batch keeps its graph for the second backward pass. Several micro-batches run
    # again instead, because keeping all their graphs would take too much memory.
    keep = exact and len(inner) == 1
    value, g_phi, g_e, graph = _first_order(inner, phi, embedder, keep)
    g_phi, g_e = mean(g_phi), mean(g_e)
    adapted = _leaves({n: p - alpha * g for (n, p), g in zip(phi.items(), g_phi, strict=True)})
    outer_value = outer(adapted)
    v = mean(_gradient(outer_value, list(adapted.values())))
    if keep:
        product = _against(graph, v, embedder)
    elif exact:
        product = _zeros(embedder)
        for loss_of in inner:
            g = _gradient(loss_of(phi), list(phi.values()), create_graph=True)
            product = _sum(product, _against(g, v, embedder))
    else:
        product = _central_difference(inner, phi, v, embedder, epsilon)
    second = [-alpha * p for p in mean(product)]
    return Gradients(value, outer_value.detach(), g_e, second)


def first_order(inner: Sequence[LossOf], embedder: Sequence[Tensor]) -> tuple[Tensor, Tensors]:
    """L_inner and its gradient at the embedder alone."""
    value, _, g_e, _ = _first_order(inner, {}, embedder, keep=False)
    return value, g_e


def _first_order(
    inner: Sequence[LossOf], phi: Weights, embedder: Sequence[Tensor], keep: bool
) -> tuple[Tensor, Tensors, Tensors, Tensors]:
    """L_inner and its gradients at phi and e; the gradient at phi keeps its graph if asked to."""
    value, graph = torch.zeros(()), []
    total = _zeros([*phi.values(), *embedder])
    for loss_of in inner:
        loss = loss_of(phi)
        found = _gradient(loss, [*phi.values(), *embedder], create_graph=keep)
        if keep:
            graph = found[: len(phi)]
        total = _sum(total, [g.detach() for g in found])
        value = value.to(loss) + loss.detach()
    return value, total[: len(phi)], total[len(phi) :], graph


def _against(g_phi: Tensors, v: Tensors, embedder: Sequence[Tensor]) -> Tensors:
    """grad_e < g_phi(e), v >: the exact product of the mixed second derivative with v."""
    product = torch.stack([(a * b).sum() for a, b in zip(g_phi, v, strict=True)]).sum()
    return _gradient(product, embedder)


def _central_difference(
    inner: Sequence[LossOf], phi: Weights, v: Tensors, embedder: Sequence[Tensor], epsilon: float
) -> Tensors:
    """(grad_e L_inner(phi + eps v, e) - grad_e L_inner(phi - eps v, e)) / (2 eps)."""
    norm = float(torch.nn.utils.get_total_norm(v))
    product = _zeros(embedder)
    if norm == 0:
        return product
    eps = epsilon / norm
    # Subtract within each micro-batch: the differences are smaller than the gradients themselves.
    for loss_of in inner:
        for sign in (1.0, -1.0):
            moved = {
                n: torch.add(p.detach(), d, alpha=sign * eps)
                for (n, p), d in zip(phi.items(), v, strict=True)
            }
            g_e = _gradient(loss_of(moved), embedder)
            product = [p + sign * g for p, g in zip(product, g_e, strict=True)]
    return [p / (2 * eps) for p in product]


def _gradient(value: Tensor, variables: Sequence[Tensor], create_graph: bool = False) -> Tensors:
    """The gradient; zero for variables that ``value`` does not depend on."""
    if not value.requires_grad:
        return _zeros(variables)
    return list(
        torch.autograd.grad(
            value,
            list(variables),
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def _leaves(weights: Weights) -> Weights:
    return {name: weight.detach().requires_grad_() for name, weight in weights.items()}


def _zeros(like: Sequence[Tensor]) -> Tensors:
    return [torch.zeros_like(tensor) for tensor in like]


def _sum(one: Tensors, other: Tensors) -> Tensors:
    return [a + b for a, b in zip(one, other, strict=True)]
