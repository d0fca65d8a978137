"""Users' files: read as what they are, or refused in a sentence that names the file, the line and the way out."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.tasks.columns import data_settings
from petl_bench.tasks.load import load_task

ROWS = "text,label\none,no\ntwo,yes\nthree,no\nfour,yes\nfive,no\n"
TEXTS = ["one", "two", "three", "four", "five"]
SEVERAL = ("task.type=multilabel", "task.metrics=[micro_f1]", "task.metric=micro_f1")
REGRESSION = ("task.type=regression", "task.metrics=[pearson]", "task.metric=pearson")


@pytest.fixture
def load(tmp_path):
    """Writes a file of training rows and loads it; all rows are trained on and reported on."""

    def write_and_load(content, name="rows.csv", *overrides):
        file = tmp_path / name
        if isinstance(content, str):
            content = content.encode()
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            parquet.write_table(pa.table(content), file)
        return load_file(file, *overrides)

    return write_and_load


def load_file(file, *overrides):
    path = str(file).replace("\\", "\\\\").replace("'", "\\'")
    files = [f"task.train_file='{path}'", f"task.validation_file='{path}'"]
    return load_task(load_config(["task=custom", *files, *overrides]).task, None)


def parts(folder, names, text="text", labels=("x", "y")):
    """A folder of parquet files, each with two texts that name it."""
    folder.mkdir()
    for name in names:
        pd.DataFrame({text: [f"a {name}", f"b {name}"], "label": labels}).to_parquet(folder / name)
    return folder


def as_json_lines(texts, labels):
    return "\n".join(json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True))


class TestReadAsTheyAre:
    @pytest.mark.parametrize(
        "content",
        [
            ROWS.encode(),
            ROWS.encode("utf-8-sig"),
            ROWS.encode("utf-16"),
            ROWS.encode("utf-32"),
            ROWS.replace("\n", "\r\n").encode(),
            ROWS.replace("\n", "\r").encode(),
            ROWS.replace("\n", "\r\n", 2).encode(),
            ROWS.rstrip("\n").encode(),
            ROWS.replace("\n", "\n\n").encode(),
            ROWS.replace("one", '"one"').encode(),
            ROWS.replace("text,label", "text,label,").replace("no\n", "no,\n").replace("yes\n", "yes,\n").encode(),
        ],
        ids=["utf-8", "mark", "utf-16", "utf-32", "crlf", "cr", "mixed", "no-end", "blank", "quoted", "unnamed"],
    )
    def test_encodings_and_ends_of_lines(self, load, content):
        task = load(content)
        assert task.train.texts[0] == TEXTS
        assert (task.labels, task.train.labels.tolist()) == (["no", "yes"], [0, 1, 0, 1, 0])

    def test_quotation_marks_and_lines_inside_a_field(self, load):
        task = load('text,label\n"a ""b"", c\nd",x\n5" pipe,y\n')
        assert task.train.texts[0] == ['a "b", c\nd', '5" pipe']

    def test_a_field_longer_than_pythons_limit(self, load):
        long = "word " * 100_000
        assert load(f"text,label\n{long},x\nb,y\n").train.texts[0][0] == long

    @pytest.mark.parametrize("name", ["rows.csv.gz", "ROWS.CSV", "a=b #1 'q' ä 文.csv"])
    def test_names_of_files(self, load, name):
        content = gzip.compress(ROWS.encode()) if name.endswith("gz") else ROWS
        assert load(content, name).train.texts[0] == TEXTS

    def test_names_of_columns(self, load):
        header = '"a=b #1 \'q\' ä 文, ""z"""'
        task = load(
            ROWS.replace("text,", f"{header},"), "rows.csv", """task.text_columns=['a=b #1 \\'q\\' ä 文, "z"']"""
        )
        assert task.train.texts[0] == TEXTS

    def test_a_folder_of_parquet_parts(self, tmp_path):
        folder = tmp_path / "rows"
        folder.mkdir()
        frame = pd.DataFrame({"text": TEXTS, "label": ["no", "yes", "no", "yes", "no"]})
        for i, part in enumerate((frame[:2], frame[2:])):
            part.to_parquet(folder / f"part-{i}.parquet")
        (folder / "_SUCCESS").touch()
        assert load_file(folder).train.texts[0] == TEXTS

    @pytest.mark.parametrize(
        "names",
        [
            ["train-00000-of-00002-b42a775f407cee45.parquet", "train-00001-of-00002-0123456789abcdef.parquet"],
            ["PART-0.PARQUET", "part-1.parquet"],
            ["part-00000-4f2a-c000.snappy.parquet", "part-00001-9e1b-c000.snappy.parquet"],
            ["train_a.parquet", "train_b.parquet"],
        ],
    )
    def test_names_of_parts(self, tmp_path, names):
        folder = parts(tmp_path / "rows", names)
        assert sorted(load_file(folder).train.texts[0]) == sorted(f"{text} {name}" for name in names for text in "ab")

    def test_a_split_of_a_folder_is_read_whatever_the_case_of_its_ending(self, tmp_path):
        names = ["train-00000-of-00001-b42a775f407cee45.PARQUET", "validation-00000-of-00001.parquet"]
        parts(tmp_path / "sst2", [*names, "test-00000-of-00001.parquet"], text="sentence", labels=(0, 1))
        task = load_task(load_config(["task=sst2"]).task, str(tmp_path))
        assert task.train.texts[0] == [f"{text} {names[0]}" for text in "ab"]
        assert task.report.texts[0] == [f"{text} {names[1]}" for text in "ab"]

    def test_a_link_to_a_file(self, load, tmp_path):
        load(ROWS)
        (tmp_path / "link.csv").symlink_to(tmp_path / "rows.csv")
        assert load_file(tmp_path / "link.csv").train.texts[0] == TEXTS

    def test_bytes_in_utf_8_and_numbers_are_texts(self, load):
        task = load({"text": [b"caf\xc3\xa9", b"b"], "label": [b"x", b"y"]}, "rows.parquet")
        assert (task.train.texts[0], task.labels) == (["café", "b"], ["x", "y"])
        # Gaps turn whole numbers into fractions nowhere on the way.
        task = load({"text": [1, None], "label": pa.array([10, 2], pa.int8())}, "rows.parquet")
        assert (task.train.texts[0], task.labels) == (["1", ""], ["2", "10"])

    def test_numbers_of_a_regression(self, load):
        rows = "text,label\na,1\nb,-2.5\nc,1e3\n"
        assert load(rows, "rows.csv", *REGRESSION).train.labels.tolist() == [1.0, -2.5, 1000.0]


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("", r"rows\.csv is empty"),
            ("\n\n", r"rows\.csv is empty"),
            ("text,label\n", r"rows\.csv holds no rows"),
            (ROWS.replace("two", "two, 2"), r"rows\.csv, line 3: the number of fields is 3, but the header has 2"),
            (ROWS.replace("two,yes", "two"), r"line 3: the number of fields is 1, but the header has 2"),
            (ROWS.replace(",no", ",no,").replace(",yes", ",yes,"), r"line 2: the number of fields is 3"),
            (ROWS.replace("three", '"three'), r"line 4: a quotation mark is not closed"),
            (ROWS.replace("three", '"three" 3'), r"line 4: a quotation mark is not closed, or something follows"),
            ("text,label,text\na,b,c\nd,e,f\n", r"the column name 'text' occurs twice"),
            (ROWS.encode().replace(b"three", b"caf\xe9"), r"line 4: the byte 0xe9 is no text in UTF-8"),
            (ROWS.encode("utf-16-le"), r"line 1 holds a zero byte"),
            (ROWS.encode().replace(b"three", b"th\x00ree"), r"line 4 holds a zero byte"),
            (ROWS.replace("two,yes", "two,"), r"line 3 has no label in 'label'"),
            (ROWS.replace("two,yes", "two,  "), r"line 3 has no label in 'label'"),
            (ROWS.replace("yes", "no"), r"rows\.csv: the column 'label' holds fewer than two labels"),
            ("text,label\n,a\n,b\n", r"no row has a text in 'text'"),
            (
                ROWS.replace(",", ";"),
                r"no comma separates fields.* holds a semicolon: save it with commas, or",
            ),
            (ROWS.replace(",", "\t"), r"no comma separates fields.* holds a tab: rename it to \.tsv"),
            (ROWS.replace("label", "labels"), r"task.label_column=label is not .*'labels'\. Did you mean 'labels'\?$"),
            (ROWS.replace("label", "Label "), r"""Did you mean 'Label ', with a space at an end\? .* '"Label "'\.$"""),
            ('"text;label"\na;b\nc;d\n', r"which has 'text;label'"),
            (ROWS + ROWS, r"rows\.csv, line 7 repeats the header: remove that line, or rename a column if it is a row"),
            ((ROWS + "\ufeff" + ROWS).encode("utf-8-sig"), r"line 7 repeats the header"),
        ],
    )
    def test_comma_separated_values(self, load, content, words):
        with pytest.raises(RequestError, match=words):
            load(content)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ('{"text": "a", "label": "x"}\n{"text": "b", "label"', r"rows\.jsonl, line 2 is truncated or no JSON"),
            ('[{"text": "a", "label": "x"}]', r"line 1 is no JSON object"),
            ('{"text": "a", "text": "b", "label": "x"}', r"line 1 .*the key 'text' occurs twice"),
            ("[" * 100_000, r"line 1 is truncated or no JSON object"),
            (as_json_lines(["a", ["b"]], "xy"), r"line 2: column 'text' holds a list, not one text"),
            (as_json_lines(["a", {"en": "b"}], "xy"), r"line 2: column 'text' holds a dict, not one text"),
            (as_json_lines("ab", ["x", ["y", "z"]]), r"line 2: column 'label' holds a list"),
            (as_json_lines(["a", "b\0"], "xy"), r"line 2: column 'text': the text holds a zero byte"),
            (as_json_lines(["a", "\ud800"], "xy"), r"line 2: column 'text': the text holds bytes that are no UTF-8"),
            (as_json_lines("ab", ["x", None]), r"line 2 has no label"),
        ],
    )
    def test_json_lines(self, load, content, words):
        with pytest.raises(RequestError, match=words):
            load(content, "rows.jsonl")

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ({"text": [["a"], ["b"]], "label": ["x", "y"]}, r"rows\.parquet, row 1: column 'text' holds a list"),
            ({"text": [{"en": "a"}] * 2, "label": ["x", "y"]}, r"row 1: column 'text' holds a dict"),
            ({"text": [b"a", b"\xff"], "label": ["x", "y"]}, r"row 2: column 'text' holds bytes that are no UTF-8"),
            ({"text": ["a", "b"], "label": [1.0, float("inf")]}, r"row 2: the label in 'label' is inf"),
            ({"text": pa.array([0, 1], pa.timestamp("s")), "label": ["x", "y"]}, r"column 'text' holds a datetime"),
        ],
    )
    def test_parquet(self, load, columns, words):
        with pytest.raises(RequestError, match=words):
            load(columns, "rows.parquet")

    @pytest.mark.parametrize("target", ["", "nan", "inf", "1e39", "3,5", "1_0", "high", "-"])
    def test_targets_that_are_no_numbers(self, load, target):
        with pytest.raises(RequestError, match=r"line 3 has no label|line 3: .* is not numeric, or not finite"):
            load(f'text,label\na,1\nb,"{target}"\nc,2\n', "rows.csv", *REGRESSION)

    def test_paths_that_are_no_files(self, load, tmp_path):
        (tmp_path / "empty").mkdir()
        nested = tmp_path / "parts" / "label=no"
        nested.mkdir(parents=True)
        for folder in (nested, nested.parent):
            pd.DataFrame({"text": ["a"]}).to_parquet(folder / "part.parquet")
        os.mkfifo(tmp_path / "pipe.csv")
        (tmp_path / "broken.csv").symlink_to(tmp_path / "nowhere")
        for name, words in (
            ("empty", "is a folder: give a file, or a folder of .parquet files"),
            ("parts", "is a folder: give a file, or a folder of .parquet files"),
            ("pipe.csv", "is no file"),
            ("broken.csv", "there is no such file"),
            ("rows.xlsx", "the ending must be one of"),
            ("x" * 300 + ".csv", "cannot be read: File name too long"),
            ("rows.csv/rows.csv", "no such file"),
        ):
            with pytest.raises(RequestError, match=words):
                load_file(tmp_path / name)
        with pytest.raises(RequestError, match="truncated or not compressed by gzip"):
            load(ROWS, "rows.csv.gz")
        with pytest.raises(RequestError, match="truncated or not compressed by gzip"):
            load(gzip.compress(ROWS.encode())[:-9], "rows.csv.gz")

    @pytest.mark.parametrize("kept", [[0], [1], [0, 1, 2]])
    def test_a_part_that_is_missing_or_belongs_to_another_table(self, tmp_path, kept):
        folder = tmp_path / "rows"
        folder.mkdir()
        names = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "train-00000-of-00003.parquet"]
        for i in kept:
            pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]}).to_parquet(folder / names[i])
        with pytest.raises(RequestError, match=r"train-\*\.parquet are not all the parts of one table"):
            load_file(folder)

    @pytest.mark.parametrize(
        "names",
        [
            [f"{split}-00000-of-00001.parquet" for split in ("train", "test", "validation")],
            ["train-00000-of-00001.parquet", "test-00000-of-00001-b42a775f407cee45.parquet"],
            ["train-00000-of-00001.parquet", "more.parquet"],
            ["train.parquet", "test.parquet"],
            ["Train.parquet", "dev-1.PARQUET"],
        ],
    )
    def test_parts_of_several_tables(self, tmp_path, names):
        with pytest.raises(
            RequestError, match=r"rows holds parts of several tables, \[.*\]: give each a folder of its"
        ):
            load_file(parts(tmp_path / "rows", names))

    def test_a_split_with_other_files_beside_its_parts(self, tmp_path):
        names = ["train-00000-of-00001.parquet", "train-more.parquet", "validation-00000-of-00001.parquet"]
        parts(tmp_path / "sst2", names, text="sentence", labels=(0, 1))
        with pytest.raises(RequestError, match=r"sst2 holds parts of several tables, \['train', 'train-more'\]"):
            load_task(load_config(["task=sst2"]).task, str(tmp_path))

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["train-00001-of-00003-b42a775f407cee45.parquet"], "00000 to 00002 of 00003"),
            (["train-00000-of-00001.parquet", "train-00000-of-00001-b42a.parquet"], "00000 to 00000 of 00001"),
        ],
    )
    def test_a_part_with_a_hash_in_its_name_that_is_missing_or_given_twice(self, tmp_path, names, said):
        with pytest.raises(RequestError, match=rf"train-\*\.parquet are not all the parts of one table \({said}\)"):
            load_file(parts(tmp_path / "rows", names))

    def test_a_value_that_no_date_can_hold(self, load, tmp_path):
        rows = {
            "text": ["a b c", "d e f"],
            "label": ["x", "y"],
            "seen": pa.array([0, 253402300800000], pa.timestamp("ms")),
        }
        words = r"rows\.parquet: a value in the column 'seen' cannot be read: correct it or remove the column"
        assert load(rows, "rows.parquet").train.texts[0] == ["a b c", "d e f"]
        for column in (rows["seen"], pa.array([0, 10**17], pa.timestamp("ms")), pa.array([0, 2**62], pa.duration("s"))):
            parquet.write_table(pa.table(rows | {"seen": column}), tmp_path / "rows.parquet")
            with pytest.raises(RequestError, match=words):
                data_settings(str(tmp_path / "rows.parquet"), {})

    @pytest.mark.parametrize("name", ["rows.parquet", "rows"])
    def test_a_file_that_may_not_be_read(self, tmp_path, monkeypatch, name):
        parts(tmp_path / "rows", ["0.parquet"])
        parts(tmp_path / "single", ["rows.parquet"])

        def refuse(file):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

        monkeypatch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(RequestError, match=rf"{name} cannot be read: Permission denied"):
            load_file(tmp_path / ("rows" if name == "rows" else "single/rows.parquet"))

    def test_parts_with_different_columns(self, tmp_path):
        folder = tmp_path / "rows"
        folder.mkdir()
        for i, name in enumerate(("label", "lable")):
            pd.DataFrame({"text": ["a", "b"], name: ["x", "y"]}).to_parquet(folder / f"{i}.parquet")
        with pytest.raises(RequestError, match=r"only one has the column 'label'"):
            load_file(folder)

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("task.text_columns=[]", "names no column"),
            ("task.text_columns=[text,text]", "names 'text' twice"),
            ("task.text_columns=[text,label]", "are both 'label'"),
            ("task.labels=[no,yes,no]", "task.labels names 'no' twice"),
            ("task.labels=[no]", "at least two classes"),
        ],
    )
    def test_settings_that_contradict_each_other(self, load, override, words):
        with pytest.raises(RequestError, match=words):
            load(ROWS, "rows.csv", override)


class TestLabels:
    def test_their_order_is_the_same_in_every_process(self, tmp_path):
        file = tmp_path / "rows.csv"
        labels = ["1", "01", "001", "²", "-1", "--1", "10", "b", "a", "٣"]
        file.write_text("text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(labels)), encoding="utf-8")
        program = (
            "import sys\nfrom petl_bench.tasks.load import find_labels\n"
            "from petl_bench.tasks import TaskConfig\n"
            "task = TaskConfig(name='t', source='files', train_file=sys.argv[1], text_columns=['text'])\n"
            "print(ascii(find_labels(task)))"
        )
        found = {
            subprocess.run(
                [sys.executable, "-c", program, str(file)],
                env=os.environ | {"PYTHONHASHSEED": str(seed)},
                capture_output=True, check=True, text=True,
            ).stdout
            for seed in range(3)
        }  # fmt: skip
        assert found == {ascii(["-1", "001", "01", "1", "10", "--1", "a", "b", "²", "٣"]) + "\n"}

    @pytest.mark.parametrize("labels", [["0", "1", "-1"], ["0", "1", "2", "-100"], ["0.0", "1.0", "-1.0"]])
    def test_a_number_that_marks_rows_without_a_label_is_refused(self, load, labels):
        rows = "text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(labels))
        with pytest.raises(RequestError, match=rf"1 rows have the label {labels[-1]}, which often marks"):
            load(rows)
        named = ",".join(f"'{label}'" for label in labels)
        assert load(rows, "rows.csv", f"task.labels=[{named}]").labels == labels

    def test_minus_one_and_one_are_classes(self, load):
        assert load("text,label\na,-1\nb,1\nc,-1\n").labels == ["-1", "1"]

    def test_words_that_may_mark_rows_without_a_label_are_told(self, load, caplog):
        with caplog.at_level(logging.WARNING):
            assert load("text,label\na,N/A\nb,x\nc,y\n").labels == ["N/A", "x", "y"]
        assert "1 rows have the label 'N/A', which is taken as a class" in caplog.text

    @pytest.mark.parametrize("mark", ["-1", "-100", "-1.0"])
    def test_numbers_among_words_that_may_mark_rows_without_a_label_are_told(self, load, caplog, mark):
        with caplog.at_level(logging.WARNING):
            load(f"text,label\na,{mark}\nb,pos\nc,neg\n")
        assert f"1 rows have the label '{mark}', which is taken as a class" in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load("text,label\na,-1\nb,1\n")
        assert "taken as a class" not in caplog.text

    def test_labels_that_look_alike_are_told(self, load, caplog):
        with caplog.at_level(logging.WARNING):
            load("text,label\na,pos\nb, Pos\nc,neg\nd,1\ne,01\n")
        assert "the labels ' Pos', 'pos' are taken as different classes" in caplog.text
        assert "the labels '01', '1' are taken as different classes" in caplog.text
        assert "neg" not in caplog.text

    @pytest.mark.parametrize(
        ("labels", "told"),
        [
            (["1", "1.0", "0", "0.0"], [["0", "0.0"], ["1", "1.0"]]),
            (["1e1", "10", "+10", "1_0", "nan"], [["+10", "10", "1e1"]]),
            (
                ["pos", "pos\u200b", "neg", "\ufeffneg", "p\u00ados"],
                [["neg", "\ufeffneg"], ["pos", "pos\u200b", "p\u00ados"]],
            ),
            (["12345678901234567", "12345678901234568"], []),
        ],
    )
    def test_numbers_and_labels_that_look_alike_are_told(self, load, caplog, labels, told):
        with caplog.at_level(logging.WARNING):
            load("text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(labels)))
        assert caplog.text.count("are taken as different classes") == len(told)
        for names in told:
            assert f"the labels {', '.join(map(repr, sorted(names)))} are taken as different classes" in caplog.text


class TestSeveralLabels:
    @pytest.mark.parametrize(
        "cell",
        ["\"['toxic', 'insult']\"", "[]", '"[""a"", ""b""]"', " [a] ", "\"{'a', 'b'}\"", "\"('a',)\"", "['a' 'b']"],
    )
    def test_a_list_written_as_text_is_refused(self, load, cell):
        with pytest.raises(
            RequestError, match=r"rows\.csv, line 2: .* is a list as a program prints it: give lists in a"
        ):
            load(f"text,label\none,{cell}\ntwo,a\nthree,b\n", "rows.csv", *SEVERAL)

    @pytest.mark.parametrize("labels", [["[a]", "b"], ["(other)", "b"], ["b [c]", "{x}"]])
    def test_labels_in_brackets_are_labels(self, load, labels):
        named = ",".join(f"'{label}'" for label in labels)
        content = f"text,label\none,{labels[0]}\ntwo,{labels[1]}\n"
        assert load(content, "rows.csv", *SEVERAL, f"task.labels=[{named}]").train.labels.tolist() == [[1, 0], [0, 1]]
        if "[a]" not in labels:
            assert load(content, "rows.csv", *SEVERAL).labels == labels

    def test_bytes_are_split(self, load):
        task = load({"text": ["one", "two", "three"], "label": [b"a, b", b"", "é".encode()]}, "rows.parquet", *SEVERAL)
        assert (task.labels, task.train.labels.tolist()) == (["a", "b", "é"], [[1, 1, 0], [0, 0, 0], [0, 0, 1]])

    @pytest.mark.parametrize("cell", ["a,b,", ",a", "a,,b", "a, ,b"])
    def test_an_empty_part_is_named(self, load, cell):
        words = rf"line 2 has no label in 'label' beside a separator in '{cell}': remove that separator"
        with pytest.raises(RequestError, match=words):
            load(f'text,label\none,"{cell}"\ntwo,a\n', "rows.csv", *SEVERAL)

    @pytest.mark.parametrize(
        ("cells", "told"),
        [
            (["a;b", "a", "b", "c"], "1 labels, such as 'a;b', consist of others: give task.label_separator=';'"),
            (
                ["a | b", "b | c", "c | a"],
                "3 labels, such as 'a | b', consist of others: give task.label_separator='|'",
            ),
            (["a;b", "c", "d"], None),
        ],
    )
    def test_another_separator_is_told(self, load, caplog, cells, told):
        with caplog.at_level(logging.WARNING):
            load("text,label\n" + "".join(f"t{i},{cell}\n" for i, cell in enumerate(cells)), "rows.csv", *SEVERAL)
        assert told in caplog.text if told else "consist of others" not in caplog.text


def test_quotation_marks_in_tab_separated_values_are_told(load, caplog):
    with caplog.at_level(logging.WARNING):
        assert load('text\tlabel\n"a"\tx\nb\ty\n', "rows.tsv").train.texts[0] == ['"a"', "b"]
    assert "1 fields begin and end with a quotation mark" in caplog.text


def test_a_split_that_was_replaced_with_the_same_size_and_time_is_read_again(tmp_path):
    (tmp_path / "sst2").mkdir()

    def rows(text):
        for split in ("train", "validation"):
            file = tmp_path / "sst2" / f"{split}-00000-of-00001.parquet"
            pd.DataFrame({"sentence": [text, "c"], "label": [0, 1]}).to_parquet(file)
            os.utime(file, (0, 0))
        return load_task(load_config(["task=sst2"]).task, str(tmp_path)).train

    assert (rows("a").texts[0], rows("b").texts[0]) == (["a", "c"], ["b", "c"])
    assert np.array_equal(rows("a").labels, [0, 1])


def test_rows_of_a_folder_are_read_without_writing_to_the_home_folder(tmp_path):
    (tmp_path / "sst2").mkdir()
    for split in ("train", "validation"):
        rows = pd.DataFrame({"sentence": ["a", "b"], "label": [0, 1]})
        rows.to_parquet(tmp_path / "sst2" / f"{split}-00000-of-00001.parquet")
    program = (
        "import sys; from petl_bench.config import load_config; from petl_bench.tasks.load import load_task\n"
        "print(len(load_task(load_config(['task=sst2']).task, sys.argv[1]).train), 'datasets' in sys.modules)"
    )
    home = {"HOME": "/proc/nowhere"}
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=variables | home, capture_output=True, check=True, text=True
    )
    assert done.stdout == "2 False\n"


def test_the_folder_below_that_holds_the_rows_is_named(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    rows = pd.DataFrame({"sentence": ["a", "b"], "label": [0, 1]})
    rows.to_parquet(tmp_path / "glue" / "sst2" / "train-00000-of-00001.parquet")
    with pytest.raises(RequestError, match=r"in its place\. data_root=.*glue does\.$"):
        load_task(load_config(["task=sst2"]).task, str(tmp_path))


def test_a_task_of_the_hub_without_a_subset(tmp_path):
    task = ["task=sst2", "task.subset=null", "task.dataset=some/reviews"]
    with pytest.raises(RequestError, match=r"holds no train-\*\.parquet"):
        load_task(load_config(task).task, str(tmp_path))
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        rows = pd.DataFrame({"sentence": ["a", "b"], "label": [0, 1]})
        rows.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert load_task(load_config(task).task, str(tmp_path)).train.texts[0] == ["a", "b"]


def test_a_split_of_the_hub_without_a_subset(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, subset, *, split, revision):
        asked.append((name, subset, split, revision))
        label = datasets.ClassLabel(names=["bad", "good"])
        features = datasets.Features(sentence=datasets.Value("string"), label=label, extra=datasets.Value("int32"))
        rows = {"sentence": ["a", "b", "c"], "label": [1, 0, 1], "extra": [1, 2, 3]}
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task(load_config(["task=sst2", "task.subset=null", "task.dataset=some/reviews"]).task, None)
    assert (task.train.texts[0], task.train.labels.tolist()) == (["a", "b", "c"], [1, 0, 1])
    assert [one[:3] for one in asked] == [("some/reviews", None, "train"), ("some/reviews", None, "validation")]
