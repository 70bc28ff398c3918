"""The interfaces of all parts of a cross-modal fine-tuning run, importable from this module.

Every part is one class with a nested pydantic ``Config``; the recipe block of that part *is* its
``Config``. A part learns about the rest of the run from ``Facts`` (plain numbers that are known
before any weight or sample is loaded), and receives run-time objects in a ``Context``.
"""

from __future__ import annotations

from xmodal.data.obtain import DataOrder
from xmodal.facts import NO_FACTS, BackboneFacts, Facts, SourceFacts, Target, TaskFacts
from xmodal.interfaces.component import Component, Context
from xmodal.interfaces.data import Equation, Pair, Source, SourceRequest, Task, TaskData
from xmodal.interfaces.fitted import (
    FitData,
    FittedBuffers,
    FittedPredictor,
    as_bytes,
    from_bytes,
    too_large,
)
from xmodal.interfaces.model import (
    Adapter,
    Backbone,
    Distance,
    Embedder,
    LibraryModel,
    Loss,
    Metric,
    Mixer,
    Predictor,
    Scheduler,
    Selector,
)
from xmodal.interfaces.run import (
    Exported,
    Exporter,
    Job,
    Launcher,
    Model,
    Network,
    Session,
    Stage,
    Tracked,
    Tracker,
    Trained,
)
from xmodal.settings import Settings, Use, default

__all__ = [
    "INTERFACES", "NO_FACTS", "Adapter", "Backbone", "BackboneFacts", "Component", "Context",
    "DataOrder", "Distance", "Embedder", "Equation", "Exported", "Exporter", "Facts", "FitData",
    "FittedBuffers", "FittedPredictor", "Job", "Launcher", "LibraryModel", "Loss", "Metric",
    "Mixer", "Model", "Network", "Pair", "Predictor", "Scheduler", "Selector", "Session",
    "Settings", "Source", "SourceFacts", "SourceRequest", "Stage", "Target", "Task",
    "TaskData", "TaskFacts", "Tracked", "Tracker", "Trained", "Use", "as_bytes", "default",
    "from_bytes", "too_large",
]  # fmt: skip

INTERFACES: tuple[type[Component], ...] = (
    Embedder,
    Mixer,
    Selector,
    Scheduler,
    Predictor,
    Backbone,
    Adapter,
    Stage,
    Distance,
    Launcher,
    Tracker,
    Exporter,
    Task,
    Source,
    Loss,
    Metric,
)
"""Every kind of component in this version, in the order of a recipe."""
