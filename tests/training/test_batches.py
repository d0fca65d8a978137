"""Batches: every row once, like lengths together, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from petl_bench.tasks.encode import NO_LABEL, EncodedRows, EncodedWords
from petl_bench.training.batches import balanced_weights, collate, epoch_batches, loss_terms, sorted_batches


@pytest.fixture(scope="module")
def lengths():
    return np.random.default_rng(0).integers(5, 128, size=3_001)


@pytest.mark.parametrize("batching", ["length_grouped", "shuffled"])
def test_every_row_once_and_only_one_short_batch(lengths, batching):
    batches = epoch_batches(lengths, 32, batching, seed=1, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert sorted(map(len, batches)) == [3_001 % 32] + [32] * (3_001 // 32)


@pytest.mark.parametrize("batching", ["length_grouped", "shuffled"])
def test_order_follows_seed_and_epoch(lengths, batching):
    def order(seed, epoch):
        return np.concatenate(epoch_batches(lengths, 32, batching, seed, epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def padding(lengths, batches):
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    return 1 - lengths.sum() / padded


def test_grouping_pays_for_little_padding(lengths):
    grouped, shuffled = (
        padding(lengths, epoch_batches(lengths, 32, name, 0, 0)) for name in ("length_grouped", "shuffled")
    )
    assert grouped < 0.05 < 0.4 < shuffled


def test_grouped_batches_do_not_come_in_order_of_length(lengths):
    longest = [lengths[batch].max() for batch in epoch_batches(lengths, 32, "length_grouped", 0, 0)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_evaluation_begins_with_the_longest(lengths):
    batches = sorted_batches(lengths, 64)
    assert lengths[batches[0]].min() >= lengths[batches[1]].max()
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))


def test_collate_pads_to_the_longest():
    rows = EncodedRows(
        ids=np.array([5, 6, 7, 8, 9, 4], dtype=np.int32),
        types=np.array([0, 0, 1, 0, 1, 0], dtype=np.uint8),
        offsets=np.array([0, 3, 5, 6]),
        labels=np.array([1, 0, 1]),
        pad_id=3,
    )
    batch = collate(rows, np.array([1, 0]))
    assert batch.inputs["input_ids"].tolist() == [[8, 9, 3], [5, 6, 7]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert batch.labels.tolist() == [0, 1]
    assert batch.num_tokens == 5
    assert batch.labels.dtype == torch.int64


def test_regression_labels_are_floats():
    rows = EncodedRows(np.array([1], np.int32), None, np.array([0, 1]), np.array([2.5]), 0)
    batch = collate(rows, np.array([0]))
    assert batch.labels.dtype == torch.float32
    assert "token_type_ids" not in batch.inputs


def test_balanced_weights_and_the_terms_that_they_give():
    labels = np.array([0, 0, 0, 2])
    rows = EncodedRows(np.arange(4), None, np.arange(5), labels, pad_id=0)
    # Four rows over two classes and the rows of each; the second class has none.
    weights = balanced_weights(rows, 3)
    assert weights.tolist() == [pytest.approx(4 / 6), 1.0, 2.0]
    assert loss_terms(rows, np.array([0, 3])) == 2
    assert loss_terms(rows, np.array([0, 3]), weights) == pytest.approx(4 / 6 + 2)
    assert loss_terms(rows, np.array([], dtype=int), weights) == 0


def test_balanced_weights_of_tags_count_the_words_that_are_seen():
    # Two rows of three tokens: the second token of each is no word's first, and the last word of all is cut.
    labels = np.array([0, NO_LABEL, 1, 0, NO_LABEL, 0])
    words = EncodedWords(np.array([0, 2, 3, 5, -1]), np.array([0, 2, 5]))
    rows = EncodedRows(np.arange(6), None, np.array([0, 3, 6]), labels, pad_id=0, words=words)
    weights = balanced_weights(rows, 2)
    assert weights.tolist() == [pytest.approx(4 / 6), 2.0]
    assert loss_terms(rows, np.array([0])) == 2
    assert loss_terms(rows, np.array([1, 0]), weights) == pytest.approx(3 * 4 / 6 + 2)
