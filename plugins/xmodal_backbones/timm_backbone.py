"""Vision and Swin transformers of the timm library, from the hub or a local safetensors file.

Other timm architectures (hybrid, convolutional, rotary positions) are refused, with a list of the
supported ones.

Shapes: B samples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from xmodal.batch import Tokens
from xmodal.data import Store
from xmodal.errors import DataError, did_you_mean
from xmodal.files import contents
from xmodal.interfaces import BackboneFacts, Context, Facts, LibraryModel
from xmodal_backbones import weights
from xmodal_backbones.common import ImageBackboneSettings, PatchBackbone, needs_2d, seeded


class _Embedding(nn.Module):
    """The frozen embedding of source images; patch positions are resized as in timm."""

    def __init__(self, patch: Any, positions_1ND: Tensor | None, side: tuple[int, int]) -> None:
        super().__init__()
        self.projection: nn.Conv2d = patch.proj
        self.norm: nn.Module = patch.norm
        self.side = side
        self.positions_1ND = None if positions_1ND is None else nn.Parameter(positions_1ND.clone())

    def positions(self, grid: tuple[int, int]) -> Tensor | None:
        from timm.layers import resample_abs_pos_embed

        if self.positions_1ND is None:
            return None
        sized: Tensor = resample_abs_pos_embed(
            self.positions_1ND, list(grid), list(self.side), num_prefix_tokens=0
        )
        return sized[0]

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        map_BDHW = self.projection(x_BCHW)
        grid = (map_BDHW.shape[2], map_BDHW.shape[3])
        x_BND = self.norm(map_BDHW.flatten(2).transpose(1, 2))
        positions_ND = self.positions(grid)
        return x_BND if positions_ND is None else x_BND + positions_ND, grid


class Timm(PatchBackbone):
    """Any timm VisionTransformer or SwinTransformer, by its model name."""

    class Config(ImageBackboneSettings):
        """Settings of ``timm``."""

        name: str = Field(
            description="A timm model name such as vit_small_patch16_224.augreg_in1k."
        )
        weights: Literal["hub"] | Path = Field(
            "hub", description="'hub', or the path of a local .safetensors file."
        )

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        with seeded(context.generator):
            model = _create(config)
        self.facts = _facts(config.name, model)
        if config.pretrained:
            context.note(_load(config, model))
        for module in model.modules():
            if hasattr(module, "fused_attn"):  # timm has it off for Swin
                module.fused_attn = True
        settings = model.pretrained_cfg
        self.mean_std = (tuple(settings["mean"]), tuple(settings["std"]))
        if _is_swin(model):
            self.stages, self.norm = model.layers, model.norm
            self.keep_embedding(_Embedding(model.patch_embed, None, model.patch_embed.grid_size))
        else:
            self._adopt_vit(model)

    def _adopt_vit(self, model: Any) -> None:
        tokens = [t for t in (model.cls_token, model.reg_token) if t is not None]
        count = model.num_prefix_tokens
        positions_1MD = model.pos_embed
        if positions_1MD is not None and not model.no_embed_class:
            # A prefix token and its position occur only as a sum, so one parameter is enough.
            if tokens:
                tokens = [torch.cat(tokens, dim=1) + positions_1MD[:, :count]]
            positions_1MD = positions_1MD[:, count:]
        empty_10D = torch.zeros(1, 0, model.embed_dim)
        self.prefix_1PD = nn.Parameter(torch.cat([empty_10D, *tokens], dim=1).detach().clone())
        self.norm_pre, self.blocks = model.norm_pre, model.blocks
        # Mean-pooled models normalise after pooling; here the norm is applied to every token.
        self.norm_name = "fc_norm" if isinstance(model.norm, nn.Identity) else "norm"
        self.norm = model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm
        side = model.patch_embed.grid_size
        self.keep_embedding(_Embedding(model.patch_embed, positions_1MD, side))

    @classmethod
    def contents(cls, config: Config, store: Store) -> Mapping[str, str]:
        """The local file of weights; those of the hub go by the model's name."""
        if config.weights == "hub":
            return {}
        return {"weights": contents(config.weights)}

    @classmethod
    def describe(cls, config: Config, store: Store) -> BackboneFacts:
        """The facts of the architecture; builds it without allocating or loading weights."""
        with torch.device("meta"):
            return _facts(config.name, _create(config))

    @classmethod
    def problems(cls, config: Config, facts: Facts) -> Iterable[str]:
        """Windows need a 2-D grid."""
        return needs_2d(facts) if facts.backbone.reduction > 1 else ()

    def forward(self, tokens: Tokens) -> Tokens:
        """Encode tokens of any grid."""
        x_BND = tokens.x_BND
        if self.facts.reduction > 1:
            x_BHWD = self.stages(x_BND.reshape(-1, *tokens.grid, x_BND.shape[2]))
            return Tokens(self.norm(x_BHWD).flatten(1, 2), tuple(x_BHWD.shape[1:3]))
        prefix_BPD = self.prefix_1PD.expand(x_BND.shape[0], -1, -1).to(x_BND.dtype)
        x_BMD = self.norm_pre(torch.cat([prefix_BPD, x_BND], dim=1))
        x_BMD = self.norm(self.blocks(x_BMD))
        return Tokens(x_BMD[:, prefix_BPD.shape[1] :], tokens.grid)

    def recomputable(self) -> Iterable[nn.Module]:
        """The blocks, of all stages."""
        if self.facts.reduction > 1:
            return [block for stage in self.stages for block in stage.blocks]
        return self.blocks  # type: ignore[no-any-return]

    def library_model(self) -> LibraryModel:
        """The blocks or stages and the norm, under timm's names, without embedding and head."""
        layers, norm = (
            ("layers", "norm") if self.facts.reduction > 1 else ("blocks", self.norm_name)
        )
        backbone = {
            layers: self.stages if self.facts.reduction > 1 else self.blocks,
            norm: self.norm,
        }
        if layers == "blocks":
            backbone["norm_pre"] = self.norm_pre
        state = {
            f"{n}.{k}": v for n, part in backbone.items() for k, v in part.state_dict().items()
        }
        return LibraryModel("timm", {"architecture": self.config.name}, state)

    def embedding_norm(self) -> nn.LayerNorm | None:
        """The LayerNorm after the patch projection, if there is one."""
        norm = self.embedding.norm
        return norm if isinstance(norm, nn.LayerNorm) else None


def _is_swin(model: Any) -> bool:
    from timm.models.swin_transformer import SwinTransformer

    return isinstance(model, SwinTransformer)


def _create(config: Any) -> Any:
    """Build the architecture with random weights and no head. Raises DataError."""
    import timm
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model(config.name):
        hint = did_you_mean(config.name, timm.list_models(pretrained=True) + timm.list_models())
        raise DataError(f"timm has no model '{config.name}'{hint}")
    settings: dict[str, Any] = {"num_classes": 0}
    if config.dropout is not None:
        settings |= {"proj_drop_rate": config.dropout, "attn_drop_rate": config.dropout}
    if config.drop_path is not None:
        settings["drop_path_rate"] = config.drop_path
    kind = config.name.split("_")[0]
    if kind == "swin":
        settings["strict_img_size"] = False
    try:
        model = timm.create_model(config.name, pretrained=False, **settings)
    except TypeError:
        model = None
    plain = type(model) is VisionTransformer and type(model.patch_embed) is PatchEmbed
    if not (plain or (model is not None and _is_swin(model))):
        raise DataError(
            f"backbone 'timm' does not support '{config.name}'\nsupported: plain VisionTransformer "
            "(vit_*, deit*, without hybrid or rotary parts) and SwinTransformer (swin_*)\n"
            "ways out: choose a supported model, use backbone 'hf', or write a plugin"
        )
    return model


def _facts(name: str, model: Any) -> BackboneFacts:
    patch = model.patch_embed
    swin = _is_swin(model)
    return BackboneFacts(
        name=name,
        modality="image",
        width=patch.proj.out_channels,
        feature_width=model.num_features,
        patch=patch.proj.kernel_size[0],
        grid=tuple(patch.grid_size),
        embedding_norm=isinstance(patch.norm, nn.LayerNorm),
        reduction=2 ** (len(model.layers) - 1) if swin else 1,
        layers=sum(len(s.blocks) for s in model.layers) if swin else len(model.blocks),
    )


def _weight_file(config: Any, model: Any) -> Path:
    if config.weights != "hub":
        path = Path(config.weights)
        if path.suffix != ".safetensors" or not path.is_file():
            raise DataError(f"{path}: not a .safetensors file (pickles are never read)")
        return path
    hub_id = model.pretrained_cfg.get("hf_hub_id")
    if not hub_id:
        raise DataError(
            f"timm publishes no weights for '{config.name}'\nways out: add a tag to the name, set "
            "'weights' to a .safetensors file, or set 'pretrained: false'"
        )
    if hub_id.endswith("/"):
        hub_id += f"{model.pretrained_cfg['architecture']}.{model.pretrained_cfg['tag']}"
    advice = [f"set 'weights' to a copy of {hub_id}/model.safetensors"]
    return weights.hub_folder(hub_id, ["model*.safetensors"], advice) / "model.safetensors"


def _load(config: Any, model: Any) -> str:
    """Load the weights into the model and return a report on its keys. Raises DataError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from timm.models import swin_transformer, vision_transformer

    path = _weight_file(config, model)
    module = swin_transformer if _is_swin(model) else vision_transformer
    try:
        state = module.checkpoint_filter_fn(load_file(path), model)
        left = model.load_state_dict(state, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(f"the weights in {path} do not fit {config.name}: {error}") from error
    return weights.report(config.name, model, left.missing_keys, left.unexpected_keys)
