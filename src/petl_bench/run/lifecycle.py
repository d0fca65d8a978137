"""Records how a run ended: finished, failed, out of memory, diverged or interrupted."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

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
from petl_bench.process import is_main_process, raise_interrupted, without_home
from petl_bench.records.store import RunFolder
from petl_bench.trackers import NoTracker, Tracker
from petl_bench.training.device import wait_for_group

_MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")

_ELSEWHERE = "set runs_dir=DIR (and PETL_BENCH_CACHE) to another disk, then repeat the command; finished runs are kept"

_LOGGER = logging.getLogger("petl_bench")

_log = logging.getLogger(__name__)


class Ending(Protocol):
    """A record as far as it says how something ended."""

    status: str
    error: str | None
    ended_at: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""


R = TypeVar("R", bound=Ending)


class RunLifecycle(Generic[R]):
    """A context in which a run happens. Leaving it writes the record, then finishes the tracker.

    Of several processes only the first writes. A request that cannot work is no run: it leaves no record.

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
        # A cluster's engine has handlers of its own, which queue the job again.
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
        failure = None if error is None else self._explain(error)
        try:
            if failure is not None and failure is not error:
                _log.debug("the run failed", exc_info=error)
            if self.is_main:
                self._write(failure)
            if isinstance(failure, DivergedError):
                # All processes of a group diverge at once, and its launcher ends them all when the first of them ends.
                wait_for_group()
        finally:
            self._close()
        if failure is not None and failure is not error:
            raise failure from error

    def _write(self, failure: BaseException | None) -> None:
        self.record.status, self.record.error = (
            status_of(failure),
            None if failure is None else without_home(str(failure)),
        )
        self.record.ended_at = datetime.now(UTC).isoformat(timespec="seconds")
        if isinstance(failure, RequestError):
            self._remove_empty_folder()
        else:
            try:
                with _signals_ignored():
                    self.folder.write(self.record)  # type: ignore[arg-type]  # its own kind of record
                    if self.record.status in ("finished", "diverged"):
                        # From its checkpoint a training that diverged would diverge again.
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
            with suppress(OSError):  # a full disk takes not even the log's last lines
                self._handler.close()
        if self._previous_signal is not None:
            signal.signal(signal.SIGTERM, self._previous_signal)

    def _remove_empty_folder(self) -> None:
        """Deletes a folder that holds nothing but the log of a request that could not work."""
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
                "Memory did not suffice: raise train.accumulation (same updates, smaller passes), lower "
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
    if failure is None:
        return "finished"
    if isinstance(failure, RunError):
        return failure.status
    return "failed" if isinstance(failure, Exception) else "interrupted"


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
