"""``xmodal analyse``: the paper's figures for a finished run, as files and one page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from xmodal.files import as_json, claim, write_atomically
from xmodal.interfaces import Distance
from xmodal.report import Mixing, kept_samples, measured, mixing, number, write_page
from xmodal.settings import Use
from xmodal.workbench import OpenedRun
from xmodal_analysis import distance_figure, landscape, maps, patches
from xmodal_analysis.clouds import SPACES, Clouds
from xmodal_analysis.drawing import KINDS
from xmodal_analysis.watch import SILENT, Watch

FOLDER, PAGE = "analysis", "analysis.html"


@dataclass(frozen=True)
class Wish:
    """Which figures to draw, and how finely."""

    figures: tuple[str, ...]
    distance: Use[Distance] | None
    samples: int = 128
    points: int = 9
    grid: int = 11
    radius: float = 1.0
    landscape_samples: int = 32


class NotDrawn(Exception):
    """Raised if this run has no data for a figure; the text gives the reason."""


@dataclass
class Section:
    """One figure on the page, and the files written for it."""

    key: str
    title: str
    text: str
    pictures: list[Markup] = field(default_factory=list)
    mixing: Mixing | None = None
    caption: str = ""
    table: tuple[list[str], list[list[str]]] | None = None
    files: list[Path] = field(default_factory=list)


class Analysis:
    """Draws the figures of one restored run into a folder."""

    def __init__(
        self, restored: OpenedRun, folder: Path, wish: Wish, watch: Watch = SILENT
    ) -> None:
        self.restored, self.folder, self.wish, self.watch = restored, folder, wish, watch
        self.clouds = Clouds(restored, wish.samples, watch)
        self.manifest = restored.run.read("manifest.json")
        self.samples = kept_samples(restored.run)
        self.absent: list[str] = []

    def carry_out(self) -> dict[str, Any]:
        """Draw all requested figures; returns the files written and the figures not drawn."""
        claim(self.folder, FOLDER, PAGE)
        sections: list[Section] = []
        for name in self.wish.figures:
            self.watch.say(f"drawing {name}")
            for draw in FIGURES[name]:
                try:
                    sections.append(draw(self))
                except NotDrawn as reason:
                    self.absent.append(f"{name}: {reason}")
        page = self._page(sections)
        return {
            "run": str(self.restored.run.path),
            "page": str(page),
            "figures": {s.key: [str(file) for file in s.files] for s in sections},
            "not_drawn": self.absent,
        }

    def _page(self, sections: Sequence[Section]) -> Path:
        result = self.restored.run.read("result.json")
        name = str(self.manifest.get("name") or self.restored.run.path.name)
        stage, epoch = self.restored.at
        lead = (
            f"Drawn from the weights of epoch {epoch + 1}"
            + (f" of stage {stage + 1}" if stage else "")
            + f", the best of the run ({self.restored.run.path.name})."
        )
        context = {
            "name": name,
            "task": result.get("task", ""),
            "lead": lead,
            "figures": sections,
            "absent": self.absent,
            "command": f"xmodal analyse {shlex.quote(str(self.restored.run.path))} "
            f"--figures {','.join(self.wish.figures)} --samples {self.wish.samples}",
            "measured": measured(result),
        }
        return write_page(
            self.folder / PAGE, "analysis.html.jinja", context, package="xmodal_analysis"
        )

    def _keep(self, section: Section, name: str, numbers: dict[str, Any]) -> Section:
        """Write the numbers of a figure beside its picture; returns its section."""
        stage, epoch = self.restored.at
        seed = self.restored.session.seed
        content = {"weights": {"stage": stage, "epoch": epoch}, "seed": seed, **numbers}
        file = self.folder / f"{name}.json"
        write_atomically(file, as_json(content, indent=1) + "\n")
        section.files += [*(self.folder / f"{name}{kind}" for kind in KINDS), file]
        return section

    def _source_needed(self) -> None:
        if self.restored.source is None:
            raise NotDrawn("the recipe has no source that this backbone can read")

    # --- the figures ---

    def distance(self) -> Section:
        """Fig. 1b."""
        self._source_needed()
        assert self.wish.distance is not None
        numbers = distance_figure.compute(self.clouds, self.wish.distance, self.wish.points)
        mixer = self.restored.plan.recipe.mixer.name
        caption = ""
        if not numbers["k"]:
            caption = (
                f"Mixer '{mixer}' has no count of replaced tokens, so no intermediate modality can "
                "be measured; the figure compares only source and target."
            )
            self.absent.append(f"distance over k: {caption}")
        svg = distance_figure.draw(numbers, self.folder / "distance")
        counted = numbers["samples"]
        text = (
            f"{distance_figure.words(numbers)} {counted['source']} source and "
            f"{counted['target']} target samples, mean over their tokens."
        )
        section = Section("distance", "Distance of the intermediate modality", text, [svg])
        section.caption, section.table = caption, _distance_table(numbers)
        return self._keep(section, "distance", numbers)

    def embeddings(self) -> Section:
        """Fig. 1c."""
        self._source_needed()
        numbers = maps.compute_embeddings(self.clouds, self.restored.session.seed)
        svg = maps.draw_embeddings(numbers, self.folder / "embeddings")
        text = (
            "Mean token embeddings of source and target"
            + (" and of target samples with k replaced tokens" if len(numbers["sets"]) > 2 else "")
            + ". The map shows neighbourhoods; the size of gaps means little."
        )
        section = Section("embeddings", "Map of the embeddings", text, [svg])
        return self._keep(section, "embeddings", numbers)

    def features(self) -> Section:
        """Fig. 6."""
        self._source_needed()
        facts = self.restored.session.facts.source
        assert facts is not None
        if facts.target.kind != "classification":
            raise NotDrawn(f"the labels of source '{facts.name}' are not classes")
        self.restored.use(self.restored.start)
        before = self.clouds.source()
        self.restored.use(self.restored.best)
        after = self.clouds.source()
        seed = self.restored.session.seed
        work = (maps.compute_features(before, after, seed) for _ in range(1))
        (numbers,) = list(self.watch.steps("t-SNE of source features", work, 1))
        svg = maps.draw_features(numbers, self.folder / "source-features")
        text = (
            f"The encoder's features of source '{facts.name}' by class, before and after "
            "fine-tuning on the target. If the encoder kept its knowledge, the classes stay apart."
        )
        section = Section("features", "Source features by class", text, [svg])
        before_right, after_right = numbers["before"]["right"], numbers["after"]["right"]
        if before_right is not None and after_right is not None:
            section.caption = (
                f"The five nearest other samples vote for the right class of "
                f"{100 * before_right:.1f} % of the samples before and {100 * after_right:.1f} % "
                "after. Unlike the map, this number is measured in the full space."
            )
        return self._keep(section, "source-features", numbers)

    def landscape(self) -> Section:
        """Fig. 1a."""
        if not landscape.parameters(self.restored):
            raise NotDrawn("this run trained no weight matrix")
        wish = self.wish
        numbers = landscape.compute(
            self.restored, wish.landscape_samples, wish.grid, wish.radius, self.watch
        )
        svg = landscape.draw(numbers, self.folder / "landscape")
        text = (
            f"{landscape.words(numbers)} Both directions are random and filter-normalised: a step "
            "of 1 changes every filter by its own length."
        )
        section = Section("landscape", "Loss landscape", text, [svg])
        section.caption = (
            f"{numbers['samples']} fixed validation samples; {number(numbers['parameters'])} "
            "trained weights move; biases and norms stay fixed."
        )
        return self._keep(section, "landscape", numbers)

    def patches_over_epochs(self) -> Section:
        """Fig. 8."""
        numbers = patches.over_epochs(self.samples)
        if numbers is None:
            raise NotDrawn("the run kept no replaced tokens")
        facts = self.manifest.get("facts", {})
        patches.draw_epochs(numbers, self.samples, facts, self.folder / "patches")
        text = (
            "The same training samples after several epochs, mixed without randomness. The shaded "
            "target tokens were replaced by the bright tokens of the source sample below."
        )
        section = Section("patches", "Replaced and taken patches over the epochs", text)
        section.mixing = mixing(self.samples, facts)
        return self._keep(section, "patches", numbers)

    def patches_over_counts(self) -> Section:
        """Figs. 4 and 7."""
        numbers = patches.over_counts(self.restored, self.clouds.most())
        if numbers is None:
            raise NotDrawn("the method does not count the tokens it takes, so it has no k")
        facts = self.manifest.get("facts", {})
        file = self.folder / "patches-by-k"
        svg = patches.draw_counts(numbers, self.samples, facts, file)
        text = (
            "The tokens that the trained model replaces and takes for several k; below them, "
            "equally many source tokens drawn at random."
        )
        section = Section("patches-by-k", "Patches by k, and at random", text, [svg])
        return self._keep(section, "patches-by-k", numbers)


FIGURES: dict[str, tuple[Callable[[Analysis], Section], ...]] = {
    "distance": (Analysis.distance,),
    "embeddings": (Analysis.embeddings, Analysis.features),
    "landscape": (Analysis.landscape,),
    "patches": (Analysis.patches_over_epochs, Analysis.patches_over_counts),
}
"""The figures that ``--figures`` accepts, in the order of the page."""


def _distance_table(numbers: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    heads = ["k", *(f"{space}: {end}" for space in SPACES for end in ("to source", "to target"))]
    columns = [numbers[space][end] for space in SPACES for end in ("to_source", "to_target")]
    rows = [
        [str(k), *(number(column[i]) for column in columns)] for i, k in enumerate(numbers["k"])
    ]
    between = [numbers[space]["between"] for space in SPACES]
    rows.append(["source to target", number(between[0]), "", number(between[1]), ""])
    return heads, rows
