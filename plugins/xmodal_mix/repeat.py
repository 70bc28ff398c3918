"""The target several times: PaRe's loss and cost, without mixing."""

from __future__ import annotations

from pydantic import Field

from xmodal.batch import Progress, Sample, Term, View
from xmodal.interfaces import Mixer, Settings


class Repeat(Mixer):
    """The plain target view ``times`` times, each with its own dropout and stochastic depth.

    With two views of weight 1, this is Eq. 2 of PaRe at λ = 0, for which PaRe needs only one view.
    """

    class Config(Settings):
        """Settings of the mixer."""

        times: int = Field(2, ge=1, description="Number of target views encoded per step.")
        weight: float = Field(1.0, gt=0, description="Weight of the loss of each view.")

    config: Config
    keeps_samples = True

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Repeat."""
        term = Term(target.head, target.y, self.config.weight)
        return tuple(View(target.tokens, (term,)) for _ in range(self.config.times))
