"""How good predictions are: intervals of a score, and verdicts against cheap answers, in words.

Pure functions of predictions, labels, groups and a metric; every number comes from a fixed seed.
"""

from xmodal.assess.cheap import ConstantAnswer, constant_answer
from xmodal.assess.errors import sample_errors, worst_and_typical
from xmodal.assess.judge import Against, Judgement, judge, stand
from xmodal.assess.resample import Resamples, ScoreInterval

__all__ = [
    "Against",
    "ConstantAnswer",
    "Judgement",
    "Resamples",
    "ScoreInterval",
    "constant_answer",
    "judge",
    "sample_errors",
    "stand",
    "worst_and_typical",
]
