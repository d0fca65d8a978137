"""`petl-bench check`: a broken method is told by the name of the check, with a sentence."""

from __future__ import annotations

import json

import pytest
import torch

from petl_bench.catalog import CheckOutcome, check_lines, check_method, probe
from petl_bench.cli import main
from petl_bench.errors import RequestError
from petl_bench.methods import registry
from petl_bench.methods.base import with_adapter
from petl_bench.methods.registry import Method

BERT = ["backbone=tiny_bert", "backbone.architecture.num_hidden_layers=2"]


def norms(model, config, context):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "LayerNorm" in name or context.anatomy.in_head(name)
    return model


def lora(model, context):
    from peft import LoraConfig

    pattern = context.anatomy.layer_pattern(context.plan.adapted, ["query"])
    return with_adapter(model, LoraConfig(r=2, target_modules=pattern), context.anatomy)


def changes_the_base(model, config, context):
    adapted = lora(model, context)
    with torch.no_grad():
        model.get_parameter("bert.encoder.layer.0.output.dense.weight").mul_(1.5)
    return adapted


def moves_the_base(model, config, context):
    adapted = norms(model, config, context)

    def shift(module, _inputs):
        with torch.no_grad():
            module.dense.bias.add_(0.01)

    model.bert.encoder.layer[0].output.register_forward_pre_hook(shift)
    return adapted


def forgets_the_head(model, config, context):
    adapted = lora(model, context)
    for name, parameter in adapted.named_parameters():
        if context.anatomy.in_head(name):
            parameter.requires_grad = False
    return adapted


def trains_nothing(model, config, context):
    return model.requires_grad_(False)


def trains_what_has_no_effect(model, config, context):
    adapted = norms(model, config, context)
    adapted.bert.pooler.dense.forward = lambda x: x
    adapted.bert.pooler.dense.weight.requires_grad = True
    return adapted


class Scaled(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.scale = inner, torch.nn.Parameter(torch.ones(32))

    def forward(self, *args):
        return self.inner(*args) * self.scale


def is_not_loaded(model, config, context):
    """Its parameters have no name by which PEFT would save them."""
    adapted = lora(model, context)
    layer = context.anatomy.get_layers(adapted.get_base_model())[0]
    layer.output = Scaled(layer.output)
    return adapted


def reads_padding(model, config, context):
    adapted = norms(model, config, context)
    adapted.bert.encoder.register_forward_hook(
        lambda _m, _i, out: type(out)(last_hidden_state=out[0] + out[0].mean(dim=1, keepdim=True))
    )
    return adapted


def does_not_fit(model, config, context):
    raise RequestError("method=does_not_fit does not fit bert: it says why.")


@pytest.fixture
def found(monkeypatch):
    """The checks of one of the functions above that fail, with their sentences."""

    def call(adapt):
        method = Method(adapt.__name__, "", "", adapt=f"{__name__}:{adapt.__name__}")
        registry.all_methods()
        monkeypatch.setitem(registry._METHODS, method.name, method)
        outcomes = check_method([f"method={method.name}", *BERT])
        assert {one.architecture for one in outcomes} == {"bert"}
        return outcomes

    return call


def failures(outcomes):
    return {one.check: one.reason for one in outcomes if one.status == "failed"}


def test_a_method_that_does_what_it_must_passes(found):
    outcomes = found(norms)
    assert failures(outcomes) == {}
    assert {one.check for one in outcomes if one.status == "ok"} == {
        "something_is_trained_and_moves", "the_head_is_trained", "the_base_model_is_left_alone",
        "padding_changes_nothing", "it_is_saved_and_loads", "gradient_checkpointing_changes_no_gradient",
        "it_trains_in_bf16", "hidden_states_are_what_the_layers_put_out",
        "its_costs_are_counted_without_weights",
    }  # fmt: skip
    assert {one.reason for one in outcomes if one.status == "does not apply"} == {"the method is no PEFT adapter"}


@pytest.mark.parametrize(
    ("adapt", "told"),
    [
        (
            changes_the_base,
            {
                "the_base_model_is_left_alone": "adapting the base model changes its bert.encoder.layer.0.output.dense",
                "switched_off_it_is_the_base": "disabled, it is not the base model: the largest difference is",
                "it_is_saved_and_loads": "loaded, it is another model: the largest difference is",
            },
        ),
        (moves_the_base, {"the_base_model_is_left_alone": "output.dense.bias is not trainable, and moves in three"}),
        (forgets_the_head, {"the_head_is_trained": "the head (classifier) is not trained"}),
        (trains_nothing, {"something_is_trained_and_moves": "no parameter of the adapted model is trainable"}),
        (
            trains_what_has_no_effect,
            {"something_is_trained_and_moves": "bert.pooler.dense.weight is trainable, and does not move in three"},
        ),
        (is_not_loaded, {"it_is_saved_and_loads": "loaded, it is another model: the largest difference is"}),
        (reads_padding, {"padding_changes_nothing": "a row of 7 tokens has other logits alone than padded in a batch"}),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_broken_method_is_told_by_the_name_of_the_check(found, adapt, told):
    failed = failures(found(adapt))
    for check, sentence in told.items():
        assert sentence in failed[check]


def test_a_method_that_refuses_an_architecture_is_not_broken(found):
    outcomes = found(does_not_fit)
    assert {(one.status, one.reason) for one in outcomes} == {
        ("refused", "method=does_not_fit does not fit bert: it says why")
    }


def test_capabilities_say_how_a_plugin_fails(monkeypatch):
    monkeypatch.setattr(Method, "resolve", lambda *_: fails)
    capability = probe(["method=lora"], "bert")
    assert capability.adapts == capability.tags == "KeyError: 'no_such_part'"


def fails(model, config, context):
    raise KeyError("no_such_part")


def test_each_check_has_a_line_with_the_reason():
    outcomes = [
        CheckOutcome("head", "bert", "ok"),
        CheckOutcome("base", "bert", "ok"),
        CheckOutcome("head", "electra", "ok"),
        CheckOutcome("base", "electra", "failed", "it moves"),
    ]
    assert check_lines(outcomes) == [
        "ok              head",
        "ok              base on bert",
        "failed          base on electra: it moves",
        "2 checks on bert, electra: 1 failed",
    ]


def test_the_command_prints_them_and_its_exit_code_says_whether_one_failed(capsys, monkeypatch):
    assert main(["check", "lora", "method.r=2", *BERT]) == 0
    assert capsys.readouterr().out.endswith("13 checks on bert: none failed\n")
    monkeypatch.setattr(
        "petl_bench.catalog.check_method", lambda _: [CheckOutcome("head", "bert", "failed", "it stays")]
    )
    assert main(["check", "lora", "--json"]) == 1
    (outcome,) = json.loads(capsys.readouterr().out)
    assert outcome == {"check": "head", "architecture": "bert", "status": "failed", "reason": "it stays"}


def test_a_wrong_name_is_told(capsys):
    assert main(["check", "lroa"]) == 2
    assert "method=lroa is not known" in capsys.readouterr().err
