"""The PSICOV score: the error of predicted distances between residues in long-range contact.

It is the MAE over residue pairs at least 24 apart in the sequence whose true distance is at most 8
angstroms. The published evaluation differs: it applies the length of the first protein of a batch
to every protein in it, and averages the two triangles twice.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from xmodal.interfaces import Context, Metric, Settings

SEPARATION = 24
CONTACT = 8.0
FLOOR = 0.01


class LongRangeError(Metric):
    """Mean absolute error of long-range contacts in angstroms, averaged over proteins."""

    better: ClassVar[Literal["lower", "higher"]] = "lower"

    class Config(Settings):
        """No settings."""

    def reset(self) -> None:
        """Forget everything."""
        self._errors: list[float] = []

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.reset()

    def update(self, prediction: Tensor, y: Tensor) -> None:
        """Add proteins; both ``[B, 1, L, L]`` in angstroms.

        Padding needs no mask: its label, 100 angstroms, is never a contact. The prediction for a
        pair is the mean of its two entries, at least 0.01. Proteins without long-range contacts are
        skipped.
        """
        symmetric = ((prediction + prediction.transpose(-1, -2)) / 2).clamp(min=FLOOR)
        contacts = (y <= CONTACT) & torch.ones_like(y, dtype=torch.bool).triu(SEPARATION)
        gaps = (symmetric - y).abs().double()
        for gap, contact in zip(gaps, contacts, strict=True):
            if contact.any():
                self._errors.append(float(gap[contact].mean()))

    def compute(self) -> float:
        """The mean over proteins, in angstroms; NaN if no protein had long-range contacts."""
        if not self._errors:
            return float("nan")
        return sum(self._errors) / len(self._errors)
