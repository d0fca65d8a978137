"""A failed run is recorded with its cause and a message that a user can act on."""

from __future__ import annotations

import errno
import gc
import json
import weakref

import pytest
import torch

from petl_bench import commands
from petl_bench.errors import DivergedError, OutOfMemoryError, RequestError, RunError
from petl_bench.records.store import RunFolder
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run
from petl_bench.training.loop import TrainingLoop


def fail_with(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(TrainingLoop, "_forward_backward", fail)


def recorded(cfg):
    return RunFolder(identify(cfg).folder).read()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you requested ..."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory(tiny, monkeypatch, error):
    fail_with(monkeypatch, error)
    cfg = tiny()
    with pytest.raises(OutOfMemoryError, match=r"train\.accumulation"):
        run(cfg)
    assert recorded(cfg).status == "out_of_memory"
    assert recorded(cfg).params.trainable > 0


def test_a_failed_run_of_a_sweep_leaves_no_memory_to_the_others(tiny, monkeypatch):
    """Its error is printed and counted, but not kept: its traceback would hold the model."""
    held = []

    def one_run(config, *, as_json):
        model = torch.nn.Linear(2, 2)
        held.append(weakref.ref(model))
        raise OutOfMemoryError("Out of memory.") from RuntimeError(str(model))

    monkeypatch.setattr(commands, "_one_run", one_run)
    monkeypatch.setattr("petl_bench.config.load_config", lambda overrides: overrides)
    assert commands._sweep([[], []], as_json=False) == OutOfMemoryError.exit_code
    gc.collect()
    assert [reference() for reference in held] == [None, None]


def test_divergence(tiny, monkeypatch):
    cfg = tiny("method=full", "train.learning_rate=1e30", "train.max_grad_norm=1e30", "train.epochs=3")
    with pytest.raises(DivergedError):
        run(cfg)
    assert recorded(cfg).status == "diverged"


def test_an_unforeseen_error_names_the_log_which_holds_the_traceback(tiny, monkeypatch):
    fail_with(monkeypatch, ZeroDivisionError("by surprise"))
    cfg = tiny()
    with pytest.raises(RunError, match=r"ZeroDivisionError: by surprise \(details: .*log\.txt\)"):
        run(cfg)
    assert recorded(cfg).status == "failed"
    assert "Traceback" in (identify(cfg).folder / "log.txt").read_text()


def test_a_failed_run_is_made_again_and_then_not(tiny, monkeypatch):
    cfg = tiny()
    with monkeypatch.context() as patch:
        fail_with(patch, MemoryError())
        with pytest.raises(OutOfMemoryError):
            run(cfg)
    assert run(cfg).status == "finished"
    fail_with(monkeypatch, MemoryError())
    assert run(cfg).status == "finished"


def test_a_failed_repetition_keeps_what_was_there(tiny, monkeypatch):
    cfg = tiny()
    first = run(cfg)
    adapter = identify(cfg).folder / "adapter" / "adapter_model.safetensors"
    content = adapter.read_bytes()
    cfg.force = True
    fail_with(monkeypatch, MemoryError())
    with pytest.raises(OutOfMemoryError):
        run(cfg)
    assert recorded(cfg) == first
    assert adapter.read_bytes() == content


def test_a_full_disk_is_an_error_and_loses_nothing(tiny, monkeypatch):
    finished = tiny()
    run(finished)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "adapter_model.safetensors")

    monkeypatch.setattr("petl_bench.run.run.save_trained", full)
    cfg = tiny("train.seed=1")
    with pytest.raises(RunError, match=r"disk is full .*runs_dir=DIR"):
        run(cfg)
    assert recorded(cfg).status == "failed"
    assert recorded(finished).status == "finished"


def test_a_disk_that_takes_not_even_the_record(tiny, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("petl_bench.records.store.os.fsync", full)
    cfg = tiny()
    with pytest.raises(RunError, match="disk is full"):
        run(cfg)
    assert not (identify(cfg).folder / "result.json").exists()
    assert not list(identify(cfg).folder.glob("*.partial"))


def test_a_run_removes_what_a_killed_one_had_begun_to_write(tiny):
    cfg = tiny()
    folder = identify(cfg).folder
    (folder / "adapter.12.partial").mkdir(parents=True)
    (folder / "adapter.12.partial" / "adapter_config.json").write_text("{")
    (folder / "result.json.12.partial").write_text("{")
    run(cfg)
    assert not list(folder.glob("*.partial"))


def test_a_log_that_cannot_be_closed_hides_nothing(tiny, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("logging.FileHandler.close", full)
    with pytest.raises(RunError, match="disk is full"):
        run(tiny())


def test_a_request_that_cannot_work_is_no_run(tiny):
    cfg = tiny("method=lora", "method.r=0")
    with pytest.raises(RequestError):
        run(cfg)
    assert not identify(cfg).folder.exists()


def test_a_broken_record_is_an_unfinished_run(tiny):
    cfg = tiny()
    run(cfg)
    file = identify(cfg).folder / "result.json"
    file.write_text(file.read_text()[:100])
    assert run(cfg).status == "finished"
    json.loads(file.read_text())


def test_rows_that_change_while_they_are_read_fail_the_run(tiny, tmp_path, monkeypatch):
    from petl_bench.run import run as run_module

    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "a,x\nb,y\n" * 40)
    cfg = tiny("task=custom", f"task.train_file='{file}'", "task.num_train_examples=8")
    load = run_module.load_task

    def replace_and_load(*arguments):
        file.write_text("text,label\n" + "a,y\nb,x\n" * 40)
        return load(*arguments)

    monkeypatch.setattr(run_module, "load_task", replace_and_load)
    with pytest.raises(RunError, match="changed while they were read"):
        run(cfg)
