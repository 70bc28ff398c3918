"""The ``none`` mixer: plain fine-tuning, with nothing mixed into the target."""

from __future__ import annotations

from xmodal.batch import Progress, Sample, Term, View
from xmodal.interfaces import Mixer


class NoMixing(Mixer):
    """A single view: the target itself, with its own loss at weight 1."""

    keeps_samples = True

    def forward(
        self, target: Sample, source: Sample | None, progress: Progress
    ) -> tuple[View, ...]:
        """Wrap the target."""
        return (View(target.tokens, (Term(target.head, target.y, 1.0),)),)
