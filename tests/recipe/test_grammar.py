"""The shape of recipes is checked before anything reads them; only our errors come out."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from xmodal.errors import MOST_PROBLEMS, RecipeError, XModalError
from xmodal.plugins import registry
from xmodal.recipe.compose import compose, validate
from xmodal.recipe.grammar import COMPONENT_FIELDS, LAYER_KEYS, LIST_FIELDS
from xmodal.recipe.recipe import Recipe
from xmodal.recipe.yaml import MAX_BYTES

BASE = "extends: [methods/nft, arrays/row]\ntask: {path: t.csv}\n"
KEYS = (*Recipe.model_fields, *LAYER_KEYS)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(text: str, *overrides: str) -> Recipe:
    Path("r.yaml").write_text(text, encoding="utf-8")
    return validate(compose(["r.yaml"], registry(), overrides), registry())


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(text, *overrides)
    return str(caught.value)


# --- shapes ---


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("training: 3", "training\n    expected a block of settings, such as {epochs: 3}, not 3"),
        ("training: [1]", "training\n    expected a block of settings, such as {epochs: 3}, not a"),
        ("always: 3", "always\n    expected a block of settings, such as {backbone: {pretrained:"),
        (
            "saving: true",
            "saving\n    expected a block of settings, such as {key: value}, not",
        ),
        ("stages: 5", "stages\n    expected a list of the names of stages, not 5"),
        (
            "stages: finetune",
            "stages\n    expected a list, such as [finetune], not one stage",
        ),
        ("stages: fintune", "not the text 'fintune'; did you mean 'finetune'?\n    installed: "),
        ("stages: {use: finetune}", "expected a list, such as [{use: finetune, ...}], not one"),
        (
            "stages: [3]",
            "stages.0\n    expected the name of a stage, or a block with 'use:'",
        ),
        ("stages: [null]", "stages.0\n    expected the name of a stage, or a block with 'use:', n"),
        ("stages: null", "stages\n    expected a list of the names of stages, not nothing"),
        ("trackers: tensorboard", "expected a list, such as [tensorboard], not one tracker alone"),
        (
            "mixer: [none]",
            "mixer\n    expected the name of a mixer, or a block with 'use:', not",
        ),
        ("mixer: {use: [a]}", "mixer.use\n    expected the name of a mixer, not a list"),
        ("mixer: {use: null}", "mixer.use\n    expected the name of a mixer, not nothing"),
        ("source_predictor: 3", "expected the name of a predictor, or a block with 'use:', not 3"),
        ("always: {stages: 3}", "always.stages\n    expected a list of the names of stages, not 3"),
        ("always: {extends: x}", "always.extends\n    cannot stand under 'always'"),
    ],
)
def test_a_wrong_shape_is_one_problem_with_its_place(line: str, message: str) -> None:
    text = refused(f"{BASE}{line}\n")
    assert text.startswith("r.yaml:3:")
    assert message in text
    assert text.endswith("1 problem (exit 2); not checked yet: names and settings")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0=5", "stages.0\n    expected the name of a stage, or a block with 'use:', not 5"),
        ("training.0=3", "training\n    expected a block of settings, such as {epochs: 3}, not an"),
        ("task.0=3", "task\n    expected the name of a task, or a block with 'use:', not an item"),
        ("trackers.0.x=3", "trackers\n    there is no list yet in which 0 could be changed"),
        ("stages.²=1", "stages.²\n    expected the name of a stage, or a block with 'use:', not 1"),
        ("stages.99999999999.x=1", "no item '99999999999'; stages has 1 items: 0 (finetune)"),
        ("task.use.x=1", "task.use\n    expected the name of a task, not a block"),
        ("always.backbone.pretrained=false", "write backbone.pretrained=... alone"),
        ("extends=x", "name the recipe on the command line instead"),
        (f"{'a.' * 200}b=1", "has more than 100 parts"),
        ("seed=\ud800", "is not UTF-8 text"),
    ],
)
def test_overrides_have_the_shape_of_recipes(override: str, message: str) -> None:
    text = refused(BASE, override)
    assert text.startswith("command line '")
    assert message in text


def test_the_grammar_knows_every_key_that_holds_parts() -> None:
    parts = {name for name, field in Recipe.model_fields.items() if "Use[" in str(field.annotation)}
    assert {*COMPONENT_FIELDS, *LIST_FIELDS} == parts
    assert set(LIST_FIELDS) == {"stages", "trackers"}


# --- items of a list, by name ---


def test_a_mapping_over_stages_changes_the_stage_of_that_name() -> None:
    made = recipe(f"{BASE}stages: {{finetune: {{epochs: 7}}}}\n")
    plain = recipe(BASE)
    assert [stage.name for stage in made.stages] == ["finetune"]
    assert (plain.stages[0].config.epochs, made.stages[0].config.epochs) == (60, 7)
    changed = made.stages[0].config.model_copy(update={"epochs": 60})
    assert changed == plain.stages[0].config


@pytest.mark.parametrize("key", ["stages.finetune.epochs", "stages.1.epochs"])
def test_an_override_may_name_a_stage(key: str) -> None:
    text = "extends: [methods/mona, tasks/darcy, backbones/vision]\n"
    stages = recipe(text, f"{key}=3").stages
    assert [stage.name for stage in stages] == ["meta-align", "finetune"]
    assert [stage.config.epochs for stage in stages] == [5, 3]


def test_the_name_of_a_stage_can_be_replaced_and_always_reaches_it() -> None:
    always = "always: {stages: {finetune: {epochs: 9}}}\n"
    assert recipe(f"{BASE}{always}").stages[0].config.epochs == 9
    assert recipe(f"{BASE}{always}", "stages.finetune.epochs=2").stages[0].config.epochs == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{BASE}stages: {{finetun: {{epochs: 7}}}}",
            "r.yaml:3:10  stages.finetun\n    no item 'finetun'; did you mean 'finetune'?; "
            "stages has 1 items: 0 (finetune)",
        ),
        (
            "stages: {finetune: {epochs: 7}}",
            "r.yaml:1:1  stages\n    there is no list yet in which finetune could be changed",
        ),
        (
            "extends: twice.yaml\nstages: {finetune: {epochs: 1}}",
            "2 items are called 'finetune'; name one by its number: 0 (finetune), 1 (finetune)",
        ),
    ],
)
def test_a_stage_that_is_not_there(text: str, message: str) -> None:
    Path("twice.yaml").write_text("stages: [finetune, {use: finetune}]")
    assert message in refused(text)


def test_what_is_merged_does_not_change_other_stages() -> None:
    text = f"{BASE}stages: [finetune, {{use: finetune, batch: {{size: 3}}}}]\n"
    made = recipe(text + "training: {batch: {size: 8, micro: 1}}\n")
    batches = [(stage.config.batch.size, stage.config.batch.micro) for stage in made.stages]
    assert batches == [(8, 1), (3, 1)]


# --- numbers ---


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=true", "seed\n    should be a number, not true"),
        ("seed='3'", "seed\n    should be a number, not the text '3'"),
        ("seed=1.5", "should be a valid integer, got a number with a fractional part, not 1.5"),
        (f"seed={2**53 + 1}", "should be less than or equal to 9007199254740992"),
        ("fraction=.nan", "fraction\n    should be a finite number, not nan"),
        ("fraction='0.5'", "fraction\n    should be a number, not the text '0.5'"),
        ("training.optimizer.lr=.inf", "optimizer.lr\n    should be a finite number, not inf"),
        ("training.optimizer.lr=true", "optimizer.lr\n    should be a number, not true"),
        ("training.epochs='3'", "epochs\n    should be a number, not the text '3'"),
        ("training.epochs=1.5", "epochs\n    should be a valid integer"),
        ("training.batch.size=-1", "batch.size\n    should be greater than or equal to 1, not -1"),
        ("task.split=[.5, true, .5]", "task.split.1\n    should be a number, not true\n1 problem"),
        ("task.y=[a, b, a]", "task.y\n    'a' is named twice"),
        ("task.y=[]", "task.y\n    the list is empty"),
        ("task.classes=[a, a]", "task.classes\n    'a' is named twice"),
    ],
)
def test_numbers_are_numbers(override: str, message: str) -> None:
    text = refused(BASE, override)
    assert message in text
    assert override.partition("=")[0] in text


def test_numbers_that_are_right_stay_so() -> None:
    made = recipe(BASE, "seed=1e3", "training.optimizer.lr=1", "workers=0")
    assert (made.seed, made.stages[0].config.optimizer.lr) == (1000, 1.0)
    assert recipe(BASE, f"seed={2**53}").seed == 2**53


# --- paths ---


def test_a_path_starts_from_the_file_that_says_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    Path("deep/data.yaml").write_text("task: {use: arrays, path: t.csv}")
    text = "extends: [methods/nft, arrays/row, deep/data.yaml]\n"
    source = "source: {use: image-folder, path: ../im}\n"
    made = recipe(text + source)
    assert made.task.config.path == tmp_path / "deep" / "t.csv"
    assert made.source is not None
    assert made.source.config.path == tmp_path / ".." / "im"
    assert made.model_dump(mode="json")["task"]["path"] == str(tmp_path / "deep" / "t.csv")


def test_a_path_of_the_command_line_starts_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    Path("r.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for override, path in (
        ([], tmp_path / "t.csv"),
        (["task.path=u.csv"], tmp_path / "elsewhere" / "u.csv"),
        (["task={use: arrays, path: u.csv}"], tmp_path / "elsewhere" / "u.csv"),
        (["task.path=/u.csv"], Path("/u.csv")),
        (["task.path=~/u.csv"], Path.home() / "u.csv"),
    ):
        made = validate(compose(["../r.yaml"], registry(), override), registry())
        assert Path.resolve(made.task.config.path) == path.resolve()


def test_a_word_that_is_no_path_stays_a_word() -> None:
    text = f"{BASE}backbone: {{use: timm, name: vit_tiny_patch16_224, weights: hub}}\n"
    assert recipe(text).backbone.config.weights == "hub"
    text = text.replace("hub", "w.safetensors")
    assert recipe(text).backbone.config.weights == Path.cwd() / "w.safetensors"


def test_a_folder_of_a_model_is_a_path_and_a_hub_id_is_not(tmp_path: Path) -> None:
    for name, right in (
        ("google/vit-base-patch16-224", "google/vit-base-patch16-224"),
        ("./model", str(tmp_path / "model")),
        ("/models/vit", "/models/vit"),
    ):
        made = recipe(f"{BASE}backbone: {{use: hf, name: {name}}}\n")
        assert made.backbone.config.name == right
        assert type(made.backbone.config.name) is str


@pytest.mark.parametrize("path", ["''", "x" * 300, '"a\\0b"'])
def test_what_cannot_be_a_path_has_its_place(path: str) -> None:
    text = refused(BASE.replace("t.csv", path))
    assert text.startswith("r.yaml:2:8  task.path\n    '")
    assert "cannot be a path" in text


# --- large recipes ---


@pytest.mark.parametrize(
    "line",
    ["key{i}: {{a: {i}, b: text, c: [1, 2.5]}}\n", "# a comment that says nothing, {i}\n"],
    ids=["keys", "comments"],
)
def test_a_large_recipe_takes_no_longer_than_its_size(line: str) -> None:
    """Of 200 kB; when every value was searched among all others, this took a minute."""
    lines = [line.format(i=i) for i in range(MAX_BYTES // 5 // len(line))]
    Path("r.yaml").write_text(f"{BASE}{''.join(lines)}")
    started = time.process_time()
    layered = compose(["r.yaml"], registry())
    assert time.process_time() - started < 2
    with contextlib.suppress(RecipeError):
        validate(layered, registry())
    assert time.process_time() - started < 4


def test_of_many_problems_the_first_are_shown() -> None:
    text = refused(BASE + "".join(f"key{i}: 1\n" for i in range(500)))
    assert text.count("unknown setting") == MOST_PROBLEMS
    assert "r.yaml:3:1  key0" in text
    assert f"... and {500 - MOST_PROBLEMS} more\n500 problems (exit 2)" in text
    assert text.count("known: activation_checkpointing") == 1


# --- anything at all ---

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["finetune", "none", "arrays", "gate", "darcy", "adamw", "~nobody/x.yaml"])
)
NAMES = st.sampled_from([*KEYS, "use", "path", "epochs", "optimizer", "lr", "0", "finetune", ""])
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
LAYERS = st.dictionaries(st.sampled_from(KEYS), TREES, max_size=4)
PATHS = st.lists(
    st.sampled_from([*KEYS, "use", "0", "1", "finetune", "epochs", "²", "-1"]), max_size=4
)
OVERRIDES = st.builds(
    lambda path, value: f"{'.'.join(path)}={value}",
    PATHS,
    TREES.map(str) | st.text(max_size=12) | SCALARS.map(repr),
)


def attacked(layer: dict[str, Any], overrides: list[str], extends: bool) -> None:
    """A random layer and overrides give a recipe, or problems that all have a place."""
    with Path("r.yaml").open("w", encoding="utf-8") as stream:
        YAML(typ="safe").dump(layer, stream)
    if extends:
        layer = {**layer, "extends": "base.yaml"}
        with Path("r.yaml").open("w", encoding="utf-8") as stream:
            YAML(typ="safe").dump(layer, stream)
    try:
        assert isinstance(validate(compose(["r.yaml"], registry(), overrides), registry()), Recipe)
    except XModalError as error:
        problems = error.problems if isinstance(error, RecipeError) else ()
        wrong = [one for one in problems if not (one.where and one.message)]
        assert (error.exit_code, wrong) == (2, [])  # noqa: PT017


def test_any_tree_is_a_recipe_or_a_problem() -> None:
    Path("base.yaml").write_text(BASE)

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(LAYERS, st.lists(OVERRIDES, max_size=2), st.booleans())
    def check(layer: dict[str, Any], overrides: list[str], extends: bool) -> None:
        attacked(layer, overrides, extends)

    check()


@pytest.mark.long
def test_many_trees_are_recipes_or_problems() -> None:
    Path("base.yaml").write_text(BASE)

    @settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))
    @given(LAYERS, st.lists(OVERRIDES, max_size=3), st.booleans())
    def check(layer: dict[str, Any], overrides: list[str], extends: bool) -> None:
        attacked(layer, overrides, extends)

    check()
