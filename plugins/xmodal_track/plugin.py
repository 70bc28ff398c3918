"""Table of contents of this plugin."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_trackers() -> Mapping[str, str]:
    """TensorBoard's event files, MLflow, Weights & Biases."""
    return {
        "tensorboard": "xmodal_track.tensorboard:TensorBoard",
        "mlflow": "xmodal_track.mlflow:MLflow",
        "wandb": "xmodal_track.wandb:WandB",
    }
