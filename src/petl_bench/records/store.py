"""Run folders: the locations of a run's files, and how JSON files and records are written and read."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from petl_bench.errors import RequestError, RunError, explained_refusal
from petl_bench.process import atomic_write, file_sha256, user_path
from petl_bench.records.predictions import PREDICTIONS_FILE, Predictions, read_predictions, write_predictions
from petl_bench.records.reading import parse_json, read_text, with_hash
from petl_bench.records.schema import Record

_log = logging.getLogger(__name__)


def read_json(file: Path) -> Any:
    """Reads a JSON file.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is not JSON, or exceeds the limits of `petl_bench.records.reading`.
    """
    return parse_json(read_text(file))


def write_json(file: Path, content: Any, indent: int = 2) -> None:
    """Writes JSON to disk, then renames it atomically. Creates missing folders; numbers must be finite."""
    text = json.dumps(content, indent=indent, allow_nan=False)
    with atomic_write(file) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")


def write_record(file: Path, content: Mapping[str, Any]) -> None:
    """Writes the content of a record and its hash, with an atomic rename."""
    write_json(file, with_hash(content))


RECORD_FILE = "result.json"

LOG_FILE = "log.txt"

ADAPTER_FOLDER = "adapter"

# The files of an adapter in PEFT's format.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# The config of the model that the adapter belongs to, with the names of the labels.
MODEL_CONFIG = "model_config.json"

MODEL_FOLDER = "model"

# The model card in the adapter or model folder.
CARD_FILE = "README.md"

CHECKPOINT_FOLDER = "checkpoint"

# The detector of out-of-distribution rows (`petl_bench.run.ood_detection`).
DETECTOR_FILE = "ood.safetensors"

# Suffixes of the model and adapter files that are read back.
_READ_BACK = (".json", ".safetensors", ".txt", ".model")

# The parts of a run's folder that contain files which are read back.
_STORED = (ADAPTER_FOLDER, MODEL_FOLDER, DETECTOR_FILE, PREDICTIONS_FILE)


class RunFolder:
    """The folder of one run. A folder without a record is an unfinished run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def log(self) -> Path:
        """The run's log."""
        return self.path / LOG_FILE

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints from which an unfinished run can resume."""
        return self.path / CHECKPOINT_FOLDER

    def read(self) -> Record | None:
        """Reads the record; None if it is missing or broken. A broken one is logged; its run counts as unfinished."""
        try:
            return self.read_whole()
        except ValueError as error:
            _log.warning("%s: the run counts as unfinished", error)
            return None

    def read_whole(self) -> Record | None:
        """Reads the record; None if there is none.

        Raises:
            ValueError: If it is broken.
            RequestError: If `runs_dir` is not a folder, or the record is a folder.
            RunError: If the operating system does not allow reading it.
        """
        file = self.path / RECORD_FILE
        try:
            return read_record(file)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        except NotADirectoryError as error:
            raise RequestError(f"runs_dir={self.path.parent} is no folder.") from error
        except IsADirectoryError as error:
            raise RequestError(f"{file} cannot be read: {error.strerror}.") from error
        except OSError as error:
            raise RunError(explained_refusal(error, file, "name another folder")) from error

    def finished(self) -> Record | None:
        """The record of a finished run; None otherwise."""
        record = self.read()
        return record if record is not None and record.status == "finished" else None

    def write(self, record: Record) -> None:
        """Writes the record with an atomic rename; a repetition that fails never replaces a finished record."""
        if record.status != "finished" and self.finished() is not None:
            return
        write_record(self.path / RECORD_FILE, record.to_dict())

    def stored_files(self, parts: Iterable[str] = _STORED) -> dict[str, str]:
        """Hex sha256 of each file in the given parts that is read back, by its path in this folder."""
        files: list[Path] = []
        for part in parts:
            inside = (file for file in (self.path / part).glob("[!.]*") if file.suffix in _READ_BACK)
            files += [self.path / part, *inside]
        return {file.relative_to(self.path).as_posix(): file_sha256(file) for file in sorted(files) if file.is_file()}

    def check_stored(self, record: Record, part: str) -> None:
        """Checks that stored files are those that the run wrote; skipped for older records, which do not list them.

        Args:
            record: The run's record.
            part: One of `_STORED`.

        Raises:
            ValueError: If a file was changed, added or removed.
        """
        if record.stored_files is None:
            return
        then = {name: digest for name, digest in record.stored_files.items() if name.partition("/")[0] == part}
        now = self.stored_files([part])
        changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
        if changed:
            raise ValueError(
                f"{', '.join(str(self.path / name) for name in changed)}: not what the run wrote (stored_files in "
                f"{RECORD_FILE}): restore it from a copy, or make the run again with force=true"
            )

    def read_predictions(self, record: Record, split: str = "report") -> Predictions | None:
        """Reads the predictions of one split; None if the run kept none.

        Raises:
            ValueError: If the file is broken, or not the one that the run wrote.
        """
        if (self.path / PREDICTIONS_FILE).is_file():
            self.check_stored(record, PREDICTIONS_FILE)
        return read_predictions(self.path, split)

    def write_predictions(self, by_split: Mapping[str, Predictions] | None) -> None:
        """Writes the predictions of the run; None deletes those of an earlier attempt."""
        if by_split is None:
            (self.path / PREDICTIONS_FILE).unlink(missing_ok=True)
        else:
            write_predictions(self.path, by_split)

    def remove_checkpoints(self) -> None:
        """Deletes the checkpoints from which an unfinished run would resume."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Deletes checkpoints, and partial output of killed processes."""
        self.remove_checkpoints()
        self.remove_partial()

    def remove_partial(self) -> None:
        """Deletes partial output of killed processes."""
        for leftover in (*self.path.glob("*.partial"), *self.path.glob("*.outdated")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    @property
    def has_leftovers(self) -> bool:
        """Whether there is anything for `remove_leftovers` to delete."""
        return self.checkpoints.is_dir() or any(self.path.glob("*.partial")) or any(self.path.glob("*.outdated"))

    @contextmanager
    def replace_folder(self, name: str) -> Iterator[Path]:
        """Yields an empty folder that replaces `name` if the body of the `with` statement raises no error."""
        partial = self.path / f"{name}.{os.getpid()}.partial"
        outdated = self.path / f"{name}.{os.getpid()}.outdated"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if (self.path / name).exists():
                (self.path / name).rename(outdated)
            try:
                partial.rename(self.path / name)
            except OSError:
                if outdated.exists():
                    outdated.rename(self.path / name)
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(outdated, ignore_errors=True)


def find_adapter(init: str) -> Path:
    """Returns the adapter folder that `method.init` names, directly or as the folder of a run.

    Raises:
        RequestError: If there is none.
    """
    named = user_path(init, "method.init")
    for folder in (named / ADAPTER_FOLDER, named):
        if (folder / ADAPTER_CONFIG).is_file() and (folder / ADAPTER_WEIGHTS).is_file():
            return folder
    raise RequestError(
        f"method.init={init} holds no adapter ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}): name a folder of `petl-bench "
        "pretrain`, or that of a run with train.save_weights=true."
    )


def read_record(file: Path) -> Record:
    """Reads a record.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is not a record.
    """
    return Record.from_dict(read_json(file))


def locate_records(folders: Iterable[str | Path]) -> tuple[dict[Path, Record], list[str]]:
    """Reads every record below these folders, in the order of their paths.

    Returns:
        The records by their files, and a message for each file that could not be read.

    Raises:
        RequestError: If a folder does not exist.
    """
    records, unreadable, seen = {}, [], set[Path]()
    for file in find_record_files(folders):
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        try:
            records[file] = read_record(file)
        except (ValueError, OSError) as error:
            unreadable.append(f"{file} cannot be read: {error}")
    return records, unreadable


def find_record_files(folders: Iterable[str | Path]) -> Iterator[Path]:
    """Yields the file of every record below these folders, in the order of their paths.

    Raises:
        RequestError: If a folder does not exist.
    """
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise RequestError(f"{folder}: there is no such folder of runs.")
        yield from files_below(folder, RECORD_FILE)


# Far more than the number of runs in any study.
_MOST_FOLDERS = 50_000


def files_below(folder: Path, name: str) -> list[Path]:
    """Finds files of this name at or below a folder, following links to folders; sorted by path.

    Raises:
        RequestError: If there are too many folders for a folder of runs, e.g. below the root of a disk.
    """
    found, seen = [], set[str]()
    top = os.path.realpath(folder)
    for path, folders, files in os.walk(folder, followlinks=True):
        if len(seen) >= _MOST_FOLDERS:
            raise RequestError(
                f"{folder} holds more than {_MOST_FOLDERS:,} folders, which are too many to search for records: name "
                "the folders of the runs."
            )
        real = os.path.realpath(path)
        # Already seen, or a link to a parent of the searched folder, such as those in /proc to the root.
        if real in seen or (real != top and Path(top).is_relative_to(real)):
            folders.clear()
            continue
        seen.add(real)
        if RECORD_FILE in files:
            # Run folders do not contain other runs.
            folders.clear()
        if name in files:
            found.append(Path(path) / name)
    return sorted(found)
