"""The memory estimate: equal on real and fake tensors, equal to torch's tracker, and to known peaks of BERT-base."""

from __future__ import annotations

import copy
import functools
import warnings
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from behaviour.matrix import two_layers
from composed import composed
from petl_bench.backbones.load import open_backbone
from petl_bench.catalog import TINY_BACKBONES
from petl_bench.errors import RequestError
from petl_bench.estimate.costs import _search, cost_key, estimate_costs, largest_batch, pass_sizes
from petl_bench.estimate.memory import measure_update
from petl_bench.estimate.tensor_modes import OperatorListener, as_fake
from petl_bench.methods.base import adapt
from petl_bench.methods.registry import AdaptContext, all_methods
from petl_bench.model import build_adapted
from petl_bench.training.loop import build_optimizer

MIB = 2**20
# One layer is enough where it is the same sums for each.
SMALL = ("backbone=tiny_bert", "backbone.architecture.num_hidden_layers=1", "task.max_length=32")
METHODS = [name for name in all_methods() if name != "layer_selection"]
ARCHITECTURES = list(TINY_BACKBONES)
# Every method on BERT and on one other architecture, in turn; full fine-tuning on all of them.
PAIRS = sorted(
    {(method, "bert") for method in METHODS}
    | {(method, ARCHITECTURES[1 + number % (len(ARCHITECTURES) - 1)]) for number, method in enumerate(METHODS)}
    | {("full", architecture) for architecture in ARCHITECTURES}
)
OTHER_PAIRS = [
    pytest.param(method, architecture, marks=pytest.mark.slow)
    for method in METHODS
    for architecture in ARCHITECTURES
    if (method, architecture) not in PAIRS
]


def adapted(device: str, *overrides: str):
    cfg = composed("task=smoke", *overrides)
    backbone = open_backbone(cfg.backbone, cfg.layers, weights=False)
    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps=100)
    with torch.device("meta") if device == "meta" else nullcontext():
        return adapt(backbone.build_model(2, device=device), cfg.method, context)


def batch(rows, length, device="cpu"):
    return {
        "input_ids": torch.zeros(rows, length, dtype=torch.int64, device=device),
        "labels": torch.zeros(rows, dtype=torch.int64, device=device),
    }


def counted(model, mode=None, rows=(3,), length=10, **options):
    with mode or nullcontext():
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        device = next(model.parameters()).device
        batches = [batch(number, length, device) for number in rows]
        return measure_update(model, optimizer, batches, max_grad_norm=1.0, **options)


def numbers(count):
    """All but the timeline: within an operator, storages may be freed in another order."""
    return {name: value for name, value in vars(count).items() if name != "timeline"}


@functools.cache
def costs(*overrides: str):
    cfg = composed("task=mrpc", *overrides)
    backbone = open_backbone(cfg.backbone, cfg.layers, weights=False)
    return estimate_costs(cfg, backbone, cfg.task.labels)


@pytest.mark.parametrize(("method", "architecture"), [*PAIRS, *OTHER_PAIRS])
def test_fake_tensors_give_the_same_bytes_as_real_ones(method, architecture):
    overrides = (f"backbone={TINY_BACKBONES[architecture]}", two_layers(architecture), f"method={method}")
    autocast = None if architecture == "bert" else torch.bfloat16
    try:
        real = counted(adapted("cpu", *overrides), autocast=autocast)
    except RequestError as error:
        pytest.skip(str(error))
    meta_model = adapted("meta", *overrides)
    assert numbers(counted(meta_model, as_fake(meta_model, "cpu"), autocast=autocast)) == numbers(real)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("method=full", {"rows": (3, 2)}),
        ("method=full", {"autocast": torch.bfloat16}),
        # These types drop whole modules at random, which is a condition on values.
        ("method=peft method.type=LOHA", {}),
        ("method=peft method.type=VERA", {}),
        ("method=peft method.type=OFT", {}),
    ],
)
def test_fake_tensors_give_the_same_bytes_under_accumulation_autocast_and_types_of_peft(method, options):
    overrides = ("backbone=tiny_bert", "backbone.architecture.num_hidden_layers=2", *method.split())
    meta_model = adapted("meta", *overrides)
    real = counted(adapted("cpu", *overrides), **options)
    assert numbers(counted(meta_model, as_fake(meta_model, "cpu"), **options)) == numbers(real)


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


ALL_TARGETS = "method.targets=[query,key,value,attention_output,feed_forward_in,feed_forward_out]"


@pytest.mark.parametrize(
    ("overrides", "mib"),
    [
        (("method=full", "train.gradient_checkpointing=true"), 23),
        (("method=lora", ALL_TARGETS), 435),
        # The same sizes are compared with those of small models below.
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


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=full",),
        ("method=lora",),
        ("method=lora", ALL_TARGETS),
        ("method=bitfit",),
        ("method=full", "layers=top", "layers.k=2"),
    ],
)
def test_activations_are_what_autograd_saves(overrides):
    model = adapted("cpu", "backbone=tiny_bert", *overrides).train()
    known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    ids, labels = torch.zeros(3, 10, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    known |= {ids.untyped_storage().data_ptr(), labels.untyped_storage().data_ptr()}
    saved: dict[int, int] = {}
    kept = []  # so that no address is given away twice

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=labels).loss
    assert loss.requires_grad
    activations = counted(adapted("cpu", "backbone=tiny_bert", *overrides)).activations
    # The rest is the loss and the small results that it refers to, which live on without being saved for backward.
    assert 0 <= activations - sum(saved.values()) < 0.01 * activations


def test_full_fine_tuning_agrees_with_torchs_memory_tracker():
    """MemTracker does not support frozen parameters, so only full fine-tuning can be compared.

    All figures are equal to the byte, the peak included: both log the same storages. MemTracker alone assigns the
    gradients and temporaries of the backward pass in another way, so these are compared at its end.
    """
    model = adapted("cpu", "backbone=tiny_bert", "method=full").train()
    optimizer = torch.optim.AdamW(model.parameters())
    update = measure_update(model, optimizer, [batch(8, 32)])
    inputs = batch(8, 32)
    tracker = MemTracker()
    tracker.track_external(model, optimizer, *inputs.values())

    def tracked(when="current"):
        snapshot = tracker.get_tracker_snapshot(when)[torch.device("cpu")]
        return {kind.value if kind != "Total" else kind: size for kind, size in snapshot.items()}

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Module is None")
        with tracker:
            loss = model(**inputs).loss
            after_forward = tracked()
            loss.backward()
            after_backward = tracked()
            optimizer.step()
    assert after_forward["Parameter"] + after_forward["Buffer"] == update.weights
    assert after_forward["Activation"] == update.activations
    assert after_backward["Gradient"] == update.gradients
    assert after_backward["Optstate"] == update.optimizer
    assert tracked("peak")["Total"] == update.peak


def test_tied_weights_count_once():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
            self.second.weight = self.first.weight

        def forward(self, x, labels):
            out = self.second(self.first(x)).sum()
            return type("Output", (), {"loss": out})

    for fakes in (False, True):
        model = Tied()
        mode = as_fake(model, "cpu") if fakes else nullcontext()
        with mode:
            batches = [{"x": torch.zeros(2, 8), "labels": torch.zeros(2)}]
            count = measure_update(model, torch.optim.SGD(model.parameters(), momentum=0.9), batches)
        assert count.weights == count.gradients == count.optimizer == 4 * (64 + 8 + 8)
        assert model.first.weight is model.second.weight


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


def test_a_real_model_stays_as_it_is_with_learning_rates_of_zero():
    model = adapted("cpu", "backbone=tiny_bert", "method=lora").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)
    measure_update(model, optimizer, [batch(2, 8)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


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


def test_autocast_computes_norms_in_fp32_on_cuda_and_not_on_the_cpu():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Softmax(-1)).to("meta")
    dtypes = {}
    for device in ("cpu", "cuda"):
        copied = copy.deepcopy(model)
        with as_fake(copied, device), torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = copied[0](torch.zeros(2, 4))
            dtypes[device] = [copied[1](hidden).dtype, copied[2](hidden).dtype]
    assert dtypes == {"cpu": [torch.bfloat16] * 2, "cuda": [torch.float32] * 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_that_no_kernel_reads_are_not_fused(dtype):
    """Rows of 12 bf16 numbers do not begin at multiples of 16 bytes; a mask rules flash out."""
    query = torch.zeros(1, 1, 8, 12, dtype=dtype)
    mask = torch.ones(1, 1, 1, 8, dtype=torch.bool)
    names = []
    with as_fake(torch.nn.Linear(1, 1), "cuda"), OperatorListener(lambda operator, *_: names.append(str(operator))):
        torch.nn.functional.scaled_dot_product_attention(query, query, query, mask)
    assert any("efficient" in name for name in names) == (dtype == torch.float32)
    assert any("softmax" in name for name in names) == (dtype == torch.bfloat16)


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
