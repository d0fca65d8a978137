"""The private interfaces of torch and transformers that estimates use; each assertion says what changed."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import BertConfig, BertModel

from petl_bench.estimate.tensor_modes import FakeDeviceMode, OperatorListener, StorageLog, as_fake, count_flops


def test_the_address_of_a_storage_identifies_it_until_it_is_freed():
    log = StorageLog(lambda device: True, lambda *_: None)
    first, second = torch.zeros(4), torch.zeros(4)
    message = "UntypedStorage._cdata no longer identifies a storage: find another identity in StorageLog.add"
    assert log.add(first) == log.add(first.view(2, 2)) == 0, message
    assert log.add(second) == 1, message
    del first
    assert log.events == [(0, 16), (1, 16), (0, -16)], "a freed UntypedStorage no longer calls its weak references"
    with FakeTensorMode():
        fakes = torch.zeros(4), torch.zeros(4)
        assert log.add(fakes[0]) != log.add(fakes[1]), "storages of fake tensors no longer have an address of their own"


def test_modes_can_opt_out_of_dynamo():
    assert TorchDispatchMode._should_skip_dynamo() is True, (
        "TorchDispatchMode._should_skip_dynamo no longer wraps every dispatch by default: remove it from tensor_modes"
    )


def test_fake_tensors_report_the_cpu_and_have_no_memory():
    model = torch.nn.Linear(4, 4, device="meta")
    with as_fake(model, "cpu"):
        output = model(torch.zeros(2, 4))
    message = "FakeTensor(mode, meta tensor, device) no longer makes a tensor without memory that reports that device"
    assert model.weight.device.type == output.device.type == "cpu", message
    assert model.weight.untyped_storage().device.type == "meta", message


def test_functions_of_the_model_are_seen_and_those_of_the_fake_kernels_are_not():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, device="meta"), torch.nn.Softmax(-1), torch.nn.Dropout(0.5))
    names = []
    with as_fake(model, "cuda"), OperatorListener(lambda operator, *_: names.append(str(operator))):
        model(torch.zeros(2, 4)).sum().backward()
    assert "aten.native_dropout.default" in names, "torch.nn.Dropout no longer passes F.dropout: see CudaOperators"
    assert "aten._softmax.default" in names, "a fake kernel's own functions are no longer hidden from CudaOperators"


def test_what_is_computed_again_takes_the_operators_of_cuda():
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8)
    with torch.device("meta"):
        model = BertModel(config).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    names = []
    with as_fake(model, "cuda"), OperatorListener(lambda operator, *_: names.append(str(operator))):
        states = model(torch.zeros(2, 4, dtype=torch.long)).last_hidden_state
        before = names.count("aten.native_dropout.default")
        states.sum().backward()
    message = "transformers no longer calls module._gradient_checkpointing_func: see as_fake"
    # One dropout after the embeddings, two in the layer, which come again.
    assert (before, names.count("aten.native_dropout.default")) == (3, 5), message


def test_a_condition_on_a_fake_tensor_is_true():
    with FakeDeviceMode("cpu"):
        assert bool(torch.zeros(3).any()), "bool(tensor) no longer runs aten._local_scalar_dense: see FakeDeviceMode"


def test_the_fake_layer_norm_differs_from_the_cpu_kernel():
    def statistic():
        normed = torch.zeros(2, 4, dtype=torch.bfloat16)
        weight, bias = torch.ones(4), torch.zeros(4)
        return torch.ops.aten.native_layer_norm(normed, [4], weight, bias, 1e-5)[1].dtype

    with FakeDeviceMode("cpu"):
        ours = statistic()
    assert ours == statistic(), "the CPU's layer norm keeps its statistics in another precision: see FakeDeviceMode"
    with FakeTensorMode():
        plain = statistic()
    assert plain != ours, "torch's fake layer norm agrees with the CPU's now: remove the correction from FakeDeviceMode"


def test_the_mean_of_squared_differences_has_the_storage_of_all_of_them():
    def size():
        return torch.nn.functional.mse_loss(torch.zeros(7), torch.zeros(7)).untyped_storage().nbytes()

    with FakeDeviceMode("cpu"):
        ours = size()
    assert ours == size() == 28, "the kernel of mse_loss keeps another storage: see FakeDeviceMode"
    with FakeTensorMode():
        assert size() != ours, "torch's fake mse_loss agrees with the kernel now: remove the correction"


def test_the_table_of_flop_formulas():
    aten = torch.ops.aten
    message = "torch.utils.flop_counter.flop_registry no longer maps operators to formulas: see flops.py"
    assert flop_registry[aten.mm](torch.zeros(2, 3), torch.zeros(3, 4), out_val=torch.zeros(2, 4)) == 48, message
    assert aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry, (
        "torch counts the CPU's fused attention itself now: remove our formulas from flops.py"
    )
    query = torch.zeros(1, 2, 8, 4)
    attention = torch.nn.functional.scaled_dot_product_attention
    # Two products of 8 x 4 with 4 x 8 in each of two heads.
    assert count_flops(lambda: attention(query, query, query)) == 2 * 2 * (2 * 8 * 4 * 8), "CPU attention runs unseen"
