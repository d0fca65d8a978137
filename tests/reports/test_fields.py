"""The table of record fields: what it names exists, and one entry is enough for a new column."""

from __future__ import annotations

import csv
import io
import json
import typing
from dataclasses import fields, is_dataclass

import pytest

from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedCosts
from petl_bench.reports.csv_json import to_csv, to_json
from petl_bench.reports.fields import AXES, FIELDS, MIB, QUANTITIES, Field
from petl_bench.reports.groups import group_records, named_groups
from petl_bench.reports.page import PageInput, page_data
from petl_bench.reports.results_table import backbone_results
from petl_bench.reports.tables import scores_table
from petl_bench.trackers import dashboard
from reports.generated import analyses, record


def type_at(path: str) -> type:
    """The type of a record's attribute, by the annotations of the schema."""
    found = Record
    for name in path.split("."):
        member = getattr(found, name, None)
        hints = typing.get_type_hints(member.fget if isinstance(member, property) else found)
        hint = hints["return" if isinstance(member, property) else name]
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        found = options[0] if options else hint
    return found


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_every_path_exists_in_the_schema(field):
    assert type_at(field.path) in (int, float)


def test_a_path_that_does_not_exist_is_found():
    with pytest.raises(KeyError):
        type_at("memory.ledger.peak_bytes")


def test_selections_name_fields_and_planned_costs():
    assert set(AXES) | set(QUANTITIES.values()) <= FIELDS.keys()
    assert all(FIELDS[key].axis for key in AXES)
    assert is_dataclass(PlannedCosts)
    planned = {name for field in FIELDS.values() for name in field.planned}
    assert planned <= {field.name for field in fields(PlannedCosts)}


def test_dashboards_use_the_keys_of_trackers():
    assert dashboard.TRAINABLE == "params/trainable"
    assert dashboard.ESTIMATED_PEAK == "memory/estimate/peak_bytes"


def test_one_entry_adds_a_column_to_table_csv_json_and_page(monkeypatch):
    added = Field("eval_seconds", "time.eval_seconds", "eval s", "time of the evaluations", "time", digits=1)
    monkeypatch.setitem(FIELDS, added.key, added)
    made = record("lora", "mrpc", 0, 0.8)
    found = analyses(backbone_results(group_records([made])))
    table = scores_table(found[0])
    assert table.rows[0][table.header.index("eval s")] == "1.0"
    assert "eval s: time of the evaluations" in table.notes
    (line,) = csv.DictReader(io.StringIO(to_csv(found)))
    assert line["eval_seconds_mean"] == "1.0"
    assert json.loads(to_json(found, {}))["groups"][0]["eval_seconds_mean"] == 1.0
    page = page_data(PageInput(named_groups([made]), [made]))
    assert page["rows"][0]["eval_seconds"] == 1.0
    assert {"key": "eval_seconds", "name": "eval s"}.items() <= page["columns"][-1].items()


def test_a_value_is_shown_in_its_unit():
    assert FIELDS["estimated_peak_bytes"].text(3 * MIB) == "3"
    assert FIELDS["inference_latency_ms"].text(1.25) == "1.2"
    assert FIELDS["params_trainable"].text(None) == "-"
    assert FIELDS["params_trainable"].planned_value(PlannedCosts("a", "t", 40, 2)) == 42
    assert FIELDS["params_trainable"].planned_value(PlannedCosts("a", "t", 40)) is None
    assert FIELDS["train_seconds"].planned_value(PlannedCosts("a", "t", 40)) is None
