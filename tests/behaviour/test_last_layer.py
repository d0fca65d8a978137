"""The last layer for the first token alone, methods x architectures: the same outputs and gradients, or refused."""

from __future__ import annotations

import copy

import pytest
import torch

from behaviour import matrix
from behaviour.matrix import ARCHITECTURES, LABELS, METHODS, batch, half, logits, train, two_layers
from petl_bench.errors import RequestError
from petl_bench.frozen import features
from petl_bench.frozen.features import narrow_last_layer
from petl_bench.frozen.split import perturbed
from petl_bench.methods.base import adapt
from petl_bench.methods.registry import AdaptContext

# What reads other tokens of the last layer, or acts between its parts, with words of the reason.
REFUSED = {
    "prefix": "PrefixLayer acts on its attention",
    "coda": "CodaLayer acts on the layer itself",
    "flat": "around the encoder",
    "lst": "around the encoder",
}
REFUSED_ON = {
    "deberta-v2": "as many queries as keys",
    "mpnet": "as many queries as keys",
    "modernbert": "do not follow the sums",
}
# XLM-R's layers are RoBERTa's.
OTHERS = [arch for arch in ARCHITECTURES if arch != "xlm-roberta"]
MATRIX = [(name, arch) for name, row in METHODS.items() for arch in OTHERS if arch not in row.not_on]
POSSIBLE = [(name, arch) for name, arch in MATRIX if name.split("_")[0] not in REFUSED and arch not in REFUSED_ON]


def opened(architecture, *overrides):
    return matrix.opened(architecture, *overrides, two_layers(architecture))


def adapted(method, architecture, *overrides):
    return matrix.adapted(method, architecture, two_layers(architecture), *overrides)


def without_memory(method, architecture):
    cfg, backbone = opened(architecture, *METHODS[method].overrides)
    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps=1000)
    with torch.device("meta"):
        return adapt(backbone.build_model(2, device="meta"), cfg.method, context)


def narrowed(method, architecture, *overrides):
    model, backbone = adapted(method, architecture, *overrides)
    narrow_last_layer(model, backbone.anatomy)
    return model, backbone


def gradients(model, **inputs):
    model.zero_grad()
    model(**inputs, labels=LABELS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    # What cancels in theory (a key's bias) is noise.
    floor = 1e-2 * tolerance * max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= tolerance * float(gradient.norm()) + floor, name


@pytest.mark.parametrize(("method", "architecture"), half(MATRIX, 0))
def test_it_is_right_or_refused_with_and_without_values(method, architecture, monkeypatch):
    model, backbone = adapted(method, architecture)
    meta_model = without_memory(method, architecture)
    reason = REFUSED_ON.get(architecture) or REFUSED.get(method.split("_")[0])
    if reason is not None:
        monkeypatch.setattr(features, "_narrowing_matches", lambda *_: pytest.fail("seen without a trial"))
        for one in (model, meta_model):
            with pytest.raises(RequestError, match=reason) as raised:
                narrow_last_layer(one, backbone.anatomy)
            assert "train.last_layer=all" in str(raised.value)
        return
    torch.manual_seed(2)
    with perturbed(model):
        plain = [(logits(model, **inputs), gradients(model, **inputs)) for inputs in (batch(), batch(padded=False))]
        names = list(model.state_dict())
        narrow_last_layer(model, backbone.anatomy)
        narrow_last_layer(meta_model, backbone.anatomy)
        for inputs, (outputs, expected) in zip((batch(), batch(padded=False)), plain, strict=True):
            torch.testing.assert_close(logits(model, **inputs), outputs, rtol=1e-5, atol=1e-6)
            assert_close(gradients(model, **inputs), expected)
    assert list(model.state_dict()) == names
    for one in (model, meta_model):
        classifier = one.get_base_model()
        assert "forward" in vars(type(backbone.anatomy.get_layers(classifier)[-1]))
    shapes = []
    backbone.anatomy.get_layers(classifier)[-1].register_forward_hook(lambda *parts: shapes.append(parts[2].shape))
    meta_model(input_ids=torch.zeros(3, 7, dtype=torch.int64, device="meta"))
    assert shapes == [(3, 1, backbone.config.hidden_size)]


@pytest.mark.parametrize(("method", "architecture"), half([pair for pair in MATRIX if pair not in POSSIBLE], 1))
def test_trying_alone_is_as_strict(method, architecture, monkeypatch):
    monkeypatch.setattr(features, "_obstacle", lambda *_: None)
    model, backbone = adapted(method, architecture)
    torch.manual_seed(2)
    with perturbed(model):
        plain, expected = logits(model), gradients(model, **batch())
        try:
            narrow_last_layer(model, backbone.anatomy)
        except RequestError:
            assert torch.equal(logits(model), plain)
            return
        torch.testing.assert_close(logits(model), plain, rtol=1e-5, atol=1e-6)
        assert_close(gradients(model, **batch()), expected)


@pytest.mark.parametrize("architecture", sorted({arch for _, arch in POSSIBLE}))
def test_full_fine_tuning_has_the_same_gradients(architecture):
    _, backbone = opened(architecture)
    model = backbone.build_model(2).eval()
    expected = gradients(model, **batch())
    narrow_last_layer(model, backbone.anatomy)
    assert_close(gradients(model, **batch()), expected)


@pytest.mark.parametrize(("method", "architecture"), [pair for pair in POSSIBLE if pair[1] == "bert"])
def test_training_checkpointing_and_merging_go_on_as_before(method, architecture):
    model, backbone = narrowed(method, architecture)
    train(model)
    plain, _ = adapted(method, architecture)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-6)

    model.train()
    torch.manual_seed(3)
    before = gradients(model, **batch())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    layer = backbone.anatomy.get_layers(model.get_base_model())[-1]
    handle = layer.get_submodule(backbone.anatomy.key).register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(3)
    assert_close(gradients(model, **batch()), before)
    assert len(calls) == 2, "computed again in the backward pass"
    handle.remove()
    model.gradient_checkpointing_disable()

    model.eval()
    outputs = logits(model)
    if METHODS[method].merges:
        torch.testing.assert_close(logits(model.merge_and_unload()), outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", sorted({arch for _, arch in POSSIBLE}))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_kind_of_attention_and_mask(architecture, attention):
    model, backbone = adapted("lora", architecture, f"backbone.attention={attention}")
    classifier = model.get_base_model()
    encoder = classifier.get_submodule(backbone.anatomy.encoder)
    square = batch()["attention_mask"][:, None, None, :].bool().expand(4, 1, 10, 10)
    added = torch.zeros(square.shape).masked_fill(~square, torch.finfo(torch.float32).min)
    inputs = [batch(), batch() | {"attention_mask": added}, {"input_ids": batch()["input_ids"]}]
    if attention == "sdpa":
        inputs.append(batch() | {"attention_mask": square})

    def first(given):
        with torch.no_grad():
            return encoder(**given).last_hidden_state[:, 0]

    plain = [first(given) for given in inputs]
    narrow_last_layer(model, backbone.anatomy)
    for given, expected in zip(inputs, plain, strict=True):
        torch.testing.assert_close(first(given), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = logits(model)
    torch.testing.assert_close(low.float(), logits(model), rtol=0.1, atol=0.05)


def test_a_copy_runs_its_own_parts():
    model, backbone = narrowed("houlsby", "bert")
    other = copy.deepcopy(model)
    before = logits(model)
    with torch.no_grad():
        for parameter in backbone.anatomy.get_layers(other.get_base_model())[-1].parameters():
            parameter.mul_(1.5)
    assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(other), before)


@pytest.mark.parametrize("token", [0, 1])
def test_what_reads_another_token_is_found_by_trying(token):
    """As a method from elsewhere may, by a factor that starts at 0."""
    model, backbone = adapted("head", "bert")
    classifier = model.get_base_model()
    classifier.factor = torch.nn.Parameter(torch.zeros(()))
    seen = {}
    layer = backbone.anatomy.get_layers(classifier)[-1]
    layer.register_forward_hook(lambda _module, _args, output: seen.update(state=output[:, -1 if token else 0, :1]))
    classifier.classifier.register_forward_hook(
        lambda _module, _args, output: output + classifier.factor * seen["state"]
    )
    plain = type(layer)
    if token == 0:
        narrow_last_layer(model, backbone.anatomy)
        return
    with pytest.raises(RequestError, match="other tokens"):
        narrow_last_layer(model, backbone.anatomy)
    assert type(layer) is plain
    assert classifier.factor.item() == 0.0


def test_hooks_between_the_parts_are_not_passed_over():
    model, backbone = adapted("head", "bert")
    layer = backbone.anatomy.get_layers(model.get_base_model())[-1]
    layer.attention.register_forward_hook(lambda _module, _args, output: output)
    with pytest.raises(RequestError, match="a hook acts on its attention"):
        narrow_last_layer(model, backbone.anatomy)


def test_parts_that_mix_tokens_are_found_by_trying():
    """Lily's router takes the mean over tokens, in the query's projection too; the outputs hardly show it."""
    cfg, backbone = opened("bert", "method=peft", "method.type=LILY")
    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps=1000)
    model = adapt(backbone.build_model(2), cfg.method, context)
    with pytest.raises(RequestError, match="other tokens"):
        narrow_last_layer(model, backbone.anatomy)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_trained_prompts_are_refused(kind):
    from peft import PeftType, TaskType, get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    _, backbone = opened("bert")
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](task_type=TaskType.SEQ_CLS, num_virtual_tokens=3)
    model = get_peft_model(backbone.build_model(2), config)
    with pytest.raises(RequestError, match=f"{kind} brings tokens of its own"):
        narrow_last_layer(model, backbone.anatomy)
