"""Contract checks: the properties of each kind of component that the engine relies on.

Every check raises AssertionError with one clear sentence. Use them in a plugin's own tests::

    from xmodal.testing import check_selector

    def test_top_norm():
        check_selector(TopNorm, {"gradient": True})
"""

from __future__ import annotations

from collections.abc import Callable

from xmodal.interfaces import Component
from xmodal.testing.encoding import check_backbone, check_embedder, check_predictor
from xmodal.testing.loading import check_source, check_stage, check_task
from xmodal.testing.scoring import check_adapter, check_distance, check_loss, check_metric
from xmodal.testing.selecting import check_mixer, check_scheduler, check_selector
from xmodal.testing.surroundings import check_exporter, check_launcher, check_tracker
from xmodal.testing.tiny import Given, check_config

__all__ = [
    "CHECKS", "check", "check_adapter", "check_backbone", "check_config", "check_distance",
    "check_embedder", "check_exporter", "check_launcher", "check_loss", "check_metric",
    "check_mixer", "check_predictor", "check_scheduler", "check_selector", "check_source",
    "check_stage", "check_task", "check_tracker",
]  # fmt: skip

CHECKS: dict[str, Callable[..., None]] = {
    "embedder": check_embedder,
    "mixer": check_mixer,
    "selector": check_selector,
    "scheduler": check_scheduler,
    "predictor": check_predictor,
    "backbone": check_backbone,
    "adapter": check_adapter,
    "distance": check_distance,
    "stage": check_stage,
    "task": check_task,
    "source": check_source,
    "launcher": check_launcher,
    "tracker": check_tracker,
    "exporter": check_exporter,
    "loss": check_loss,
    "metric": check_metric,
}
"""The check of every kind of component."""


def check(component: type[Component], given: Given = None) -> None:
    """Run the check for the component's kind, with the kit's own stand-ins."""
    CHECKS[component.kind](component, given)
