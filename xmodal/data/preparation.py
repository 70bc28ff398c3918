"""How raw samples, as users have them, become the samples that a model reads.

A task describes in plain values how it lays out, standardises and encodes its samples. The
description is kept with a run, so that its model works when the data are gone.

Shapes: n samples, C channels, F columns, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xmodal.data.lengths import wrong_padding
from xmodal.errors import DataError
from xmodal.text import shortlist

if TYPE_CHECKING:
    from xmodal.data.columns import Part, TableForm

Array = NDArray[Any]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's red, green and blue in [0, 1]."""


@dataclass(frozen=True)
class RawForm:
    """How raw samples ``[n, *shape]`` become those of the model, ``[n, *laid]`` plus ``extra``.

    channel: the axis of a raw sample that holds its channels. None: they come first, or there are
        none.
    mean, scale: then ``(x - mean) / scale``, in the precision of ``mean``, cast to float32. The
        scale of a channel that was constant in training is infinite: it always becomes 0.
    extra: constant channels that are added last.
    columns, levels: for tables, the names of the columns, and the categories of each in the order
        of their codes (empty for numbers).
    missing: NaN is allowed.
    label_shape, label_channel: as ``shape`` and ``channel``, of raw labels.
    label_mean, label_scale: labels and predictions are ``(y - label_mean) / label_scale`` in the
        model, float64 ``[K, 1, ...]``. None: they keep their unit.
    label_columns: the label columns of a table.
    table: how the columns of the training table were read; ``columns`` and ``levels`` are those of
        the numbers that they gave.
    x_keys, y_keys: for files of arrays, the names of the samples' and the labels' arrays.
    samples: the axis of an array that counts samples, ``first`` or ``last``.
    padded: the axis of a raw sample along which it may end early; what is missing is NaN, and 0
        once it is standardised.
    window: samples are windows of recordings, which begin this far apart along ``window_axis``;
        None: they are samples.
    """

    shape: tuple[int, ...]
    laid: tuple[int, ...]
    channel: int | None = None
    mean: Tensor | None = None
    scale: Tensor | None = None
    extra: Tensor | None = None
    columns: tuple[str, ...] = ()
    levels: tuple[tuple[str, ...], ...] = ()
    missing: bool = False
    label_shape: tuple[int, ...] | None = None
    label_channel: int | None = None
    label_columns: tuple[str, ...] = ()
    label_mean: Tensor | None = None
    label_scale: Tensor | None = None
    table: TableForm | None = None
    x_keys: tuple[str, ...] = ()
    y_keys: tuple[str, ...] = ()
    samples: Literal["first", "last"] = "first"
    padded: int | None = None
    window: int | None = None
    window_axis: int | None = None

    def state(self) -> dict[str, Any]:
        """The form as tensors and plain values, for ``checkpoint.save``."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return state | {"table": None if self.table is None else self.table.state()}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> RawForm:
        """The form that ``state`` describes."""
        from xmodal.data.columns import TableForm

        table = state.get("table")
        return cls(**{**state, "table": None if table is None else TableForm.of(table)})

    def reads_like(self, other: RawForm) -> bool:
        """Whether both make the same sample of every raw sample; labels do not matter."""
        names = ("shape", "laid", "channel", "columns", "levels", "missing", "samples", "padded")
        tensors = [(self.mean, other.mean), (self.scale, other.scale), (self.extra, other.extra)]
        return all(getattr(self, name) == getattr(other, name) for name in names) and all(
            one is two if one is None or two is None else torch.equal(one, two)
            for one, two in tensors
        )

    @classmethod
    def of_bytes(
        cls,
        side: int,
        mean: Sequence[float] = IMAGENET[0],
        deviation: Sequence[float] = IMAGENET[1],
    ) -> RawForm:
        """Images ``[3, side, side]`` of bytes 0 .. 255, with a class each.

        ``mean`` and ``deviation`` of each channel are those of numbers in [0, 1]; default:
        ImageNet's.
        """
        mean_C11, scale_C11 = (
            255 * torch.tensor(tuple(values)).reshape(3, 1, 1) for values in (mean, deviation)
        )
        shape = (3, side, side)
        return cls(shape=shape, laid=shape, mean=mean_C11, scale=scale_C11, label_shape=())

    def one(self, x: Array | Tensor) -> Tensor:
        """A single raw sample ``[*shape]`` as the model reads it."""
        return self.apply(torch.as_tensor(x)[None])[0]

    def apply(self, x: Tensor) -> Tensor:
        """Raw samples ``[n, *shape]`` as the model reads them, float32.

        A number that is not the code of a category counts as missing.
        """
        x = x.reshape(x.shape[0], *self.laid) if self.channel is None else self._moved(x)
        if any(self.levels) and x.is_floating_point():
            counts_F = torch.tensor([len(names) for names in self.levels], device=x.device)
            wrong = (x != x.round()) | (x < 0) | (x >= counts_F)
            x = torch.where((counts_F > 0) & wrong, torch.nan, x)
        if self.mean is not None and self.scale is not None:
            x = (x.to(self.mean.dtype) - self.mean) / self.scale
        if self.padded is not None:
            x = torch.where(x.isnan(), 0.0, x)
        # Convolutions give other last digits for another layout in memory.
        x = x.to(torch.float32).contiguous()
        if self.extra is not None:
            x = torch.cat([x, self.extra.expand(x.shape[0], *self.extra.shape)], dim=1)
        return x

    @staticmethod
    def require_float32(x: Tensor, name: str, rows: Sequence[int] | Array) -> None:
        """Raise DataError if a prepared sample or label is too large for float32.

        ``rows`` are the numbers of the samples. Those of training always fit once they are
        standardised; others may be too far from them.
        """
        wrong = x.isinf().flatten(1).any(dim=1).nonzero()
        if len(wrong):
            raise DataError(
                f"{name}: row {rows[int(wrong[0])]} has a value that is too large for float32: "
                "above 3.4e38, counted in standard deviations of the training samples if "
                "standardised"
            )

    def _moved(self, x: Tensor) -> Tensor:
        assert self.channel is not None
        return x.movedim(1 + self.channel, 1)

    def invert(self, x: Tensor) -> Tensor:
        """Undo ``apply``: raw samples (float64) of what the model reads."""
        x = x[:, : self.laid[0]].double()
        if self.mean is not None and self.scale is not None:
            x = torch.where(self.scale.isinf(), 0.0, x * self.scale) + self.mean
        return self._raw(x, self.shape, self.channel)

    def standardise_labels(self, y: Tensor) -> Tensor:
        """Labels ``[n, K, ...]`` in the user's unit standardised, float64; without, float32.

        The loss reads them in float32. In that, labels near 0 would lose their digits among large
        ones, and with them the relative errors that a metric takes of the restored labels.
        """
        if self.label_mean is None or self.label_scale is None:
            return y.float()
        return (y.double() - self.label_mean) / self.label_scale

    def restore_labels(self, y: Tensor) -> Tensor:
        """Labels or predictions ``[n, K, ...]`` of the model in the user's unit, on the CPU.

        They are float64: float32 cannot tell 1.7e9 from 1.7e9 + 50. What was 0 is 0 again and not
        1e-9: relative errors leave such labels out.
        """
        if self.label_mean is None or self.label_scale is None:
            return y
        zero = (-self.label_mean / self.label_scale).to(y.dtype).double()
        y = y.cpu().double()
        # Not a mask over the result: ONNX graphs lose 1e-200 there.
        mean = torch.where(y == zero, -zero * self.label_scale, self.label_mean)
        return y * self.label_scale + mean

    def raw_labels(self, y: Tensor) -> Tensor:
        """Labels ``[n, K, *shape]`` in the shape that they have in the user's files."""
        if self.label_shape is None:
            return y
        return self._raw(y, self.label_shape, self.label_channel)

    @staticmethod
    def _raw(x: Tensor, shape: tuple[int, ...], channel: int | None) -> Tensor:
        return x.reshape(len(x), *shape) if channel is None else x.movedim(1, 1 + channel)

    def windows(self, x: Sequence[Any] | Array, first: int = 0) -> tuple[Array, list[int]]:
        """The windows of recordings ``x``, ``[W, *shape]``, and how many each recording has.

        Only of a form with ``window``. Raises DataError for a recording that is shorter than a
        window or has another shape.
        """
        from xmodal.data.lengths import windows_of

        assert self.window is not None
        assert self.window_axis is not None
        size, found, counts = self.shape[self.window_axis], [], []
        for row, one in enumerate(x, first):
            value = np.asarray(one)
            if value.ndim != len(self.shape) or value.shape[self.window_axis] < size:
                raise DataError(
                    f"x: row {row} has shape {list(value.shape)}; expected a recording like "
                    f"{list(self.shape)}, of at least {size} values along axis {self.window_axis}"
                )
            length = np.array([value.shape[self.window_axis]], dtype=np.int64)
            starts = windows_of(length, size, self.window)[1].tolist()
            along = (slice(None),) * self.window_axis
            found += [value[(*along, slice(start, start + size))] for start in starts]
            counts.append(len(starts))
        if len({window.shape for window in found}) > 1:
            raise DataError(f"x: recordings differ in more than axis {self.window_axis}")
        return np.stack(found), counts

    def check(self, x: Array, first: int = 0) -> Array:
        """``x`` as raw samples ``[n, *shape]``; ``first`` is the number of its first row.

        Channels may come first, too. Raises DataError saying what was expected and what was
        given.
        """
        self.check_shape(x)
        if x.shape[1:] != self.shape:
            x = np.moveaxis(x, 1, 1 + (self.channel or 0))
        raw = x.reshape(len(x), *self.shape)
        if x.dtype.kind == "f":
            may_lack = self.missing or self.padded is not None
            wrong = np.isinf(raw) if may_lack else ~np.isfinite(raw)
            wrong_N = wrong.reshape(len(raw), prod(self.shape)).any(axis=1)
            if self.padded is not None:
                wrong_N |= wrong_padding(raw, self.padded)
            rows = np.flatnonzero(wrong_N)
            if len(rows):
                what = "an infinite value" if self.missing else "NaN or an infinite value"
                at = int(wrong[rows[0]].argmax()) if self.columns else -1
                column = f" in column '{self.columns[at]}'" if self.columns else ""
                raise DataError(f"x: row {first + rows[0]} holds {what}{column}")
        self._check_codes(raw, first)
        return raw

    def check_shape(self, x: Array) -> None:
        """Raise DataError if ``x`` has another shape or is not an array of numbers."""
        wanted = f"expected [n, {', '.join(map(str, self.shape))}]"
        if x.dtype.kind not in "fiub":
            raise DataError(f"x: {wanted} of numbers, got {list(x.shape)} of {x.dtype}")
        if x.ndim and x.shape[1:] in (self.shape, self.laid):
            return
        if x.shape == self.shape:
            raise DataError(f"x: {wanted}, got one sample {list(x.shape)}; write x[None]")
        names = f" (columns {shortlist(self.columns)})" if self.columns else ""
        raise DataError(f"x: {wanted}{names}, got {list(x.shape)}")

    def empty(self, where: str) -> DataError:
        """The error to raise if ``where`` has no samples."""
        return DataError(f"{where}: no samples; expected [n, {', '.join(map(str, self.shape))}]")

    def _check_codes(self, x: Array, first: int) -> None:
        """Numbers in the columns of categories must be codes 0 .. m-1 (NaN: missing)."""
        for column, names in enumerate(self.levels):
            if not names:
                continue
            code_N: Array = x[:, column]
            wrong = (code_N != np.round(code_N)) | (code_N < 0) | (code_N >= len(names))
            rows = np.flatnonzero(wrong & ~np.isnan(code_N))
            if len(rows):
                codes = shortlist(f"{i} = {name}" for i, name in enumerate(names))
                raise DataError(
                    f"x: column {column} ('{self.columns[column]}') holds categories, coded "
                    f"{codes}; row {first + rows[0]} has "
                    f"{code_N[rows[0]]:g} (a table with named columns may hold the names)"
                )

    def encode(
        self, frame: Any | Part, first: int = 0, note: Callable[[str], None] | None = None
    ) -> Array:
        """A frame of pandas or polars, an Arrow table, or part of a file as raw samples, float64.

        ``first`` is the number of the first row of what comes from no file.
        Columns are found by name. If training had no names, all columns are taken in their order.
        A category that training never saw counts as missing, and is noted. Raises DataError for
        missing columns, for too many columns without names, and for text instead of a number.
        """
        from xmodal.data import tables

        part = frame
        if not isinstance(frame, tables.Part):
            part = tables.Part("x", tables.of(frame), start=first)
        names = part.table.column_names
        form = self.table or self._form(tuple(names))
        if len(form.features) != prod(self.shape):
            raise DataError(
                f"{part.where}: expected {prod(self.shape)} columns and training had no names to "
                f"choose by; got {len(names)} ({shortlist(names)})"
            )
        x = form.encode(part, note)
        return x.reshape(len(x), *self.shape)

    def _form(self, given: tuple[str, ...]) -> TableForm:
        """The form of a run that was trained on arrays, or on a table that came from no file."""
        from xmodal.data.columns import Column, TableForm

        names = self.columns or given
        levels: Sequence[tuple[str, ...]] = self.levels or [()] * len(names)
        return TableForm(
            tuple(
                Column(name, "category" if some else "number", some)
                for name, some in zip(names, levels, strict=True)
            )
        )
