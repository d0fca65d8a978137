"""A study of two methods on two tasks with two seeds, and a setting for one cell."""

from __future__ import annotations

from petl_bench.studies.definition import CellConfig, StudyConfig

SMALL = StudyConfig(
    settings=["backbone=tiny_bert", "train.epochs=1"],
    methods={"lora": [], "head_pooler": ["method=head", "method.pooler=true"]},
    tasks={"demo": [], "few": ["task=demo", "task.num_train_examples=20"]},
    seeds=[3, 4],
    cells=[CellConfig(methods=["lora"], tasks=["few"], settings=["train.epochs=9", "method.r=2"])],
)
