"""The pictures of a report by kind."""

from __future__ import annotations

import pytest

from petl_bench.errors import RequestError
from petl_bench.records.store import RunFolder
from petl_bench.reports.groups import group_records, named_groups, panel_groups
from petl_bench.reports.plots.kinds import layer_variability, learning_curve, rows_curves
from petl_bench.reports.render import PLOT_KINDS
from petl_bench.reports.report import write_report
from reports.made_records import made_record, made_study, variability_record


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    few = (record for record in made_study(seeds=2) if record.protocol.task == "mrpc")
    for number, record in enumerate(record for record in few if record.protocol.num_train_examples in (300, 3000)):
        RunFolder(folder / str(number)).write(record)
    return folder


# Tuning curves need a search, which tests/studies/test_search.py makes.
@pytest.mark.parametrize("kind", [kind for kind in PLOT_KINDS if kind != "tuning"])
def test_every_kind_is_drawn(kind, study, tmp_path):
    file = tmp_path / "deep" / f"{kind}.svg"
    write_report([str(study)], "csv", str(file), lambda _: None, plot_kind=kind)
    assert "<svg" in file.read_text()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("curves", "history"),
        ("low_resource", "several numbers of rows"),
        ("variability", "layers=variability"),
        ("tuning", "sampler: random"),
    ],
)
def test_records_without_the_numbers_of_a_kind_raise(kind, said, tmp_path):
    record = made_record("lora", "cola", 0)
    record.history = []
    RunFolder(tmp_path / "run").write(record)
    with pytest.raises(RequestError, match=rf"{said}.*choose another --plot-kind"):
        write_report([str(tmp_path)], "csv", str(tmp_path / "plot.png"), lambda _: None, plot_kind=kind)
    assert not (tmp_path / "plot.png").exists()


def test_a_kind_without_a_file_raises(study):
    with pytest.raises(RequestError, match="add --plot FILE"):
        write_report([str(study)], "csv", None, lambda _: None, plot_kind="curves")


def test_a_learning_curve_counts_the_seeds_that_got_there():
    records = [made_record("lora", "cola", seed) for seed in (0, 1)]
    records[1].history = records[1].history[:3]
    (group,) = group_records(records)
    curve = learning_curve(group)
    assert [point.score.n for point in curve] == [2] * 3 + [1] * 9
    assert [point.step for point in curve] == [23 * i for i in range(1, 13)]
    first = [record.history[0].scores["matthews_correlation"] for record in records]
    assert curve[0].score.mean == pytest.approx(sum(first) / 2)


def test_curves_by_rows_go_from_fewest_to_most():
    (curve,) = rows_curves(named_groups([made_record("lora", "cola", 0, rows) for rows in (500, 100, 2000)]))
    assert (curve.method, curve.task, [point.rows for point in curve.points]) == ("lora", "cola", [100, 500, 2000])
    assert [point.group.label for point in curve.points] == ["lora, 100 rows", "lora, 500 rows", "lora, 2,000 rows"]


def test_numbers_of_rows_are_not_compared_with_one_another():
    named = named_groups([made_record("lora", task, 0, rows) for task, rows in (("cola", 9), ("mrpc", 5), ("mrpc", 7))])
    panels = [(group.task, group.label) for group in panel_groups(named)]
    assert panels == [("cola", "lora"), ("mrpc, 7 rows", "lora"), ("mrpc, 5 rows", "lora")]


def test_variability_is_the_mean_over_seeds_and_missing_where_one_is_infinite():
    records = [variability_record(seed=seed) for seed in (0, 1)]
    records[1].layers.variability = [3.0, 6.0, 2.0, 1.0, 0.8, None]
    (group,) = group_records(records)
    assert layer_variability(group) == pytest.approx([None, 5.0, 2.0, 1.0, 0.8, None])
    assert layer_variability(group, shuffled=True)[0] == 90.0
