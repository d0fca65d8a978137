"""Tagged rows: formats, schemes, and what is refused."""

from __future__ import annotations

import gzip
import subprocess
import sys

import pandas as pd
import pytest

from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.tasks.load import load_task
from petl_bench.tasks.metrics import entities, entity_places, scheme_of, without_beginning
from petl_bench.tasks.tagging import split_text
from tasks.tagged_file import LABELS, loaded

COLUMNS = "Empire\tB-loc\nState\tI-loc\nrocks\tO\n\nBob\tB-per\n"
WORDS = [["Empire", "State", "rocks"], ["Bob"]]
TAGS = [["B-loc", "I-loc", "O"], ["B-per"]]


def tags_of(task):
    return task.tags(task.train)


def refused(tmp_path, content, name="train.conll", *overrides):
    with pytest.raises(RequestError) as error:
        loaded(tmp_path, content, name, *overrides)
    return str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        COLUMNS,
        COLUMNS.replace("\n", "\r\n"),
        COLUMNS.replace("\t", " "),
        COLUMNS.replace("\t", "   "),
        # Columns between the first and the last one, and a blank line that holds a tab.
        COLUMNS.replace("\t", " NN ").replace("\n\n", "\n\t\n\n"),
        "-DOCSTART- O\n\n" + COLUMNS.replace("\t", " "),
        "# id = 1\n" + COLUMNS.replace("\n\n", "\n\n# text = Bob, with spaces\n"),
        "# id 8a domain=train\n" + COLUMNS.replace("\t", " _ _ "),
        COLUMNS.rstrip("\n"),
    ],
)
def test_conll_columns(tmp_path, content):
    task = loaded(tmp_path, content)
    assert task.train.words == WORDS
    assert tags_of(task) == TAGS
    assert task.labels == LABELS
    assert task.scheme == "BIO"
    assert task.train.texts == (["Empire State rocks", "Bob"],)


def test_a_new_document_ends_a_sentence(tmp_path):
    task = loaded(tmp_path, "-DOCSTART- O\na O\nb B-x\n-DOCSTART- O\nc O\n\nd B-x\n-DOCSTART- O\n")
    assert task.train.words == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    "content",
    [
        "token\ttag\nBob\tperson\nsees\tO\n",
        "Word NER\n\nBob person\nsees O\n",
        "tokens\tpos\tner_tags\nBob\tNN\tB-per\nsees\tVB\tO\n",
        "token\ttag\nBob\tperson\nsees\tO\n\ntoken\ttag\nI\tO\n",
    ],
)
def test_a_header_is_refused(tmp_path, content):
    header = content.splitlines()[0].split()
    said = f"train.conll, line 1 is a header ({header[0]}, {header[-1]}), not a word with its tag: remove it"
    assert said in refused(tmp_path, content)


def test_a_type_of_the_first_line_alone_is_told(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        loaded(tmp_path, "Wort\tArt\nBob\tperson\nsees\tO\nEve\tperson\n")
    assert "line 1: no other line has the tag 'Art'; remove the line if it is a header" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):
        loaded(tmp_path, "word\tB-tag\nsees\tO\n")
        loaded(tmp_path, "Bob\tperson\nsees\tO\nEve\tperson\n")
        loaded(tmp_path, "word\tlabel\nsees\tO\nEve\tlabel\n")
    assert "header" not in caplog.text


@pytest.mark.parametrize("name", ["train.txt", "emerging.test.annotated", "train.tsv", "train.bio", "train"])
def test_conll_columns_under_any_name(tmp_path, name):
    assert tags_of(loaded(tmp_path, COLUMNS, name)) == TAGS


def test_compressed_and_in_utf_16(tmp_path):
    assert tags_of(loaded(tmp_path, gzip.compress(COLUMNS.encode()), "train.conll.gz")) == TAGS
    assert tags_of(loaded(tmp_path, COLUMNS.encode("utf-16"))) == TAGS


def test_a_number_sign_may_be_a_word(tmp_path):
    task = loaded(tmp_path, "#\tO\n#one\tB-x\n\n#\tB-x\n")
    assert task.train.words == [["#", "#one"], ["#"]]
    spaces = loaded(tmp_path, "# O\nBob B-x\n\n# B-x\n")
    assert spaces.train.words == [["#", "Bob"], ["#"]]


ROWS = [{"tokens": words, "tags": tags} for words, tags in zip(WORDS, TAGS, strict=True)]


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.parquet"])
def test_lists_of_words_and_tags(tmp_path, name):
    task = loaded(tmp_path, ROWS, name)
    assert (task.train.words, tags_of(task)) == (WORDS, TAGS)


def test_tags_as_numbers(tmp_path):
    rows = [
        {"tokens": words, "tags": [LABELS.index(tag) for tag in tags]} for words, tags in zip(WORDS, TAGS, strict=True)
    ]
    assert tags_of(loaded(tmp_path, rows, "train.jsonl", f"task.labels={LABELS}")) == TAGS
    assert "the tags are numbers: name them, from 0 on, with task.labels" in refused(tmp_path, rows, "train.jsonl")
    few = refused(tmp_path, rows, "train.jsonl", "task.labels=[O,B-loc,I-loc]")
    assert "train.jsonl, line 2, word 1: the tag 3 is none of 0..2" in few


CLUENER = [
    {"text": "浙商银行的叶老桂", "label": {"company": {"浙商银行": [[0, 3]]}, "name": {"叶老桂": [[5, 7]]}}},
    {"text": "NBA 好", "label": {"organization": {"NBA": [[0, 2]]}}},
    {"text": "无", "label": {}},
]


@pytest.mark.parametrize("name", ["train.json", "train.parquet"])
def test_characters_of_entities_with_the_last_one(tmp_path, name):
    columns = ["task.text_columns=[text]", "task.label_column=label"]
    if name == "train.parquet":
        frame = pd.DataFrame(CLUENER)
        frame["label"] = frame["label"].map(lambda label: {key: label.get(key) for key in ("company", "name")})
        frame = frame[:1]
        frame.to_parquet(tmp_path / name)
        task = load_task(load_config(["task=tagging", f"task.train_file={tmp_path / name}", *columns,
                                      f"task.validation_file={tmp_path / name}"]).task, None)  # fmt: skip
        expected = 1
    else:
        task, expected = loaded(tmp_path, CLUENER, name, *columns, "task.units=characters"), 3
    company = ["B-company", *["I-company"] * 3, "O", "B-name", "I-name", "I-name"]
    in_nba = ["B-organization", "I-organization", "I-organization", "O"]
    assert tags_of(task) == [company, in_nba, ["O"]][:expected]
    assert task.train.words[0] == list("浙商银行的叶老桂")


def test_in_words_latin_letters_stay_together(tmp_path):
    task = loaded(tmp_path, CLUENER, "t.jsonl", "task.text_columns=[text]", "task.label_column=label")
    assert task.train.words[1] == ["NBA", "好"]
    assert tags_of(task)[1] == ["B-organization", "O"]


def test_entities_that_overlap_are_counted(tmp_path, caplog):
    row = {"text": "a b c", "label": {"x": {"a b": [[0, 2]]}, "y": {"b": [[2, 2]], "c": [[4, 4]]}}}
    with caplog.at_level("WARNING"):
        task = loaded(tmp_path, [row], "t.jsonl", "task.text_columns=[text]", "task.label_column=label")
    assert tags_of(task) == [["B-x", "I-x", "B-y"]]
    # Of the rows to train and of those to report on.
    assert caplog.text.count("1 entities left out, as they overlap longer ones") == 2


@pytest.mark.parametrize(
    ("tags", "scheme", "labels"),
    [
        ([["B-x", "E-x", "S-y"], ["O"]], "BIOES",
         ["O", "B-x", "I-x", "E-x", "S-x", "B-y", "I-y", "E-y", "S-y"]),
        ([["I-x", "I-y", "O"], ["O"]], "IO", ["O", "I-x", "I-y"]),
        ([["art-film", "person", "O"], ["O"]], "IO", ["O", "art-film", "person"]),
        ([["B", "I", "O"], ["O"]], "BIO", ["O", "B", "I"]),
    ],
)  # fmt: skip
def test_schemes(tmp_path, tags, scheme, labels):
    rows = [{"tokens": words, "tags": one} for words, one in zip(WORDS, tags, strict=True)]
    task = loaded(tmp_path, rows, "train.jsonl")
    assert (task.scheme, task.labels) == (scheme, labels)


def test_bare_types_are_read_as_inner_words(tmp_path):
    rows = [{"tokens": ["a", "b", "c"], "tags": ["art-film", "art-film", "O"]}]
    assert tags_of(loaded(tmp_path, rows, "train.jsonl")) == [["I-art-film", "I-art-film", "O"]]
    assert entities(["I-art-film", "I-art-film", "O"]) == [("art-film", 0, 1)]


def test_an_inner_word_without_a_beginning_is_counted_and_begins_an_entity(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        task = loaded(tmp_path, "a\tO\nb\tI-x\nc\tI-x\nd\tB-y\ne\tI-x\n\nf\tB-x\ng\tI-x\n")
    assert task.without_beginning() == {"train": 2, "validation": 2}
    assert caplog.text.count("begin with the tag of an inner word") == 1
    assert "2 of train, 2 of validation" in caplog.text
    assert entities(tags_of(task)[0]) == [("x", 1, 2), ("y", 3, 3), ("x", 4, 4)]
    assert without_beginning(["B-x", "I-x", "E-x", "S-x", "E-x"]) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\tO\nb\n", "line 2: the number of columns is 1, but the first word has 2: one tab separates"),
        ("a\tO\nb\tI\tx\n", "line 2: the number of columns is 3, but the first word has 2"),
        ("a O\nb NN O\n", "line 2: the number of columns is 3, but the first word has 2: spaces separate"),
        ("a\tO\n\tO\n", "line 2: the word is missing"),
        ("a\tB-x\nb\t\n", "line 2: the tag is missing"),
        ("a\nb\n", "task.label_column=tags is not a column of"),
        ("", "train.conll holds no rows."),
        ("# a comment\n\n", "train.conll holds no rows."),
        ("a\tO\n", "all tags are O, the one of words outside of entities"),
        ("a\tperson\n", "no tag is O"),
        ("a\tO\nb\tL-x\nc\tU-y\n", "L, U are of none of the schemes IO, BIO, BIOES: write E for L, S for U."),
        ("a\tO\nb\tB-x\nc\tperson\n", "the tag 'person' has no letter in front and 'B-x' has"),
        (b"a\tO\n\xff\tO\n", "line 2: the byte 0xff is no text in UTF-8"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_columns_is_said_with_the_line(tmp_path, content, said):
    assert said in refused(tmp_path, content)


def test_a_tag_that_no_training_row_has_is_refused_with_its_line(tmp_path):
    train, dev = tmp_path / "train.conll", tmp_path / "dev.conll"
    train.write_text(COLUMNS)
    dev.write_text("a\tO\n\nb\tO\nc\tI-per\nd\tB-org\n")
    cfg = load_config(["task=tagging", f"task.train_file={train}", f"task.validation_file={dev}"])
    with pytest.raises(RequestError, match=r"dev.conll, line 5: the tag 'B-org' is none of task.labels="):
        load_task(cfg.task, None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "line 1: the number of tags is 1, but the number of words 2"),
        ({"tokens": ["a"], "tags": "O"}, "the tags must be a list of names, or of numbers"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "line 1, word 2: a word must be text and not empty"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "line 1, word 2: a word must be text and not empty, but here is 3"),
        ({"tokens": [], "tags": []}, "all tags are O"),
        ({"tokens": None, "tags": ["O"]}, "line 1: there must be a list of words or a text, not NoneType"),
        ({"tokens": ["a"]}, "task.label_column=tags is not a column of"),
        ({"tokens": "a b", "tags": {"x": {"b": [[2, 3]]}}}, "the characters 2 to 3 are 'b', not 'b'"),
        ({"tokens": "a bc", "tags": {"x": {"c": [[3, 3]]}}}, "'c' begins or ends within a word: give task.units"),
        ({"tokens": "a b", "tags": {"x": {"b": [2, 2]}}}, "entities must be written as {type: {surface:"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "entities must be written as {type: {surface:"),
    ],
)
def test_what_is_wrong_with_lists_and_spans_is_said_with_the_line(tmp_path, row, said):
    if "the characters 2 to 3" in said:
        row, said = {"tokens": "a bc", "tags": {"x": {"b": [[2, 3]]}}}, "the characters 2 to 3 are 'bc', not 'b': count"
    assert said in refused(tmp_path, [row], "train.jsonl")


def test_other_refusals(tmp_path):
    assert "a tagging task reads no .csv files" in refused(tmp_path, "tokens,tags\na,O\n", "train.csv")
    assert "name one column in task.text_columns" in refused(tmp_path, COLUMNS, "a.conll", "task.text_columns=[a,b]")
    said = refused(tmp_path, COLUMNS, "a.conll", "task.metrics=[accuracy]", "task.metric=accuracy")
    assert "accuracy does not fit task.type=tagging; entity_f1, entity_precision, entity_recall do" in said
    with pytest.raises(RequestError, match=r"task\.test_file holds the rows to report on"):
        load_config(["task=tagging", "task.train_file=a", "task.test_file=b"])
    with pytest.raises(RequestError, match=r"give both, with task\.protocol=test"):
        load_config(["task=tagging", "task.train_file=a", "task.validation_file=b", "task.test_file=c"])
    with pytest.raises(RequestError, match=r"task\.test_file holds the rows to report on"):
        load_config(["task=mrpc", "task.test_file=a"])
    with pytest.raises(
        RequestError, match=r"task=wnut17 needs a folder: give data_root=DIR with the files wnut17train"
    ):
        load_task(load_config(["task=wnut17"]).task, None)


def test_scheme_of_given_labels():
    assert scheme_of(["O", "B-x", "I-x"], "task.labels") == "BIO"
    with pytest.raises(RequestError, match=r"^task.labels: no tag is O"):
        scheme_of(["B-x", "I-x"], "task.labels")


def test_the_order_of_tags_is_that_of_no_hash_seed(tmp_path):
    file = tmp_path / "train.conll"
    file.write_text("".join(f"w\t{letter}-{kind}\n" for kind in "zaqmb" for letter in "IB") + "w\tO\n")
    script = (
        "from petl_bench.config import load_config; from petl_bench.tasks.load import find_labels; "
        f"print(find_labels(load_config(['task=tagging', 'task.train_file={file}']).task))"
    )
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        found.add(done.stdout)
    assert found == {f"{['O', *(f'{letter}-{kind}' for kind in 'abmqz' for letter in 'BI')]}\n"}


def test_texts_are_cut_into_words_or_characters():
    def words(text, units="words"):
        return [text[begin:end] for begin, end in split_text(text, units)]

    assert words("Bob's flat, in  New-York.") == ["Bob", "'", "s", "flat", ",", "in", "New", "-", "York", "."]
    assert words("在2009年NBA") == ["在", "2009", "年", "NBA"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("a b1", "characters") == ["a", "b", "1"]
    assert words(" \n") == []
    assert entity_places(["O", "B-x", "I-x"], [(0, 1), (3, 4), (5, 6)]) == [("x", 3, 6)]
