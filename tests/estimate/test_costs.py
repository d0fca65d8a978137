"""What `estimate_costs` says of a run: known peaks of BERT-base, kernels, CUDA, operations, the largest batch."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from behaviour.matrix import two_layers
from composed import composed
from estimate.counted_updates import ALL_TARGETS, adapted, batch, counted
from petl_bench.backbones.load import open_backbone
from petl_bench.catalog import TINY_BACKBONES
from petl_bench.estimate.costs import _search, cost_key, estimate_costs, largest_batch, pass_sizes
from petl_bench.estimate.memory import measure_update
from petl_bench.model import build_adapted
from petl_bench.training.loop import build_optimizer

MIB = 2**20
# One layer is enough where it is the same sums for each.
SMALL = ("backbone=tiny_bert", "backbone.architecture.num_hidden_layers=1", "task.max_length=32")


@functools.cache
def costs(*overrides: str):
    cfg = composed("task=mrpc", *overrides)
    backbone = open_backbone(cfg.backbone, cfg.layers, weights=False)
    return estimate_costs(cfg, backbone, cfg.task.labels)


def test_a_method_that_reads_weights_is_estimated_with_random_ones():
    overrides = (*SMALL, "method=peft", "method.type=BOFT")
    found = costs(*overrides)
    real = counted(adapted("cpu", *overrides), rows=(32,), length=32)
    assert found.estimate.peak_bytes == real.peak


def test_the_known_peaks_of_bert_base():
    """BERT-base in fp32 with AdamW, 32 rows of 128 tokens: peaks that were found by other means."""
    methods = ("full", "lora", "head", "flat")
    peaks = {name: costs("backbone=bert_base", f"method={name}").estimate.peak_bytes for name in methods}
    assert peaks["full"] / MIB == pytest.approx(4793, abs=1)
    assert peaks["lora"] / MIB == pytest.approx(3089, abs=1)
    assert peaks["head"] / MIB == pytest.approx(562, abs=1)
    assert peaks["full"] > 3.2 * peaks["flat"]


@pytest.mark.parametrize(
    ("overrides", "mib"),
    [
        (("method=full", "train.gradient_checkpointing=true"), 23),
        (("method=lora", ALL_TARGETS), 435),
        # The same sizes are compared with those of small models in test_memory.py.
        pytest.param(("method=full",), 437, marks=pytest.mark.slow),
        pytest.param(("method=lora",), 323, marks=pytest.mark.slow),
        pytest.param(("method=bitfit",), 309, marks=pytest.mark.slow),
        pytest.param(("method=full", "layers=top", "layers.k=2"), 74, marks=pytest.mark.slow),
        pytest.param(("method=head",), 0, marks=pytest.mark.slow),
    ],
)
def test_saved_activations_of_bert_base(overrides, mib):
    """Bytes saved for backward with 4 rows of 128 tokens; the expected ones were found with saved_tensors_hooks."""
    estimate = costs("backbone=bert_base", "train.batch_size=4", *overrides).estimate
    assert estimate.activations_bytes / MIB == pytest.approx(mib, abs=2)


def test_each_kind_is_what_its_name_says():
    found = costs("backbone=bert_base", "method=houlsby")
    estimate, params = found.estimate, found.params
    trained = sum(1 for p in adapted("meta", "backbone=bert_base", "method=houlsby").parameters() if p.requires_grad)
    assert estimate.gradients_bytes == 4 * params.trainable
    # Two moments, and a step count for each tensor.
    assert estimate.optimizer_bytes == 8 * params.trainable + 4 * trained
    # Besides the parameters there are position and segment ids, and PEFT's frozen copies of the head and of 25 norms.
    copies = 4 * (params.trainable_head + 25 * 2 * 768)
    assert estimate.weights_bytes == 4 * params.total + 2 * 8 * 512 + copies
    at_peak = vars(estimate.at_peak)
    assert sum(at_peak.values()) == estimate.peak_bytes
    assert at_peak["weights_bytes"] == estimate.weights_bytes
    assert at_peak["temporaries_bytes"] == estimate.temporaries_bytes
    assert (estimate.batch_size, estimate.sequence_length, estimate.device) == (32, 128, "cpu")


def test_accumulation_takes_less_and_holds_gradients_meanwhile():
    whole = costs(*SMALL, "method=full").estimate
    split = costs(*SMALL, "method=full", "train.accumulation=4").estimate
    assert split.activations_bytes < 0.3 * whole.activations_bytes
    assert split.at_peak.gradients_bytes == split.gradients_bytes == whole.gradients_bytes
    assert (split.batch_size, split.accumulation) == (32, 4)


def test_the_attention_kernel_is_named():
    kernels = {
        attention: costs(*SMALL, "method=full", f"backbone.attention={attention}").estimate.attention_kernel
        for attention in ("eager", "sdpa")
    }
    # Dropout within attention leaves the CPU no fused kernel.
    assert kernels == {"eager": "eager", "sdpa": "math"}
    modern = ("backbone=tiny_modernbert", two_layers("modernbert"), "method=full", "task.max_length=32")
    assert costs(*modern).estimate.attention_kernel == "flash (cpu)"


@pytest.mark.parametrize(("method", "architecture"), [("full", "bert"), ("coda", "bert"), ("lora", "modernbert")])
def test_operations_equal_those_of_torchs_counter(method, architecture):
    tiny = (f"backbone={TINY_BACKBONES[architecture]}", two_layers(architecture))
    overrides = (*tiny, f"method={method}", "train.batch_size=2")
    found = costs(*overrides, "backbone.attention=eager", "task.max_length=12")
    model = adapted("cpu", *overrides, "backbone.attention=eager").train()
    with FlopCounterMode(display=False) as counter:
        model(**batch(2, 12)).loss.backward()
    assert found.flops.train_step_flops == counter.get_total_flops()


def test_operations_at_inference_are_the_same_for_every_attention_kernel_and_merged():
    eager, sdpa = (costs(*SMALL, "method=full", f"backbone.attention={name}").flops for name in ("eager", "sdpa"))
    assert eager.inference_flops == sdpa.inference_flops
    merged = costs(*SMALL, "method=lora").flops
    assert merged.merged
    assert merged.inference_flops == sdpa.inference_flops
    kept = costs(*SMALL, "method=houlsby").flops
    assert not kept.merged
    assert kept.inference_flops > sdpa.inference_flops


def test_passes_of_unequal_size_are_counted_as_the_loop_makes_them():
    assert pass_sizes(7, 3) == [3, 2, 2]
    assert pass_sizes(8, 3) == [3, 3, 2]
    assert pass_sizes(2, 4) == [1, 1]
    overrides = (*SMALL, "method=full")
    found = costs(*overrides, "train.batch_size=5", "train.accumulation=2")
    assert found.estimate.peak_bytes == counted(adapted("cpu", *overrides), rows=(3, 2), length=32).peak
    sizes = [costs(*overrides, f"train.batch_size={rows}").flops.train_step_flops for rows in (3, 2)]
    assert found.flops.train_step_flops == sum(sizes)


@pytest.mark.parametrize(
    "request_",
    ["coda", "lora train.batch_size=1", "full train.batch_size=3 train.accumulation=3"],
)
def test_the_largest_batch_fits_and_a_larger_one_does_not(request_):
    method, *others = request_.split()
    overrides = [*SMALL, f"method={method}", *others]
    cfg = composed("task=mrpc", *overrides)
    backbone = open_backbone(cfg.backbone, cfg.layers, weights=False)
    first = estimate_costs(cfg, backbone, cfg.task.labels)
    budget = 3 * first.estimate.peak_bytes + 12345
    largest = largest_batch(cfg, backbone, cfg.task.labels, first, budget)
    assert largest > cfg.train.batch_size
    assert costs(*overrides, f"train.batch_size={largest}").estimate.peak_bytes <= budget
    larger = largest + cfg.train.accumulation
    assert costs(*overrides, f"train.batch_size={larger}").estimate.peak_bytes > budget
    assert largest_batch(cfg, backbone, cfg.task.labels, first, first.estimate.weights_bytes) == 0


def test_a_batch_of_one_row_is_measured_and_not_extrapolated():
    overrides = (*SMALL, "method=flat")
    cfg = composed("task=mrpc", *overrides, "train.batch_size=8")
    backbone = open_backbone(cfg.backbone, cfg.layers, weights=False)
    first = estimate_costs(cfg, backbone, cfg.task.labels)
    peak = costs(*overrides, "train.batch_size=1").estimate.peak_bytes
    assert [largest_batch(cfg, backbone, cfg.task.labels, first, peak + more) for more in (-1, 0)] == [0, 1]


def test_the_search_without_a_fit():
    assert [_search(lambda rows, limit=limit: rows <= limit) for limit in (0, 1, 2, 77)] == [0, 1, 2, 77]


LAYER = ("backbone=bert_base", "backbone.architecture.num_hidden_layers=1", "train.device=cuda")


def activations(*overrides):
    return costs(*overrides, "method=full", "train.batch_size=2", "task.max_length=16").estimate.activations_bytes


def test_dropout_keeps_one_byte_an_element_on_cuda():
    # BERT drops after the embeddings, after attention and after the feed-forward network: 3 x 2 x 16 x 768 elements,
    # and 2 x 768 after the pooler. There the head keeps the dropped output in fp32, and tanh its own.
    without = "+backbone.architecture.hidden_dropout_prob=0.0"
    assert activations(*LAYER) - activations(*LAYER, without) == 3 * 2 * 16 * 768 + 2 * 768 * (1 + 4)


@pytest.mark.parametrize(
    ("overrides", "kernel"),
    [((), "efficient"), (("train.precision=bf16",), "flash"), (("backbone.attention=eager",), "eager")],
)
def test_attention_is_fused_on_cuda_with_dropout_too(overrides, kernel):
    estimate = costs(*LAYER, "train.batch_size=2", "task.max_length=16", *overrides).estimate
    assert (estimate.attention_kernel, estimate.device) == (kernel, "cuda")


@pytest.mark.parametrize("overrides", [(), ("train.precision=bf16",), ("backbone.attention=eager",)])
def test_checkpointed_layers_take_the_operators_of_cuda_a_second_time(overrides):
    """What is computed again in the backward pass is one more forward pass of the layers, in the same operators."""
    settings = (*LAYER, "method=full", "train.batch_size=2", "task.max_length=16", *overrides)
    plain, checkpointed = (costs(*settings, f"train.gradient_checkpointing={word}") for word in ("false", "true"))
    again = checkpointed.flops.train_step_flops - plain.flops.train_step_flops
    # The pooler and the head, 2 x 768 x (768 + 2) products, are not computed again.
    assert again == plain.flops.inference_flops - 2 * 2 * 768 * (768 + 2)
    # Kept are the states before and after the layer, instead of all that is inside.
    assert checkpointed.estimate.activations_bytes < plain.estimate.activations_bytes / 3
    assert checkpointed.estimate.attention_kernel == plain.estimate.attention_kernel


@pytest.mark.parametrize("method", ["full", "lora", "flat"])
@pytest.mark.parametrize(("task_type", "labels"), [("tagging", ["O", "B-x", "I-x"]), ("multilabel", ["a", "b", "c"])])
def test_other_types_of_task_are_estimated_with_their_head_and_loss(task_type, labels, method):
    cfg = composed(*SMALL, f"method={method}", "train.batch_size=4")
    cfg = replace(cfg, task=replace(cfg.task, type=task_type, max_length=12))
    backbone = open_backbone(cfg.backbone, cfg.layers, weights=False, task_type=task_type)
    estimate = estimate_costs(cfg, backbone, labels).estimate
    model, _ = build_adapted(cfg, backbone, labels, 100)
    optimizer = build_optimizer(model.train(), cfg.train, backbone.anatomy.in_head)
    shape = (4, 12) if task_type == "tagging" else (4, 3)
    labels_of_batch = torch.zeros(shape, dtype=torch.int64 if task_type == "tagging" else torch.float32)
    real = measure_update(
        model,
        optimizer,
        [{"input_ids": torch.zeros(4, 12, dtype=torch.int64), "labels": labels_of_batch}],
        max_grad_norm=cfg.train.max_grad_norm,
    )
    assert (estimate.peak_bytes, estimate.activations_bytes) == (real.peak, real.activations)
    assert (estimate.gradients_bytes, estimate.optimizer_bytes) == (real.gradients, real.optimizer)
    other = {"tagging": "multilabel", "multilabel": "classification"}[task_type]
    assert cost_key(cfg, backbone.plan, labels) != cost_key(
        replace(cfg, task=replace(cfg.task, type=other)), backbone.plan, labels
    )
