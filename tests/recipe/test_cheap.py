"""Which trivial methods are added to a comparison of what data."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmodal.errors import RecipeError
from xmodal.facts import Target, TaskFacts
from xmodal.plugins import registry
from xmodal.recipe.cheap import cheap_methods, suits

CLASSES = Target("classification", 3)
FIELD = Target("dense", 1, (8, 8))


def task(shape: tuple[int, ...], target: Target = CLASSES, train: int = 50) -> TaskFacts:
    return TaskFacts("toy", shape, target, {"train": train})


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ((), True),
        (("grid",), True),
        (("row", "grid"), True),
        (("row",), False),
        (("dense",), False),
        (("dense", "classification"), True),
        (("grid", "dense"), False),
        (("row", "classification"), False),
    ],
)
def test_forms_and_kinds_of_labels_must_both_fit(words: tuple[str, ...], fits: bool) -> None:
    assert suits(words, task((3, 8, 8))) == fits


def test_every_kind_of_data_has_a_zero_line_and_a_model() -> None:
    for shape in ((3, 8, 8), (2, 30), (5,)):
        found = cheap_methods(registry(), task(shape))
        assert found == sorted(found)
        assert {"methods/majority", "methods/baseline"} <= set(found)
    assert {"methods/majority", "methods/baseline"} <= set(
        cheap_methods(registry(), task((1, 8, 8), FIELD))
    )


def test_methods_that_cannot_hold_the_data_are_left_out() -> None:
    assert "methods/baseline" not in cheap_methods(registry(), task((3, 512, 512), train=10**6))


def test_a_method_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "recipes" / "methods" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("extends: methods/majority\nrole: trivial\nsuits: [sequence]\n")
    assert "methods/mine" in cheap_methods(registry(), task((2, 30)))
    assert "methods/mine" not in cheap_methods(registry(), task((5,)))
    mine.write_text("extends: methods/majority\nrole: trivial\nsuits: [sequences]\n")
    with pytest.raises(RecipeError, match=r"(?s)mine\.yaml:3:9.*should be 'grid', 'sequence'"):
        cheap_methods(registry(), task((5,)))
