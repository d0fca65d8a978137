"""Records of schema 1, made by the program as it was then, are read in the present schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from petl_bench.records.reading import SCHEMA_VERSION, corrected, migrated
from petl_bench.records.schema import Record

FILES = sorted((Path(__file__).parents[1] / "snapshot" / "adapters").glob("*/result.json"))
RENAMED = {
    "trunk": "frozen",
    "time.trunk_seconds": "time.features_seconds",
    "memory.ledger": "memory.estimate",
}


def leaves(node, path=""):
    """Every value that is no object, by its path."""
    if not isinstance(node, dict) or not node:
        return {path: node}
    found = {}
    for key, value in node.items():
        found |= leaves(value, f"{path}.{key}" if path else key)
    return found


def renamed(path):
    for old, new in RENAMED.items():
        if path == old or path.startswith(f"{old}."):
            return new + path.removeprefix(old)
    return path


@pytest.fixture(params=FILES, ids=lambda file: file.parent.name)
def content(request):
    return json.loads(request.param.read_text())


def test_three_fields_are_renamed_and_every_value_stays(content):
    assert content["schema_version"] == 1
    before = copy.deepcopy(content)
    expected = {renamed(path): value for path, value in leaves(content).items()} | {"schema_version": SCHEMA_VERSION}
    assert leaves(migrated(content)) == expected
    # The content that was given stays as it was.
    assert content == before


def test_a_migrated_record_reads_with_all_its_values(content):
    record = Record.from_dict(content)
    assert record.schema_version == SCHEMA_VERSION
    written = leaves(record.to_dict())
    for path, value in leaves(corrected(migrated(content))).items():
        if value is not None:
            assert written[path] == value, path


@pytest.mark.parametrize(
    ("frozen", "features", "cache"),
    [
        ({"cache": "memory", "reused": False}, 2.5, None),
        # It was the time of reading what another run had computed.
        ({"cache": "disk", "reused": True}, None, 2.5),
        # Nothing was computed before training.
        ({"cache": "off", "reused": False}, None, None),
    ],
)
def test_seconds_of_features_of_older_records_are_read_as_they_are_defined_now(frozen, features, cache):
    content = {"frozen": frozen, "time": {"features_seconds": 2.5, "train_seconds": 9.0}}
    time = corrected(content)["time"]
    assert (time["features_seconds"], time.get("cache_seconds"), time["train_seconds"]) == (features, cache, 9.0)
    assert content["time"] == {"features_seconds": 2.5, "train_seconds": 9.0}


def test_seconds_of_features_of_newer_records_stay():
    content = {"frozen": {"cache": "disk", "reused": True}, "time": {"features_seconds": 2.5, "cache_seconds": 0.1}}
    assert corrected(content) is content


def test_the_present_schema_is_left_alone():
    content = {"schema_version": SCHEMA_VERSION, "run_key": "abc", "config": {"trunk": 1}}
    assert migrated(content) is content


@pytest.mark.parametrize("version", [3, 0, None, "1", True])
def test_other_versions_are_refused_in_one_sentence(version):
    with pytest.raises(ValueError, match=rf"^schema_version {version} is not one of 1\.\.2: upgrade petl-bench$"):
        Record.from_dict({"schema_version": version, "run_key": "abc", "config": {}})
