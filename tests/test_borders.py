"""Borders of the project: what may import what, what no file may do, and what is documented.

Who may import whom is declared in ``pyproject.toml`` and checked by import-linter.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from xmodal import hookspecs
from xmodal.plugins import HOOKS, registry

from .public import PUBLIC

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
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
    "columns": "the columns of a table, in kept states and in frames",
    "fit": "whether a run fits into memory",
    "crop": "how samples that are too long come to one length (data.lengths)",
    "linear": "a shape of learning-rate decay",
    "timm": "a library whose version is recorded",
}
# Files that may do what is otherwise forbidden, and why.
UNPICKLERS = {
    "xmodal/data/unpickle.py": "reads a published pickle with an allow list",
}
LIMIT = 500
UNWATCHED = {"xmodal.authoring", "xmodal.cli"}
"""Rooms that are not public and that no contract keeps plugins out of."""
HEAVY = (
    "torch", "timm", "transformers", "accelerate", "matplotlib", "sklearn", "scipy", "pandas",
    "tensorboard", "mlflow", "wandb", "ray", "submitit", "onnx", "onnxruntime",
)  # fmt: skip


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
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


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of ``[tool.importlinter]`` on the tree in a folder."""
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    paths = [str(folder), str(folder / "plugins"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-c", script, "--no-cache"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_imports_keep_the_contracts() -> None:
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


SEEDS = {
    "xmodal/engine/loop.py": "from xmodal_pare.gate import Gate",
    "xmodal/settings.py": "if TYPE_CHECKING:\n    from xmodal.interfaces import Selector",
    "xmodal/data/labels.py": "def late():\n    from xmodal.comparison import grid",
    "xmodal/recipe/yaml.py": "import xmodal.recipe.compose",
    "xmodal/strange.py": "",
    "plugins/xmodal_pare/gate.py": "from xmodal_mix import cutmix",
    "plugins/xmodal_mix/mixup.py": "def late():\n    import xmodal.engine.loop",
    "plugins/xmodal_launch/process.py": "import xmodal_launch.slurm",
}
"""What is wrong on purpose, by the file that it is added to."""
TOLD = {
    "Rooms import only what is below them": (
        "xmodal.settings -> xmodal.interfaces",
        "xmodal.data.labels -> xmodal.comparison.grid",
        "xmodal.strange",
    ),
    "No circles inside a room": (
        "No cycles are allowed in xmodal.recipe",
        "No cycles are allowed in xmodal_launch",
    ),
    "The core imports no plugin": ("xmodal.engine.loop -> xmodal_pare.gate",),
    "No plugin imports another": ("xmodal_pare.gate -> xmodal_mix.cutmix",),
    "Plugins import no room that is not public": ("xmodal_mix.mixup -> xmodal.engine.loop",),
}
"""What each contract must say of it."""


def test_each_contract_fails_on_a_violation(tmp_path: Path) -> None:
    """Imports for type checking and inside functions count like all others."""
    for path in [*CORE, *PLUGINS, ROOT / "pyproject.toml"]:
        copy = tmp_path / _name(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for name, line in SEEDS.items():
        with (tmp_path / name).open("a", encoding="utf-8") as stream:
            stream.write(f"\n{line}\n")
    done = _lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    for contract, lines in TOLD.items():
        assert f"{contract} BROKEN" in done.stdout
        for line in lines:
            assert line in done.stdout, f"{contract}: {line}"


def test_the_contracts_name_every_package_and_public_room() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    linter = settings["tool"]["importlinter"]
    assert linter["root_packages"] == ["xmodal", *PACKAGES]
    contracts = {contract["name"]: contract for contract in linter["contracts"]}
    assert set(contracts) == set(TOLD)
    assert contracts["The core imports no plugin"]["forbidden_modules"] == PACKAGES
    assert contracts["No plugin imports another"]["modules"] == PACKAGES
    assert contracts["No circles inside a room"]["ancestors"] == ["xmodal", *PACKAGES]
    doors = contracts["Plugins import no room that is not public"]
    assert doors["source_modules"] == PACKAGES
    rooms = {p.name if p.is_dir() else p.stem for p in (ROOT / "xmodal").iterdir()}
    rooms = {f"xmodal.{room}" for room in rooms if not room.startswith(("_", "py"))}
    open_rooms = {".".join(name.split(".")[:2]) for name in PUBLIC}
    # Whatever a plugin may not import is closed, apart from what no plugin would.
    assert set(doors["forbidden_modules"]) <= rooms - open_rooms
    assert rooms - open_rooms - set(doors["forbidden_modules"]) <= UNWATCHED


def test_the_engine_names_no_component() -> None:
    names = {name for _, name in registry().entries} - set(SHARED_WORDS)
    # A component must also not hide in an override such as "selector=random".
    names |= {f"{kind}={name}" for kind in HOOKS for name in names}
    named = [
        f"{_name(path)}:{node.lineno}: {node.value!r}"
        for path in CORE
        for node in _strings(path)
        if node.value in names
    ]
    assert not named


def test_shared_words_are_components() -> None:
    """A word that names no component any more needs no exception."""
    assert set(SHARED_WORDS) <= {name for _, name in registry().entries}


def test_a_table_of_contents_imports_nothing_heavy() -> None:
    light = {"__future__", "collections", "importlib", "pathlib", "typing", "xmodal"}
    tables = [path for path in PLUGINS if path.name == "plugin.py"]
    assert len(tables) == len(PACKAGES)
    heavy = {_name(path): _tops(path) - light for path in tables}
    assert not {name: found for name, found in heavy.items() if found}
    inside = {
        _name(path): {name for name in _imports(path) if name.startswith("xmodal")}
        for path in tables
    }
    assert not {name: f for name, f in inside.items() if not f <= {"xmodal", "xmodal.hookspecs"}}


# --- what no file may do ---


@pytest.mark.long
def test_nothing_runs_code_from_data() -> None:
    assert not [line for path in CORE + PLUGINS for line in _runs_code(path)]


def _runs_code(path: Path) -> Iterator[str]:
    if _name(path) in UNPICKLERS:
        return
    forbidden = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    yield from (f"{_name(path)} imports {name}" for name in _tops(path) & forbidden)
    safe = {
        "allow_pickle": "False",
        "shell": "False",
        "trust_remote_code": "False",
    }
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        where = f"{_name(path)}:{node.lineno}: {called}"
        if called in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"):
            yield where
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load" and keywords.get("weights_only") != "True":
            yield where
        if any(keywords.get(name, value) != value for name, value in safe.items()):
            yield where


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "os.system('ls')",
        "yaml.load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_code_from_data_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "module.py"
    file.write_text(f"def f():\n    {line}\n")
    assert len(list(_runs_code(file))) == 1
    fine = tmp_path / "fine.py"
    fine.write_text("def f():\n    torch.load(path, weights_only=True)\n    import json\n")
    assert not list(_runs_code(fine))


def test_exceptions_above_still_exist() -> None:
    assert all((ROOT / name).is_file() for name in UNPICKLERS)


def test_style() -> None:
    assert not [line for path in CORE + PLUGINS for line in _unstylish(path)]


def _unstylish(path: Path) -> Iterator[str]:
    tree, text, name = _tree(path), path.read_text(encoding="utf-8"), _name(path)
    lines = len(text.splitlines())
    if lines > LIMIT:
        yield f"{name}: {lines} lines: split the module"
    if path.stem in ("utils", "util", "helpers", "misc"):
        yield f"{name}: a name that says nothing"
    if text.strip() and path.name != "__init__.py" and not ast.get_docstring(tree):
        yield f"{name}: a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{name}:{node.lineno}: bare except"


def _undocumented(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
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


def test_public_functions_have_docstrings() -> None:
    missing = {_name(path): list(_undocumented(_tree(path).body)) for path in CORE}
    assert not {name: found for name, found in missing.items() if found}


# --- what is documented and tested ---


def test_every_hook_is_documented() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(xmodal_\w+)` \|", text, re.MULTILINE))
    assert documented == {name for name in vars(hookspecs) if name.startswith("xmodal_")}
    for name in documented:
        assert (getattr(hookspecs, name).__doc__ or "").strip()


def test_every_hook_is_tested() -> None:
    """Component hooks by the contract tests of the built-ins, the others by name."""
    text = (ROOT / "tests" / "test_plugins.py").read_text(encoding="utf-8")
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
    plugin, *_, test = _blocks("python")
    file = tmp_path / "my_selector.py"
    file.write_text(plugin)
    (tmp_path / "test_it.py").write_text(test)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    script = "import test_it; test_it.test_first_tokens()"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
    command = ["-m", "xmodal", "plugins", "info", "selector", "first", "--plugin", str(file)]
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "stride" in done.stdout


# --- lightness ---


def _loaded(*arguments: str, code: int = 0) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-m", "xmodal", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("run", "--help"),
        ("plugins", "list"),
        ("recipes", "list"),
        ("recipes", "show", "demo/pare"),
        (),
    ],
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "demo/paer"),
        ("run", "demo/pare", "selector=gat"),
        ("run", "demo/pare", "sede=1"),
        ("run", "methods/pare"),
        ("recipes", "validate", "demo/pare", "trackers=[nowhere]"),
        ("run", "demo/pare", "--dry-run", "--track", "nowhere"),
        ("predict", "nowhere", "x.csv"),
        ("export", "nowhere", "--to", "onnx", "--out", "x"),
        ("compare",),
        ("compare", "paer", "--task", "darcy"),
    ],
    ids=" ".join,
)
def test_wrong_names_are_told_without_anything_heavy(arguments: tuple[str, ...]) -> None:
    loaded = _loaded(*arguments, code=2)
    assert "xmodal.cli.app" in loaded
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)


def test_a_valid_recipe_loads_torch_and_little_else() -> None:
    heavy = {name.partition(".")[0] for name in _loaded("recipes", "validate", "demo/pare")}
    assert heavy & {*HEAVY, "torchvision", "peft", "ot", "h5py"} == {"torch"}
