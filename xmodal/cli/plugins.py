"""``xmodal plugins``."""

from __future__ import annotations

import inspect
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from xmodal import plugins
from xmodal.authoring import describe
from xmodal.cli import output
from xmodal.cli.output import AsJson, Plugins
from xmodal.errors import PluginError

app = typer.Typer(help="List, describe, create and check components.", no_args_is_help=True)


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="List only this kind: selector, ...")] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """List every component, and every plugin that could not be loaded."""
    registry = plugins.registry(tuple(plugin or ()))
    wanted = plugins.find_kind(kind) if kind else None
    entries = [
        entry
        for (entry_kind, _), entry in sorted(registry.entries.items())
        if wanted in (None, entry_kind)
    ]
    collisions = [
        {"kind": k, "name": n, "claimed_by": [entry.origin for entry in rivals]}
        for (k, n), rivals in sorted(registry.collisions.items())
        if wanted in (None, k)
    ]
    if as_json:
        output.print_json(
            {
                "components": [
                    {**_entry(entry), "about": describe.summary(entry.target)} for entry in entries
                ],
                "broken": [vars(broken) for broken in registry.broken],
                "collisions": collisions,
            }
        )
        return
    origins = sorted({entry.origin for entry in entries})
    # A column that says the same in every row takes room from the others.
    shown = ("kind", "name", "what it is", *(() if len(origins) == 1 else ("from",)))
    rows = [(e.kind, e.name, describe.summary(e.target), e.origin)[: len(shown)] for e in entries]
    output.print_table(shown, rows, whole=("kind", "name", "from"), cut=("what it is",))
    if len(origins) == 1:
        output.stdout().print(f"all from {origins[0]}; one of them: xmodal plugins info KIND NAME")
    warnings = [f"plugin '{b.plugin}' ({b.distribution}): {b.reason}" for b in registry.broken]
    for c in collisions:
        warnings.append(f"{c['kind']} '{c['name']}' is claimed by {' and '.join(c['claimed_by'])}")
    for line in warnings:
        output.stderr().print(f"not loaded: {line}")


def _entry(entry: Any) -> dict[str, str]:
    return {"kind": entry.kind, "name": entry.name, "from": entry.origin, "class": entry.target}


@app.command()
def info(
    kind: Annotated[str, typer.Argument(help="embedder, mixer, selector, scheduler, ...")],
    name: Annotated[str, typer.Argument(help="The component's name.")],
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Show a component: its description, origin, settings, and the recipes that use it."""
    registry = plugins.registry(tuple(plugin or ()))
    entry = registry.entry(plugins.find_kind(kind), name)
    component = registry.load(kind, name)
    rows = describe.settings(component)
    file, line = component.__module__, None
    with suppress(OSError, TypeError):  # no source: a package in a zip file, or compiled
        file, line = str(inspect.getsourcefile(component)), inspect.getsourcelines(component)[1]
    about = inspect.cleandoc(component.__doc__ or "")
    recipes = describe.recipes_that_use(kind, name, registry)
    if as_json:
        keys = ("setting", "type", "default", "what")
        output.print_json(
            {
                **_entry(entry),
                "distribution": entry.distribution,
                "version": entry.version,
                "file": file,
                "line": line,
                "about": about,
                "settings": [dict(zip(keys, row, strict=True)) for row in rows],
                "recipes": recipes,
                "citation": component.citation,
            }
        )
        return
    console = output.stdout()
    place = "" if line is None else f":{line}"
    console.print(f"{kind} {name}  ({entry.origin}; {file}{place})")
    console.print(about + "\n")
    if rows:
        output.print_table(("setting", "type", "default", "what"), rows)
    else:
        console.print("no settings")
    console.print(f"\nrecipes: {', '.join(recipes) or 'none'}")
    if component.citation:
        console.print(f"cite: {component.citation}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The component's name in recipes, such as my-mixer.")],
    kind: Annotated[str, typer.Option(help="mixer, selector, scheduler, embedder, predictor, ...")],
    out: Annotated[
        Path | None, typer.Option(help="The folder to create; default: xmodal-NAME.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Write an installable package with a new, working component for you to change.

    Example:  xmodal plugins new my-mixer --kind mixer
    """
    from xmodal.authoring import new as package

    written = package.write(name, kind, out, plugins.registry(tuple(plugin or ())))
    folder = out or Path(f"xmodal-{name}")
    console = output.stdout()
    for file in written:
        console.print(str(file))
    console.print("\nnext:")
    component = next(file for file in written if file.name == f"{kind}.py")
    console.print(f"  edit {component}")
    console.print(f"  xmodal plugins check {folder}")
    # Without ./ pip looks for a distribution of that name.
    place = folder if folder.is_absolute() else f"./{folder}"
    console.print(f"  pip install --editable {place}")
    for command in package.usage(name, kind):
        console.print(f"  {command}")


@app.command()
def check(
    package: Annotated[
        str, typer.Argument(help="A folder, a plugin file, or an installed distribution.")
    ],
    as_json: AsJson = False,
) -> None:
    """Check a package: contents, contracts, its tests, and a short run of each recipe and part.

    Tells for every failure what to fix. The exit code is 3 if a check fails.
    """
    console = output.stdout()
    if not as_json:
        console.print(f"checking {package}")
    from xmodal.authoring import check as checks

    done = []
    for step in checks.steps(checks.find(package)):
        with output.stderr().status(step.label):
            outcome = checks.taken(step)
        done.append((step, outcome))
        if not as_json:
            line = f"{outcome.state:8} {step.label}" + (outcome.line and f": {outcome.line}")
            console.print(line, soft_wrap=True)
    if as_json:
        output.print_json([{"step": step.label, **vars(outcome)} for step, outcome in done])
    count = sum(outcome.state == "mend" for _, outcome in done)
    if count:
        raise PluginError(f"{package}: {count} of {len(done)} checks failed")
