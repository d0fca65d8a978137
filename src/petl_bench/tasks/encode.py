"""Token ids of rows, cached on disk by content."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from petl_bench.errors import RequestError, first_line
from petl_bench.process import atomic_write, cache_dir
from petl_bench.tasks.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Version 2: the number of tokens that were cut.
CACHE_VERSION = 2
_CHUNK = 2000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedRows:
    """Token ids without padding, one row after the other.

    Attributes:
        ids: Token ids of all rows, int32, shape (tokens,).
        types: Segment ids likewise, uint8; None where the model has none.
        offsets: Row i is `ids[offsets[i]:offsets[i + 1]]`; int64, shape (rows + 1,).
        labels: As in `Rows`.
        pad_id: The id that padding uses.
        num_cut: Tokens that the rows had beyond the length limit.
    """

    ids: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    labels: np.ndarray | None
    pad_id: int
    num_cut: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, shape (rows,)."""
        return np.diff(self.offsets)


def encode(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int, *, cached: bool = True) -> EncodedRows:
    """Tokenizes rows, or reads their token ids from the cache.

    Args:
        rows: Texts; those of a pair are tokenized jointly. Of more than two, the second and all further ones make the
            second text of a pair, with the separator token between them.
        tokenizer: The backbone's.
        max_length: Most tokens of a row. Longer rows are truncated, of a pair the longer text.
        cached: Whether to read from the cache and write to it.

    Returns:
        Token ids of all rows without padding.

    Raises:
        RequestError: If `max_length` leaves no room for the texts, or the tokenizer has no separator that is needed.
    """
    _check_room(len(rows.texts), tokenizer, max_length)
    file = cache_dir() / "tokens" / f"{_content_key(rows, tokenizer, max_length)}.npz"
    arrays = _read(file) if cached else None
    if arrays is None:
        arrays = _tokenize(rows, tokenizer, max_length)
        if cached:
            _write(file, arrays)
    return EncodedRows(
        arrays["ids"],
        arrays.get("types"),
        arrays["offsets"],
        rows.labels,
        pad_id=int(tokenizer.pad_token_id or 0),
        num_cut=int(arrays["num_cut"]),
    )


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
        # Left behind by an earlier call; neither is part of what the tokenizer is.
        backend.no_truncation()
        backend.no_padding()
        identity = backend.to_str()
    else:
        identity = json.dumps([type(tokenizer).__name__, tokenizer.init_kwargs], default=str, sort_keys=True)
    texts = Rows(rows.texts, None).fingerprint()
    parts = [CACHE_VERSION, identity, tokenizer.model_input_names, texts, max_length]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _tokenize(rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, np.ndarray]:
    from tqdm import tqdm

    ids: list[int] = []
    types: list[int] = []
    lengths: list[int] = []
    num_cut = 0
    for start in tqdm(range(0, len(rows), _CHUNK), desc="tokenizing", unit_scale=_CHUNK, delay=2, disable=None):
        columns = _as_pair([column[start : start + _CHUNK] for column in rows.texts], tokenizer)
        encoded = tokenizer(*columns, truncation=True, max_length=max_length, padding=False)
        for row in encoded["input_ids"]:
            ids.extend(row)
            lengths.append(len(row))
        full = [i for i, row in enumerate(encoded["input_ids"]) if len(row) >= max_length]
        if full:
            uncut = tokenizer(*([column[i] for i in full] for column in columns), padding=False, verbose=False)
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
    return arrays


def _as_pair(columns: list[list[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    """At most two columns: further ones are joined to the second."""
    if len(columns) <= 2:
        return columns
    separator = f" {tokenizer.sep_token} "
    return [columns[0], [separator.join(row) for row in zip(*columns[1:], strict=True)]]


def _read(file: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found: dict[str, np.ndarray] = {name: arrays[name] for name in arrays.files}
        # Entries of older versions have no digest.
        if (digest := found.pop(_DIGEST, None)) is None:
            return None
        if not np.array_equal(digest, _digest(found)):
            raise ValueError("its checksum is wrong")
    except FileNotFoundError:
        return None
    except Exception as error:  # of many kinds: any part of the archive may have changed
        _log.warning("the cached tokens in %s are broken and made anew (%s)", file, first_line(error))
        return None
    return found


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes by an atomic rename; a cache that cannot be written costs time, not the run."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.parent / ".lock"):
            # Only who holds the lock writes, so whoever began these files was killed.
            for abandoned in file.parent.glob("*.partial"):
                abandoned.unlink(missing_ok=True)
            with atomic_write(file) as partial, partial.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays, **{_DIGEST: _digest(arrays)})
    except OSError as error:
        _log.warning("tokens could not be cached in %s (%s)", file.parent, error)


_DIGEST = "sha256"


def _digest(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Hash of names, types, shapes and values of all arrays; uint8, shape (32,)."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)
