"""Rows in the layouts of CLUE's own archives and of the hub, and a tiny random backbone that reads Chinese."""

# ruff: noqa: RUF001 (Chinese punctuation is meant)

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd

# Real rows of FewCLUE; never part of the repository.
SHARED_FEWCLUE = Path(os.environ.get("PETL_BENCH_FEWCLUE") or Path(__file__).parents[2] / "shared/data/fewclue")

MARKS = "，。、？！：；“”（）《》_[]·-. 的了是在我有和人这中大为上个国不"


def write_lines(file: Path, rows: list[dict], encoding: str = "utf-8") -> Path:
    """Writes JSON lines as CLUE's archives have them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    file.write_text(text, encoding=encoding)
    return file


def write_split(root: Path, subset: str, split: str, rows: list[dict]) -> None:
    """Writes a split as the hub has it."""
    (root / subset).mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(root / subset / f"{split}-00000-of-00001.parquet")


def save_backbone(folder: Path, texts: list[str], positions: int = 128) -> Path:
    """Saves a BERT of random weights whose vocabulary is one token a character, as that of BERT-base-Chinese nearly is.

    Latin letters and digits are pieces too, so that words of them are several tokens.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    characters = sorted(set("".join([*texts, MARKS]).lower()) - set(" \n\t"))
    pieces = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *pieces]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    shape = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=positions,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForSequenceClassification(shape).save_pretrained(folder)
    return folder
