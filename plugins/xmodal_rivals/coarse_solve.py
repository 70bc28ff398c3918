"""The predictor ``coarse-solve``: solves the task's own equation on a coarse grid; learns nothing.

A learned solver is worth its training only where it beats a numerical one of the same cost
(McGreivy & Hakim 2024, Nature Machine Intelligence 6). Tasks bring their solver (``Task.coarse``).

Shapes: B samples, F numbers per sample, K outputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xmodal.batch import Tokens
from xmodal.data import RawForm
from xmodal.errors import DataError
from xmodal.interfaces import Context, Facts, Settings
from xmodal.settings import Use
from xmodal_rivals.own_equation import SolvesEquation


class CoarseSolve(SolvesEquation):
    """A numerical solution on few points, interpolated to the grid of the task.

    Where a part of the start is not in the samples (Darcy flow and reaction-diffusion of
    PDEBench), its mean stands in.
    """

    citation = "McGreivy & Hakim, Nature Machine Intelligence 6 (2024): beat a solver of equal cost"
    name = "coarse-solve"

    class Config(Settings):
        """How finely to solve."""

        points: int | None = Field(
            None, ge=4, description="Points along each side; default: what the task suggests."
        )

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.points = config.points or context.facts.task.coarse

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report a task without an equation."""
        if not facts.task.coarse:
            yield (
                f"task '{facts.task.name}' has no equation to solve; 'coarse-solve' is for tasks "
                "of partial differential equations, such as darcy and pdebench/advection"
            )

    def cost(self, x_NF: Tensor) -> str:
        """The processor time of a sample, without the first one, which also imports."""
        self(Tokens(x_NF[:1, None], (1,)))
        rest = x_NF[1:] if len(x_NF) > 1 else x_NF
        started = time.process_time()
        self(Tokens(rest[:, None], (1,)))
        each = 1e3 * (time.process_time() - started) / len(rest)
        return f"{self.points} points a side, {each:.3g} ms of processor time a sample"

    def solve(self, task: Use[Any], raw: Tensor, form: RawForm) -> Tensor:
        """By the task's solver. Raises DataError where it fails."""
        try:
            solved = task.component.coarse(task.config, raw.numpy(), self.points, form)
        except ArithmeticError as error:
            raise DataError(f"coarse-solve: {error}") from error
        return torch.from_numpy(solved)
