"""The equations of PDEBench's tasks in one dimension, as residuals that networks are trained on.

Each function takes the number of points of a sample and ``stride``: samples are every ``stride``-th
cell of the grid of the data. Without shocks only: where a derivative does not exist (compressible
Navier-Stokes), a residual at points says nothing about the solution.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from xmodal.interfaces import Equation
from xmodal_pdebench import advection as upwind
from xmodal_pdebench import burgers as cole_hopf
from xmodal_pdebench import reaction, sorption
from xmodal_pdebench.grids import Array


def _places(points: int, stride: int) -> Array:
    return np.asarray((np.arange(points) * stride + 0.5) / (points * stride))


def advection(points: int, stride: int = 1) -> Equation:
    """u_t + 0.4 u_x = 0, periodic."""

    def residual(u: Tensor, u_t: Tensor, u_x: Tensor, u_xx: Tensor) -> Tensor:
        return u_t + upwind.SPEED * u_x

    return Equation(residual, _places(points, stride), (0.0, 1.0), upwind.END)


def burgers(points: int, stride: int = 1) -> Equation:
    """u_t + u u_x = u_xx / pi, periodic."""

    def residual(u: Tensor, u_t: Tensor, u_x: Tensor, u_xx: Tensor) -> Tensor:
        return u_t + u * u_x - cole_hopf.VISCOSITY * u_xx

    return Equation(residual, _places(points, stride), (0.0, 1.0), cole_hopf.END)


def diffusion_reaction(points: int, stride: int = 1) -> Equation:
    """u_t = 0.5 u_xx + u (1 - u), periodic."""

    def residual(u: Tensor, u_t: Tensor, u_x: Tensor, u_xx: Tensor) -> Tensor:
        return u_t - reaction.DIFFUSION * u_xx - reaction.RATE * u * (1 - u)

    return Equation(residual, _places(points, stride), (0.0, 1.0), reaction.END)


def diffusion_sorption(points: int, stride: int = 1) -> Equation:
    """R(c) c_t = D c_xx, with c = 1 on the left and c + D c_x = 0 on the right.

    The published scheme has both values in the cells beyond the ends, so that is where they hold.
    A network may go below c = 0, where R is no number; there it is that of 0.
    """
    half = 0.5 / (points * stride)

    def residual(c: Tensor, c_t: Tensor, c_x: Tensor, c_xx: Tensor) -> Tensor:
        sorbed = sorption.SORBED * (c.clamp(min=0) + 1e-6) ** (sorption.EXPONENT - 1)
        return (1 + sorbed) * c_t - sorption.DIFFUSION * c_xx

    def inlet(c: Tensor, c_x: Tensor) -> Tensor:
        return c - sorption.INLET

    def outlet(c: Tensor, c_x: Tensor) -> Tensor:
        return c + sorption.DIFFUSION * c_x

    domain = (-half, 1 + half)
    return Equation(residual, _places(points, stride), domain, sorption.END, (inlet, outlet))
