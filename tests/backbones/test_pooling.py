"""`backbone.pooling=mean`: the head reads the mean of a row's tokens, wherever the model is built or loaded."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from peft import PeftModel

from behaviour.matrix import ARCHITECTURES, adapted, batch, logits, opened, plain_model, shared_plain, train
from composed import composed
from finished_runs import code_of, finished, root
from petl_bench import cli
from petl_bench.errors import RequestError
from petl_bench.model import build_adapted, load_adapter, save_adapter
from petl_bench.records.run_key import run_key
from petl_bench.records.store import RunFolder
from petl_bench.run.predict import Predictor
from petl_bench.tasks.load import rows_of_texts

MEAN = "backbone.pooling=mean"


def head_on(model, architecture, state):
    """The head's outputs for one state a row, written out."""
    act = {"electra": torch.nn.functional.gelu, "distilbert": torch.relu}.get(architecture, torch.tanh)
    if architecture == "bert":
        return model.classifier(act(model.bert.pooler.dense(state)))
    if architecture == "distilbert":
        return model.classifier(act(model.pre_classifier(state)))
    if architecture == "deberta-v2":
        return model.classifier(torch.nn.functional.gelu(model.pooler.dense(state)))
    if architecture == "modernbert":
        return model.classifier(model.head(state))
    return model.classifier.out_proj(act(model.classifier.dense(state)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_reads_the_mean_of_the_real_tokens(architecture):
    model, plain = shared_plain(architecture, MEAN), shared_plain(architecture)
    inputs = batch()
    name = opened(architecture)[1].anatomy.encoder
    with torch.no_grad():
        states = plain.get_submodule(name)(**inputs).last_hidden_state
        rows = [row[mask.bool()].mean(dim=0) for row, mask in zip(states, inputs["attention_mask"], strict=True)]
        expected = head_on(plain, architecture, torch.stack(rows))
    torch.testing.assert_close(logits(model), expected)
    assert not torch.allclose(logits(plain), expected, atol=1e-3) or architecture == "modernbert"
    # A row alone, without padding and without a mask.
    alone = logits(model, input_ids=inputs["input_ids"][1:2, :7])
    torch.testing.assert_close(alone, logits(model)[1:2])


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_cls_is_the_first_tokens_state(architecture):
    model, plain = shared_plain(architecture, "backbone.pooling=cls"), shared_plain(architecture)
    assert torch.equal(logits(model), logits(plain)) == (architecture != "modernbert")
    name = opened(architecture)[1].anatomy.encoder
    with torch.no_grad():
        first = plain.get_submodule(name)(**batch()).last_hidden_state[:, 0]
        torch.testing.assert_close(logits(model), head_on(plain, architecture, first))


@pytest.mark.parametrize(
    ("method", "architecture"),
    [(name, "bert") for name in ("lora", "head_pooler", "houlsby", "prefix", "fl_tuning", "coda", "flat", "lst")]
    + [("lora", "distilbert"), ("houlsby", "deberta-v2"), ("prefix", "roberta"), ("coda", "electra")],
)
def test_a_padded_batch_gives_what_its_rows_give_and_a_loaded_adapter_too(method, architecture, tmp_path):
    model, backbone = adapted(method, architecture, MEAN)
    train(model)
    found, inputs = logits(model), batch()
    lengths = inputs["attention_mask"].sum(dim=1)
    alone = [logits(model, input_ids=inputs["input_ids"][row : row + 1, :length]) for row, length in enumerate(lengths)]
    torch.testing.assert_close(torch.cat(alone), found, rtol=1e-4, atol=1e-5)
    save_adapter(RunFolder(tmp_path), model, backbone, "")
    loaded = load_adapter(plain_model(architecture), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), found, rtol=1e-4, atol=1e-5)
    # On a model that pools already, nothing is pooled twice.
    again = load_adapter(plain_model(architecture, MEAN), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again), found, rtol=1e-4, atol=1e-5)
    # PEFT alone would read the first token, and refuses.
    with pytest.raises(ValueError, match="on mean: load it with petl_bench"):
        PeftModel.from_pretrained(plain_model(architecture), str(tmp_path / "adapter"))


def test_codas_last_router_is_trained_where_the_head_reads_all_tokens():
    for overrides, wanted in (((), False), ((MEAN,), True)):
        model, backbone = adapted("coda", "bert", *overrides)
        model.train()
        model(**batch(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        last = backbone.anatomy.num_layers(model.config) - 1
        routers = [one for name, one in model.named_parameters() if f".{last}.coda_router" in name]
        assert [one.grad is not None and bool(one.grad.abs().sum() > 0) for one in routers] == [True] * wanted


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_a_run_is_predicted_with_and_exported_as_it_was_scored(method, tmp_path, monkeypatch, capsys):
    run = finished("classification", f"method={method}", MEAN)
    plain = finished("classification", f"method={method}")
    texts = (["ccc", "bbbb bbbb bbbb"],)
    found, other = (Predictor(one).predict(rows_of_texts(texts, Predictor(one).task)) for one in (run, plain))
    assert found[0].probabilities != other[0].probabilities
    assert json.loads((run / "result.json").read_text())["config"]["backbone"]["pooling"] == "mean"
    assert cli.main(["export", str(run), "--to", "merged", "--out", str(tmp_path / "plain")]) == 2
    assert "backbone.pooling=mean" in capsys.readouterr().err
    # Seconds, and the same for all three: the model is built before it is exported.
    if method == "lora":
        assert cli.main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "onnx"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["largest_difference"] < 1e-4
    # The code of the card gives the same logits.
    folder = next(one for one in (run / "adapter", run / "model") if one.is_dir())
    monkeypatch.chdir(root())
    code = code_of((folder / "README.md").read_text()).replace('folder = "."', f'folder = "{folder}"')
    names: dict[str, Any] = {}
    exec(compile(code.replace('"a text"', '"ccc"'), "card", "exec"), names)
    shares = torch.softmax(names["outputs"], dim=0)
    assert shares.tolist() == pytest.approx(list(found[0].probabilities.values()), abs=1e-5)


def test_features_of_frozen_layers_keep_all_tokens():
    scores = []
    for cache in ("off", "memory"):
        run = finished("classification", "method=head", MEAN, f"train.cache={cache}")
        record = json.loads((run / "result.json").read_text())
        scores.append([entry["scores"] for entry in record["history"]])
        assert record["frozen"] is None or not record["frozen"]["first_token_only"]
    assert scores[0] == scores[1]


def test_what_does_not_go_with_it_is_refused():
    with pytest.raises(RequestError, match="a head that tags every token pools none"):
        opened_for_tagging()
    cfg, backbone = opened("bert", MEAN, "method=lora", "train.last_layer=first_token")
    with pytest.raises(RequestError, match="cannot run for the first token alone"):
        build_adapted(cfg, backbone, ["a", "b"], 10)


def opened_for_tagging():
    from petl_bench.backbones.load import open_backbone

    cfg = composed("task=smoke", "backbone=tiny_bert", MEAN)
    open_backbone(cfg.backbone, cfg.layers, task_type="tagging")


def test_older_keys_stay():
    config = composed("task=smoke", "backbone=tiny_bert").to_dict()
    pooled = composed("task=smoke", "backbone=tiny_bert", MEAN).to_dict()
    assert config["backbone"].pop("pooling") is None
    assert run_key(config, {}) == run_key(composed("task=smoke", "backbone=tiny_bert").to_dict(), {})
    assert run_key(pooled, {}) != run_key(config, {})
