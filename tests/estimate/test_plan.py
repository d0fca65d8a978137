"""`petl-bench plan`, its agreement with the record of a run, and what a run measures besides its scores."""

from __future__ import annotations

import json

import pytest

from petl_bench.cli import main
from petl_bench.commands import COMMANDS
from petl_bench.errors import RequestError, RunError, parse_bytes
from petl_bench.estimate.costs import estimate_costs
from petl_bench.estimate.plan import plan
from petl_bench.methods.registry import all_methods
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run

TINY = ["backbone=tiny_bert", "task=demo", "train.batch_size=16"]
TWO_LAYERS = "backbone.architecture.num_hidden_layers=2"
SHORT = ["task.num_train_examples=32", "train.max_steps=1", "measure.ledger=true", "measure.inference=true"]


BUDGET = [TWO_LAYERS, "task.max_length=16"]


def test_every_method_has_a_row(estimates_here):
    rows = {row.method: row for row in plan([*TINY, *BUDGET, "method=all"], 10**6)}
    assert list(rows) == list(all_methods())
    for method, row in rows.items():
        assert row.params.trainable > 0
        assert row.estimate.peak_bytes >= row.estimate.weights_bytes
        assert row.flops.train_step_flops > row.flops.inference_flops > 0 or method == "head"
        assert row.peak_reduction == rows["full"].estimate.peak_bytes / row.estimate.peak_bytes
        assert row.fits == (row.estimate.peak_bytes <= 10**6) == (row.largest_batch_size >= 16)
    assert "rows choose the layers" in rows["layer_selection"].note
    assert rows["full"].note is None


def test_processes_of_their_own_estimate_the_same(monkeypatch):
    request = [*TINY, *BUDGET, "method=full,head"]
    forked = plan(request, 10**6)
    monkeypatch.setattr("sys.platform", "elsewhere")
    assert plan(request, 10**6) == forked


def test_one_row_for_one_method_and_its_settings(estimates_here):
    (row,) = plan([*TINY, "method=lora", "method.r=2", "layers=top", "layers.k=1"])
    assert row.params.trainable_method == 2 * 2 * 2 * 32
    assert (row.layers.bottom, row.layers.top, row.layers.num_layers) == (4, 4, 4)
    assert row.peak_reduction > 1
    assert row.fits is None


def test_a_recipe_brings_its_method(estimates_here):
    (row,) = plan(["recipe=lora_roberta_base", "task=mrpc", "backbone=tiny_roberta", TWO_LAYERS, "task.max_length=16"])
    assert (row.method, row.estimate.batch_size) == ("lora", 16)
    assert row.peak_reduction > 1


def test_a_setting_that_one_method_lacks_leaves_the_others(estimates_here):
    head, lora = plan([*TINY, *BUDGET, "method=head,lora", "method.r=2"])
    assert head.params is None
    assert "method.r" in head.note
    assert lora.params is not None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=nonsense"], "nonsense"),
        (["backbone=nonsense"], "nonsense"),
        (["method=lora", "method.rank=2"], "method.rank"),
        (["method=lora", "task.max_length=100000"], "task.max_length"),
        (["method=,"], "names no method"),
        (["method=null"], "names no method"),
        (["train.batch_size=8,16"], "method= only"),
        (["layers=variability", "layers.strategy=nonsense"], "layers.strategy"),
        (["layers=variability", "layers.num_bins=0"], "layers.num_bins"),
        (["backbone.weights=pretrained", "backbone.path=missing"], "config.json"),
        (["task=custom", "task.train_file=missing.csv", "task.text_columns=[a]"], "missing.csv"),
    ],
)
def test_what_cannot_be_planned_is_explained(overrides, words, estimates_here):
    method = [] if any("method=" in override for override in overrides) else ["method=lora"]
    with pytest.raises(RequestError, match=words):
        plan([*TINY, *method, *overrides])


def test_a_method_that_cannot_be_estimated_is_named_and_the_others_have_rows(monkeypatch, estimates_here):

    def broken(cfg, *_args):
        if cfg.method.name == "lora":
            raise ZeroDivisionError("no content")
        return estimate_costs(cfg, *_args)

    monkeypatch.setattr("petl_bench.estimate.plan.estimate_costs", broken)
    head, lora = plan([*TINY, *BUDGET, "method=head,lora"])
    assert head.params is not None
    assert "ZeroDivisionError: no content" in lora.note
    with pytest.raises(RunError, match="method=lora with backbone=tiny_bert cannot be counted"):
        plan([*TINY, "method=lora"])


def test_a_folder_needs_no_weights(tmp_path, estimates_here):
    from petl_bench.backbones.load import open_backbone
    from petl_bench.config import load_config

    cfg = load_config(TINY)
    config = open_backbone(cfg.backbone, cfg.layers).config
    config.num_hidden_layers = 1
    config.save_pretrained(tmp_path)
    (row,) = plan(["backbone=bert_base", "task=demo", f"backbone.path={tmp_path}", "method=full"])
    assert row.layers.num_layers == 1
    assert row.backbone == tmp_path.name


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GiB", 2**34), ("800 MB", 8 * 10**8), ("1.5gib", 3 * 2**29), ("12345B", 12345), ("16", None), ("0GiB", None),
     ("big", None), ("-1GiB", None), ("3 apples", None)],
)  # fmt: skip
def test_budgets(text, size):
    if size is None:
        with pytest.raises(RequestError, match="--budget"):
            parse_bytes("--budget", text)
    else:
        assert parse_bytes("--budget", text) == size


def test_the_command_prints_json_a_table_and_a_picture(tmp_path, capsys, estimates_here):
    command = ["plan", "--json", *TINY, *BUDGET, "--budget", "1MiB", "method=lora,head"]
    assert main(command) == 0
    lora, head = json.loads(capsys.readouterr().out)
    assert (lora["method"], lora["backbone"], lora["task"]) == ("lora", "tiny_bert", "demo")
    assert lora["params"]["trainable_head"] == head["params"]["trainable_head"] == 66
    assert lora["memory"]["estimate"]["peak_bytes"] > head["memory"]["estimate"]["peak_bytes"]
    assert lora["flops"]["train_step_flops"] > head["flops"]["train_step_flops"]
    assert {"fits", "largest_batch_size"} <= lora.keys()
    assert main(["plan", *TINY, *BUDGET, "method=lora,head", "--plot", str(tmp_path / "deep" / "x.png")]) == 0
    assert "lora" in capsys.readouterr().out
    assert (tmp_path / "deep" / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["plan", *TINY, "--plot", "x.gif"]) == 2
    assert "x.gif" in capsys.readouterr().err


def test_texts_that_look_like_settings_stay_where_they_are(monkeypatch):
    seen = []
    monkeypatch.setitem(COMMANDS, "predict", lambda parsed: seen.append((parsed.text, parsed.json)) or 0)
    assert main(["predict", "DIR", "--text", "a=b", "c", "--json"]) == 0
    assert seen == [(["a=b", "c"], True)]


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=full", "layers=top", "layers.k=1"],
        ["method=prefix", "train.precision=bf16"],
        ["method=flat", "train.accumulation=2"],
        ["method=houlsby", "train.gradient_checkpointing=true"],
        ["method=peft", "method.type=RANDLORA"],
    ],
)
def test_a_run_records_what_the_plan_said(tiny, overrides, estimates_here):
    (row,) = plan([*TINY, *BUDGET, *overrides])
    record = run(tiny(*TINY, *BUDGET, *SHORT, *overrides))
    assert record.params == row.params
    assert record.memory.estimate == row.estimate
    assert record.flops == row.flops


def test_a_run_times_inference(tiny):
    record = run(tiny(*SHORT))
    found = record.inference
    assert (found.batch_size, found.sequence_length, found.merged) == (32, 32, True)
    low, high = found.latency_ms_quartiles
    assert 0 < low <= found.latency_ms_median <= high
    low, high = found.examples_per_second_quartiles
    assert 0 < low <= found.examples_per_second <= high
    assert found.repeats >= 3
    assert not run(tiny(*SHORT, "method=coda")).inference.merged


def test_measuring_changes_no_score_and_can_be_left_out(tiny):
    with_it = run(tiny(*SHORT, "method=lora"))
    off = tiny(*SHORT, "method=lora", "measure.ledger=false", "measure.inference=false")
    assert identify(off).key == with_it.run_key
    off.force = True
    without = run(off)
    assert (without.memory.estimate, without.flops, without.inference) == (None, None, None)
    assert without.scores == with_it.scores
    assert [entry.train_loss for entry in without.history] == [entry.train_loss for entry in with_it.history]


def test_checkpointing_is_a_run_of_its_own_with_the_same_scores(tiny):
    plain, checkpointed = (tiny(*SHORT, f"train.gradient_checkpointing={word}") for word in ("false", "true"))
    assert identify(plain).key != identify(checkpointed).key
    first, second = run(plain), run(checkpointed)
    assert first.history[0].train_loss == pytest.approx(second.history[0].train_loss, rel=1e-6)
    assert second.memory.estimate.activations_bytes < first.memory.estimate.activations_bytes
    assert second.flops.train_step_flops > first.flops.train_step_flops


def test_a_run_finishes_although_its_measurements_fail(tiny, monkeypatch, caplog):
    def broken(*_args, **_kwargs):
        raise ValueError("tensors without content")

    monkeypatch.setattr("petl_bench.estimate.costs.estimate_costs", broken)
    # Without the estimates of earlier tests.
    monkeypatch.setattr("petl_bench.estimate.costs._estimated", {})
    monkeypatch.setattr("petl_bench.measure.run_costs.time_forward", broken)
    record = run(tiny(*SHORT))
    assert record.status == "finished"
    assert (record.memory.estimate, record.flops, record.inference) == (None, None, None)
    assert "measure.ledger=false" in caplog.text
    assert "measure.inference=false" in caplog.text
