"""``xmodal fit``: the best model for a data file, in the time that there is."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xmodal import plugins, text
from xmodal.cli import output
from xmodal.cli.output import AsJson, Fetch, Plugins
from xmodal.data import fetching
from xmodal.files import read_json

if TYPE_CHECKING:
    from xmodal.search.fit import Fitted

SHOWN = 12


def fit(
    data: Annotated[
        Path,
        typer.Argument(help="A file or folder: .csv, .parquet, .npz, .npy, .h5, .mat."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Settings, such as backbone=vit-s14.", show_default=False
        ),
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="How long to search: 90s, 10m, 2h; default: the preset's.")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Make so many trials, however long they take: repeatable."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-y", help="The column or key to predict.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="The column or key of groups (patient, site).")
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(help="The column or key of how much each sample counts in training."),
    ] = None,
    time_column: Annotated[
        str | None,
        typer.Option(help="The column or key of time: train on the past, test on the future."),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="A file of test samples; default: some are set apart.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What to judge by: auroc-error.")] = None,
    space: Annotated[
        str | None,
        typer.Option(help="What to search: row, sequence, grid, or a file; default: by the data."),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="How thorough to be: quick, good, best, or a file.")
    ] = "good",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: cores.")] = None,
    launcher: Annotated[
        str,
        typer.Option(
            help="Where to run them: a name, a block {use: ...}, or a file with one.",
            show_default="this machine",
        ),
    ] = "",
    memory: Annotated[
        str | None, typer.Option(help="Choose nothing whose run took more memory: 4GB.")
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Choose nothing that takes longer to predict a sample: 5ms.")
    ] = None,
    ensemble: Annotated[
        bool, typer.Option(help="Whether several answers together may be chosen.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Decides the order of what is tried.")] = 0,
    root: Annotated[Path, typer.Option(help="Where searches are kept.")] = Path("fits"),
    fetch: Fetch = None,
    plugin: Plugins = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the best model for your data: cheap answers first, then fine-tuning.

    Every answer is judged on the same validation samples. The chosen one is fitted on all
    training samples and tested once. The same command continues, and --time more goes on.

    Example:  xmodal fit table.csv --time 10m
    """
    from xmodal.errors import UsageError
    from xmodal.search.clock import BYTES, WAITS, amount, seconds
    from xmodal.search.space import preset_of

    begun = monotonic()
    fetching.choose(fetch)
    if time is not None and trials is not None:
        raise UsageError("--time and --trials exclude each other")
    if time is None and trials is None:
        registry = plugins.registry(tuple(plugin or ()))
        time = preset_of(preset, registry).time or "10m"
    limit = None if trials is not None or time is None else seconds(time)
    most = None if memory is None else int(amount(memory, "--memory", BYTES))
    wait = None if max_latency is None else amount(max_latency, "--max-latency", WAITS)
    output.loading(quiet)
    from xmodal.search.fit import fit as search

    settings: dict[str, Any] = {
        "y": target, "group": group, "weight": weight, "time": time_column, "metric": metric,
    }  # fmt: skip
    console = output.stderr()
    try:
        found = search(
            data,
            test=test,
            settings={key: value for key, value in settings.items() if value is not None},
            overrides=overrides or (),
            seconds=limit,
            trials=trials,
            seed=seed,
            space=space or "",
            jobs=jobs,
            launcher=launcher,
            memory=most,
            latency=wait,
            ensemble=ensemble,
            preset=preset,
            root=root,
            begun=begun,
            plugin_files=tuple(plugin or ()),
            say=lambda line: None if quiet else console.print(line),
        )
    except KeyboardInterrupt:
        console.print("finished trials are kept; repeat the command to continue")
        raise
    from xmodal.report.fit import write_fit_report
    from xmodal.runs import SEARCH

    page = write_fit_report(found)
    if as_json:
        output.print_json(read_json(found.folder / SEARCH) | {"folder": str(found.folder)})
        return
    _show(found, page)


def _show(found: Fitted, page: Path) -> None:
    from xmodal.assess.judge import ends

    rows = [
        (
            number,
            entry.name,
            text.number(entry.score, 3) + ends(entry.interval),
            text.duration(entry.seconds),
            text.size(entry.size),
            _wait(entry.latency),
        )
        for number, entry in enumerate(found.entries[:SHOWN], start=1)
    ]
    head = ("", "answer", f"validation {found.metric} [95 %]", "time", "size", "a sample")
    output.print_table(head, rows)
    console = output.stdout()
    console.print()
    console.print(found.verdict)
    console.print(f"Test, looked at {found.looked}: {found.tested.sentence}.")
    for one in found.advice:
        console.print(f"advice: {one.text} ({one.code})", soft_wrap=True)
    console.print(f"predict: xmodal predict {found.folder} NEW_DATA")
    console.print(f"report: {page}")


def _wait(seconds: float | None) -> str:
    """A short time in milliseconds or microseconds."""
    if seconds is None:
        return text.MISSING
    return f"{text.number(1e3 * seconds, 2)} ms"
