"""Everything in a fence works: recipes validate, Python compiles and runs, commands exist.

Links between files resolve, and the site's navigation names every page.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from ruamel.yaml import YAML
from typer.testing import CliRunner

from xmodal import plugins
from xmodal.comparison.grid import Suite
from xmodal.data.store import Store
from xmodal.engine.plan import plan
from xmodal.recipe.compose import compose, validate
from xmodal.recipe.datasets import NamedData, all_named
from xmodal.recipe.messages import LAYER_KEYS
from xmodal.recipe.recipe import Recipe
from xmodal.recipe.yaml import read

from ..paths import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
EXAMPLES = ROOT / "docs" / "examples"
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```", re.M | re.S)
KEYS = {*Recipe.model_fields, *LAYER_KEYS}
UNDER = "demo/pare"
"""What fragments of recipes are laid on: the recipe whose parts the method cards speak of."""
HARMLESS = ("recipes", "plugins", "schema")
LONG = ("run", "resume", "demo", "doctor", "compare", "analyse", "distance", "sources")
LONG += ("predict", "export", "data", "rivals", "fit", "runs")
WALKED = "From an idea to a comparison"
PACKAGES = {"numpy", "pathlib", "xmodal", "torch"}


@dataclass(frozen=True)
class Block:
    """A fenced block and where it stands."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        indent = len(match["indent"])
        lines = [line[indent:] for line in match["text"].splitlines()]
        where = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, where, match["language"], "\n".join(lines) + "\n"))
    return found


def of(*languages: str) -> list[Any]:
    """The blocks of all pages in one of the languages, as parameters."""
    found = [block for page in PAGES for block in blocks(page) if block.language in languages]
    return [pytest.param(block, id=str(block)) for block in found]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory that holds the files the pages speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    random = np.random.default_rng(0)
    for name in ("mine", "my"):
        np.savez(f"{name}.npz", x=random.normal(size=(60, 2, 64)), y=np.arange(60) % 3)


def is_recipe(data: Any) -> bool:
    """Whether a YAML block is a recipe or a piece of one."""
    return isinstance(data, dict) and bool(data.keys() & KEYS)


def checked_recipe(path: str) -> None:
    """Compose and validate a file; ways a machine differs (absent data, no hub) are no problem."""
    registry = plugins.registry()
    layered = compose([path], registry)
    recipe = validate(layered, registry)
    if recipe.task.config.model_dump().get("path") in (None, "mine.npz", "my.npz"):
        plan(recipe, Store(), layered)


@pytest.mark.parametrize("block", of("yaml", "yml"))
def test_recipes(block: Block) -> None:
    data = YAML(typ="safe", pure=True).load(_without_dots(block.text)) if block.text else None
    if isinstance(data, dict) and data.keys() >= {"methods", "tasks"}:
        Suite.model_validate(data)
        return
    if not is_recipe(data):
        # Lists of alternatives: the same key again and again, one to choose from.
        assert not (isinstance(data, dict) and {"use", "path"} & data.keys()), "an unknown block"
        return
    assert data.keys() <= KEYS, f"not keys of a recipe: {sorted(data.keys() - KEYS)}"
    if "extends" not in data and not data.keys() >= {"task", "backbone", "stages"}:
        text = f"extends: {UNDER}\n" + _without_dots(block.text)
    else:
        text = block.text
    Path("block.yaml").write_text(text, encoding="utf-8")
    checked_recipe("block.yaml")


def _without_dots(text: str) -> str:
    """A block without lines that only say "and so on", one alternative of each repeated key."""
    kept: dict[str, str] = {}
    order: list[str] = []
    for number, line in enumerate(text.splitlines()):
        if re.match(r"^\s*[\w-]+: *\.\.\.\s*$", line):
            continue
        key = line.partition(":")[0] if re.match(r"^[\w-]+:", line) else f"#{number}"
        if key not in kept:
            order.append(key)
            kept[key] = line
    return "\n".join(kept[key] for key in order) + "\n"


def alternatives(text: str) -> Iterator[str]:
    """Single lines of a block that gives several values of one key."""
    lines = [line for line in text.splitlines() if re.match(r"^[\w-]+: ", line)]
    keys = [line.partition(":")[0] for line in lines]
    yield from (line for line in lines if keys.count(line.partition(":")[0]) > 1)


@pytest.mark.parametrize("block", of("yaml", "yml"))
def test_every_alternative_is_valid(block: Block) -> None:
    """Blocks that show several values of one key: each of them is a valid choice."""
    for line in alternatives(block.text):
        Path("block.yaml").write_text(f"extends: {UNDER}\n{line}\n", encoding="utf-8")
        registry = plugins.registry()
        validate(compose(["block.yaml"], registry), registry)


@pytest.mark.parametrize("block", of("python"))
def test_python(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(block.text, str(block), "exec")
    imported = set(re.findall(r"^(?:from|import) (\w+)", block.text, re.MULTILINE))
    if block.page.name == "plugins.md" or EXAMPLES in block.page.parents:
        return  # run by the tests of the borders and of the packages
    space: dict[str, Any] = {"__name__": "block", "np": np, "numpy": np}
    random = np.random.default_rng(0)
    space |= {"x": random.normal(size=(30, 46)), "y": np.arange(30) % 3}
    if imported <= PACKAGES and "run(" not in block.text and "load(" not in _top(block.text):
        exec(code, space)


def _top(text: str) -> str:
    """The lines at the top level of a program."""
    return "\n".join(line for line in text.splitlines() if not line.startswith((" ", "\t")))


def commands() -> list[Any]:
    """Every ``xmodal`` command in a block of the shell, with the page's recipes so far."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language not in ("bash", "console", "sh", "shell"):
                continue
            joined = block.text.replace("\\\n", " ")
            for line in joined.splitlines():
                command = line.removeprefix("$ ").strip()
                command = re.sub(r"^\S*/(?=xmodal\b)", "", command)
                if command == "xmodal" or command.startswith("xmodal "):
                    found.append(pytest.param(block, command, id=f"{block} {command}"))
    return found


def recipe_before(block: Block) -> str | None:
    """The text of the last whole recipe above a command: what its own .yaml file would hold."""
    above = [b for b in blocks(block.page) if b.language == "yaml" and b.line < block.line]
    whole = [b.text for b in above if b.text.lstrip().startswith(("extends:", "task:"))]
    return whole[-1] if whole else None


def prepare(block: Block, arguments: list[str]) -> None:
    """Make the files that a command names: recipes of the page, single-file plugins, data."""
    for argument in arguments:
        file = Path(argument)
        if file.suffix == ".csv" and not file.exists() and file.parent == Path():
            rows = "".join(f"{row},{row * row % 7},{'ab'[row % 2]}\n" for row in range(40))
            file.write_text(f"size,price,kind\n{rows}", encoding="utf-8")
        if argument.endswith("/") and file.parent == Path() and not file.exists():
            (file / "x").mkdir(parents=True)
            for row in range(12):
                np.save(
                    file / "x" / f"{row}.npy", np.random.default_rng(row).normal(size=1100 + row)
                )
            np.save(file / "y.npy", np.arange(12) % 2)
        if argument.endswith(".yaml") and not argument.startswith("recipes/"):
            text = recipe_before(block)
            if text is not None and not file.exists():
                file.write_text(text, encoding="utf-8")
        if argument.endswith(".py"):
            python = [b.text for b in blocks(block.page) if b.language == "python"]
            file.write_text(python[0], encoding="utf-8")


def walked(block: Block) -> bool:
    """Whether a block is one of the steps that test_author_page.py takes one after the other."""
    above = block.page.read_text(encoding="utf-8").splitlines()[: block.line]
    headings = [line.removeprefix("## ") for line in above if line.startswith("## ")]
    return block.page.name == "plugins.md" and headings[-1:] == [WALKED]


@pytest.mark.parametrize(("block", "command"), commands())
def test_commands(block: Block, command: str) -> None:
    app = _app()
    if EXAMPLES in block.page.parents and block.page.parent != EXAMPLES:
        pytest.skip("run by the tests of the packages, with the package installed")
    arguments = shlex.split(command, comments=True)[1:]
    if walked(block):
        pytest.skip("run by the test that walks that section")
    runner = CliRunner()
    if "cp" in arguments[:2]:
        arguments.append("--force")
    else:
        prepare(block, arguments)
    group = arguments[0] if arguments else "--help"
    if group in HARMLESS or group.startswith("-"):
        done = runner.invoke(app, arguments)
        assert done.exit_code == 0, (done.output, done.exception)
        return
    assert group in LONG, f"{group}: unknown command, or one this test should know"
    options = [a for a in arguments if a.startswith("-")]
    path = arguments[:2] if group in ("sources", "data", "rivals") else [group]
    shown = runner.invoke(app, [*path, "--help"], env={"COLUMNS": "200"}).output
    for option in options:
        assert option.partition("=")[0] in shown, f"{group} has no option {option}"
    if group == "run":
        done = runner.invoke(app, ["recipes", "validate", *_for_validate(arguments[1:])])
        assert done.exit_code == 0, (done.output, done.exception)


@functools.cache
def _app() -> typer.Typer:
    """The command line with the commands that plugins add, as it starts."""
    from xmodal.cli.app import app
    from xmodal.plugins import add_commands

    add_commands(app)
    return app


def _for_validate(arguments: list[str]) -> list[str]:
    """Recipes, overrides, scale and plugins of a ``run`` command."""
    kept, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("--scale", "--plugin"):
            kept += [argument, rest.pop(0)]
        elif argument in ("--seed", "--name", "--root", "--directory", "--track"):
            rest.pop(0)
        elif not argument.startswith("-"):
            kept.append(argument)
    return kept


# --- links and navigation ---


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return {re.sub(r" +", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


def test_fences_are_not_indented() -> None:
    """The site shows an indented fence as plain text."""
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    assert not [page for page, text in texts.items() if re.search(r"^ +```", text, re.MULTILINE)]


def test_navigation_names_every_page() -> None:
    site = YAML(typ="safe", pure=True).load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(node: Any) -> Iterator[str]:
        for item in node if isinstance(node, list) else node.values():
            yield from [item] if isinstance(item, str) else pages(item)

    named = list(pages(site["nav"]))
    docs = ROOT / "docs"
    packages = {path for path in EXAMPLES.iterdir() if path.is_dir()}
    present = {
        path.relative_to(docs).as_posix()
        for path in docs.rglob("*.md")
        if not packages & set(path.parents)
    }
    assert len(named) == len(set(named))
    # The others are made from the code when the site is built; their own test compares them.
    assert {page for page in named if not page.startswith("reference/")} == present


def test_every_method_and_task_has_a_card() -> None:
    files = {path.stem: path for path in (ROOT / "recipes" / "methods").glob("*.yaml")}
    rivals = {name for name, path in files.items() if read(path).data.get("role") == "rival"}
    assert len(rivals) > 10
    methods = {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")}
    assert set(files) - rivals <= methods
    # One page for all rivals.
    page = (ROOT / "docs" / "rivals.md").read_text(encoding="utf-8")
    assert rivals <= set(re.findall(r"`([\w-]+)`", page))
    # A benchmark has a page of its own, or each of its tasks has.
    pages = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs" / "tasks").glob("*.md")}
    named = (re.findall(r"`(?:tasks/)?([\w/-]+)`", text) for text in pages.values())
    described = {*pages, *(name for found in named for name in found)}
    known = [one for one in all_named(plugins.registry()) if isinstance(one, NamedData)]
    assert {one.name for one in known if one.recipe} <= described


@pytest.mark.parametrize("kind", ["backbone", "source"])
def test_every_backbone_and_source_is_described(kind: str) -> None:
    text = (ROOT / "docs" / f"{kind}s.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE))
    assert set(plugins.registry().names(kind)) <= named
