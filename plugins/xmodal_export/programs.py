"""A trained model as functions that torch can trace: plain tensors in and out, on the CPU, fp32.

Shapes: B samples, P prefix tokens, N tokens, D width, F width of the features.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from math import prod

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal.batch import Tokens
from xmodal.data import RawForm
from xmodal.errors import DataError
from xmodal.interfaces import Network, Settings, Trained


class Tolerance(Settings):
    """How far an export's outputs may be from those of the trained model."""

    tolerance: float = Field(
        1e-4, gt=0, description="Largest allowed difference, as a share of the largest output."
    )


class Whole(nn.Module):
    """Raw samples to outputs."""

    def __init__(self, network: Network, raw: RawForm) -> None:
        super().__init__()
        self.network, self.raw = network, raw

    def forward(self, x: Tensor) -> Tensor:
        """Predict ``[B, K]`` or ``[B, K, *shape]``."""
        return self.raw.restore_labels(self.network(self.raw.apply(x)))


class Embed(nn.Module):
    """Raw samples to the input of the backbone's layers: its own prefix tokens, then the tokens."""

    def __init__(self, network: Network, raw: RawForm, prefix_1PD: Tensor | None) -> None:
        super().__init__()
        self.embedder, self.raw = network.embedder, raw
        self.prefix_1PD = None if prefix_1PD is None else nn.Parameter(prefix_1PD, False)

    def forward(self, x: Tensor) -> Tensor:
        """Embed: ``[B, P + N, D]``."""
        x_BND: Tensor = self.embedder(self.raw.apply(x)).x_BND
        if self.prefix_1PD is None:
            return x_BND
        return torch.cat([self.prefix_1PD.expand(x_BND.shape[0], -1, -1), x_BND], dim=1)


class Encode(nn.Module):
    """Tokens on a grid to features."""

    def __init__(self, network: Network, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone, self.grid = network.backbone, grid

    def forward(self, x_BND: Tensor) -> Tensor:
        """Encode."""
        features: Tokens = self.backbone(Tokens(x_BND, self.grid))
        return features.x_BND


class Head(nn.Module):
    """Features of the backbone's layers to outputs; the features of the prefix are dropped."""

    def __init__(self, network: Network, raw: RawForm, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.predictor, self.decode, self.grid = network.predictor, network.decode, grid
        self.raw = raw

    def forward(self, h_BMF: Tensor) -> Tensor:
        """Predict ``[B, K]`` or ``[B, K, *shape]``."""
        features = Tokens(h_BMF[:, h_BMF.shape[1] - prod(self.grid) :], self.grid)
        return self.raw.restore_labels(self.decode(self.predictor(features).float()))


def plain(trained: Trained) -> Network:
    """A copy on the CPU, with low-rank updates merged into the matrices that they update."""
    network = copy.deepcopy(trained.model).cpu().eval().requires_grad_(False)
    if trained.recipe.adapter is None:
        return network
    # Imported late: peft takes seconds.
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            # The updates are fp32 like their matrices, so merging cannot overflow.
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, layer.get_base_layer())
    return network.requires_grad_(False)


def reference(trained: Trained) -> Whole:
    """The trained model, on the CPU and in fp32, as the reference."""
    here = trained.device.type == "cpu"
    network = trained.model if here else copy.deepcopy(trained.model).cpu()
    return Whole(network, trained.raw).eval()


def real_samples(trained: Trained) -> Tensor:
    """Raw samples for the check: table rows in double precision, others in single precision.

    Others are in double precision, too, where single precision would change what the model reads.
    Raises DataError if the run kept no samples.
    """
    x = torch.from_numpy(trained.samples())
    if len(x) == 0:
        raise DataError(
            f"{trained.run.path} has no test samples to check an export with (state: "
            f"{trained.run.state}); finish the run with: xmodal resume {trained.run.path}"
        )
    # Images would only double in size.
    single, raw = x.float(), trained.raw
    same = torch.allclose(raw.apply(single), raw.apply(x), atol=1e-4, equal_nan=True)
    return single if same and trained.facts.task.form != "row" else x


def traced(module: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """The program of a module, for any batch size."""
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # torch would treat a batch size of 1 as a constant.
        return torch.export.export(module, (at_least(x, 2),), dynamic_shapes=({0: batch},))


def at_least(x: Tensor, count: int) -> Tensor:
    """``x``, repeated if it has fewer than ``count`` samples."""
    return x.repeat(-(-count // len(x)), *[1] * (x.ndim - 1))[: max(count, len(x))]


@torch.no_grad()
def difference(
    wanted: Callable[[Tensor], Tensor], found: Callable[[Tensor], Tensor], x: Tensor, raw: RawForm
) -> tuple[float, float]:
    """The largest difference over batches of 1 to 5 samples, and the largest reference output.

    Outputs in a unit are compared as the model computed them: standardised.
    """
    apart, size = 0.0, 0.0
    for count in (1, 2, 5):
        part = at_least(x, count)[:count]
        one, other = wanted(part), found(part)
        if one.shape != other.shape or not bool(torch.isfinite(other).all()):
            return float("inf"), 0.0
        one, other = raw.standardise_labels(one), raw.standardise_labels(other)
        apart = max(apart, float((one - other).abs().max()))
        size = max(size, float(one.abs().max()))
    return apart, size


def allowed(size: float, tolerance: float) -> float:
    """The largest difference allowed between outputs of at most ``size``."""
    # Outputs close to zero are differences of larger numbers, so they have larger errors.
    return tolerance * max(0.01, size)


def agree(apart: float, size: float, tolerance: float, what: str) -> None:
    """Raise DataError if the difference exceeds ``tolerance`` times the largest output."""
    limit = allowed(size, tolerance)
    if not apart <= limit:
        raise DataError(
            f"{what} does not agree with the trained model: largest difference {apart:.2g}, "
            f"allowed {limit:.2g}; nothing was written"
        )


def notes(trained: Trained) -> tuple[str, ...]:
    """What to say of runs that did not compute in fp32, or had an adapter."""
    found: tuple[str, ...] = ()
    if trained.recipe.precision != "fp32":
        found += (f"the run computed in {trained.recipe.precision}, this export computes in fp32",)
    if trained.recipe.adapter is not None:
        found += ("the adapter's updates are merged into the backbone's weight matrices",)
    return found
