"""The split point of methods x architectures, and models that run on the features below it with the same outputs."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from behaviour.matrix import ARCHITECTURES, METHODS, adapted, opened, two_layers
from petl_bench.frozen.batch_source import FeatureBatchSource
from petl_bench.frozen.features import compute_features
from petl_bench.frozen.split import FrozenLayers, find_split
from petl_bench.tasks.encode import EncodedRows
from petl_bench.training.batches import BatchSource, collate

TOP = ["layers=top", "layers.k=1"]
ALL = "all"
# Method, further settings, and what the rest reads: the state under its lowest trained layer, or all of them.
SPLITS = {
    "head": ("head", [], "last"),
    "head_pooler": ("head_pooler", [], "last"),
    "flat": ("flat", [], ALL),
    "lst": ("lst", [], ALL),
    "lora_top": ("lora", TOP, "last"),
    "houlsby_top": ("houlsby", TOP, "last"),
    "prefix_top": ("prefix", TOP, "last"),
    "coda_top": ("coda", TOP, "last"),
}
MATRIX = [(name, arch) for name, (method, _, _) in SPLITS.items() for arch in ARCHITECTURES
          if arch not in METHODS[method].not_on]  # fmt: skip


def rows(lengths=(9, 4, 9, 1, 6, 4, 9, 2)):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.random.default_rng(0).integers(10, 50, size=offsets[-1]).astype(np.int32)
    return EncodedRows(ids, None, offsets, np.arange(len(lengths)) % 2, 0)


def split_of(name, architecture):
    method, overrides, _ = SPLITS[name]
    model, backbone = adapted(method, architecture, two_layers(architecture), *overrides)
    inputs = collate(rows(), np.array([0, 2])).inputs
    return model, backbone, find_split(model, backbone.anatomy, inputs, nullcontext)


@pytest.mark.parametrize(("name", "architecture"), MATRIX)
def test_the_rest_on_given_states_is_the_whole_model(name, architecture):
    model, backbone, split = split_of(name, architecture)
    num_layers = backbone.plan.num_layers
    assert split is not None
    assert split.depth == (num_layers - 1 if name.endswith("_top") else num_layers)
    assert split.reads == (tuple(range(num_layers + 1)) if SPLITS[name][2] == ALL else (split.depth,))
    frozen = FrozenLayers(model, backbone.anatomy, split, nullcontext)
    all_rows, device = rows(), torch.device("cpu")
    cached = compute_features(frozen, all_rows, np.arange(len(all_rows)), device)
    indices = np.array([5, 0, 3, 4])
    with torch.no_grad():
        plain, once, each = (
            BatchSource(all_rows, device),
            *(FeatureBatchSource(all_rows, device, frozen, c) for c in (cached, None)),
        )
        whole = plain.forward(model, plain.batch(indices)).logits
        from_cache = once.forward(model, once.batch(indices)).logits
        computed = each.forward(model, each.batch(indices)).logits
    assert torch.allclose(whole, from_cache, atol=1e-5)
    assert torch.equal(from_cache, computed), "which rows share a pass must not matter"
    # Nothing of it stays behind.
    with torch.no_grad():
        assert torch.equal(plain.forward(model, plain.batch(indices)).logits, whole)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_what_reads_one_token_is_given_one(architecture):
    # ModernBERT's head takes the mean over tokens, unless its config says otherwise.
    _, backbone, split = split_of("head", architecture)
    assert split.first_token == (getattr(backbone.config, "classifier_pooling", "cls") == "cls")
    assert not split_of("flat", architecture)[2].first_token
    assert not split_of("lora_top", architecture)[2].first_token


@pytest.mark.parametrize("method", ["lora", "bitfit", "houlsby", "prefix", "fl_tuning", "coda", "ia3"])
def test_no_split_where_the_lowest_layer_is_adapted(method):
    model, backbone = adapted(method, "bert")
    assert find_split(model, backbone.anatomy, collate(rows(), np.array([0, 2])).inputs, nullcontext) is None


def test_no_split_where_trained_prompts_stand_before_the_first_layer():
    # PEFT keeps them outside the layers: by its name alone such a parameter would seem to be above them.
    from peft import PromptTuningConfig, TaskType, get_peft_model

    _, backbone = opened("bert")
    config = PromptTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=3)
    model = get_peft_model(backbone.build_model(2), config)
    inputs = collate(rows(), np.array([0, 2])).inputs | {"attention_mask": torch.ones(2, 9, dtype=torch.long)}
    assert find_split(model, backbone.anatomy, inputs, nullcontext) is None


def test_a_model_that_reads_its_layers_otherwise_is_not_split(caplog):
    """A method from elsewhere may look into the frozen layers; given states would go unseen."""
    model, backbone = adapted("head", "bert")
    classifier = model.get_base_model()
    seen = []
    classifier.register_forward_pre_hook(lambda *_: seen.clear())
    classifier.bert.encoder.layer[0].intermediate.register_forward_hook(lambda *_: seen.append(1.0))
    classifier.classifier.register_forward_hook(lambda _module, _args, output: output + sum(seen))
    assert find_split(model, backbone.anatomy, collate(rows(), np.array([0, 2])).inputs, nullcontext) is None
    assert "cannot be computed apart" in caplog.text


def zero_start(model, backbone, read):
    """Adds what `read` makes of the states to the outputs, by a trained factor that starts at 0, as adapters do."""
    classifier = model.get_base_model()
    classifier.factor = torch.nn.Parameter(torch.zeros(()))
    states = {}
    for number, layer in enumerate(backbone.anatomy.get_layers(classifier), start=1):
        layer.register_forward_hook(lambda _module, _args, output, number=number: states.update({number: output}))
    classifier.classifier.register_forward_hook(
        lambda _module, _args, output: output + classifier.factor * read(states)
    )


def test_what_starts_at_zero_is_seen_all_the_same():
    inputs = collate(rows(), np.array([0, 2])).inputs
    ladder, backbone = adapted("head", "bert")
    zero_start(ladder, backbone, lambda states: states[1][:, 0, :1])
    assert find_split(ladder, backbone.anatomy, inputs, nullcontext) is None
    factor = ladder.get_base_model().factor
    assert factor.item() == 0.0, "checking a model must not change it"

    for read in (lambda states: states[4][:, :, :1].mean(dim=1), lambda states: states[4][:, 1, :1]):
        model, backbone = adapted("head", "bert")
        zero_start(model, backbone, read)
        split = find_split(model, backbone.anatomy, inputs, nullcontext)
        assert split is not None
        assert not split.first_token, "it reads the other tokens too"


def test_adapters_that_merge_in_evaluation_mode_are_trained():
    """As those of microsoft/LoRA: in evaluation mode the layer would seem frozen."""
    model, backbone = adapted("head", "bert")
    query = backbone.anatomy.get_layers(model.get_base_model())[0].attention.self.query
    query.scale = torch.nn.Parameter(torch.ones(()))
    query.register_forward_hook(
        lambda module, _args, output: output * (module.scale if module.training else module.scale.item())
    )
    assert find_split(model, backbone.anatomy, collate(rows(), np.array([0, 2])).inputs, nullcontext) is None


def test_parts_that_the_anatomy_does_not_place_prevent_a_split(caplog):
    # DeBERTa's convolution runs parallel to the first layer.
    convolution = ["+backbone.architecture.conv_kernel_size=3", "+backbone.architecture.conv_act=gelu"]
    model, backbone = adapted("head", "deberta-v2", *convolution)
    assert find_split(model, backbone.anatomy, collate(rows(), np.array([0, 2])).inputs, nullcontext) is None
    assert "cannot be computed apart" in caplog.text


def test_frozen_layers_run_without_dropout_while_the_rest_trains():
    model, backbone, split = split_of("lora_top", "bert")
    frozen = FrozenLayers(model, backbone.anatomy, split, nullcontext)
    source = FeatureBatchSource(rows(), torch.device("cpu"), frozen, None)
    model.train()
    first, second = (source.batch(np.array([0, 1])).states[split.depth] for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert model.training
    assert all(module.training for module in frozen.above)
