"""Exports to plain PyTorch: the backbone as a model of its library, embedder and head as programs.

The result runs with torch and transformers; it does not need xmodal.
"""

from __future__ import annotations

import io
import shutil
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xmodal.batch import Tokens
from xmodal.errors import DataError
from xmodal.files import as_json
from xmodal.interfaces import Exported, Exporter, LibraryModel, Network, Trained
from xmodal_export import programs, standalone

_BODY_FILES = ("config.json", "model.safetensors")

_USAGE = """## Use

Needs torch {torch}{transformers}; does not need xmodal.

```python
import torch
from modeling import load  # modeling.py of this folder

model = load(".")
y = model(torch.tensor(x, dtype=torch.{dtype}))
```

| file | what it is |
|---|---|
| `modeling.py` | runs the model; it is short enough to read |
| `embed.pt2` | samples to tokens, including standardisation (`torch.export`) |
{backbone}| `head.pt2` | features to predictions in the unit of the labels (`torch.export`) |
| `xmodal.json` | the content of this page, for programs |

`.pt2` files are meant for the torch version that wrote them; later versions usually read them too.
"""
_HF_ROWS = (
    "| `config.json`, `model.safetensors` | the adapted backbone; "
    '`AutoModel.from_pretrained(".")` loads it |\n'
)
_PROGRAM_ROWS = "| `body.pt2` | the adapted backbone (`torch.export`) |\n"
_TIMM_ROWS = (
    '| `timm.safetensors` | its weights for timm: `timm.create_model("{name}", pretrained=False, '
    "num_classes=0).load_state_dict(weights, strict=False)`; patches, positions and prefix tokens "
    "are in `embed.pt2` and `body.pt2` |\n"
)


class HuggingFaceExport(Exporter):
    """The backbone for transformers or timm; embedder and head for plain torch."""

    class Config(programs.Tolerance):
        """Settings of ``hf``."""

    config: Config

    def export(self, trained: Trained, folder: Path) -> Exported:
        """Write the export, load it with the loader written next to it, and compare."""
        if trained.model.predictor.reads_samples:
            raise DataError(
                f"predictor '{trained.recipe.predictor.name}' reads the samples beside the "
                "backbone's features, and this form has no place for that; export to onnx"
            )
        network, x = programs.plain(trained), programs.real_samples(trained)
        wanted = programs.reference(trained)
        library = network.backbone.library_model()
        notes = programs.notes(trained)
        form, apart, size = "", float("inf"), 0.0
        if library is not None and library.library == "transformers":
            form = "transformers"
            _write(trained, network, x, folder, library)
            reason = "its outputs differ"
            try:
                apart, size = programs.difference(wanted, _loaded(folder), x, trained.raw)
            except (DataError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())[:150]
            if not apart <= programs.allowed(size, self.config.tolerance):
                # The library's Swin layers fail on grids smaller than their window.
                notes += (
                    f"transformers cannot run this backbone ({reason}), so it is exported as a "
                    "program",
                )
                form = ""
                for name in _BODY_FILES:
                    (folder / name).unlink()
        if not form:
            _write(trained, network, x, folder, None)
            apart, size = programs.difference(wanted, _loaded(folder), x, trained.raw)
        programs.agree(apart, size, self.config.tolerance, "the export")
        rows = _HF_ROWS if form else _PROGRAM_ROWS
        if library is not None and library.library == "timm":
            save_file(_saved(library), folder / "timm.safetensors")
            rows += _TIMM_ROWS.format(name=library.config["architecture"])
        if form:
            notes += (
                "the backbone's own embedding layer (and pooler) is a dummy: the backbone reads "
                "the tokens of `embed.pt2`, not words or images",
            )
        usage = _USAGE.format(
            torch=torch.__version__.partition("+")[0],
            transformers=" and transformers" if form else "",
            dtype="float64" if x.dtype == torch.float64 else "float32",
            backbone=rows,
        )
        return Exported(usage, apart, len(x), notes)


def _write(
    trained: Trained, network: Network, x: Tensor, folder: Path, library: LibraryModel | None
) -> None:
    """Write the programs, and the backbone as a library model or as another program."""
    grid = trained.facts.grid
    prefix = None if library is None else library.prefix
    embed = programs.Embed(network, trained.raw, prefix)
    with torch.no_grad():
        tokens = programs.Embed(network, trained.raw, None)(x)
        features = network.backbone(Tokens(tokens, grid))
    h_BMF = features.x_BND
    if prefix is not None:
        # The library also returns the features of the prefix; their values do not matter here.
        h_BMF = torch.cat(
            [h_BMF.new_zeros(len(h_BMF), prefix.shape[1], h_BMF.shape[2]), h_BMF], dim=1
        )
    _save(embed, x, folder / "embed.pt2")
    head = programs.Head(network, trained.raw, features.grid)
    _save(head, h_BMF, folder / "head.pt2")
    if library is None:
        _save(programs.Encode(network, grid), tokens, folder / "body.pt2")
    else:
        config = dict(library.config)
        if trained.facts.backbone.reduction > 1:
            config["xmodal_grid"] = list(grid)
        text = as_json(config, indent=1, default=str)
        (folder / "config.json").write_text(text, encoding="utf-8")
        save_file(_saved(library), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(Path(str(standalone.__file__)), folder / "modeling.py")


def _saved(library: LibraryModel) -> dict[str, Tensor]:
    # safetensors refuses entries that share memory.
    return {name: value.detach().clone().contiguous() for name, value in library.state.items()}


def _save(module: nn.Module, x: Tensor, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Not into the file: where the disk is full, torch would end the whole process.
        content = io.BytesIO()
        torch.export.save(programs.traced(module.eval(), x), content)
    file.write_bytes(content.getbuffer())


def _loaded(folder: Path) -> nn.Module:
    """The model as a user of the folder would load it. Raises DataError if it does not load."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return standalone.load(folder)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(f"the export cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
