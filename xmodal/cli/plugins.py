"""``xmodal plugins``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from xmodal.cli import output
from xmodal.cli.run import AsJson, Plugins

app = typer.Typer(help="What is installed, and what each part can be told.", no_args_is_help=True)


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="Only one kind, such as selector.")] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """List every component, and plugins that could not be loaded."""
    from xmodal import plugins

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
                "components": [_entry(entry) for entry in entries],
                "broken": [vars(broken) for broken in registry.broken],
                "collisions": collisions,
            }
        )
        return
    output.print_table(("kind", "name", "from"), [(e.kind, e.name, e.origin) for e in entries])
    warnings = [f"plugin '{b.plugin}' ({b.distribution}): {b.reason}" for b in registry.broken]
    for c in collisions:
        warnings.append(f"{c['kind']} '{c['name']}' is claimed by {' and '.join(c['claimed_by'])}")
    for line in warnings:
        output.stderr().print(f"not loaded: {line}", markup=False)


def _entry(entry: Any) -> dict[str, str]:
    return {"kind": entry.kind, "name": entry.name, "from": entry.origin, "class": entry.target}


@app.command()
def info(
    kind: Annotated[str, typer.Argument(help="embedder, mixer, selector, scheduler, ...")],
    name: Annotated[str, typer.Argument(help="The component's name.")],
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Show what a component is, where it comes from, and its settings."""
    import inspect

    from xmodal import plugins

    registry = plugins.registry(tuple(plugin or ()))
    entry = registry.entry(plugins.find_kind(kind), name)
    component = registry.load(kind, name)
    rows = [_setting(key, field) for key, field in component.Config.model_fields.items()]
    source = inspect.getsourcefile(component) or ""
    line = inspect.getsourcelines(component)[1]
    about = inspect.cleandoc(component.__doc__ or "")
    if as_json:
        keys = ("setting", "type", "default", "what")
        settings = [dict(zip(keys, row, strict=True)) for row in rows]
        output.print_json({**_entry(entry), "about": about, "settings": settings})
        return
    console = output.stdout()
    console.print(f"{kind} {name}  ({entry.origin}; {source}:{line})", markup=False)
    console.print(about + "\n", markup=False)
    if rows:
        output.print_table(("setting", "type", "default", "what"), rows)
    else:
        console.print("no settings")


def _setting(key: str, field: Any) -> tuple[str, str, str, str]:
    from rich.markup import escape

    annotation = field.annotation
    shown = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
    kind = shown or str(annotation).replace("typing.", "").replace("xmodal.interfaces.", "")
    default = (
        "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
    )
    return key, escape(kind), escape(default), escape(field.description or "")
