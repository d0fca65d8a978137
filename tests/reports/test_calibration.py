"""How often a report is wrong: verdicts on studies whose methods are equally good."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.null_model import NullModel, NullStudy, share_found, share_with_verdict

ONE_SEED = NullModel(seeds=1, seeds_sd=0)
# Without predictions, "equally good" means on these rows.
SEEDS_ALONE = NullModel(with_predictions=False, method_rows_sd=0, seeds_sd=0.3)
DATA_SETS = NullModel(seeds=2, rows=60, data_sets=7, method_tasks_sd=0.3, with_predictions=False)

# Of each kind of verdict: the model, whether over data sets, the reference.
KINDS = {
    "one run each": (ONE_SEED, False, None),
    "seeds and rows": (NullModel(seeds=3), False, None),
    "seeds and rows, five methods": (NullModel(methods=5), False, None),
    "seeds and rows, a reference": (NullModel(methods=4), False, "m0"),
    "seeds alone": (SEEDS_ALONE, False, None),
    "seeds alone, five methods": (replace(SEEDS_ALONE, methods=5, seeds=4), False, None),
    "data sets": (DATA_SETS, True, None),
    "data sets, four methods": (replace(DATA_SETS, methods=4, data_sets=8), True, None),
    "data sets, a reference": (replace(DATA_SETS, methods=4), True, "m0"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_false_alarms(kind):
    model, over_data_sets, reference = KINDS[kind]
    share = share_with_verdict(model, 200, over_data_sets=over_data_sets, reference=reference)
    # Three standard errors of 200 draws above 5 %; the slow tests draw 2,000.
    assert share <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


def test_subsets_of_few_data_sets_never_speak_about_others():
    for with_predictions in (True, False):
        model = replace(DATA_SETS, data_sets=2, subsets=3, with_predictions=with_predictions)
        assert share_with_verdict(model, 3, over_data_sets=True) == 0
        assert [len(tasks) for tasks in NullStudy(model).draw().differences.data_sets] == [3, 3]


@pytest.mark.parametrize(
    ("model", "over_data_sets"),
    [(NullModel(ahead=1.0), False), (replace(SEEDS_ALONE, ahead=1.5), False), (replace(DATA_SETS, ahead=1.0), True)],
)
def test_a_large_difference_is_found(model, over_data_sets):
    assert share_found(model, 60, over_data_sets=over_data_sets) > 0.9


# Of each model the methods, seeds, rows and data sets, and whether runs have kept predictions.
SIZES = [
    *((2, seeds, rows, 1, True) for seeds, rows in ((1, 872), (2, 872), (3, 872), (5, 277), (5, 872), (10, 872))),
    *((5, seeds, rows, 1, True) for seeds, rows in ((3, 872), (5, 872), (10, 872))),
    *((12, seeds, 277, 1, True) for seeds in (3, 5)),
    *((methods, seeds, 872, 1, False) for methods in (2, 5) for seeds in (3, 5)),
    (12, 5, 277, 1, False),
    *((methods, 2, 60, 8, False) for methods in (2, 5, 12)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("methods", "seeds", "rows", "data_sets", "with_predictions"), SIZES)
def test_the_table_of_false_alarms(methods, seeds, rows, data_sets, with_predictions, capsys):
    """Prints one row of the table in docs/reports.md: `pytest tests/reports/test_calibration.py -m slow`."""
    over_data_sets = data_sets > 1
    reports = 2000 if methods < 12 else 500
    model = NullModel(
        methods, seeds, rows, data_sets, method_tasks_sd=0.3 if over_data_sets else 0,
        method_rows_sd=1.0 if with_predictions else 0, seeds_sd=0 if seeds == 1 else 0.1,
        with_predictions=with_predictions,
    )  # fmt: skip
    share = share_with_verdict(model, reports, over_data_sets=over_data_sets)
    # About three points of accuracy around 78 %.
    power = share_found(replace(model, ahead=0.24), reports // 4, over_data_sets=over_data_sets)
    with capsys.disabled():
        kept = "yes" if with_predictions else "no"
        print(f"\n| {methods} | {seeds} | {rows} | {data_sets} | {kept} | {100 * share:.1f} | {100 * power:.0f} |")
    assert share <= 0.05 + 3 * (0.05 * 0.95 / reports) ** 0.5
