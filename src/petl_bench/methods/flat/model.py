"""The PEFT tuner of FLAT."""

from __future__ import annotations

from torch import nn

from petl_bench.methods.flat.config import FlatConfig
from petl_bench.methods.flat.network import FlatNetwork
from petl_bench.methods.side_network import SideTuner


class FlatModel(SideTuner):
    """Fuses the representations of all layers beside the frozen encoder (doi 10.1016/j.neunet.2024.106631).

    A reconstruction, FLAT-P: only the paper's abstract could be read.

    Args:
        model: A sequence classifier.
        config: A `FlatConfig`.
        adapter_name: Name of the adapter.
    """

    prefix = "flat_"

    def new_network(self, config: FlatConfig) -> nn.Module:
        """See `SideTuner.new_network`."""
        return FlatNetwork(self.anatomy.num_layers(self.model.config) + 1, self.model.config.hidden_size, config)
