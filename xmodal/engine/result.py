"""What a finished run leaves behind: its score, its predictions, samples for its report."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from xmodal import runs
from xmodal.data import loader
from xmodal.engine import checkpoint, probe
from xmodal.engine.evaluate import Score
from xmodal.engine.loop import Snapshot
from xmodal.engine.session import Session
from xmodal.recipe.model import Recipe

SHOWN_SAMPLES = 4
MAX_PREDICTION_BYTES = 256 * 2**20


def keep_predictions(run: runs.Run, session: Session, predictions: Tensor) -> None:
    """Write all test predictions, with their labels, where they are not too large."""
    size = predictions.numel() * predictions.element_size()
    if size <= MAX_PREDICTION_BYTES:
        content = {"prediction": predictions, "label": loader.labels(session.data.test)}
        tensors = {name: tensor.contiguous() for name, tensor in content.items()}
        save_file(tensors, run.path / "predictions.safetensors")


def keep_samples(run: runs.Run, session: Session, snapshot: Snapshot, predictions: Tensor) -> None:
    """Keep a few samples, and what the mixer did to them, for the report."""
    x, y = loader.first(session.data.test, SHOWN_SAMPLES)
    kept: dict[str, Any] = {
        "test": {"x": x, "y": y, "prediction": predictions[: len(x)]},
        "train": {"x": loader.first(session.data.train, probe.SAMPLES)[0]},
        "probes": snapshot.probes,
        "images": dict(session.data.images),
    }
    if session.source is not None:
        kept["source"] = {"x": loader.first(session.source, probe.SAMPLES)[0]}
    shutil.rmtree(run.path / "samples", ignore_errors=True)
    checkpoint.save(run.path / "samples", kept)


def summarise(
    run: runs.Run, recipe: Recipe, session: Session, snapshot: Snapshot, score: Score
) -> Mapping[str, Any]:
    """The content of ``result.json``; times are the caller's to add."""
    parameters = list(session.model.parameters())
    return {
        "task": recipe.task.name,
        "metric": recipe.task.config.metric.name,
        "better": session.metric.better,
        "test": {"metric": score.metric, "loss": score.loss, "smallest": score.smallest},
        "validation": {"metric": snapshot.best_metric, "at": list(snapshot.best_at or ())},
        "selected_on": "test" if _selected_on_test(recipe, session) else "validation",
        "protocol": recipe.protocol,
        "seed": recipe.seed,
        "steps": snapshot.total_steps,
        "encoded_samples": snapshot.encoded,
        "memory_bytes": int(session.agree(peak_memory())),
        "parameters": {
            "total": sum(p.numel() for p in parameters),
            "trainable": max((line["trainable"] for line in run.metrics()), default=0),
        },
        "token_norm": {"source": session.source_norm, "target": session.target_norm},
        "device": str(session.device),
        "notes": list(session.notes),
    }


def _selected_on_test(recipe: Recipe, session: Session) -> bool:
    """Whether the best epoch was chosen on what is tested on; a task may hold out nothing."""
    return recipe.protocol == "published" or session.data.test is session.data.validation


def peak_memory() -> int:
    """Bytes: the GPU's peak allocation, or this process's peak resident memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
