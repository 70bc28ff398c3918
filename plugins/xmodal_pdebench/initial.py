"""PDEBench's random initial fields in one dimension: a few sines, some cut out by a window.

A field is the sum over wave numbers k = 1 ... K of ``A sin(2 pi k n x / W + phi)``, A uniform in
[0, 1) and phi in [0, 2 pi). Two draws among the wave numbers (with repetition) give the counts n; a
wave number that was not drawn has n = 0 and adds the constant A sin(phi). W is the distance of the
outer cell centres of the published grid, not the period: the fields jump a little at the ends.
Then a tenth of the fields becomes its absolute value, each gets a random sign, and a share is
multiplied by a window with tanh flanks of width 0.01.

All draws are those of PDEBench's code (``init_multi``, ``init_multi_HD``), from JAX's stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xmodal_pdebench import threefry

Array = npt.NDArray[np.float64]

FLANK = 0.01


@dataclass(frozen=True)
class Family:
    """A family of random fields.

    ``numbers``: how many PDEBench drew at once; a sample depends on it. ``waves``: K.
    ``windowed``: the share of fields under a window. ``left`` and ``length``: the domain.
    ``cells``: of the published grid, which sets W.
    """

    numbers: int
    waves: int
    windowed: float
    left: float = 0.0
    length: float = 1.0
    cells: int = 1024

    def centres(self, cells: int) -> Array:
        """Cell centres."""
        return self.left + self.length * (np.arange(cells) + 0.5) / cells


@dataclass(frozen=True)
class DrawnFields:
    """The random numbers of all fields of a family at one seed; ``secret`` continues the stream."""

    family: Family
    wave_NK: Array
    amplitude_NK: Array
    phase_NK: Array
    folded_N: npt.NDArray[np.bool_]
    sign_N: Array
    windowed_N: npt.NDArray[np.bool_]
    start_N: Array
    end_N: Array
    secret: threefry.Key

    def at(self, x_X: Array, rows: slice) -> Array:
        """Fields ``[rows, X]`` at points x."""
        angle = self.wave_NK[rows, :, None] * x_X + self.phase_NK[rows, :, None]
        u = (self.amplitude_NK[rows, :, None] * np.sin(angle)).sum(1)
        u = np.where(self.folded_N[rows, None], np.abs(u), u) * self.sign_N[rows, None]
        rise = np.tanh((x_X - self.start_N[rows, None]) / FLANK)
        fall = np.tanh((x_X - self.end_N[rows, None]) / FLANK)
        window = np.where(self.windowed_N[rows, None], 0.5 * (rise - fall), 1.0)
        return np.asarray(u * window)


def draw(family: Family, seed: int) -> DrawnFields:
    """Draw what ``family.numbers`` fields are made of, as PDEBench does from ``PRNGKey(seed)``."""
    count, waves = family.numbers, family.waves
    secret = threefry.key(seed)
    chosen = threefry.randint(secret, (count, 2), 0, waves)
    times_NK = (chosen[:, :, None] == np.arange(waves)).sum(1)
    span = family.length * (1 - 1 / family.cells)
    wave_NK = 2 * np.pi * np.arange(1, waves + 1) * times_NK / span
    amplitude_NK = threefry.uniform(secret, (count, waves))
    secret, _ = threefry.split(secret)
    phase_NK = 2 * np.pi * threefry.uniform(secret, (count, waves)).astype(np.float64)
    folded_N = threefry.choice(secret, (count,), (0.9, 0.1)) == 1
    sign_N = 1.0 - 2.0 * threefry.randint(secret, (count,), 0, 2).astype(np.float64)
    secret, _ = threefry.split(secret)
    shares = (1 - family.windowed, family.windowed)
    return DrawnFields(
        family,
        wave_NK,
        amplitude_NK.astype(np.float64),
        phase_NK,
        folded_N,
        sign_N,
        threefry.choice(secret, (count,), shares) == 1,
        threefry.uniform(secret, (count,), 0.1, 0.45).astype(np.float64),
        threefry.uniform(secret, (count,), 0.55, 0.9).astype(np.float64),
        secret,
    )


def unit(drawn: DrawnFields, x_X: Array, rows: slice) -> Array:
    """Fields ``[rows, X]`` shifted and scaled to [0, 1] on the published grid."""
    published = drawn.at(drawn.family.centres(drawn.family.cells), rows)
    least = published.min(1, keepdims=True)
    size = published.max(1, keepdims=True) - least
    return np.asarray((drawn.at(x_X, rows) - least) / size)
