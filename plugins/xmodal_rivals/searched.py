"""Convolutions that choose their kernel size and dilation, after DASH.

Every candidate has weights of its own, and one number that says how much it counts. The weighted
candidates are added up to one large kernel before the sample is convolved, so that a step costs one
convolution however many candidates there are.

Shapes: B samples, I input and O output channels, E side of the large kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xmodal_rivals.neural import convolution

DIRECT = 15
"""The side of the largest kernel that is applied as it is; larger ones go through FFTs."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of ``size`` taps per axis, ``dilation`` places apart."""

    size: int
    dilation: int

    @property
    def extent(self) -> int:
        """The places from its first tap to its last."""
        return self.dilation * (self.size - 1) + 1


def candidates(
    sizes: Sequence[int], dilations: Sequence[int], sides: Sequence[int]
) -> tuple[Kernel, ...]:
    """All pairs, without those that reach beyond both ends of the sample from its middle."""
    found = [Kernel(size, dilation) for size in sizes for dilation in dilations]
    fitting = [kernel for kernel in found if kernel.extent <= 2 * min(sides) - 1]
    return tuple(fitting or [min(found, key=lambda kernel: kernel.extent)])


class SearchedConvolution(nn.Module):
    """A convolution whose kernel is the weighted sum of all candidates."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, axes: int, kernels: Sequence[Kernel]
    ) -> None:
        super().__init__()
        self.axes, self.stride, self.kernels = axes, stride, tuple(kernels)
        self.extent = max(kernel.extent for kernel in kernels)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(outputs, inputs, *[kernel.size] * axes)) for kernel in kernels
        )
        for weight in self.weights:
            nn.init.kaiming_normal_(weight)
        self.importance = nn.Parameter(torch.zeros(len(kernels)))

    def kernel(self) -> Tensor:
        """The weighted sum of the candidates: ``[O, I, E]`` or ``[O, I, E, E]``."""
        share = self.importance.softmax(dim=0)
        first = self.weights[0]
        total: Tensor = first.new_zeros(*first.shape[:2], *[self.extent] * self.axes)
        for number, (weight, kernel) in enumerate(zip(self.weights, self.kernels, strict=True)):
            start = (self.extent - kernel.extent) // 2
            taps = slice(start, start + kernel.extent, kernel.dilation)
            places = (slice(None), slice(None), *[taps] * self.axes)
            total[places] = total[places] + share[number] * weight
        return total

    def best(self) -> Kernel:
        """The candidate that counts most; of equal ones the first."""
        return self.kernels[int(self.importance.detach().argmax())]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, I, *sides]`` to ``[B, O, *sides / stride]``, padded with zeros."""
        return convolved(x, self.kernel(), self.stride)


def convolved(x: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """Convolve as torch does with padding "same", through FFTs if the kernel is large."""
    axes, extent = x.dim() - 2, kernel.shape[-1]
    if extent <= DIRECT:
        function = nn.functional.conv1d if axes == 1 else nn.functional.conv2d
        direct: Tensor = function(x, kernel, stride=stride, padding=extent // 2)
        return direct
    spatial = tuple(range(2, x.dim()))
    with torch.autocast(x.device.type, enabled=False):
        x, kernel = x.float(), kernel.float()
        size = [side + extent - 1 for side in x.shape[2:]]
        x_BIF = torch.fft.rfftn(x, s=size, dim=spatial)
        # torch's convolutions do not turn the kernel round; products of transforms do.
        kernel_OIF = torch.fft.rfftn(kernel.flip(spatial), s=size, dim=spatial)
        y_BOF = torch.einsum("bi...,oi...->bo...", x_BIF, kernel_OIF)
        y: Tensor = torch.fft.irfftn(y_BOF, s=size, dim=spatial)
    for axis, side in zip(spatial, x.shape[2:], strict=True):
        y = y.narrow(axis, extent // 2, side)
    return y[(slice(None), slice(None), *[slice(None, None, stride)] * axes)]


def chosen(inputs: int, outputs: int, stride: int, axes: int, kernel: Kernel) -> nn.Module:
    """A plain convolution with the kernel that was chosen."""
    return convolution(axes)(
        inputs,
        outputs,
        kernel.size,
        stride=stride,
        padding=kernel.extent // 2,
        dilation=kernel.dilation,
        bias=False,
    )
