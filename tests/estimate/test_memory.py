"""The bytes of an update: equal on real and fake tensors, and equal to what autograd and torch's tracker hold."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from behaviour.matrix import two_layers
from estimate.counted_updates import ALL_TARGETS, adapted, batch, counted
from petl_bench.catalog import TINY_BACKBONES
from petl_bench.errors import RequestError
from petl_bench.estimate.memory import measure_update
from petl_bench.estimate.tensor_modes import OperatorListener, as_fake
from petl_bench.methods.registry import all_methods

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


def numbers(count):
    """All but the timeline: within an operator, storages may be freed in another order."""
    return {name: value for name, value in vars(count).items() if name != "timeline"}


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


def test_a_real_model_stays_as_it_is_with_learning_rates_of_zero():
    model = adapted("cpu", "backbone=tiny_bert", "method=lora").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)
    measure_update(model, optimizer, [batch(2, 8)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


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
