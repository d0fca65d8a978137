"""Private interfaces of torch and accelerate that are used here; a failure says what changed in the library."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

from petl_bench.measure.run_costs import CompileClock
from petl_bench.training import TrainConfig
from petl_bench.training.device import fast_dropout, make_accelerator


def test_accelerate_lets_one_process_change_device_and_precision():
    assert hasattr(AcceleratorState, "_reset_state"), (
        "accelerate has no AcceleratorState._reset_state any more, so training/device.py cannot give a second run of "
        "the same process another precision"
    )
    assert hasattr(PartialState, "_shared_state"), (
        "accelerate has no PartialState._shared_state any more, so training/device.py cannot see whether several "
        "processes were started"
    )
    for precision in ("bf16", "fp32"):
        accelerator = make_accelerator(TrainConfig(device="cpu", precision=precision))
        assert accelerator.mixed_precision == {"fp32": "no"}.get(precision, precision), (
            "accelerate keeps the precision of the first run of a process in spite of AcceleratorState._reset_state"
        )


def test_the_processes_of_a_group_have_a_store_in_common():
    assert hasattr(torch.distributed.distributed_c10d, "_get_default_store"), (
        "torch has no distributed_c10d._get_default_store any more, so training/device.py cannot tell the other "
        "processes of a group why one of them failed"
    )


def test_torch_lets_a_kernel_be_replaced_for_a_while():
    assert hasattr(torch.library.Library("aten", "IMPL"), "_destroy"), (
        "torch.library.Library has no _destroy any more, so training/device.py cannot restore torch's dropout kernel"
    )
    torch.manual_seed(0)
    before = torch.empty(100).bernoulli_(0.5)
    with fast_dropout(torch.device("cpu")):
        torch.manual_seed(0)
        replaced = torch.empty(100).bernoulli_(0.5)
    torch.manual_seed(0)
    assert not torch.equal(replaced, before), "torch ignores the bernoulli_ kernel of training/device.py"
    assert torch.equal(torch.empty(100).bernoulli_(0.5), before), "torch's own kernel for bernoulli_ was not restored"


def test_torch_says_when_it_compiles():
    events = []

    class Clock(CompileClock):
        def _start(self, event):
            events.append("start")

        def _end(self, event):
            events.append("end")

    def double(x):
        return x * 2

    compiled = torch.compile(double, backend="aot_eager", dynamic=True)
    with Clock(enabled=True):
        compiled(torch.ones(3, requires_grad=True)).sum().backward()
        first = list(events)
        compiled(torch.ones(5, requires_grad=True)).sum().backward()
    assert first, "torch._dynamo.callback tells of no compilation any more, so measure/run_costs.py cannot time it"
    assert first == ["start", "end"] * (len(first) // 2)
    assert events == first, "torch compiles again for another number of rows"


def test_torch_keeps_a_compiled_module_apart_from_its_forward_pass():
    module = torch.nn.Linear(1, 1)
    assert module._compiled_call_impl is None, (
        "torch.nn.Module has no _compiled_call_impl any more, so frozen/split.py cannot replace a compiled layer"
    )
    module.compile()
    assert module._compiled_call_impl is not None, (
        "torch.nn.Module.compile does not set _compiled_call_impl any more, so frozen/split.py would run a frozen layer"
    )
