"""The last fits of a search: the chosen model, on all training samples, and its one test.

The test score is held against what is cheap: always the same answer, and the best cheap answer on
validation, fitted on the same samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from xmodal import randomness, runs
from xmodal.assess import Against, Judgement, ScoreInterval, judge
from xmodal.errors import DataError
from xmodal.files import atomically, read_json
from xmodal.inference import ensemble
from xmodal.runs import PREDICTIONS, VALIDATED
from xmodal.search.mixture import Mixture
from xmodal.search.pooled import Pool, Predicted, predicted
from xmodal.search.search import Search
from xmodal.search.trials import MODELS, Trial, TrialRun

ZERO_LINE = "methods/majority"
"""Always the same answer. It fits data of every form, so planning it tells what the data are."""
UNTESTED = "no test samples were set apart, so nothing says how good it is on new data"


def looks(models: Path) -> int:
    """How many runs of a search have been scored on the test samples."""
    return len([one for one in models.glob("*/") if runs.Run(one).state == "done"])


def looks_elsewhere(folder: Path, data: str) -> int:
    """How many runs of the searches beside ``folder`` were tested on samples of the same ``data``.

    Another seed sets other samples apart, but never all others.
    """
    count = 0
    for record in folder.parent.glob(f"*/{runs.SEARCH}"):
        if record.parent.name != folder.name and read_json(record).get("data") == data:
            count += looks(record.parent / MODELS)
    return count


@dataclass(frozen=True)
class LastFits:
    """Makes the last fits of ``search`` in the folder ``models``."""

    search: Search
    pool: Pool
    models: Path

    def tested(self, found: Sequence[Trial], mixture: Mixture | None) -> tuple[Path, Judgement]:
        """Fit what was chosen, and test it: its folder, and its score on the test samples.

        ``found``: the trials, best first. Raises an XModalError if a fit fails.
        """
        chosen = [(found[0], 1.0)] if mixture is None else list(mixture.members)
        single = chosen[0][0] if len(chosen) == 1 else None
        held: list[Trial] = []  # what the chosen one is held against
        if getattr(self.pool.plan.recipe.task.config, "tests", True):
            held = [trial for trial in found if trial.answer.cheap][:1]
            if single is None:  # the result of a single run has the zero line already
                held += [trial for trial in found if trial.answer.recipes == (ZERO_LINE,)]
        wanted = {trial.key: trial for trial in (*(trial for trial, _ in chosen), *held)}
        parts = {key: self.search.maker.last(trial) for key, trial in wanted.items()}
        self.search.last_fits(list(parts.values()), [parts[trial.key] for trial, _ in chosen])
        done = [trial for trial in held if parts[trial.key].done]
        rivals = {t.name: parts[t.key] for t in done if single is None or t.key != single.key}
        part = parts[chosen[0][0].key]
        validated = self.pool.of(chosen[0][0])
        if single is not None:
            if validated is not None:
                _keep_validated(part.directory, validated)
            return part.directory, self._judged(predicted([part.directory]), part, rivals)
        weights = {parts[trial.key].directory: weight for trial, weight in chosen}
        folder, judgement = self._mixed(weights, part, rivals)
        if validated is not None and mixture is not None:
            _keep_validated(folder, replace(validated, prediction=mixture.prediction))
        return folder, judgement

    def _mixed(
        self,
        weights: Mapping[Path, float],
        part: TrialRun,
        rivals: Mapping[str, TrialRun],
    ) -> tuple[Path, Judgement]:
        """Write an ensemble of last fits, and test it by what its members predict."""
        named = sorted((path.name, weight) for path, weight in weights.items())
        digest = hashlib.sha256(repr(named).encode()).hexdigest()[:10]
        folder = self.models / f"ensemble-{digest}"
        found = [predicted([path]) for path in weights]
        members = [one for one in found if one is not None]
        if len(members) < len(weights):
            raise DataError(f"{self.models}: a member of the ensemble has kept no predictions")
        kind, outputs = self.pool.plan.facts.task.target.kind, [m.prediction for m in members]
        mean = ensemble.combined(kind, outputs, list(weights.values()))
        own = Predicted(mean, members[0].y, members[0].groups_N)
        ensemble.write(folder, weights)
        with atomically(folder / PREDICTIONS) as new:
            save_file({"prediction": mean.contiguous(), "label": own.y.contiguous()}, new)
        return folder, self._judged(own, part, rivals, mixed=True)

    def _judged(
        self,
        own: Predicted | None,
        part: TrialRun,
        rivals: Mapping[str, TrialRun],
        mixed: bool = False,
    ) -> Judgement:
        """The test score of predictions, against the same answer always, and cheap answers."""
        result = part.result
        if str(result["selected_on"]).startswith("test"):
            return Judgement(None, None, (), UNTESTED)
        theirs = {words: predicted([one.directory]) for words, one in rivals.items()}
        answers = {w: one.prediction for w, one in theirs.items() if one is not None}
        if own is None:  # too large to be kept
            test = result["test"]
            return Judgement(test["metric"], None, (), test.get("verdict", ""))
        known = () if mixed else result["test"].get("against", ())
        return judged(self.pool, part.run, own, answers, known, mixed)


def judged(
    pool: Pool,
    run: runs.Run,
    own: Predicted,
    answers: Mapping[str, Tensor],
    known: Sequence[Mapping[str, Any]] = (),
    mixed: bool = False,
) -> Judgement:
    """The test score of predictions of a run against ``answers``.

    ``known``: how they stand against others, as the run's result has it. ``mixed``: the predictions
    are those of several runs; then the run tells the classes alone.
    """
    score = run.read("result.json")["test"]["metric"]
    name = pool.plan.recipe.task.config.metric.name
    return judge(
        pool.metric(), own.prediction, own.y, answers, own.groups_N,
        randomness.derive(pool.seed, "bootstrap"),  # as in the run, so that the interval is its own
        run.read("manifest.json").get("classes", ()), name,
        None if mixed else _number(score), tuple(map(_against, known)),
    )  # fmt: skip


def _keep_validated(folder: Path, found: Predicted) -> None:
    """Keep what trials predicted for the validation samples with a model that trained on them too.

    That tells how sure a prediction is, with a little to spare: the trials had fewer samples. Of
    repeated cross-validation the first prediction of each sample is kept.
    """
    if (folder / VALIDATED).exists():
        return
    kept: Any = slice(None)
    if found.rows_N is not None:
        kept = np.unique(found.rows_N.numpy(), return_index=True)[1]
    with atomically(folder / VALIDATED) as new:
        save_file({"prediction": found.prediction[kept].contiguous(), "label": found.y[kept]}, new)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _against(kept: Mapping[str, Any]) -> Against:
    """How a run stands against a constant answer, as its result has it."""
    difference = kept.get("difference")
    ends = None if difference is None else ScoreInterval(**difference)
    return Against(kept["words"], kept["metric"], kept["outcome"], ends)
