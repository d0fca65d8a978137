"""Peaks by phase; the CUDA allocator's come from a fake allocator."""

from __future__ import annotations

import pytest
import torch

from petl_bench.measure.run_costs import PeakMemory
from petl_bench.records.schema import DeviceMemory
from petl_bench.run.describe import describe_device_memory

GIB = 2**30


@pytest.fixture
def allocator(monkeypatch):
    """A CUDA device whose peak since the last reset the test sets."""
    state = {"allocated": 0, "reserved": 0, "held": 0}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_alloc_retries": 2})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * GIB - state["held"], 10 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: state["allocated"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: state["reserved"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: state.update(allocated=0, reserved=0))
    return state


def test_each_phase_has_its_own_peaks_and_the_first_updates_are_one(allocator):
    memory = PeakMemory(on_cuda=True)
    with memory.phase("load"):
        allocator.update(allocated=10, reserved=11)
    with memory.phase("features"):
        allocator.update(allocated=95, reserved=97)
    with memory.phase("train"):
        allocator.update(allocated=90, reserved=91)
        memory.book("first_updates")
        allocator.update(allocated=50, reserved=51)
        with memory.phase("eval"):
            allocator.update(allocated=20, reserved=21)
        allocator.update(allocated=40, reserved=41)
    device = describe_device_memory(memory)
    assert (device.load_peak_allocated_bytes, device.load_peak_reserved_bytes) == (10, 11)
    assert (device.first_updates_peak_allocated_bytes, device.first_updates_peak_reserved_bytes) == (90, 91)
    assert (device.train_peak_allocated_bytes, device.train_peak_reserved_bytes) == (50, 51)
    assert (device.features_peak_allocated_bytes, device.features_peak_reserved_bytes) == (95, 97)
    assert device.peak_allocated_bytes == 95, "the largest over all phases, in which the features were computed here"
    assert (device.eval_peak_allocated_bytes, device.eval_peak_reserved_bytes) == (20, 21)
    assert device.alloc_retries == 0


@pytest.mark.parametrize(("held", "warned"), [(GIB // 2, False), (3 * GIB, True)])
def test_memory_that_others_hold_is_a_warning(allocator, caplog, held, warned):
    allocator["held"] = held
    assert PeakMemory(on_cuda=True).device_held_before_bytes == held
    assert ("3.0 GiB of the device" in caplog.text) == warned


def test_a_record_from_before_the_phase_of_features_has_the_largest_of_the_others():
    assert DeviceMemory(10, 50, 51, 20, 0, first_updates_peak_allocated_bytes=90).peak_allocated_bytes == 90
    assert DeviceMemory(None, None, None, None, 0).peak_allocated_bytes is None


def test_without_a_device_there_is_the_process_alone(monkeypatch):
    monkeypatch.setattr(PeakMemory, "_runs_of_this_process", 0)
    memory = PeakMemory(on_cuda=False)
    for name in ("load", "features", "train", "eval"):
        with memory.phase(name):
            pass
    assert describe_device_memory(memory) is None
    assert memory.process_peak_rss_bytes > 10**7


def test_a_process_that_made_a_run_before_says_nothing_of_the_next():
    PeakMemory(on_cuda=False)
    assert PeakMemory(on_cuda=False).process_peak_rss_bytes is None
