"""The methods that are there: what they train, that nothing else moves, that they save and load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftType, get_peft_model

from composed import composed
from petl_bench import catalog
from petl_bench.backbones.load import open_backbone
from petl_bench.catalog import TINY_BACKBONES, probe, probe_all
from petl_bench.errors import RequestError
from petl_bench.methods import base
from petl_bench.methods.bitfit.model import BitFitConfig
from petl_bench.methods.registry import AdaptContext, Method, all_methods, get_method, register

# What each needs to be chosen; the behaviour suite holds what all must do.
METHODS = {
    "full": ["method=full"],
    "bitfit": ["method=bitfit"],
    "lora": ["method=lora"],
    "ia3": ["method=peft", "method.type=IA3"],
}


def adapt(backbone: str, *overrides: str):
    cfg = composed(f"backbone={backbone}", *overrides)
    opened = open_backbone(cfg.backbone, cfg.layers)
    torch.manual_seed(0)
    plain = opened.build_model(2)
    context = AdaptContext(opened.anatomy, opened.plan, num_training_steps=10)
    return base.adapt(plain, cfg.method, context), opened


def batch(length: int = 8) -> dict[str, torch.Tensor]:
    ids = torch.arange(10, 10 + 4 * length).reshape(4, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 0, 1])}


def train_three_steps(model: torch.nn.Module) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(3):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("backbone", TINY_BACKBONES.values())
def test_full_fine_tuning_trains_all_there_is(backbone):
    model, _ = adapt(backbone, "method=full")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert all(parameter.requires_grad for parameter in model.parameters())
    train_three_steps(model)
    still = {name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter.detach())}
    # The key bias cancels in the softmax over keys; embeddings of what does not occur stay.
    assert all("key" in name or "k_lin" in name or "embeddings" in name for name in still)


@pytest.mark.parametrize("method", ["full", "lora", "bitfit", "ia3"])
def test_a_window_adapts_its_layers_alone(method):
    window = ["layers=window", "layers.bottom=2", "layers.top=3", "layers.head=4"]
    model, opened = adapt("tiny_bert", *METHODS[method], *window)
    names = [name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad]
    layers = {opened.anatomy.layer_number(name) for name in names}
    assert layers == {2, 3, None}
    outside = {name for name in names if opened.anatomy.layer_number(name) is None}
    assert all(name.startswith(("classifier.", "bert.pooler.")) for name in outside)


def test_lora_adds_to_the_named_projections_alone():
    model, _ = adapt("tiny_bert", "method=lora", "method.targets=[feed_forward_in,attention_output]", "method.r=2")
    names = {name for name, p in model.named_parameters() if p.requires_grad and "lora" in name}
    parts = {name.split("layer.")[1].split(".", 1)[1].split(".lora")[0] for name in names}
    assert parts == {"intermediate.dense", "attention.output.dense"}
    assert len(names) == 4 * 2 * 2


def test_bitfit_starts_at_the_base_merges_exactly_and_unmerges():
    model, opened = adapt("tiny_bert", "method=bitfit")
    torch.manual_seed(0)
    plain = opened.build_model(2).eval()
    inputs = {name: tensor for name, tensor in batch().items() if name != "labels"}
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    train_three_steps(model)
    with torch.no_grad():
        trained = model(**inputs).logits
        model.merge_adapter()
        assert torch.equal(model(**inputs).logits, trained)
        model.unmerge_adapter()
        assert torch.equal(model(**inputs).logits, trained)
        merged = model.merge_and_unload()
        assert not any("bitfit" in name for name, _ in merged.named_modules())
        assert torch.equal(merged(**inputs).logits, trained)


def test_bitfit_outside_petl_bench_finds_every_bias():
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2, bias=False))
    model = get_peft_model(plain, BitFitConfig())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["base_model.model.0.bitfit_bias.default", "base_model.model.1.bitfit_bias.default"]
    assert model.peft_config["default"].peft_type == PeftType("BITFIT")


def test_importing_petl_bench_imports_neither_torch_nor_peft():
    """What imports it before PEFT is tested where adapters load in a new process."""
    script = "import petl_bench, sys; assert not {'peft', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.integration
def test_its_types_are_known_to_a_peft_that_was_imported_first():
    script = (
        "import peft, petl_bench; assert 'BITFIT' in peft.PeftType.__members__; "
        "from petl_bench.methods.bitfit.model import BitFitConfig; assert BitFitConfig().peft_type == 'BITFIT'"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_bitfit_says_where_there_is_no_bias():
    with pytest.raises(RequestError, match="modernbert"):
        adapt("tiny_modernbert", "method=bitfit")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=lora", "method.r=0"], "method.r=0"),
        (["method=lora", "method.targets=[querry]"], "Did you mean 'query'"),
        (["method=peft", "method.type=LORRA"], "Did you mean 'LORA'"),
        (["method=peft", "method.type=IA3", "+method.args.feedforward=x"], "method.args"),
        (["method=peft", "method.type=PREFIX_TUNING", "layers=top"], "layers=all"),
    ],
)
def test_wrong_method_settings_are_refused(overrides, words):
    with pytest.raises(RequestError, match=words):
        adapt("tiny_bert", *overrides)


def test_peft_refusing_an_architecture_is_one_sentence():
    with pytest.raises(RequestError, match="PEFT cannot apply"):
        adapt("tiny_bert", "method=peft", "method.type=LORA", "+method.args.target_modules=[nowhere]")


def test_two_methods_of_one_name_are_refused():
    known = all_methods()["full"]
    clash = Method("full", "another", "nowhere", adapt="elsewhere:adapt")
    with pytest.raises(ValueError, match="two methods"):
        register(clash)
    assert register(known) is known
    with pytest.raises(RequestError, match="Did you mean 'lora'"):
        get_method("lorra")


def test_the_pooler_is_trained_where_it_is_outside_the_head():
    for backbone, expected in (("tiny_bert", {"bert.pooler"}), ("tiny_roberta", set())):
        model, opened = adapt(backbone, "method=head", "method.pooler=true")
        names = [name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad]
        assert {name.split(".modules_to_save")[0] for name in names if not opened.anatomy.in_head(name)} == expected


@pytest.mark.integration
def test_capabilities_are_probed(monkeypatch):
    """On two unlike architectures; the behaviour suite has each method adapt all of them, and merge."""
    assert "k2k" in probe(["method=coda", "method.attention=k2all"], "deberta-v2").adapts
    two = {architecture: TINY_BACKBONES[architecture] for architecture in ("bert", "modernbert")}
    monkeypatch.setattr(catalog, "TINY_BACKBONES", two)
    found = {(item.method, item.architecture): item for item in probe_all()}
    assert "no biases" in found["bitfit", "modernbert"].adapts
    assert "norms before it" in found["houlsby variant=pfeiffer", "modernbert"].adapts
    for method in ("houlsby", "prefix", "coda", "flat", "lst", "lora", "head", "full", "fl_tuning"):
        assert all(found[method, architecture].adapts is None for architecture in two), method
    assert all(found["fl_tuning", architecture].merges is None for architecture in two)
    assert found["bitfit", "bert"].merges is None
    assert "linear" in found["houlsby", "bert"].merges
    assert found["lora", "bert"].tags is found["flat", "modernbert"].tags is None
    assert "a tagger does not have" in found["head pooler=true", "bert"].tags
    documented = (Path(__file__).parents[2] / "docs" / "capabilities.md").read_text().splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in documented if line[:1] == "|"]
    for method, *cells in rows:
        for architecture in two:
            one, said = found[method, architecture], cells[header.index(architecture) - 1]
            assert said == ("no" if one.adapts else "yes" if one.merges else "yes, merges"), (method, architecture)
    assert {method for method, *_ in rows} == {method for method, _ in found}
    monkeypatch.setattr(catalog, "all_methods", lambda: ["head"])
    plain, with_pooler = catalog.list_capabilities()
    assert (plain["method"], plain["bert"], plain["tagging"]) == ("head", "yes, merges", "yes")
    assert with_pooler["tagging"] == "no"
    assert "a tagger does not have" in with_pooler["why not"]
