"""The intent data sets that ship with the package, and few rows of each class of any task."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from petl_bench.catalog import list_tasks
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.run.describe import log_rows
from petl_bench.run.lifecycle import identify
from petl_bench.tasks.load import load_task
from petl_bench.tasks.table_files import PACKAGE_DATA


def load(*overrides: str, root=None):
    return load_task(load_config(list(overrides)).task, None if root is None else str(root))


def texts(rows) -> set[str]:
    return set(rows.texts[0])


def per_class(rows) -> set[int]:
    return set(np.bincount(rows.labels).tolist())


class TestShippedDataSets:
    def test_banking77_selects_on_training_rows_kept_apart_and_reports_on_the_test_rows(self):
        task = load("task=banking77")
        assert task.rows_per_split() == {"train": 9003, "train_held_out": 1000, "test": 3080}
        assert len(task.labels) == 77
        assert per_class(task.report) == {40}
        assert not texts(task.train) & texts(task.selection)
        assert not (texts(task.train) | texts(task.selection)) & texts(task.report)

    def test_clinc150_selects_on_its_validation_rows_and_reports_on_the_test_rows(self):
        task = load("task=clinc150")
        assert task.rows_per_split() == {"train": 15000, "validation": 3000, "test": 4500}
        assert (per_class(task.train), per_class(task.selection), per_class(task.report)) == ({100}, {20}, {30})

    @pytest.mark.parametrize("name", ["banking77", "clinc150"])
    def test_labels_are_those_of_the_files_and_the_licence_lies_beside_them(self, name):
        folder = PACKAGE_DATA / name
        for file in folder.glob("*.parquet"):
            features = json.loads(parquet.read_schema(file).metadata[b"huggingface"])["info"]["features"]
            assert load_config([f"task={name}"]).task.labels == features["label"]["names"]
        assert "Creative Commons Attribution" in (folder / "LICENSE").read_text()
        assert {"Authors", "Source", "Licence", "Changed"} <= {
            line[2:].partition(":")[0] for line in (folder / "README.md").read_text().splitlines()
        }

    def test_a_folder_of_other_rows_does_not_matter(self, tmp_path):
        cfg = load_config(["task=banking77", f"data_root={tmp_path}"])
        assert len(load_task(cfg.task, cfg.data_root).train) == 9003
        assert identify(cfg).key == identify(load_config(["task=banking77"])).key

    def test_snips_is_read_from_a_folder(self, tmp_path):
        for split, size in (("train", 14), ("validation", 7), ("test", 21)):
            rows = {"text": [f"{split} {i}" for i in range(size)], "label": [i % 7 for i in range(size)]}
            pd.DataFrame(rows).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
        task = load("task=snips", root=tmp_path)
        assert task.rows_per_split() == {"train": 14, "validation": 7, "test": 21}
        cfg = load_config(["task=snips", f"data_root={tmp_path}"])
        before = identify(cfg).key
        pd.DataFrame(rows | {"text": ["new"] * 21}).to_parquet(tmp_path / "test-00000-of-00001.parquet")
        assert identify(cfg).key != before

    def test_the_default_is_banking77_with_ten_rows_of_each_intent(self):
        task = load()
        assert task.rows_per_split() == {"train": 770, "train_held_out": 385, "test": 3080}
        assert per_class(task.train) == {10}

    def test_a_task_that_is_made_of_another_is_listed_with_what_it_takes_from_it(self):
        listed = {row.pop("task"): row for row in list_tasks()}
        assert listed["banking77_few"] == listed["banking77"]
        assert listed["banking77_few"]["labels"] == 77


class TestRowsPerClass:
    @pytest.fixture
    def custom(self, tmp_path):
        """Thirty rows of `a`, twenty of `b`, ten of `c`."""
        labels = ["a"] * 30 + ["b"] * 20 + ["c"] * 10
        pd.DataFrame({"text": [f"text {i}" for i in range(60)], "label": labels}).to_csv(tmp_path / "t.csv")
        return ["task=custom", f"task.train_file={tmp_path / 't.csv'}"]

    def test_every_class_has_as_many_and_fewer_are_a_part_of_more(self, custom):
        few, more = (load(*custom, f"task.rows_per_class={count}") for count in (3, 8))
        assert (len(few.train), per_class(few.train)) == (9, {3})
        assert per_class(more.train) == {8}
        assert texts(few.train) < texts(more.train)
        # A fifth of the file is held out, none of it a training row.
        assert len(few.selection) == len(more.selection) == 12
        assert not texts(few.train) & texts(few.selection)

    def test_the_data_seed_draws_them(self, custom):
        drawn = [load(*custom, "task.rows_per_class=3", *more).train for more in ([], ["train.seed=5"])]
        assert drawn[0].texts == drawn[1].texts
        assert load(*custom, "task.rows_per_class=3", "task.data_seed=1").train.texts != drawn[0].texts

    def test_they_are_part_of_the_run_key_only_where_they_are_asked_for(self, custom):
        keys = [identify(load_config([*custom, f"task.rows_per_class={n}"])).key for n in ("null", 2, 3)]
        assert len(set(keys)) == 3
        assert keys[0] == identify(load_config(custom)).key

    def test_the_screen_tells_them(self, custom, caplog):
        caplog.set_level(logging.INFO, "petl_bench")
        log_rows(load(*custom, "task.rows_per_class=3"))
        assert "training rows: 3 of each of the 3 classes, drawn with task.data_seed=42" in caplog.messages

    def test_a_class_with_fewer_rows_is_named(self, custom):
        with pytest.raises(RequestError, match=r"the class 'c' has 10 training rows.*: lower it to 10 or less"):
            load(*custom, "task.rows_per_class=11")
        with pytest.raises(RequestError, match=r"the class 'd' has 0 training rows.*out of task.labels"):
            load(*custom, "task.rows_per_class=1", "task.labels=[a,b,c,d]")

    @pytest.mark.parametrize(
        ("count", "shares", "expected"),
        [
            (20, "[0.6,0.3,0.1]", [12, 6, 2]),
            (10, "[0.05,0.05,0.9]", [1, 0, 9]),
            (7, "[0.5,0.25,0.25]", [3, 2, 2]),
            (9, "[0.34,0.33,0.33]", [3, 3, 3]),
        ],
    )
    def test_classes_in_given_shares(self, custom, count, shares, expected):
        drawn = load(*custom, "task.labels=[a,b,c]", f"task.num_train_examples={count}", f"task.class_share={shares}")
        assert np.bincount(drawn.train.labels, minlength=3).tolist() == expected
        assert not texts(drawn.train) & texts(drawn.selection)

    def test_fewer_rows_in_the_same_shares_are_a_part_of_more(self, custom):
        few, more = (
            load(*custom, "task.labels=[a,b,c]", f"task.num_train_examples={n}", "task.class_share=[0.5,0.4,0.1]")
            for n in (10, 40)
        )
        assert texts(few.train) < texts(more.train)

    def test_shares_are_part_of_the_run_key_only_where_they_are_asked_for(self, custom):
        base = [*custom, "task.labels=[a,b,c]", "task.num_train_examples=10"]
        keys = [identify(load_config([*base, f"task.class_share={s}"])).key for s in ("null", "[0.5,0.4,0.1]")]
        assert keys[0] == identify(load_config(base)).key != keys[1]

    def test_a_class_with_too_few_rows_for_its_share_is_named(self, custom):
        with pytest.raises(RequestError, match=r"class_share=.*'c' has 10 training rows, fewer than the 16 that are"):
            load(*custom, "task.labels=[a,b,c]", "task.num_train_examples=20", "task.class_share=[0.1,0.1,0.8]")

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["task=stsb", "task.class_share=[0.5,0.5]"], "needs classes with names"),
            (["task=sst2", "task.class_share=[0.5,0.5]"], "a number of training rows"),
            (["task=sst2", "task.num_train_examples=9", "task.class_share=[0.5,0.6]"], "with the sum 1"),
            (["task=sst2", "task.num_train_examples=9", "task.class_share=[1,0]"], "a share above 0"),
            (["task=sst2", "task.num_train_examples=9", "task.class_share=[0.2,0.3,0.5]"], "each of the 2 classes"),
            (["task=stsb", "task.rows_per_class=2"], "is for classes, which task.type=regression has not"),
            (["task=mrpc", "task.rows_per_class=2", "task.num_train_examples=9"], "both say which rows train"),
            (["task=mrpc", "task.rows_per_class=0"], "must be at least 1"),
            (
                ["task=custom", "task.train_file=a.csv", "task.protocol=test"],
                "task.test_file holds the rows to report on",
            ),
        ],
    )
    def test_requests_that_cannot_work(self, overrides, words):
        with pytest.raises(RequestError, match=words):
            load_config(overrides)

    def test_no_room_for_held_out_rows_is_told(self, custom):
        with pytest.raises(RequestError, match=r"task.rows_per_class=10 and 40 held-out rows do not fit into the 60"):
            load(*custom, "task.rows_per_class=10", "task.protocol=held_out", "task.num_held_out_examples=40",
                 custom[1].replace("train_file", "validation_file"))  # fmt: skip
