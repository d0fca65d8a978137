"""A study of two methods on two tasks, with what papers might say of it."""

from __future__ import annotations

from petl_bench.records.schema import (
    Inference,
    Layers,
    Memory,
    MemoryEstimate,
    Params,
    Record,
    RunProtocol,
    Scores,
    Time,
)
from petl_bench.records.study_file import PlannedRun, PublishedRow, StudyFile


def record(
    key: str, score: float, *, task: str = "t", trained: int = 100, seed: int = 0, peak: int = 100, speed: float = 10.0,
    status: str = "finished", layer: int = 2, epoch: float = 1.0, error: bool = False,
) -> Record:  # fmt: skip
    metric = "mean_squared_error" if error else "accuracy"
    return Record(
        run_key=key,
        config={},
        status=status,
        protocol=RunProtocol(
            task=task, metric=metric, higher_is_better=not error, selection_split="validation",
            report_split="validation", selection="best", num_train_examples=10, num_eval_examples=5, max_length=8,
            seed=seed, precision="fp32", attention_implementation=None, batching="shuffled",
        ),
        layers=Layers(1, layer, layer, 6),
        params=Params(10_000 + trained, 10_000, trained, trained - 10, 10, trained / 100),
        scores=Scores({metric: score, "f1": score - 0.1}, {metric: 0.0}, epoch),
        time=Time(1.0, 1.0, None, 2 * speed, 100.0, 0.0),
        memory=Memory(estimate=MemoryEstimate(1, 1, 0, 0, 0, 0, 0, peak)),
        inference=Inference(32, 8, 1.0, speed),
    )  # fmt: skip


def key(method: str, task: str, seed: int, rate: float | None = None) -> str:
    return f"{method}-{task}-{seed}-{rate}"


def study(*, seeds=(0, 1, 2), methods=("a", "b"), tasks=("t", "u"), claims=(), published=(), costs=()) -> StudyFile:
    runs = [
        PlannedRun(method, task, seed, key(method, task, seed), "folder", [])
        for method in methods for task in tasks for seed in seeds
    ]  # fmt: skip
    return StudyFile(
        "toy", "a toy", list(methods), list(tasks), list(seeds), runs, deviations=["toys are small"],
        claims=list(claims), published=list(published), costs=list(costs),
    )  # fmt: skip


def records(scores: dict[tuple[str, str], list[float]], **settings) -> list[Record]:
    return [
        record(key(method, task, seed), score, task=task, seed=seed, **{k: v[method] for k, v in settings.items()})
        for (method, task), values in scores.items()
        for seed, score in enumerate(values)
    ]  # fmt: skip


# a - b: t +2, +3, +4 points; u -1, 0, +1 points; all six: mean 1.5, sd 1.871, standard error 0.764.
SCORES = {
    ("a", "t"): [0.82, 0.83, 0.84], ("b", "t"): [0.80, 0.80, 0.80],
    ("a", "u"): [0.69, 0.70, 0.71], ("b", "u"): [0.70, 0.70, 0.70],
}  # fmt: skip
MEASURED = records(
    SCORES, trained={"a": 53, "b": 530}, peak={"a": 100, "b": 320}, speed={"a": 30.0, "b": 10.0},
    layer={"a": 2, "b": 3}, epoch={"a": 2.0, "b": 3.0},
)  # fmt: skip

PAPER = PublishedRow(
    "A of the paper", "a paper, table 1", {"t": [84.5, 0.3], "u": [75.0]}, method="a", statistic="median of 5",
    split="validation", params="0.1M", average=80.0, comparable=True,
)  # fmt: skip
