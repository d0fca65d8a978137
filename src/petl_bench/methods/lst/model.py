"""The PEFT tuner of ladder side-tuning."""

from __future__ import annotations

from typing import Any

from torch import nn

from petl_bench.methods.lst.config import LstConfig
from petl_bench.methods.lst.network import LadderNetwork
from petl_bench.methods.side_network import SideTuner


class LstModel(SideTuner):
    """Ladder side-tuning (Sung et al., NeurIPS 2022, arXiv 2206.06522), carried over to encoders.

    Args:
        model: A sequence classifier.
        config: An `LstConfig`.
        adapter_name: Name of the adapter.
    """

    prefix = "lst_"

    def new_network(self, config: LstConfig) -> nn.Module:
        """See `SideTuner.new_network`."""
        shape: Any = self.model.config
        return LadderNetwork(self.anatomy.num_layers(shape), shape.hidden_size, shape.num_attention_heads, config)
