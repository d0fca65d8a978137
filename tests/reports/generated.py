"""Records of runs that never were, with the scores that a test gives them."""

from __future__ import annotations

import copy
from functools import cache

from petl_bench.config import load_config
from petl_bench.records.schema import (
    HistoryEntry,
    Inference,
    Memory,
    MemoryEstimate,
    Params,
    Record,
    RunProtocol,
    Scores,
    Time,
)
from petl_bench.records.study_file import PlannedRun, StudyFile
from petl_bench.reports.differences import find_differences
from petl_bench.reports.groups import group_records
from petl_bench.reports.ranking import Analysis, analyse
from petl_bench.reports.render import ReportTable
from petl_bench.reports.results_table import ResultsTable, backbone_results
from petl_bench.reports.tables import scores_table


@cache
def _config() -> dict:
    return load_config(["task=smoke"]).to_dict()


def record(
    method: str,
    task: str,
    seed: int,
    score: float,
    *,
    status: str = "finished",
    trained: int = 10,
    error_metric: bool = False,
    speed: float = 100.0,
    key: str | None = None,
) -> Record:
    """A record; with `error_metric`, less is better."""
    config = copy.deepcopy(_config())
    config["method"] |= {"name": method}
    config["task"] |= {"name": task}
    config["train"] |= {"seed": seed}
    metric = "mean_squared_error" if error_metric else "accuracy"
    protocol = RunProtocol(
        task=task, metric=metric, higher_is_better=not error_metric, selection_split="validation",
        report_split="validation", selection="best", num_train_examples=100, num_eval_examples=50, max_length=32,
        seed=seed, precision="fp32", attention_implementation="sdpa", batching="length_grouped",
    )  # fmt: skip
    return Record(
        run_key=key or f"{method}-{task}-{seed}",
        config=config,
        status=status,
        error=None if status == "finished" else "the loss is not finite",
        protocol=protocol,
        params=Params(1100, 1000, trained, trained - 5, 5, trained / 10, 160),
        scores=Scores({metric: score, "f1": score / 2}, {metric: 0.0, "f1": 0.0}, 1.0)
        if status == "finished"
        else None,
        history=[HistoryEntry(float(epoch), epoch, 0.5, {metric: score}, 1.0) for epoch in range(10)],
        time=Time(10.0, 1.0, None, speed, 800.0, 0.02),
        memory=Memory(estimate=MemoryEstimate(32, 128, 1, 1, 1, 1, 1, 5 * 2**20), process_peak_rss_bytes=500 * 2**20),
        inference=Inference(32, 128, 1.5, speed),
    )


def records(scores: dict[str, dict[str, list[float]]]) -> list[Record]:
    """By method and task the scores of seeds 0, 1, ...; every method trains more parameters than the one before."""
    return [
        record(method, task, seed, score, trained=10 * (number + 1))
        for number, (method, tasks) in enumerate(scores.items())
        for task, column in tasks.items()
        for seed, score in enumerate(column)
    ]


def study(methods: list[str], tasks: list[str], seeds: int, **fields) -> StudyFile:
    """A study that calls methods and tasks as its records do, in capitals."""
    runs = [
        PlannedRun(method.upper(), task.upper(), seed, f"{method}-{task}-{seed}", "folder", [])
        for method in methods
        for task in tasks
        for seed in range(seeds)
    ]
    names = [[name.upper() for name in several] for several in (methods, tasks)]
    return StudyFile("a_study", "", *names, list(range(seeds)), runs, **fields)


def results_tables(made: list[Record], statistic: str = "mean") -> list[ReportTable]:
    """The tables of runs that belong to no study, one a backbone."""
    return [
        scores_table(analysis, statistic) for analysis in analyses(backbone_results(group_records(made)), statistic)
    ]


def analyses(all_results: list[ResultsTable], statistic: str = "mean") -> list[Analysis]:
    """The analyses of results tables, without a reference."""
    return analyse([find_differences(results) for results in all_results], statistic, None)
