"""The predictor ``pinn``: a physics-informed network for each sample (Raissi et al. 2019).

A network u(x, t) is trained for one sample: the residual of the task's equation (``Task.equation``)
at random points, the sample as the state at time 0, and the conditions at the ends. Then it is read
at the end time. No label and no other sample is used, so all of it happens in prediction.

Shapes: B samples, X points of a sample, P random points, I features, W width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xmodal.data import RawForm
from xmodal.data.progress import meter
from xmodal.errors import DataError
from xmodal.interfaces import Context, Equation, Facts, FitData, Settings
from xmodal.settings import Use
from xmodal_rivals.own_equation import SolvesEquation

TIMED_STEPS = 10
TOGETHER = 16
"""Networks that are trained at once."""
REPORTED = 50
"""Steps from one report of progress to the next."""


class PINN(SolvesEquation):
    """A physics-informed network for each sample, trained when the sample is predicted.

    All networks start from the same random weights and see the same random points, drawn from the
    run's seed, so a prediction depends on its sample alone.
    """

    citation = "Raissi, Perdikaris & Karniadakis, Journal of Computational Physics 378 (2019)"
    name = "pinn"
    names = (*SolvesEquation.names, "seed")
    seed: Tensor

    class Config(Settings):
        """The network, and how it is trained."""

        width: int = Field(40, ge=1, description="Units of a layer.")
        depth: int = Field(6, ge=1, description="Hidden layers.")
        harmonics: int = Field(
            1, ge=1, description="Waves of x, sine and cosine, that a periodic network reads."
        )
        steps: int = Field(15_000, ge=1, description="Steps of Adam for a sample.")
        points: int = Field(
            1000,
            ge=1,
            description="Random points of each step: so many of the residual, and at most so many "
            "of the sample and of each end.",
        )
        learning_rate: float = Field(
            1e-3, gt=0, description="Adam's rate; it falls to 0 along a cosine."
        )
        condition_weight: float = Field(
            10.0,
            gt=0,
            description="Weight of squared errors at time 0 and at the ends; the residual has 1.",
        )
        most_samples: int = Field(
            2000, ge=1, description="Refuse tasks whose validation and test splits hold more."
        )

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.generator = context.generator

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report a task without a residual, and too many samples."""
        task = facts.task
        if not task.equation:
            if not task.coarse:
                yield (
                    f"task '{task.name}' has no equation; 'pinn' is for tasks such as "
                    "pdebench/advection and pdebench/diffusion-reaction"
                )
                return
            yield (
                f"task '{task.name}' gives no residual to train 'pinn' on: its equation is not of "
                "one field on a line without shocks; use the method 'coarse-solve', which solves it"
            )
            return
        count = task.samples.get("validation", 0) + task.samples.get("test", 0)
        if count > config.most_samples:
            yield (
                f"would train a network for each of {count} samples of validation and test, but "
                f"most_samples is {config.most_samples}; set predictor.most_samples={count} if you "
                "mean it, or task.samples to have fewer"
            )

    def fit(self, data: FitData) -> None:
        """Draw the seed of all networks, and learn how the task normalises."""
        self.seed = torch.randint(2**62, (), generator=self.generator)
        super().fit(data)

    def cost(self, x_NF: Tensor) -> str:
        """The processor time of a sample, from a few steps of a few samples."""
        assert self.task is not None
        equation, u_BX = self._problem(self.task, self.raw(x_NF))
        train(self.config, equation, u_BX, 0, 1)
        started = time.process_time()
        train(self.config, equation, u_BX, 0, TIMED_STEPS)
        each = (time.process_time() - started) / len(u_BX) / TIMED_STEPS * self.config.steps
        return f"{self.config.steps} steps, about {each:.3g} s of processor time a sample"

    def _problem(self, task: Use[Any], raw: Tensor) -> tuple[Equation, Tensor]:
        u_BX = raw.reshape(len(raw), -1).float()
        return task.component.equation(task.config, u_BX.shape[1]), u_BX

    def solve(self, task: Use[Any], raw: Tensor, form: RawForm) -> Tensor:
        """Train a network for each sample and read it at the end time. Raises DataError."""
        equation, u_BX = self._problem(task, raw)
        u_BX = u_BX.to(self.mean.device)
        found = []
        steps, groups = self.config.steps, torch.split(u_BX, TOGETHER)
        with meter("PINNs", steps * len(groups), unit="steps") as count:
            for part in groups:
                networks = train(self.config, equation, part, int(self.seed), steps, count)
                found.append(networks.at_end()[: len(part)].cpu())
        y_BX = torch.cat(found)
        if not y_BX.isfinite().all():
            raise DataError(
                "pinn: a network became infinite or not a number; set a smaller "
                f"predictor.learning_rate than {self.config.learning_rate:g}"
            )
        return y_BX.double().reshape(raw.shape)


class Networks:
    """B networks u(x, t) of equal shape, with equal initial weights.

    They read waves of x (periodic) or x itself, scaled to -1 ... 1, and t, scaled so.
    """

    def __init__(
        self, config: PINN.Config, equation: Equation, count: int, seed: int, device: torch.device
    ) -> None:
        self.equation, self.device = equation, device
        self.harmonics = config.harmonics if equation.ends is None else 0
        self.x_X = torch.as_tensor(equation.places_X, dtype=torch.float32, device=device)
        self.generator = torch.Generator().manual_seed(seed)
        inputs = 1 + (2 * self.harmonics or 1)
        sizes = [inputs, *[config.width] * config.depth, 1]
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        for m, n in pairwise(sizes):
            # Glorot's normal weights keep the size of tanh layers.
            weight = math.sqrt(2 / (m + n)) * torch.randn(m, n, generator=self.generator)
            self.weights.append(weight.to(device).repeat(count, 1, 1).requires_grad_())
            self.biases.append(torch.zeros(count, 1, n, device=device).requires_grad_())

    def parameters(self) -> list[Tensor]:
        """All weights, ``[B, ...]``."""
        return [*self.weights, *self.biases]

    def random(self, size: int) -> Tensor:
        """Numbers in [0, 1), the same on every device."""
        return torch.rand(size, generator=self.generator).to(self.device)

    def features(self, x_P: Tensor, t_P: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a network reads, and its derivatives by t, x and twice x, each ``[P, I]``."""
        left, right = self.equation.domain
        length, end = right - left, self.equation.end
        tau = 2 * t_P[:, None] / end - 1
        zero = torch.zeros_like(tau)
        if self.harmonics:
            k = 2 * math.pi / length * torch.arange(1, self.harmonics + 1, device=self.device)
            angle = k * (x_P[:, None] - left)
            cos, sin = angle.cos(), angle.sin()
            waves = torch.cat([cos, sin], 1)
            waves_x = torch.cat([-k * sin, k * cos], 1)
            waves_xx = -(k**2).repeat(2) * waves
        else:
            waves = 2 * (x_P[:, None] - left) / length - 1
            waves_x, waves_xx = zero + 2 / length, zero
        return (
            torch.cat([waves, tau], 1),
            torch.cat([0 * waves, zero + 2 / end], 1),
            torch.cat([waves_x, zero], 1),
            torch.cat([waves_xx, zero], 1),
        )

    def values(self, x_P: Tensor, t_P: Tensor) -> Tensor:
        """u ``[B, P]``."""
        h = self.features(x_P, t_P)[0].expand(len(self.weights[0]), -1, -1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = torch.tanh(torch.baddbmm(bias, h, weight))
        return torch.baddbmm(self.biases[-1], h, self.weights[-1])[..., 0]

    def derivatives(self, x_P: Tensor, t_P: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u, u_t, u_x and u_xx, each ``[B, P]``.

        Carried forward through the layers by the chain rule, which costs a fraction of
        differentiating backwards twice.
        """
        count = len(x_P)
        h = torch.cat(self.features(x_P, t_P)).expand(len(self.weights[0]), -1, -1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            z, z_t, z_x, z_xx = torch.split(torch.bmm(h, weight), count, 1)
            value = torch.tanh(z + bias)
            slope = 1 - value**2
            bend = -2 * value * slope
            h = torch.cat([value, slope * z_t, slope * z_x, slope * z_xx + bend * z_x**2], 1)
        u, u_t, u_x, u_xx = torch.split(torch.bmm(h, self.weights[-1])[..., 0], count, 1)
        return u + self.biases[-1][..., 0], u_t, u_x, u_xx

    def at_end(self) -> Tensor:
        """u ``[B, X]`` at the end time, at the points of the samples."""
        with torch.no_grad():
            return self.values(self.x_X, torch.full_like(self.x_X, self.equation.end))

    def loss(self, u_BX: Tensor, points: int, condition_weight: float) -> Tensor:
        """The mean squares of each network ``[B]``, at random points."""
        equation = self.equation
        left, right = equation.domain
        x_P = left + (right - left) * self.random(points)
        found = self.derivatives(x_P, equation.end * self.random(points))
        # Times the end time, the residual has the unit of u.
        loss_B = (equation.end * equation.residual(*found)).square().mean(1)
        chosen: Any = slice(None)
        if points < len(self.x_X):
            chosen = torch.randperm(len(self.x_X), generator=self.generator)[:points]
        x_P = self.x_X[chosen]
        error = self.values(x_P, torch.zeros_like(x_P)) - u_BX[:, chosen]
        loss_B = loss_B + condition_weight * error.square().mean(1)
        for place, condition in zip(equation.domain, equation.ends or (), strict=False):
            t_P = equation.end * self.random(points)
            u, _, u_x, _ = self.derivatives(torch.full_like(t_P, place), t_P)
            loss_B = loss_B + condition_weight * condition(u, u_x).square().mean(1)
        return loss_B


def train(
    config: PINN.Config,
    equation: Equation,
    u_BX: Tensor,
    seed: int,
    steps: int,
    count: Any = lambda finished: None,
) -> Networks:
    """Networks for samples, at least two, trained; also where gradients are off.

    ``count`` gets the progress, in steps.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(u_BX.device.type, enabled=False),
    ):
        # A product of one matrix takes another path than one of a batch, with other last digits.
        u_BX = u_BX.clone() if len(u_BX) > 1 else u_BX.repeat(2, 1)
        networks = Networks(config, equation, len(u_BX), seed, u_BX.device)
        parameters = networks.parameters()
        optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(1, steps + 1):
            loss_B = networks.loss(u_BX, config.points, config.condition_weight)
            optimizer.zero_grad()
            # The networks share nothing: the gradient of the sum is that of each.
            torch.autograd.backward(loss_B.sum(), inputs=parameters)
            optimizer.step()
            falling.step()
            if step % REPORTED == 0 or step == steps:
                count(step % REPORTED or REPORTED)
    return networks
