"""Token ids of rows, cached on disk by content."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from petl_bench.errors import RequestError, first_line
from petl_bench.process import atomic_write, cache_dir
from petl_bench.tasks.rows import Rows
from petl_bench.tasks.tagging import TaggedRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Version 2: the number of tokens that were cut.
CACHE_VERSION = 2
_CHUNK = 2000

# The label of tokens that torch's loss ignores; this package works without torch.
NO_LABEL = -100

# How byte-level tokenizers write a space.
_SPACE = "\u0120"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedWords:
    """Where the words of tagged rows are among their tokens.

    Attributes:
        tokens: The first token of each word, an index into `EncodedRows.ids`, shape (words,); -1 for a word that the
            model does not see, as the length limit cuts it or the tokenizer makes no token of it.
        offsets: The words of row i are `tokens[offsets[i]:offsets[i + 1]]`; shape (rows + 1,).
    """

    tokens: np.ndarray
    offsets: np.ndarray

    def is_seen(self, row: int) -> np.ndarray:
        """Whether the model sees each word of a row."""
        seen: np.ndarray = self.tokens[self.offsets[row] : self.offsets[row + 1]] >= 0
        return seen


@dataclass(frozen=True)
class EncodedRows:
    """Token ids without padding, one row after the other.

    Attributes:
        ids: Token ids of all rows, int32, shape (tokens,).
        types: Segment ids likewise, uint8; None where the model has none.
        offsets: Row i is `ids[offsets[i]:offsets[i + 1]]`; int64, shape (rows + 1,).
        labels: As in `Rows`. For tagging, one per token, shape (tokens,): the tag of a word at its first token, and
            `NO_LABEL` at all others.
        pad_id: The id that padding uses.
        num_cut: Tokens that the rows had beyond the length limit.
        words: The words of a tagging task; None in others.
    """

    ids: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    labels: np.ndarray | None
    pad_id: int
    num_cut: int = 0
    words: EncodedWords | None = None

    @property
    def read_tokens(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The tokens whose outputs a tagger uses, and where those of each row begin; None in other tasks."""
        return None if self.words is None else (self.words.tokens, self.words.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, shape (rows,)."""
        return np.diff(self.offsets)


def encode(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int, *, cached: bool = True) -> EncodedRows:
    """Tokenizes rows, or reads their token ids from the cache.

    Args:
        rows: Texts; those of a pair are tokenized jointly. If there are more than two, all but the first form the
            second text of a pair, with the separator token between them.
        tokenizer: The backbone's.
        max_length: The maximum number of tokens of a row. Longer rows are truncated; in a pair, the longer text.
        cached: Whether to read from the cache and write to it.

    Returns:
        Token ids of all rows without padding.

    Raises:
        RequestError: If `max_length` leaves no room for the texts, or the tokenizer has no separator that is needed, or
            cannot say which word a token is of.
    """
    _check_room(len(rows.texts), tokenizer, max_length)
    if isinstance(rows, TaggedRows):
        _prepare_for_words(tokenizer)
    file = cache_dir() / "tokens" / f"{_content_key(rows, tokenizer, max_length)}.npz"
    arrays = _read(file) if cached else None
    if arrays is None:
        arrays = _tokenize(rows, tokenizer, max_length)
        if cached:
            _write(file, arrays)
    labels, words = rows.labels, None
    if isinstance(rows, TaggedRows):
        words = EncodedWords(arrays["word_tokens"], rows.word_offsets)
        labels = None if rows.labels is None else _token_labels(rows.labels, words.tokens, len(arrays["ids"]))
    return EncodedRows(
        arrays["ids"],
        arrays.get("types"),
        arrays["offsets"],
        labels,
        pad_id=int(tokenizer.pad_token_id or 0),
        num_cut=int(arrays["num_cut"]),
        words=words,
    )


def joined(parts: Sequence[EncodedRows]) -> EncodedRows:
    """The rows of all parts one after the other, without their labels."""
    types = [part.types for part in parts if part.types is not None]
    lengths = np.concatenate([part.lengths for part in parts])
    return EncodedRows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate(types) if types else None,
        np.concatenate([[0], np.cumsum(lengths)]),
        None,
        pad_id=parts[0].pad_id,
        num_cut=sum(part.num_cut for part in parts),
    )


def _prepare_for_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes byte-pair tokenizers that mark words by a leading space add one before every word."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RequestError(
            f"task.type=tagging needs a tokenizer that knows which word a token is of: {type(tokenizer).__name__} does "
            "not. Save it as tokenizer.json."
        )
    vocabulary = tokenizer.get_vocab()
    if not any(token.startswith(_SPACE) for token in vocabulary if token != _SPACE):
        return
    for part in _pre_tokenizers(backend.pre_tokenizer):
        if hasattr(part, "add_prefix_space"):
            part.add_prefix_space = True


def _pre_tokenizers(whole: Any) -> list[Any]:
    """The parts of a sequence of pre-tokenizers, or the only one."""
    try:
        return list(whole)
    except TypeError:
        return [whole]


def _token_labels(tags: np.ndarray, tokens: np.ndarray, num_tokens: int) -> np.ndarray:
    labels = np.full(num_tokens, NO_LABEL, dtype=np.int64)
    flat = np.concatenate([np.empty(0, dtype=np.int64), *tags])
    labels[tokens[tokens >= 0]] = flat[tokens >= 0]
    return labels


def _check_room(num_texts: int, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    if num_texts > 2 and tokenizer.sep_token is None:
        raise RequestError(
            f"task.text_columns names {num_texts} columns, but the tokenizer has no separator token to join them with: "
            "name at most two."
        )
    special = tokenizer.num_special_tokens_to_add(pair=num_texts > 1) + max(0, num_texts - 2)
    if max_length < special + num_texts:
        raise RequestError(
            f"task.max_length={max_length} leaves no room for the text: the tokenizer adds {special} special tokens to "
            f"each row of {num_texts} text{'s' if num_texts > 1 else ''}, so give at least {special + num_texts}."
        )


def _content_key(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Settings left by an earlier call; neither is part of the tokenizer's identity.
        backend.no_truncation()
        backend.no_padding()
        identity = backend.to_str()
    else:
        identity = json.dumps([type(tokenizer).__name__, tokenizer.init_kwargs], default=str, sort_keys=True)
    texts = replace(rows, labels=None).fingerprint()
    parts = [CACHE_VERSION, identity, tokenizer.model_input_names, texts, max_length]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _tokenize(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, np.ndarray]:
    from tqdm import tqdm

    ids: list[int] = []
    types: list[int] = []
    lengths: list[int] = []
    num_cut = 0
    first_tokens: list[np.ndarray] = []
    for start in tqdm(range(0, len(rows), _CHUNK), desc="tokenizing", unit_scale=_CHUNK, delay=2, disable=None):
        columns: list[list[Any]]
        if isinstance(rows, TaggedRows):
            columns = [rows.take(np.arange(start, min(start + _CHUNK, len(rows)))).words]
        else:
            columns = _as_pair([column[start : start + _CHUNK] for column in rows.texts], tokenizer)
        in_words = {"is_split_into_words": isinstance(rows, TaggedRows)}
        encoded = tokenizer(*columns, truncation=True, max_length=max_length, padding=False, **in_words)
        for number, row in enumerate(encoded["input_ids"]):
            if in_words["is_split_into_words"]:
                first_tokens.append(_first_tokens(encoded.word_ids(number), len(columns[0][number]), len(ids)))
            ids.extend(row)
            lengths.append(len(row))
        full = [i for i, row in enumerate(encoded["input_ids"]) if len(row) >= max_length]
        if full:
            of_full = ([column[i] for i in full] for column in columns)
            uncut = tokenizer(*of_full, padding=False, verbose=False, **in_words)
            num_cut += sum(len(row) for row in uncut["input_ids"]) - max_length * len(full)
        for row in encoded.get("token_type_ids", []):
            types.extend(row)
    arrays: dict[str, np.ndarray] = {
        "ids": np.array(ids, dtype=np.int32),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "num_cut": np.array(num_cut, dtype=np.int64),
    }
    if types:
        arrays["types"] = np.array(types, dtype=np.uint8)
    if isinstance(rows, TaggedRows):
        arrays["word_tokens"] = np.concatenate(first_tokens)
    return arrays


def _first_tokens(word_of_token: list[int | None], num_words: int, start: int) -> np.ndarray:
    """The first token of each word of a row whose tokens begin at `start`; -1 for words without one."""
    first = np.full(num_words, -1, dtype=np.int64)
    for position, word in enumerate(word_of_token):
        if word is not None and first[word] < 0:
            first[word] = start + position
    return first


def _as_pair(columns: list[list[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    """At most two columns: further ones are joined to the second."""
    if len(columns) <= 2:
        return columns
    separator = f" {tokenizer.sep_token} "
    return [columns[0], [separator.join(row) for row in zip(*columns[1:], strict=True)]]


def _read(file: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays: dict[str, np.ndarray] = {name: archive[name] for name in archive.files}
        # Entries of older versions have no such digest.
        if (digest := arrays.pop(_DIGEST, None)) is None:
            return None
        if not np.array_equal(digest, _digest(file.stem, arrays)):
            raise ValueError("its checksum is wrong")
    except FileNotFoundError:
        return None
    except Exception as error:  # of many kinds: any part of the archive may have changed
        _log.warning("the cached tokens in %s are broken and made anew (%s)", file, first_line(error))
        return None
    return arrays


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes by an atomic rename; a cache that cannot be written costs time, not the run."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.parent / ".lock"):
            # Only the process with the lock writes, so these files are from killed processes.
            for abandoned in file.parent.glob("*.partial"):
                abandoned.unlink(missing_ok=True)
            with atomic_write(file) as partial, partial.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays, **{_DIGEST: _digest(file.stem, arrays)})
    except OSError as error:
        _log.warning("tokens could not be cached in %s (%s)", file.parent, error)


_DIGEST = "sha256_with_key"


def _digest(key: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Hash of the entry's key, and of names, types, shapes and values of all arrays; uint8, shape (32,)."""
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)
