"""What a frozen layer is called with when it sees only some tokens."""

from __future__ import annotations

from typing import Any

import torch


def gather_tokens(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows `indices`, shape (batch, k), of x, shape (batch, tokens, d)."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def real_tokens(mask: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """Which tokens are not padding, shape (batch, tokens), read off a layer's pairwise mask.

    Every token may attend to itself, also under a sliding window; padding may not be attended to.
    """
    batch, tokens = x.shape[:2]
    if mask is None:
        return torch.ones(batch, tokens, dtype=torch.bool, device=x.device)
    visible = _visible(mask)
    own = visible[:, 0, 0] if visible.shape[2] == 1 else visible[:, 0].diagonal(dim1=-2, dim2=-1)
    return own.expand(batch, tokens)


def _visible(mask: torch.Tensor) -> torch.Tensor:
    """True where a query may see a key; a float mask is added to the scores, so 0 stands for true."""
    return mask == 0 if mask.is_floating_point() else mask.bool()


def mask_for(
    mask: torch.Tensor | None, indices: torch.Tensor, valid: torch.Tensor, to_all: bool
) -> torch.Tensor | None:
    """The mask among routed tokens, or from them to all tokens; of the layer's own kind.

    Args:
        mask: The layer's, shape (batch or 1, 1, tokens or 1, tokens), or None.
        indices: Of the routed tokens, shape (batch, k).
        valid: Which of them are in use, shape (batch, k).
        to_all: Whether they attend to all tokens.
    """
    # Without padding every slot is in use.
    if mask is None:
        return None
    chosen = mask.expand(len(indices), *mask.shape[1:])
    if mask.shape[2] > 1:
        chosen = chosen.gather(2, indices[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    if to_all:
        return chosen
    chosen = chosen.gather(3, indices[:, None, None, :].expand(-1, mask.shape[1], chosen.shape[2], -1))
    return chosen.masked_fill(~valid[:, None, None, :], _hidden(mask.dtype))


def _hidden(dtype: torch.dtype) -> float:
    """What a mask of this kind holds where a key must not be seen."""
    return torch.finfo(dtype).min if dtype.is_floating_point else 0


def gather_arguments(arguments: dict[str, Any], indices: torch.Tensor, num_heads: int) -> dict[str, Any]:
    """A layer's further arguments for its routed tokens: rotary angles, relative distances."""
    gathered = dict(arguments)
    if (angles := arguments.get("position_embeddings")) is not None:
        gathered["position_embeddings"] = tuple(
            gather_tokens(part.expand(len(indices), -1, -1), indices) for part in angles
        )
    if (distances := arguments.get("relative_pos")) is not None:
        square = distances.expand(len(indices), -1, -1)
        rows = square.gather(1, indices[:, :, None].expand(-1, -1, square.shape[2]))
        both = rows.gather(2, indices[:, None, :].expand(-1, indices.shape[1], -1))
        # The library drops a leading axis of 1 and expects one matrix for each example and head.
        gathered["relative_pos"] = both.repeat_interleave(num_heads, dim=0)[None]
    return gathered
