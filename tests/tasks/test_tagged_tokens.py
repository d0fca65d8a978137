"""Tagged words as tokens: which token stands for which word in each kind of tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from petl_bench.config import load_config
from petl_bench.tasks.encode import NO_LABEL, encode
from petl_bench.tasks.load import rows_of_texts
from tasks.tagged_file import LABELS, loaded


def fast(tokenizer, **special):
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(tokens | special))


def with_ends(tokenizer):
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CORPUS = ["New York is big and the weather is cold", "the new weather in York is not cold", "York York New New"] * 4


def byte_pairs():
    """RoBERTa's kind: a word is known by the space before it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return fast(with_ends(made))


def word_pieces():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    vocabulary = [*SPECIAL, "new", "york", "wea", "##ther", "叶", "老", "a", "##b", "##s"]
    made.model = models.WordPiece({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]")
    return fast(with_ends(made))


def unigram():
    """SentencePiece's kind: a mark stands for the space before a word."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    )
    return fast(with_ends(made))


def encoded(tmp_path, tokenizer, words, tags, max_length=64):
    rows = [{"tokens": one, "tags": of_one} for one, of_one in zip(words, tags, strict=True)]
    task = loaded(tmp_path, rows, "train.jsonl", f"task.labels={LABELS}")
    found = encode(task.train, tokenizer, max_length, cached=False)
    tokens = [
        tokenizer.convert_ids_to_tokens(found.ids[begin:end].tolist())
        for begin, end in zip(found.offsets[:-1], found.offsets[1:], strict=True)
    ]
    return found, tokens


@pytest.mark.parametrize("make", [byte_pairs, word_pieces, unigram])
def test_the_first_token_of_a_word_carries_its_tag(tmp_path, make):
    words = [["New", "York", "weathers"], ["cold"]]
    found, tokens = encoded(tmp_path, make(), words, [["B-loc", "I-loc", "O"], ["B-per"]])
    for row, (begin, end) in enumerate(zip(found.offsets[:-1], found.offsets[1:], strict=True)):
        labels, firsts = found.labels[begin:end], found.words.tokens[slice(*found.words.offsets[row : row + 2])]
        assert labels[0] == labels[-1] == NO_LABEL, "special tokens carry no tag"
        assert np.flatnonzero(labels != NO_LABEL).tolist() == (firsts - begin).tolist()
    first, second = ([LABELS[tag] for tag in found.labels[a:b] if tag >= 0] for a, b in
                     zip(found.offsets[:-1], found.offsets[1:], strict=True))  # fmt: skip
    assert (first, second) == (["B-loc", "I-loc", "O"], ["B-per"])
    assert len(found.ids) > 4 + 4, "some word has several tokens"
    assert all(row[0] == "[CLS]" and row[-1] == "[SEP]" for row in tokens)


def test_byte_pairs_have_a_space_before_every_word(tmp_path):
    tokenizer = byte_pairs()
    _, tokens = encoded(tmp_path, tokenizer, [["York", "York", "is"]], [["B-loc", "B-loc", "O"]])
    assert tokens == [["[CLS]", "ĠYork", "ĠYork", "Ġis", "[SEP]"]]


def test_word_pieces_by_hand(tmp_path):
    words = [["New", "York", "weather", "ab", "???", "叶", "老"]]
    tags = [["B-loc", "I-loc", "O", "O", "O", "B-per", "I-per"]]
    found, tokens = encoded(tmp_path, word_pieces(), words, tags)
    unknown = ["[UNK]"] * 3
    assert tokens == [["[CLS]", "new", "york", "wea", "##ther", "a", "##b", *unknown, "叶", "老", "[SEP]"]]
    no = NO_LABEL
    assert found.labels.tolist() == [no, 1, 2, 0, no, 0, no, 0, no, no, 3, 4, no]
    assert found.words.tokens.tolist() == [1, 2, 3, 5, 7, 10, 11]


def test_chinese_has_one_token_a_character(tmp_path):
    text = "叶老在a"
    rows = [{"text": text, "label": {"name": {"叶老": [[0, 1]]}}}]
    task = loaded(tmp_path, rows, "t.jsonl", "task.text_columns=[text]", "task.label_column=label")
    found = encode(task.train, word_pieces(), 16, cached=False)
    assert len(found.ids) == len(text) + 2
    assert [task.labels[tag] if tag >= 0 else None for tag in found.labels] == [
        None, "B-name", "I-name", "O", "O", None
    ]  # fmt: skip


def test_words_beyond_the_length_and_without_a_token_are_not_seen(tmp_path):
    words, tags = [["New", "\u200b", "York", "weather", "York"]], [["B-loc", "I-loc", "I-loc", "O", "B-loc"]]
    found, tokens = encoded(tmp_path, word_pieces(), words, tags, max_length=5)
    # BERT's normalizer removes the second word; of the fourth one, the first piece is there.
    assert tokens == [["[CLS]", "new", "york", "wea", "[SEP]"]]
    assert found.words.tokens.tolist() == [1, -1, 2, 3, -1]
    assert found.words.is_seen(0).tolist() == [True, False, True, True, False]
    assert found.labels.tolist() == [NO_LABEL, 1, 2, 0, NO_LABEL]
    # [CLS] new york wea ##ther york [SEP]
    assert found.num_cut == 2


def test_the_cache_knows_words_from_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path / "cache"))
    tokenizer, settings = word_pieces(), load_config(["task=tagging", "task.train_file=x"]).task
    rows = rows_of_texts((["new york", "ab"],), settings)
    first, second = (encode(rows, tokenizer, 16) for _ in range(2))
    assert first.words.tokens.tolist() == second.words.tokens.tolist() == [1, 2, 5]
    assert encode(rows.take(np.array([1])), tokenizer, 16).words.tokens.tolist() == [1]
    empty = encode(rows_of_texts(([""],), settings), tokenizer, 16)
    assert empty.ids.tolist() == [2, 3]
    assert empty.words.tokens.tolist() == []
