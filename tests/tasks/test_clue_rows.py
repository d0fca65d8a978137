"""Rows of CLUE and FewCLUE: both layouts, fixed splits, rows without a label, and what is refused."""

# ruff: noqa: RUF001 (Chinese punctuation is meant)

from __future__ import annotations

import json

import pytest

from chinese import SHARED_FEWCLUE, write_lines, write_split
from petl_bench.catalog import list_tasks
from petl_bench.config import load_config, option_names
from petl_bench.errors import RequestError
from petl_bench.run.describe import describe_data, log_rows
from petl_bench.run.lifecycle import identify
from petl_bench.tasks.load import columns_of_texts, read_file, rows_of_table
from tasks.clue_archives import WSC, WSC_MARKED, WSC_TEXT, archive, load, refused, spans

PAIR = {"sentence1": "蚂蚁借呗等额还款可以换成先息后本吗", "sentence2": "借呗有先息到期还本吗"}
SENTENCE = {"sentence": "上课时学生手机响个不停，老师一怒之下把手机摔了"}

# Both layouts

LABELLED = {
    "afqmc": (PAIR, ["0", "1"]),
    "tnews": (SENTENCE | {"label_desc": "news_edu", "keywords": ""}, ["108", "102"]),
    "iflytek": (SENTENCE | {"label_des": "其他"}, ["118", "9"]),
    "cmnli": (PAIR, ["neutral", "contradiction"]),
    "ocnli": (PAIR | {"level": "easy", "label0": None}, ["entailment", "neutral"]),
    "csl": ({"abst": "为解决问题", "keyword": ["水声学", "FFT"]}, ["1", "0"]),
    "cluewsc2020": ({"text": WSC_TEXT, "target": WSC}, ["false", "true"]),
}


@pytest.mark.parametrize("name", LABELLED)
def test_the_archives_and_the_hub_give_the_same_rows(name, tmp_path):
    columns, labels = LABELLED[name]
    names = load_config([f"task={name}"]).task.labels
    of_archive = [columns | {"id": number, "label": label} for number, label in enumerate(labels)]
    of_hub = [columns | {"idx": number, "label": names.index(label)} for number, label in enumerate(labels)]
    archive(tmp_path / "archive", name, of_archive)
    for split in ("train", "validation"):
        write_split(tmp_path / "hub", name, split, of_hub)
    first, second = (load(tmp_path / layout, f"task={name}") for layout in ("archive", "hub"))
    assert [first.labels[index] for index in first.train.labels] == labels
    assert first.train.labels.tolist() == second.train.labels.tolist()
    assert first.train.texts == second.train.texts
    assert first.report.texts == second.report.texts
    assert first.fingerprint() == second.fingerprint()


def test_labels_are_those_of_the_data_sets_and_in_the_order_of_the_hub():
    labels = {name: load_config([f"task={name}"]).task.labels for name in LABELLED}
    assert labels["tnews"] == [str(code) for code in range(100, 117) if code not in (105, 111)]
    assert labels["iflytek"] == [str(number) for number in range(119)]
    assert labels["cluewsc2020"] == ["true", "false"]
    assert labels["cmnli"] == labels["ocnli"] == ["neutral", "entailment", "contradiction"]
    types = {label[2:] for label in load_config(["task=cluener"]).task.labels if label != "O"}
    assert types == {
        "address", "book", "company", "game", "government", "movie", "name", "organization", "position", "scene"
    }  # fmt: skip


def test_codes_written_as_numbers_are_the_same_labels(tmp_path):
    task = load(archive(tmp_path, "tnews", [SENTENCE | {"label": 108}, SENTENCE | {"label": 116}]), "task=tnews")
    assert task.train.labels.tolist() == [7, 14]


def test_numbers_of_classes_are_those_of_the_hub(tmp_path):
    rows = [{"text": "李四他", "target": spans("李四", 0, "他", 2), "label": number} for number in (0, 1)]
    task = load(archive(tmp_path, "cluewsc2020", rows), "task=cluewsc2020")
    assert [task.labels[index] for index in task.train.labels] == ["true", "false"]
    rows[1]["label"] = 2
    said = refused(archive(tmp_path, "cluewsc2020", rows), "task=cluewsc2020")
    assert "line 1: the label '0' is none of task.labels=['true', 'false']" in said


def test_files_may_begin_with_a_byte_order_mark_and_end_lines_as_windows_does(tmp_path):
    rows = [SENTENCE | {"label": "108"}, SENTENCE | {"label": "102"}]
    write_lines(tmp_path / "tnews" / "train.json", rows, "utf-8-sig")
    text = (tmp_path / "tnews" / "train.json").read_text("utf-8-sig")
    (tmp_path / "tnews" / "dev.json").write_bytes(text.replace("\n", "\r\n").encode())
    task = load(tmp_path, "task=tnews")
    assert task.train.texts == task.report.texts == ([SENTENCE["sentence"]] * 2,)


def test_other_names_of_files_can_be_given(tmp_path):
    archive(tmp_path, "ocnli", [PAIR | {"label": "neutral"}, PAIR | {"label": "entailment"}])
    (tmp_path / "ocnli" / "train.json").rename(tmp_path / "ocnli" / "train.50k.json")
    assert "holds no ocnli/train-*.parquet" in refused(tmp_path, "task=ocnli")
    assert len(load(tmp_path, "task=ocnli", "task.train_split=train.50k").train) == 2


def test_the_key_is_that_of_the_content(tmp_path):
    def key(root):
        return identify(load_config(["task=tnews", f"data_root={root}"])).key

    rows = [SENTENCE | {"label": "108"}, SENTENCE | {"label": "102"}]
    first, same = (key(archive(tmp_path / name, "tnews", rows)) for name in ("a", "b"))
    other = key(archive(tmp_path / "c", "tnews", rows, [SENTENCE | {"label": "109"}]))
    assert first == same != other


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "dev.json holds no rows."),
        ("\n\n", "dev.json holds no rows."),
        (
            '[{"sentence": "a", "label": "100"}]\n',
            "dev.json, line 1 is no JSON object: the file must hold one",
        ),
        ('{"sentence": "a", "label": "100"', "dev.json, line 1 is truncated or no JSON object"),
        ('{"sentence": "a", "label": "105"}\n', "dev.json, line 1: the label '105' is none of task.labels="),
        ('{"sentence": "a"}\n', "task.label_column=label is not a column of the split validation: rows without labels"),
        ('{"sentence": "a", "label": "100"}\n{"sentence": "b"}\n', "dev.json, line 2 has no label in 'label'."),
        ('{"text": "a", "label": "100"}\n', "task.text_columns: 'sentence' is not a column of"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(content, said, tmp_path):
    archive(tmp_path, "tnews", [SENTENCE | {"label": "108"}, SENTENCE | {"label": "102"}])
    (tmp_path / "tnews" / "dev.json").write_text(content)
    assert said in refused(tmp_path, "task=tnews")


def test_rows_to_predict_need_no_labels(tmp_path):
    settings = load_config(["task=cluewsc2020"]).task
    file = write_lines(tmp_path / "test.json", [{"text": WSC_TEXT, "target": WSC, "id": 0}])
    rows = rows_of_table(read_file(settings, str(file), "--file", columns_of_texts(settings)), settings, None)
    assert (rows.texts, rows.labels) == (([WSC_MARKED],), None)


# Labels that mark a row without one


@pytest.mark.parametrize("mark", ["-", -1, "-1"])
def test_rows_without_a_label_are_left_out_and_counted(mark, tmp_path, caplog):
    labels = ["neutral", mark, "entailment", mark, "contradiction"]
    rows = [{"sentence1": f"句{number}", "sentence2": "话", "label": label} for number, label in enumerate(labels)]
    cfg = load_config(["task=ocnli"])
    task = load(archive(tmp_path, "ocnli", rows, rows[:3]), "task=ocnli")
    assert task.train.texts[0] == ["句0", "句2", "句4"]
    assert task.train.labels.tolist() == [0, 1, 2]
    assert task.left_out == {"train": 2, "validation": 1}
    with caplog.at_level("WARNING"):
        log_rows(task)
    assert "train: 2 rows are left out, as their labels say that they have none (task.unlabelled=['-', '-1'])" in (
        caplog.text
    )
    data = describe_data(cfg, task)
    assert (data.rows_per_split, data.left_out_per_split) == (
        {"train": 3, "validation": 2},
        {"train": 2, "validation": 1},
    )


def test_rows_of_the_hub_without_a_label_are_left_out_too(tmp_path):
    for split, labels in (("train", [0, 1, -1, 2]), ("validation", [0, 1])):
        write_split(tmp_path, "cmnli", split, [PAIR | {"label": label} for label in labels])
    task = load(tmp_path, "task=cmnli")
    assert task.train.labels.tolist() == [0, 1, 2]
    assert task.left_out == {"train": 1}


def test_the_place_of_a_fault_is_that_in_the_file(tmp_path):
    rows = [PAIR | {"label": label} for label in ("-", "neutral", "nonsense")]
    assert "train.json, line 3: the label 'nonsense' is none of" in refused(
        archive(tmp_path, "cmnli", rows), "task=cmnli"
    )


def test_a_split_without_any_label_is_refused(tmp_path):
    rows = [PAIR | {"label": "neutral"}, PAIR | {"label": "entailment"}]
    archive(tmp_path, "ocnli", rows)
    write_lines(tmp_path / "ocnli" / "test.json", [PAIR | {"label": "-1"}] * 2)
    said = refused(tmp_path, "task=ocnli", "task.protocol=test")
    assert "test.json hides its labels: all are among task.unlabelled=['-', '-1']" in said


def test_marks_of_rows_without_a_label_are_for_classes():
    with pytest.raises(
        RequestError, match=r"task\.unlabelled=\['-'\] is for task\.type=classification, not regression"
    ):
        load_config(["task=stsb", "task.unlabelled=['-']"])


# FewCLUE

FEW_LABELS = {"0": "Positive", "1": "Negative"}


@pytest.fixture
def few(tmp_path):
    """Splits 0 and 1 of a made EPRSTMT, and all rows together; each text says where it stands."""
    for part in ("train", "dev"):
        for split in ("0", "1", "few_all"):
            rows = [{"sentence": f"{part} {split} {n}", "label": label} for n, label in FEW_LABELS.items()]
            write_lines(tmp_path / "eprstmt" / f"{part}_{split}.json", rows)
    public = [{"sentence": f"public {n}", "label": label} for n, label in FEW_LABELS.items()]
    write_lines(tmp_path / "eprstmt" / "test_public.json", public)
    write_lines(tmp_path / "eprstmt" / "test.json", [{"sentence": "hidden"}])
    return tmp_path


@pytest.mark.parametrize("split", ["0", "1", "few_all"])
def test_a_fixed_split_trains_and_selects_and_the_public_rows_are_reported(split, few):
    task = load(few, "task=fewclue_eprstmt", f"task.fewclue_split={split}", "task.data_seed=7")
    assert task.train.texts[0] == [f"train {split} 0", f"train {split} 1"]
    assert task.selection.texts[0] == [f"dev {split} 0", f"dev {split} 1"]
    assert task.report.texts[0] == ["public 0", "public 1"]
    assert task.train.labels.tolist() == [1, 0]
    assert (task.selection_split, task.report_split) == (f"dev_{split}", "test_public")
    # Each is a task of its own in reports.
    assert task.settings.name == f"fewclue_eprstmt_{split}"


def test_the_split_is_part_of_the_key(few):
    # All files are of the same content, so that nothing but the name of the split tells them apart.
    content = (few / "eprstmt" / "test_public.json").read_bytes()
    for file in (few / "eprstmt").iterdir():
        file.write_bytes(content)
    keys = {
        identify(load_config(["task=fewclue_eprstmt", f"task.fewclue_split={split}", f"data_root={few}"])).key
        for split in ("0", "1", "few_all")
    }
    assert len(keys) == 3


def test_splits_that_are_none_are_refused(few):
    for split, shown in (("5", "5"), ("null", "None")):
        with pytest.raises(
            RequestError, match=rf"task\.fewclue_split={shown} is not known\. .*: 0, 1, 2, 3, 4, few_all"
        ):
            load_config(["task=fewclue_eprstmt", f"task.fewclue_split={split}"])
    with pytest.raises(RequestError, match=r"task\.fewclue_split=1 chooses among .* task=tnews is none of them"):
        load_config(["task=tnews", "task.fewclue_split=1"])
    assert "train_3.json: there is no such file" in refused(few, "task=fewclue_eprstmt", "task.fewclue_split=3")
    with pytest.raises(RequestError, match=r"task\.transform=csl is not known"):
        load_config(["task=tnews", "task.transform=csl"])


def test_what_the_tasks_have_in_common_is_no_task():
    assert "_fewclue" not in option_names("task")
    rows = {row["task"]: row for row in list_tasks()}
    assert {name for name in rows if name.startswith("fewclue_")} == {
        f"fewclue_{name}" for name in ("bustm", "cluewsc", "csl", "csldcp", "eprstmt", "iflytek", "ocnli", "tnews")
    }
    assert rows["fewclue_csldcp"] == {
        "task": "fewclue_csldcp", "type": "classification", "texts": ["content"], "labels": 67,
        "metrics": ["accuracy*"], "rows": "folder",
    }  # fmt: skip
    assert (rows["tnews"]["rows"], rows["fewclue_tnews"]["rows"], rows["fewclue_tnews"]["labels"]) == (
        "hub",
        "folder",
        15,
    )


REAL = {"bustm": (32, 32), "cluewsc": (32, 32), "eprstmt": (32, 32), "ocnli": (32, 32), "tnews": (240, 240)}


@pytest.fixture(scope="module")
def fewclue():
    if not SHARED_FEWCLUE.is_dir():
        pytest.skip(f"no FewCLUE rows at {SHARED_FEWCLUE}: set PETL_BENCH_FEWCLUE to its folder `datasets`")
    return SHARED_FEWCLUE


@pytest.mark.parametrize("name", REAL)
def test_the_real_rows_of_all_five_splits(name, fewclue, caplog):
    trained = set()
    for split in range(5):
        task = load(fewclue, f"task=fewclue_{name}", f"task.fewclue_split={split}")
        assert (len(task.train), len(task.selection)) == REAL[name]
        assert task.rows_per_split().keys() == {"train", f"dev_{split}", "test_public"}
        assert task.left_out == {}
        # By an independent reading: every label, and every text that is not marked.
        lines = (fewclue / name / f"train_{split}.json").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert [task.labels[index] for index in task.train.labels] == [str(row["label"]) for row in rows]
        column = next(key for key in ("text", "sentence", "sentence1") if key in rows[0])
        plain = [text.translate({ord(mark): None for mark in "_[]"}) for text in task.train.texts[0]]
        assert plain == [row[column].translate({ord(mark): None for mark in "_[]"}) for row in rows]
        trained.add(task.train.fingerprint())
    assert len(trained) == 5
    assert "not at the index" not in caplog.text


def test_real_texts_of_cluewsc_are_marked_as_in_clues_baselines(fewclue):
    task = load(fewclue, "task=fewclue_cluewsc")
    rows = [json.loads(line) for line in (fewclue / "cluewsc" / "test_public.json").open(encoding="utf-8")]
    assert len(task.report) == len(rows) == 300
    for row, text in zip(rows, task.report.texts[0], strict=True):
        target, characters = row["target"], list(row["text"])
        for number, before, behind in ((1, "_", "_"), (2, "[", "]")):
            begin = target[f"span{number}_index"]
            characters[begin] = before + characters[begin]
            last = begin + len(target[f"span{number}_text"]) - 1
            characters[last] += behind
        assert text == "".join(characters)
