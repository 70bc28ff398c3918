"""PDEBench's tasks in one dimension."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, Literal

import numpy as np
from pydantic import Field as Setting
from torch import Tensor

from xmodal.data import RawForm
from xmodal.interfaces import Loss, TaskData
from xmodal.settings import Use
from xmodal_pdebench.arrays import Making
from xmodal_pdebench.grids import Array
from xmodal_pdebench.layout import Field, FileLayout
from xmodal_pdebench.problem import PDEProblem, darus
from xmodal_pdebench.task import PDESettings, PDETask, checksum, datasets

EPSILON = 1e-5
"""Added to every standard deviation, as released."""

_RMSE: Any = "rmse"


def _tensor(times: int, target: int) -> FileLayout:
    """Files with one array 'tensor' [samples, times, 1024], from its first time to ``target``."""
    return FileLayout({"tensor": (times, 1024)}, (Field("tensor", 0),), (Field("tensor", target),))


class Advection(PDETask):
    """Advection at speed 0.4, from t = 0 to t = 2 (PDEBench)."""

    problem = PDEProblem(
        name="advection",
        title="advection",
        file=darus("1D_Advection_Sols_beta0.4.hdf5", 255674, "d595bbfd2c659df995a93cd40d6ea568"),
        size=8.2e9,
        layout=_tensor(201, 200),
        making=Making("xmodal_pdebench.advection:solve", chunk=50),
        same="initial fields sample for sample, solved by the published scheme",
        stride=4,
        coarse="xmodal_pdebench.coarse_1d:advection",
        periodic=True,
        coarse_points=128,
        equation="xmodal_pdebench.equations:advection",
    )


class Burgers(PDETask):
    """Burgers' equation with viscosity 1 / pi, from t = 0 to t = 2 (PDEBench)."""

    class Config(PDESettings):
        """Which data to use; trained on the RMSE of each sample, as released."""

        loss: Use[Loss] = Setting(_RMSE, description="The training loss.")

    problem = PDEProblem(
        name="burgers",
        title="Burgers' equation",
        file=darus("1D_Burgers_Sols_Nu1.0.hdf5", 281365, "9021eba35332d127306f11ef84c1a60f"),
        size=8.2e9,
        layout=_tensor(201, 200),
        making=Making("xmodal_pdebench.burgers:solve", chunk=200),
        same="initial fields sample for sample, solved exactly instead of by finite volumes",
        coarse="xmodal_pdebench.coarse_1d:burgers",
        periodic=True,
        coarse_points=32,
        equation="xmodal_pdebench.equations:burgers",
    )


class DiffusionReaction(PDETask):
    """u_t = 0.5 u_xx + u (1 - u), from t = 0 to t = 0.29 (PDEBench)."""

    problem = PDEProblem(
        name="diffusion-reaction",
        title="diffusion and reaction",
        file=darus("ReacDiff_Nu0.5_Rho1.0.hdf5", 133177, "69a429239778d529cd419ed5888ea835"),
        size=4.1e9,
        layout=_tensor(101, 29),
        making=Making("xmodal_pdebench.reaction:solve", chunk=100),
        same="initial fields sample for sample, solved by a Fourier method of fourth order",
        coarse="xmodal_pdebench.coarse_1d:diffusion_reaction",
        periodic=True,
        coarse_points=32,
        equation="xmodal_pdebench.equations:diffusion_reaction",
    )


class DiffusionSorption(PDETask):
    """Diffusion with Freundlich sorption, from t = 0 to t = 500 (PDEBench)."""

    class Config(PDESettings):
        """Which data to use, and how they are generated."""

        scheme: Literal["accurate", "published"] = Setting(
            "accurate",
            description="How to generate: accurate in time; or by SciPy's RK45 at its default "
            "tolerance, as published: at 1024 points it errs by 1.7 % and takes 18 s a sample.",
        )

    problem = PDEProblem(
        name="diffusion-sorption",
        title="diffusion and sorption",
        file=darus("1D_diff-sorp_NA_NA.h5", 133020, "9d466d1213065619d087319e16d9a938"),
        size=4.0e9,
        layout=FileLayout(
            {"data": (101, 1024, 1)}, (Field("data", 0, 0),), (Field("data", 100, 0),), grouped=True
        ),
        making=Making("xmodal_pdebench.sorption:solve", chunk=100),
        same="initial fields sample for sample, the published equations in space, solved more "
        "accurately in time",
        test="last",
        coarse="xmodal_pdebench.coarse_1d:diffusion_sorption",
        coarse_points=128,
        equation="xmodal_pdebench.equations:diffusion_sorption",
    )

    @classmethod
    def making(cls, config: Any) -> Making:
        """By the scheme that is set."""
        if config.scheme == "accurate":
            return cls.problem.making
        return Making("xmodal_pdebench.sorption:solve_as_published", chunk=5)

    @classmethod
    def same(cls, config: Any) -> str:
        """The scheme decides."""
        if config.scheme == "accurate":
            return cls.problem.same
        return "initial fields sample for sample, solved by the published scheme"


class NavierStokes(PDETask):
    """A compressible, viscous gas in one dimension, from t = 0 to t = 1 (PDEBench)."""

    class Config(PDESettings):
        """Which data to use, and in which space they are compared."""

        space: Literal["normalised", "physical"] = Setting(
            "normalised",
            description="normalised, as released: density, pressure and velocity in one row, "
            "standardised at every point by the training inputs, and scored so; physical: three "
            "channels, scored one by one in their own units.",
        )
        loss: Use[Loss] = Setting(_RMSE, description="The training loss, in normalised space.")

    problem = PDEProblem(
        name="navier-stokes",
        title="compressible Navier-Stokes",
        file=darus(
            "1D_CFD_Rand_Eta0.1_Zeta0.1_periodic_Train.hdf5",
            164668,
            "45655bd77d006ab539c52b7fbcf099b9",
        ),
        size=12.4e9,
        layout=FileLayout(
            dict.fromkeys(("density", "pressure", "Vx"), (101, 1024)),
            tuple(Field(name, 0) for name in ("density", "pressure", "Vx")),
            tuple(Field(name, 100) for name in ("density", "pressure", "Vx")),
        ),
        making=Making("xmodal_pdebench.gas:solve", chunk=10),
        same="initial fields sample for sample (if the file's parts are in the order of their "
        "seeds), solved by the published scheme",
        coarse="xmodal_pdebench.coarse_1d:navier_stokes",
        coarse_points=64,
    )

    @classmethod
    def coarse(cls, config: Any, x: Array, points: int, raw: RawForm) -> Array:
        """As in other tasks; in normalised space, standardised as the samples are."""
        fields = x.reshape(len(x), 3, -1)
        solved = super().coarse(config, fields, points, raw)
        if config.space == "physical":
            return solved
        assert raw.mean is not None
        assert raw.scale is not None
        laid = solved.reshape(len(x), *raw.laid)
        return np.asarray((laid - raw.mean.numpy()) / raw.scale.numpy())

    @classmethod
    def laid(cls, config: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Flat in normalised space."""
        return shape if config.space == "physical" else (1, prod(shape))

    def assemble(
        self, x: Tensor, y: Tensor, parts: Mapping[str, range], notes: Iterable[str]
    ) -> TaskData:
        """Standardise inputs and labels by the training inputs."""
        shape = tuple(x.shape[1:])
        laid = self.laid(self.config, shape)
        rows = parts["train"]
        train = x[rows.start : rows.stop].reshape(-1, *laid)
        mean, scale = train.mean(0), train.std(0) + EPSILON
        physical = self.config.space == "physical"
        raw = RawForm(
            shape=shape,
            laid=laid,
            mean=mean,
            scale=scale,
            label_shape=shape,
            label_mean=mean.double() if physical else None,
            label_scale=scale.double() if physical else None,
        )
        flat_y = y.reshape(-1, *laid)
        found = checksum(x, y)
        x = raw.apply(x)
        y = raw.standardise_labels(flat_y) if physical else (flat_y - mean) / scale
        return TaskData(
            *datasets(x, y, parts),
            checksum=found,
            notes=tuple(notes),
            raw=raw,
        )
