"""The PSICOV score: the error of predicted distances between residues in long-range contact.

It is the MAE over residue pairs at least 24 apart in the sequence whose true distance is at most 8
angstroms. The released evaluation differs, and ``released: true`` computes what it does: it
averages the two triangles twice, in place, and cuts every protein to the length of the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from xmodal.interfaces import Context, Facts, Metric, Settings
from xmodal_nasbench360.psicov_files import PADDING

SEPARATION = 24
CONTACT = 8.0
FLOOR = 0.01


class LongRangeError(Metric):
    """Mean absolute error of long-range contacts in angstroms, averaged over proteins."""

    better: ClassVar[Literal["lower", "higher"]] = "lower"

    class Config(Settings):
        """Settings of the score."""

        released: bool = Field(
            False,
            description="Compute what the released code does: the entries (i, j) and (j, i) of a "
            "pair weigh 1/4 and 3/4, and proteins longer than the first are cut to its length.",
        )

    config: Config

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report labels that are no maps of pairs."""
        kind = facts.task.target.kind
        if kind != "dense":
            yield f"scores dense labels; task '{facts.task.name}' has {kind} labels"

    def reset(self) -> None:
        """Forget everything."""
        self._errors: list[float] = []
        self._length: int | None = None

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.reset()

    def update(self, prediction: Tensor, y: Tensor) -> None:
        """Add proteins; both ``[B, 1, L, L]`` in angstroms.

        Padding needs no mask: its label, 100 angstroms, is never a contact. The prediction for a
        pair is the mean of its two entries, at least 0.01. Proteins without long-range contacts are
        skipped.
        """
        contacts = (y <= CONTACT) & torch.ones_like(y, dtype=torch.bool).triu(SEPARATION)
        if self.config.released:
            end = self._end_of_first(y)
            contacts[..., end:, :] = contacts[..., end:] = False
        gaps = (self._of_pairs(prediction) - y).abs().double()
        for gap, contact in zip(gaps, contacts, strict=True):
            if contact.any():
                self._errors.append(float(gap[contact].mean()))

    def _of_pairs(self, prediction: Tensor) -> Tensor:
        """The predicted distance of each pair i < j, in the upper triangle."""
        mean = ((prediction + prediction.transpose(-1, -2)) / 2).clamp(min=FLOOR)
        if not self.config.released:
            return mean
        # The first average overwrites the upper triangle alone; the second takes the lower again.
        return (mean + prediction.transpose(-1, -2).clamp(min=FLOOR)) / 2

    def _end_of_first(self, y: Tensor) -> int:
        """Where the first protein since ``reset`` ends; all begin at the same place."""
        if self._length is None:
            known = (y[0, 0] < PADDING).any(0).nonzero()
            self._length = int(known.max()) + 1 if len(known) else y.shape[-1]
        return self._length

    def compute(self) -> float:
        """The mean over proteins, in angstroms; NaN if no protein had long-range contacts."""
        if not self._errors:
            return float("nan")
        return sum(self._errors) / len(self._errors)
