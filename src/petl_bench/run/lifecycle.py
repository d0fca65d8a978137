"""The life of a run from its name to its end, and how a finished one is opened again.

Its key and folder; how it ended: finished, failed, out of memory, diverged or interrupted; what a finished run has.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.backbones.source import model_files
from petl_bench.config import RunConfig, config_from_dict, resolved, run_settings
from petl_bench.errors import (
    DivergedError,
    Interrupted,
    OutOfMemoryError,
    RequestError,
    RunError,
    explained_refusal,
    first_line,
    system_error,
)
from petl_bench.process import (
    file_sha256,
    in_process_group,
    is_main_process,
    raise_interrupted,
    user_path,
    without_home,
)
from petl_bench.records.run_key import RunIdentity, backbone_name, identity_of, run_key, run_name
from petl_bench.records.schema import Record
from petl_bench.records.store import (
    ADAPTER_CONFIG,
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS,
    DETECTOR_FILE,
    MODEL_FOLDER,
    RunFolder,
    find_adapter,
)
from petl_bench.run.variability import resolved_layers
from petl_bench.tasks.load import find_labels
from petl_bench.tasks.ood import ood_files
from petl_bench.tasks.table_files import parquet_files, split_files
from petl_bench.trackers import NoTracker, Tracker

# The limit of file systems, less the endings of files that are being written.
_LONGEST_FOLDER = 220

if TYPE_CHECKING:
    from torch import nn

# The last is that of cuBLAS and cuDNN.
_MEMORY_MESSAGES = ("out of memory", "allocate memory", "not enough memory", "status_alloc_failed")

_ELSEWHERE = "set runs_dir=DIR (and PETL_BENCH_CACHE) to another disk, then repeat the command; finished runs are kept"

_LOGGER = logging.getLogger("petl_bench")
_log = logging.getLogger(__name__)


def identify(cfg: RunConfig) -> RunIdentity:
    """Names a run by its settings and by the content of the local files that it reads.

    Args:
        cfg: The whole config. Where a result does not depend on a setting, neither does the key.

    Returns:
        Key, name, tracker group and folder of the run, and its resolved config.
    """
    config = resolved(cfg).to_dict()
    # For the adapter to start from, the content matters, not the path.
    start = {} if cfg.method.start is None else {"init": "adapter"}
    key = run_key(config | {"method": config["method"] | start}, _content_hashes(cfg))
    if (length := len(os.fsencode(run_name(config, key)))) > _LONGEST_FOLDER:
        raise RequestError(
            f"task.name={cfg.task.name}, the method and the backbone {backbone_name(config['backbone'])} give a name "
            f"of {length} bytes, too long for a folder ({_LONGEST_FOLDER}): shorten task.name, or rename the folder of "
            "the backbone."
        )
    # Settings that name places on this machine.
    for path in ("runs_dir", *(setting.name for setting in run_settings() if setting.is_path)):
        group, _, name = path.rpartition(".")
        settings = config[group] if group else config
        if settings.get(name):
            settings[name] = without_home(settings[name])
    return identity_of(config, key, Path(cfg.runs_dir).expanduser() / run_name(config, key))


def local_files(cfg: RunConfig) -> dict[str, Path]:
    """Finds the local files whose content belongs to the run: rows, `backbone.path`, and `method.init`.

    Args:
        cfg: The whole config.

    Returns:
        Paths by the file's part in the run, such as `train` or `mnli/train.parquet`. Files may be missing.
    """
    task = cfg.task
    files: dict[str, Path] = {}
    in_folder = task.source == "folder" and cfg.data_root is not None
    if task.source == "files" or in_folder:
        files_by_role = {"train": task.train_file, "validation": task.validation_file, "test": task.test_file}
        for role, file in files_by_role.items():
            if file:
                path = user_path(f"{cfg.data_root}/{file}" if in_folder else file, f"task.{role}_file")
                files |= {f"{role}/{part.name}": part for part in parquet_files(path)} or {role: path}
    if task.source == "hub" and cfg.data_root is not None:
        splits = [task.train_split, task.validation_split, *([task.test_split] if task.protocol == "test" else [])]
        pairs = [(task.subset, split) for split in splits if split is not None]
        pairs += [(extra.subset, extra.split) for extra in task.also_report.values()]
        root = user_path(cfg.data_root, "data_root")
        files |= {
            file.name if subset is None else f"{subset}/{file.name}": file
            for subset, split in pairs
            for file in split_files(root, subset, split)
        }
    files |= {f"ood/{file.name}": file for file in ood_files(task, cfg.data_root)}
    if cfg.backbone.path is not None:
        folder = user_path(cfg.backbone.path, "backbone.path")
        files |= model_files(folder)
    if cfg.method.start is not None:
        folder = find_adapter(cfg.method.start)
        files |= {f"init/{name}": folder / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    return files


def _content_hashes(cfg: RunConfig) -> dict[str, str]:
    """Hashes the local files; one that is missing or cannot be read is an error only when its rows are wanted."""
    hashes = {}
    for name, file in sorted(local_files(cfg).items()):
        with suppress(OSError):
            if file.is_file():
                hashes[name] = file_sha256(file)
    return hashes


class Ending(Protocol):
    """The part of a record that says how something ended."""

    status: str
    error: str | None
    ended_at: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""


R = TypeVar("R", bound=Ending)


class RunLifecycle(Generic[R]):
    """A context in which a run happens. Leaving it writes the record, then finishes the tracker.

    If there are several processes, only the first one writes. A request that cannot work leaves no record.

    Attributes:
        record: Filled in by the run.
        folder: Where it is kept.
        tracker: Set by the run once there is something to mirror.
        is_main: Whether this is the process that writes.
    """

    def __init__(self, record: R, folder: RunFolder) -> None:
        self.record, self.folder = record, folder
        self.tracker: Tracker = NoTracker()
        self.is_main = is_main_process()
        self._handler: logging.Handler | None = None
        self._previous_signal: Any = None
        self._previous_level = logging.NOTSET

    def __enter__(self) -> Self:
        # A cluster's engine has its own handlers, which requeue the job.
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, raise_interrupted):
            self._previous_signal = signal.signal(signal.SIGTERM, raise_interrupted)
        if self.is_main:
            try:
                self._open_log()
                self.folder.remove_partial()
            except OSError as error:
                self._remove_empty_folder()
                raise self._explain(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failure, writes = None if error is None else self._explain(error), self.is_main
        if failure is not None and in_process_group():
            # Imported here, as it imports torch, which naming a run does not need.
            from petl_bench.training.device import first_failure, others_may_hang, wait_for_group

            own, failure = failure, first_failure(failure, self.folder.path.name)
            writes |= failure is own and others_may_hang()
        try:
            if failure is not None and failure is not error:
                _log.debug("the run failed", exc_info=error)
            if writes:
                self._write(failure)
            if isinstance(failure, DivergedError) and in_process_group():
                # All processes of a group diverge at once, and its launcher ends them all when the first of them ends.
                wait_for_group()
        finally:
            self._close()
        if failure is not None and failure is not error:
            raise failure from error

    def _write(self, failure: BaseException | None) -> None:
        self.record.status = status_of(failure)
        self.record.error = None if failure is None else without_home(str(failure))
        self.record.ended_at = datetime.now(UTC).isoformat(timespec="seconds")
        if isinstance(failure, RequestError):
            self._remove_empty_folder()
        else:
            try:
                with _signals_ignored():
                    self.folder.write(self.record)  # type: ignore[arg-type]  # its own kind of record
                    if self.record.status in ("finished", "diverged"):
                        # A training that diverged would diverge again from its checkpoint.
                        self.folder.remove_checkpoints()
            except OSError as error:
                raise self._explain(error) from error
        try:
            self.tracker.finish(self.record.to_dict())
        except Exception as error:
            _log.warning("the tracker could not be finished; the record is complete without it (%s)", error)

    def _open_log(self) -> None:
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self._handler = logging.FileHandler(self.folder.log, encoding="utf-8")
        self._handler.setFormatter(_LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._handler.setLevel(logging.DEBUG)
        self._previous_level = _LOGGER.level
        _LOGGER.setLevel(logging.DEBUG)
        _LOGGER.addHandler(self._handler)

    def _close(self) -> None:
        if self._handler is not None:
            _LOGGER.removeHandler(self._handler)
            _LOGGER.setLevel(self._previous_level)
            with suppress(OSError):  # a full disk cannot take even the log's last lines
                self._handler.close()
        if self._previous_signal is not None:
            signal.signal(signal.SIGTERM, self._previous_signal)

    def _remove_empty_folder(self) -> None:
        """Deletes a folder that contains only the log of a request that could not work."""
        with suppress(OSError):
            if self._handler is not None:
                self._handler.close()
            if set(self.folder.path.iterdir()) <= {self.folder.log}:
                self.folder.log.unlink(missing_ok=True)
                self.folder.path.rmdir()

    def _explain(self, error: BaseException) -> BaseException:
        """Returns the error with a message that a user can act on; the traceback goes to the log."""
        if isinstance(error, RequestError | RunError | Interrupted):
            return error
        if isinstance(error, KeyboardInterrupt):
            return Interrupted(signal.SIGINT)
        refused = system_error(error)
        sentence = None if refused is None else explained_refusal(refused, self.folder.path, _ELSEWHERE)
        if sentence is not None:
            return RunError(sentence)
        if isinstance(error, MemoryError) or any(message in str(error).lower() for message in _MEMORY_MESSAGES):
            return OutOfMemoryError(
                "Out of memory: raise train.accumulation (same updates, smaller passes), lower "
                "train.batch_size or train.eval_batch_size, or shorten task.max_length."
            )
        if isinstance(error, Exception):
            return RunError(f"The run failed: {type(error).__name__}: {first_line(error)} (details: {self.folder.log})")
        return error


class _LogFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_home(super().format(record))


def status_of(failure: BaseException | None) -> str:
    """Returns the record's status for the error that ended the run, or for None."""
    if isinstance(failure, RunError):
        return failure.status
    return "finished" if failure is None else "failed" if isinstance(failure, Exception) else "interrupted"


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Ignores signals, so that a second Ctrl-C does not lose the record of the first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, and the backbone that its weights belong to.

    Attributes:
        labels: Names of the classes or tags in the order of the model's outputs; None for regression.
    """

    folder: RunFolder
    record: Record
    config: RunConfig
    backbone: Backbone
    labels: list[str] | None

    def load_model(self) -> nn.Module:
        """The trained model, in evaluation mode.

        Raises:
            RequestError: If the run kept no weights.
            RunError: If they cannot be read.
        """
        from accelerate.utils import set_seed

        from petl_bench.model import load_trained

        # A backbone with random weights equals the trained one only with the same seed.
        set_seed(self.config.train.seed)
        return load_trained(self.folder, self.backbone, self.labels)


def open_finished(run_dir: str | Path, base: str | None = None, *, any_base: bool = False) -> FinishedRun:
    """Opens a finished run whose weights, if it kept any, are those that it wrote.

    Args:
        run_dir: The run's folder.
        base: The folder of the pretrained backbone, if it has moved since the run; None: where it was.
        any_base: Whether to accept a backbone other than the one that the run was trained on.

    Returns:
        The run's record and settings, and its backbone, whose weights are not loaded yet.

    Raises:
        RequestError: If there is no finished run, or the backbone is missing or another one.
    """
    folder = RunFolder(Path(run_dir))
    try:
        record = folder.read_whole()
        if record is None or record.status != "finished":
            raise RequestError(
                f"{folder.path} holds no finished run (result.json): name the folder that `petl-bench run` printed."
            )
        for part in (ADAPTER_FOLDER, MODEL_FOLDER, DETECTOR_FILE):
            if (folder.path / part).exists():
                folder.check_stored(record, part)
    except ValueError as error:
        raise RequestError(f"{error}.") from error
    config: RunConfig = config_from_dict(record.config)
    labels = find_labels(config.task) if record.ood is None else record.ood.classes
    backbone = _backbone_of(folder.path, record, config, base)
    _check_base(record, backbone, folder.path, any_base=any_base)
    return FinishedRun(folder, record, config, backbone, labels)


def _backbone_of(folder: Path, record: Record, config: RunConfig, base: str | None) -> Backbone:
    layers, settings = resolved_layers(config.layers, record.layers), config.backbone
    if (folder / MODEL_FOLDER).is_dir():
        # The run kept the whole model and its tokenizer, so it needs no other.
        settings = replace(settings, path=str(folder / MODEL_FOLDER), weights="pretrained")
        return open_backbone(settings, layers, task_type=config.task.type)
    try:
        return open_backbone(replace(settings, path=base or settings.path), layers, task_type=config.task.type)
    except RequestError as error:
        if settings.path is None and base is None:
            raise
        raise RequestError(f"{error} If the backbone of {folder} has moved, give its folder with --base.") from error


def _check_base(record: Record, backbone: Backbone, folder: Path, *, any_base: bool) -> None:
    """Refuses or logs a backbone whose files differ from those of the run; older records lack their hashes."""
    then, now = record.base_files, backbone.file_hashes()
    if (folder / MODEL_FOLDER).is_dir() or then is None or now is None or then == now:
        return
    changed = ", ".join(sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name)))
    assert backbone.source
    message = f"The backbone in {backbone.source.folder} differs from the one that {folder} was trained on ({changed})"
    if not any_base:
        raise RequestError(f"{message}: give the folder of that one with --base, or use this one with --any-base.")
    _log.warning("%s, and is used all the same.", message)
