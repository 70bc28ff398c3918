"""What a finished run keeps: its numbers, its predictions, and a few samples for its report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from xmodal import randomness, runs
from xmodal.assess import ConstantAnswer, Judgement, constant_answer, judge
from xmodal.data import loader
from xmodal.engine import checkpoint
from xmodal.engine.evaluate import PROBED_SAMPLES, SplitScore
from xmodal.engine.loop import Snapshot
from xmodal.engine.session import RunSession
from xmodal.engine.speed import Speed
from xmodal.files import atomically
from xmodal.recipe.recipe import Recipe

SHOWN_SAMPLES = 4
MAX_PREDICTION_BYTES = 256 * 2**20
LABELS_AT_ONCE = 256


def keep_predictions(run: runs.Run, session: RunSession, predictions: Tensor) -> None:
    """Write all test predictions with their labels, groups and rows, unless they are too large."""
    size = predictions.numel() * predictions.element_size()
    if size <= MAX_PREDICTION_BYTES:
        labels = session.data.in_unit(loader.labels(session.data.test))
        content = {"prediction": predictions, "label": labels}
        data = session.data
        more = {"group": data.groups_of(data.test), "row": data.rows_of(data.test)}
        content |= {name: values for name, values in more.items() if values is not None}
        tensors = {name: tensor.contiguous() for name, tensor in content.items()}
        with atomically(run.path / "predictions.safetensors") as new:
            save_file(tensors, new)


def keep_samples(
    run: runs.Run, digest: str, session: RunSession, snapshot: Snapshot, predictions: Tensor
) -> None:
    """Keep a few samples, and what the mixer did to them, for the report."""
    x, y = loader.first(session.data.test, SHOWN_SAMPLES)
    kept: dict[str, Any] = {
        "test": {"x": x, "y": session.data.in_unit(y), "prediction": predictions[: len(x)]},
        "train": {"x": loader.first(session.data.train, PROBED_SAMPLES)[0]},
        "probes": snapshot.probes,
        "images": dict(session.data.images),
    }
    if session.source is not None:
        kept["source"] = {"x": loader.first(session.source, PROBED_SAMPLES)[0]}
    checkpoint.save(run.path / "samples", kept, digest)


def judged(recipe: Recipe, session: RunSession, score: SplitScore) -> Mapping[str, Any]:
    """How sure the test score is, and how it stands against the best constant answer.

    Empty, with a note, if the metric cannot score parts of the test split.
    """
    try:
        answer = best_constant(recipe, session)
        return _said(_judgement(recipe, session, score, answer), answer)
    except Exception as error:  # a plugin's metric must not cost a finished run its result
        session.note(
            f"how sure the test score is could not be found out: {type(error).__name__}: {error}"
        )
        return {}


def best_constant(recipe: Recipe, session: RunSession) -> ConstantAnswer:
    """The best answer that is the same for every sample, from the training labels."""
    data, train = session.data, session.data.train

    def labels() -> Iterator[Tensor]:
        for index in torch.split(torch.arange(loader.count(train)), LABELS_AT_ONCE):
            yield data.in_unit(loader.labels_of(train, index))

    columns = () if data.raw is None else data.raw.label_columns
    odds = not session.model.loss.standardises
    target = session.facts.task.target
    return constant_answer(labels(), target, data.classes, odds, columns, session.metric)


def _judgement(
    recipe: Recipe, session: RunSession, score: SplitScore, answer: ConstantAnswer
) -> Judgement:
    data = session.data
    y = data.in_unit(loader.labels(data.test))
    assert score.predictions is not None
    return judge(
        session.metric,
        score.predictions,
        y,
        {answer.words: answer.predictions(len(y))},
        data.groups_of(data.test),
        randomness.derive(recipe.seed, "bootstrap"),
        data.classes,
        recipe.task.config.metric.name,
        float("nan") if score.metric is None else score.metric,
    )


def _said(found: Judgement, answer: ConstantAnswer) -> Mapping[str, Any]:
    """The entries of ``result.json``'s ``test`` that say how sure the score is."""
    content: dict[str, Any] = {
        "interval": None if found.interval is None else asdict(found.interval),
        "against": [asdict(one) for one in found.against],
        "verdict": found.sentence,
    }
    if answer.counts_K:
        content["class_counts"] = list(answer.counts_K)
    return content


def summarise(
    recipe: Recipe,
    session: RunSession,
    snapshot: Snapshot,
    score: SplitScore,
    judgement: Mapping[str, Any],
) -> Mapping[str, Any]:
    """The content of ``result.json``, to which the caller adds times."""
    parameters = list(session.model.parameters())
    encodes = next(session.model.backbone.parameters(), None) is not None
    return {
        "task": recipe.task.name,
        "family": session.facts.task.family,
        "metric": recipe.task.config.metric.name,
        "better": session.metric.better,
        "test": {
            "metric": score.metric,
            "loss": score.loss,
            "smallest": score.smallest,
            **judgement,
        },
        "validation": {
            "metric": snapshot.best_metric,
            "loss": snapshot.best_loss,
            "at": list(snapshot.best_at or ()),
        },
        "selected_on": _selected_on(recipe, session, snapshot),
        "protocol": recipe.protocol,
        "seed": recipe.seed,
        "steps": snapshot.total_steps,
        # A backbone without parameters hands on what it gets: nothing was encoded.
        "encoded_samples": snapshot.encoded if encodes else None,
        **vars(overall(snapshot)),
        "memory_bytes": int(session.agree(peak_memory(session.device))),
        "parameters": {
            "total": sum(p.numel() for p in parameters),
            "trainable": snapshot.trainable,
        },
        "token_norm": {"source": session.source_norm, "target": session.target_norm},
        "device": str(session.device),
        "notes": list(session.notes),
    }


def overall(snapshot: Snapshot) -> Speed:
    """The speed of all steps of a run."""
    if not snapshot.step_seconds:
        return Speed()
    share = snapshot.peak_seconds / snapshot.step_seconds
    return Speed(snapshot.samples / snapshot.step_seconds, share or None)


def _selected_on(recipe: Recipe, session: RunSession, snapshot: Snapshot) -> str:
    """What chose the best epoch: ``validation``, ``test loss``, ...

    The test split, as published or where a task has no other; the loss, where the metric was not a
    number in any epoch.
    """
    split = scored_split(recipe, session)
    return split if snapshot.best_metric is not None else f"{split} loss"


def no_number(recipe: Recipe, session: RunSession) -> str:
    """What follows from a metric that is undefined after an epoch, and the ways out."""
    metric, split = recipe.task.config.metric.name, scored_split(recipe, session)
    return (
        f"{metric} is not a number on the {split} data; if it is so after every epoch, the {split} "
        f"loss chooses the epoch. Ways out: {split} data that hold every class and labels that "
        "vary, or another task.metric"
    )


def scored_split(recipe: Recipe, session: RunSession) -> str:
    """The split that scores an epoch, as users know it."""
    same = session.data.test is session.data.validation
    return "test" if recipe.protocol == "published" or same else "validation"


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak allocation, or this process's peak resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource  # Unix only. psutil knows the peak on Windows alone.
    except ImportError:
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
