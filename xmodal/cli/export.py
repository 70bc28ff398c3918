"""``xmodal export``: writes a trained model in a form that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xmodal import plugins, text
from xmodal.cli import output
from xmodal.cli.output import AsJson, Plugins
from xmodal.data import fetching
from xmodal.errors import UsageError


@fetching.doing("use")
def export(
    reference: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory, or a name under runs/.")
    ],
    to: Annotated[str, typer.Option(help="The exporter; see xmodal plugins list exporter.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to create; default: beside the run, named by the exporter."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the exporter: key=value.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an earlier export.")] = False,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Export a trained model, and check that the export gives the same predictions.

    Example:  xmodal export mine_cpu --to onnx
    """
    from xmodal import runs

    registry = plugins.registry(tuple(plugin or ()))
    # Report an unknown exporter or run before loading anything.
    registry.entry("exporter", to)
    run = runs.locate(reference)
    plugins.announce_loading()
    from xmodal.inference.export import default_folder, exporter_for
    from xmodal.inference.export import export_trained as write
    from xmodal.inference.model import load_trained

    out = default_folder(run.path, to) if out is None else out
    settings = _settings(set_ or [])
    exporter_for(to, out, registry, settings, force)
    console = output.stderr()
    model = load_trained(
        reference,
        "cpu",
        tuple(plugin or ()),
        note=lambda line: console.print(f"note: {line}"),
    )
    if str(model.run.path) != reference:
        console.print(f"run: {model.run.path}")
    with console.status(f"exporting to {to}"):
        done = write(model, to, out, registry, settings, force)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    if as_json:
        output.print_json(
            {
                "run": str(model.run.path),
                "out": str(out),
                "files": [str(path.relative_to(out)) for path in files],
                "difference": done.difference,
                "samples": done.samples,
                "notes": done.notes,
            }
        )
        return
    rows: list[tuple[str, Any]] = [
        (path.relative_to(out).as_posix(), text.size(path.stat().st_size)) for path in files
    ]
    rows.append(("largest difference", f"{done.difference:.2g} on {done.samples} test samples"))
    output.print_table(("", ""), [*rows, ("written to", out)])
    for note in done.notes:
        console.print(f"note: {note}")


def _settings(given: list[str]) -> dict[str, str]:
    wrong = [item for item in given if "=" not in item]
    if wrong:
        raise UsageError(f"--set {wrong[0]}: expected key=value")
    return {key: value for key, _, value in (item.partition("=") for item in given)}
