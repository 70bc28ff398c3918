"""Exports to ONNX: one graph from raw samples to predictions, checked with onnxruntime."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xmodal.data import Store
from xmodal.interfaces import Exported, Exporter, Trained
from xmodal_export import programs

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FILE = "model.onnx"

_USAGE = """## Use

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(y,) = session.run(["y"], {{"x": np.asarray(x, dtype=np.{dtype})}})
```

| file | what it is |
|---|---|
| `model.onnx` | the whole model (opset {opset}), including standardisation; any batch size |
{data}| `xmodal.json` | the content of this page, for programs |
"""
_DATA_ROW = "| `model.onnx.data` | its weights; keep it beside `model.onnx` |\n"


class Onnx(Exporter):
    """One ONNX graph, raw samples to predictions."""

    class Config(programs.Tolerance):
        """Settings of ``onnx``."""

    config: Config

    @classmethod
    def missing(cls, config: Any, store: Store) -> Iterable[str]:
        """The packages that are not installed."""
        lacking = [name for name in PACKAGES if find_spec(name) is None]
        if lacking:
            yield f"exporting to ONNX needs {', '.join(lacking)}: pip install 'xmodal[onnx]'"

    def export(self, trained: Trained, folder: Path) -> Exported:
        """Trace, write, run with onnxruntime and compare."""
        network, x = programs.plain(trained), programs.real_samples(trained)
        whole = programs.Whole(network, trained.raw).eval()
        opset = _write(whole, x, folder / FILE)
        wanted, graph = programs.reference(trained), _Graph(folder / FILE)
        apart, size = programs.difference(wanted, graph, x, trained.raw)
        programs.agree(apart, size, self.config.tolerance, "the ONNX graph")
        notes = programs.notes(trained)
        usage = _USAGE.format(
            dtype="float64" if x.dtype == torch.float64 else "float32",
            opset=opset,
            data=_DATA_ROW if (folder / f"{FILE}.data").exists() else "",
        )
        return Exported(usage, apart, len(x), notes)


def _write(whole: programs.Whole, x: Tensor, file: Path) -> int:
    """Write the graph; returns its opset."""
    program = programs.traced(whole, x)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program, input_names=["x"], output_names=["y"], dynamo=True, verbose=False
        )
        assert made is not None
        made.save(file)
    return int(made.model.opset_imports[""])


class _Graph:
    """The graph in onnxruntime, as a function of tensors."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def __call__(self, x: Tensor) -> Tensor:
        (y,) = self.session.run(["y"], {"x": x.numpy()})
        return torch.from_numpy(y)
