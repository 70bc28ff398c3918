"""``xmodal predict``: predicts new samples with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xmodal import plugins, text
from xmodal.cli import output
from xmodal.cli.output import AsJson, Plugins
from xmodal.data import fetching
from xmodal.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from xmodal.data.readers import Given, SampleReader
    from xmodal.data.tables import TableFormat
    from xmodal.inference.model import TrainedModel
    from xmodal.inference.sureness import Sureness

_PROBABLE = ("classification", "multi-label")
"""Kinds of labels with probabilities."""
_COMPLETE = ("classification", "regression")
"""Kinds of labels that are scored only if no label is missing."""


@fetching.doing("use")
def predict(
    reference: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory, or a name under runs/.")
    ],
    data: Annotated[
        Path,
        typer.Argument(
            help="Samples, and labels to score with: a file or folder as for training (.npz, .npy, "
            ".h5, .mat, .csv, .parquet)."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The .npz, .npy or .csv to write; default: CSV on stdout.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples at a time; default: as in the run.")
    ] = None,
    x: Annotated[
        list[str] | None,
        typer.Option("--x", metavar="KEY", help="The array of samples; default: as in training."),
    ] = None,
    y: Annotated[
        list[str] | None,
        typer.Option("--y", metavar="KEY", help="The array of labels; default: as in training."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device; default: as in the run.")] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="How a CSV is written: separator, decimal, encoding or quote, such as "
            "decimal=comma; default: detected.",
        ),
    ] = None,
    with_input: Annotated[
        bool, typer.Option("--with-input", help="Write the input beside the predictions.")
    ] = False,
    interval: Annotated[
        bool,
        typer.Option(
            "--interval",
            help="Say how sure each prediction is, by the validation samples: a 95 % interval for "
            "numbers, calibrated probabilities for classes.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
    plugin: Plugins = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Predict new samples with a trained model, and score them if the file has labels.

    Needs neither the training data nor the pretrained weights.

    Examples:  xmodal predict mine_cpu new.npz --out predictions.npz
               xmodal predict mine_cpu new.csv > predictions.csv
    """
    from xmodal import runs

    if quiet:
        output.hush()
    runs.locate(reference)
    plugins.announce_loading()
    from xmodal.data import readers
    from xmodal.inference.model import load_trained

    written = _table_settings(table)
    model = load_trained(reference, device, tuple(plugin or ()), note=_noting())
    if str(model.run.path) != reference:
        output.stderr().print(f"run: {model.run.path}")
    flat = model.kind != "dense"
    if out is not None:
        readers.check_writable(out, force, flat)
    elif not flat and not as_json:
        raise UsageError(f"{readers.NOT_FLAT}; name a file: --out predictions.npz")
    if with_input and ((as_json and out is None) or (out is not None and out.suffix == ".npy")):
        raise UsageError("--with-input writes CSV or .npz: neither .npy nor --json can hold it")
    if model.raw.window is not None and (with_input or interval):
        option = "--with-input" if with_input else "--interval"
        raise UsageError(f"{option} is not for models that cut recordings into windows")
    sure = _sureness(model) if interval else None
    size = batch or model.recipe.evaluation_batch
    keys = tuple(x or ()), tuple(y or ())
    samples = readers.read(data, model.raw, size, written, model.note, keys)
    if samples.says:
        output.stderr().print(f"{data}: {samples.says}")
    scored = _Scored(model, samples.labelled)
    collected: list[Any] = []
    count = 0
    with _writer(out, model, collected if as_json else None, sure) as add:
        for x_N, outputs, given in _predicted(model, data, samples, scored, quiet, size):
            count += len(outputs)
            add(outputs, (x_N, given) if with_input else None)
        if count == 0:
            raise model.raw.empty(str(data))
    if scored.trained_on:
        model.note(_trained_on(model, scored.trained_on, count))
    _report(model, count, out, scored, collected, as_json)


def _trained_on(model: TrainedModel, found: int, count: int) -> str:
    least = "" if model.seen is None or model.seen.complete else "at least "
    return (
        f"{least}{found:,} of {count:,} samples were trained on (they equal a training sample): a "
        "score over them says little about new data"
    )


def _sureness(model: TrainedModel) -> Sureness:
    from xmodal.inference.sureness import sureness

    found = sureness(model.run, model.kind)
    model.note(found.words)
    return found


def _table_settings(given: list[str] | None) -> TableFormat:
    """The settings in ``key=value`` pairs. Raises UsageError."""
    from pydantic import ValidationError

    from xmodal.data.tables import TableFormat

    pairs = [pair.partition("=") for pair in given or ()]
    try:
        return TableFormat(**{key: value for key, _, value in pairs})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"--table {'.'.join(map(str, first['loc']))}: {said}") from None


def _noting() -> Callable[[str], None]:
    """A function that prints notes on stderr, at most one per column."""
    said: set[str] = set()

    def note(line: str) -> None:
        start = line.partition(" (")[0]
        if start not in said:
            said.add(start)
            output.stderr().print(f"note: {line}")

    return note


class _Scored:
    """The metric over all batches, and how many of their samples were trained on.

    Either all labels are known, or none is.
    """

    def __init__(self, model: TrainedModel, labelled: bool) -> None:
        self.model = model
        self.metric = model.metric() if labelled else None
        self.known = False
        self.gap: int | None = None
        self.trained_on = 0

    def add(self, outputs: Tensor, y: Any, first: int) -> None:
        """Score a batch whose first sample has the number ``first``."""
        from xmodal.data.labels import absent, as_labels

        y, complete = as_labels(y), self.model.kind in _COMPLETE
        nothing = bool(absent(y).all())
        self.known |= not nothing
        if nothing and self.gap is None:
            self.gap = first
        if complete and self.known and self.gap is not None:
            raise DataError(f"y: row {self.gap} has no label, but other rows have one")
        if self.metric is not None and not (complete and nothing):
            self.metric.update(outputs, self.model.labels(y, first))

    def result(self) -> tuple[str, float] | None:
        """The name and the value of the metric; None if no label is known."""
        if self.metric is None:
            return None
        if not self.known:
            self.model.note("y has no labels, so the predictions are not scored")
            return None
        return self.model.recipe.task.config.metric.name, self.metric.compute()


def _predicted(
    model: TrainedModel,
    data: Path,
    samples: SampleReader,
    scored: _Scored,
    quiet: bool,
    size: int,
) -> Iterator[tuple[Any, Tensor, Given]]:
    """The raw samples, the outputs and the input of every batch; shows progress."""
    from rich.progress import Progress

    console = output.stderr()
    first = 0
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("predicting", total=samples.count)
        for x, y, given in samples.pieces:
            if len(x) == 0:
                continue
            with _named(data):
                if model.raw.window is None:
                    prepared = model.prepare(x, first)
                    outputs, parts = model.forward(prepared), [prepared]
                else:
                    prepared, counts = model.windows(x, first)
                    outputs = model.by_recording(prepared, counts, size)
                    ends = zip(counts, accumulate(counts), strict=True)
                    parts = [prepared[end - count : end] for count, end in ends]
                if model.seen is not None:
                    found = [model.seen.count(part) for part in parts]
                    scored.trained_on += (
                        found[0] if model.raw.window is None else sum(map(bool, found))
                    )
                if y is not None:
                    scored.add(outputs, y, first)
            first += len(outputs)
            bar.update(task, completed=first)
            yield x, outputs, given


@contextmanager
def _named(data: Path) -> Iterator[None]:
    """Put the file before what is wrong with samples ``x`` or labels ``y``."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{data}: {error}") from error


@contextmanager
def _writer(
    out: Path | None,
    model: TrainedModel,
    collected: list[Any] | None,
    sure: Sureness | None = None,
) -> Iterator[Callable[[Tensor, tuple[Any, Given] | None], None]]:
    """A function that writes a batch of outputs to a file, to stdout, or to ``collected``.

    It writes the input too, if it is given: raw samples as an array, or as they stand in the file.
    """
    import numpy as np

    from xmodal.data import readers

    writer: AbstractContextManager[Callable[..., None]]
    as_lines = out is None or out.suffix.lower() == ".csv"
    if out is None:
        shown = readers.csv_writer(sys.stdout) if collected is None else lambda columns: None
        writer = nullcontext(shown)
    elif as_lines:
        writer = readers.csv_file(out)
    else:
        classes = {"classes": np.array(model.class_names)} if model.kind in _PROBABLE else {}
        writer = readers.array_file(out, classes)
    with writer as add:

        def keep(outputs: Tensor, given: tuple[Any, Given] | None) -> None:
            if out is None and collected is not None:
                collected.extend(_entries(model, outputs, sure))
            elif not as_lines:
                inputs = {} if given is None else {"x": given[0]}
                add({**_arrays(model, outputs, sure), **inputs})
            else:
                made = _columns(model, outputs, sure)
                if given is None:
                    add(made)
                    return
                columns = readers.as_columns(given[1](), model.raw.columns)
                beside = {f"input({n})" if n in made else n: v for n, v in columns.items()}
                add({**beside, **made})

        yield keep


def _entries(model: TrainedModel, outputs: Tensor, sure: Sureness | None) -> list[Any]:
    """The predictions of a batch for JSON; with how sure they are, each is an object."""
    decided: list[Any] = model.decide(outputs, names=True).tolist()
    if sure is None:
        return decided
    more = {name: values.tolist() for name, values in _how_sure(model, outputs, sure).items()}
    return [
        {"prediction": one, **dict(zip(more, values, strict=True))}
        for one, *values in zip(decided, *more.values(), strict=True)
    ]


def _how_sure(model: TrainedModel, outputs: Tensor, sure: Sureness | None) -> Mapping[str, Any]:
    """Probabilities of classes and labels; the ends of intervals of numbers, if wanted."""
    if model.kind in _PROBABLE:
        known = outputs if sure is None else sure.calibrated(outputs.double())
        return {"probability": model.probabilities(known)}
    if sure is None:
        return {}
    ends = sure.interval(outputs.double())
    return {
        name: model.raw.raw_labels(end).numpy()
        for name, end in zip(("low", "high"), ends, strict=True)
    }


def _arrays(model: TrainedModel, outputs: Tensor, sure: Sureness | None) -> Mapping[str, Any]:
    """The arrays of a batch in an ``.npz`` file; classes as numbers."""
    return {"prediction": model.decide(outputs), **_how_sure(model, outputs, sure)}


def _columns(model: TrainedModel, outputs: Tensor, sure: Sureness | None) -> Mapping[str, Any]:
    """The columns of a batch in a CSV file; classes as names."""
    decided = model.decide(outputs, names=True)
    decided = decided.reshape(len(decided), -1)
    names = model.raw.label_columns or tuple(f"y{k}" for k in range(decided.shape[1]))
    single = model.kind == "classification" or decided.shape[1] == 1
    if single:
        columns = {"prediction": decided[:, 0]}
    else:
        names = model.classes or names
        columns = {name: decided[:, k] for k, name in enumerate(names)}
    for what, values in _how_sure(model, outputs, sure).items():
        values = values.reshape(len(values), -1)
        if what == "probability":
            columns |= {f"p({name})": values[:, k] for k, name in enumerate(model.class_names)}
        elif single:
            columns[what] = values[:, 0]
        else:
            columns |= {f"{what}({name})": values[:, k] for k, name in enumerate(names)}
    return columns


def _report(
    model: TrainedModel,
    count: int,
    out: Path | None,
    scored: _Scored,
    collected: list[Any],
    as_json: bool,
) -> None:
    """Report on stdout, or on stderr if the predictions went to stdout."""
    score = scored.result()
    if as_json:
        content = {
            "run": str(model.run.path),
            "samples": count,
            "metric": None if score is None else {"name": score[0], "value": score[1]},
            "trained_on": None if model.seen is None else scored.trained_on,
            "out": None if out is None else str(out),
        }
        output.print_json(content | ({} if out is not None else {"predictions": collected}))
        return
    rows: list[tuple[str, Any]] = [("samples", f"{count:,}")]
    if score is not None:
        rows.append((score[0], text.number(score[1])))
    if out is not None:
        output.print_table(("", ""), [*rows, ("predictions", out)])
        return
    output.stderr().print(", ".join(f"{key} {value}" for key, value in rows))
