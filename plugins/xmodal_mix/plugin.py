"""Table of contents of the mixing baselines that PaRe's tables compare with patch replacement."""

from __future__ import annotations

from collections.abc import Mapping

from xmodal import hookimpl


@hookimpl
def xmodal_mixers() -> Mapping[str, str]:
    """Mixing with a source, mixing or changing the target alone, and repeating the target."""
    return {
        "mixup": "xmodal_mix.mixup:Mixup",
        "cutmix": "xmodal_mix.cutmix:CutMix",
        "target-mixup": "xmodal_mix.mixup:TargetMixup",
        "target-mask": "xmodal_mix.target_mask:TargetMask",
        "repeat": "xmodal_mix.repeat:Repeat",
        "token-augment": "xmodal_mix.token_augment:TokenAugment",
    }
