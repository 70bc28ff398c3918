"""ORCA's stage ``align``: moves the embedded target close to the embedded source, by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from xmodal import randomness
from xmodal.alignment import FEWEST, AlignmentSettings, AlignmentStage
from xmodal.data import members, target_classes
from xmodal.interfaces import Distance, Session, Use, default


class Align(AlignmentStage):
    """Minimises the distance between source and target in the embedding (ORCA, stage 2).

    Each epoch is one optimizer step on the sum over classes c of n_c/n times distance(source,
    samples of class c). Targets without classes get pseudo-classes by k-means on their labels. As
    published, a whole class has one label, and classes with a single sample are left out.
    """

    citation = (
        "Shen, Li, Dery, Staten, Khodak, Neubig, Talwalkar: Cross-Modal Fine-Tuning: Align "
        "then Refine (ORCA), ICML 2023"
    )

    class Config(AlignmentSettings):
        """Settings of the alignment stage."""

        distance: Use[Distance] = Field(
            default("sinkhorn"), description="The distance between source and target features."
        )
        classes: int = Field(
            10, ge=1, description="Largest number of pseudo-classes, where labels are not classes."
        )

    title = stream = "align"
    labelled = True

    @classmethod
    def renamed(cls, name: str, settings: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """``per_class: false`` is now the stage ``align-features``."""
        if "per_class" not in settings:
            return name, settings
        plain = settings["per_class"] is False
        gone = {"per_class", "classes"} if plain else {"per_class"}
        kept = {key: value for key, value in settings.items() if key not in gone}
        return ("align-features" if plain else name), kept

    def sets(self, session: Session) -> list[Tensor]:
        """The training samples of each class."""
        seed = randomness.derive(session.seed, "align", "pseudo-classes")
        data, task = session.data.train, session.facts.task
        return members(target_classes(data, task, self.config.classes, seed, session.workers))

    def sets_text(self, count: int) -> str:
        """The number of classes that are used."""
        return f"{count} classes of at least {FEWEST}"
