"""The Fourier neural operator, from the library neuraloperator.

Shapes: B samples, C channels, K outputs.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from xmodal.interfaces import Settings
from xmodal_rivals.neural import NeuralRival, coordinates, cropped, padded


class FNO(NeuralRival):
    """Predicts a field by convolutions in Fourier space, on grids of one or two axes.

    The number of modes counts both signs: 24 are the 12 of Li et al. and of PDEBench. An axis
    keeps at most as many as it has places. Computes in float32 whatever the precision of the run.
    """

    name = "fno"
    kinds = ("dense",)
    package, distribution = "neuralop", "neuraloperator"
    citation = "Li et al., Fourier Neural Operator, ICLR 2021 (arXiv 2010.08895)"

    class Config(Settings):
        modes: PositiveInt = Field(24, description="Fourier modes per axis, of both signs.")
        width: PositiveInt = Field(32, description="Channels of the Fourier layers.")
        layers: PositiveInt = Field(4, description="Fourier layers.")

    def network(self, config: Config) -> nn.Module:
        """The operator, with the coordinates of the grid beside the sample's channels."""
        return FourierOperator(self.shape, self.output.size, config)


class FourierOperator(nn.Module):
    """The library's FNO on grids of any size, with real parameters.

    A field is continued by its last entries to a size that can be transformed; Li et al. continue
    fields that are not periodic by zeros.
    """

    grid: Tensor

    def __init__(self, shape: tuple[int, ...], outputs: int, config: FNO.Config) -> None:
        super().__init__()
        from neuralop.models import FNO as Library

        channels, *self.sides = shape
        self.padded = transformable(self.sides)
        self.operator = Library(
            n_modes=tuple(min(config.modes, side) for side in self.padded),
            in_channels=channels + len(self.sides),
            out_channels=outputs,
            hidden_channels=config.width,
            n_layers=config.layers,
            positional_embedding=None,
        )
        # The library makes its grid at the first call, which a captured step must not.
        self.register_buffer("grid", coordinates(self.padded)[None], persistent=False)
        make_real(self.operator)
        self.register_state_dict_post_hook(_only_tensors)  # type: ignore[no-untyped-call]

    def forward(self, x_BC: Tensor) -> Tensor:
        """``[B, C, *shape]`` to ``[B, K, *shape]``."""
        # There is no Fourier transform in half precision on CPUs, and a poor one on GPUs.
        with torch.autocast(x_BC.device.type, enabled=False):
            x_BC = padded(x_BC.float(), self.padded)
            grid = self.grid.expand(x_BC.shape[0], *self.grid.shape[1:])
            y_BK: Tensor = self.operator(torch.cat([x_BC, grid], dim=1))
        return cropped(y_BK, self.sides)


def _only_tensors(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    # The library adds the arguments that it was made with.
    state.pop("_metadata", None)


def transformable(sides: list[int]) -> list[int]:
    """The next sides that are even and products of 2, 3 and 5; powers of two stay as they are.

    Even, because neuraloperator 2.0.0 undoes its shift of the spectrum with ``fftshift`` where it
    takes ``ifftshift``: on an odd axis (any but the last) the spectrum comes out moved by one mode.
    Of small factors, because other transforms take several times as long.
    """
    return [next(n for n in count(side) if n % 2 == 0 and _is_smooth(n)) for side in sides]


def _is_smooth(number: int) -> bool:
    for factor in (2, 3, 5):
        while number % factor == 0:
            number //= factor
    return number == 1


class ComplexWeight(nn.Module):
    """A complex tensor, kept as its real and its imaginary part."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.real = nn.Parameter(value.real.detach().clone())
        self.imaginary = nn.Parameter(value.imag.detach().clone())

    def __getitem__(self, places: Any) -> Tensor:
        """The entries at these places, as the library's layers ask for them."""
        return torch.complex(self.real[places], self.imaginary[places])


def make_real(network: nn.Module) -> None:
    """Keep the weights of all Fourier layers as real numbers, as optimizers and files want them.

    Fused Adam refuses complex parameters, and adapts the step of a real part and an imaginary part
    separately anyhow, as torch's other Adam does.
    """
    from neuralop.layers.spectral_convolution import SpectralConv

    for module in network.modules():
        if isinstance(module, SpectralConv):
            module.weight = ComplexWeight(module.weight.to_tensor())
