"""Folders laid out as CLUE's archives, tasks that load them or refuse, and CLUEWSC's spans."""

# ruff: noqa: RUF001 (Chinese punctuation is meant)

from __future__ import annotations

import pytest

from chinese import write_lines
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.tasks.load import load_task

WSC = {"span1_text": "伤口", "span1_index": 3, "span2_text": "它们", "span2_index": 27}
WSC_TEXT = "裂开的伤口涂满尘土，里面有碎石子和木头刺，我小心翼翼把它们剔除出去。"
WSC_MARKED = "裂开的_伤口_涂满尘土，里面有碎石子和木头刺，我小心翼翼把[它们]剔除出去。"


def load(root, *overrides):
    return load_task(load_config(list(overrides)).task, str(root))


def refused(root, *overrides):
    with pytest.raises(RequestError) as error:
        load(root, *overrides)
    return str(error.value)


def archive(root, subset, train, dev=None):
    """A folder with the content of one of CLUE's archives."""
    write_lines(root / subset / "train.json", train)
    write_lines(root / subset / "dev.json", dev or train)
    return root


def spans(span1, index1, span2, index2):
    return {"span1_text": span1, "span1_index": index1, "span2_text": span2, "span2_index": index2}
