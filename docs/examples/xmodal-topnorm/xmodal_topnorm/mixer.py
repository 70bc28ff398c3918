"""A mixer without a selector: weak target tokens give way to what the source has in their place.

Shapes: B samples, N tokens, S positions that target and source share, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch.nn import functional

from xmodal.batch import Progress, Sample, Term, Tokens, View
from xmodal.errors import UsageError
from xmodal.interfaces import Context, Facts, Mixer, Scheduler, Settings
from xmodal.ops import ranks, used
from xmodal.steps import as_input, from_host


class SwapWeakest(Mixer):
    """Replaces the k target tokens of the smallest norm by the source tokens at their positions.

    The mixed view predicts the target label with weight 1 - k/N and the source label with k/N.
    """

    class Config(Settings):
        """Settings of the mixer."""

        mixed: float = Field(1.0, ge=0, description="Weight of the mixed view; the plain has 1.")

    config: Config
    needs_source = True
    uses = ("scheduler",)

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._scheduler: Scheduler = context.components["scheduler"]

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Positions can be compared only where source and target have the same kind of grid."""
        backbone = facts.backbone
        if backbone.grid and facts.grid and len(backbone.grid) != len(facts.grid):
            yield (
                f"swaps tokens position by position, but backbone '{backbone.name}' has a "
                f"{len(backbone.grid)}-D grid and task '{facts.task.name}' "
                f"a {len(facts.grid)}-D one"
            )

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Mix. Only positions that both samples have are swapped."""
        if source is None:
            raise UsageError("mixer 'swap-weakest' needs 'source' in the recipe")
        x_BND, source_BMD = target.tokens.x_BND, source.tokens.x_BND
        total = x_BND.shape[1]
        shared = min(total, source_BMD.shape[1])

        def amount(at: Progress) -> dict[str, Any]:
            k = self._scheduler(at, shared)
            # At the ends they are plain numbers: such steps have a view or a term less.
            return {"k": as_input(k, 0), "share": as_input(k / total, 0, 1)}

        drawn = from_host(amount, progress, x_BND.device)
        k, share = drawn["k"], drawn["share"]
        log = {"k": k}
        if not used(k) or self.config.mixed == 0:
            # The two views would be the same: one with both weights costs half as much.
            whole = Term(target.head, target.y, 1.0 + self.config.mixed)
            return (View(target.tokens, (whole,), log=log),)
        weak_BS = ranks(-x_BND.detach().norm(dim=2)[:, :shared]) < k
        gone_BN = functional.pad(weak_BS, (0, total - shared))
        source_BND = torch.cat([source_BMD[:, :shared].to(x_BND.dtype), x_BND[:, shared:]], dim=1)
        mixed_BND = torch.where(gone_BN.unsqueeze(-1), source_BND, x_BND)
        place_N = torch.arange(total, device=x_BND.device)
        terms = (
            Term(target.head, target.y, self.config.mixed * (1 - share)),
            Term(source.head, source.y, self.config.mixed * share),
        )
        return (
            View(target.tokens, (Term(target.head, target.y, 1.0),)),
            View(
                Tokens(mixed_BND, target.tokens.grid),
                terms,
                torch.where(gone_BN, place_N, -1),
                log,
            ),
        )
