"""Tokenizers: the backbone's own, or a byte tokenizer for backbones with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_bench.errors import RunError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder, without the padding and truncation that its files may ask for."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except Exception as error:
        raise RunError(f"The tokenizer in {folder} cannot be read: {error}. Fetch the folder again.") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    return tokenizer


def byte_tokenizer(config: Any, max_length: int) -> PreTrainedTokenizerBase:
    """A tokenizer with one token a UTF-8 byte, needing no file.

    Args:
        config: The transformers config whose `pad_token_id` and `vocab_size` it must respect.
        max_length: Most tokens that the model takes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = {"[PAD]": int(config.pad_token_id)}
    free = (index for index in range(int(config.vocab_size)) if index not in specials.values())
    for token in ("[CLS]", "[SEP]", "[UNK]", "[MASK]"):
        specials[token] = next(free)
    vocabulary = specials | {char: next(free) for char in sorted(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, specials[token]) for token in ("[CLS]", "[SEP]")],
    )
    has_types = getattr(config, "type_vocab_size", 0) >= 2
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"]
        if has_types
        else ["input_ids", "attention_mask"],
    )
