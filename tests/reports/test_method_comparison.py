"""Runs in the format of PEFT's method comparison, and results of that suite beside ours; the figures are made up."""

from __future__ import annotations

import json

import pytest

from petl_bench.cli import main
from petl_bench.records.schema import DeviceMemory, Memory
from petl_bench.records.store import RunFolder
from petl_bench.reports.csv_json import find_method_comparison, method_comparison_tables, to_method_comparison
from reports.made_records import made_record


def suite_result(name: str, accuracy: float | None, **train) -> dict:
    """A file as the suite's MetaMathQA writes it, shortened."""
    last = {"step": 5000, "train loss": 0.5, "train samples": 20000, "train total tokens": 4_000_000}
    return {
        "run_info": {
            "created_at": "2025-06-19T19:15:35+00:00",
            "total_time": 2000.5,
            "experiment_name": name,
            "peft_branch": "main",
            "train_config": {"model_id": "some/model-3B", "seed": 0, "optimizer_kwargs": {"lr": 1e-4}},
            "peft_config": {"peft_type": "LORA", "r": 32},
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_max": 3 * 2**20,
            "train_time": 1796.4,
            "file_size": 5 * 2**20,
            "num_trainable_params": 9_175_040,
            "num_total_params": 3_221_924_864,
            "status": "success",
            "metrics": [{"step": 250, "valid accuracy": 0.34}, last | {"test accuracy": accuracy}],
        } | train,
        "meta_info": {"package_info": {"peft-version": "0.15.2"}, "system_info": {"accelerator": "a GPU"}},
    }  # fmt: skip


@pytest.fixture
def suite(tmp_path):
    """A folder with four results, of two metrics, and a file of another kind."""
    older = suite_result("full-finetuning/older", 0.25)
    # Older files have another name for the memory; full fine-tuning has no adapter.
    older["train_info"]["cuda_memory_max"] = older["train_info"].pop("accelerator_memory_max") * 2
    older["run_info"]["peft_config"] = None
    pictures = suite_result("lora/pictures", None)
    pictures["train_info"]["metrics"] = [{"step": 750, "test dino_similarity": 0.6971, "drift": 0.26}]
    files = {
        "a.json": suite_result("lora/rank32", 0.4821),
        "b.json": older,
        "c.json": suite_result("lora/broken", None, status="failed", num_trainable_params=None),
        "d.json": pictures,
        "other.json": {"run_info": 3},
    }
    folder = tmp_path / "suite"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "e.json").write_text("{no json")
    return folder


def test_results_of_the_suite_are_a_table_of_their_own(suite):
    accuracy, pictures = method_comparison_tables(find_method_comparison([str(suite)]))
    assert accuracy.title == pictures.title == "method_comparison: some/model-3B"
    assert accuracy.header[:4] == ["experiment", "type", "test accuracy", "trained params"]
    assert accuracy.rows == [
        ["lora/rank32", "LORA", "0.4821", "9,175,040", "3", "1,796.4", "5.0", "5,000", "0.15.2"],
        ["full-finetuning/older", "full fine-tuning", "0.2500", "9,175,040", "6", "1,796.4", "5.0", "5,000", "0.15.2"],
        ["lora/broken", "LORA", "failed", "-", "3", "1,796.4", "5.0", "5,000", "0.15.2"],
    ]
    assert (pictures.header[2], pictures.rows[0][2]) == ("test dino_similarity", "0.6971")
    assert "in no average, test or plot" in accuracy.notes[0]


def test_a_report_shows_the_suite_beside_ours_and_pools_nothing(suite, tmp_path, capsys):
    for seed in (0, 1):
        RunFolder(tmp_path / "runs" / f"run{seed}").write(made_record("lora", "mrpc", seed))
    assert main(["report", str(tmp_path / "runs"), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main(["report", str(tmp_path / "runs"), str(suite), "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both.pop("method_comparison")[0]["run_info"]["experiment_name"] == "lora/rank32"
    assert both == alone
    assert main(["report", str(suite), "--format", "md"]) == 0
    assert "**method_comparison: some/model-3B**" in capsys.readouterr().out
    assert main(["report", str(suite), "--format", "csv"]) == 2
    assert "No finished run" in capsys.readouterr().err


def test_our_run_in_the_suites_format(tmp_path):
    record = made_record("lora", "mrpc", 3)
    record.memory = Memory(device=DeviceMemory(1, 2, 77, 3, 0))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    content = to_method_comparison(record, tmp_path)
    run, train, meta = content["run_info"], content["train_info"], content["meta_info"]
    assert run["experiment_name"] == f"lora/{tmp_path.name}"
    assert run["peft_config"] == {"peft_type": "LORA", "r": 8}
    assert (run["train_config"]["seed"], run["train_config"]["dtype"]) == (record.config["train"]["seed"], "float32")
    assert (train["status"], train["num_trainable_params"]) == ("success", record.params.trainable)
    assert (train["accelerator_memory_max"], train["train_time"]) == (77, record.time.train_seconds)
    assert train["metrics"][-1]["test f1"] == record.selected_scores["f1"]
    assert train["metrics"][0]["valid f1"] == record.history[0].scores["f1"]
    # What was not measured, or the format has no number for, is empty.
    assert (run["created_at"], run["total_time"], train["accelerator_memory_reserved_avg"]) == (None, None, None)
    assert meta["petl_bench_info"]["run_key"] == record.run_key
    json.dumps(content, allow_nan=False)


def test_without_stored_weights_the_methods_settings_stand_for_the_adapter(tmp_path):
    lora = to_method_comparison(made_record("lora", "mrpc", 0), tmp_path)["run_info"]["peft_config"]
    assert (lora["peft_type"], "name" in lora) == ("LORA", False)
    failed = made_record("full", "mrpc", 0)
    failed.status, failed.error, failed.scores, failed.history = "failed", "it broke", None, []
    content = to_method_comparison(failed, tmp_path)
    assert content["run_info"]["peft_config"] is None
    assert (content["train_info"]["status"], content["run_info"]["error_msg"]) == ("failed", "it broke")
    assert content["train_info"]["metrics"] == []


def test_exported_runs_are_read_back_as_files_of_the_suite(tmp_path, capsys):
    for seed in (0, 1):
        RunFolder(tmp_path / "runs" / f"run{seed}").write(made_record("lora", "mrpc", seed))
    out = tmp_path / "out"
    assert main(["report", str(tmp_path / "runs"), "--method-comparison", str(out), "--json"]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["lora--run0.json", "lora--run1.json"]
    capsys.readouterr()
    assert main(["report", str(out), "--format", "md"]) == 0
    assert "lora/run1" in capsys.readouterr().out
