"""Test error over the number of training samples: where does a pretrained body earn its place?

    python benchmarks/packs.py PACKS
    python benchmarks/learning_curves.py [--forms images series] [--seeds 2] [--root runs/curves]

On images, sounds, fields, series and a table, with five shares of the training samples: fine-tuning
of a pretrained body, of the same body with random weights, frozen features of pictures, and the
cheap answer that validates best. Tasks are ``benchmarks/tasks/*.yaml``. Fewer samples are gone
through more often: epochs grow as one over the root of the share. A run that was made before is
read, not repeated. ``table.json`` and ``table.md`` are written after every run, ``curves.svg`` at
the end or with ``--collect``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
SHARES = (0.0625, 0.125, 0.25, 0.5, 1.0)
METHODS = ("nft", "scratch", "frozen-features")
CHEAP = "cheap"


@dataclass(frozen=True)
class Form:
    """A kind of data: task, training samples, epochs on all of them, cheap answers, settings.

    ``more``: of all; ``own``: of a method.
    """

    task: str
    samples: int
    epochs: int
    cheap: tuple[str, ...]
    more: tuple[str, ...] = ()
    frozen: bool = False
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


FIELDS = ("backbone={use: vit-s14, layers: 3}", "task.train=240")
# On pictures the rates are those that did best in pictures.yaml: a random body needs a larger one.
PICTURES = {
    "nft": ("stages.finetune.lr_decay=0.75", "training.optimizer.lr=1e-4"),
    "scratch": ("training.optimizer.lr=3e-4",),
}
FORMS = {
    "images": Form("pacs", 600, 4, ("forest", "baseline"), frozen=True, own=PICTURES),
    "sounds": Form("esc10", 240, 10, ("forest", "baseline"), frozen=True, own=PICTURES),
    "fields": Form("darcy", 240, 8, ("baseline", "local-linear"), FIELDS),
    "series": Form("crop", 960, 6, ("forest", "kernels", "baseline")),
    "table": Form("car", 691, 8, ("baseline", "forest")),
}


@dataclass(frozen=True)
class Cell:
    """One run: form, method, share of the training samples, seed."""

    form: str
    method: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        """Its key in ``table.json``."""
        return f"{self.form}/{self.method}/{self.share}/{self.seed}"


def cells(forms: list[str], seeds: int, methods: set[str]) -> Iterator[Cell]:
    """All runs: the first seed of everything first, form by form, small shares before large."""
    for seed in range(seeds):
        for form in forms:
            for share in SHARES:
                trained = METHODS if FORMS[form].frozen else METHODS[:2]
                for method in (*trained, *FORMS[form].cheap):
                    if method in methods:
                        yield Cell(form, method, share, seed)


def run(cell: Cell, root: Path, precision: str) -> dict[str, float]:
    """Train and test; processor seconds are those of the whole run with loading."""
    import xmodal

    form = FORMS[cell.form]
    settings = [
        *form.more,
        *form.own.get(cell.method, ()),
        f"seed={cell.seed}",
        f"fraction={cell.share}",
    ]
    if cell.method in METHODS:
        settings.append(f"precision={precision}")
    if cell.method in ("nft", "scratch"):
        settings.append(f"training.epochs={round(form.epochs / cell.share**0.5)}")
    begun = time.process_time()
    made = xmodal.run(
        f"methods/{cell.method}",
        str(HERE / "tasks" / f"{form.task}.yaml"),
        overrides=[s for s in settings if cell.method in METHODS or not s.startswith("backbone=")],
        root=root,
        report=False,
    )
    result = made.result
    return {
        "test": result["test"]["metric"],
        "validation": result["validation"]["metric"],
        "train": max(1, round(form.samples * cell.share)),
        "seconds": time.process_time() - begun,
        "metric": result["metric"],
    }


def curve(found: dict[str, dict], form: str, method: str, seeds: int) -> list[tuple]:
    """(training samples, mean test error, all of them) of each share with a result.

    The cheap answer is the one with the least validation error at that share, seed by seed.
    """
    points = []
    for share in SHARES:
        errors, count = [], 0
        for seed in range(seeds):
            names = FORMS[form].cheap if method == CHEAP else (method,)
            made = [found.get(Cell(form, name, share, seed).name, {}) for name in names]
            made = [one for one in made if "test" in one]
            if made:
                best = min(made, key=lambda one: one["validation"])
                errors.append(best["test"])
                count = best["train"]
        if errors:
            points.append((count, statistics.mean(errors), errors))
    return points


def table(found: dict[str, dict], forms: list[str], seeds: int) -> str:
    """Markdown: a row a form and method, a column a share."""
    lines = []
    for form in forms:
        methods = [m for m in (*METHODS, CHEAP) if curve(found, form, m, seeds)]
        if not methods:
            continue
        counts = [count for count, _, _ in curve(found, form, methods[-1], seeds)]
        lines.append(f"| {form}: {FORMS[form].task} | {' | '.join(map(str, counts))} |")
        lines.append("|---|" + "---|" * len(counts))
        for method in methods:
            shown = [f"{mean:.3g}" for _, mean, _ in curve(found, form, method, seeds)]
            lines.append(f"| {method} | {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def draw(found: dict[str, dict], forms: list[str], seeds: int, file: Path) -> None:
    """One panel a form; both axes are logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "xmodal"
    from matplotlib import pyplot as plt

    shown = [form for form in forms if curve(found, form, CHEAP, seeds)]
    if not shown:
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(3.1 * len(shown), 3.2), squeeze=False)
    styles = {"nft": ("C0", "o-"), "scratch": ("C1", "s-"), "frozen-features": ("C2", "^-")}
    for axis, form in zip(axes[0], shown, strict=True):
        for method in (*METHODS, CHEAP):
            points = curve(found, form, method, seeds)
            if not points:
                continue
            colour, style = styles.get(method, ("0.4", "d--"))
            label = {"nft": "pretrained (nft)", "scratch": "random body (scratch)"}.get(
                method, method
            )
            axis.plot(
                [p[0] for p in points], [p[1] for p in points], style, color=colour, label=label
            )
            for count, _, errors in points if seeds > 1 else ():
                axis.plot([count] * len(errors), errors, ".", color=colour, alpha=0.5, ms=4)
        axis.set(
            xscale="log",
            yscale="log",
            title=f"{form}: {FORMS[form].task}",
            xlabel="training samples",
        )
        ticks = [p[0] for p in curve(found, form, CHEAP, seeds)]
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        values = [p[1] for m in (*METHODS, CHEAP) for p in curve(found, form, m, seeds)]
        low, high = min(values), max(values)
        marks = [low * (high / low) ** (i / 3) for i in range(4)] if high > low else [low]
        axis.set_yticks(marks, [f"{mark:.2g}" for mark in marks])
    axes[0][0].set_ylabel("test error")
    axes[0][0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Run, print and draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--root", type=Path, default=Path("runs/curves"))
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--minutes", type=float, default=None, help="begin no run after this")
    parser.add_argument("--collect", action="store_true", help="run nothing, read what is there")
    given = parser.parse_args()
    import torch

    from xmodal import plugins
    from xmodal.recipe.lookup import all_recipes

    torch.set_num_threads(1)
    methods = {f.name.removeprefix("methods/") for f in all_recipes(plugins.registry())}
    given.root.mkdir(parents=True, exist_ok=True)
    kept = given.root / "table.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    begun = time.monotonic()
    for cell in () if given.collect else cells(given.forms, given.seeds, methods):
        if "test" in found.get(cell.name, {}):
            continue
        if given.minutes is not None and time.monotonic() - begun > 60 * given.minutes:
            break
        try:
            found[cell.name] = asdict(cell) | run(cell, given.root, given.precision)
            print(f"{cell.name}: {found[cell.name]['test']:.4g}", flush=True)
        except Exception as error:
            if "interrupted" in str(error):
                raise
            found[cell.name] = asdict(cell) | {"error": f"{type(error).__name__}: {error}"}
            print(f"{cell.name}: {found[cell.name]['error']}", flush=True)
        kept.write_text(json.dumps(found, indent=1) + "\n")
        (given.root / "table.md").write_text(table(found, given.forms, given.seeds) + "\n")
    draw(found, given.forms, given.seeds, given.root / "curves.svg")
    print(table(found, given.forms, given.seeds))


if __name__ == "__main__":
    main()
