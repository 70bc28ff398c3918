"""The commands of this plugin. Slow imports happen inside the commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from xmodal.cli import output
from xmodal.cli.output import AsJson, Plugins
from xmodal.report import number

NAMES = ("distance", "embeddings", "landscape", "patches")
DISTANCE = "otdd"

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
DistanceName = Annotated[
    str,
    typer.Option(
        "--distance", help="A distance (xmodal plugins list distance), or a block {use: NAME, ...}."
    ),
]


def add_to(app: Any) -> None:
    """Add the commands to the application."""
    app.command("analyse")(analyse)
    app.command("distance")(distance)
    about = "Sources: data sets that stand in for what a backbone was pretrained on."
    sources = typer.Typer(help=about, no_args_is_help=True)
    sources.callback()(_sources)
    sources.command("rank")(rank)
    app.add_typer(sources, name="sources")


def _sources() -> None:
    """Commands about sources."""


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
    grid: Annotated[int, typer.Option(min=3, help="Points per side of the landscape.")] = 11,
    radius: Annotated[
        float, typer.Option(min=1e-6, help="How far the landscape goes, in filter lengths.")
    ] = 1.0,
    landscape_samples: Annotated[
        int, typer.Option(min=1, help="Validation samples of the landscape.")
    ] = 32,
    metric: DistanceName = DISTANCE,
    root: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    plugin: Plugins = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw the paper's figures of finished runs: distance over k, embeddings, loss, patches.

    Example:  xmodal analyse runs/demo-pare --figures landscape,patches
    """
    wanted = chosen(figures, NAMES, "figure")
    output.loading(quiet)
    from xmodal import workbench
    from xmodal.files import claim
    from xmodal_analysis.analyse import FOLDER, PAGE, Analysis, Wish
    from xmodal_analysis.restore import restore
    from xmodal_analysis.watch import Watch

    files = tuple(plugin or ())
    found = [workbench.finished(workbench.locate(reference, root)) for reference in references]
    use = None
    if NAMES[0] in wanted:
        use = workbench.choose("distance", metric, workbench.registry(files), "--distance")
    wish = Wish(wanted, use, samples, points, grid, radius, landscape_samples)
    done, places = [], [run.path / FOLDER if folder is None else folder for run in found]
    if folder is not None and len(found) > 1:
        places = [folder / run.path.parent.name / run.path.name for run in found]
    for place in places:
        claim(place, FOLDER, PAGE)
    with Watch(output.stderr(), quiet) as watch:
        for run, place in zip(found, places, strict=True):
            watch.say(f"loading {run.path}")
            done.append(Analysis(restore(run, files), place, wish, watch).carry_out())
    if as_json:
        output.print_json(done)
        return
    for one in done:
        rows = [
            (key, ", ".join(Path(f).name for f in names)) for key, names in one["figures"].items()
        ]
        output.print_table(("figure", "files"), rows)
        # A path is only of use whole, however narrow the terminal.
        output.stdout().print(f"page: {one['page']}", soft_wrap=True)
        for line in one["not_drawn"]:
            output.stderr().print(f"not drawn: {line}", soft_wrap=True)


def distance(
    first: Annotated[
        str,
        typer.Argument(metavar="A", help="A task's recipe, a source or a file such as mine.npz."),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The data set to compare with A.")],
    metric: DistanceName = DISTANCE,
    samples: Annotated[int, typer.Option(min=2, help="Samples of each set.")] = 200,
    embed: Annotated[
        str,
        typer.Option(help="raw (compare the samples' values), or a backbone to encode them with."),
    ] = "raw",
    space: Annotated[
        str, typer.Option(help="With a backbone: embeddings (its input) or features (its output).")
    ] = "embeddings",
    classes: Annotated[
        Path | None, typer.Option(help="Draw the distances between classes into this file.")
    ] = None,
    scale: Annotated[str | None, typer.Option(help="Scale layer of tasks: cpu, smoke.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed for drawing the samples.")] = 0,
    plugin: Plugins = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure the distance between two data sets, and how much of it is chance.

    Example:  xmodal distance digits fashion-mnist --embed vit-s14 --distance sliced
    """
    (wanted,) = chosen(space, ("embeddings", "features"), "space")
    output.loading(quiet)
    from xmodal import workbench
    from xmodal.data import Store
    from xmodal_analysis import between, embedded, named
    from xmodal_analysis.watch import Watch

    registry, store = workbench.registry(tuple(plugin or ())), Store()
    use = workbench.choose("distance", metric, registry, "--distance")
    backbone = embedded.choose(embed, registry)
    sets = named.find(first, registry, scale), named.find(second, registry, scale)
    reader: embedded.RawReader | embedded.EmbeddedReader = embedded.RawReader(store, seed)
    with Watch(output.stderr(), quiet) as watch:
        if backbone is not None:
            reader = embedded.EmbeddedReader(backbone, registry, store, seed, wanted, watch)
        measured = between.Between(use, reader, store, seed, watch)
        numbers = measured.compute(sets, samples, classes is not None)
    if classes is not None:
        between.draw(numbers, classes.with_suffix(".png"))
        numbers["picture"] = str(classes.with_suffix(".png"))
    if as_json:
        output.print_json({**numbers, "embed": embed, "space": wanted if backbone else "raw"})
        return
    rows = [
        (f"{first} to {second}", number(numbers["distance"])),
        (f"within {first}", number(numbers["within_first"])),
        (f"within {second}", number(numbers["within_second"])),
    ]
    output.print_table((use.name, ""), rows)
    if classes is not None:
        output.stdout().print(f"classes: {numbers['picture']}", soft_wrap=True)


def rank(
    task: Annotated[str, typer.Option(help="A task's recipe, such as tasks/darcy.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides.")
    ] = None,
    sources: Annotated[
        str, typer.Option(help="Sources to rank; default: all of the backbone's modality.")
    ] = "",
    scale: Annotated[
        str | None, typer.Option(help="Scale layer to apply last: paper, cpu, smoke.")
    ] = None,
    method: Annotated[str, typer.Option(help="Method that will use it.")] = "methods/pare",
    samples: Annotated[int, typer.Option(min=8, help="Samples of source and target.")] = 200,
    space: Annotated[
        str, typer.Option(help="embeddings (the backbone's input) or features (its output).")
    ] = "features",
    by: Annotated[str, typer.Option(help="The score to sort by.")] = "bures_otdd",
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Train one epoch with every source.")
    ] = True,
    root: Annotated[
        Path, typer.Option("--runs", help="Directory of finished runs to compare with.")
    ] = Path("runs"),
    plugin: Plugins = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Rank candidate sources for a task by scores that need little or no training.

    Example:  xmodal sources rank --task tasks/darcy --scale cpu --no-probe
    """
    (wanted,) = chosen(space, ("embeddings", "features"), "space")
    (key,) = chosen(by, SCORES, "score")
    output.loading(quiet)
    from xmodal import workbench
    from xmodal_analysis import rank as ranking
    from xmodal_analysis.watch import Watch

    registry = workbench.registry(tuple(plugin or ()))
    names = [name.strip() for name in sources.split(",") if name.strip()]
    overrides = tuple(arguments or ())
    question = ranking.Question((method, task), overrides, scale, samples, wanted, probe)
    with Watch(output.stderr(), quiet) as watch:
        found, plan = ranking.rank(question, registry, names, watch)
    better = "lower" if plan is None else plan.recipe.task.config.metric.component.better
    if plan is not None:
        ranking.with_finished(found, plan, root)
    found = ranking.ordered(found, key, better)
    agreement = ranking.correlations(found, better)
    if as_json:
        told = [vars(one) for one in found]
        output.print_json({"task": task, "by": key, "sources": told, "spearman": agreement})
    else:
        _show_ranking(found, agreement, better)
    if plan is None:
        from xmodal.errors import DataError

        raise DataError(f"no source can be scored for {task}; see above for what is missing")


SCORES = ("bures_otdd", "s_otdd", "log_me", "h_score", "gbc", "probe")


def _show_ranking(found: Sequence[Any], agreement: dict[str, float], better: str) -> None:
    high = ("log_me", "h_score", "gbc", *(("probe",) if better == "higher" else ()))
    heads = [f"{name} {'↑' if name in high else '↓'}" for name in SCORES]
    rows = [
        (one.source, *(number(one.scores.get(name)) for name in SCORES),
         number(one.final), one.runs or "")
        for one in found if one.scores
    ]  # fmt: skip
    if agreement:
        agreed = [number(agreement.get(name)) for name in SCORES]
        rows.append(("Spearman with final", *agreed, "", ""))
    if rows:
        output.print_table(("source", *heads, "final", "runs"), rows)
    for one in found:
        if not one.scores:
            output.stderr().print(f"not scored: {one.source}: {one.absent}", soft_wrap=True)
