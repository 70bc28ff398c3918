"""``xmodal run`` and ``xmodal resume``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from xmodal import text
from xmodal.cli import output
from xmodal.cli.output import AsJson, Fetch, Plugins, VerifyData
from xmodal.data import fetching
from xmodal.files import read_json

Recipes = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE|DATA|KEY=VALUE",
        help="One or more recipe names or paths (later ones win), a data file (.csv, .npz, ...), "
        "and overrides such as seed=3 or stages.0.epochs=5.",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="Also send the numbers to this tracker; can be repeated."),
]

PROFILE_STEPS = 20


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate recipes from ``key=value`` overrides."""
    overrides = [a for a in arguments if "=" in a and not os.path.isfile(a)]
    recipes = [a for a in arguments if a not in overrides]
    if not recipes:
        raise typer.BadParameter("name at least one recipe; list them: xmodal recipes list")
    return recipes, overrides


def run(
    arguments: Recipes,
    scale: Annotated[
        str | None, typer.Option(help="Scale layer to apply last: paper, cpu, smoke.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same as the override seed=N.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder.")] = None,
    root: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    directory: Annotated[
        Path | None, typer.Option(help="The run directory to create or continue.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load everything and try one step; write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Repeat a run that is already done.")] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Trace a few steps, with the validation after them, and print where their time "
            "goes. The result stays the same.",
        ),
    ] = False,
    profile_steps: Annotated[
        int | None,
        typer.Option(min=1, help=f"Profile at most so many steps; default: {PROFILE_STEPS}."),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Draw the page of the run.")
    ] = True,
    cheap: Annotated[
        bool | None,
        typer.Option(
            "--cheap/--no-cheap",
            help="Of a data file: fit its cheap answers too, and hold the run against the best. "
            "Default: yes, but not at scale smoke.",
        ),
    ] = None,
    track: Track = None,
    verify_data: VerifyData = False,
    fetch: Fetch = None,
    plugin: Plugins = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe. A finished run is not repeated, and an interrupted run continues.

    Examples:  xmodal run table.csv --scale cpu   |   xmodal run pare_darcy --scale cpu seed=1
    """
    fetching.choose(fetch)
    if quiet or not _is_first_process():
        output.hush()
    recipes, overrides = split_arguments(arguments)
    if seed is not None:
        overrides.append(f"seed={seed}")
    plugin_files, trackers = tuple(plugin or ()), tuple(track or ())
    if dry_run:
        _dry_run(recipes, overrides, scale, trackers, plugin_files, as_json)
        return
    _watched(
        quiet,
        as_json,
        *recipes,
        overrides=overrides,
        scale=scale,
        directory=directory,
        root=root,
        name=name,
        force=force,
        plugin_files=plugin_files,
        trackers=trackers,
        verify_data=verify_data,
        profile=profile_steps or (PROFILE_STEPS if profile else None),
        report=report,
        cheap=scale != "smoke" if cheap is None else cheap,
    )


def _is_first_process() -> bool:
    """Whether this process prints, among those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def _watched(quiet: bool, as_json: bool, *recipes: str, **options: Any) -> None:
    """Run recipes, show how it goes, and what came out."""
    from xmodal import api
    from xmodal.cli.live import Watcher

    first = _is_first_process()
    with Watcher(output.stderr(), quiet or not first) as watcher:
        outcome = api.run(*recipes, **options, observer=watcher)
    if first:
        show(outcome.run.path, outcome.result, outcome.fresh, as_json)
        if options.get("profile"):
            _show_profile(outcome.run.path, outcome.fresh)


def resume(
    reference: Annotated[str, typer.Argument(help="A run directory, or a name under --root.")],
    root: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    device: Annotated[
        str | None, typer.Option(help="Use another device than the run's own, such as auto.")
    ] = None,
    track: Track = None,
    verify_data: VerifyData = False,
    fetch: Fetch = None,
    plugin: Plugins = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Continue an interrupted run; the result is bit-identical to that of an unbroken run."""
    from xmodal import runs
    from xmodal.recipe.messages import own_recipe

    fetching.choose(fetch)
    if quiet or not _is_first_process():
        output.hush()
    folder = runs.continuable(runs.locate(reference, root)).path
    with own_recipe(folder):
        _watched(
            quiet,
            as_json,
            str(folder / "resolved.yaml"),
            overrides=[] if device is None else [f"device={device}"],
            directory=folder,
            plugin_files=tuple(plugin or ()),
            trackers=tuple(track or ()),
            verify_data=verify_data,
        )


def show(path: Path, result: Any, fresh: bool, as_json: bool) -> None:
    """What came out of a run."""
    from xmodal.runs import TRACKERS

    if as_json:
        output.print_json({"run": str(path), "fresh": fresh, **result})
        return
    if not fresh:
        output.stderr().print("already done; --force repeats it")
    selected, validation = result["selected_on"], result["validation"]
    chosen = validation["loss"] if selected.endswith(" loss") else validation["metric"]
    rows = [
        (f"test {result['metric']}", _with_interval(result["test"])),
        (f"best {selected}", text.number(chosen)),
        ("time", text.duration(result["seconds"]["training"])),
        ("memory", text.size(result["memory_bytes"])),
        (
            "trained",
            f"{text.count(result['parameters']['trainable'])} of "
            f"{text.count(result['parameters']['total'])} parameters",
        ),
        ("run", path),
    ]
    if (path / "report.html").exists():
        rows.append(("report", path / "report.html"))
    output.print_table(("", ""), rows)
    for name, told in read_json(path / TRACKERS).items():
        if look := (told.get("memory") or {}).get("look"):
            output.stderr().print(f"{name}: {look}", soft_wrap=True)
    if banner := read_json(path / "manifest.json").get("banner"):
        output.stdout().print(f"\n{banner}", soft_wrap=True, style="bold")
        return
    if result["test"].get("verdict"):
        output.stdout().print(f"\n{result['test']['verdict']}", soft_wrap=True)
    for one in result.get("advice", ()):
        output.stdout().print(f"advice: {one['text']} ({one['code']})", soft_wrap=True)


def _with_interval(test: Any) -> str:
    """``0.2114  (95 % interval: 0.17 to 0.26, 300 samples)``."""
    score, found = text.number(test["metric"]), test.get("interval")
    if found is None:
        return score
    low, high = (text.number(found[end], 3) for end in ("low", "high"))
    return f"{score}  (95 % interval: {low} to {high}, {found['units']:,} {found['over']})"


def _show_profile(path: Path, fresh: bool) -> None:
    """Where the time of the traced steps went; beside the result, which alone goes to stdout."""
    from xmodal.engine.profiling import summary

    if not fresh:
        said = "nothing was traced: the run was done already; with --force it is repeated"
    else:
        said = summary(path) or "nothing was traced: too few steps were left"
    output.stderr().print(f"\n{said}", soft_wrap=True)


def _dry_run(
    recipes: list[str],
    overrides: list[str],
    scale: str | None,
    trackers: tuple[str, ...],
    plugin_files: tuple[str, ...],
    as_json: bool,
) -> None:
    from xmodal import plugins
    from xmodal.data.store import Store
    from xmodal.engine.plan import compose_plan

    registry = plugins.registry(plugin_files)
    store = Store()
    made = compose_plan(recipes, registry, store, overrides, scale, trackers)
    from xmodal.engine.dry_run import describe  # imports torch

    console = output.stderr()
    facts = describe(made, store, lambda line: console.print(f"note: {line}"))
    if as_json:
        output.print_json(facts)
        return
    for title, rows in facts.items():
        output.print_table((title, ""), [(key, value) for key, value in rows.items()])
        output.stdout().print()
