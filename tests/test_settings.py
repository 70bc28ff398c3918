"""The recipe field that picks a component: forms it accepts, what it dumps, what it refuses."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from pydantic import ValidationError

from xmodal.interfaces import Backbone, Scheduler, Selector, Settings
from xmodal.plugins import Entry, Registry
from xmodal.settings import Use
from xmodal.testing.tiny import TinyScheduler, TinySelector, tiny_context

KIT = "xmodal.testing.tiny"


class Holder(Settings):
    selector: Use[Selector]
    scheduler: Use[Scheduler] | None = None
    backbones: tuple[Use[Backbone], ...] = ()


@pytest.fixture
def registry() -> Registry:
    found = Registry()
    for kind, name, target in (
        ("selector", "sum", f"{KIT}:TinySelector"),
        ("selector", "lazy", "example_absent.module:Class"),
        ("scheduler", "fixed", f"{KIT}:TinyScheduler"),
        ("backbone", "body", f"{KIT}:TinyBackbone"),
    ):
        found.entries[kind, name] = Entry(kind, name, target, "kit", "example", "1.0")
    return found


def hold(registry: Registry, **data: Any) -> Holder:
    return Holder.model_validate({"selector": "sum", **data}, context={"registry": registry})


def errors(registry: Registry, **data: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        hold(registry, **data)
    return [(".".join(map(str, e["loc"])), e["msg"]) for e in caught.value.errors()]


@pytest.mark.parametrize("form", ["sum", {"use": "sum"}])
def test_name_and_block_are_the_same(registry: Registry, form: Any) -> None:
    chosen = hold(registry, selector=form).selector
    assert chosen == hold(registry).selector
    assert hash(chosen) == hash(hold(registry).selector)
    assert (chosen.name, chosen.component) == ("sum", TinySelector)
    assert repr(chosen) == "Use('sum', Settings())"


def test_settings_are_validated(registry: Registry) -> None:
    chosen = hold(registry, scheduler={"use": "fixed", "k": 3}).scheduler
    assert chosen is not None
    assert chosen.component is TinyScheduler
    assert chosen.config.k == 3
    assert chosen != hold(registry, scheduler="fixed").scheduler
    assert chosen.build(tiny_context())(None, 10) == 3  # type: ignore[arg-type]


def test_dump_spells_everything_out_and_reads_back(registry: Registry) -> None:
    holder = hold(registry, scheduler="fixed", backbones=["body"])
    dumped = holder.model_dump(mode="json")
    assert dumped == {
        "selector": {"use": "sum"},
        "scheduler": {"use": "fixed", "k": 1},
        "backbones": [{"use": "body"}],
    }
    assert hold(registry, **dumped) == holder


def test_a_chosen_component_passes_through(registry: Registry) -> None:
    chosen = hold(registry).selector
    assert hold(registry, selector=chosen).selector is chosen


def test_only_the_named_class_is_imported(registry: Registry) -> None:
    hold(registry)
    assert "example_absent" not in sys.modules


@pytest.mark.parametrize(
    ("data", "place", "reason"),
    [
        ({"selector": "sun"}, "selector", "unknown selector 'sun'; did you mean 'sum'?"),
        ({"selector": "fixed"}, "selector", "unknown selector 'fixed'"),
        ({"selector": "a.b:C"}, "selector", "unknown selector 'a.b:C'"),
        ({"selector": "{x}"}, "selector", "unknown selector"),
        ({"selector": "lazy"}, "selector", "cannot be imported from example_absent.module:Class"),
        ({"selector": 3}, "selector", "expected the name of a selector, or a block with 'use:'"),
        ({"selector": ["sum"]}, "selector", "expected the name of a selector"),
        ({"selector": {}}, "selector", "missing 'use'; pick a selector"),
        ({"selector": {"use": 3}}, "selector", "missing 'use'; pick a selector"),
        ({"selector": {"use": "sum", "x": 1}}, "selector.x", "unknown setting"),
        ({"scheduler": {"use": "fixed", "kk": 1}}, "scheduler.kk", "did you mean 'k'?"),
        ({"scheduler": {"use": "fixed", "k": -1}}, "scheduler.k", "greater than or equal to 0"),
        ({"backbones": ["body", "bod"]}, "backbones.1", "did you mean 'body'?"),
    ],
)
def test_refusals(registry: Registry, data: Any, place: str, reason: str) -> None:
    ((found_place, message),) = errors(registry, **data)
    assert found_place == place
    assert reason in message


def test_several_problems_at_once(registry: Registry) -> None:
    found = errors(registry, selector="sun", scheduler={"use": "fixed", "k": -1, "kk": 2})
    assert [place for place, _ in found] == ["selector", "scheduler.k", "scheduler.kk"]


def test_null_only_where_it_is_allowed(registry: Registry) -> None:
    assert hold(registry, scheduler=None).scheduler is None
    assert errors(registry, selector=None)
