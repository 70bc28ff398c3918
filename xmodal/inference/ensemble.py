"""Several trained models as one: the weighted mean of what they predict.

The folder of an ensemble holds ``ensemble.json``: the runs of its members, by paths relative to the
folder, and their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from xmodal import runs
from xmodal.errors import DataError
from xmodal.files import read_json, write_json

_TINY = 1e-12
"""Keeps the logarithm of a probability of 0 finite."""


def combined(kind: str, outputs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean of outputs ``[n, K, ...]`` of several models, in the form of a model's outputs.

    Of classes and 0/1 labels the probabilities are averaged; of numbers and fields the outputs.
    ``weights`` add up to 1.
    """
    total = shares(kind, outputs[0]) * weights[0]
    for output, weight in zip(outputs[1:], weights[1:], strict=True):
        total = total + shares(kind, output) * weight
    return as_outputs(kind, total).to(outputs[0].dtype)


def shares(kind: str, outputs: Tensor) -> Tensor:
    """What is averaged: probabilities (float64) for classes and 0/1 labels, else the outputs."""
    if kind == "classification":
        return outputs.double().softmax(dim=1)
    return outputs.double().sigmoid() if kind == "multi-label" else outputs


def as_outputs(kind: str, mean: Tensor) -> Tensor:
    """Averaged ``shares`` as outputs of a model: logits or log-odds again."""
    if kind == "classification":
        return mean.clamp_min(_TINY).log()
    return mean.clamp(_TINY, 1 - _TINY).logit() if kind == "multi-label" else mean


def write(folder: Path, members: Mapping[Path, float]) -> None:
    """Make ``folder``, beside the runs of its members, an ensemble of these."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"run": f"../{path.name}", "weight": weight} for path, weight in members.items()]
    write_json(folder / runs.ENSEMBLE, {"members": lines})


def members(run: runs.Run) -> dict[Path, float]:
    """The runs of an ensemble's members, and their weights. Raises DataError if it is damaged."""
    try:
        lines = read_json(run.path / runs.ENSEMBLE)["members"]
        found = {(run.path / str(line["run"])).resolve(): float(line["weight"]) for line in lines}
    except (KeyError, TypeError, ValueError):
        found = {}
    if not found or abs(sum(found.values()) - 1) > 1e-6:
        raise DataError(f"{run.path / runs.ENSEMBLE} is damaged")
    return found
