"""Operations on tensors, modules, samples and views, for components of all kinds.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from xmodal.batch import Sample, Term, Tokens, View
from xmodal.errors import UsageError
from xmodal.fused import fused_kernels
from xmodal.settings import Settings

__all__ = [
    "ViewWeights", "check_count", "evaluating", "full_precision", "grid_text", "gumbel",
    "gumbel_noise", "hard_subset", "mean_tokens", "plain_and_changed", "ranks", "source_needed",
    "straight_through", "used",
]  # fmt: skip


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode, without dropout, inside the block; restores the earlier modes after it."""
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)


def full_precision(x: Tensor) -> Tensor:
    """``x`` in float32, or unchanged if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def mean_tokens(x_BND: Tensor) -> Tensor:
    """Each sample as one point: the mean of its tokens, ``[B, D]`` float32."""
    return x_BND.float().mean(dim=1)


def grid_text(grid: Iterable[int]) -> str:
    """A grid as text: ``4×6``."""
    return "×".join(map(str, grid))


# --- drawing k of N tokens ---

# Counting pairs grows with N², sorting hardly more than with N.
_LONGEST_COUNTED_ROW = 4096


def gumbel(
    shape: Sequence[int],
    dtype: torch.dtype,
    generator: torch.Generator,
    exponential: bool = False,
) -> Tensor:
    """Standard Gumbel noise of any ``shape`` on the CPU, drawn from ``generator``.

    The noise is −log(−log u) of uniform numbers u or, with ``exponential``, −log e of exponential
    numbers e, which has more digits. Both have the same distribution, but the numbers differ for
    the same generator. ``dtype``: float32 or float64.
    """
    tiny = torch.finfo(dtype).tiny
    drawn = torch.empty(shape, dtype=dtype)
    # A drawn 0 would make the noise infinite.
    if exponential:
        drawn.exponential_(generator=generator).clamp_min_(tiny)
    else:
        drawn.uniform_(generator=generator).clamp_(tiny, 1 - torch.finfo(dtype).eps)
        drawn.log_().neg_()
    return drawn.log_().neg_()


def gumbel_noise(like_BN: Tensor, generator: torch.Generator, exponential: bool = False) -> Tensor:
    """``gumbel`` noise ``[B, N]`` on the device of ``like_BN``, float32 (or float64 if it is).

    Drawn on the CPU, so that a run draws the same on every device.
    """
    dtype = like_BN.dtype if like_BN.dtype == torch.float64 else torch.float32
    noise_BN = gumbel(like_BN.shape, dtype, generator, exponential)
    if like_BN.device.type == "cuda":
        # A copy from pinned memory does not wait for the kernels queued before it.
        return noise_BN.pin_memory().to(like_BN.device, non_blocking=True)
    return noise_BN.to(like_BN.device)


def check_count(scores_BN: Tensor, k: int | Tensor) -> None:
    """Raises ValueError unless ``k`` of N tokens can be chosen by ``scores_BN``.

    ``k`` is an int, 0 <= k <= N, or a 0-d integer tensor on the device of the scores. The value of
    a tensor is not looked at, because that would wait for the device.
    """
    shape = list(scores_BN.shape)
    if isinstance(k, Tensor):
        if k.dim() or k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
            raise ValueError(f"k must be a 0-d tensor of integers, not {list(k.shape)} {k.dtype}")
        # Torch would take a number from the CPU as a constant, and a recorded step would keep it.
        if k.device != scores_BN.device:
            raise ValueError(f"k is on {k.device}, but the scores are on {scores_BN.device}")
        if scores_BN.dim() != 2:
            raise ValueError(f"cannot choose tokens from scores of shape {shape}")
    elif scores_BN.dim() != 2 or not 0 <= k <= shape[1]:
        raise ValueError(f"cannot choose {k} tokens from scores of shape {shape}")


def ranks(scores_BN: Tensor) -> Tensor:
    """The rank ``[B, N]`` (int64) of each token in its row: 0 is the highest score.

    Equal scores rank by position, the first one first, on every device.
    """
    scores_BN = scores_BN.detach()
    if scores_BN.dtype == torch.float32 and 0 < scores_BN.shape[1] <= _LONGEST_COUNTED_ROW:
        kernels = fused_kernels("xmodal.rank_kernels", scores_BN)
        if kernels:
            return kernels.ranks(scores_BN)  # type: ignore[no-any-return]
    # A scatter would also invert the order, but on a GPU its deterministic form is a sort as well,
    # of the whole batch, and in some versions of torch waits for the host.
    return scores_BN.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def hard_subset(ranking_BN: Tensor, k: int | Tensor) -> Tensor:
    """The mask ``[B, N]``, 1 on the k largest of each row and 0 elsewhere, without a gradient.

    Of equal ones, the first are taken (``ranks``). ``k``: see ``check_count``.
    """
    check_count(ranking_BN, k)
    return (ranks(ranking_BN) < k).to(full_precision(ranking_BN).dtype)


def straight_through(soft_BN: Tensor, k: int | Tensor, ranking_BN: Tensor | None = None) -> Tensor:
    """``hard_subset`` with the gradient of ``soft_BN``, the relaxed membership ``[B, N]``.

    ``ranking_BN`` decides which are largest (default: ``soft_BN``). If the membership increases
    with the scores, pass the scores: rounding can make nearly equal memberships tie or even swap.
    """
    ranking_BN = soft_BN if ranking_BN is None else ranking_BN
    mask_BN: Tensor = _StraightThrough.apply(soft_BN, ranking_BN, k)
    return mask_BN


class _StraightThrough(torch.autograd.Function):
    """Forward: the hard mask. Backward: the gradient of the relaxed mask.

    ``hard - soft.detach() + soft`` would miss 0 and 1 by a rounding error.
    """

    @staticmethod
    def forward(ctx: Any, soft_BN: Tensor, ranking_BN: Tensor, k: int | Tensor) -> Tensor:
        return hard_subset(ranking_BN, k).to(soft_BN.dtype)

    @staticmethod
    def backward(ctx: Any, grad_BN: Tensor) -> tuple[Tensor, None, None]:
        return grad_BN, None, None


# --- a plain view and a changed one ---


class ViewWeights(Settings):
    """Settings of a mixer with a plain and a changed view: the weights of their losses."""

    beta_target: float = Field(1.0, ge=0, description="β1, the weight of the plain view's loss.")
    beta_mix: float = Field(1.0, ge=0, description="β2, the weight of the changed view's loss.")

    @model_validator(mode="after")
    def _some_loss(self) -> ViewWeights:
        if self.beta_target == 0 and self.beta_mix == 0:
            raise ValueError("beta_target and beta_mix are both 0: there is no loss to train on")
        return self


def plain_and_changed(
    target: Sample,
    weights: ViewWeights,
    changed: Tokens | None,
    terms: Iterable[Term] = (),
    log: Mapping[str, float | Tensor] | None = None,
    origin_BN: Tensor | None = None,
) -> tuple[View, ...]:
    """The plain view of ``target`` with weight β1, and the changed view with ``terms`` times β2.

    If nothing changed (``changed`` is None) or β2 is 0, the result is only the plain view with
    weight β1 + β2, so that the encoder runs once. Terms with weight 0 (not a tensor), and views
    without terms, are left out. The last view has the ``log``; the changed view has ``origin_BN``.
    """
    beta_1, beta_2, log = weights.beta_target, weights.beta_mix, log or {}
    if changed is None or beta_2 == 0:
        return (View(target.tokens, (Term(target.head, target.y, beta_1 + beta_2),), log=log),)
    weighted = tuple(Term(t.head, t.y, beta_2 * t.weight) for t in terms if used(t.weight))
    plain = (Term(target.head, target.y, beta_1),) if beta_1 > 0 else ()
    both = (View(target.tokens, plain), View(changed, weighted, origin_BN))
    *before, last = [view for view in both if view.terms]
    return (*before, replace(last, log=log))


def used(weight: float | Tensor) -> bool:
    """Whether a term of this weight belongs to the loss: all but those that are always 0."""
    return isinstance(weight, Tensor) or weight != 0


def source_needed(source: Sample | None, name: str) -> Sample:
    """The source samples of mixer ``name``. Raises UsageError if they are None."""
    if source is None:
        raise UsageError(f"mixer '{name}' needs source samples; set 'source' in the recipe")
    return source
