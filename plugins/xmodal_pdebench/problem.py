"""What is known of a task of PDEBench before its data are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from xmodal.data.datasets import DataCard, RemoteFile
from xmodal_pdebench.arrays import Making
from xmodal_pdebench.layout import FileLayout

SOURCE = (
    "Takamoto et al., PDEBench: An Extensive Benchmark for Scientific Machine Learning, "
    "NeurIPS 2022, Datasets and Benchmarks; doi:10.18419/darus-2986"
)
LICENCE = "published files: CC BY 4.0; generated data: yours"


@dataclass(frozen=True)
class PDEProblem:
    """One task: its published file, how it is split, and how it is made again.

    ``name`` is the data set's in the cache and on the command line, and the task's unless ``task``
    is another. ``size`` is that of ``file`` in bytes, about. ``samples`` and ``points`` (along one
    side) are the published ones. ``test``: whether the first or the last tenth of the samples, in
    the order of the file, tests. ``stride``: every so many points of each axis the released loader
    keeps. ``same``: what of the published data the solver reproduces. ``images`` as in
    ``TaskData``. ``coarse`` is 'module:function', which solves on ``coarse_points`` points along a
    side by default: ``coarse(x, points, stride)``, from inputs ``[n, C, *grid]``, every
    ``stride``-th of the cells of the domain, to labels there. ``equation`` is 'module:function',
    from points of a sample and ``stride`` to an ``Equation``. ``periodic``: the domain is a ring on
    which no point differs from another, so inputs and labels may be shifted together.
    """

    name: str
    title: str
    file: RemoteFile
    size: float
    layout: FileLayout
    making: Making
    same: str
    samples: int = 10_000
    test: Literal["first", "last"] = "first"
    stride: int = 1
    images: Mapping[str, int] = field(default_factory=dict)
    task: str = ""
    coarse: str = ""
    coarse_points: int = 0
    equation: str = ""
    periodic: bool = False

    @property
    def points(self) -> int:
        """Points along one side, as published."""
        return self.grid[0]

    @property
    def grid(self) -> tuple[int, ...]:
        """The published grid."""
        return self.layout.grid(self.layout.x[0])

    def card(self) -> DataCard:
        """The card of the data set."""
        channels = len(self.layout.x) + len(self.layout.y)
        return DataCard(
            name=self.name,
            benchmark="PDEBench",
            source=SOURCE,
            licence=LICENCE,
            size=int(self.size),
            prepared=2 * 4 * self.samples * channels * prod(self.grid),
            files=(self.file,),
            generable=True,
            note=f"generated: {self.same}",
        )


def darus(name: str, number: int, md5: str) -> RemoteFile:
    """A file of the data repository of the University of Stuttgart."""
    url = f"https://darus.uni-stuttgart.de/api/access/datafile/{number}"
    return RemoteFile(name, (url,), md5=md5)
