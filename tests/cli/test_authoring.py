"""``plugins new`` writes packages that work, ``plugins check`` finds what is wrong with one."""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xmodal import plugins
from xmodal.authoring import check, describe, new
from xmodal.plugins import HOOKS

Cli = Callable[..., Any]

TAKEN = "a package 'xmodal_mona' is already installed; choose another name, such as 'my-mona'"
LOADING = "loading torch and the required components ...\n"
WRONG_NEW = [
    (("MyMixer", "mixer"), "'MyMixer' is not a valid name; did you mean 'my-mixer'?"),
    (("my_mixer", "mixer"), "'my_mixer' is not a valid name; did you mean 'my-mixer'?"),
    (
        ("3", "mixer"),
        "'3' is not a valid name\nnames are lower-case words with hyphens, such as my-mixer",
    ),
    (("../up", "mixer"), "'../up' is not a valid name; did you mean 'up'?"),
    (("mixup", "mixer"), "mixer 'mixup' is already registered by xmodal"),
    (("mona", "mixer"), TAKEN),
    (("nearest", "mixer"), "there is a recipe 'methods/nearest' already, from xmodal; choose"),
    (("mine", "mixxer"), "unknown kind 'mixxer'; did you mean 'mixer'?"),
]


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts the import path, and what was imported from new packages, back."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("xmodal_my_", "xmodal_plugin_")):
            del sys.modules[name]


@pytest.mark.parametrize(("words", "message"), WRONG_NEW, ids=[w[0][0] for w in WRONG_NEW])
def test_names_that_will_not_do(xmodal: Cli, words: tuple[str, str], message: str) -> None:
    done = xmodal("plugins", "new", words[0], "--kind", words[1])
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert not list(Path().iterdir())


def test_a_folder_that_is_not_empty_is_left_alone(xmodal: Cli) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    done = xmodal("plugins", "new", "my-mixer", "--kind", "mixer", "--out", "mine")
    assert done.code == 2
    assert "mine exists and is not empty; choose another folder with --out" in done.err
    assert [file.name for file in Path("mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("kind", sorted(HOOKS))
def test_a_new_package_keeps_its_contract(xmodal: Cli, kind: str, path: None) -> None:
    """Of every kind; its files are complete and Python, and it is light to list."""
    done = xmodal("plugins", "new", f"my-{kind}", "--kind", kind)
    assert (done.code, done.err) == (0, "")
    folder = Path(f"xmodal-my-{kind}")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"xmodal-my-{kind}"
    assert project["entry-points"]["xmodal"] == {f"my-{kind}": f"xmodal_my_{kind}.plugin"}
    for file in folder.rglob("*.*"):
        text = file.read_text(encoding="utf-8")
        assert not {"{{", "{%"} & {text[i : i + 2] for i in range(len(text))}, file
        if file.suffix == ".py":
            assert ast.get_docstring(ast.parse(text)), f"{file} does not say what it is for"
            assert max(map(len, text.splitlines())) <= 100, file
    package = check.find(str(folder))
    assert [(e.kind, e.name) for e in package.entries] == [(kind, f"my-{kind}")]
    quick = [s for s in check.steps(package) if s.label.startswith(("table", "contract"))]
    taken = {step.label: check.taken(step) for step in quick}
    assert len(taken) == 2
    assert {(outcome.state, outcome.line) for outcome in taken.values()} == {("ok", "")}, taken
    component: Any = package.registry.load(kind, f"my-{kind}")
    for _, _, _, description in describe.settings(component):
        assert description
    summary = describe.summary(f"xmodal_my_{kind}.{kind}:{component.__name__}")
    assert summary
    assert summary in " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    for _, row_default, meaning in describe.settings_in(
        ast.parse((folder / f"xmodal_my_{kind}" / f"{kind}.py").read_text()), component.__name__
    ):
        assert f"| {row_default} | {meaning} |" in (folder / "README.md").read_text()


def test_a_mixer_that_cannot_be_captured_is_told_so(xmodal: Cli, path: None) -> None:
    xmodal("plugins", "new", "my-slow", "--kind", "mixer")
    file = Path("xmodal-my-slow/xmodal_my_slow/mixer.py")
    text = file.read_text(encoding="utf-8")
    declared = 'from_host(self._share, progress, target.tokens.x_BND.device)["share"]'
    assert declared in text
    file.write_text(text.replace(declared, "1 - progress.share"), encoding="utf-8")
    labels = {step.label: step for step in check.steps(check.find("xmodal-my-slow"))}
    outcome = check.taken(labels["contract of mixer my-slow"])
    assert outcome.state == "ok"
    assert outcome.line == (
        "kept, but it is slower on a GPU than it could be: MySlow cannot be captured on a GPU: it "
        "reads progress.share outside of from_host"
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", ["embedder", "stage"])  # the page of authors does a mixer
def test_a_new_package_passes_every_check(process: Cli, kind: str) -> None:
    process("plugins", "new", f"my-{kind}", "--kind", kind)
    done = process("plugins", "check", f"xmodal-my-{kind}")
    assert (done.code, done.err) == (0, LOADING)
    first, *lines = done.out.splitlines()
    assert first == f"checking xmodal-my-{kind}"
    assert len(lines) == 4
    assert all(line.startswith("ok ") for line in lines), done.out


@pytest.mark.long
def test_what_is_wrong_is_said_in_one_line_each(process: Cli) -> None:
    process("plugins", "new", "my-mixer", "--kind", "mixer")
    file = Path("xmodal-my-mixer/xmodal_my_mixer/mixer.py")
    file.write_text(file.read_text().replace("share * (as_source_BND - x_BND)", "0 * x_BND"))
    recipe = Path("xmodal-my-mixer/xmodal_my_mixer/recipes/methods/my-mixer.yaml")
    recipe.write_text("extends: methods/nft\nmixer: {use: my-mixer, shar: 1}\n")
    recipe.with_name("pare.yaml").write_text("extends: methods/nft\nmixer: my-mixer\n")
    done = process("plugins", "check", "xmodal-my-mixer")
    assert done.code == 3
    assert "Traceback" not in done.out + done.err
    lines = done.out.splitlines()
    assert len(lines) == 6
    assert lines[2] == (
        "mend     contract of mixer my-mixer: MyMixer at k=0: two views hold the same tokens; "
        "give one view both terms"
    )
    assert lines[3].startswith("mend     its own tests: FAILED tests/test_my_mixer.py::")
    assert lines[4].startswith("mend     recipe methods/my-mixer, two epochs: ")
    assert "did you mean 'share'?" in lines[4]
    assert "recipe 'methods/pare' is provided by both xmodal and plugin.py" in lines[5]
    assert done.err == LOADING + "error: xmodal-my-mixer: 4 of 5 checks failed\n"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("xmodal-tpnorm", "no plugin package 'xmodal-tpnorm' is installed"),
        ("xmodal_mixx", "no plugin package 'xmodal_mixx' is installed; did you mean 'xmodal_mix'?"),
        (".", ". has no pyproject.toml, so it is not a package"),
        ("no.py", "--plugin no.py: no such file"),
    ],
)
def test_what_cannot_be_checked(xmodal: Cli, reference: str, message: str) -> None:
    done = xmodal("plugins", "check", reference)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}")


def test_a_package_without_an_entry_point(xmodal: Cli) -> None:
    Path("pyproject.toml").write_text('[project]\nname = "mine"\n')
    done = xmodal("plugins", "check", ".")
    assert done.code == 3
    assert "pyproject.toml declares no plugin" in done.err


def test_a_contract_that_needs_settings_is_skipped() -> None:
    package = check.find("xmodal_openml")
    labels = {s.label: s for s in check.steps(package)}
    outcome = check.taken(labels["contract of task openml"])
    assert outcome.state == "skipped"
    assert outcome.line == "needs settings (path field required); check it in your own test"


# --- list and info ---


def test_every_component_has_one_line_that_its_docstring_says() -> None:
    """Read from the source, so that nothing is imported; the same as the class would say."""
    found = plugins.registry()
    for (kind, name), entry in found.entries.items():
        said = describe.first_sentence(found.load(kind, name).__doc__ or "")
        assert describe.summary(entry.target) == said, entry.target
        assert said


def test_a_description_is_read_without_importing(tmp_path: Path, path: None) -> None:
    package = tmp_path / "xmodal_my_trap"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "part.py").write_text(
        'raise RuntimeError("imported")\nclass A:\n    """One.  See Eq. 1\n    here. Two."""\n'
        "class B:\n    pass\n"
    )
    (package / "broken.py").write_text("class\n")
    sys.path.insert(0, str(tmp_path))
    assert describe.summary("xmodal_my_trap.part:A") == "One."
    for silent in ("part:B", "part:C", "broken:A", "absent:A", "part.deeper:A"):
        assert describe.summary(f"xmodal_my_trap.{silent}") == ""
    assert describe.summary("zlib:A") == describe.summary("xmodal_my_absent.part:A") == ""
    assert describe.first_sentence("Eq. 1 of\nthis. And more.") == "Eq. 1 of this."


def test_list_says_what_each_is(xmodal: Cli) -> None:
    rows = json.loads(xmodal("plugins", "list", "--json").out)["components"]
    about = {(row["kind"], row["name"]): row["about"] for row in rows}
    assert all(about.values())
    assert about["scheduler", "constant"] == 'k = value: PaRe\'s "non-gradual" variant (Table 4).'
    assert about["scheduler", "constant"] in xmodal("plugins", "list", "scheduler").out


@pytest.mark.long
def test_info_says_where_it_is_used_and_whom_it_is_from(xmodal: Cli) -> None:
    told = json.loads(xmodal("plugins", "info", "mixer", "patch-replace", "--json").out)
    assert told["distribution"] == "xmodal"
    assert told["file"].endswith("patch_replace.py")
    assert {"methods/pare", "methods/pare-consistent", "demo/pare"} <= set(told["recipes"])
    assert "methods/mixup" not in told["recipes"]
    assert "ICML 2024" in told["citation"]
    shown = xmodal("plugins", "info", "mixer", "patch-replace").out
    assert "methods/pare" in shown
    assert f"cite: {told['citation']}" in shown
    metric = json.loads(xmodal("plugins", "info", "metric", "relative-l2", "--json").out)
    assert metric["citation"] == ""


@pytest.mark.parametrize(
    ("kind", "name", "recipe"),
    [
        ("stage", "align", "methods/orca"),
        ("distance", "sinkhorn", "methods/orca"),
        ("adapter", "lora", "methods/lora"),
        ("source", "digits", "scales/smoke"),
    ],
)
def test_recipes_that_use_a_part(kind: str, name: str, recipe: str) -> None:
    assert recipe in describe.recipes_that_use(kind, name, plugins.registry())


def test_citations_name_a_year() -> None:
    found = plugins.registry()
    cited = {key: found.load(*key).citation for key in found.entries}
    assert all(not text or any(c.isdigit() for c in text) for text in cited.values())
    for key in (("stage", "meta-align"), ("stage", "align-labels"), ("distance", "otdd")):
        assert cited[key]


def test_every_kind_has_its_templates() -> None:
    parts = {file.name.partition(".")[0] for file in (new.TEMPLATES / "parts").iterdir()}
    assert parts == set(HOOKS)
    assert set(check.TRIALS) | {"launcher", "exporter"} == set(HOOKS)
