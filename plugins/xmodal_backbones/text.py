"""Text encoders of the Hugging Face families that have a separate embedding module.

Tokens are the output of the pretrained embedding layer (words, positions, LayerNorm). The encoder
runs in the library's own forward pass, with the embedding layer replaced by a module that passes
the tokens through.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from xmodal.batch import Tokens
from xmodal.data import Store
from xmodal.errors import DataError, UsageError
from xmodal.interfaces import BackboneFacts, Context, Facts, LibraryModel
from xmodal_backbones import weights
from xmodal_backbones.common import BackboneSettings, BuiltinBackbone

KNOWN = ("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "distilbert", "electra", "albert")


class HandOn(nn.Module):
    """Replaces the embedding layer and returns the embeddings that it receives."""

    def forward(self, *given: Any, inputs_embeds: Tensor | None = None, **named: Any) -> Any:
        """Return ``inputs_embeds``, by name or by position."""
        if inputs_embeds is not None:
            return inputs_embeds
        return next(x for x in given if isinstance(x, Tensor) and x.is_floating_point())


def fits(model: Any) -> bool:
    """Whether a model is a text encoder that this module can drive."""
    named = inspect.signature(model.forward).parameters
    return hasattr(model, "embeddings") and "inputs_embeds" in named


class TextBackbone(BuiltinBackbone):
    """A text encoder without its word embeddings, which stay frozen and apart."""

    _tokenizer: Any = None
    _find_tokenizer: Callable[[], Path]

    @classmethod
    def problems(cls, config: Any, facts: Facts) -> Iterable[str]:
        """Report more tokens than the position table has rows."""
        limit = facts.backbone.max_tokens
        if limit is not None and facts.num_tokens > limit:
            yield (
                f"backbone '{facts.backbone.name}' reads at most {limit} tokens, but the embedder "
                f"makes {facts.num_tokens} for task '{facts.task.name}'; choose larger patches"
            )

    def adopt(self, model: Any, find_tokenizer: Callable[[], Path]) -> None:
        """Take over a model; ``find_tokenizer`` is called only when the tokenizer is needed."""
        self.keep_embedding(model.embeddings)
        model.embeddings = HandOn()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        for module in model.modules():
            if type(module).__name__ == "MPNetSelfAttention":
                module.forward = MethodType(_fused, module)
        self.model = model
        self._find_tokenizer = find_tokenizer

    def forward(self, tokens: Tokens) -> Tokens:
        """Encode ``[B, N, D]``; the grid does not change."""
        out = self.model(inputs_embeds=tokens.x_BND)
        return Tokens(out.last_hidden_state, tokens.grid)

    def recomputable(self) -> Iterable[nn.Module]:
        """The members of the encoder's list of layers; ALBERT's single one serves many times."""
        lists = (m for m in self.model.modules() if isinstance(m, nn.ModuleList) and len(m))
        return next(lists, nn.ModuleList())

    def library_model(self) -> LibraryModel:
        """The encoder, with a dummy embedding of two words, because it reads tokens, not words."""
        hf_config = copy.deepcopy(self.model.config)
        hf_config.vocab_size = (hf_config.pad_token_id or 0) + 2
        return weights.library_model(hf_config, self.model.state_dict())

    def embed(self, x: Tensor) -> Tokens:
        """Embed word pieces ``[B, L]`` (int64 ids)."""
        return Tokens(self.embedding(input_ids=x), (x.shape[1],))

    def tokenize(self, words: Sequence[str]) -> list[list[int]]:
        """The word pieces of every word of a sentence, without special tokens."""
        if self._tokenizer is None:
            self._tokenizer = _load_tokenizer(self._find_tokenizer())
        coded = self._tokenizer(
            list(words), is_split_into_words=True, add_special_tokens=False, verbose=False
        )
        pieces: list[list[int]] = [[] for _ in words]
        for piece, word in zip(coded["input_ids"], coded.word_ids(), strict=True):
            pieces[word].append(piece)
        return pieces

    def prepare_source(self, raw: Any) -> Tensor:
        """Word pieces ``[n, L]`` of n word lists, cut to the shortest; ids pass unchanged."""
        if isinstance(raw, Tensor):
            return raw
        rows = [[piece for word in self.tokenize(row) for piece in word] for row in raw]
        length = min((len(row) for row in rows), default=0)
        length = min(length, self.facts.max_tokens or length)
        if length == 0:
            raise DataError("a source sample has no words that the tokenizer knows")
        return torch.tensor([row[:length] for row in rows], dtype=torch.int64)

    def embedding_norm(self) -> nn.LayerNorm | None:
        """The LayerNorm at the end of the embedding layer."""
        return find_norm(self.embedding)

    def positions(self, grid: tuple[int, ...]) -> Tensor | None:
        """The first N = prod(grid) rows of the position table. Raises UsageError if too few."""
        table = getattr(self.embedding, "position_embeddings", None)
        if not isinstance(table, nn.Embedding):
            return None
        first = 0 if table.padding_idx is None else table.padding_idx + 1
        length = 1
        for side in grid:
            length *= side
        if first + length > table.num_embeddings:
            raise UsageError(
                f"{self.facts.name} has positions for {table.num_embeddings - first} tokens, not "
                f"{length}: choose larger patches"
            )
        return table.weight[first : first + length]


def _fused(
    attention: Any,
    x_BND: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor]:
    """Attention of MPNet with a bias of the distance; the library's own stores all scores."""
    heads = attention.num_attention_heads
    q, k, v = (
        project(x_BND).unflatten(-1, (heads, -1)).transpose(1, 2)
        for project in (attention.q, attention.k, attention.v)
    )
    added = bias if mask is None else mask if bias is None else bias + mask
    dropout = attention.dropout.p if attention.training else 0.0
    added = None if added is None else added.to(q.dtype)
    read = functional.scaled_dot_product_attention(q, k, v, added, dropout_p=dropout)
    return (attention.o(read.transpose(1, 2).flatten(2)),)


def find_norm(embedding: nn.Module) -> nn.LayerNorm | None:
    """The LayerNorm of an embedding layer under one of its usual names."""
    found = getattr(embedding, "LayerNorm", None) or getattr(embedding, "norm", None)
    return found if isinstance(found, nn.LayerNorm) else None


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        # Word pieces of byte-level tokenizers depend on the space before the word.
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, add_prefix_space=True)
    except (OSError, ValueError) as error:
        raise DataError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def text_facts(name: str, hf_config: Any) -> BackboneFacts:
    """The facts of a text encoder's config."""
    # In tables with a padding row, that row and the rows before it are unused.
    rows = getattr(hf_config, "max_position_embeddings", None)
    padded = hf_config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet")
    return BackboneFacts(
        name=name,
        modality="text",
        width=getattr(hf_config, "embedding_size", None) or hf_config.hidden_size,
        feature_width=hf_config.hidden_size,
        max_tokens=rows - 2 if padded and rows else rows,
        embedding_norm=True,
        layers=getattr(hf_config, "num_hidden_layers", 0),
    )


def with_dropout(hf_config: Any, dropout: float | None) -> Any:
    """Set hidden and attention dropout if the recipe sets them."""
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
    for name in names:
        if dropout is not None and hasattr(hf_config, name):
            setattr(hf_config, name, dropout)
    return hf_config


class Roberta(TextBackbone):
    """RoBERTa-base, from the hub or a local folder: the text backbone of ORCA and PaRe."""

    class Config(BackboneSettings):
        """Settings of ``roberta``."""

        weights: str | None = Field(
            None, description="A local folder or hub id instead of the published weights."
        )

    HUB_ID = "FacebookAI/roberta-base"

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self.facts = self.describe(config, context.store)
        name = config.weights or self.HUB_ID
        hf_config = with_dropout(self._hf_config(), config.dropout)
        advice = [f"set 'weights' to a copy of {self.HUB_ID}"]
        model = weights.model_of(
            self.facts.name,
            lambda: weights.resolve(name, advice),
            hf_config,
            config.pretrained,
            context,
        )
        self.adopt(model, lambda: weights.resolve_tokenizer(name))

    @staticmethod
    def _hf_config() -> Any:
        from transformers import RobertaConfig

        return RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
        )

    @classmethod
    def contents(cls, config: Config, store: Store) -> Mapping[str, str]:
        """The files of a local folder; a hub id stands for itself."""
        return weights.named_contents("weights", config.weights)

    @classmethod
    def describe(cls, config: Config, store: Store) -> BackboneFacts:
        """The facts of RoBERTa-base."""
        return BackboneFacts(
            "roberta-base", "text", 768, 768, max_tokens=512, embedding_norm=True, layers=12
        )
