"""What a finished run keeps: its numbers, its predictions, and a few samples for its report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from xmodal import randomness, runs
from xmodal.advice import Evidence, advise
from xmodal.assess import (
    ConstantAnswer,
    Judgement,
    constant_answer,
    judge,
    sample_errors,
    worst_and_typical,
)
from xmodal.data import loader
from xmodal.data.seen import Seen
from xmodal.engine import checkpoint
from xmodal.engine.evaluate import PROBED_SAMPLES, SplitScore
from xmodal.engine.loop import Snapshot
from xmodal.engine.occlusion import occlusion
from xmodal.engine.session import RunSession
from xmodal.engine.speed import Speed
from xmodal.files import atomically
from xmodal.interfaces import FittedPredictor, TaskData
from xmodal.recipe.recipe import Recipe
from xmodal.runs import PREDICTIONS

SHOWN_SAMPLES, TOLD_APART = 4, 3
MAX_PREDICTION_BYTES = 256 * 2**20
LABELS_AT_ONCE = 256
LOOKED_FOR = 20_000
"""So many test samples are looked for among those of training."""


def keep_predictions(
    run: runs.Run,
    session: RunSession,
    dataset: Dataset[Any],
    predictions: Tensor,
    name: str = PREDICTIONS,
) -> None:
    """Write all predictions of a split with labels, groups and rows, unless they are too large."""
    size = predictions.numel() * predictions.element_size()
    if size <= MAX_PREDICTION_BYTES:
        labels = session.data.in_unit(loader.labels(dataset))
        content = {"prediction": predictions, "label": labels}
        data = session.data
        more = {"group": data.groups_of(dataset), "row": data.rows_of(dataset)}
        content |= {name: values for name, values in more.items() if values is not None}
        tensors = {name: tensor.contiguous() for name, tensor in content.items()}
        with atomically(run.path / name) as new:
            save_file(tensors, new)


def keep_samples(
    run: runs.Run,
    digest: str,
    session: RunSession,
    snapshot: Snapshot,
    predictions: Tensor,
    looks: bool,
) -> None:
    """Keep a few samples, what the mixer did to them and what the model looks at, for the report.

    Of the test split they are the first, the worst and those about the median error. What the model
    looks at costs hundreds of passes: only if ``looks``.
    """
    test, predictions = session.data.test, session.readable(predictions)
    x, y = loader.first(test, SHOWN_SAMPLES)
    kept: dict[str, Any] = {
        "test": {"x": x, "y": session.data.in_unit(y), "prediction": predictions[: len(x)]},
        "train": {"x": loader.first(session.data.train, PROBED_SAMPLES)[0]},
        "probes": snapshot.probes,
        "images": dict(session.data.images),
    }
    if session.source is not None:
        kept["source"] = {"x": loader.first(session.source, PROBED_SAMPLES)[0]}
    with for_the_report(session, "the worst samples"):
        kept |= _told_apart(session, predictions)
    if looks:
        with for_the_report(session, "what the model looks at"):
            kept["occlusion"] = occlusion(session, snapshot.encoded)
    checkpoint.save(run.path / "samples", kept, digest)


@contextmanager
def for_the_report(session: RunSession, what: str) -> Iterator[None]:
    """A block that may fail: what it adds to a page must not cost a finished run its result."""
    try:
        yield
    except Exception as error:
        session.note(f"{what} could not be found out: {type(error).__name__}: {error}")


def _told_apart(session: RunSession, predictions: Tensor) -> dict[str, Any]:
    """The worst test samples and typical ones, if there are more than those shown anyway."""
    test = session.data.test
    if loader.count(test) <= SHOWN_SAMPLES:
        return {}
    y = session.data.in_unit(loader.labels(test))
    error_N = sample_errors(predictions, y, session.facts.task.target)
    kept = {}
    chosen = worst_and_typical(error_N, TOLD_APART)
    for name, index in zip(("worst", "typical"), chosen, strict=True):
        x, _ = next(loader.batches(test, [index]))
        kept[name] = {"index": index, "x": x, "y": y[index], "prediction": predictions[index]}
    return kept


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


def advised(
    run: runs.Run,
    recipe: Recipe,
    session: RunSession,
    snapshot: Snapshot,
    score: SplitScore,
    judgement: Mapping[str, Any],
) -> list[Mapping[str, str]]:
    """What the numbers of the run suggest to do next, for ``result.json``."""
    data = session.data
    seen, tested = (0, 0) if data.test is data.train else _seen(run, session)
    evidence = Evidence(
        lines=run.metrics(),
        metric=recipe.task.config.metric.name,
        better=session.metric.better,
        score=score.metric,
        against=judgement.get("against", ()),
        counts=judgement.get("class_counts", ()),
        classes=data.classes,
        steps=snapshot.total_steps,
        encodes=_encodes(session),
        seen=seen,
        tested=tested,
        straddling=_straddling(data),
        length=_length(recipe),
        budget=recipe.budget,
        ignored=recipe.ignore,
    )
    return [asdict(one) for one in advise(evidence)]


def _length(recipe: Recipe) -> tuple[str, int]:
    """The setting that says how long the last stage trains, as it can be typed, and its value."""
    names = [use.name for use in recipe.stages]
    for place, use in reversed(list(enumerate(recipe.stages))):
        if use.component.evaluates and "epochs" in type(use.config).model_fields:
            key = "steps" if getattr(use.config, "steps", None) else "epochs"
            stage = use.name if names.count(use.name) == 1 else place
            return f"stages.{stage}.{key}", getattr(use.config, key)
    return "training.epochs", 1


def _seen(run: runs.Run, session: RunSession) -> tuple[int, int]:
    """How many test samples equal a training sample, of how many that were looked at."""
    known = checkpoint.load(run.path / "inputs").get("seen")
    if known is None:
        return 0, 0
    seen, test, found = Seen.of(known), session.data.test, 0
    looked = min(loader.count(test), LOOKED_FOR)
    pieces = torch.split(torch.arange(looked), LABELS_AT_ONCE)
    for x, _ in loader.batches(test, pieces, session.workers):
        found += seen.count(x)
    return found, looked


def _straddling(data: TaskData) -> int:
    """The groups that are in both the training and the test split."""
    if data.test is data.train:
        return 0
    train, test = data.groups_of(data.train), data.groups_of(data.test)
    if train is None or test is None:
        return 0
    return len(set(train.tolist()) & set(test.tolist()))


def _encodes(session: RunSession) -> bool:
    """Whether there is an encoder: a backbone without parameters hands on what it gets."""
    return next(session.model.backbone.parameters(), None) is not None


def summarise(
    recipe: Recipe,
    session: RunSession,
    snapshot: Snapshot,
    score: SplitScore,
    judgement: Mapping[str, Any],
    advice: Sequence[Mapping[str, str]] = (),
) -> Mapping[str, Any]:
    """The content of ``result.json``, to which the caller adds times."""
    parameters = list(session.model.parameters())
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
        "encoded_samples": snapshot.encoded if _encodes(session) else None,
        **vars(overall(snapshot)),
        "memory_bytes": int(session.agree(peak_memory(session.device))),
        "parameters": {
            "total": sum(p.numel() for p in parameters),
            "trainable": snapshot.trainable,
        },
        "token_norm": {"source": session.source_norm, "target": session.target_norm},
        "device": str(session.device),
        "notes": list(session.notes),
        **({} if (chosen := _chosen(session)) is None else {"chosen": dict(chosen)}),
        "advice": list(advice),
        **({"log_odds": True} if session.log_odds else {}),
    }


def _chosen(session: RunSession) -> Mapping[str, Any] | None:
    """What a fitted predictor has chosen on validation, as its settings."""
    predictor = session.model.predictor
    return predictor.chosen() if isinstance(predictor, FittedPredictor) else None


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
