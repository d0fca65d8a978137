"""What every method must do, on every architecture: methods x architectures x behaviours."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from behaviour import matrix
from behaviour.matrix import (
    ARCHITECTURES,
    LABELS,
    MATRIX,
    METHODS,
    OWN,
    OWN_MATRIX,
    VARIANTS,
    batch,
    expected_names,
    half,
    logits,
    repetitive_batch,
    train,
    two_layers,
)
from petl_bench.errors import RequestError
from petl_bench.model import build_adapted


def pairs(turn: int):
    return pytest.mark.parametrize(("method", "architecture"), half(MATRIX, turn))


def own_pairs(turn: int):
    return pytest.mark.parametrize(("method", "architecture"), half(OWN_MATRIX, turn))


# Where one architecture stands for all.
on_two = pytest.mark.parametrize(
    ("method", "architecture"), [pair for pair in OWN_MATRIX if pair[1] in ("bert", "modernbert")]
)


def adapted(method: str, architecture: str, *overrides: str):
    return matrix.adapted(method, architecture, two_layers(architecture), *overrides)


def trained(method: str, architecture: str):
    return matrix.trained(method, architecture, two_layers(architecture))


def plain_model(architecture: str) -> torch.nn.Module:
    return matrix.plain_model(architecture, two_layers(architecture))


def shared_trained(method: str, architecture: str) -> torch.nn.Module:
    return matrix.shared_trained(method, architecture, two_layers(architecture))


def plain_logits(architecture: str) -> torch.Tensor:
    return logits(matrix.shared_plain(architecture, two_layers(architecture)))


def trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("method", "architecture"), MATRIX)
def test_what_is_trainable_moves_and_nothing_else(method, architecture):
    model, backbone = adapted(method, architecture)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    names = trainable(model)
    assert any(backbone.anatomy.in_head(name) for name in names), "the head must be trained"
    plain = matrix.shared_plain(architecture, two_layers(architecture))
    expected = expected_names(method, backbone.anatomy, model, plain)
    if expected is not None:
        assert {name for name in names if not backbone.anatomy.in_head(name)} == expected
    train(model)
    for name, parameter in model.named_parameters():
        moved = not torch.equal(before[name], parameter.detach())
        assert moved <= (name in names), f"{name} is frozen and moved"
        assert moved or name not in names or METHODS[method].blocked(name), f"{name} is trainable and did not move"
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())


@pairs(0)
def test_disabled_it_is_the_base_bit_for_bit(method, architecture):
    model, plain = trained(method, architecture)[0], plain_logits(architecture)
    assert not torch.equal(logits(model), plain)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert not torch.equal(logits(model), plain)


@pairs(1)
def test_padding_changes_nothing(method, architecture):
    model = shared_trained(method, architecture)
    # Equal tokens have equal states where positions are relative.
    for inputs in (batch(), repetitive_batch()):
        together = logits(model, **inputs)
        for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
            alone = logits(model, **{name: tensor[row : row + 1, :length] for name, tensor in inputs.items()})
            torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=2e-6)
        wider = {name: torch.nn.functional.pad(tensor, (0, 7)) for name, tensor in inputs.items()}
        torch.testing.assert_close(logits(model, **wider), together, rtol=1e-5, atol=2e-6)


@pairs(0)
def test_it_is_saved_in_pefts_format_and_loads(method, architecture, tmp_path):
    model = shared_trained(method, architecture)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert {file.name for file in tmp_path.iterdir()} <= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    loaded = PeftModel.from_pretrained(plain_model(architecture), tmp_path)
    assert torch.equal(logits(loaded.eval()), logits(model))
    assert not trainable(loaded)
    again = PeftModel.from_pretrained(plain_model(architecture), tmp_path, is_trainable=True)
    assert torch.equal(logits(again.eval()), logits(model))
    assert trainable(again)


@pairs(1)
def test_merging_is_exact_or_refused_with_a_reason(method, architecture):
    model, _ = trained(method, architecture)
    if METHODS[method].merges:
        before = logits(model)
        merged = model.merge_and_unload()
        torch.testing.assert_close(logits(merged), before, rtol=1e-5, atol=1e-5)
        assert not any("default" in name for name, _ in merged.named_parameters())
    elif METHODS[method].own:
        before, names = logits(model), set(model.state_dict())
        with pytest.raises(ValueError, match="cannot be merged: "):
            model.merge_and_unload()
        # It is still what it was, and can be saved.
        assert set(model.state_dict()) == names
        assert torch.equal(logits(model), before)


@own_pairs(0)
def test_unloaded_it_is_the_base_with_the_trained_head(method, architecture):
    model, backbone = trained(method, architecture)
    unloaded = model.unload()
    plain = matrix.shared_plain(architecture, two_layers(architecture))
    assert {name: type(module) for name, module in unloaded.named_modules()} == {
        name: type(module) for name, module in plain.named_modules()
    }
    kept = plain.state_dict()
    saved_whole = model.peft_config["default"].to_dict().get("modules_to_save") or []
    for name, tensor in unloaded.state_dict().items():
        # PEFT leaves what it trained whole as it was trained.
        if not any(name.rpartition(".")[0].endswith(module) or f"{module}." in name for module in saved_whole):
            assert torch.equal(tensor, kept[name]), name
    outputs = unloaded(**batch(), output_hidden_states=True)
    assert len(outputs.hidden_states) == backbone.plan.num_layers + 1


@own_pairs(1)
def test_two_adapters_on_one_backbone(method, architecture):
    model, _ = trained(method, architecture)
    first = logits(model)
    settings = copy.deepcopy(model.peft_config["default"])
    # PEFT appends its guess at the head's name once more.
    if getattr(settings, "modules_to_save", None):
        settings.modules_to_save = list(dict.fromkeys(settings.modules_to_save))
    model.add_adapter("second", settings)
    model.set_adapter("second")
    assert not torch.equal(logits(model), first)
    assert all(".second" in name for name in trainable(model))
    train(model)
    second = logits(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert torch.equal(logits(model), second)
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


# Transformers cannot checkpoint MPNet.
@pytest.mark.parametrize(("method", "architecture"), half([pair for pair in OWN_MATRIX if pair[1] != "mpnet"], 0))
def test_gradient_checkpointing_gives_the_same_gradients(method, architecture):
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model, _ = adapted(method, architecture)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        torch.manual_seed(3)
        model(**batch(), labels=LABELS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)


def test_an_architecture_that_cannot_be_checkpointed_is_refused():
    cfg, backbone = matrix.opened("mpnet", "method=lora", "train.gradient_checkpointing=true")
    with pytest.raises(RequestError, match=r"train\.gradient_checkpointing=true does not work here: MPNet"):
        build_adapted(cfg, backbone, ["a", "b"], 10)


@on_two
def test_it_trains_in_bf16(method, architecture):
    model, _ = adapted(method, architecture)
    model.to(torch.bfloat16)
    loss = model(**batch(), labels=LABELS).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    # Autocast, the backbone in bf16 and the adapter in fp32 (as PEFT makes it).
    half = plain_model(architecture).to(torch.bfloat16)
    mixed = get_peft_model(half, copy.deepcopy(model.peft_config["default"]))
    assert torch.isfinite(mixed(**batch()).logits).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(adapted(method, architecture)[0](**batch()).logits).all()


@own_pairs(1)
def test_hidden_states_are_what_the_layers_put_out(method, architecture):
    model = shared_trained(method, architecture)
    outputs: list[torch.Tensor] = []

    def keep(_module, _inputs, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    layers = matrix.opened(architecture)[1].anatomy.get_layers(model.base_model.model)
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    with torch.no_grad():
        states = model(**batch(), output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    assert len(states) == len(outputs) + 1 == len(layers) + 1
    for state, output in zip(states[1:-1], outputs[:-1], strict=True):
        assert torch.equal(state, output)
    assert states[-1].shape == states[0].shape == (4, 10, 32)


# Seconds each, so one method for each place where methods act: between modules, in the attention, in linear layers, in
# place of a layer, around the encoder. The other method of a place, or its other architecture, is slow.
COMPILED = {("houlsby", "bert"), ("prefix", "bert"), ("fl_tuning", "bert"), ("coda", "modernbert"), ("flat", "bert")}


@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        pytest.param(*pair, marks=[] if pair in COMPILED else [pytest.mark.slow])
        for pair in OWN_MATRIX
        if pair[0] not in VARIANTS and (pair[1] == "bert" or pair in {("coda", "modernbert"), ("prefix", "modernbert")})
    ],
)
def test_it_compiles(method, architecture):
    torch._dynamo.reset()
    # Layers are compiled one by one: a second one shows nothing new and takes as long.
    layers = two_layers(architecture).replace("=2", "=1")
    model, _ = matrix.trained(method, architecture, layers)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(logits(compiled), logits(model), rtol=1e-4, atol=1e-5)


@on_two
def test_a_copy_is_independent(method, architecture):
    model, _ = adapted(method, architecture)
    before = logits(model)
    duplicate = copy.deepcopy(model)
    train(duplicate)
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(duplicate), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_eager_attention_gives_what_sdpa_gives(architecture):
    for method in ("prefix", "coda"):
        wanted = "null" if architecture in ("deberta-v2", "mpnet") else "sdpa"
        fast, _ = adapted(method, architecture, f"backbone.attention={wanted}")
        slow, _ = adapted(method, architecture, "backbone.attention=eager")
        torch.testing.assert_close(logits(fast), logits(slow), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "architecture"), [(m, a) for m in METHODS for a in METHODS[m].not_on])
def test_what_does_not_fit_is_refused_with_a_reason(method, architecture):
    with pytest.raises(RequestError, match=architecture):
        adapted(method, architecture)


@own_pairs(0)
def test_it_works_outside_on_a_bare_encoder(method, architecture):
    """Without petl_bench's runner: `get_peft_model` with the config alone, on what `AutoModel` gives."""
    model = matrix.shared_adapted(method, architecture, two_layers(architecture))
    anatomy = matrix.opened(architecture)[1].anatomy
    config = copy.deepcopy(model.peft_config["default"])
    config.target_modules = config.modules_to_save = config.task_type = None
    encoder = plain_model(architecture).get_submodule(anatomy.encoder)
    if method.startswith(("flat", "lst")):
        with pytest.raises(ValueError, match="sequence classifier"):
            get_peft_model(encoder, config)
        return
    outside = get_peft_model(encoder, config)
    assert outside(**batch()).last_hidden_state.shape == (4, 10, 32)
    # The same parts are adapted as in the classifier, and CoDA's last router learns where all states are read.
    prefix = f"base_model.model.{anatomy.encoder}."
    inside = {name.removeprefix(prefix) for name in trainable(model) if name.startswith(prefix)}
    inside |= {name.replace(".0.coda_router", ".1.coda_router") for name in inside}
    assert {name.removeprefix("base_model.model.") for name in trainable(outside)} == inside


@pytest.mark.parametrize("method", [name for name in OWN if name != "bitfit"])
def test_an_unknown_architecture_is_refused_by_name(method):
    gpt = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=32)
    )
    config = copy.deepcopy(matrix.shared_adapted(method, "bert", two_layers("bert")).peft_config["default"])
    config.target_modules = config.modules_to_save = None
    with pytest.raises(ValueError, match="gpt2"):
        get_peft_model(gpt, config)


def test_adapters_load_in_a_new_process(tmp_path):
    expected = {}
    for method in OWN:
        model = shared_trained(method, "bert")
        model.save_pretrained(tmp_path / method, save_embedding_layers=False)
        expected[method] = logits(model).tolist()
    plain_model("bert").save_pretrained(tmp_path / "base")
    script = f"""
import json, sys
import petl_bench, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
inputs = {{name: torch.tensor(rows) for name, rows in json.loads(sys.argv[1]).items()}}
found = {{}}
for method in {OWN!r}:
    base = AutoModelForSequenceClassification.from_pretrained({str(tmp_path / "base")!r})
    model = PeftModel.from_pretrained(base, f"{tmp_path}/{{method}}").eval()
    with torch.no_grad():
        found[method] = model(**inputs).logits.tolist()
print(json.dumps(found))
"""
    inputs = json.dumps({name: tensor.tolist() for name, tensor in batch().items()})
    done = subprocess.run([sys.executable, "-c", script, inputs], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == expected
