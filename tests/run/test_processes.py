"""Runs of two processes, joined by gloo on the CPU as torchrun would join them, without a folder that both see."""

from __future__ import annotations

import json
import math
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from few_rows import few_demo_rows
from forked import FORK_SERVER
from found_records import find_records
from petl_bench.config import load_config
from petl_bench.errors import DivergedError, Interrupted, OutOfMemoryError
from petl_bench.process import in_process_group, is_main_process
from petl_bench.records import OOD_SCORES
from petl_bench.records.predictions import read_predictions
from petl_bench.run.lifecycle import identify
from petl_bench.run.run import run
from petl_bench.tasks import load
from petl_bench.training.loop import TrainingLoop

# Without dropout, whose masks depend on which process a row is dealt to. 45 rows: unequal shares.
SETTINGS = [
    "task=smoke", "backbone=tiny_bert", "backbone.architecture.num_hidden_layers=2", "task.num_train_examples=45",
    "task.max_length=16", "train.batch_size=15", "train.epochs=2", "train.evaluate_every=2", "train.device=cpu",
    "train.precision=fp32", "train.learning_rate=1e-2", "measure.ledger=false", "measure.inference=false",
    "train.eval_batch_size=40", "+backbone.architecture.hidden_dropout_prob=0",
    "+backbone.architecture.attention_probs_dropout_prob=0",
]  # fmt: skip
DROPOUT = ["+backbone.architecture.hidden_dropout_prob=0.3", "train.checkpoint_seconds=0"]
ADALORA = [
    "method=peft", "method.type=ADALORA", "+method.args.init_r=4", "+method.args.target_r=2", "+method.args.tinit=1",
    "+method.args.tfinal=1", "+method.args.deltaT=2", "+method.args.lora_alpha=64", "train.selection=last",
]  # fmt: skip
CACHED = ["method=head", "train.cache=disk"]
# One batch of training rows for two processes, of which one has none.
OOD = [
    "task=banking77", "task.ood=classes", "task.ood_share=0.25", "task.rows_per_class=2", "method=lora",
    "task.num_held_out_examples=385", "task.num_train_examples=null", "train.eval_batch_size=800", "train.epochs=1",
]  # fmt: skip
# No evaluation after the first is better. It is one batch for two processes: one of them has nothing to do.
EARLY = ["train.eval_batch_size=80", "train.epochs=9", "train.early_stopping_patience=2", "train.learning_rate=1e-12"]


def config(folder, *overrides):
    last_wins = dict(override.split("=", 1) for override in (*SETTINGS, *overrides))
    return load_config([f"{key}={value}" for key, value in (last_wins | {"runs_dir": folder}).items()])


def outcome(cfg):
    record = run(cfg)
    history = [[entry.step, entry.train_loss, entry.scores] for entry in record.history]
    seconds = record.time.train_seconds - record.time.warm_up_seconds
    speeds = record.time.train_examples_per_second, record.time.train_tokens_per_second
    return {
        "key": record.run_key,
        "history": history,
        "best": record.scores.best,
        "resumed": record.resumed_at_updates,
        "status": record.status,
        "cache": record.frozen and record.frozen.cache,
        "seen": [speed and round(speed * seconds) for speed in speeds],
    }


class Patched:
    """Replaces a method of `TrainingLoop` within a context; the replacement gets the original first."""

    def __init__(self, name, replacement):
        self.name, self.replacement = name, replacement

    def __enter__(self):
        self.original = original = getattr(TrainingLoop, self.name)
        setattr(TrainingLoop, self.name, lambda *arguments: self.replacement(original, *arguments))

    def __exit__(self, *_error):
        setattr(TrainingLoop, self.name, self.original)


def interrupted(update, loop, indices):
    if loop.state.progress.num_steps == 3:
        raise Interrupted(15)
    update(loop, indices)


def fails(_update, _loop, _indices):
    raise AssertionError("a finished run was made again")


def everything(rank, folder):
    """What each of the two processes does."""
    nodes = folder / f"node{rank}"
    found = {"lora": outcome(config(nodes, "method=lora")), "adalora": outcome(config(nodes, *ADALORA)),
             "early": outcome(config(nodes, *EARLY)), "ood": outcome(config(nodes, *OOD))}  # fmt: skip
    # Processes of one machine share its cache: one of them computes the features.
    os.environ["PETL_BENCH_CACHE"] = str(folder / "cache")
    found["cached"] = outcome(config(nodes, *CACHED))
    with Patched("_update", fails):
        found["again"] = outcome(config(nodes, "method=lora"))

    found["undisturbed"] = outcome(config(nodes / "undisturbed", *DROPOUT))
    with Patched("_update", interrupted), pytest.raises(Interrupted):
        run(config(nodes / "resumed", *DROPOUT))
    found["files"] = sorted(str(file.relative_to(folder)) for file in folder.rglob("step-*"))
    found["resumed"] = outcome(config(nodes / "resumed", *DROPOUT))

    def diverging(forward_backward, loop, indices, batch_rows):
        share = forward_backward(loop, indices, batch_rows)
        return share * math.nan if (rank, loop.state.progress.num_steps) == (1, 1) else share

    with Patched("_forward_backward", diverging), pytest.raises(DivergedError, match="by update 2"):
        run(config(nodes / "diverged", "method=lora", "train.seed=1"))
    return found


def out_of_memory(rank, folder):
    """One process runs out of memory and ends; the other loses its answers."""

    def failing(forward_backward, loop, indices, batch_rows):
        if (rank, loop.state.progress.num_steps) == (1, 1):
            raise MemoryError
        return forward_backward(loop, indices, batch_rows)

    with Patched("_forward_backward", failing), pytest.raises(OutOfMemoryError) as caught:
        run(config(folder / f"node{rank}" / "memory", "method=lora", "train.seed=2"))
    (folder / f"memory{rank}.txt").write_text(str(caught.value))


def member(rank, port, folder):
    import torch

    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()})
    os.environ["PETL_BENCH_CACHE"] = str(folder / f"cache{rank}")
    load.demo_rows = few_demo_rows
    torch.set_num_threads(1)
    # Accelerate would choose the number of threads otherwise.
    os.environ["OMP_NUM_THREADS"] = "1"
    (folder / f"{rank}.json").write_text(json.dumps(everything(rank, folder)))
    out_of_memory(rank, folder)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """The folder of two processes that have done everything, and what each of them found."""
    folder = tmp_path_factory.mktemp("group")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    members = [FORK_SERVER.Process(target=member, args=(rank, port, folder)) for rank in (0, 1)]
    for process in members:
        process.start()
    for process in members:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in members] == [0, 0]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_both_processes_end_with_the_same_numbers(group):
    _, (first, second) = group
    for name in ("lora", "adalora", "cached", "early", "ood", "again", "undisturbed", "resumed"):
        assert first[name] == second[name], name


@pytest.mark.parametrize(
    ("name", "overrides"), [("lora", ["method=lora"]), ("adalora", ADALORA), ("cached", CACHED), ("ood", OOD)]
)
def test_the_experiment_is_that_of_one_process(name, overrides, group, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "demo_rows", few_demo_rows)
    folder, (first, _) = group
    alone = config(tmp_path, *overrides)
    record = run(alone)
    assert record.run_key == first[name]["key"]
    assert first[name]["cache"] == (record.frozen and record.frozen.cache)
    for entry, (step, loss, scores) in zip(record.history, first[name]["history"], strict=True):
        assert (entry.step, entry.scores) == (step, scores)
        assert entry.train_loss == pytest.approx(loss, rel=1e-4)
    seconds = record.time.train_seconds - record.time.warm_up_seconds
    speeds = record.time.train_examples_per_second, record.time.train_tokens_per_second
    # What both processes saw together, warm-up apart.
    assert first[name]["seen"] == [round(speed * seconds) for speed in speeds]
    together = folder / "node0" / identify(alone).folder.name
    outputs, wanted = (read_predictions(one).outputs for one in (together, identify(alone).folder))
    np.testing.assert_allclose(outputs, wanted, atol=1e-3)
    if name == "ood":
        (judged,) = (one.ood for one in find_records([together])[0])
        assert (judged.num_examples, judged.classes) == (record.ood.num_examples, record.ood.classes)
        for score in OOD_SCORES:
            assert getattr(judged, score).auroc == pytest.approx(getattr(record.ood, score).auroc, abs=1e-2)
    if name == "adalora":
        kept, ranks = (
            json.loads((one / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
            for one in (together, identify(alone).folder)
        )
        assert kept == ranks
        assert sum(map(sum, ranks.values())) == 8


def test_the_first_process_says_what_is_finished_and_alone_writes(group):
    """The second one sees none of the records."""
    folder, (first, _) = group
    assert first["again"] == first["lora"]
    assert not (folder / "node1").exists()
    records, _ = find_records([folder / "node0"])
    assert {record.hardware["num_processes"] for record in records} == {2}


def test_a_resumed_training_has_the_same_bits(group):
    _, (first, _) = group
    assert len(first["files"]) == 2
    assert {Path(file).parts[:2] for file in first["files"]} == {("node0", "resumed")}
    assert first["resumed"]["resumed"] == [3]
    for same in ("history", "best", "key"):
        assert first["resumed"][same] == first["undisturbed"][same]


def test_processes_of_one_machine_share_its_cache(group):
    names = [file.suffix for file in (group[0] / "cache" / "frozen").iterdir()]
    # One entry for the training rows, one for those that are selected and reported on.
    assert sorted(names) == [".json", ".json", ".lock", ".lock", ".states", ".states"]


def test_both_stop_early(group):
    assert len(group[1][0]["early"]["history"]) == 3


def test_a_loss_that_diverges_in_one_process_ends_both_with_one_record(group):
    folder, _ = group
    (record,), _ = find_records([folder / "node0" / "diverged"])
    assert record.status == "diverged"
    assert "by update 2" in record.error


def test_memory_that_one_process_lacks_is_what_the_record_says(group):
    folder, _ = group
    (record,), _ = find_records([folder / "node0" / "memory"])
    assert record.status == "out_of_memory"
    own = (folder / "memory1.txt").read_text()
    assert own.startswith("Out of memory")
    assert record.error == (folder / "memory0.txt").read_text() == f"Process 1 of 2: {own}"


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_one_variable_of_a_launcher_is_no_process_group(name, monkeypatch, tmp_path):
    """As of Slurm or MPI, whose processes make runs of their own."""
    monkeypatch.setenv(name, "2")
    assert is_main_process()
    assert not in_process_group()
    cfg = config(tmp_path, "method=head", "train.max_steps=1")
    assert run(cfg).hardware["num_processes"] == 1
    assert (identify(cfg).folder / "result.json").exists()
    assert os.environ[name] == "2"
