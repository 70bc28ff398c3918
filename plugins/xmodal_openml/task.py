"""OpenML-CC18 tables as tasks: read, split as in TabPFN or ORCA, standardised by training rows.

Rows are ``[F]`` float32: numbers are standardised, categories are coded 0 .. m-1, and missing
values are NaN (the embedder has to handle them).
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import Dataset, TensorDataset

from xmodal.data import Moments, RawForm, Store
from xmodal.data.tables import TableFormat, remembered
from xmodal.interfaces import (
    Loss,
    Metric,
    Pair,
    Settings,
    Target,
    Task,
    TaskData,
    TaskFacts,
)
from xmodal.settings import Use
from xmodal_openml.files import read_table
from xmodal_openml.splits import Indices, hold_out, orca_split, tabpfn_order, tabpfn_split
from xmodal_openml.tables import Numbers, Table

_BALANCED = cast("Use[Loss]", {"use": "cross-entropy", "balanced": True})
_AUROC = cast("Use[Metric]", {"use": "auroc-error"})


class TableSettings(Settings):
    """Settings of every table: how to split it, the loss and the metric."""

    split: Literal["seed", 1, 2, 3, 4, 5] = Field(
        "seed", description="Which of TabPFN's five splits; 'seed' takes split (seed mod 5) + 1."
    )
    protocol_split: Literal["tabpfn", "orca"] = Field(
        "tabpfn",
        description="tabpfn: two halves of at most 1,000 rows. orca: stratified 90/10 (without a "
        "seed in the published code, here seeded with the split number).",
    )
    loss: Use[Loss] = Field(_BALANCED, description="Default: classes weighted by 1 / frequency.")
    metric: Use[Metric] = Field(_AUROC, description="Default: 1 - AUROC, one class against one.")


class TableTask(Task):
    """Splits and standardises the rows of a table; a subclass provides the table."""

    Config = TableSettings

    @classmethod
    @abstractmethod
    def name(cls, config: Any) -> str:
        """The name in facts and notes."""

    @classmethod
    @abstractmethod
    def table(cls, config: Any, store: Store) -> Table:
        """The whole table. Raises DataError."""

    @classmethod
    def describe(cls, config: TableSettings, store: Store) -> TaskFacts:
        """Facts of the table; reads it, because tables have a few thousand rows at most."""
        table = cls.table(config, store)
        sizes = tuple(map(len, _parts(table, config, 0)))
        return facts(cls.name(config), table.levels, len(table.classes), sizes)

    def load(self, seed: int) -> TaskData:
        """Split and standardise; ``x`` is ``[F]`` float32, ``y`` int64."""
        table = self.table(self.config, self.store)
        parts = _parts(table, self.config, seed)
        mean_F, scale_F = _statistics(table, parts[0])
        raw = RawForm(
            shape=(len(table.columns),),
            laid=(len(table.columns),),
            mean=torch.from_numpy(mean_F),
            scale=torch.from_numpy(scale_F),
            columns=table.columns,
            levels=table.level_names(),
            missing=True,
            label_shape=(),
            label_columns=(table.label,),
            table=table.form,
        )
        x_NF = raw.apply(torch.from_numpy(table.x_NF))
        y_N = torch.from_numpy(table.y_N)
        train, validation, test = (
            cast("Dataset[Pair]", TensorDataset(x_NF[rows], y_N[rows]))
            for rows in map(torch.from_numpy, parts)
        )
        notes = self._notes(table, parts, seed)
        return TaskData(
            train, validation, test, checksum(table), notes=notes, classes=table.classes, raw=raw
        )

    def _notes(self, table: Table, parts: tuple[Indices, ...], seed: int) -> tuple[str, ...]:
        counts = ", ".join(f"{len(rows):,}" for rows in parts)
        missing = int(np.isnan(table.x_NF).sum())
        notes = [
            f"{self.name(self.config)}: {self.config.protocol_split} split "
            f"{_number(self.config, seed)}: {counts} rows to train, validate and test"
        ]
        if self.config.protocol_split == "orca":
            notes.append("ORCA's published 90/10 split had no seed; this split is seeded")
        if missing:
            notes.append(f"{missing:,} missing values are kept as NaN for the embedder")
        return (*notes, *table.notes)


def facts(name: str, levels: tuple[int, ...], classes: int, sizes: tuple[int, ...]) -> TaskFacts:
    """The facts of a table; ``sizes`` counts the rows to train, validate and test."""
    counts = dict(zip(("train", "validation", "test"), sizes, strict=True))
    target = Target("classification", classes)
    return TaskFacts(name, (len(levels),), target, counts, levels, family="table")


def _number(config: TableSettings, seed: int) -> int:
    return seed % 5 + 1 if config.split == "seed" else config.split


def _parts(table: Table, config: TableSettings, seed: int) -> tuple[Indices, Indices, Indices]:
    """Training, validation and test rows of ``table``, in the protocol's order."""
    number = _number(config, seed)
    count = len(table.y_N)
    order = np.arange(count) if table.shuffled else tabpfn_order(count)
    split = tabpfn_split if config.protocol_split == "tabpfn" else orca_split
    half, test = split(table.y_N[order], number)
    train, validation = hold_out(half, table.y_N[order], number)
    return order[train], order[validation], order[test]


def _statistics(table: Table, rows: Indices) -> tuple[Numbers, Numbers]:
    """Mean and scale of each column over ``rows``; 0 and 1 for categories and empty columns."""
    moments = Moments(len(table.columns))
    moments.add(table.x_NF[rows])
    mean_F, scale_F = moments.input_scale()
    number_F = np.array(table.levels) == 0
    return np.where(number_F, mean_F, 0.0), np.where(number_F, scale_F, 1.0)


def checksum(table: Table) -> str:
    """Identifies a table: its numbers, and what its columns and categories are called."""
    digest = hashlib.sha256()
    digest.update(np.ascontiguousarray(table.x_NF.astype(np.float64)).tobytes())
    digest.update(np.ascontiguousarray(table.y_N.astype(np.int64)).tobytes())
    digest.update(repr((table.levels, table.names, table.columns, table.classes)).encode())
    return digest.hexdigest()


class OpenML(TableTask):
    """A table of OpenML-CC18 from a file: a CSV, an ARFF, or one table of an .npz pack."""

    class Config(TableSettings, TableFormat):
        """Settings of ``openml``."""

        path: Path = Field(description="An .npz pack, a .csv file or an .arff file.")
        did: int | None = Field(None, description="OpenML dataset id of the table in a pack.")
        target: str | None = Field(None, description="The label column; the last by default.")
        categories: tuple[str, ...] = Field(
            (), description="CSV: numeric columns whose numbers are codes of categories."
        )

    @classmethod
    def name(cls, config: Config) -> str:
        """``openml/`` and the dataset id, or the file's name."""
        return f"openml/{config.did or config.path.stem}"

    @classmethod
    def table(cls, config: Config, store: Store) -> Table:
        """The whole table. Raises DataError."""
        path = config.path
        wanted = path, config.did, config.target, config.categories
        return remembered([path], (wanted, config), lambda: read_table(*wanted, config))

    @classmethod
    def contents(cls, config: Config, store: Store) -> Mapping[str, str]:
        """The table; others may lie in the same pack."""
        return {"path": checksum(cls.table(config, store))}
