"""The front of what nothing else beats."""

from __future__ import annotations

from petl_bench.reports.plots import pareto_front


def test_the_front_by_hand():
    points = [(1.0, 50.0), (2.0, 40.0), (3.0, 60.0), (3.0, 70.0), (4.0, 70.0), (5.0, 71.0)]
    assert pareto_front(points) == [0, 3, 5]


def test_one_point_and_none():
    assert pareto_front([(3.0, 1.0)]) == [0]
    assert pareto_front([]) == []
