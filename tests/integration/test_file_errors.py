"""What the system refuses to write, open or rename is told in one sentence, and leaves nothing half written."""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
from pathlib import Path

import pytest
import safetensors.torch
from safetensors import SafetensorError

from petl_bench import cli
from petl_bench.commands import COMMANDS
from petl_bench.errors import RequestError, RunError, system_error
from petl_bench.frozen import cache as feature_cache
from petl_bench.records.store import RunFolder
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run

ERRORS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.EMFILE)
LORA = ["method=lora", "layers=top", "layers.k=1", "train.cache=disk", "train.epochs=2"]
FULL = ["method=full"]
SHORT = ["backbone.architecture.num_hidden_layers=2", "task.max_length=12", "task.num_train_examples=32",
         "train.checkpoint_seconds=0"]  # fmt: skip


class FileSystem:
    """Counts the calls that write, open, make or rename something below a folder, and lets one of them fail.

    Attributes:
        calls: What was called, with its path.
    """

    def __init__(self, monkeypatch, below: Path, fails_at: int = -1, number: int = 0) -> None:
        self.below, self.fails_at, self.number = str(below), fails_at, number
        self.calls: list[str] = []
        for module, name in (
            *((os, name) for name in ("mkdir", "rename", "replace", "open", "fsync", "posix_fallocate")),
            *((builtins, "open"), (io, "open")),
        ):
            monkeypatch.setattr(module, name, self._counted(name, getattr(module, name)))
        monkeypatch.setattr(safetensors.torch, "serialize_file", self._serialized(safetensors.torch.serialize_file))

    def _refuse(self, call: str, path: str) -> bool:
        self.calls.append(f"{call} {path.removeprefix(self.below)}")
        return len(self.calls) - 1 == self.fails_at

    def _counted(self, name, original):
        def counted(path, *arguments, **named):
            if isinstance(path, int) and name in ("fsync", "posix_fallocate"):
                # Its path is known to the system alone.
                if self._refuse(name, ""):
                    raise OSError(self.number, os.strerror(self.number))
                return original(path, *arguments, **named)
            if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self.below):
                return original(path, *arguments, **named)
            if self._refuse(name, os.fspath(path)):
                raise OSError(self.number, os.strerror(self.number), os.fspath(path))
            found = original(path, *arguments, **named)
            if isinstance(found, io.IOBase) and found.writable():
                found.write = self._written(os.fspath(path), found.write)
            return found

        return counted

    def _written(self, path, original):
        def write(content):
            if self._refuse("write", path):
                raise OSError(self.number, os.strerror(self.number))
            return original(content)

        return write

    def _serialized(self, original):
        def serialize_file(tensors, path, *arguments, **named):
            if self._refuse("serialize", os.fspath(path)):
                raise SafetensorError(
                    f"Error while serializing: I/O error: {os.strerror(self.number)} (os error {self.number})"
                )
            return original(tensors, path, *arguments, **named)

        return serialize_file


def attempt(cfg, monkeypatch, folder, fails_at=-1, number=0):
    """Makes a run in an empty folder with an empty cache; gives its scores or its error, and the calls."""
    cfg.runs_dir = str(folder / "runs")
    monkeypatch.setenv("PETL_BENCH_CACHE", str(folder / "cache"))
    feature_cache._memory_entries.clear()
    with monkeypatch.context() as patch:
        files = FileSystem(patch, folder, fails_at, number)
        try:
            return run(cfg).scores, files.calls
        except (RunError, RequestError) as error:
            return error, files.calls


def left_behind(folder):
    return [file for file in folder.rglob("*") if re.search(r"\.partial|\.outdated|newest", file.name)]


def check(cfg, monkeypatch, folder, wanted, fails_at):
    number = ERRORS[fails_at % len(ERRORS)]
    folder.mkdir()
    outcome, calls = attempt(cfg, monkeypatch, folder, fails_at, number)
    where = f"{calls[fails_at]}: {os.strerror(number)}: {outcome}"
    assert not left_behind(folder), where
    if not isinstance(outcome, Exception):
        # A cache, a checkpoint or a line of the log: the run can do without it.
        assert outcome == wanted, where
        return where
    assert outcome.exit_code == 1, where
    assert str(folder) in str(outcome), where
    assert ": " in str(outcome), where
    assert not re.search(r"[A-Z]\w*Error|Errno|The run failed", str(outcome)), where
    # Nothing is lost, nothing is in the way.
    assert attempt(cfg, monkeypatch, folder)[0] == wanted, where
    return where


def first_of_each_kind(calls):
    """The number of the first call of each function with each file, processes and hashes in names left out."""
    kinds = {}
    for number, call in enumerate(calls):
        kinds.setdefault(re.sub(r"[0-9a-f]{8,}|\d+", "", call), number)
    return list(kinds.values())


@pytest.mark.parametrize(
    ("overrides", "every"),
    [(LORA, 9), pytest.param(LORA, 1, marks=pytest.mark.slow), pytest.param(FULL, 1, marks=pytest.mark.slow)],
    ids=["lora", "lora-all", "full-all"],
)
def test_every_refusal_is_one_sentence_and_leaves_nothing_half_written(overrides, every, tiny, monkeypatch, tmp_path):
    cfg = tiny(*overrides, *SHORT)
    (tmp_path / "whole").mkdir()
    wanted, calls = attempt(cfg, monkeypatch, tmp_path / "whole")
    assert not isinstance(wanted, Exception)
    assert not left_behind(tmp_path)
    points = first_of_each_kind(calls)
    assert len(points) > 30
    for fails_at in points[::every]:
        check(cfg, monkeypatch, tmp_path / str(fails_at), wanted, fails_at)


@pytest.mark.parametrize("refused", ["rename /runs/[^ ]*/adapter", "replace /runs/[^ ]*/result.json"])
def test_a_repetition_that_is_refused_leaves_the_finished_run_whole(refused, tiny, monkeypatch, tmp_path):
    cfg = tiny("method=head", *SHORT)
    wanted, _ = attempt(cfg, monkeypatch, tmp_path)
    folder = RunFolder(identify(cfg).folder)
    record = folder.finished()
    cfg.force = True
    _, calls = attempt(cfg, monkeypatch, tmp_path)
    # The last rename of the new adapter comes after the one of the old.
    fails_at = max(number for number, call in enumerate(calls) if re.match(refused, call))
    outcome, again = attempt(cfg, monkeypatch, tmp_path, fails_at, errno.EIO)
    assert isinstance(outcome, RunError), again[fails_at]
    assert not left_behind(tmp_path)
    assert folder.finished().scores == wanted == record.scores
    folder.check_stored(folder.finished(), "adapter")
    assert folder.read_predictions(folder.finished()) is not None


def test_a_command_that_the_system_refuses_a_file_says_so(tmp_path, monkeypatch, capsys):
    def refused(_parsed):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setitem(COMMANDS, "list", refused)
    assert cli.main(["list", "methods"]) == 1
    said = f"petl-bench: This user may not read or write {tmp_path}: change its permissions or give another place.\n"
    assert capsys.readouterr().err == said


def test_the_error_of_a_library_that_keeps_only_words_is_found():
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert system_error(SafetensorError(said)).errno == errno.ENOSPC
    outer = ValueError("cannot save")
    outer.__cause__ = PermissionError(errno.EACCES, "Permission denied", "file")
    assert system_error(outer).filename == "file"
    assert system_error(ValueError("another matter")) is None
