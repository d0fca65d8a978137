"""Every shipped study, made small: all its settings but the backbone's size, two updates on few real rows."""

from __future__ import annotations

import dataclasses
import re

import pyarrow as pa
import pytest
from pyarrow import parquet

from petl_bench.methods.registry import all_methods, get_method
from petl_bench.run.run import run
from petl_bench.studies.definition import open_study, parse_request, study_names
from petl_bench.studies.expand import cells, compose
from petl_bench.studies.study import prepare

TINY = {
    "bert_base_chinese": "tiny_bert",
    "roberta_wwm_ext_base": "tiny_bert",
    "minilm": "tiny_bert",
    "bert_base": "tiny_bert",
    "bert_base_cased": "tiny_bert",
    "bert_large": "tiny_bert",
    "roberta_base": "tiny_roberta",
    "roberta_large": "tiny_roberta",
}
SMALL = [
    "train.max_steps=2",
    "train.batch_size=4",
    "train.accumulation=1",
    "train.precision=fp32",
    "train.save_weights=false",
    "train.evaluate_every=null",
    "train.eval_batch_size=256",
    "backbone.architecture.num_hidden_layers=2",
    "task.num_train_examples=8",
    "task.rows_per_class=null",
    "task.num_held_out_examples=60",
    "measure.ledger=false",
    "measure.inference=false",
]
# Tasks with few rows to score come first.
QUICK = ("banking", "rte", "mrpc", "sst2")


def cells_of(study, methods, tasks):
    """The cells of some of its methods and tasks alone, without what it searches: drawing composes every config."""
    narrowed = dataclasses.replace(
        study,
        methods={name: study.methods[name] for name in methods},
        tasks={name: study.tasks[name] for name in tasks},
        search=None,
    )
    return cells(narrowed, [])


def kinds():
    """One cell for every setting of a method that a shipped study has, numbers apart, on its quickest task."""
    found = {}
    for name in study_names():
        _, study = open_study(name)
        tasks = sorted(
            study.tasks, key=lambda task: next((n for n, t in enumerate(QUICK) if task.startswith(t)), len(QUICK))
        )
        for cell in cells_of(study, study.methods, tasks[:1]):
            if study.search is not None and cell.method in all_methods():
                first = (f"{name}={values[0]}" for name, values in get_method(cell.method).searched_sizes.items())
                cell = dataclasses.replace(cell, overrides=[*cell.overrides, *first])
            chosen = [override for override in cell.overrides if override.startswith(("method", "layers"))]
            found.setdefault(tuple(re.sub(r"=[\d.e-]+$", "=N", override) for override in chosen), cell)
    params, seen = [], set()
    for overrides, cell in found.items():
        # Combinations of settings that others have one by one take long, and rarely show anything.
        marks = [pytest.mark.slow] if seen.issuperset(overrides) else []
        params.append(pytest.param(cell, id="-".join(overrides), marks=marks))
        seen.update(overrides)
    return params


@pytest.fixture(scope="module")
def few_rows(glue, tmp_path_factory):
    """The first rows of every file, of which hundreds are scored otherwise."""
    folder = tmp_path_factory.mktemp("few")
    for file in glue.glob("*/*.parquet"):
        (folder / file.parent.name).mkdir(exist_ok=True)
        rows = next(parquet.ParquetFile(file).iter_batches(300 if file.name.startswith("train") else 60))
        parquet.write_table(pa.Table.from_batches([rows]), folder / file.parent.name / file.name)
    return folder


def make_small(cell, folder, data_root):
    backbone = next((one for one in cell.overrides if one.startswith("backbone=")), "backbone=minilm")
    overrides = [override for override in cell.overrides if override != backbone]
    overrides += [f"backbone={TINY[backbone.partition('=')[2]]}", f"data_root={data_root}", *SMALL]
    if "layers=top" in overrides:
        overrides.append("layers.k=1")
    if "layers=window" in overrides:
        overrides.append("layers.top=2")
    small = compose(dataclasses.replace(cell, overrides=overrides), folder)
    small.task.max_length = min(small.task.max_length, 24)
    return run(small)


@pytest.mark.parametrize("cell", kinds())
def test_every_method_makes_two_updates(cell, few_rows, tmp_path):
    record = make_small(cell, tmp_path, few_rows)
    assert record.status == "finished"
    assert record.history[-1].step == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", study_names())
def test_every_cell_makes_two_updates(name, glue, tmp_path):
    _, study = open_study(name)
    # The rows of these lie beside GLUE's.
    rows = glue.parent / {"wnut17": "wnut17", "fl_tuning_clue": "clue"}.get(name, glue.name)
    if not rows.is_dir():
        pytest.skip(f"no rows at {rows}")
    for cell in cells(study, []):
        assert make_small(cell, tmp_path, rows).history[-1].step == 2, cell


def narrowed():
    """By study, every method on the first task and the first method on every task; settings of other studies once."""
    found, seen = {}, set()
    for name in study_names():
        _, study = open_study(name)
        first, *others = study.methods
        task = next(iter(study.tasks))
        for cell in (*cells_of(study, [first], study.tasks), *cells_of(study, others, [task])):
            if not seen.issuperset(cell.overrides):
                seen.update(cell.overrides)
                found.setdefault(name, []).append(cell)
    return found


NARROWED = narrowed()


@pytest.mark.parametrize("name", NARROWED)
def test_every_setting_composes(name, glue, tmp_path):
    data_root = [f"data_root={glue}"]
    for cell in NARROWED[name]:
        assert compose(dataclasses.replace(cell, overrides=[*cell.overrides, *data_root]), tmp_path).method.name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in study_names() if name != "demo"]
)
def test_every_study_expands(name, glue, tmp_path):
    study = prepare(name, parse_request([f"runs_dir={tmp_path}", f"data_root={glue}"]))
    assert len(study.runs) >= len(study.file.methods) * len(study.file.tasks) * len(study.file.seeds)


def test_the_demo_expands(tmp_path):
    study = prepare("demo", parse_request([f"runs_dir={tmp_path}"]))
    assert len(study.runs) == len(study.file.methods) * len(study.file.tasks) * len(study.file.seeds)
