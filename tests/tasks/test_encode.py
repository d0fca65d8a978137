"""Token ids: joint pairs, truncation, and a cache that is checked."""

from __future__ import annotations

import numpy as np
import pytest

from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.tasks import encode as encode_module
from petl_bench.tasks.encode import encode
from petl_bench.tasks.rows import Rows


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PETL_BENCH_CACHE", str(tmp_path))


@pytest.fixture
def tokenizer():
    cfg = load_config(["backbone=tiny_bert"])
    return open_backbone(cfg.backbone, cfg.layers).load_tokenizer()


@pytest.fixture
def tokenized(monkeypatch):
    """Counts how often rows are really tokenized."""
    calls = []
    original = encode_module._tokenize
    monkeypatch.setattr(encode_module, "_tokenize", lambda *args: calls.append(1) or original(*args))
    return calls


PAIRS = Rows((["ab", "x" * 50], ["cd", "yz"]), np.array([0, 1]))


def test_pairs_are_encoded_jointly_and_cut_from_the_longer_side(tokenizer):
    encoded = encode(PAIRS, tokenizer, max_length=16)
    assert encoded.lengths.tolist() == [7, 16]
    direct = tokenizer("ab", "cd")
    assert encoded.ids[:7].tolist() == direct["input_ids"]
    assert encoded.types[:7].tolist() == direct["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    # Both tokens of the short side are kept.
    assert encoded.types[7:].tolist() == [0] * 13 + [1] * 3


def test_the_second_time_nothing_is_tokenized(tokenizer, tokenized):
    first, second = (encode(PAIRS, tokenizer, max_length=16) for _ in range(2))
    assert len(tokenized) == 1
    assert np.array_equal(first.ids, second.ids)
    assert np.array_equal(first.types, second.types)


def test_other_rows_lengths_and_tokenizers_are_other_entries(tokenizer, tokenized):
    encode(PAIRS, tokenizer, max_length=16)
    encode(PAIRS, tokenizer, max_length=17)
    encode(PAIRS.take(np.array([1, 0])), tokenizer, max_length=16)
    encode(Rows((["ab"],), None), tokenizer, max_length=16)
    cfg = load_config(["backbone=tiny_roberta"])
    encode(PAIRS, open_backbone(cfg.backbone, cfg.layers).load_tokenizer(), max_length=16)
    assert len(tokenized) == 5


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_a_broken_entry_is_made_anew(tokenizer, tokenized, tmp_path, damage):
    good = encode(PAIRS, tokenizer, max_length=16)
    (file,) = (tmp_path / "tokens").glob("*.npz")
    file.write_bytes(file.read_bytes()[:300] if damage is None else damage)
    again = encode(PAIRS, tokenizer, max_length=16)
    assert np.array_equal(good.ids, again.ids)
    assert len(tokenized) == 2
    encode(PAIRS, tokenizer, max_length=16)
    assert len(tokenized) == 2


def test_an_entry_of_other_rows_is_not_believed(tokenizer, tmp_path, caplog):
    good = encode(PAIRS, tokenizer, max_length=16)
    (file,) = (tmp_path / "tokens").glob("*.npz")
    encode(PAIRS.take(np.array([1, 0])), tokenizer, max_length=16)
    (other,) = set((tmp_path / "tokens").glob("*.npz")) - {file}
    file.write_bytes(other.read_bytes())
    assert np.array_equal(encode(PAIRS, tokenizer, max_length=16).ids, good.ids)
    assert f"the cached tokens in {file} are broken and made anew" in caplog.text


def test_an_entry_that_does_not_say_whose_it_is_counts_as_absent(tokenizer, tokenized, tmp_path, caplog):
    encode(PAIRS, tokenizer, max_length=16)
    (file,) = (tmp_path / "tokens").glob("*.npz")
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files if not name.startswith("sha256")}
    np.savez(file, **arrays, sha256=np.zeros(32, np.uint8))
    for _ in range(2):
        encode(PAIRS, tokenizer, max_length=16)
    assert len(tokenized) == 2
    assert not caplog.text


def test_a_flipped_byte_anywhere_gives_no_other_tokens(tokenizer, tmp_path, caplog):
    good = encode(PAIRS, tokenizer, max_length=16)
    (file,) = (tmp_path / "tokens").glob("*.npz")
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        for bit in (1, 16):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
            again = encode(PAIRS, tokenizer, max_length=16)
            assert np.array_equal(good.ids, again.ids), position
            assert np.array_equal(good.offsets, again.offsets), position
            assert np.array_equal(good.types, again.types), position
            assert good.num_cut == again.num_cut, position
    assert "are broken and made anew" in caplog.text


def test_the_next_writer_removes_what_a_killed_one_had_begun(tokenizer, tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "abc.npz.7.partial").write_bytes(b"half")
    encode(PAIRS, tokenizer, max_length=16)
    assert {file.suffix for file in (tmp_path / "tokens").iterdir() if file.suffix} == {".npz"}


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tokenizer, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("PETL_BENCH_CACHE", str(blocked))
    assert len(encode(PAIRS, tokenizer, max_length=16)) == 2


def test_labels_are_not_part_of_the_cache(tokenizer, tokenized):
    encode(PAIRS, tokenizer, max_length=16)
    other = encode(Rows(PAIRS.texts, np.array([1, 0])), tokenizer, max_length=16)
    assert other.labels.tolist() == [1, 0]
    assert len(tokenized) == 1


@pytest.mark.parametrize(("texts", "least"), [((["ab"],), 3), ((["ab"], ["cd"]), 5), ((["ab"], ["cd"], ["ef"]), 7)])
def test_a_length_below_the_special_tokens_and_a_token_of_each_text_is_refused(tokenizer, texts, least):
    with pytest.raises(RequestError, match=f"max_length={least - 1} leaves no room .* give at least {least}"):
        encode(Rows(texts, None), tokenizer, least - 1, cached=False)
    assert encode(Rows(texts, None), tokenizer, least, cached=False).lengths.tolist() == [least]


def test_further_texts_are_joined_to_the_second_by_the_separator(tokenizer):
    encoded = encode(Rows((["ab"], ["cd"], ["ef"]), None), tokenizer, 32, cached=False)
    assert encoded.ids.tolist() == tokenizer("ab", "cd [SEP] ef")["input_ids"]
    assert encoded.ids.tolist().count(tokenizer.sep_token_id) == 3
    tokenizer.sep_token = None
    with pytest.raises(RequestError, match="names 3 columns, but the tokenizer has no separator"):
        encode(Rows((["ab"], ["cd"], ["ef"]), None), tokenizer, 32, cached=False)


def test_the_tokens_that_the_limit_cuts_are_counted(tokenizer):
    rows = Rows((["abcd", "ab", "x" * 50],), None)
    # Of one byte each, beside [CLS] and [SEP]: 6, 4 and 52 tokens.
    for limit, cut in ((52, 0), (51, 1), (6, 46), (4, 2 + 48)):
        assert [encode(rows, tokenizer, limit).num_cut for _ in range(2)] == [cut, cut]
