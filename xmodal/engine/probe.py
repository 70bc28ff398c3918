"""Looks at a few fixed samples after every epoch: which tokens a mixer keeps and takes.

Runs in evaluation mode and leaves every random stream as it was, so looking changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from xmodal.batch import Batch, Progress
from xmodal.data import loader
from xmodal.engine import randomness
from xmodal.engine.evaluate import evaluating
from xmodal.engine.session import Session

SAMPLES = 3


@torch.no_grad()
def look(session: Session, at: Progress) -> dict[str, Any]:
    """The origin of every token of the mixed view of the first training samples.

    Returns ``{"stage", "epoch", "k", "origin": int32 [SAMPLES, N]}``; no origin where nothing is
    mixed.
    """
    result: dict[str, Any] = {"stage": at.stage, "epoch": at.epoch}
    if not session.model.mixer.needs_source:
        return result
    states = {name: g.get_state() for name, g in session.generators.items()}
    outer = randomness.global_state()
    model = session.model
    try:
        x, y = (t.to(session.device) for t in loader.first(session.data.train, SAMPLES))
        with evaluating(model), session.accelerator.autocast():
            views = model.views(Batch(x, y, *session.partners(len(x))), at)
    finally:
        for name, generator in session.generators.items():
            generator.set_state(states[name])
        randomness.set_global_state(outer)
    for view in views:
        if view.origin_BN is not None:
            result["origin"] = view.origin_BN.to(torch.int32).cpu()
            result["k"] = view.log.get("k", 0)
    return result
