"""``xmodal fit``: the best model for a data file, in the time that there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xmodal import text
from xmodal.cli import output
from xmodal.cli.output import AsJson, Fetch, Plugins
from xmodal.data import fetching

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
        str | None, typer.Option(help="How long to search: 90s, 10m, 2h. Default: 10m.")
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
    test: Annotated[
        Path | None, typer.Option(help="A file of test samples; default: some are set apart.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What to judge by: auroc-error.")] = None,
    space: Annotated[
        str | None,
        typer.Option(help="What to search: row, sequence, grid, or a file; default: by the data."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: cores.")] = None,
    launcher: Annotated[
        str,
        typer.Option(
            help="Where to run them: a name, a block {use: ...}, or a file with one.",
            show_default="this machine",
        ),
    ] = "",
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
    from xmodal.search.clock import seconds

    fetching.choose(fetch)
    if time is not None and trials is not None:
        raise UsageError("--time and --trials exclude each other")
    limit = None if trials is not None else seconds(time or "10m")
    output.loading(quiet)
    from xmodal.search.fit import fit as search

    settings: dict[str, Any] = {"y": target, "group": group, "metric": metric}
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
            root=root,
            plugin_files=tuple(plugin or ()),
            say=lambda line: None if quiet else console.print(line),
        )
    except KeyboardInterrupt:
        console.print("finished trials are kept; repeat the command to continue")
        raise
    if as_json:
        output.print_json({**vars(found), "folder": str(found.folder)})
        return
    _show(found)


def _show(found: Fitted) -> None:
    rows = [
        (
            number,
            entry.name,
            text.number(entry.score),
            text.duration(entry.seconds),
            text.count(entry.parameters),
        )
        for number, entry in enumerate(found.entries[:SHOWN], start=1)
    ]
    output.print_table(("", "answer", f"validation {found.metric}", "time", "numbers"), rows)
    console = output.stdout()
    console.print()
    console.print(_verdict(found))
    looks = "" if found.looks == 1 else f" (the test samples were looked at {found.looks} times)"
    console.print(f"test {found.metric}: {text.number(found.test)}{looks}")
    console.print(f"predict: xmodal predict {found.model} NEW_DATA")
    page = found.model / "report.html"
    if page.exists():
        console.print(f"report: {page}")


def _verdict(found: Fitted) -> str:
    """Whether a transformer was worth it, in a sentence."""
    cheap, chosen = found.best_cheap, found.chosen
    if chosen.cheap:
        tried = any(not entry.cheap for entry in (*found.entries, *found.others))
        more = "no fine-tuned transformer was better" if tried else "no transformer was tried"
        return f"A cheap answer wins: {chosen.name}; {more} on the validation samples."
    if cheap is None:
        return f"Chosen: {chosen.name}; no cheap answer could be fitted."
    scores = f"{text.number(chosen.score)} against {text.number(cheap.score)}"
    return f"Fine-tuning wins: {chosen.name}, {scores} of the best cheap answer, {cheap.name}."
