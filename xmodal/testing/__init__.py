"""For tests of components: contract checks, and small stand-ins for the rest of a run.

Works without a test framework.
"""

from __future__ import annotations

from xmodal.testing.capturing import check_host_inputs
from xmodal.testing.contract import (
    CHECKS,
    check,
    check_adapter,
    check_backbone,
    check_config,
    check_distance,
    check_embedder,
    check_exporter,
    check_launcher,
    check_loss,
    check_metric,
    check_mixer,
    check_predictor,
    check_scheduler,
    check_selector,
    check_source,
    check_stage,
    check_task,
    check_tracker,
)
from xmodal.testing.encoding import whole_samples
from xmodal.testing.liveness import check_liveness, real_samples
from xmodal.testing.surroundings import tiny_trained
from xmodal.testing.tiny import (
    TinyBackbone,
    TinyScheduler,
    TinySelector,
    build,
    progress,
    tiny_backbone,
    tiny_context,
    tiny_facts,
    tiny_labels,
    tiny_prediction,
    tiny_sample,
    tiny_samples,
    tiny_target,
    tiny_task,
    tiny_tokens,
)

__all__ = [
    "CHECKS", "TinyBackbone", "TinyScheduler", "TinySelector", "build", "check", "check_adapter",
    "check_backbone", "check_config", "check_distance", "check_embedder", "check_exporter",
    "check_host_inputs", "check_launcher", "check_liveness", "check_loss", "check_metric",
    "check_mixer", "check_predictor", "check_scheduler", "check_selector", "check_source",
    "check_stage", "check_task", "check_tracker", "progress", "real_samples", "tiny_backbone",
    "tiny_context", "tiny_facts", "tiny_labels", "tiny_prediction", "tiny_sample", "tiny_samples",
    "tiny_target", "tiny_task", "tiny_tokens", "tiny_trained", "whole_samples",
]  # fmt: skip
