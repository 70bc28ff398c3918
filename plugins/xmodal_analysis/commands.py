"""The commands of this plugin. Imports nothing heavy at the top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from xmodal.cli import output
from xmodal.cli.run import AsJson, Plugins

NAMES = ("distance", "embeddings", "landscape", "patches")
DISTANCE = "otdd"

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
DistanceName = Annotated[
    str,
    typer.Option(
        "--distance", help="A distance (xmodal plugins list distance), or a block {use: NAME, ...}."
    ),
]


def add_to(app: Any) -> None:
    """Add the commands to the application."""
    app.command("analyse")(analyse)


def chosen(text: str, known: Sequence[str], what: str) -> tuple[str, ...]:
    """The names in a comma-separated list, in the order of ``known``. Raises UsageError."""
    from xmodal.errors import UsageError, did_you_mean

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"unknown {what} '{name}'{hint}\nknown: {', '.join(known)}")
    if not names:
        raise UsageError(f"name at least one {what} of: {', '.join(known)}")
    return tuple(name for name in known if name in names)


def analyse(
    references: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run directories, or names under --root.")
    ],
    figures: Annotated[
        str, typer.Option(help="Which figures: distance, embeddings, landscape, patches.")
    ] = ",".join(NAMES),
    folder: Annotated[
        Path | None, typer.Option("--output", help="Where to write; default: RUN/analysis.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=8, help="Samples of source and target for distance and maps.")
    ] = 128,
    points: Annotated[int, typer.Option(min=2, help="Values of k in the distance figure.")] = 9,
    grid: Annotated[int, typer.Option(min=3, help="Points a side of the landscape.")] = 11,
    radius: Annotated[
        float, typer.Option(min=1e-6, help="How far the landscape goes, in filter lengths.")
    ] = 1.0,
    landscape_samples: Annotated[
        int, typer.Option(min=1, help="Validation samples of the landscape.")
    ] = 32,
    distance: DistanceName = DISTANCE,
    root: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    plugin: Plugins = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw the paper's figures of finished runs: distance over k, embeddings, loss, patches.

    Example:  xmodal analyse runs/demo-pare --figures landscape,patches
    """
    wanted = chosen(figures, NAMES, "figure")
    from xmodal import plugins, runs
    from xmodal_analysis import distances
    from xmodal_analysis.analyse import FOLDER, Analysis, Wish
    from xmodal_analysis.restore import finished, restore
    from xmodal_analysis.watch import Watch

    files = tuple(plugin or ())
    found = [finished(runs.locate(reference, root)) for reference in references]
    measured = NAMES[0] in wanted
    use = distances.choose(distance, plugins.registry(files)) if measured else None
    wish = Wish(wanted, use, samples, points, grid, radius, landscape_samples)
    done = []
    with Watch(output.stderr(), quiet) as watch:
        for run in found:
            watch.say(f"loading {run.path}")
            place = run.path / FOLDER if folder is None else folder
            if folder is not None and len(found) > 1:
                place = folder / run.path.parent.name / run.path.name
            done.append(Analysis(restore(run, files), place, wish, watch).carry_out())
    if as_json:
        output.print_json(done)
        return
    for one in done:
        rows = [(key, ", ".join(Path(f).name for f in names)) for key, names in _figures(one)]
        output.print_table((one["run"], ""), [*rows, ("page", one["page"])])
        for line in one["not_drawn"]:
            output.stderr().print(f"not drawn: {line}", markup=False, soft_wrap=True)


def _figures(one: dict[str, Any]) -> list[tuple[str, list[str]]]:
    return list(one["figures"].items())
