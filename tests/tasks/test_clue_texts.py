"""What CLUE's rows become: keywords of CSL as a text, marked spans of CLUEWSC, characters of CLUENER with tags."""

# ruff: noqa: RUF001 (Chinese punctuation is meant)

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from chinese import write_lines
from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.tasks.encode import encode
from petl_bench.tasks.load import columns_of_texts, load_task, read_file, rows_of_table
from petl_bench.tasks.table_files import Table
from tasks.clue_archives import WSC, WSC_MARKED, WSC_TEXT, archive, load, refused, spans

# CSL


def test_keywords_are_a_list_or_one_text(tmp_path):
    rows = [
        {"abst": "摘要一", "keyword": ["水声学", "FFT", "3维成像"], "label": "1"},
        {"abst": "摘要二", "keyword": "水声学 FFT", "label": "0"},
        {"abst": "摘要三", "keyword": [], "label": "0"},
    ]
    task = load(archive(tmp_path, "csl", rows), "task=csl")
    assert task.train.texts == (["水声学 FFT 3维成像", "水声学 FFT", ""], ["摘要一", "摘要二", "摘要三"])


@pytest.mark.parametrize("cell", [None, 3, ["a", 3], {"a": "b"}])
def test_keywords_of_another_form_are_refused_with_their_line(cell, tmp_path):
    rows = [{"abst": "甲", "keyword": ["乙"], "label": "1"}, {"abst": "甲", "keyword": cell, "label": "0"}]
    said = refused(archive(tmp_path, "csl", rows), "task=csl")
    assert f"train.json, line 2: 'keyword' must hold a list of texts, or one text, but here is {cell!r}." in said
    for row in rows:
        del row["keyword"]
    assert "'keyword' is not a column of" in refused(archive(tmp_path, "csl", rows), "task=csl")


def test_a_record_from_elsewhere_may_name_any_transformation():
    settings = dataclasses.replace(load_config(["task=csl"]).task, transform="os.system")
    with pytest.raises(RequestError, match=r"task\.transform=os\.system is not known"):
        rows_of_table(Table("rows", [], {}), settings, None)


# CLUEWSC


def marked(tmp_path, text, target):
    rows = [{"text": text, "target": target, "label": label} for label in ("true", "false")]
    return load(archive(tmp_path, "cluewsc2020", rows), "task=cluewsc2020").train.texts[0][0]


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        (WSC_TEXT, WSC, WSC_MARKED),
        # The pronoun comes first; both at the ends of the text.
        ("他说的是李四", spans("李四", 4, "他", 0), "[他]说的是_李四_"),
        # Side by side, in both orders.
        ("李四他走了", spans("李四", 0, "他", 2), "_李四_[他]走了"),
        ("他李四走了", spans("李四", 1, "他", 0), "[他]_李四_走了"),
        # One inside of the other: at its beginning, its middle and its end, and both the same.
        ("他爸爸来了", spans("他爸爸", 0, "他", 0), "_[他]爸爸_来了"),
        ("我说他爸爸来了", spans("说他爸爸", 1, "他", 2), "我_说[他]爸爸_来了"),
        ("那个他走了", spans("那个他", 0, "他", 2), "_那个[他]_走了"),
        ("说是他", spans("他", 2, "是他", 1), "说[是_他_]"),
        # Surrogate pairs of other programs are one character here.
        ("😀他和李四", spans("李四", 3, "他", 1), "😀[他]和_李四_"),
    ],
)
def test_spans_are_marked(text, target, expected, tmp_path, caplog):
    assert marked(tmp_path, text, target) == expected
    assert "not at the index" not in caplog.text


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, "甲_他_乙他丙[它]"),
        (1, "甲_他_乙他丙[它]"),
        (2, "甲_他_乙他丙[它]"),
        (3, "甲他乙_他_丙[它]"),
        (4, "甲他乙_他_丙[它]"),
        (99, "甲他乙_他_丙[它]"),
        (-3, "甲_他_乙他丙[它]"),
    ],
)
def test_the_text_of_a_span_decides_where_the_index_is_off(index, expected, tmp_path, caplog):
    assert marked(tmp_path, "甲他乙他丙它", spans("他", index, "它", 5)) == expected
    counted = "train.json: 2 spans are not at the index that is given" in caplog.text
    assert counted == (index not in (1, 3))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (spans("王五", 0, "他", 1), "span1_text is '王五', which is nowhere in the text: correct or remove the row."),
        (spans("李四", 0, "", 1), "'target' must hold a text in span2_text and a whole number in span2_index."),
        (spans("李四", "0", "他", 1), "'target' must hold a text in span1_text and a whole number in span1_index."),
        (spans("李四", True, "他", 1), "a whole number in span1_index."),
        ({"span1_text": "李四"}, "a whole number in span1_index."),
        ("李四", "'target' must hold a text in span1_text"),
        (None, "'target' must hold a text in span1_text"),
    ],
)
def test_spans_that_cannot_be_marked_are_refused_with_their_line(target, said, tmp_path):
    rows = [{"text": "李四他", "target": spans("李四", 0, "他", 2), "label": "true"},
            {"text": "李四他", "target": target, "label": "false"}]  # fmt: skip
    found = refused(archive(tmp_path, "cluewsc2020", rows), "task=cluewsc2020")
    assert "train.json, line 2: " in found
    assert said in found


def test_rows_without_targets_or_texts_are_refused(tmp_path):
    rows = [{"text": "李四他", "label": "true"}, {"text": "李四他", "label": "false"}]
    assert "'target' is not a column of" in refused(archive(tmp_path, "cluewsc2020", rows), "task=cluewsc2020")
    rows = [{"text": 3, "target": spans("李四", 0, "他", 2), "label": "true"}]
    assert "line 1: column 'text' holds 3, not a text." in refused(
        archive(tmp_path, "cluewsc2020", rows), "task=cluewsc2020"
    )


# CLUENER

CLUENER = [
    {"text": "浙商银行企业信贷部叶老桂博士从NBA2K18说起", "label": {
        "name": {"叶老桂": [[9, 11]]}, "company": {"浙商银行": [[0, 3]]}, "game": {"NBA2K18": [[15, 21]]}}},
    # Of "NBA2K18" only a part is an entity; the same surface twice; a space inside.
    {"text": "NBA2K18和NBA，New York", "label": {
        "organization": {"NBA": [[0, 2], [8, 10]]}, "address": {"New York": [[12, 19]]}}},
    {"text": "没有实体", "label": {}},
]  # fmt: skip


def test_entities_are_tagged_by_character(tmp_path):
    task = load(archive(tmp_path, "cluener", CLUENER), "task=cluener")
    assert task.train.words[1] == list("NBA2K18和NBA，NewYork")
    company, person = ["B-company", *["I-company"] * 3], ["B-name", "I-name", "I-name"]
    game, organization = ["B-game", *["I-game"] * 6], ["B-organization", "I-organization", "I-organization"]
    address = ["B-address", *["I-address"] * 6]
    assert task.tags(task.train) == [
        [*company, *["O"] * 5, *person, *["O"] * 3, *game, "O", "O"],
        [*organization, *["O"] * 5, *organization, "O", *address],
        ["O"] * 4,
    ]
    assert task.settings.metric == "entity_f1"


def test_a_test_file_of_cluener_has_no_labels(tmp_path):
    settings = load_config(["task=cluener"]).task
    file = write_lines(tmp_path / "test.json", [{"id": 0, "text": "四川敦煌学"}])
    rows = rows_of_table(
        read_file(settings, str(file), "--file", columns_of_texts(settings)), settings, settings.labels
    )
    assert (rows.words, rows.labels) == ([list("四川敦煌学")], None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"text": "甲乙", "label": {"name": {"乙": [[1, 2]]}}},
            "ends at character 2, but the last one",
        ),
        (
            {"text": "甲乙丙", "label": {"name": {"乙": [[1, 2]]}}},
            "the characters 1 to 2 are '乙丙', not",
        ),
        ({"text": "甲乙", "label": {"person": {"乙": [[1, 1]]}}}, "the tag 'B-person' is none of task.labels="),
    ],
)
def test_entities_that_do_not_fit_are_refused_with_their_line(row, said, tmp_path):
    found = refused(archive(tmp_path, "cluener", [CLUENER[2], row]), "task=cluener")
    assert "train.json, line 2" in found
    assert said in found


def test_cluener_without_its_folder_names_the_files():
    with pytest.raises(
        RequestError, match=r"task=cluener needs a folder: give data_root=DIR with the files cluener/train"
    ):
        load_task(load_config(["task=cluener"]).task, None)


# Tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from chinese import save_backbone

    folder = save_backbone(tmp_path_factory.mktemp("base"), [row["text"] for row in CLUENER])
    cfg = load_config(["backbone=roberta_wwm_ext_base", f"backbone.path={folder}"])
    return open_backbone(cfg.backbone, cfg.layers, task_type="tagging").load_tokenizer()


def test_every_character_is_a_token_with_its_tag_where_words_would_be_pieces(tokenizer, tmp_path):
    task = load(archive(tmp_path, "cluener", CLUENER), "task=cluener")
    # The entity NBA ends within this word and within its pieces.
    assert tokenizer.tokenize("NBA2K18") == ["n", "##b", "##a", "##2", "##k", "##1", "##8"]
    rows = encode(task.train, tokenizer, 64, cached=False)
    assert (rows.words.tokens >= 0).all()
    first, second = (slice(*rows.offsets[number : number + 2]) for number in (1, 2))
    assert tokenizer.convert_ids_to_tokens(rows.ids[first]) == ["[CLS]", *"nba2k18和nba，newyork", "[SEP]"]
    assert rows.labels[first][[0, -1]].tolist() == [-100, -100]
    assert [task.labels[index] for index in rows.labels[first][1:4]] == task.tags(task.train)[1][:3]
    assert rows.labels[second][1:-1].tolist() == [0] * 4


def test_characters_beyond_the_limit_are_not_seen(tokenizer, tmp_path):
    task = load(archive(tmp_path, "cluener", CLUENER), "task=cluener")
    rows = encode(task.train, tokenizer, 14, cached=False)
    # Twelve characters and two tokens at the ends: 叶老桂 is seen, NBA2K18 is not.
    assert np.flatnonzero(rows.words.is_seen(0)).tolist() == list(range(12))
