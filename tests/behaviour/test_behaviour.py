"""What every method must do, on every architecture: methods x architectures x behaviours."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from behaviour import matrix
from behaviour.matrix import (
    ARCHITECTURES,
    MATRIX,
    METHODS,
    OWN,
    OWN_MATRIX,
    VARIANTS,
    batch,
    expected_names,
    half,
    logits,
    train,
    trainable,
    two_layers,
)
from petl_bench import testing
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


def plain_model(architecture: str) -> torch.nn.Module:
    return matrix.plain_model(architecture, two_layers(architecture))


def shared_trained(method: str, architecture: str) -> torch.nn.Module:
    return matrix.shared_trained(method, architecture, two_layers(architecture))


def subject(method: str, architecture: str) -> testing.Subject:
    return matrix.subject(method, architecture, two_layers(architecture))


@pytest.mark.parametrize(("method", "architecture"), MATRIX)
def test_what_is_trainable_moves_and_nothing_else(method, architecture):
    one = subject(method, architecture)
    testing.something_is_trained_and_moves(one, METHODS[method].blocked)
    testing.the_head_is_trained(one)
    testing.the_base_model_is_left_alone(one)
    expected = expected_names(method, one.backbone.anatomy, one.fresh, one.plain)
    if expected is not None:
        assert {name for name in trainable(one.fresh) if not one.in_head(name)} == expected


@pairs(0)
def test_disabled_it_is_the_base_bit_for_bit(method, architecture):
    assert testing.switched_off_it_is_the_base(subject(method, architecture)) is None


@pairs(1)
def test_padding_changes_nothing(method, architecture):
    testing.padding_changes_nothing(subject(method, architecture))


@pairs(0)
def test_it_is_saved_in_pefts_format_and_loads(method, architecture):
    testing.it_is_saved_and_loads(subject(method, architecture))


@pytest.mark.parametrize(
    ("method", "architecture"), half([pair for pair in MATRIX if METHODS[pair[0]].own or METHODS[pair[0]].merges], 1)
)
def test_merging_is_exact_or_refused_with_a_reason(method, architecture):
    reason = testing.merging_is_exact_or_refused(subject(method, architecture))
    assert (reason is None) == METHODS[method].merges
    assert reason is None or reason.startswith("this adapter cannot be merged: ")


@own_pairs(0)
def test_unloaded_it_is_the_base_with_the_trained_head(method, architecture):
    assert testing.unloaded_it_is_the_base(subject(method, architecture)) is None


@own_pairs(1)
def test_two_adapters_on_one_backbone(method, architecture):
    assert testing.two_adapters_stay_apart(subject(method, architecture)) is None


# Transformers cannot checkpoint MPNet.
@pytest.mark.parametrize(("method", "architecture"), half([pair for pair in OWN_MATRIX if pair[1] != "mpnet"], 0))
def test_gradient_checkpointing_gives_the_same_gradients(method, architecture):
    assert testing.gradient_checkpointing_changes_no_gradient(subject(method, architecture)) is None


def test_an_architecture_that_cannot_be_checkpointed_is_refused():
    cfg, backbone = matrix.opened("mpnet", "method=lora", "train.gradient_checkpointing=true")
    with pytest.raises(RequestError, match=r"train\.gradient_checkpointing=true does not work here: MPNet"):
        build_adapted(cfg, backbone, ["a", "b"], 10)


@on_two
def test_it_trains_in_bf16(method, architecture):
    testing.it_trains_in_bf16(subject(method, architecture))


@own_pairs(1)
def test_hidden_states_are_what_the_layers_put_out(method, architecture):
    testing.hidden_states_are_what_the_layers_put_out(subject(method, architecture))


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
