"""``pdebench/burgers``: u_t + (u^2 / 2)_x = (1 / pi) u_xx, periodic on [0, 1], from t = 0 to 2.

Solved exactly in time, by the transformation of Cole and Hopf: with w = u - mean(u) in the frame
that moves with the mean, w = -2 nu phi_x / phi, where phi solves the heat equation. In space by
Fourier series. At t = 2 the field has become its mean, to 11 digits: that is what there is to
predict.
"""

from __future__ import annotations

import numpy as np

from xmodal_pdebench.initial import Array, Family, draw

VISCOSITY = 1.0 / np.pi
END = 2.0
FAMILY = Family(numbers=10_000, waves=4, windowed=0.1)
SEED = 2022


def solve(first: int, count: int, resolution: int) -> tuple[Array, Array]:
    """Initial and final fields ``[count, 1, resolution]`` of the samples from ``first`` on."""
    rows = slice(first, first + count)
    u = draw(FAMILY, SEED).at(FAMILY.centres(resolution), rows)
    return u[:, None], evolve(u, END)[:, None]


def evolve(u_NX: Array, time: float, viscosity: float = VISCOSITY) -> Array:
    """The field after ``time``, from values at equidistant points of one period of length 1."""
    cells = u_NX.shape[1]
    mean_N1 = u_NX.mean(1, keepdims=True)
    k = 2 * np.pi * np.arange(cells // 2 + 1)
    ik = 1j * k
    if cells % 2 == 0:
        ik[-1] = 0.0  # the highest wave of an even number of points has no derivative
    spectrum = np.fft.rfft(u_NX - mean_N1)
    integral = np.divide(spectrum, ik, out=np.zeros_like(spectrum), where=ik != 0)
    phi = np.fft.rfft(np.exp(np.fft.irfft(integral, cells) / (-2 * viscosity)))
    phi *= np.exp(-viscosity * k**2 * time - ik * mean_N1 * time)
    slope = np.fft.irfft(ik * phi, cells)
    return np.asarray(mean_N1 - 2 * viscosity * slope / np.fft.irfft(phi, cells))
