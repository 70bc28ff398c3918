"""Discovery: broken plugins harm nothing but themselves, names are looked up with hints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from xmodal import hookspecs, plugins
from xmodal.errors import PluginError, UsageError
from xmodal.interfaces import INTERFACES
from xmodal.plugins import HOOKS, BrokenPlugin, Entry, Registry, discover, find_kind
from xmodal.recipe.own_data import own_data

HEADER = "from xmodal.hookspecs import hookimpl\n"
GOOD = HEADER + (
    "@hookimpl\ndef xmodal_selectors():\n    return {'mine': 'xmodal.testing.tiny:TinySelector'}\n"
)
Install = Callable[..., None]


class Point(EntryPoint):
    """An entry point of a distribution that is not installed."""

    dist: Any = None

    def __init__(self, name: str, value: str, dist: Any) -> None:
        super().__init__(name, value, plugins.GROUP)
        vars(self)["dist"] = dist


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install pretended plugins: ``install(name=source, ...)``, each its own distribution."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in (plugins.STRICT, plugins.ALLOW):
        monkeypatch.delenv(name, raising=False)
    points: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    before = set(sys.modules)

    def add(**sources: str) -> None:
        for name, source in sources.items():
            module = f"example_{name}_{len(points)}"
            (tmp_path / f"{module}.py").write_text(source)
            dist = SimpleNamespace(name=f"dist-{name}", version="1.0")
            points.append(Point(name, module, dist))

    yield add
    for module in set(sys.modules) - before:
        if module.startswith(("example_", "xmodal_plugin_")):
            del sys.modules[module]


def broken(registry: Registry) -> dict[str, str]:
    return {b.plugin: b.reason for b in registry.broken}


def test_every_interface_has_a_hook_and_every_hook_an_interface() -> None:
    assert set(HOOKS) == {interface.kind for interface in INTERFACES}
    assert HOOKS["loss"] == "xmodal_losses"
    assert all(hasattr(hookspecs, hook) for hook in HOOKS.values())


def test_good_plugin(install: Install) -> None:
    install(good=GOOD)
    found = discover()
    assert found.names("selector") == ["mine"]
    assert found.entry("selector", "mine").origin == "dist-good 1.0"
    assert found.load("selector", "mine").__name__ == "TinySelector"
    assert not found.broken


def test_nothing_is_imported_before_it_is_asked_for(install: Install) -> None:
    install(lazy=GOOD.replace("xmodal.testing.tiny:TinySelector", "example_absent.module:Class"))
    found = discover()
    assert found.names("selector") == ["mine"]
    with pytest.raises(PluginError, match=r"selector 'mine' of dist-lazy 1.0 cannot be imported"):
        found.load("selector", "mine")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no\\nway')", "RuntimeError: no way"),
        ("import example_not_there", "ModuleNotFoundError: No module named 'example_not_there'"),
        ("import sys; sys.exit('stop')", "SystemExit: stop"),
        ("def (", "SyntaxError"),
        (
            HEADER + "@hookimpl\ndef xmodal_selector():\n    return {}\n",
            "unknown hook 'xmodal_selector'; did you mean 'xmodal_selectors'?",
        ),
        (
            HEADER + "@hookimpl\ndef selectors():\n    return {}\n",
            "unknown hook 'selectors'; did you mean 'xmodal_selectors'?",
        ),
        (
            "def xmodal_selector():\n    return {}\n",
            "unknown hook 'xmodal_selector'; did you mean 'xmodal_selectors'?",
        ),
        (
            "def xmodal_selectors():\n    return {}\n",
            "hook 'xmodal_selectors' lacks the decorator @hookimpl",
        ),
        (
            HEADER + "@hookimpl\ndef xmodal_selectors(extra):\n    return {}\n",
            "PluginValidationError",
        ),
        (
            HEADER + "@hookimpl\ndef xmodal_selectors():\n    return ['a']\n",
            "hook 'xmodal_selectors' must return a mapping, not list",
        ),
        (
            HEADER + "@hookimpl\ndef xmodal_selectors():\n    return {'a': 'module.Class'}\n",
            "hook 'xmodal_selectors': 'a' must map to 'package.module:Class', not 'module.Class'",
        ),
        (
            HEADER + "@hookimpl\ndef xmodal_selectors():\n    return {'a': int}\n",
            "must map to 'package.module:Class', not <class 'int'>",
        ),
        (
            HEADER + "@hookimpl\ndef xmodal_selectors():\n    1 / 0\n",
            "ZeroDivisionError: division by zero",
        ),
    ],
)
def test_broken_plugins_are_isolated(install: Install, source: str, reason: str) -> None:
    install(bad=source, good=GOOD)
    found = discover()
    assert found.names("selector") == ["mine"]
    assert reason in broken(found)["bad"]
    assert "\n" not in broken(found)["bad"]
    assert [p.plugin for p in found.plugins] == ["good"]


def test_a_broken_plugin_leaves_nothing_behind(install: Install) -> None:
    half = GOOD + "@hookimpl\ndef xmodal_mixers():\n    1 / 0\n"
    install(half=half)
    assert discover().entries == {}


def test_an_entry_point_must_name_a_module(install: Install) -> None:
    install(good=GOOD)
    point = Point("odd", "xmodal.testing.tiny:TinySelector", SimpleNamespace(name="d", version="1"))
    plugins.entry_points(group="xmodal").append(point)  # type: ignore[attr-defined]
    assert "entry point must name a module" in broken(discover())["odd"]


def test_strict_stops_at_a_broken_plugin(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(bad="1 / 0")
    monkeypatch.setenv(plugins.STRICT, "1")
    with pytest.raises(PluginError, match=r"plugin 'bad' \(dist-bad\): ZeroDivisionError"):
        discover()


def test_allow_list(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(bad="1 / 0", good=GOOD)
    monkeypatch.setenv(plugins.ALLOW, " good ,")
    found = discover()
    assert found.names("selector") == ["mine"]
    assert not found.broken
    monkeypatch.setenv(plugins.ALLOW, "")
    assert discover().plugins == []
    monkeypatch.setenv(plugins.ALLOW, "goood")
    assert broken(discover()) == {
        "goood": "XMODAL_PLUGINS names it, but it is not installed; did you mean 'good'?"
    }


def test_collisions_name_both_and_bind_neither(install: Install) -> None:
    other = GOOD + "@hookimpl\ndef xmodal_mixers():\n    return {'fine': 'a.b:C'}\n"
    install(one=GOOD, two=other, three=GOOD)
    found = discover()
    assert found.names("selector") == []
    assert found.names("mixer") == ["fine"]
    with pytest.raises(PluginError) as caught:
        found.load("selector", "mine")
    text = "dist-one 1.0 and dist-three 1.0 and dist-two 1.0"
    assert f"selector 'mine' is provided by both {text}" in str(caught.value)
    assert caught.value.exit_code == 3


def test_two_distributions_may_use_one_plugin_name(install: Install) -> None:
    install(same=GOOD)
    install(same=GOOD.replace("'mine'", "'yours'"))
    found = discover()
    assert found.names("selector") == ["mine", "yours"]
    assert not found.broken


def test_unknown_names(install: Install) -> None:
    install(bad="1 / 0", good=GOOD)
    with pytest.raises(UsageError) as caught:
        discover().entry("selector", "mien")
    assert str(caught.value).split("\n") == [
        "unknown selector 'mien'; did you mean 'mine'?",
        "installed: mine (dist-good 1.0)",
        "not loaded: plugin 'bad': ZeroDivisionError: division by zero",
    ]
    with pytest.raises(UsageError, match="installed: none"):
        discover().entry("mixer", "any")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("math:sqrt", "is not a subclass of xmodal.interfaces.Selector"),
        ("xmodal.testing.tiny:TinyScheduler", "is not a subclass of xmodal.interfaces.Selector"),
        ("xmodal.interfaces:Selector", "does not implement: forward"),
        ("xmodal.testing.tiny:TinySelectr", "cannot be imported"),
    ],
)
def test_what_a_name_points_to_is_checked(install: Install, target: str, reason: str) -> None:
    install(good=GOOD.replace("xmodal.testing.tiny:TinySelector", target))
    with pytest.raises(PluginError, match=reason):
        discover().load("selector", "mine")


def test_kinds() -> None:
    assert find_kind("selector") == "selector"
    with pytest.raises(UsageError, match=r"unknown kind 'selectr'; did you mean 'selector'\?"):
        find_kind("selectr")


# --- recipes and commands ---


def test_recipe_folders(install: Install, tmp_path: Path) -> None:
    hook = "@hookimpl\ndef xmodal_recipes():\n    {}\n"
    good = f"from pathlib import Path\n{HEADER}" + hook.format(f"return Path({str(tmp_path)!r})")
    install(good=good, bad=HEADER + hook.format("1 / 0"))
    found = discover()
    assert found.recipe_folders() == [("dist-good", tmp_path)]
    found.recipe_folders()
    assert found.broken == [BrokenPlugin("bad", "dist-bad", "ZeroDivisionError: division by zero")]


def test_data_recipes(install: Install, tmp_path: Path) -> None:
    """``xmodal_data_recipe``: the first plugin that knows a file says which recipe reads it."""
    hook = "@hookimpl\ndef xmodal_data_recipe(path, settings):\n    {}\n"
    good = hook.format(
        "return ('own/night', {'sky': str(path)}) if path.suffix == '.fits' else None"
    )
    install(good=HEADER + good)
    found = own_data("m31.fits", discover())
    assert found is not None
    assert (found.label, found.recipe, found.overrides) == (
        "m31",
        "own/night",
        ('task.sky="m31.fits"',),
    )
    assert own_data("m31.csv", discover()) is None
    install(bad=HEADER + hook.format("1 / 0"))
    with pytest.raises(PluginError, match="plugin 'bad': ZeroDivisionError: division by zero"):
        own_data("m31.fits", discover())


def test_commands(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    good = HEADER + (
        "@hookimpl\ndef xmodal_commands(app):\n"
        "    @app.command()\n    def hello():\n        print('hi')\n"
    )
    install(good=good, bad=HEADER + "@hookimpl\ndef xmodal_commands(app):\n    1 / 0\n")
    monkeypatch.setattr(plugins, "registry", discover)
    app = typer.Typer()
    assert plugins.add_commands(app) == ["plugin 'bad': ZeroDivisionError: division by zero"]
    assert [command.callback.__name__ for command in app.registered_commands] == ["hello"]  # type: ignore[union-attr]


# --- single files ---

SINGLE = HEADER + (
    "from xmodal.testing.tiny import TinySelector\n"
    "class Mine(TinySelector):\n    '''{0}'''\n"
    "@hookimpl\ndef xmodal_selectors():\n    return {{'{0}': f'{{__name__}}:Mine'}}\n"
)


def test_single_file(install: Install, tmp_path: Path) -> None:
    file = tmp_path / "my-selector.py"
    file.write_text(SINGLE.format("first"))
    found = discover((str(file),))
    assert found.load("selector", "first").__name__ == "Mine"
    (plugin,) = found.plugins
    assert plugin.plugin == "my-selector.py"
    assert len(plugin.digest) == 64
    assert found.entry("selector", "first").origin == f"my-selector.py {plugin.digest[:12]}"


def test_two_files_of_one_name_stay_apart(install: Install, tmp_path: Path) -> None:
    files = []
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "p.py")
        files[-1].write_text(SINGLE.format(folder))
    found = discover(tuple(str(file) for file in files))
    assert found.load("selector", "first").__doc__ == "first"
    assert found.load("selector", "second").__doc__ == "second"


@pytest.mark.parametrize(
    ("name", "source", "error", "reason"),
    [
        ("absent.py", None, UsageError, "no such file"),
        ("p.txt", "x = 1", UsageError, r"not a Python file"),
        ("p.py", "1 / 0", PluginError, "ZeroDivisionError"),
        ("p.py", "raise SystemExit(3)", PluginError, "SystemExit: 3"),
        ("p.py", HEADER + "@hookimpl\ndef xmodal_mixer(): ...", PluginError, "unknown hook"),
    ],
)
def test_single_files_that_fail(
    install: Install, tmp_path: Path, name: str, source: str | None, error: Any, reason: str
) -> None:
    file = tmp_path / name
    if source is not None:
        file.write_text(source)
    with pytest.raises(error, match=reason) as caught:
        discover((str(file),))
    assert f"--plugin {file}" in str(caught.value)


def test_discovery_runs_once() -> None:
    assert plugins.registry() is plugins.registry()


def test_an_edited_file_is_read_again(install: Install, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SINGLE.format("first"))
    files = (str(file),)
    before = plugins.registry(files)
    assert plugins.registry(files) is before
    assert before.load("selector", "first").__doc__ == "first"
    file.write_text(SINGLE.format("second"))
    after = plugins.registry(files)
    assert after.names("selector") == ["second"]
    assert after.load("selector", "second").__doc__ == "second"
    file.unlink()
    with pytest.raises(UsageError, match="no such file"):
        plugins.registry(files)


def test_hooks_are_called_through_pluggy(install: Install) -> None:
    """What a wrapper of pluggy adds is seen, and each plugin is asked alone."""
    install(one=GOOD, two=GOOD.replace("'mine'", "'yours'"))
    found = discover()
    called: list[str] = []
    undo = found.manager.add_hookcall_monitoring(
        lambda name, implementations, arguments: called.append(name),
        lambda outcome, name, implementations, arguments: None,
    )
    one, two = found.plugins
    assert found.offering("xmodal_selectors") == [one, two]
    assert found.offering("xmodal_recipes") == []
    assert list(found.call("xmodal_selectors", two)) == ["yours"]
    assert found.call("xmodal_recipes", one) is None
    undo()
    assert called == ["xmodal_selectors", "xmodal_recipes"]


def test_a_hook_must_answer(install: Install) -> None:
    install(silent=HEADER + "@hookimpl\ndef xmodal_selectors():\n    pass\n", good=GOOD)
    found = discover()
    assert "must return a mapping, not NoneType" in broken(found)["silent"]
    assert found.names("selector") == ["mine"]


def _value_of(file: Path) -> int:
    (plugin,) = [p for p in discover((str(file),)).plugins if p.plugin == file.name]
    return int(plugin.module.VALUE)


def test_an_edited_plugin_file_is_read_anew_whatever_its_time_and_size(
    tmp_path: Path, install: Install
) -> None:
    """Python takes its cached bytecode for the file while seconds and size are the same."""
    file = tmp_path / "mine.py"
    for value in (1, 2):
        file.write_text(f"VALUE = {value}\n")
        os.utime(file, (10**9, 10**9))
        assert _value_of(file) == value


def test_the_files_that_a_plugin_file_imports_are_read_anew(
    tmp_path: Path, install: Install
) -> None:
    file, helper = tmp_path / "mine.py", tmp_path / "example_helper.py"
    file.write_text("import example_helper\nVALUE = example_helper.VALUE\n")
    for value in (1, 22):
        helper.write_text(f"VALUE = {value}\n")
        assert _value_of(file) == value
    helper.unlink()


def test_a_plugin_file_imports_what_lies_beside_it_from_anywhere(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir("/")
    for folder, value in (("one", 1), ("two", 2)):  # helpers of one name are not mixed up
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / f"{folder}.py"
        (tmp_path / folder / "example_beside.py").write_text(f"VALUE = {value}\n")
        (tmp_path / folder / f"example_later_{folder}.py").write_text("LATER = 3\n")
        file.write_text(
            "from example_beside import VALUE\n"
            f"def later():\n    from example_later_{folder} import LATER\n    return LATER\n"
        )
        assert _value_of(file) == value
        (plugin,) = (p for p in discover((str(file),)).plugins if p.plugin == file.name)
        assert plugin.module.later() == 3  # type: ignore[attr-defined]
    assert sys.path[0] != str(tmp_path / "two")


def test_code_is_that_of_a_package_whatever_its_version(tmp_path: Path, install: Install) -> None:
    """A package in editable mode keeps its version while it changes."""
    package = tmp_path / "example_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "table.json").write_text("1")
    (tmp_path / "example_module.py").write_text("A = 1\n")
    (tmp_path / "example_beside.py").write_text("B = 1\n")
    one = Entry("loss", "x", "example_package.inner:X", "p", "dist", "1.0")
    two = Entry("loss", "y", "example_module:Y", "p", "dist", "1.0")
    gone = Entry("loss", "z", "example_absent:Z", "p", "dist", "1.0")

    def codes() -> tuple[str, ...]:
        plugins._package.cache_clear()
        return tuple(Registry().code(entry) for entry in (one, two, gone))

    before = codes()
    assert before[2] == "dist 1.0"
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_bytes(b"1")
    (tmp_path / "example_beside.py").write_text("B = 2\n")
    assert codes() == before
    (package / "inner" / "table.json").write_text("2")
    assert [a == b for a, b in zip(codes(), before, strict=True)] == [False, True, True]
    (tmp_path / "example_module.py").write_text("A = 2\n")
    assert [a == b for a, b in zip(codes(), before, strict=True)] == [False, False, True]
