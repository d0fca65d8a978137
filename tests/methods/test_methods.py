"""The methods that are there: what they train, that nothing else moves, that they save and load."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from peft import PeftModel, PeftType, get_peft_model

from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.methods.bitfit.config import BitFitConfig
from petl_bench.methods.context import AdaptContext
from petl_bench.methods.registry import Method, all_methods, get_method, register

BACKBONES = ["tiny_bert", "tiny_roberta", "tiny_electra", "tiny_distilbert", "tiny_deberta_v2", "tiny_modernbert"]
METHODS = {
    "full": ["method=full"],
    "head": ["method=head"],
    "bitfit": ["method=bitfit"],
    "lora": ["method=lora"],
    "ia3": ["method=peft", "method.type=IA3"],
    "loha": ["method=peft", "method.type=LOHA", "+method.args.r=2"],
}
MATRIX = [(m, b) for m in METHODS for b in BACKBONES if (m, b) != ("bitfit", "tiny_modernbert")]


def adapt(backbone: str, *overrides: str):
    cfg = load_config([f"backbone={backbone}", *overrides])
    opened = open_backbone(cfg.backbone, cfg.layers)
    torch.manual_seed(0)
    plain = opened.build_model(2)
    context = AdaptContext(opened.anatomy, opened.plan, num_training_steps=10)
    return get_method(cfg.method.name).load_adapt()(plain, cfg.method, context), opened


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


@pytest.mark.parametrize(("method", "backbone"), MATRIX)
def test_only_what_is_trainable_moves_and_all_of_it_does(method, backbone):
    model, opened = adapt(backbone, *METHODS[method])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    head = {name for name in trainable if opened.anatomy.in_head(name)}
    assert head, "the head must be trained"
    train_three_steps(model)
    for name, parameter in model.named_parameters():
        moved = not torch.equal(before[name], parameter.detach())
        if name not in trainable:
            assert not moved, f"{name} is frozen and moved"
        elif not _without_gradient(name, method):
            assert moved, f"{name} is trainable and did not move"


def _without_gradient(name: str, method: str) -> bool:
    """Parameters that the loss does not depend on: the key bias cancels in softmax; unused rows and tables."""
    return (("key" in name or "k_lin" in name) and "bias" in name) or "embedding" in name or "rel_embeddings" in name


@pytest.mark.parametrize(("method", "backbone"), [pair for pair in MATRIX if pair[0] != "full"])
def test_adapters_disable_to_the_base_and_survive_saving(method, backbone, tmp_path):
    model, opened = adapt(backbone, *METHODS[method])
    torch.manual_seed(0)
    plain = opened.build_model(2).eval()
    inputs = {name: tensor for name, tensor in batch().items() if name != "labels"}
    train_three_steps(model)
    with torch.no_grad():
        trained = model(**inputs).logits
        with model.disable_adapter():
            assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
        assert not torch.equal(trained, plain(**inputs).logits)
        model.save_pretrained(tmp_path, save_embedding_layers=False)
        loaded = PeftModel.from_pretrained(plain, tmp_path).eval()
        assert torch.equal(loaded(**inputs).logits, trained)


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


def test_bitfit_takes_two_adapters_on_one_backbone():
    model, _ = adapt("tiny_bert", "method=bitfit")
    train_three_steps(model)
    inputs = {name: tensor for name, tensor in batch().items() if name != "labels"}
    with torch.no_grad():
        first = model(**inputs).logits
        model.add_adapter("second", BitFitConfig(target_modules=model.peft_config["default"].target_modules,
                                                 task_type="SEQ_CLS", modules_to_save=["classifier"]))  # fmt: skip
        model.set_adapter("second")
        assert not torch.equal(model(**inputs).logits, first)
        model.set_adapter("default")
        assert torch.equal(model(**inputs).logits, first)


def test_bitfit_outside_petl_bench_finds_every_bias():
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2, bias=False))
    model = get_peft_model(plain, BitFitConfig())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["base_model.model.0.bitfit_bias.default", "base_model.model.1.bitfit_bias.default"]
    assert model.peft_config["default"].peft_type == PeftType("BITFIT")


@pytest.mark.parametrize(
    "script",
    [
        "import petl_bench, peft; assert 'BITFIT' in peft.PeftType.__members__",
        "import peft, petl_bench; assert 'BITFIT' in peft.PeftType.__members__",
        "from petl_bench.methods.bitfit.config import BitFitConfig; assert BitFitConfig().peft_type == 'BITFIT'",
        "import petl_bench, sys; assert 'peft' not in sys.modules and 'torch' not in sys.modules",
    ],
)
def test_importing_petl_bench_makes_its_types_known_in_any_order(script):
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
    clash = Method("full", "another", "nowhere", known.config, "elsewhere:adapt")
    with pytest.raises(ValueError, match="two methods"):
        register(clash)
    assert register(known) is known
    with pytest.raises(RequestError, match="Did you mean 'lora'"):
        get_method("lorra")
