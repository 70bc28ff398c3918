"""``xmodal recipes`` and ``xmodal schema``."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import typer

from xmodal import plugins
from xmodal.cli import output
from xmodal.cli.output import AsJson, Plugins
from xmodal.cli.run import Recipes, split_arguments
from xmodal.errors import RecipeError, UsageError, did_you_mean
from xmodal.files import write_atomically

app = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True)
Scale = Annotated[str | None, typer.Option(help="Scale layer to apply last.")]


@app.command("list")
def list_(pattern: Annotated[str | None, typer.Argument()] = None, as_json: AsJson = False) -> None:
    """List recipes, or only those that match a pattern such as 'methods/*'.

    Without a pattern, old names and what is laid on by itself for a task or a scale are left out.
    """
    from xmodal.recipe.lookup import all_recipes
    from xmodal.recipe.yaml import read

    known = all_recipes(plugins.registry())
    found = [f for f in known if fnmatch(f.name, pattern or "*")]
    if not found and pattern:
        folders = {f"{f.name.partition('/')[0]}/*" for f in known if "/" in f.name}
        hint = did_you_mean(pattern, folders | {f.name for f in known})
        raise UsageError(f"no recipe matches '{pattern}'{hint}\nlist all: xmodal recipes list")
    rows = []
    for recipe in found:
        try:
            description = str(read(recipe.path).data.get("description", ""))
        except RecipeError as error:
            description = ""
            output.stderr().print(f"note: {error.problems[0]}")
        rows.append((recipe.name, description, recipe.origin or "here"))
    if as_json:
        keys = ("name", "description", "origin")
        output.print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    names = {name for name, _, _ in rows}
    shown = [row for row in rows if pattern or not (_is_layer(row[0], names) or _is_old(row[1]))]
    output.print_table(("recipe", "what it is", "from"), shown)
    if len(shown) < len(rows):
        output.stdout().print(
            f"\n{len(rows) - len(shown)} more are old names, or laid on by themselves for a task "
            "or a scale: xmodal recipes list '*'",
            soft_wrap=True,
        )


def _is_layer(name: str, names: Collection[str]) -> bool:
    """Whether a recipe is a layer of another one, such as ``scales/cpu/darcy``."""
    parts = name.split("/")
    return any("/".join(parts[:i]) in names for i in range(1, len(parts)))


def _is_old(description: str) -> bool:
    return description.startswith("Old name of ")


@app.command()
def show(
    arguments: Recipes,
    scale: Scale = None,
    origins: Annotated[
        bool, typer.Option("--origins", help="Show where each value comes from.")
    ] = False,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Show every setting, including defaults.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a composed recipe."""
    from xmodal.recipe.compose import compose, validate
    from xmodal.recipe.yaml import dotted

    recipes, overrides = split_arguments(arguments)
    registry = plugins.registry()
    layered = compose(recipes, registry, overrides, scale)
    if origins:
        blocks = {path[:-1] for path in layered.origins}
        leaves = [
            (dotted(path), str(origin))
            for path, origin in sorted(layered.origins.items(), key=lambda item: str(item[0]))
            if path not in blocks
        ]
        if as_json:
            output.print_json(dict(leaves))
        else:
            output.print_table(("key", "from"), leaves)
        return
    data = layered.data
    if resolved:
        data = validate(layered, registry).model_dump(mode="json")
    if as_json:
        output.print_json(data)
        return
    from ruamel.yaml import YAML

    YAML().dump(json.loads(json.dumps(data)), sys.stdout)


@app.command()
def cp(
    recipe: Annotated[str, typer.Argument(help="The recipe to copy.")],
    destination: Annotated[Path, typer.Argument(help="The new file.")],
    force: Annotated[bool, typer.Option(help="Overwrite.")] = False,
) -> None:
    """Copy a recipe to a file of your own."""
    from xmodal.recipe.lookup import find_recipe

    found = find_recipe(recipe, plugins.registry())
    if destination.is_dir():
        destination = destination / found.path.name
    if destination.exists() and not force:
        raise UsageError(f"{destination} exists; --force overwrites it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(destination, found.path.read_bytes())
    output.stdout().print(str(destination), soft_wrap=True)


@app.command("validate")
def validate_(
    arguments: Recipes, scale: Scale = None, plugin: Plugins = None, as_json: AsJson = False
) -> None:
    """Check a recipe without loading data or weights, and list every problem."""
    from xmodal.data.store import Store
    from xmodal.engine.plan import compose_plan, missing_files

    recipes, overrides = split_arguments(arguments)
    registry = plugins.registry(tuple(plugin or ()))
    store = Store()
    made = compose_plan(recipes, registry, store, overrides, scale)
    facts = made.facts
    absent = missing_files(made, store)
    tokens = "x".join(str(side) for side in facts.grid)
    row = {
        "valid": True,
        "task": facts.task.name,
        "sample": list(facts.task.shape),
        "target": facts.task.target.kind,
        "tokens": list(facts.grid),
        "backbone": facts.backbone.name,
        "source": facts.source.name if facts.source else None,
        "missing_files": absent,
        "notes": list(made.notes),
    }
    if as_json:
        output.print_json(row)
        return
    shape = "x".join(str(side) for side in facts.task.shape)
    source = f", source {row['source']}" if row["source"] else ""
    line = f"valid: {facts.task.name} ({shape}, {facts.task.target.kind}) as {tokens} tokens "
    output.stdout().print(f"{line}into {facts.backbone.name}{source}", soft_wrap=True)
    for note in made.notes:
        output.stderr().print(f"note: {note}", soft_wrap=True)
    for text in absent:
        output.stderr().print(f"before it can run: {text}")


def schema(
    out: Annotated[Path | None, typer.Option("--out", help="Write to a file.")] = None,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from xmodal.recipe.schema import recipe_schema

    text = json.dumps(recipe_schema(), indent=1)
    if out is None:
        typer.echo(text)
    else:
        write_atomically(out, text + "\n")
