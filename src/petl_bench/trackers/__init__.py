"""Trackers mirror a run's record to TensorBoard or Weights & Biases; a file records where each one was mirrored."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Protocol

from filelock import BaseFileLock, FileLock

from petl_bench.errors import RequestError, RunError
from petl_bench.records.reading import content_hash, validate
from petl_bench.records.run_key import RunIdentity
from petl_bench.records.schema import HistoryEntry, RunProtocol
from petl_bench.records.store import read_json, write_json
from petl_bench.records.study_file import read_study
from petl_bench.settings import MISSING, setting

_log = logging.getLogger(__name__)

TRACKERS = ("none", "wandb", "tensorboard")


@dataclass
class TrackerConfig:
    """Where a run is mirrored; never the source of a number."""

    name: str = MISSING
    project: str = setting("petl_bench", "The project of Weights & Biases; WANDB_PROJECT wins over it.")


# One key for every task: the primary metric, on the report split and on the selection split.
SCORE = "score"

SELECTION_SCORE = "selection_score"

# Parts of the record whose numbers are not sent to Weights & Biases, because they are not results. TensorBoard gets
# only the numbers of a few parts, because each number is a chart there.
_NOT_RESULTS = ("config", "history", "versions", "hardware", "git", "error")
_CHARTED_PARTS = ("params", "scores", "time", "memory", "flops", "inference")


def history_point(entry: HistoryEntry, protocol: RunProtocol) -> dict[str, float]:
    """Returns one evaluation by the names of a tracker's curves, without values that were not finite."""
    scores = {f"{protocol.selection_split}/{name}": value for name, value in entry.scores.items()}
    point: dict[str, float | None] = {"epoch": entry.epoch, "train/loss": entry.train_loss, **scores}
    point[SELECTION_SCORE] = entry.scores.get(protocol.metric)
    return {name: value for name, value in point.items() if value is not None}


def results(record: Mapping[str, Any]) -> dict[str, float]:
    """The record's numbers by path (`memory/estimate/peak_bytes`), and its two scores by one name for every task."""
    return headline_scores(record) | flat_numbers(
        {name: item for name, item in record.items() if name not in _NOT_RESULTS}
    )


def headline_scores(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the primary metric of the weights that the protocol selects; empty if the run did not get that far."""
    protocol, scores = record.get("protocol"), record.get("scores")
    if not protocol or not scores:
        return {}
    protocol = validate(RunProtocol, protocol)
    by_evaluation = [entry["scores"].get(protocol.metric) for entry in record.get("history", [])]
    known = [score for score in by_evaluation if score is not None]
    headline = {SCORE: scores["best" if protocol.selection == "best" else "last"].get(protocol.metric)}
    if known:
        headline[SELECTION_SCORE] = protocol.selected(known)
    return {name: score for name, score in headline.items() if score is not None}


def flat_numbers(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested mappings, by path: `memory/device/alloc_retries`."""
    numbers: dict[str, float] = {}
    for name, value in content.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            numbers |= flat_numbers(value, f"{path}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[path] = value
    return numbers


class Tracker(Protocol):
    """Mirrors a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point of the history at this number of updates."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mirrors the record and closes the run, however it ended."""


class NoTracker:
    """Mirrors nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def finish(self, record: Mapping[str, Any]) -> None:
        """Does nothing."""


MARKER_FILE = "synced.json"

MARKER_VERSION = 1


@dataclass(frozen=True)
class Mirror:
    """One finished record in one place.

    Attributes:
        tracker: `wandb` or `tensorboard`.
        project, entity, run_id, mode: W&B's, as W&B resolved them; mode is `online` or `offline`.
        record: Hash of the record that was mirrored.
        files: W&B's offline folder, relative to the run's folder if it is inside that; None online.
    """

    tracker: str
    record: str
    project: str | None = None
    entity: str | None = None
    run_id: str | None = None
    mode: str | None = None
    files: str | None = None

    def same_place(self, other: Mirror) -> bool:
        """Whether both are in the same place, so that the later one replaced the earlier one."""
        return (self.tracker, self.project, self.entity) == (other.tracker, other.project, other.entity)


def marker_lock(folder: Path) -> BaseFileLock:
    """Keeps other processes from mirroring this run; the process that holds it may take it again."""
    return FileLock(folder / f"{MARKER_FILE}.lock", is_singleton=True)


def record_hash(content: Mapping[str, Any]) -> str:
    """Returns the hash of a record's content, the same in memory and as read from its file."""
    return content_hash(json.loads(json.dumps(content)))[:16]


def read_mirrors(folder: Path) -> list[Mirror]:
    """Returns where this run was mirrored; empty if the file is missing or is not one of ours."""
    try:
        content = read_json(folder / MARKER_FILE)
        return [validate(Mirror, item) for item in content["mirrors"]]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return []


def mark(folder: Path, mirror: Mirror) -> None:
    """Records by an atomic rename that the run was mirrored; call it only when nothing is left to send."""
    with marker_lock(folder):
        mirrors = [*(other for other in read_mirrors(folder) if not mirror.same_place(other)), mirror]
        content = {"version": MARKER_VERSION, "mirrors": [dataclasses.asdict(item) for item in mirrors]}
        write_json(folder / MARKER_FILE, content)


class TensorBoardTracker:
    """Scalars by number of updates, the config as text, the record's results at the end.

    Args:
        run: The run's identity.
        live: Whether the run is being made now; if not, its event files are replaced.
    """

    def __init__(self, run: RunIdentity, *, live: bool = True) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RequestError(
                "tracker=tensorboard needs TensorBoard: `pip install 'petl-bench[tensorboard]'`."
            ) from error
        self._folder = run.folder
        events = run.folder / "tensorboard"
        if not live:
            shutil.rmtree(events, ignore_errors=True)
        self._writer = SummaryWriter(log_dir=str(events))
        self._writer.add_text("config", f"```json\n{json.dumps(run.config, indent=2)}\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point of the history."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Adds the record's results, closes the files, and marks a finished run as mirrored."""
        numbers = headline_scores(record) | flat_numbers({name: record.get(name) or {} for name in _CHARTED_PARTS})
        for name, value in numbers.items():
            self._writer.add_scalar(f"record/{name}", value)
        self._writer.close()
        if record.get("status") == "finished":
            mark(self._folder, Mirror(tracker="tensorboard", record=record_hash(record)))


# W&B refuses longer tags.
_TAG_LENGTH = 64


class WandbTracker:
    """One W&B run; its id is the run key, and its group contains the runs that differ only in the seed.

    W&B's usual environment variables make it online, offline or disabled.

    Args:
        project: The W&B project; a W&B sweep has its own.
        run: The run's identity.
        live: Whether the run is being made now. If not, this machine is not measured, and the run's offline files are
            replaced, because W&B cannot continue them.
    """

    def __init__(self, project: str, run: RunIdentity, *, live: bool = True) -> None:
        import wandb

        root = Path(os.environ.get("WANDB_DIR") or run.folder)
        if not live:
            _remove_offline_files(root, run, project)
        study = read_study(run.folder.parent)
        tags = [*([study.name] if study else []), run.config["task"]["name"]]
        self._folder = run.folder
        try:
            self._run = wandb.init(
                project=project,
                # Read again for every run of a process.
                mode=os.environ.get("WANDB_MODE") or None,  # type: ignore[arg-type]
                id=run.key,
                name=run.name,
                group=run.group,
                job_type=run.job_type,
                tags=[tag[:_TAG_LENGTH] for tag in tags],
                config=run.config | ({"study": study.name} if study else {}),
                dir=str(root),
                resume="allow",
                reinit="finish_previous",
                settings=_wandb_settings(live=live),
            )
        except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise RunError(
                f"Weights & Biases could not be reached ({error}): log in with `wandb login`, or set "
                "WANDB_MODE=offline, or use tracker=none."
            ) from error
        _log.info("Weights & Biases: %s", self._run.dir if self._run.offline else self._run.url)
        # The axis of every chart: W&B's own step may count otherwise.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point of the history."""
        # W&B drops points whose step it has passed, so a run that is sent again has no duplicate points.
        self._run.log({"step": step, **values}, step=step)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Writes the record's results into the summary, closes the run, and marks a finished one as mirrored."""
        import wandb

        done = record.get("status") == "finished"
        self._run.summary.update({"status": record.get("status"), **results(record)})
        mirror = Mirror(
            tracker="wandb",
            record=record_hash(record),
            project=self._run.project,
            entity=self._run.entity or None,
            run_id=self._run.id,
            mode="offline" if self._run.offline else "online",
            files=_seen_from(self._folder, Path(self._run.dir).parent) if self._run.offline else None,
        )
        disabled = self._run.disabled
        self._run.finish(exit_code=0 if done else 1)
        if done and not disabled:
            if mirror.mode == "offline":
                # `finish` returns before the file is written; this waits for W&B's process, which writes it.
                wandb.teardown()
            mark(self._folder, mirror)


def _remove_offline_files(root: Path, run: RunIdentity, project: str) -> None:
    """Removes this run's files from a killed `sync` or an older record; files of other projects are kept."""
    others = [mirror for mirror in read_mirrors(run.folder) if mirror.project != project]
    protected = {(run.folder / mirror.files).resolve() for mirror in others if mirror.files}
    for files in root.glob(f"wandb/offline-run-*-{escape(run.key)}"):
        if files.resolve() not in protected:
            shutil.rmtree(files)


def _seen_from(folder: Path, files: Path) -> str:
    files, folder = files.resolve(), folder.resolve()
    return str(files.relative_to(folder) if files.is_relative_to(folder) else files)


def _wandb_settings(*, live: bool) -> Any:
    import wandb

    return wandb.Settings(
        # W&B prints to stdout, which is reserved for our results.
        silent=True,
        # The record says what a run was made with. W&B would add the remote of the git repository in the working
        # directory, the command line, the user, the machine's name, paths, and what the terminal shows.
        console="off", disable_git=True, disable_code=True, x_disable_meta=True, host="-", username="-", program="-",
        x_disable_stats=not live,
    )  # fmt: skip


def open_tracker(settings: TrackerConfig, run: RunIdentity, *, live: bool = True) -> Tracker:
    """Opens the configured tracker.

    Args:
        settings: The tracker and its project; for a live run, W&B's variable for the project takes precedence.
        run: The run's identity.
        live: Whether the run is being made now, or mirrored afterwards.

    Returns:
        The tracker, which takes points and the finished record.

    Raises:
        RequestError: If its package is missing.
        RunError: If its service cannot be reached.
    """
    if settings.name == "wandb":
        project = os.environ.get("WANDB_PROJECT") if live else None
        return WandbTracker(project or settings.project, run, live=live)
    if settings.name == "tensorboard":
        return TensorBoardTracker(run, live=live)
    return NoTracker()
