"""What a dashboard shows, whatever draws it, and `petl-bench dashboard`, which prints and saves it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_bench.errors import RequestError, RunError, first_line
from petl_bench.records.study_file import read_study
from petl_bench.reports.fields import FIELDS
from petl_bench.trackers import SCORE, SELECTION_SCORE, TrackerConfig

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

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
        results: Keys of results, or for `curves` of the history.
        settings: Keys of the run's config; `parallel` shows them first.
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


def show_dashboard(
    study: str | None,
    project: str | None,
    entity: str | None,
    *,
    save: bool,
    as_json: bool,
    write: Callable[[str], None],
) -> None:
    """Builds the workspace and the report, and prints them or where they were saved.

    Args:
        study: A study's folder or name; None: every run of the project.
        project: W&B's; None: `WANDB_PROJECT`, else ours.
        entity: W&B's; None: `WANDB_ENTITY`, else the login's.
        save: Whether to write them to W&B.
        as_json: Whether to print them as W&B stores them.
        write: Prints text.

    Raises:
        RequestError: If the folder holds no study, or the package is missing.
        RunError: If W&B cannot be reached.
    """
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise RequestError("dashboard needs wandb-workspaces: `pip install 'petl-bench[dashboard]'`.") from error

    place = Place(
        entity=entity or os.environ.get("WANDB_ENTITY") or (_default_entity() if save else ""),
        project=project or os.environ.get("WANDB_PROJECT") or TrackerConfig.project,
        study=study_name(study),
    )
    workspace, report = build_workspace(place), build_report(place)
    urls = {}
    if save:
        urls = {"workspace": _saved(workspace), "report": _saved(report)}
    if as_json:
        specs = {"workspace": spec_of(workspace), "report": spec_of(report)}
        write(json.dumps(specs | ({"urls": urls} if urls else {}), indent=2))
        return
    write(describe(place))
    for name, url in urls.items():
        write(f"{name}: {url}")


def study_name(study: str | None) -> str | None:
    """The name of a study that is given by its folder or by its name.

    Raises:
        RequestError: If the folder holds no study.
    """
    if study is None or not (Path(study).is_dir() or os.sep in study):
        return study
    study_file = read_study(Path(study))
    if study_file is None:
        raise RequestError(f"{study} holds no study.json: give a study's folder or name, or leave it out for all runs.")
    return study_file.name


def spec_of(built: object) -> dict[str, object]:
    """Returns a workspace or report as W&B stores it; fails for anything that cannot be stored."""
    model = built._to_model()  # type: ignore[attr-defined]  # there is no other way to it
    spec: dict[str, object] = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    return spec


def describe(place: Place) -> str:
    """Sections and panels with the keys that they show."""
    runs = f"the runs of study {place.study}" if place.study else "every run"
    lines = [f"workspace and report {place.title!r} over {runs} in project {place.project}"]
    for section in SECTIONS:
        lines.append(f"\n{section.title}")
        lines += [f"  {panel.title} ({panel.kind}): {', '.join(panel.keys) or 'all'}" for panel in section.panels]
    return "\n".join(lines)


def _default_entity() -> str:
    import wandb

    try:
        entity = wandb.Api().default_entity
    except Exception as error:  # no login, no network: W&B raises whatever its client does
        raise _unreachable(error) from error
    if not entity:
        raise RunError("W&B has no default entity for this login: give --entity NAME.")
    return str(entity)


def _saved(built: object) -> str:
    try:
        return str(built.save().url)  # type: ignore[attr-defined]
    except Exception as error:
        raise _unreachable(error) from error


def _unreachable(error: Exception) -> RunError:
    return RunError(
        f"The dashboard could not be saved to Weights & Biases ({first_line(error)}): log in with `wandb login`, "
        "and name a project that holds runs with --project; without --save nothing is sent."
    )


# The same in the form that Weights & Biases stores. Its package is an extra.

# A panel's width and height in the grid, which has 24 columns.
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 24

_TITLE_LENGTH = 128


def build_panels(section: SectionPlan) -> list[Any]:
    """The panels of a section, side by side; a single one takes the whole width."""
    import wandb_workspaces.reports.v2 as wr

    width = _COLUMNS if len(section.panels) == 1 else _COLUMNS // max(len(section.panels), _COLUMNS // _WIDTH - 1)
    return [
        _panel(plan, wr.Layout(x=place * width, y=0, w=width, h=_HEIGHT)) for place, plan in enumerate(section.panels)
    ]


def _panel(plan: PanelPlan, layout: wr.Layout) -> Any:
    import wandb_workspaces.reports.v2 as wr

    by_method: dict[str, Any] = {
        "groupby": wr.Metric(METHOD), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"
    }  # fmt: skip
    if plan.kind == "bars":
        return wr.BarPlot(title=plan.title, metrics=list(plan.results), layout=layout, **by_method)
    if plan.kind == "scatter":
        x, y = plan.results
        return wr.ScatterPlot(
            title=plan.title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y), log_x=plan.log, layout=layout
        )
    if plan.kind == "curves":
        return wr.LinePlot(title=plan.title, x=STEP, y=list(plan.results), layout=layout, **by_method)
    if plan.kind == "parallel":
        shown: list[Any] = [*map(wr.Config, plan.settings), *map(wr.SummaryMetric, plan.results)]
        return wr.ParallelCoordinatesPlot(
            title=plan.title, columns=[wr.ParallelCoordinatesPlotColumn(metric) for metric in shown], layout=layout
        )
    assert plan.kind == "comparer"
    return wr.RunComparer(diff_only=True, layout=layout)


def build_workspace(place: Place) -> ws.Workspace:
    """The workspace; nothing is sent before it is saved."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=place.entity,
        project=place.project,
        name=place.title,
        sections=[ws.Section(name=section.title, panels=build_panels(section), is_open=True) for section in SECTIONS],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Config("study") == place.study] if place.study else [],
            groupby=[ws.Metric(METHOD)],
            pinned_columns=[f"summary:{key}" for key in (SCORE, TRAINABLE, ESTIMATED_PEAK)],
        ),
    )


def build_report(place: Place) -> wr.Report:
    """The report; nothing is sent before it is saved."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = []
    for section in SECTIONS:
        grid = wr.PanelGrid(runsets=[_runset(place)], panels=build_panels(section))
        blocks += [wr.H2(section.title), wr.P(section.text), grid]
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=place.title[:_TITLE_LENGTH],
        description="Parameter-efficient fine-tuning methods compared; made by `petl-bench dashboard`.",
        blocks=[wr.TableOfContents(), *blocks],
        width="fluid",
    )


def _runset(place: Place) -> wr.Runset:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    # Without entity and project, a run set uses the report's project; with them, W&B would be queried immediately.
    return wr.Runset(
        name=place.study or "all runs",
        filters=[expr.Config("study") == place.study] if place.study else [],
        groupby=[METHOD],
    )
