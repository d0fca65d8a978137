"""`petl-bench predict --file`: scores where the file has labels, and files of predictions."""

from __future__ import annotations

import csv
import datetime
import io
import json
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from scipy.stats import pearsonr
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import accuracy_score, f1_score

from finished_runs import LABELS, finished, root, table
from petl_bench import cli
from petl_bench.tasks.table_files import read_table


@pytest.fixture
def predict(capsys):
    """Runs `petl-bench predict RUN --file FILE`; returns exit code, standard output and messages."""

    def call(run, file, *arguments):
        capsys.readouterr()
        code = cli.main(["predict", str(run), "--file", str(file), *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Questions with their labels, two of which are wrong, and a column of names."""
    rows = table("classification", 20, seed=5)
    rows.insert(0, "name", [f"q{number}" for number in range(20)])
    rows.loc[:1, "label"] = LABELS[2]
    file = tmp_path_factory.mktemp("labelled") / "rows.csv"
    rows.to_csv(file, index=False)
    return file


def scores_of(run, file, predict, out, *arguments):
    code, told, _ = predict(run, file, "--out", out, "--json", *arguments)
    assert code == 0
    return json.loads(told)


def test_rows_that_the_run_was_trained_on_are_told(predict, tmp_path):
    new = pd.DataFrame({"question": ["seldom asked", "asked once"], "label": LABELS[:2]})
    trained_on = pd.read_json(root() / "classification-train.jsonl", lines=True).head(5)
    pd.concat([new, trained_on]).to_csv(tmp_path / "rows.csv", index=False)
    new.to_csv(tmp_path / "new.csv", index=False)
    code, _, messages = predict(finished(), tmp_path / "rows.csv")
    assert code == 0
    assert "5 of the 7 scored rows have the texts of rows that the run was trained on" in messages
    assert "trained on" not in predict(finished(), tmp_path / "new.csv")[2]


def test_a_file_with_labels_is_scored_by_the_runs_metrics(predict, labelled, tmp_path):
    told = scores_of(finished(), labelled, predict, tmp_path / "out.csv")
    gold, found = pd.read_csv(labelled)["label"], pd.read_csv(tmp_path / "out.csv")["label"]
    assert told == {
        "rows": 20,
        "scored_rows": 20,
        "scores": {
            "accuracy": pytest.approx(accuracy_score(gold, found)),
            "macro_f1": pytest.approx(f1_score(gold, found, average="macro")),
        },
    }
    # Without --out the answers stay what is printed, and the scores are told beside them.
    code, printed, messages = predict(finished(), labelled)
    assert (code, len(printed.splitlines())) == (0, 21)
    assert f"20 rows; 20 of them have a label: accuracy {100 * told['scores']['accuracy']:.1f} %" in messages


def test_the_formats_hold_the_same(predict, labelled, tmp_path):
    for ending in (".csv", ".jsonl", ".parquet"):
        assert predict(finished(), labelled, "--out", tmp_path / f"out{ending}", "--id-column", "name")[0] == 0
    table_of_csv, table_of_parquet = pd.read_csv(tmp_path / "out.csv"), pd.read_parquet(tmp_path / "out.parquet")
    assert list(table_of_csv) == ["id", "question", "gold", "label", *(f"p({label})" for label in LABELS)]
    pd.testing.assert_frame_equal(table_of_csv, table_of_parquet)
    rows = pd.read_csv(labelled)
    assert table_of_csv["id"].tolist() == rows["name"].tolist()
    assert table_of_csv["question"].tolist() == rows["question"].tolist()
    assert table_of_csv["gold"].tolist() == rows["label"].tolist()
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == table_of_csv["label"].tolist()
    for line, shares in zip(lines, table_of_csv[[f"p({label})" for label in LABELS]].to_numpy(), strict=True):
        assert list(line["probabilities"].values()) == pytest.approx(shares.tolist())
        assert sum(line["probabilities"].values()) == pytest.approx(1)
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)


def test_rows_without_a_label_are_predicted_and_not_scored(predict, labelled, tmp_path):
    rows = pd.read_csv(labelled)
    rows.loc[[3, 4], "label"] = None
    rows.loc[5, "label"] = "-1"
    rows.to_csv(tmp_path / "some.csv", index=False)
    told = scores_of(finished(), tmp_path / "some.csv", predict, tmp_path / "out.csv")
    answers = pd.read_csv(tmp_path / "out.csv")
    kept = [row for row in range(20) if row not in (3, 4, 5)]
    assert (told["rows"], told["scored_rows"]) == (20, 17)
    assert told["scores"]["accuracy"] == pytest.approx(accuracy_score(rows["label"][kept], answers["label"][kept]))
    rows["label"] = None
    rows.to_csv(tmp_path / "none.csv", index=False)
    assert scores_of(finished(), tmp_path / "none.csv", predict, tmp_path / "out.csv")["scores"] == {}


def test_classes_are_scored_whatever_they_are_called(predict, tmp_path):
    """Rows have no label by the type of their cell, not by its text."""
    names = {"billing": "None", "card": "nan", "Other things": "-1"}
    for split in ("train", "dev"):
        rows = pd.read_json(root() / f"classification-{split}.jsonl", lines=True)
        rows.assign(label=rows["label"].map(names)).to_csv(tmp_path / f"{split}.csv", index=False)
    given = (
        *("method=lora", "train.epochs=1", "task.labels=['None','nan','-1']", f"task.train_file={tmp_path}/train.csv"),
        f"task.validation_file={tmp_path}/dev.csv",
    )
    run = finished("classification", *given)
    rows = pd.DataFrame({"question": ["bbbb", "ccc", "xxxxx", "a", "b"], "label": ["None", "nan", "-1", None, " "]})
    rows.to_parquet(tmp_path / "rows.parquet")
    told = scores_of(run, tmp_path / "rows.parquet", predict, tmp_path / "out.csv")
    assert (told["rows"], told["scored_rows"]) == (5, 3)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    told = scores_of(run, tmp_path / "rows.csv", predict, tmp_path / "out.csv")
    assert (told["rows"], told["scored_rows"]) == (5, 3)


def test_plain_text_has_one_row_a_line(predict, labelled, tmp_path):
    texts = pd.read_csv(labelled)["question"].tolist()
    (tmp_path / "rows.txt").write_text("\r\n".join([*texts, ""]), newline="")
    assert predict(finished(), tmp_path / "rows.txt")[:2] == predict(finished(), labelled)[:2]


def test_lines_of_plain_text_end_in_lf_or_cr(predict, tmp_path):
    for name, content in {"cr": "ccc\rbbbb\rccc", "lf": "ccc\nbbbb\nccc\n", "mixed": "ccc\r\nbbbb\rccc\r\n"}.items():
        (tmp_path / f"{name}.txt").write_bytes(content.encode())
    found = [predict(finished(), tmp_path / f"{name}.txt")[1] for name in ("cr", "lf", "mixed")]
    assert len(found[0].splitlines()) == 4
    assert found[0] == found[1] == found[2]
    (tmp_path / "other.txt").write_text("ccc\u2028bbbb\x0cccc\x85\n", encoding="utf-8")
    assert len(predict(finished(), tmp_path / "other.txt")[1].splitlines()) == 2


def test_lines_without_words_are_told(predict, tmp_path):
    (tmp_path / "rows.txt").write_text("ccc\n\nbbbb\n \n")
    code, printed, messages = predict(finished(), tmp_path / "rows.txt")
    assert (code, len(printed.splitlines())) == (0, 5)
    assert "no words in ['line 2', 'line 4']: predictions for these rows are meaningless" in messages


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_is_read(predict, labelled, tmp_path, ending):
    rows, file = pd.read_csv(labelled), tmp_path / f"rows{ending}"
    {
        ".csv": lambda: rows.to_csv(file, index=False),
        ".tsv": lambda: rows.to_csv(file, index=False, sep="\t"),
        ".jsonl": lambda: rows.to_json(file, orient="records", lines=True),
        ".parquet": lambda: rows.to_parquet(file),
    }[ending]()
    assert predict(finished(), file)[:2] == predict(finished(), labelled)[:2]


def test_regression_is_scored(predict, tmp_path):
    table("regression", 15, seed=6).to_csv(tmp_path / "rows.csv", index=False)
    told = scores_of(finished("regression"), tmp_path / "rows.csv", predict, tmp_path / "out.parquet")
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert list(found) == ["id", "question", "gold", "value"]
    assert found["id"].tolist() == list(range(1, 16))
    gold = found["gold"].astype(float)
    assert told["scores"] == {
        "pearson": pytest.approx(pearsonr(gold, found["value"]).statistic),
        "mean_squared_error": pytest.approx(((gold - found["value"]) ** 2).mean()),
    }


def test_several_labels_are_scored(predict, tmp_path):
    rows = table("multilabel", 18, seed=7)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    told = scores_of(finished("multilabel"), tmp_path / "rows.csv", predict, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    gold = [[label in cell.split(",") for label in LABELS] for cell in rows["label"]]
    found = [[label in line["labels"] for label in LABELS] for line in lines]
    assert told["scores"]["micro_f1"] == pytest.approx(f1_score(gold, found, average="micro", zero_division=0))
    assert all(set(line["probabilities"]) == set(LABELS) for line in lines)


def test_entities_are_scored_and_written(predict, tmp_path):
    rows = table("tagging", 18, seed=8)
    rows.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    told = scores_of(finished("tagging"), tmp_path / "rows.jsonl", predict, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [" ".join(words) for words in rows["tokens"]]
    assert any(line["entities"] for line in lines)
    found = []
    for words, line in zip(rows["tokens"], lines, strict=True):
        places = {one["start"]: one for one in line["entities"]}
        tags, position, inside = [], 0, -1
        for word in words:
            if position in places:
                tags.append(f"B-{places[position]['type']}")
                inside = places[position]["end"]
            else:
                tags.append("I-card" if position < inside else "O")
            position += len(word) + 1
        found.append(tags)
    assert told["scores"]["entity_f1"] == pytest.approx(entity_f1(rows["label"].tolist(), found))
    # In a table, what is nested is JSON.
    assert predict(finished("tagging"), tmp_path / "rows.jsonl", "--out", tmp_path / "out.csv")[0] == 0
    cells = pd.read_csv(tmp_path / "out.csv")["entities"]
    assert [json.loads(cell) for cell in cells] == [line["entities"] for line in lines]


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (
            lambda rows: rows.assign(label=["refund", *rows["label"][1:]]),
            (),
            "line 2: the label 'refund' is none of task.labels=['Other things', 'billing', 'card']. Correct the label, "
            "or rename the column 'label' to predict without scores.",
        ),
        (lambda rows: rows.drop(columns="question"), (), "'question' is not a column of"),
        (lambda rows: rows, ("--id-column", "number"), "--id-column=number is not a column of"),
        (
            lambda rows: rows,
            ("--out", "rows.xlsx"),
            "rows.xlsx: the ending must be one of .csv, .jsonl, .parquet.",
        ),
        (lambda rows: rows.assign(question=""), (), "no row has a text in 'question'."),
    ],
)
def test_what_is_wrong_with_a_file_is_told(predict, labelled, tmp_path, change, arguments, words):
    change(pd.read_csv(labelled)).to_csv(tmp_path / "rows.csv", index=False)
    code, printed, messages = predict(finished(), tmp_path / "rows.csv", *arguments)
    assert (code, printed) == (2, "")
    assert words in messages


def test_an_empty_text_is_told_with_its_row(predict, labelled, tmp_path):
    rows = pd.read_csv(labelled)
    rows.loc[4, "question"] = None
    rows.to_csv(tmp_path / "rows.csv", index=False)
    code, printed, messages = predict(finished(), tmp_path / "rows.csv")
    assert (code, len(printed.splitlines())) == (0, 21)
    assert "rows.csv, line 6: 1 empty texts in column 'question'" in messages


def test_an_output_column_does_not_take_the_place_of_a_text(predict, tmp_path):
    rows = table("classification", 6, seed=0).rename(columns={"question": "id", "label": "intent"})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    run = finished(
        *("classification", "method=lora", f"task.train_file={tmp_path / 'rows.csv'}", "task.text_columns=[id]"),
        *("task.label_column=intent", "task.validation_file=null", "train.epochs=1", "task.num_held_out_examples=1"),
    )
    code, _, messages = predict(run, tmp_path / "rows.csv", "--out", tmp_path / "out.csv")
    assert code == 2
    assert "--out has a column 'id' of its own" in messages


def test_a_column_of_several_types_is_no_parquet(predict, tmp_path):
    rows = [{"key": 1, "question": "ccc"}, {"key": "two", "question": "bbbb"}]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = ("--id-column", "key", "--out")
    code, _, messages = predict(finished(), tmp_path / "rows.jsonl", *arguments, tmp_path / "out.parquet")
    assert code == 2
    assert "--out: a column holds values of several types" in messages
    assert predict(finished(), tmp_path / "rows.jsonl", *arguments, tmp_path / "out.csv")[0] == 0
    assert pd.read_csv(tmp_path / "out.csv")["id"].tolist() == ["1", "two"]


@pytest.mark.parametrize(
    ("ids", "written"),
    [
        ([datetime.date(2024, 2, 29), None], ["2024-02-29", None]),
        (
            [datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC), None],
            ["2024-02-29T12:30:00+00:00", None],
        ),
        ([Decimal("1.50"), Decimal("2.25")], ["1.50", "2.25"]),
        ([b"caf\xc3\xa9", b"\xff"], ["café", "\\xff"]),
        ([[datetime.time(1, 2)], []], [["01:02:00"], []]),
        ([1.5, float("nan")], [1.5, None]),
    ],
)
def test_ids_of_every_type_are_written(predict, tmp_path, ids, written):
    rows = pa.table({"key": ids, "question": ["ccc", "bbbb"], "label": [b"card", b"billing"]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    for ending in (".jsonl", ".parquet", ".csv"):
        arguments = ("--out", tmp_path / f"out{ending}", "--id-column", "key")
        assert predict(finished(), tmp_path / "rows.parquet", *arguments)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == written
    assert [line["gold"] for line in lines] == ["card", "billing"]
    columns = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert (columns["id"], columns["gold"]) == (written, ["card", "billing"])
    assert pd.read_csv(tmp_path / "out.csv")["gold"].tolist() == ["card", "billing"]


def test_half_a_character_in_a_name_is_written(predict, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"key": "\\ud800", "question": "ccc"}\n')
    arguments = ("--out", tmp_path / "out.jsonl", "--id-column", "key")
    assert predict(finished(), tmp_path / "rows.jsonl", *arguments)[0] == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["id"] == "\\ud800"


def test_carriage_returns_stay_inside_their_cell(predict, tmp_path):
    texts = ["ccc\rccc", "bbbb\r\nbbbb", "ccc"]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps({'question': text})}\n" for text in texts))
    assert predict(finished(), tmp_path / "rows.jsonl", "--out", tmp_path / "out.csv")[0] == 0
    content = (tmp_path / "out.csv").read_bytes().decode()
    assert [row["question"] for row in csv.DictReader(io.StringIO(content, newline=""), strict=True)] == texts
    assert read_table(tmp_path / "out.csv", "file", ["question"]).columns["question"] == texts
    assert pd.read_csv(tmp_path / "out.csv", lineterminator="\n")["id"].tolist() == [1, 2, 3]


def test_out_needs_a_file(capsys):
    assert cli.main(["predict", str(root()), "--text", "a", "--out", "out.csv"]) == 2
    assert "--out is for the predictions of --file" in capsys.readouterr().err
