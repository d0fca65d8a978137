"""`petl-bench dashboard`: prints what the workspace and the report show, and saves both if asked to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from petl_bench.errors import RequestError, RunError, first_line
from petl_bench.records.study_file import read_study
from petl_bench.trackers.panels import SECTIONS, Place
from petl_bench.trackers.tracker import TrackerConfig


def show_dashboard(
    study: str | None,
    project: str | None,
    entity: str | None,
    *,
    save: bool,
    as_json: bool,
    write: Callable[[str], None],
) -> None:
    """Builds both, and prints them or where they were saved.

    Args:
        study: A study's folder or name; None: every run of the project.
        project: W&B's; None: `WANDB_PROJECT`, else ours.
        entity: W&B's; None: `WANDB_ENTITY`, else the login's.
        save: Whether to write them to W&B.
        as_json: Whether to print them as W&B keeps them.
        write: Takes the text.

    Raises:
        RequestError: If the folder holds no study, or the package is missing.
        RunError: If W&B cannot be reached.
    """
    try:
        from petl_bench.trackers.wandb_dashboard import build_report, build_workspace
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
    found = read_study(Path(study))
    if found is None:
        raise RequestError(f"{study} holds no study.json: give a study's folder or name, or leave it out for all runs.")
    return found.name


def spec_of(built: object) -> dict[str, object]:
    """A workspace or report as W&B keeps it; what cannot be kept fails here."""
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
