"""Step time of PaRe over NFT, and of the engine over a bare loop, step by step in turn.

Taking turns in one process cancels the drift of a noisy machine; medians and ratios are printed.
The floor of PaRe over NFT is 2.0 (two encoder passes), of the engine over a bare loop 1.0.

    python benchmarks/step_time.py [recipe overrides ...]
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch

from xmodal import plugins
from xmodal.data import loader
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.loop import EpochRecord, Training
from xmodal.engine.plan import compose_plan
from xmodal.engine.session import RunSession

STEPS = 30
WARM_UP = 3


def session(recipe: str, overrides: list[str]) -> RunSession:
    """Build the session of a recipe."""
    registry = plugins.registry()
    store = Store()
    made = compose_plan([recipe], registry, store, overrides)
    builder = Builder(made, store, lambda line: None)
    return builder.session(builder.data())


def engine(s: RunSession) -> Iterator[None]:
    """Steps of the engine; validation between epochs is not timed."""
    for record in Training(s).run():
        if not isinstance(record, EpochRecord):
            yield


def bare(s: RunSession) -> Iterator[None]:
    """The same training written by hand: same model, batches, optimizer and clipping."""
    model = copy.deepcopy(s.model)
    stage = s.stages[0]
    named = model.select_trainable(stage.train)
    optimizer = stage.optimizer(named)
    assert optimizer is not None
    parameters = [p for _, p in named]
    x_all, y_all = loader.first(s.data.train, loader.count(s.data.train))
    size = stage.config.batch.size
    limit = stage.clip() or float("inf")
    model.train()
    while True:
        for index in torch.split(torch.randperm(len(x_all)), size):
            features = model.backbone(model.embedder(x_all[index]))
            prediction = model.decode(model.predictor(features))
            loss = model.loss(prediction, y_all[index]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, limit)
            optimizer.step()
            loss.item()
            yield


def compare(name: str, floor: float, a: Iterator[None], b: Iterator[None]) -> None:
    """Time single steps of ``a`` and ``b`` in turn and print medians and the median ratio."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(STEPS + WARM_UP):
        for steps, into in ((a, times[0]), (b, times[1])):
            begun = time.perf_counter()
            next(steps)
            into.append(time.perf_counter() - begun)
    first, second = (values[WARM_UP:] for values in times)
    ratios = sorted(x / y for x, y in zip(first, second, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    a_median, b_median = statistics.median(first), statistics.median(second)
    print(
        f"{name}: {a_median:.3f} s over {b_median:.3f} s, ratio {a_median / b_median:.3f}, "
        f"median of ratios {statistics.median(ratios):.3f} "
        f"(quartiles {low:.3f} to {high:.3f}; floor {floor})"
    )


def main(overrides: list[str]) -> None:
    """Run both comparisons on the demo's recipes."""
    common = ["training.epochs=100", *overrides]
    make: Callable[[str], RunSession] = lambda name: session(f"demo/{name}", common)  # noqa: E731
    compare("PaRe over NFT", 2.0, engine(make("pare")), engine(make("nft")))
    nft = make("nft")
    compare("engine over a bare loop (NFT)", 1.0, engine(nft), bare(make("nft")))


if __name__ == "__main__":
    main(sys.argv[1:])
