"""Borders of the project: what may import what, what no file may do, and what is documented."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xmodal import hookspecs
from xmodal.plugins import HOOKS, registry

ROOT = Path(__file__).resolve().parents[2]
CORE = sorted((ROOT / "xmodal").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
PACKAGES = sorted(path.name for path in (ROOT / "plugins").iterdir() if path.is_dir())

# Words that name a component and also something else, with what else they are.
SHARED_WORDS = {
    "classification": "a kind of label (interfaces.Target)",
    "multi-label": "a kind of label (interfaces.Target)",
    "regression": "a kind of label (interfaces.Target)",
    "dense": "a kind of label (interfaces.Target)",
    "random": "a word of the English language in messages",
    "none": "a word of the English language in messages",
    "auto": "the default device, which accelerate then chooses",
    "patch": "a fact of a backbone, the side of its patches (interfaces.BackboneFacts)",
    "fit": "whether a run fits into memory",
    "linear": "a shape of learning-rate decay",
    "timm": "a library whose version is recorded",
}
# Files that may do what is otherwise forbidden, and why.
UNPICKLERS = {
    "plugins/xmodal_nasbench360/safe_pickle.py": "reads a published pickle with an allow list",
}
LONG = {"xmodal/interfaces.py": "every interface on one page, which plugin authors read first"}
LIMIT = 500
HEAVY = (
    "torch", "timm", "transformers", "accelerate", "matplotlib", "sklearn", "scipy", "pandas",
    "tensorboard", "mlflow", "wandb", "ray", "submitit", "onnx", "onnxruntime",
)  # fmt: skip


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." * node.level) + (node.module or "")


def _tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in _imports(path)}


def _strings(path: Path) -> Iterator[ast.Constant]:
    """String constants that are not docstrings or other bare expressions."""
    tree = _tree(path)
    bare = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node


# --- who may know whom ---


@pytest.mark.parametrize("path", CORE, ids=_name)
def test_the_engine_imports_no_plugin(path: Path) -> None:
    assert not _tops(path) & set(PACKAGES)


@pytest.mark.parametrize("path", CORE, ids=_name)
def test_the_engine_names_no_component(path: Path) -> None:
    names = {name for _, name in registry().entries} - set(SHARED_WORDS)
    # A component must also not hide in an override such as "selector=random".
    named = [
        f"{_name(path)}:{node.lineno}: {node.value!r}"
        for node in _strings(path)
        if node.value in names or any(node.value == f"{kind}={n}" for kind in HOOKS for n in names)
    ]
    assert not named


def test_shared_words_are_components() -> None:
    """A word that names no component any more needs no exception."""
    assert set(SHARED_WORDS) <= {name for _, name in registry().entries}


@pytest.mark.parametrize("path", PLUGINS, ids=_name)
def test_no_plugin_imports_another(path: Path) -> None:
    own = path.relative_to(ROOT / "plugins").parts[0]
    assert not _tops(path) & (set(PACKAGES) - {own})


@pytest.mark.parametrize("path", [p for p in PLUGINS if p.name == "plugin.py"], ids=_name)
def test_a_table_of_contents_imports_nothing_heavy(path: Path) -> None:
    light = {"__future__", "collections", "importlib", "pathlib", "typing", "xmodal"}
    assert _tops(path) <= light
    inside = {name for name in _imports(path) if name.startswith("xmodal")}
    assert inside <= {"xmodal", "xmodal.hookspecs"}


# --- what no file may do ---


@pytest.mark.parametrize("path", CORE + PLUGINS, ids=_name)
def test_nothing_runs_code_from_data(path: Path) -> None:
    if _name(path) in UNPICKLERS:
        return
    forbidden = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert not _tops(path) & forbidden
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        where = f"{_name(path)}:{node.lineno}: {called}"
        assert called not in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"), where
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", where
        assert keywords.get("allow_pickle", "False") == "False", where
        assert keywords.get("shell", "False") == "False", where
        assert keywords.get("trust_remote_code", "False") == "False", where


def test_exceptions_above_still_exist() -> None:
    assert all((ROOT / name).is_file() for name in UNPICKLERS)


@pytest.mark.parametrize("path", CORE + PLUGINS, ids=_name)
def test_style(path: Path) -> None:
    tree, text = _tree(path), path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= LIMIT or _name(path) in LONG, f"{lines} lines: split the module"
    assert path.stem not in ("utils", "util", "helpers", "misc")
    if text.strip() and path.name != "__init__.py":
        assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"


def _undocumented(backbone: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in backbone:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        overload = any("overload" in ast.unparse(d) for d in node.decorator_list)
        if node.name.startswith("_") or overload:
            continue
        nested_settings = isinstance(node, ast.ClassDef) and node.name == "Config"
        if not ast.get_docstring(node) and not nested_settings:
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node.body, f"{prefix}{node.name}.")


@pytest.mark.parametrize("path", CORE, ids=_name)
def test_public_functions_have_docstrings(path: Path) -> None:
    assert not list(_undocumented(_tree(path).body))


# --- what is documented and tested ---


def test_every_hook_is_documented() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(xmodal_\w+)` \|", text, re.MULTILINE))
    assert documented == {name for name in vars(hookspecs) if name.startswith("xmodal_")}
    for name in documented:
        assert (getattr(hookspecs, name).__doc__ or "").strip()


def test_every_hook_is_tested() -> None:
    """Component hooks by the contract tests of the built-ins, the others by name."""
    text = (ROOT / "tests" / "unit" / "test_plugins.py").read_text(encoding="utf-8")
    for name in vars(hookspecs):
        if name.startswith("xmodal_") and name not in HOOKS.values():
            assert name in text
    assert {kind for kind in HOOKS if registry().names(kind)} == set(HOOKS)


def _blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_code_of_the_documentation_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, _, test = _blocks("python")
    file = tmp_path / "my_selector.py"
    file.write_text(plugin)
    (tmp_path / "test_it.py").write_text(test)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    script = "import test_it; test_it.test_first_tokens()"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
    command = ["-m", "xmodal", "plugins", "info", "selector", "first", "--plugin", str(file)]
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "stride" in done.stdout


# --- lightness ---


def _loaded(*arguments: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-m", "xmodal", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("run", "--help"), ("plugins", "list"), ()]
)
def test_light_commands_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    if not arguments:
        command = "import sys, xmodal; print(*sys.modules, sep='\\n')"
        shown = subprocess.run(
            [sys.executable, "-c", command], capture_output=True, text=True, check=True, timeout=60
        )
        loaded = set(shown.stdout.split())
    else:
        loaded = _loaded(*arguments)
        assert "xmodal.cli.app" in loaded
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)
    if arguments == ("--help",):
        assert "pydantic" not in loaded
