"""One way to make a part, inside a run and outside of one; names that recipes used earlier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field

from xmodal import plugins, workbench
from xmodal.data import Store
from xmodal.errors import PluginError, RecipeError
from xmodal.interfaces import NO_FACTS, Context, Launcher, Scheduler, Settings
from xmodal.plugins import Entry, Registry
from xmodal.testing import TinyScheduler, tiny_facts


class Local(Launcher):
    """A launcher that starts nothing."""

    slots = 1  # type: ignore[assignment]

    def submit(self, jobs: Any) -> None:
        """Nothing."""

    def unfinished(self) -> Mapping[str, str]:
        """Nothing."""
        return {}

    def stop(self) -> None:
        """Nothing."""


class WithoutContext(Local):
    """As launchers were written before every part had a context."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, Context.outside(Store()))


class OptionalContext(Local):
    """As launchers could be written before."""

    def __init__(self, config: Any, context: Any = None) -> None:
        super().__init__(config, context)


class FixedShare(Scheduler):
    """The first name of ``TinyScheduler``, whose k was called count."""

    class Config(Settings):
        """Settings."""

        count: int = Field(1, description="k.")

    @classmethod
    def renamed(cls, name: str, settings: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """``fixed`` with k."""
        kept = {"k" if key == "count" else key: value for key, value in settings.items()}
        return "fixed", kept

    def __call__(self, progress: Any, num_tokens: int) -> int:
        """k."""
        return 0


@pytest.fixture
def registry() -> Registry:
    found = Registry()
    for kind, name, cls in (
        ("launcher", "old", WithoutContext),
        ("launcher", "optional", OptionalContext),
        ("launcher", "plain", Local),
        ("scheduler", "fixed-share", FixedShare),
        ("scheduler", "fixed", TinyScheduler),
    ):
        target = f"{cls.__module__}:{cls.__name__}"
        found.entries[kind, name] = Entry(kind, name, target, "kit", "example", "1.0")
    return found


def test_every_part_is_made_with_settings_and_context(registry: Registry) -> None:
    for name in ("plain", "optional"):
        use = workbench.choose("launcher", name, registry, "--launcher")
        assert use.build(Context.outside(Store())).slots == 1
    with pytest.raises(PluginError, match=r"launcher 'old' .* write __init__\(self, config, cont"):
        registry.load("launcher", "old")
    with pytest.raises(RecipeError, match=r"write __init__\(self, config, context\)"):
        workbench.choose("launcher", "old", registry, "--launcher")


def test_outside_of_a_run_nothing_is_known_but_the_seed() -> None:
    context = Context.outside(Store(), "selector", 3)
    assert context.facts is NO_FACTS
    assert context.facts.num_tokens == 0
    again = Context.outside(Store(), "selector", 3, tiny_facts(), backbone="a backbone")
    draws = [torch.rand(3, generator=one.generator) for one in (context, again)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.rand(3, generator=Context.outside(Store()).generator))
    assert again.components == {"backbone": "a backbone"}


def test_a_part_outside_of_a_run_is_that_of_a_run(tmp_path: Path) -> None:
    """Same name, same seed, same facts: the same first weights."""
    registry = plugins.registry()
    plan = workbench.plan(["methods/pare", "tasks/darcy"], registry, Store(), ["seed=5"], "smoke")
    opened = workbench.open_plan(plan)
    alone = workbench.build(plan.recipe.selector, "selector", 5, plan.facts)
    for one, other in zip(
        alone.state_dict().values(), opened.parts["selector"].state_dict().values(), strict=True
    ):
        assert torch.equal(one, other.cpu())
    assert opened.session.model.mixer.selector is opened.parts["selector"]  # type: ignore[attr-defined]


def test_an_earlier_name_means_what_the_part_says(registry: Registry) -> None:
    use = workbench.choose("scheduler", "{use: fixed-share, count: 4}", registry, "here")
    assert use.dump() == {"use": "fixed", "k": 4}
    with pytest.raises(RecipeError, match="unknown setting"):
        workbench.choose("scheduler", "{use: fixed-share, counts: 4}", registry, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixd", "did you mean 'fixed'"),
        ("{use: fixed, kk: 1}", r"scheduler\.kk\n +unknown setting for fixed; did you mean 'k'"),
        ("{k: 1}", "missing 'use'"),
        ("[fixed]", "expected the name of a scheduler"),
        ("{use: fixed", "here"),
    ],
)
def test_a_wrong_choice_is_one_message(registry: Registry, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        workbench.choose("scheduler", text, registry, "here")
