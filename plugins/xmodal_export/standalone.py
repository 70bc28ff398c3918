"""Runs this model: raw samples in, predictions out. Needs torch, and transformers for its backbone.

    model = load("FOLDER")
    y = model(x)  # x: a tensor as README.md describes it

embed.pt2 turns samples into tokens, the backbone encodes the tokens, and head.pt2 turns the result
into predictions. The backbone is a transformers model whose own embedding layer is not used
(config.json and model.safetensors), or body.pt2 if transformers has no such model. The .pt2 files
are programs of torch.export.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class ExportedModel(nn.Module):
    """Embed, encode, predict."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        folder = Path(folder)
        self.embed = torch.export.load(folder / "embed.pt2").module()
        self.head = torch.export.load(folder / "head.pt2").module()
        self.programmed = (folder / "body.pt2").is_file()
        if self.programmed:
            self.body: Any = torch.export.load(folder / "body.pt2").module()
        else:
            self.body = library_backbone(folder)

    def forward(self, x: Tensor) -> Tensor:
        """Predict raw samples."""
        tokens = self.embed(x)
        features = self.body(tokens) if self.programmed else encode(self.body, tokens)
        outputs: Tensor = self.head(features)
        return outputs


def load(folder: str | Path) -> ExportedModel:
    """The model in a folder, ready to predict."""
    return ExportedModel(folder).requires_grad_(False)


def library_backbone(folder: Path) -> Any:
    """The backbone, with an embedding layer that passes its input tokens through."""
    from transformers import AutoModel

    body = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    grid = getattr(body.config, "xmodal_grid", None)

    def hand_on(*given: Any, inputs_embeds: Any = None, **named: Any) -> Any:
        tokens = given[0] if inputs_embeds is None else inputs_embeds
        # Layers with windows also need the height and width of the token grid.
        return tokens if grid is None else (tokens, tuple(grid))

    body.embeddings.forward = hand_on
    return body


def encode(body: Any, tokens: Tensor) -> Tensor:
    """The last hidden state of tokens ``[B, N, D]``."""
    image = getattr(body, "main_input_name", "input_ids") == "pixel_values"
    name = "pixel_values" if image else "inputs_embeds"
    features: Tensor = body(**{name: tokens}).last_hidden_state
    return features
