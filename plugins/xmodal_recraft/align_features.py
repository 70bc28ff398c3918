"""RECRAFT's feature alignment: moves all embedded target samples close to the embedded source."""

from __future__ import annotations

from pydantic import Field

from xmodal.alignment import AlignmentSettings, AlignmentStage
from xmodal.interfaces import Distance, Use, default


class AlignFeatures(AlignmentStage):
    """Minimises W(mean tokens of random target samples, mean tokens of the source).

    All samples form one set; labels are ignored.
    """

    class Config(AlignmentSettings):
        """Settings of feature alignment."""

        distance: Use[Distance] = Field(
            default("sinkhorn"), description="The distance between source and target features."
        )

    title = "align-features"
    stream = "align"  # the stage's former name, so that old runs draw the same samples
