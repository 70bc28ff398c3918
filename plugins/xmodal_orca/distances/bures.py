"""The Bures-Wasserstein distance between Gaussians fitted to two point sets.

Shapes: n source points, m target points, D their width, P pairs of Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from xmodal.batch import Points
from xmodal.interfaces import Distance, Settings
from xmodal_orca.distances.points import fixed, matching

RIDGE = 1e-3


@dataclass(frozen=True)
class Gaussian:
    """Mean ``[..., D]`` and covariance ``[..., D, D]`` in float64."""

    mean: Tensor
    covariance: Tensor

    def at(self, index: Tensor) -> Gaussian:
        """The Gaussians at ``index``."""
        return Gaussian(self.mean[index], self.covariance[index])


def moments(x_ND: Tensor, weight_N: Tensor) -> Gaussian:
    """The Gaussian of weighted points ``[..., N, D]``; weights ``[..., N]`` sum to 1."""
    x_ND, weight_N1 = x_ND.double(), weight_N.double().unsqueeze(-1)
    mean_1D = (weight_N1 * x_ND).sum(-2, keepdim=True)
    centred_ND = x_ND - mean_1D
    covariance_DD = (weight_N1 * centred_ND).transpose(-1, -2) @ centred_ND
    return Gaussian(mean_1D.squeeze(-2), covariance_DD)


def ridged(gaussian: Gaussian, amount: Tensor) -> Gaussian:
    """Add ``amount`` (a scalar) to every variance."""
    size = gaussian.covariance.shape[-1]
    eye_DD = torch.eye(size, dtype=torch.float64, device=amount.device)
    return Gaussian(gaussian.mean, gaussian.covariance + amount * eye_DD)


def root(covariance_DD: Tensor) -> Tensor:
    """Σ^½ of symmetric positive matrices ``[..., D, D]``, without a gradient."""
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    roots_1D = values_D.clamp_min(0).sqrt().unsqueeze(-2)
    root_DD: Tensor = (vectors_DD * roots_1D) @ vectors_DD.transpose(-1, -2)
    return root_DD


def bures_squared(one: Gaussian, other: Gaussian, root_of_one_DD: Tensor) -> Tensor:
    """‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ^½ Σ' Σ^½)^½) ``[...]``, differentiable in ``other``.

    POT's ``bures_wasserstein_distance`` does not serve here. It takes the square root of this
    value, whose gradient is infinite for equal sets, and it differentiates eigenvectors, which
    fails for equal eigenvalues. The trace of a root needs only eigenvalues.
    """
    middle_DD = root_of_one_DD @ other.covariance @ root_of_one_DD
    values_D = torch.linalg.eigvalsh(middle_DD)
    # sqrt has no gradient at 0: treat zero eigenvalues, up to rounding, as absent.
    floor = torch.finfo(values_D.dtype).eps ** 2
    cross = values_D.clamp_min(floor).sqrt().sum(-1)
    traces = _trace(one.covariance) + _trace(other.covariance)
    squared: Tensor = (one.mean - other.mean).square().sum(-1) + traces - 2 * cross
    return squared


def _trace(matrix_DD: Tensor) -> Tensor:
    return matrix_DD.diagonal(dim1=-2, dim2=-1).sum(-1)


class Bures(Distance):
    """Squared 2-Wasserstein distance between the Gaussians of both sets' means and covariances.

    W₂² of two Gaussians (Dowson & Landau, 1982), computed in float64. Classes are ignored.
    """

    class Config(Settings):
        """Settings of the distance."""

        ridge: float = Field(
            RIDGE,
            gt=0,
            allow_inf_nan=False,
            description="Amount added to every variance of both sets, in units of the source's "
            "mean variance; makes the covariances of few points invertible.",
        )

    config: Config

    def fit(self, source: Points) -> None:
        """Keep the source's mean, covariance and the root of the covariance."""
        x_ND = fixed(source).x_ND
        plain = moments(x_ND, _equal(x_ND))
        # A source whose points are all equal still needs a ridge; its size is arbitrary.
        spread = plain.covariance.diagonal().mean()
        self._amount = self.config.ridge * torch.where(spread > 0, spread, torch.ones_like(spread))
        self._gaussian = ridged(plain, self._amount)
        self._root_DD = root(self._gaussian.covariance)
        self._x_ND = x_ND[:1]

    def __call__(self, target: Points) -> Tensor:
        """The distance to ``target`` ``[m, D]``."""
        z_MD = matching(target.x_ND, self._x_ND)
        other = ridged(moments(z_MD, _equal(z_MD)), self._amount)
        return bures_squared(self._gaussian, other, self._root_DD).to(z_MD.dtype)


def _equal(x_ND: Tensor) -> Tensor:
    return x_ND.new_full((x_ND.shape[0],), 1 / x_ND.shape[0], dtype=torch.float64)
