"""The sentence above a report on one task, and the names beside the points of a plot."""

from __future__ import annotations

from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest

from petl_bench.reports.groups import group_records
from petl_bench.reports.plots import name_points
from petl_bench.reports.render import to_latex, to_markdown
from petl_bench.reports.results_table import backbone_results
from petl_bench.reports.tables import headline
from reports.generated import record, records, results_tables


def said(scores: dict) -> str | None:
    (results,) = backbone_results(group_records(records(scores)))
    return headline(results)


class TestHeadline:
    def test_a_small_method_close_to_the_best_is_named_with_its_share(self):
        # Trained parameters are 10, 20, 30 and 40 of 1,000; lora is 1.9 points below the best, bitfit 2.1.
        text = said({"bitfit": {"t": [0.879]}, "lora": {"t": [0.881]}, "flat": {"t": [0.6]}, "full": {"t": [0.9]}})
        assert text == (
            "Trained once each, full scores 90.0 % accuracy on t, the highest of 4 methods, and lora comes within 2 "
            "points of it, training 2.000 % as many parameters as the backbone has."
        )

    def test_none_is_close(self):
        text = said({"lora": {"t": [0.5, 0.7]}, "full": {"t": [0.9, 0.7]}})
        assert text == (
            "On the mean of 2 seeds, full scores 80.0 % accuracy on t, the highest of 2 methods, and none with fewer "
            "trained parameters comes within 2 points of it."
        )

    def test_several_tasks_one_method_and_errors_have_none(self):
        assert said({"lora": {"t": [0.5], "u": [0.5]}, "full": {"t": [0.9], "u": [0.5]}}) is None
        assert said({"lora": {"t": [0.5]}}) is None
        made = [record(method, "t", 0, 0.5, error_metric=True) for method in ("lora", "full")]
        (results,) = backbone_results(group_records(made))
        assert headline(results) is None

    def test_it_stands_above_the_table(self):
        (table,) = results_tables(records({"lora": {"t": [0.5]}, "full": {"t": [0.9]}}))
        assert to_markdown(table).startswith(f"{table.headline}\n\n**{table.title}**")
        assert r"highest of 2 methods" in to_latex(table)


@pytest.mark.parametrize("seed", range(3))
def test_names_cover_no_name_and_no_marker_and_stay_in_the_panel(seed):
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rng = np.random.default_rng(seed)
    # Half of the points crowd in one place.
    spread, crowd = rng.uniform(0, 100, (6, 2)), 50 + rng.normal(scale=3, size=(6, 2))
    places = dict(zip([f"method_{n}" for n in range(12)], map(tuple, [*spread, *crowd]), strict=True))
    figure, axes = plt.subplots(figsize=(4, 3.5), layout="constrained")
    axes.scatter(*zip(*places.values(), strict=True))
    axes.margins(0.15)
    name_points(axes, places)
    figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert boxes.keys() == places.keys()
    assert not [pair for pair in combinations(boxes, 2) if boxes[pair[0]].padded(-0.5).overlaps(boxes[pair[1]])]
    for box in boxes.values():
        assert not any(box.contains(*axes.transData.transform(place)) for place in places.values())
        assert axes.bbox.padded(1).contains(*box.min)
        assert axes.bbox.padded(1).contains(*box.max)
    plt.close(figure)
