"""RECRAFT's feature alignment: brings all embedded target samples near the embedded source."""

from __future__ import annotations

from pydantic import Field

from xmodal.alignment import AlignmentSettings, AlignmentStage
from xmodal.interfaces import Distance, Use, default


class AlignFeatures(AlignmentStage):
    """Minimises W(mean tokens of random target samples, mean tokens of the source).

    All samples are one set, and no labels are looked at.
    """

    class Config(AlignmentSettings):
        """Settings of feature alignment."""

        distance: Use[Distance] = Field(
            default("sinkhorn"), description="The distance between source and target features."
        )

    title = "align-features"
    stream = "align"  # runs of the stage's first name drew their samples under it
