"""This process: its rank, whether a GPU may be there, how it writes files, where its messages go, plugins it loads."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any

from petl_bench.errors import Interrupted, RequestError, first_line, system_error

GROUP_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

DEBUG_VARIABLE = "PETL_BENCH_DEBUG"

# The user's folder of options, as `--config-dir` gives it; workers of a study inherit it.
CONFIG_VARIABLE = "PETL_BENCH_CONF"

_log = logging.getLogger(__name__)


def in_process_group() -> bool:
    """Whether torchrun, or a launcher that sets what torchrun sets, started this process as one of a group.

    Slurm, MPI and others also set some of these variables for processes that make independent runs.
    """
    return all(os.environ.get(name) for name in GROUP_VARIABLES)


def is_main_process() -> bool:
    """Whether this process prints and writes: it is the only one, or the first of its group."""
    return not in_process_group() or os.environ["RANK"] == "0"


def gpu_may_be_there() -> bool:
    """False if the system has no GPU driver. This is found out without importing torch."""
    if sys.platform != "linux":
        return True
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg"))


def raise_interrupted(signum: int, _frame: FrameType | None) -> None:
    """A signal handler that interrupts the current work as Ctrl-C would."""
    raise Interrupted(signum)


@contextmanager
def ends_after(seconds: float | None) -> Iterator[None]:
    """A context that is interrupted when the time is over, as by Ctrl-C, and left without an error; None: never."""
    if seconds is None:
        yield
        return
    previous = signal.signal(signal.SIGALRM, raise_interrupted)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Interrupted as error:
        if error.signum != signal.SIGALRM:
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def process_seconds() -> float:
    """How long ago this process began."""
    import psutil

    return max(0.0, time.time() - psutil.Process().create_time())


def cache_dir() -> Path:
    """The cache folder: PETL_BENCH_CACHE, else `petl_bench` in XDG_CACHE_HOME or in ~/.cache."""
    root = os.environ.get("PETL_BENCH_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "petl_bench"
    return user_path(root, "PETL_BENCH_CACHE")


def user_path(path: str | Path, key: str) -> Path:
    """A path that a user gave, `~` replaced by the home folder.

    Raises:
        RequestError: If there is no home folder, as for a container's user without a name; it names the key.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{key}={path}: the home folder is unknown: set HOME, or give another path.") from error


def check_folder(folder: Path, key: str) -> None:
    """Raises RequestError if the folder that a setting names does not exist."""
    if not folder.is_dir():
        raise RequestError(f"{key}={folder}: there is no such folder. Give one that exists.")


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yields a path to write to, which replaces `file` once its content is on the disk.

    The folder is created. After an error, or a crash of the machine, `file` is unchanged.

    Raises:
        OSError: If the system refuses to write, even if a library raises its own error for it; it names the file.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("r+b") as stream:
            os.fsync(stream.fileno())
        partial.replace(file)
    except Exception as error:
        refused = system_error(error)
        if refused is None or refused.errno is None:
            raise
        named = refused.filename not in (None, str(partial))
        raise OSError(refused.errno, refused.strerror, refused.filename if named else str(file)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


# A file that is written twice within the resolution of the system's clock looks unchanged.
_CLOCK_SECONDS = 1.0


def file_sha256(file: Path) -> str:
    """Hex sha256 of a file's content; the file is read again only if it has changed.

    Users and tools can set the modification time to any value, but not the time of the inode's last change.
    """
    status = file.stat()
    if time.time() - status.st_ctime < _CLOCK_SECONDS:
        return _digest(file)
    return _kept_digest(file, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@lru_cache(maxsize=256)
def _kept_digest(file: Path, _version: tuple[int, ...]) -> str:
    return _digest(file)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def without_home(text: str) -> str:
    """The text with the user's home folder replaced by `~` in every path inside it, as records store it."""
    home = ""
    with suppress(RuntimeError):
        home = str(Path("~").expanduser())
    return re.sub(rf"(?<![\w./\\~-]){re.escape(home)}(?=[/\\])", "~", text) if len(home) > 1 else text


_LONGEST_NAME = 100


def name_fault(name: str) -> str:
    """What is wrong with the name of a file or folder that is created or read inside another; empty if valid."""
    is_plain = name == name.strip() and name.isprintable() and not name.startswith(".") and not {"/", "\\"} & set(name)
    if is_plain and 0 < len(name) <= _LONGEST_NAME:
        return ""
    return f"={name!r} must be a name: 1 to {_LONGEST_NAME} printable characters, no slash, no dot at the beginning"


def check_name(key: str, name: str) -> None:
    """Raises RequestError, naming the key, if this is not a valid name of a file or folder inside another."""
    if fault := name_fault(name):
        raise RequestError(f"{key}{fault}.")


def check_hub_name(key: str, name: str) -> None:
    """Raises RequestError, naming the key, if the hub can have nothing of this name, such as the path of a folder."""
    if name.count("/") > 1 or any(map(name_fault, name.split("/"))):
        raise RequestError(f"{key}={name!r} must be a name of the hub, as in {key}=OWNER/NAME.")


def load_plugins(group: str, kind: str, add: Callable[[Any], object]) -> dict[str, str]:
    """Loads plugins of other packages; those that fail are reported and left out, and everything else goes on.

    Args:
        group: The group of entry points.
        kind: What each is, in a word.
        add: Takes what was loaded, or raises an error that says what is wrong with it.

    Returns:
        What is wrong with each that is left out, by the name of its entry point.
    """
    broken = {}
    for entry in entry_points(group=group):
        try:
            add(entry.load())
        except (Exception, SystemExit) as error:
            broken[entry.name] = f"The plugin {kind} {entry.name!r} ({entry.value}) cannot be used: {first_line(error)}"
            _log.warning("%s; it is left out: fix or uninstall it", broken[entry.name])
    return broken


def debugging() -> bool:
    """Whether tracebacks and the libraries' warnings are wanted."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def print_error(error: Exception) -> None:
    """Prints an error to stderr, as the one sentence that a user reads."""
    # A closed or full stderr must not hide the exit code.
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"petl-bench: {error}", file=sys.stderr)  # noqa: T201


def setup_logging() -> None:
    """Sends our log messages to stderr and silences those of the libraries."""
    logger = logging.getLogger("petl_bench")
    if not logger.handlers:
        handler = _ProgressBarHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.setLevel(logging.INFO if is_main_process() else logging.WARNING)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    # A log that cannot be written (because the disk is full) must not bury the message under a traceback.
    logging.raiseExceptions = debugging()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not debugging():
        import warnings

        warnings.filterwarnings("ignore", module=r"(peft|transformers|accelerate|torch|datasets|evaluate)(\.|$)")


class _ProgressBarHandler(logging.Handler):
    """Writes messages to stderr above any progress bar, so that neither breaks the other."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        # A closed or full stderr must not end a run. Without stderr, tqdm would write to standard output.
        if sys.stderr is not None:
            with suppress(OSError):
                tqdm.write(self.format(record), file=sys.stderr)
