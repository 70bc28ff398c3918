"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_trackers() -> Mapping[str, str]:
    """Event files, a tracking server, a service."""
    return {
        "tensorboard": "xmodal_track.tensorboard:TensorBoard",
        "mlflow": "xmodal_track.mlflow:MLflow",
        "wandb": "xmodal_track.wandb:WandB",
    }
