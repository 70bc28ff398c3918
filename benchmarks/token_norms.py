"""Token norms at initialisation: the backbone's own against the embedder's, embedder by backbone.

    python benchmarks/token_norms.py --scales none auto

Prints one line for each pair: what the backbone's own tokens measure, and the target's with each
setting of the embedder's ``scale``. Loads weights and a few samples; trains nothing.
"""

from __future__ import annotations

import argparse
import sys

from xmodal import plugins
from xmodal.data.store import Store
from xmodal.engine.build import Builder
from xmodal.engine.plan import compose_plan

TASKS = {
    "patch": ("tasks/darcy", "task.train=40"),
    "conv-1d": ("tasks/crop", "fraction=0.02"),
    "columns": ("tasks/car",),
    "row-ple": ("tasks/wdbc", "embedder=row-ple"),
}
BACKBONES = {
    "vit-s14": ("backbone={use: vit-s14, layers: 1}", "source={use: digits, samples: 64}"),
    "minilm-l6": (
        "backbone={use: minilm-l6, layers: 1}",
        "source={use: conll-2003, samples: 64}",
    ),
    "mpnet-base": (
        "backbone={use: mpnet-base, layers: 1}",
        "source={use: conll-2003, samples: 64}",
    ),
    "swin": (
        "backbone={use: swin, size: tiny, pretrained: false}",
        "source={use: digits, samples: 64}",
    ),
    "tiny": ("backbone=tiny", "source={use: digits, samples: 64}"),
}


def norms(given: tuple[str, ...]) -> tuple[float | None, float | None]:
    """The mean norm of the backbone's own tokens and of the target's."""
    layers = ["methods/nft", *(part for part in given if "=" not in part)]
    overrides = [part for part in given if "=" in part]
    made = compose_plan(layers, plugins.registry(), Store(), overrides, "cpu")
    builder = Builder(made, Store(), lambda line: None)
    session = builder.session(builder.data())
    return session.source_norm, session.target_norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scales", nargs="+", default=["none", "auto"])
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--embedders", nargs="+", default=list(TASKS))
    chosen = parser.parse_args()
    write = sys.stdout.write
    write(f"{'embedder':10} {'backbone':11} {'own':>7} ")
    write(" ".join(f"{scale:>7}" for scale in chosen.scales) + "\n")
    for embedder in chosen.embedders:
        for backbone in chosen.backbones:
            own, found = None, []
            for scale in chosen.scales:
                given = (*TASKS[embedder], *BACKBONES[backbone], f"embedder.scale={scale}")
                try:
                    own, target = norms(given)
                    found.append(f"{target:7.2f}")
                except Exception as error:
                    found.append(str(error).splitlines()[0][:60])
                    break
            shown = "      ?" if own is None else f"{own:7.2f}"
            write(f"{embedder:10} {backbone:11} {shown} {' '.join(found)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
