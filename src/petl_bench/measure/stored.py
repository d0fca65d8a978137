"""Bytes that a model's trained weights take on disk, without writing them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}
_ALIGNMENT = 8


def safetensors_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Size of the safetensors file that transformers and PEFT would write, its header included.

    Tensors that share a storage are written once, under one of their names.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end, seen = 0, set()
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        if id(tensor.untyped_storage()) in seen:
            continue
        seen.add(id(tensor.untyped_storage()))
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return _ALIGNMENT + -(-text // _ALIGNMENT) * _ALIGNMENT + end
