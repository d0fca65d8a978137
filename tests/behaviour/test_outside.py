"""What users of PEFT do with adapters outside petl_bench, beyond one adapter on one classifier."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

from behaviour.matrix import (
    LABELS,
    OWN,
    OWN_MATRIX,
    adapted,
    batch,
    half,
    logits,
    opened,
    plain_model,
    shared_adapted,
    shared_trained,
    train,
    trained,
    two_layers,
)
from petl_bench.methods.bitfit.model import BitFitConfig
from petl_bench.methods.coda.model import CodaConfig
from petl_bench.methods.fl_tuning.model import FlTuningConfig
from petl_bench.methods.flat.model import FlatConfig
from petl_bench.methods.houlsby.model import HoulsbyConfig
from petl_bench.methods.prefix.model import PrefixConfig, PrefixLayer

own = pytest.mark.parametrize("method", OWN)


def states(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch()).last_hidden_state


@own
def test_loading_without_allocating_twice(method, tmp_path):
    model = shared_trained(method, "bert")
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(plain_model("bert"), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(logits(loaded), logits(model))


@own
def test_a_checkpoint_goes_back_into_the_same_model(method, tmp_path):
    """As training loops do that end with the best weights."""
    model, _ = trained(method, "bert")
    kept = logits(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    train(model)
    assert not torch.equal(logits(model), kept)
    model.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert torch.equal(logits(model.eval()), kept)
    train(model)
    assert not torch.equal(logits(model), kept)


@pytest.mark.parametrize(
    ("method", "name"), half([(method, name) for method in OWN for name in ("houlsby_x", "down", "second")], 0)
)
def test_adapters_have_any_name(method, name, tmp_path):
    config = copy.deepcopy(shared_adapted(method, "bert").peft_config["default"])
    config.target_modules = None
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = None
    model = get_peft_model(plain_model("bert"), config, adapter_name=name).eval()
    train(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(plain_model("bert"), tmp_path / name, adapter_name="other").eval()
    assert torch.equal(logits(loaded), logits(model))


TUNERS = ("bitfit", "houlsby", "prefix", "fl_tuning", "coda", "flat", "lst")


@pytest.mark.parametrize(("method", "architecture"), half([pair for pair in OWN_MATRIX if pair[0] in TUNERS], 1))
def test_the_whole_head_is_trained_and_saved(method, architecture, tmp_path):
    """By `get_peft_model` with the config alone, loaded on a base whose head starts at other random values."""
    small = two_layers(architecture)
    config = copy.deepcopy(shared_adapted(method, architecture, small).peft_config["default"])
    config.target_modules = None
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = None
    model = get_peft_model(plain_model(architecture, small), config)
    anatomy = opened(architecture, small)[1].anatomy
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, steps=2)
    if method not in ("flat", "lst"):
        # The other two bring a head of their own.
        head = [name for name in before if anatomy.in_head(name) and ".original_module." not in name]
        assert head and not any(torch.equal(before[name], model.get_parameter(name)) for name in head)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    base = plain_model(architecture, small)
    for name, parameter in base.named_parameters():
        if anatomy.in_head(name):
            torch.nn.init.normal_(parameter)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path).eval()), logits(model))


def test_token_classifiers_train_what_they_have_of_the_head():
    tokens = AutoModelForQuestionAnswering.from_config(plain_model("modernbert").config)
    model = get_peft_model(tokens, HoulsbyConfig(task_type="TOKEN_CLS"))
    trained_whole = {
        name for name, parameter in model.named_parameters() if parameter.requires_grad and "modules_to_save" in name
    }
    assert any(name.startswith("base_model.model.head.") for name in trained_whole)
    tokens = AutoModelForQuestionAnswering.from_config(plain_model("deberta-v2").config)
    assert (
        "pooler"
        not in get_peft_model(tokens, HoulsbyConfig(task_type="TOKEN_CLS")).peft_config["default"].modules_to_save
    )


SIZES = {
    "houlsby": ({"bottleneck": 4}, {"bottleneck": 9, "layers_to_transform": [1]}),
    "fl_tuning": ({"units": 4}, {"units": 9, "layers_to_transform": [1]}),
    "prefix": ({"length": 4}, {"length": 2, "layers_to_transform": [1]}),
    "prefix_mlp": ({"length": 4, "mlp_hidden": 6}, {"length": 2, "mlp_hidden": 5, "layers_to_transform": [1, 3]}),
    "prefix_late_mlp": ({"length": 4, "layers_to_transform": [2]}, {"mlp_hidden": 5, "layers_to_transform": [0, 3]}),
    "coda": ({"bottleneck": 4}, {"bottleneck": 9, "reduction": 5, "layers_to_transform": [1]}),
    "flat": ({"width": 8}, {"width": 16, "score": "additive"}),
}


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("swapped", [False, True])
def test_adapters_of_different_sizes_and_layers_share_a_model(case, swapped, tmp_path):
    kind = {"houlsby": HoulsbyConfig, "fl_tuning": FlTuningConfig, "coda": CodaConfig, "flat": FlatConfig}
    config = kind.get(case, PrefixConfig)
    first, second = reversed(SIZES[case]) if swapped else SIZES[case]
    model = get_peft_model(plain_model("bert"), config(task_type="SEQ_CLS", **first)).eval()
    train(model)
    before = logits(model)
    model.add_adapter("second", config(task_type="SEQ_CLS", **second))
    assert torch.equal(logits(model), before)
    model.set_adapter("second")
    train(model)
    after = logits(model)
    assert not torch.equal(after, before)
    model.set_adapter("default")
    assert torch.equal(logits(model), before)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    for folder, expected in ((tmp_path, before), (tmp_path / "second", after)):
        alone = PeftModel.from_pretrained(plain_model("bert"), folder).eval()
        assert torch.equal(logits(alone), expected)
    model.delete_adapter("default")
    model.set_adapter("second")
    assert torch.equal(logits(model), after)


def test_coda_trains_the_norms_inside_its_layers(tmp_path):
    model, _ = adapted("coda", "bert", "method.train_layernorm=true")
    norms = {name for name, p in model.named_parameters() if p.requires_grad and "LayerNorm" in name}
    assert len(norms) == 2 * (1 + 4 * 2)
    train(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(plain_model("bert"), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    some, _ = adapted("coda", "bert", "method.train_layernorm=true", "layers=top", "layers.k=1")
    assert len([p for name, p in some.named_parameters() if p.requires_grad and "LayerNorm" in name]) == 4


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_hidden_states_are_recorded_once_whatever_came_before(architecture):
    plain = plain_model(architecture)
    assert len(plain(**batch(), output_hidden_states=True).hidden_states) == 5
    model = get_peft_model(plain, CodaConfig(task_type="SEQ_CLS"))
    assert len(model(**batch(), output_hidden_states=True).hidden_states) == 5
    bare = model.unload()
    assert len(bare(**batch(), output_hidden_states=True).hidden_states) == 5
    again = get_peft_model(bare, FlatConfig(task_type="SEQ_CLS"))
    assert len(again(**batch(), output_hidden_states=True).hidden_states) == 5


@pytest.mark.parametrize("config", [FlTuningConfig(units=4), BitFitConfig()])
def test_merging_one_after_the_other(config):
    def two() -> PeftModel:
        model = get_peft_model(plain_model("bert").bert, copy.deepcopy(config)).eval()
        model.add_adapter("second", dataclasses.replace(config, target_modules=None))
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if ".second" in name or ".default" in name:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.base_model.set_adapter(["default", "second"])
        return model

    model, base = two(), states(plain_model("bert").bert)
    expected = states(model)
    model.base_model.merge_adapter(["default"])
    model.base_model.merge_adapter(["second"])
    torch.testing.assert_close(states(model), expected, rtol=1e-5, atol=1e-5)
    model.base_model.unmerge_adapter()
    torch.testing.assert_close(states(model), expected, rtol=0, atol=0)
    with model.disable_adapter():
        assert torch.equal(states(model), base)
    # Merged, moved to another precision, and back.
    model.base_model.merge_adapter()
    model.double()
    model.base_model.unmerge_adapter()
    torch.testing.assert_close(states(model).float(), expected, rtol=1e-5, atol=1e-5)


def test_coda_forces_the_first_token_not_the_first_position():
    from petl_bench.methods.coda.routing import route

    real = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]]).bool()
    routing = route(torch.randn(2, 10), real, CodaConfig(reduction=3))
    assert routing.indices[0][routing.valid[0]][0] == 3
    assert routing.indices[1][routing.valid[1]].tolist() == [9]
    assert (routing.weights[:, 0] == 1).all()


@pytest.mark.parametrize("method", ["flat", "lst"])
def test_a_row_of_padding_is_a_number(method):
    model, _ = adapted(method, "bert")
    inputs = batch()
    inputs["attention_mask"][2] = 0
    loss = model(**inputs, labels=LABELS).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "deberta-v2"])
def test_bitfit_leaves_heads_to_peft(architecture):
    model = get_peft_model(plain_model(architecture), BitFitConfig(task_type="SEQ_CLS"))
    train(model)
    tokens = AutoModelForTokenClassification.from_config(plain_model(architecture).config)
    model = get_peft_model(tokens, BitFitConfig(task_type="TOKEN_CLS"))
    assert model(**batch()).logits.shape == (4, 10, 2)


def test_side_networks_refuse_what_they_cannot_classify():
    answers = AutoModelForQuestionAnswering.from_config(plain_model("bert").config)
    with pytest.raises(ValueError, match="needs a sequence classifier or a tagger"):
        get_peft_model(answers, FlatConfig())


def test_other_inputs_and_outputs():
    inputs = batch()
    for method in OWN:
        model, _ = adapted(method, "bert")
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        given = model(inputs_embeds=embedded, attention_mask=inputs["attention_mask"]).logits
        torch.testing.assert_close(given, logits(model))
        unmasked = logits(model, input_ids=inputs["input_ids"])
        ones = torch.ones_like(inputs["input_ids"])
        torch.testing.assert_close(unmasked, logits(model, input_ids=inputs["input_ids"], attention_mask=ones))
        assert torch.equal(model(**inputs, return_dict=False)[0], model(**inputs).logits)
        model.base_model.model.config.output_hidden_states = True
        # PEFT itself passes None on, which stands for no.
        assert len(model.base_model.model(**inputs).hidden_states) == 5
        model.unmerge_adapter()


def test_layers_are_given_as_a_number_or_a_list():
    one = get_peft_model(plain_model("bert"), HoulsbyConfig(layers_to_transform=1))
    names = {name for name, p in one.named_parameters() if p.requires_grad and "houlsby" in name}
    assert all(".layer.1." in name for name in names) and len(names) == 8
    with pytest.raises(ValueError, match="layers_to_transform"):
        get_peft_model(plain_model("bert"), HoulsbyConfig(layers_to_transform=[7]))


def test_a_reparametrised_prefix_becomes_plain_when_a_checkpoint_is_loaded(tmp_path):
    model, _ = adapted("prefix_mlp", "bert")
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    model.load_adapter(str(tmp_path), "default", is_trainable=True)
    layers = [module for module in model.modules() if isinstance(module, PrefixLayer)]
    assert all("default" in layer.prefix_key and not layer.prefix_network for layer in layers)
