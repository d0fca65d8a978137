"""What a dashboard shows, whatever draws it: sections of panels over the keys that a tracker writes."""

from __future__ import annotations

from dataclasses import dataclass

from petl_bench.reports.fields import FIELDS
from petl_bench.trackers.tracker import SCORE, SELECTION_SCORE

TRAINABLE = FIELDS["params_trainable"].tracker_key
ESTIMATED_PEAK = FIELDS["estimated_peak_bytes"].tracker_key
TRAIN_SPEED = FIELDS["train_examples_per_second"].tracker_key
TRAIN_SECONDS = FIELDS["train_seconds"].tracker_key
INFERENCE_SPEED = FIELDS["inference_examples_per_second"].tracker_key
TRAIN_LOSS = "train/loss"
LEARNING_RATE = "train.learning_rate"

# W&B's names of what all runs have: the method, and the axis of the curves.
METHOD = "JobType"
STEP = "step"


@dataclass(frozen=True)
class Place:
    """Where a dashboard is kept and which runs it shows.

    Attributes:
        entity: Empty until it is saved.
        study: None: every run of the project.
    """

    entity: str
    project: str
    study: str | None = None

    @property
    def title(self) -> str:
        """The dashboard's name."""
        return f"petl-bench: {self.study or 'comparison of methods'}"


@dataclass(frozen=True)
class PanelPlan:
    """One panel.

    Attributes:
        kind: `bars` of a method's mean with its spread, `scatter` (x, y), `curves`, `parallel` or `comparer`.
        keys: Results, or for curves history; those of `parallel` begin with settings.
        settings: Keys of the run's config.
        log: Whether the x axis is logarithmic.
    """

    title: str
    kind: str
    results: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    log: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """All that it shows."""
        return self.settings + self.results


@dataclass(frozen=True)
class SectionPlan:
    """Panels under one title, and what to read in them."""

    title: str
    text: str
    panels: tuple[PanelPlan, ...]


SECTIONS = (
    SectionPlan(
        "Score by method",
        "Primary metric on the report split, mean over runs; the spread is between seeds (and tasks, unless filtered).",
        (PanelPlan("score", "bars", (SCORE,)), PanelPlan("score on the selection split", "bars", (SELECTION_SCORE,))),
    ),
    SectionPlan(
        "Score against trainable parameters",
        "Up and to the left is better. The parameters of the head are counted with them.",
        (PanelPlan("score against trainable parameters", "scatter", (TRAINABLE, SCORE), log=True),),
    ),
    SectionPlan(
        "Score against estimated memory",
        "Peak memory of one update, estimated before training; comparable between machines.",
        (
            PanelPlan("score against peak memory of one update", "scatter", (ESTIMATED_PEAK, SCORE)),
            PanelPlan("peak memory of one update", "bars", (ESTIMATED_PEAK,)),
        ),
    ),
    SectionPlan(
        "Training speed",
        "Comparable between runs on one machine only.",
        (
            PanelPlan("rows trained on a second", "bars", (TRAIN_SPEED,)),
            PanelPlan("seconds of training", "bars", (TRAIN_SECONDS,)),
            PanelPlan("inference, rows a second", "bars", (INFERENCE_SPEED,)),
        ),
    ),
    SectionPlan(
        "Learning curves",
        "By number of updates.",
        (
            PanelPlan("training loss", "curves", (TRAIN_LOSS,)),
            PanelPlan("selection score", "curves", (SELECTION_SCORE,)),
        ),
    ),
    SectionPlan(
        "Settings and outcomes",
        "One line a run.",
        (
            PanelPlan(
                "learning rate, parameters, memory, speed, score",
                "parallel",
                (TRAINABLE, ESTIMATED_PEAK, TRAIN_SPEED, SCORE),
                (LEARNING_RATE,),
            ),
        ),
    ),
    SectionPlan("Run comparer", "Settings and results in which runs differ.", (PanelPlan("runs", "comparer"),)),
)
