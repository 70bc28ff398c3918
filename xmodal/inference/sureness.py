"""How sure single predictions are, learned from validation samples that were not trained on.

Numbers get an interval by split conformal prediction: it holds the truth of 95 % of new samples
like those of validation, whatever the model (Vovk et al., 2005; Lei et al., JASA 2018). Classes and
labels get calibrated probabilities: logits are divided by one temperature, that of the least
log-loss on validation (Guo et al., On calibration of modern neural networks, ICML 2017).

Shapes: n validation samples, N samples, K classes or outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from xmodal import runs
from xmodal.errors import DataError
from xmodal.runs import VALIDATED

LEVEL = 0.95
LEAST = 10
"""Of fewer validation samples no temperature is learned."""
_HOTTEST = math.log(20.0)


@dataclass(frozen=True)
class Sureness:
    """``temperature``, of classes and labels, or ``half_K``, half the interval of each output."""

    samples: int
    temperature: float | None = None
    half_K: Tensor | None = None

    @property
    def words(self) -> str:
        """What was learned, from what."""
        of = f"of {self.samples:,} validation samples"
        if self.temperature is not None:
            return f"probabilities are calibrated: temperature {self.temperature:.3g}, {of}"
        holds = f"intervals hold the truth of {LEVEL:.0%} of new samples like these"
        return f"{holds}: errors {of}, which also chose the model"

    def calibrated(self, outputs: Tensor) -> Tensor:
        """Logits or log-odds ``[N, K]`` whose probabilities are calibrated."""
        return outputs if self.temperature is None else outputs / self.temperature

    def interval(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of the intervals of numbers ``[N, K]``."""
        assert self.half_K is not None
        return outputs - self.half_K, outputs + self.half_K


def sureness(run: runs.Run, kind: str) -> Sureness:
    """What the validation samples of a run tell. Raises DataError if they cannot."""
    from safetensors.torch import load_file

    if kind == "dense":
        raise DataError("--interval is for classes, labels and numbers; this model predicts fields")
    file = run.path / VALIDATED
    if not file.is_file():
        raise DataError(
            f"{run.path} kept no validation predictions, which --interval learns from: it has no "
            "validation samples that were not trained on, or was made by an earlier version"
        )
    try:
        kept = load_file(file)
        prediction, y = kept["prediction"].double(), kept["label"]
    except Exception as error:
        raise DataError(f"{file} is damaged: {error}") from None
    if kind == "regression":
        return Sureness(len(y), half_K=conformal(prediction, y.double()))
    if len(y) < LEAST:
        raise DataError(f"{len(y)} validation samples are too few to calibrate; {LEAST} are needed")
    return Sureness(len(y), temperature=temperature(prediction, y))


def conformal(prediction_nK: Tensor, y_nK: Tensor, level: float = LEVEL) -> Tensor:
    """Half of each output's interval, ``[K]``: the ceil((n + 1) level)-th smallest absolute error.

    Raises DataError for fewer than level / (1 - level) errors: 19 at 95 %.
    """
    halves = []
    for error_n in (prediction_nK - y_nK).abs().reshape(len(y_nK), -1).T:
        known_n = error_n[~error_n.isnan()].sort().values
        rank = math.ceil((len(known_n) + 1) * level - 1e-9)
        if rank > len(known_n):
            least = math.ceil(level / (1 - level) - 1e-9)
            raise DataError(
                f"{len(known_n)} validation samples are too few for an interval of {level:.0%}; "
                f"{least} are needed"
            )
        halves.append(known_n[rank - 1])
    return torch.stack(halves)


def temperature(logits_nK: Tensor, y: Tensor) -> float:
    """The temperature of the least log-loss, between 1/20 and 20.

    Where no answer is wrong, the least loss would be that of certainty: it is then 1 at least.
    ``y``: classes ``[n]``, or 0/1 labels ``[n, K]``, of which NaN are left out.
    """
    known = None if not y.is_floating_point() else ~y.isnan()

    def loss(log_temperature: float) -> float:
        logits = logits_nK / math.exp(log_temperature)
        if known is None:
            return float(functional.cross_entropy(logits, y.long()))
        truth = y.double()[known]
        return float(functional.binary_cross_entropy_with_logits(logits[known], truth))

    if known is None:
        wrong = bool((logits_nK.argmax(1) != y).any())
    else:
        wrong = bool(((logits_nK > 0) != (y > 0.5))[known].any())
    coolest = -_HOTTEST if wrong else 0.0
    found = minimize_scalar(loss, bounds=(coolest, _HOTTEST), method="bounded")
    return float(np.exp(found.x)) if math.isfinite(found.fun) else 1.0
