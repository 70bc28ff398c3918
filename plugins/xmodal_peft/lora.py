"""Low-rank updates of a backbone's linear layers (LoRA, Hu et al., ICLR 2022), by the peft library.

Peft inserts the layers. This module chooses them, and refuses layers whose update would be ignored.
The stage decides which parameters train; the new ones have ``lora_`` in their names.

Symbols as in the paper: W [out, in] a pretrained matrix, A [r, in], B [out, r], r the rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, field_validator
from torch import nn

from xmodal.errors import UsageError
from xmodal.interfaces import Adapter, Backbone, Context, Facts, Settings
from xmodal.text import shortlist

FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules of torch that read the weights of their linear layers without calling the layers (the
second only outside training). An update of such a layer would have no effect."""


class Lora(Adapter):
    """h = W x + scale B A x for every chosen linear layer, scale = α/r (Eq. 3).

    A starts at random and B at zero, so that the update is 0 at the start (section 4.1).
    """

    citation = "Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022"

    class Config(Settings):
        """Settings of ``lora``."""

        rank: int = Field(8, ge=1, description="r, the rank of every update.")
        alpha: float | None = Field(
            None,
            gt=0,
            description="α of the scale α/r; null takes the rank, for a scale of 1.",
        )
        dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the input of A.")
        targets: Literal["all-linear"] | tuple[str, ...] = Field(
            "all-linear",
            description="Which linear layers of the backbone to adapt: all, or those that match "
            "patterns over their names, such as *attention*.",
        )
        rslora: bool = Field(
            False, description="Scale by α/√r (Kalajdzievski 2023), or by √r without alpha."
        )
        dora: bool = Field(
            False,
            description="Train the length of every row of W + scale B A apart from its direction "
            "(DoRA, Liu et al. 2024).",
        )

        @field_validator("targets")
        @classmethod
        def _some(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
            if not targets:
                raise ValueError("targets is empty: nothing would be adapted")
            return targets

    config: Config

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._note = context.note

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """The backbone must have layers to adapt."""
        if facts.backbone.width == 0:
            yield f"backbone '{facts.backbone.name}' has no linear layers for adapter 'lora'"

    def apply(self, backbone: Backbone) -> None:
        """Insert the updates into the backbone. Raises UsageError if no linear layer is chosen."""
        # Imported late: checking a recipe needs no peft.
        from peft import LoraConfig, inject_adapter_in_model

        config = self.config
        layers, left = linear_layers(backbone)
        chosen = _chosen(layers, config.targets, left)
        settings = LoraConfig(
            r=config.rank,
            lora_alpha=config.rank if config.alpha is None else config.alpha,
            lora_dropout=config.dropout,
            target_modules="body[.](" + "|".join(re.escape(name) for name in chosen) + ")",
            use_rslora=config.rslora,
            use_dora=config.dora,
        )
        # Wrap the backbone in a module without a config: peft would mistake the backbone's settings
        # for its own config, and would not adapt a model that is itself a linear layer.
        holder = nn.ModuleDict({"body": backbone})
        trains = {name: p.requires_grad for name, p in backbone.named_parameters()}
        inject_adapter_in_model(settings, holder)
        added = 0
        for name, parameter in backbone.named_parameters():
            before = trains.get(name.replace(".base_layer.", "."))
            added += parameter.numel() if before is None else 0
            # Peft freezes all other parameters; undo this, since the stage decides what trains.
            parameter.requires_grad_(True if before is None else before)
        for name in chosen:
            # Peft's layers start in training mode, even if the backbone is not in it.
            backbone.get_submodule(name).train(layers[name].training)
        self._note(
            f"lora: rank {config.rank} in {len(chosen)} linear layers, {added:,} new parameters"
        )
        if left and config.targets == "all-linear":
            self._note(f"lora: fused layers are not adapted: {shortlist(left, 6)}")


def linear_layers(backbone: Backbone) -> tuple[dict[str, nn.Linear], tuple[str, ...]]:
    """The linear layers of a backbone that can be adapted, by name, and the names of the others.

    The others are inside a fused module. Layers of the frozen source embedding are in neither.
    """
    source = {id(parameter) for parameter in backbone.embedding_parameters()}
    fused = tuple(name for name, module in backbone.named_modules() if isinstance(module, FUSED))
    found: dict[str, nn.Linear] = {}
    left = []
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.Linear) or id(module.weight) in source:
            continue
        if any(name == outer or name.startswith(f"{outer}.") for outer in fused):
            left.append(name)
        else:
            found[name] = module
    return found, tuple(left)


def _chosen(
    layers: dict[str, nn.Linear], targets: str | tuple[str, ...], left: tuple[str, ...]
) -> list[str]:
    """The names of the layers to adapt. Raises UsageError if a pattern matches none."""
    patterns = ("*",) if isinstance(targets, str) else targets
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in layers):
            continue
        fused = [name for name in left if fnmatchcase(name, pattern)]
        if fused:
            raise UsageError(
                f"adapter.targets: '{pattern}' matches only layers inside fused modules, where an "
                f"update would be ignored: {shortlist(fused, 6)}"
            )
        names = f"; its linear layers: {shortlist(layers, 6)}" if layers else ""
        raise UsageError(
            f"adapter.targets: '{pattern}' matches no linear layer of the backbone{names}"
        )
    return [n for n in layers if any(fnmatchcase(n, pattern) for pattern in patterns)]
