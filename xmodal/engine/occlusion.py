"""What a trained model looks at: how much worse it predicts without a part of the input.

Parts are the columns of a table, stretches of a series and patches of a grid, along the borders of
tokens where there are tokens. A part is hidden by the mean of training samples, column by column
and place by place (categories: the most frequent one).

Zeiler, Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 4.2.

Shapes: S samples, R parts, P places of a sample along the parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xmodal.data import loader
from xmodal.engine.session import RunSession
from xmodal.facts import Facts, Target
from xmodal.ops import evaluating

MOST_PARTS, MOST_SAMPLES = 64, 64
SHOWN = 3
"""So many of the first test samples are among those looked at."""
LEAST_PASSES, MOST_PASSES = 256, 2048
SHARE = 8
"""Training passes that one pass of this costs; together they stay a few percent of a run."""
AVERAGED = 256
"""Training samples whose mean hides a part."""


@dataclass(frozen=True)
class InputParts:
    """The parts of a sample. ``place_P``: the part, 0 .. R-1, of each place.

    Places are columns ``[F]``, points ``[L]`` or pixels ``[H, W]``.
    """

    place_P: Tensor

    @property
    def count(self) -> int:
        """R."""
        return int(self.place_P.max()) + 1


def parts_of(facts: Facts) -> InputParts:
    """At most ``MOST_PARTS`` parts of a sample, along the borders of its tokens."""
    shape = facts.task.shape
    sides = shape if len(shape) == 1 else shape[1:]
    # Columns have names; what an embedder makes of them has none.
    tokens = facts.grid if len(facts.grid) == len(sides) and len(shape) > 1 else sides
    tokens = tuple(min(t, s) for t, s in zip(tokens, sides, strict=True))
    most = round(MOST_PARTS ** (1 / len(sides)))
    along = [_part_of(side, own, min(own, most)) for side, own in zip(sides, tokens, strict=True)]
    grid = tuple(int(own.max()) + 1 for own in along)
    place = along[0]
    for own, count in zip(along[1:], grid[1:], strict=True):
        place = place[..., None] * count + own
    return InputParts(place)


def _part_of(side: int, tokens: int, parts: int) -> Tensor:
    """The part of every place along an axis: whole tokens, as even as they can be."""
    token = torch.arange(side) * tokens // side
    return token * parts // tokens


@torch.no_grad()
def occlusion(session: RunSession, encoded: int) -> dict[str, Any]:
    """How much worse test samples are predicted with a part hidden, as plain values.

    ``index``: the samples ``[S]``; ``effect``: ``[S, R]``; ``place``: the part of each place;
    ``measure``: what the effect is, in words. ``encoded``: the samples that training encoded, which
    limits the cost. Needs the best weights in the session; leaves every random stream as it was.
    """
    facts, test = session.facts, session.data.test
    parts = parts_of(facts)
    passes = min(MOST_PASSES, max(LEAST_PASSES, encoded // SHARE))
    number = min(MOST_SAMPLES, max(SHOWN, passes // parts.count), loader.count(test))
    index_S = _spread(loader.count(test), number)
    x_S, y_S = next(loader.batches(test, [index_S], exact=True))
    hidden = _averages(session)
    before = session.random_state()
    try:
        with evaluating(session.model):
            whole_S = _wrong(session, x_S, y_S)
            covered = (_covered(x_S, hidden, parts.place_P == part) for part in range(parts.count))
            effect_RS = torch.stack([_wrong(session, x, y_S) - whole_S for x in covered])
    finally:
        session.set_random_state(*before)
    return {
        "index": index_S,
        "effect": effect_RS.T.contiguous(),
        "place": parts.place_P.to(torch.int32),
        "measure": MEASURES[facts.task.target.kind],
    }


MEASURES = {
    "classification": "drop of the true class's probability",
    "multi-label": "drop of the true labels' mean probability",
    "regression": "rise of the absolute error",
    "dense": "rise of the relative L² error",
}


def _spread(count: int, number: int) -> Tensor:
    """The first samples, and others evenly over the rest."""
    if number <= SHOWN:
        return torch.arange(number)
    rest = torch.linspace(SHOWN, count - 1, number - SHOWN, dtype=torch.float64).round().long()
    return torch.cat([torch.arange(SHOWN), rest])


def _averages(session: RunSession) -> Tensor:
    """The mean training sample; of columns of categories, the most frequent code."""
    x, _ = loader.first(session.data.train, AVERAGED)
    mean = x.double().nanmean(dim=0).nan_to_num().float()
    for column, levels in enumerate(session.facts.task.levels):
        if levels:
            known = x[:, column][~x[:, column].isnan()]
            mean[column] = known.mode().values if len(known) else 0.0
    return mean


def _covered(x_S: Tensor, hidden: Tensor, part_P: Tensor) -> Tensor:
    return torch.where(part_P, hidden.to(x_S.dtype), x_S)


def _wrong(session: RunSession, x: Tensor, y: Tensor) -> Tensor:
    """How wrong the predictions of samples are, ``[S]``."""
    outputs = []
    for piece in torch.split(x, session.evaluation_batch):
        with session.accelerator.autocast():
            outputs.append(session.model.predict(piece.to(session.device)).float().cpu())
    prediction = session.readable(session.data.in_unit(torch.cat(outputs)))
    return wrongness(prediction, session.data.in_unit(y), session.facts.task.target)


def wrongness(prediction: Tensor, y: Tensor, target: Target) -> Tensor:
    """``[S]``: 1 less the true class's (labels' mean) probability, or the error; see MEASURES."""
    prediction, count = prediction.double(), len(y)
    if target.kind == "classification":
        share_S: Tensor = prediction.softmax(dim=1).gather(1, y.long()[:, None])[:, 0]
        return 1 - share_S
    truth = y.double().reshape(count, -1)
    said = prediction.reshape(count, -1)
    known = ~truth.isnan()
    if target.kind == "multi-label":
        said = said.sigmoid()
    off = torch.where(known, said - torch.where(known, truth, 0.0), 0.0)
    if target.kind == "dense":
        size = torch.where(known, truth, 0.0).norm(dim=1)
        relative_S: Tensor = off.norm(dim=1) / torch.where(size > 0, size, 1.0)
        return relative_S
    mean_S: Tensor = off.abs().sum(dim=1) / known.sum(dim=1).clamp_min(1)
    return mean_S
