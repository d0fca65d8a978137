"""Run folders: where a run's files lie, and how JSON files and records are written and read."""

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
    """Reads a file.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is no JSON, or more than can be computed with.
    """
    return parse_json(read_text(file))


def write_json(file: Path, content: Any, indent: int = 2) -> None:
    """Writes a file by an atomic rename, once its content is on the disk; folders are made, numbers must be finite."""
    text = json.dumps(content, indent=indent, allow_nan=False)
    with atomic_write(file) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")


def write_record(file: Path, content: Mapping[str, Any]) -> None:
    """Writes the content of a record with its hash, by an atomic rename."""
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

# The model card in either of them.
CARD_FILE = "README.md"

CHECKPOINT_FOLDER = "checkpoint"

# What tells rows that are out of distribution (`petl_bench.run.ood_detection`).
DETECTOR_FILE = "ood.safetensors"

# Files of a model or an adapter that are read back, by the ends of their names.
_READ_BACK = (".json", ".safetensors", ".txt", ".model")

# The parts of a run's folder that hold such files.
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
        """Where an unfinished run keeps what it can go on from."""
        return self.path / CHECKPOINT_FOLDER

    def read(self) -> Record | None:
        """The record; None where there is none, or a broken one, which is logged, so that the run is made again."""
        try:
            return self.read_whole()
        except ValueError as error:
            _log.warning("%s: the run counts as unfinished", error)
            return None

    def read_whole(self) -> Record | None:
        """The record; None where there is none.

        Raises:
            ValueError: If it is broken.
            RequestError: If the folder of the runs is none, or the record a folder.
            RunError: If the system refuses to read it.
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
        """Writes the record by an atomic rename; a failed repetition never replaces a finished record."""
        if record.status != "finished" and self.finished() is not None:
            return
        write_record(self.path / RECORD_FILE, record.to_dict())

    def stored_files(self, parts: Iterable[str] = _STORED) -> dict[str, str]:
        """Hex sha256 of each file of some parts that is read back, by its path in this folder."""
        files: list[Path] = []
        for part in parts:
            inside = (file for file in (self.path / part).glob("[!.]*") if file.suffix in _READ_BACK)
            files += [self.path / part, *inside]
        return {file.relative_to(self.path).as_posix(): file_sha256(file) for file in sorted(files) if file.is_file()}

    def check_stored(self, record: Record, part: str) -> None:
        """Compares stored files with those that the run wrote; older records do not know these.

        Args:
            record: The run's record.
            part: One of `_STORED`.

        Raises:
            ValueError: If a file is another one, or was added or removed.
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
        """The predictions of one split; None where the run has kept none.

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
        """Deletes what an unfinished run would go on from."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Deletes checkpoints, and what killed processes had begun to write."""
        self.remove_checkpoints()
        self.remove_partial()

    def remove_partial(self) -> None:
        """Deletes what killed processes had begun to write."""
        for leftover in (*self.path.glob("*.partial"), *self.path.glob("*.outdated")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    @property
    def has_leftovers(self) -> bool:
        """Whether `remove_leftovers` would find any."""
        return self.checkpoints.is_dir() or any(self.path.glob("*.partial")) or any(self.path.glob("*.outdated"))

    @contextmanager
    def replace_folder(self, name: str) -> Iterator[Path]:
        """Gives an empty folder that takes the place of `name` once it was filled without an error."""
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
    """The folder of the adapter that `method.init` names: itself, or that of a run.

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
        ValueError: If the file is no record.
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
    """The files of every record below these folders, in the order of their paths.

    Raises:
        RequestError: If a folder does not exist.
    """
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise RequestError(f"{folder}: there is no such folder of runs.")
        yield from files_below(folder, RECORD_FILE)


# Far more than studies have runs.
_MOST_FOLDERS = 50_000


def files_below(folder: Path, name: str) -> list[Path]:
    """The files of this name at or below a folder, links to folders followed, in the order of their paths.

    Raises:
        RequestError: If there are so many folders that it cannot be one of runs, such as the root of a disk.
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
        # Seen already, or a link to a folder that this one is in, such as those in /proc to the whole system.
        if real in seen or (real != top and Path(top).is_relative_to(real)):
            folders.clear()
            continue
        seen.add(real)
        if RECORD_FILE in files:
            # There are no runs inside of a run.
            folders.clear()
        if name in files:
            found.append(Path(path) / name)
    return sorted(found)
