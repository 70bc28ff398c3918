"""The contract of both components, and what is special about each."""

from __future__ import annotations

import pytest
import torch
from xmodal_topnorm import plugin
from xmodal_topnorm.mixer import SwapWeakest
from xmodal_topnorm.selector import TopNorm

from xmodal.batch import SOURCE
from xmodal.testing import (
    TinyScheduler,
    build,
    check_host_inputs,
    check_mixer,
    check_selector,
    progress,
    tiny_context,
    tiny_facts,
    tiny_sample,
    tiny_tokens,
)


@pytest.mark.parametrize("settings", [{}, {"gradient": True, "temperature": 0.5}])
def test_selector_keeps_the_contract(settings: dict[str, object]) -> None:
    check_selector(TopNorm, settings)
    check_host_inputs(TopNorm, settings)


@pytest.mark.parametrize("settings", [{}, {"mixed": 0.5}, {"mixed": 0}])
def test_mixer_keeps_the_contract(settings: dict[str, object]) -> None:
    check_mixer(SwapWeakest, settings)
    check_host_inputs(SwapWeakest, settings)


def test_longest_tokens_are_chosen() -> None:
    tokens = tiny_tokens((5,), batch=1)
    with torch.no_grad():
        tokens.x_BND[0, [1, 3]] *= 100
    chosen = build(TopNorm)(tokens, 2, progress())
    assert chosen.indices_BK.tolist() == [[1, 3]]


def test_weakest_tokens_are_swapped_in_place() -> None:
    target, source = tiny_sample(), tiny_sample(SOURCE)
    with torch.no_grad():
        target.tokens.x_BND[:, 7] *= 1e-3
    context = tiny_context(components={"scheduler": build(TinyScheduler, {"k": 1})})
    mixed = build(SwapWeakest, context=context)(target, source, progress())[1]
    assert torch.equal(mixed.tokens.x_BND[:, 7], source.tokens.x_BND[:, 7])
    assert [term.weight for term in mixed.terms] == [1 - 1 / 24, 1 / 24]


def test_mixer_declines_sequences_for_an_image_backbone() -> None:
    problems = list(SwapWeakest.problems(SwapWeakest.Config(), tiny_facts("sequence")))
    assert problems == [
        "swaps tokens position by position, but backbone 'example-backbone' has a 2-D grid and "
        "task 'example-sequence' a 1-D one"
    ]


def test_table_of_contents_names_real_classes() -> None:
    assert plugin.xmodal_selectors()["top-norm"] == f"{TopNorm.__module__}:TopNorm"
    assert plugin.xmodal_mixers()["swap-weakest"] == f"{SwapWeakest.__module__}:SwapWeakest"
