"""Layers: extends, scales, overrides; what merges, what replaces, where each value comes from."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from xmodal.errors import PluginError, RecipeError, UsageError
from xmodal.plugins import Entry, Registry
from xmodal.recipe.compose import Layered, compose, validate
from xmodal.recipe.lookup import all_recipes, find_recipe
from xmodal.recipe.yaml import Origin

KIT = "xmodal.testing.tiny"


class Folders(Registry):
    """A registry with recipe folders and a few components."""

    folders: tuple[tuple[str, Path], ...] = ()

    def recipe_folders(self) -> Any:
        return list(self.folders)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    monkeypatch.chdir(tmp_path)
    import_module("torch")  # without it, settings of parts are not checked before names are right
    found = Folders()
    for kind, name, target in (
        ("selector", "sum", f"{KIT}:TinySelector"),
        ("selector", "sum-two", f"{KIT}:TinySelector"),
        ("scheduler", "fixed", f"{KIT}:TinyScheduler"),
        ("backbone", "backbone", f"{KIT}:TinyBackbone"),
    ):
        found.entries[kind, name] = Entry(kind, name, target, "kit", "example", "1.0")
    return found


def write(**files: str) -> None:
    for name, text in files.items():
        file = Path(f"{name.replace('__', '/')}.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def data(registry: Registry, *overrides: str, recipe: str = "r.yaml") -> dict[str, Any]:
    return compose([recipe], registry, overrides).data


# --- merging ---


def test_mappings_merge_and_lists_replace(registry: Registry) -> None:
    write(
        base="task: {use: t, a: 1, deep: {x: 1, y: 2}}\nstages: [{use: s, lr: 1}, {use: s2}]\n",
        r="extends: base.yaml\ntask: {b: 2, deep: {y: 3}}\nstages: [{use: s}]\n",
    )
    assert data(registry) == {
        "task": {"use": "t", "a": 1, "deep": {"x": 1, "y": 3}, "b": 2},
        "stages": [{"use": "s"}],
    }


def test_later_parents_win_and_the_file_itself_last(registry: Registry) -> None:
    write(
        one="seed: 1\nworkers: 1\ndevice: one\n",
        two="seed: 2\nworkers: 2\n",
        r="extends: [one.yaml, two.yaml]\nseed: 3\n",
    )
    assert data(registry) == {"seed": 3, "workers": 2, "device": "one"}


@pytest.mark.parametrize(
    ("base", "over", "result"),
    [
        ("selector: gate", "selector: random", {"use": "random"}),
        ("selector: {use: gate, t: 1}", "selector: random", {"use": "random"}),
        ("selector: {use: gate, t: 1}", "selector: gate", {"use": "gate", "t": 1}),
        ("selector: {use: gate, t: 1}", "selector: {use: random}", {"use": "random"}),
        ("selector: {use: gate, t: 1}", "selector: {use: gate, u: 2}", None),
        ("selector: {use: gate, t: 1}", "selector: {t: 2}", {"use": "gate", "t": 2}),
        ("selector: gate", "selector: {t: 2}", {"use": "gate", "t": 2}),
        ("selector: gate", "selector: {use: random, t: 2}", {"use": "random", "t": 2}),
        ("selector: {use: gate, d: {x: 1}}", "selector: {use: random, d: {y: 1}}", "nested"),
    ],
)
def test_changing_use_drops_the_other_settings(
    registry: Registry, base: str, over: str, result: Any
) -> None:
    write(base=base, r=f"extends: base.yaml\n{over}")
    special = {None: {"use": "gate", "t": 1, "u": 2}, "nested": {"use": "random", "d": {"y": 1}}}
    expected = special[result] if result in (None, "nested") else result
    assert data(registry) == {"selector": expected}


@pytest.mark.parametrize(
    ("over", "result"),
    [
        ("{use: mse}", {"use": "mse"}),
        ("mse", {"use": "mse"}),
        ("{use: focal, alpha: 2}", {"use": "focal", "gamma": 1, "alpha": 2}),
        ("{alpha: 2}", {"use": "focal", "gamma": 1, "alpha": 2}),
    ],
)
def test_components_inside_components_follow_the_same_rule(
    registry: Registry, over: str, result: Any
) -> None:
    write(
        base="task: {use: t, loss: {use: focal, gamma: 1}}",
        r=f"extends: base.yaml\ntask: {{loss: {over}}}",
    )
    assert data(registry)["task"]["loss"] == result


def test_settings_over_a_nested_name(registry: Registry) -> None:
    write(base="task: {use: t, loss: focal}", r="extends: base.yaml\ntask: {loss: {gamma: 1}}")
    assert data(registry)["task"]["loss"] == {"use": "focal", "gamma": 1}


def test_null_takes_a_component_away(registry: Registry) -> None:
    write(base="selector: {use: gate, t: 1}", r="extends: base.yaml\nselector: null")
    layered = compose(["r.yaml"], registry)
    assert layered.data == {"selector": None}
    assert ("selector", "t") not in layered.origins


# --- origins ---


def test_every_value_knows_its_file_and_line(registry: Registry) -> None:
    write(
        base="selector:\n  use: gate\n  t: 1\nstages:\n  - use: s\n",
        r="extends: base.yaml\nselector:\n  t: 2\n",
    )
    origins = compose(["r.yaml"], registry, ["seed=3"]).origins
    assert origins["selector", "use"] == Origin("base.yaml", 2, 3)
    assert origins["selector", "t"] == Origin("r.yaml", 3, 3)
    assert origins["stages", 0, "use"] == Origin("base.yaml", 5, 5)
    assert origins["seed",] == Origin("command line 'seed'")


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    nested = {leaf for key, item in items for leaf in _leaves(item, (*path, key))}
    return nested | ({path} if path else set())


@pytest.mark.parametrize(
    "over",
    [
        "selector: random",
        "selector: {use: random, u: 1}",
        "stages: [{use: a}]",
        "selector: null\nstages: []",
        "stages: {s: {lr: 3, more: [1]}}",
    ],
)
def test_origins_are_exactly_the_keys_there_are(registry: Registry, over: str) -> None:
    write(
        base="selector: {use: gate, t: {x: 1}}\nstages: [{use: s, lr: 1}, {use: s2}]",
        r=f"extends: base.yaml\n{over}",
    )
    layered = compose(["r.yaml"], registry, ["selector.more=[1, {a: 2}]", "seed=1"])
    assert set(layered.origins) - {("extends",)} == _leaves(layered.data)


# --- extends ---


def test_relative_paths_start_from_the_file(registry: Registry) -> None:
    write(sub__a="extends: ../b.yaml\nseed: 1\n", b="extends: sub/c.yaml\n", sub__c="workers: 2\n")
    assert data(registry, recipe="sub/a.yaml") == {"workers": 2, "seed": 1}


def test_names_are_found_in_the_working_directory_then_in_plugins(
    registry: Folders, tmp_path: Path
) -> None:
    registry.folders = (("example", tmp_path / "packed"),)
    write(recipes__m__x="seed: 1", packed__m__x="seed: 2", packed__m__y="extends: m/x\nworkers: 1")
    assert data(registry, recipe="m/y") == {"seed": 1, "workers": 1}
    names = [(f.name, f.origin) for f in all_recipes(registry)]
    assert names == [("m/x", ""), ("m/y", "example")]
    assert data(registry, recipe="recipes/m/y.yaml") == {"seed": 1, "workers": 1}


def test_one_recipe_name_in_two_plugins_is_an_error(registry: Folders, tmp_path: Path) -> None:
    registry.folders = (("one", tmp_path / "one"), ("two", tmp_path / "two"))
    write(one__m__x="seed: 1", two__m__x="seed: 2", two__m__y="seed: 3")
    assert data(registry, recipe="m/y") == {"seed": 3}
    with pytest.raises(PluginError, match="recipe 'm/x' is provided by both one and two"):
        data(registry, recipe="m/x")
    write(recipes__m__x="seed: 4")
    assert data(registry, recipe="m/x") == {"seed": 4}


def test_a_circle_is_named(registry: Registry) -> None:
    write(a="extends: b.yaml", b="extends: c.yaml", c="extends: a.yaml")
    with pytest.raises(UsageError, match="in a circle: a -> b -> c -> a"):
        data(registry, recipe="a.yaml")
    write(own="extends: own.yaml")
    with pytest.raises(UsageError, match="in a circle: own -> own"):
        data(registry, recipe="own.yaml")


def test_one_parent_by_two_ways_is_no_circle(registry: Registry) -> None:
    write(
        base="seed: 1",
        a="extends: base.yaml",
        b="extends: base.yaml",
        r="extends: [a.yaml, b.yaml]",
    )
    assert data(registry) == {"seed": 1}


def test_long_chains_and_bombs_stop(registry: Registry) -> None:
    write(**{f"c{i}": f"extends: c{i + 1}.yaml" for i in range(30)}, c30="seed: 1")
    with pytest.raises(UsageError, match="too many recipes extend each other"):
        data(registry, recipe="c0.yaml")
    write(**{f"b{i}": f"extends: [b{i + 1}.yaml, b{i + 1}.yaml]" for i in range(18)}, b18="seed: 1")
    with pytest.raises(UsageError, match="too many recipes extend each other"):
        data(registry, recipe="b0.yaml")


def test_missing_parents_name_the_nearest(registry: Registry) -> None:
    write(recipes__methods__pare="seed: 1", r="seed: 1\nextends:\n  - methods/pear\n")
    with pytest.raises(RecipeError) as caught:
        data(registry)
    assert str(caught.value).split("\n")[:3] == [
        "r.yaml:3:5  extends",
        "    no recipe 'methods/pear'; did you mean 'methods/pare'?",
        "    list them: xmodal recipes list",
    ]


@pytest.mark.parametrize("text", ["extends: 3", "extends: {a: b}", "extends: [a, 1]", "extends:"])
def test_extends_of_the_wrong_form(registry: Registry, text: str) -> None:
    write(r=text)
    with pytest.raises(RecipeError, match="expected a recipe name or path, or a list of them"):
        data(registry)


def test_missing_recipes_name_the_nearest(registry: Registry) -> None:
    write(recipes__methods__pare="seed: 1", mine="seed: 1")
    with pytest.raises(UsageError, match=r"no recipe 'methods/par'; did you mean 'methods/pare'\?"):
        data(registry, recipe="methods/par")
    with pytest.raises(UsageError, match=r"no file 'mien.yaml'; did you mean 'mine.yaml'\?"):
        data(registry, recipe="mien.yaml")


# --- scales ---


def test_scales(registry: Registry) -> None:
    write(
        recipes__scales__cpu="seed: 1\nworkers: 1",
        recipes__scales__cpu__t="workers: 2",
        recipes__scales__cpu__group="workers: 3",
        r="task: t\nseed: 9",
        g="task: {use: group/one}",
        other="task: x",
    )
    assert compose(["r.yaml"], registry, scale="cpu").data["workers"] == 2
    assert compose(["r.yaml"], registry, scale="cpu").data["seed"] == 1
    assert compose(["g.yaml"], registry, scale="cpu").data["workers"] == 3
    assert compose(["other.yaml"], registry, scale="cpu").data["workers"] == 1
    assert compose(["r.yaml"], registry, ["workers=7"], scale="cpu").data["workers"] == 7
    with pytest.raises(UsageError) as caught:
        compose(["r.yaml"], registry, scale="cpus")
    assert str(caught.value) == "no scale 'cpus'; did you mean 'cpu'?\nscales: cpu"


# --- overrides ---


@pytest.mark.parametrize(
    ("override", "path", "result"),
    [
        ("seed=3", ("seed",), 3),
        (" seed =3", ("seed",), 3),
        ("device=a=b", ("device",), "a=b"),
        ("selector=random", ("selector",), {"use": "random"}),
        ("selector=gate", ("selector",), {"use": "gate", "t": 1}),
        ("selector.t=1e-4", ("selector",), {"use": "gate", "t": 1e-4}),
        ("selector.use=random", ("selector",), {"use": "random"}),
        ("selector.use=gate", ("selector",), {"use": "gate", "t": 1}),
        ("selector=", ("selector",), None),
        ("scheduler.k=3", ("scheduler",), {"use": "fixed", "k": 3}),
        ("mixer.a.b=1", ("mixer",), {"a": {"b": 1}}),
        ("stages.0.lr=2", ("stages",), [{"use": "s", "lr": 2, "o": {"use": "adam", "b": 1}}, "s2"]),
        ("stages.0.o=sgd", ("stages", 0, "o"), {"use": "sgd"}),
        ("stages.0.o.use=sgd", ("stages", 0, "o"), {"use": "sgd"}),
        ("stages.0.o.b=2", ("stages", 0, "o"), {"use": "adam", "b": 2}),
        ("stages.0.use=fit", ("stages", 0), {"use": "fit"}),
        ("stages.1=fit", ("stages", 1), "fit"),
        ("stages.1.lr=2", ("stages", 1), {"use": "s2", "lr": 2}),
        ("stages=[{use: x}]", ("stages",), [{"use": "x"}]),
    ],
)
def test_overrides(registry: Registry, override: str, path: tuple[Any, ...], result: Any) -> None:
    write(
        r="selector: {use: gate, t: 1}\nscheduler: fixed\n"
        "stages: [{use: s, lr: 1, o: {use: adam, b: 1}}, s2]"
    )
    found: Any = data(registry, override)
    for part in path:
        found = found[part]
    assert found == result


def test_origins_of_overrides(registry: Registry) -> None:
    write(r="stages: [{use: s, old: {x: 1}}]")
    layered = compose(["r.yaml"], registry, ["stages.0.new={a: [1]}", "stages.0=fit"])
    assert layered.data == {"stages": [{"use": "fit"}]}
    assert set(layered.origins) == _leaves(layered.data)
    assert str(layered.origins["stages", 0, "use"]) == "command line 'stages.0'"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed", "is not of the form key=value"),
        ("=3", "is not of the form key=value"),
        ("stages.5.lr=1", r"no item '5'; stages has 1 items: 0 \(s\)"),
        ("stages.5=x", "stages has 1 items"),
        ("stages.-1=x", "stages has 1 items"),
        ("stages.last.lr=1", "stages has 1 items"),
        ("seed=[1", "not valid YAML"),
        ("seed=!!python/name:os.system x", "is not allowed"),
    ],
)
def test_overrides_that_cannot_be(registry: Registry, override: str, reason: str) -> None:
    write(r="stages: [{use: s}]")
    with pytest.raises(UsageError, match=reason):
        data(registry, override)


# --- validation ---


def problems(registry: Registry, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        validate(compose(["r.yaml"], registry, overrides), registry)
    assert caught.value.exit_code == 2
    return str(caught.value).split("\n")


def test_every_problem_at_once_in_the_order_of_the_file(registry: Registry) -> None:
    write(
        r="selector:\n  use: sun\nscheduler:\n  use: fixed\n  kk: 3\nsead: 1\nworkers: many\n"
        "saving: {keep: 0, everysteps: 1}\n"
    )
    text = "\n".join(problems(registry))
    expected = [
        "r.yaml:2:3  selector\n    unknown selector 'sun'; did you mean 'sum'?\n"
        "    installed: sum (example 1.0), sum-two (example 1.0)",
        "r.yaml:5:3  scheduler.kk\n    unknown setting for fixed; did you mean 'k'?\n    known: k",
        "r.yaml:6:1  sead\n    unknown setting; did you mean 'seed'?",
        "r.yaml:7:1  workers\n    should be a number, not the text 'many'",
        "r.yaml:8:10  saving.keep\n    should be greater than or equal to 1, not 0",
        "r.yaml:8:19  saving.everysteps\n    unknown setting; did you mean 'every_steps'?",
    ]
    places = [text.find(part) for part in expected]
    assert -1 not in places, [e for e, p in zip(expected, places, strict=True) if p < 0]
    assert places == sorted(places)
    for missing in ("task", "backbone", "embedder", "mixer", "predictor", "stages"):
        assert f"r.yaml  {missing}\n    is missing" in text


def test_problems_of_the_command_line_say_so(registry: Registry) -> None:
    write(r="seed: 1")
    lines = problems(registry, "scheduler={use: fixed, k: -1}")
    place = lines.index("command line 'scheduler'  scheduler.k")
    assert lines[place + 1] == "    should be greater than or equal to 0, not -1"


def test_problems_point_into_the_parent_that_made_them(registry: Registry) -> None:
    write(base="\n\nscheduler: {use: fixed, k: -1}", r="extends: base.yaml")
    assert "base.yaml:3:25  scheduler.k" in problems(registry)


def test_a_block_without_use(registry: Registry) -> None:
    write(r="selector: {t: 1}")
    lines = problems(registry)
    place = lines.index("r.yaml:1:1  selector")
    assert lines[place + 1] == "    missing 'use'; pick a selector"


def test_components_of_broken_plugins_say_why(registry: Registry) -> None:
    target = "example_absent:Class"
    registry.entries["selector", "gone"] = Entry("selector", "gone", target, "p", "example", "1.0")
    write(r="selector: gone")
    text = "\n".join(problems(registry))
    assert "selector 'gone' of example 1.0 cannot be imported from example_absent:Class" in text


def test_messages_with_braces(registry: Registry) -> None:
    write(r="selector: '{braces}'\ndevice: ['{x}']")
    text = "\n".join(problems(registry))
    assert "unknown selector '{braces}'" in text


def test_training_settings_no_stage_knows(registry: Registry) -> None:
    target = "xmodal.testing.example:None"
    registry.entries["stage", "s"] = Entry("stage", "s", target, "p", "example", "1.0")
    layered = Layered({"training": {"lr": 1}, "stages": ["s"]}, {}, ["r.yaml"])
    with pytest.raises(RecipeError, match="cannot be imported"):
        validate(layered, registry)


@pytest.mark.parametrize("key", ["extend", "trainig", "stage"])
def test_unknown_top_level_keys(registry: Registry, key: str) -> None:
    write(r="seed: 1")
    hints = {"extend": "extends", "trainig": "training", "stage": "stages"}
    assert f"did you mean '{hints[key]}'?" in "\n".join(problems(registry, f"{key}=1"))


# --- the layer of a recipe for a task ---


def layered(**more: str) -> None:
    """A method, its layers for two tasks, the tasks, and a scale with a layer of its own."""
    write(
        recipes__methods__m="seed: 1\nworkers: 1\ndevice: m\n",
        recipes__methods__m__t="seed: 2\nworkers: 2\ndevice: m-t\n",
        recipes__methods__m__t__deep="seed: 22\n",
        recipes__tasks__t="task: t\nseed: 3\nworkers: 3\n",
        recipes__tasks__deep="task: {use: t/deep}\n",
        recipes__tasks__deeper="task: t/other/still\n",
        recipes__tasks__u="task: u\n",
        recipes__scales__s="device: s\n",
        recipes__scales__s__t="device: s-t\n",
        **more,
    )


@pytest.mark.parametrize(
    ("recipes", "overrides", "scale", "expected"),
    [
        (["methods/m", "tasks/t"], [], None, {"seed": 2, "workers": 2, "device": "m-t"}),
        (["tasks/t", "methods/m"], [], None, {"seed": 2, "workers": 2, "device": "m-t"}),
        (["methods/m", "tasks/t"], [], "s", {"seed": 2, "workers": 2, "device": "s-t"}),
        (["methods/m", "tasks/t"], ["seed=9"], None, {"seed": 9, "workers": 2}),
        (["methods/m", "tasks/deep"], [], None, {"seed": 22, "workers": 1, "device": "m"}),
        (["methods/m", "tasks/deeper"], [], None, {"seed": 2, "workers": 2}),
        (["methods/m", "tasks/u"], [], None, {"seed": 1, "workers": 1, "device": "m"}),
        (["methods/m"], [], None, {"seed": 1}),
        (["methods/m"], ["task=t"], None, {"seed": 2, "workers": 2, "device": "m-t"}),
        (["methods/m"], ["task.use=t"], "s", {"seed": 2, "workers": 2, "device": "s-t"}),
        (["tasks/t"], [], None, {"seed": 3, "workers": 3}),
        (["methods/m", "tasks/t"], ["task=u"], None, {"seed": 3, "workers": 3, "device": "m"}),
    ],
)
def test_a_recipe_has_a_layer_for_a_task(
    registry: Registry, recipes: list[str], overrides: list[str], scale: Any, expected: Any
) -> None:
    layered()
    found = compose(recipes, registry, overrides, scale).data
    assert {key: found[key] for key in expected} == expected


def test_the_file_that_extends_a_method_wins_over_its_layer(registry: Registry) -> None:
    layered(
        both="extends: [methods/m, tasks/t]\nworkers: 7\n",
        own="extends: methods/m\ntask: t\nworkers: 7\n",
        further="extends: own.yaml\ndevice: mine\n",
    )
    for name, device in (("both", "m-t"), ("own", "m-t"), ("further", "mine")):
        found = compose([f"{name}.yaml"], registry)
        assert (found.data["workers"], found.data["seed"]) == (7, 2)
        assert found.data["device"] == device
        assert found.files.count(str(Path("recipes/methods/m/t.yaml"))) == 1
    origin = compose(["both.yaml"], registry).origins["seed",]
    assert str(origin).startswith(str(Path("recipes/methods/m/t.yaml")))


def test_a_file_that_builds_on_a_task_wins_over_the_layer_of_a_method(registry: Registry) -> None:
    layered(mine="extends: [tasks/t, scales/s]\nworkers: 7\n")
    found = compose(["methods/m", "mine.yaml"], registry).data
    assert (found["seed"], found["workers"], found["device"]) == (2, 7, "s-t")
    found = compose(["mine.yaml", "methods/m"], registry).data
    assert (found["seed"], found["workers"], found["device"]) == (2, 2, "m-t")


def test_a_layer_that_is_named_lies_where_it_is_named(registry: Registry) -> None:
    layered(mine="extends: [scales/s/t, tasks/t, scales/s]\n")
    found = compose(["mine.yaml"], registry)
    assert found.data["device"] == "s"
    assert found.files.count(str(Path("recipes/scales/s/t.yaml"))) == 1


def test_a_layer_that_extends_its_recipe_ends(registry: Registry) -> None:
    layered()
    Path("recipes/methods/m/t.yaml").write_text("extends: methods/m\nseed: 2\n")
    assert compose(["methods/m", "tasks/t"], registry).data["seed"] == 2


# --- a method and a task by one name ---


def _pair() -> None:
    write(
        recipes__methods__own_way="seed: 1\nprecision: bf16\n",
        recipes__tasks__far="seed: 2\n",
    )


def test_a_method_and_a_task_are_found_by_one_name(registry: Registry) -> None:
    _pair()
    together = compose(["methods/own_way", "tasks/far"], registry).data
    assert together == {"seed": 2, "precision": "bf16"}
    assert compose(["own_way_far"], registry).data == together
    assert compose(["recipes/own_way_far.yaml"], registry).data == together
    write(r="extends: own_way_far\n")
    assert data(registry) == together


def test_a_recipe_that_is_called_so_goes_before_the_pair(registry: Registry) -> None:
    _pair()
    write(recipes__own_way_far="seed: 3\n")
    assert compose(["own_way_far"], registry).data == {"seed": 3}


@pytest.mark.parametrize("wrong", ["own_way_fra", "own_wya_far"])
def test_the_nearest_pair_is_named(wrong: str, registry: Registry) -> None:
    _pair()
    with pytest.raises(UsageError, match="did you mean 'own_way_far'"):
        compose([wrong], registry)


def test_a_pair_is_not_one_file(registry: Registry) -> None:
    _pair()
    with pytest.raises(UsageError, match="these: methods/own_way tasks/far"):
        find_recipe("own_way_far", registry)
