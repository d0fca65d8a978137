"""The method as a PEFT tuner: its config, the layer that wraps a module, and where the layers are put."""

from dataclasses import dataclass

import torch
from torch import nn

from my_scales import ScalesSettings
from petl_bench.methods.base import AnatomyTuner, LayerwiseConfig, TunerLayer


@dataclass
class ScalesConfig(ScalesSettings, LayerwiseConfig):
    """The options of `ScalesSettings`, and the layers of `LayerwiseConfig`."""

    method = "scales"

    def __post_init__(self):
        super().__post_init__()
        if self.init_std < 0:
            raise ValueError(f"init_std={self.init_std} must be at least 0")


class ScalesLayer(TunerLayer):
    """Multiplies the output of the wrapped module by a trained vector; it holds one for each adapter, by its name."""

    adapter_layer_names = ("scales_factor",)
    unmergeable = "a dropout, which it may wrap, has no weights that could hold the factors"

    def __init__(self, base_layer, size):
        super().__init__(base_layer)
        self.size = size
        self.scales_factor = nn.ParameterDict({})

    def update_layer(self, adapter_name, config, device=None):
        """Adds another adapter."""
        noise = torch.randn(self.size, device=device)
        self.scales_factor[adapter_name] = nn.Parameter(1 + config.init_std * noise)

    def forward(self, *args, **kwargs):
        """The wrapped module's output, with its shape."""
        output = self.base_layer(*args, **kwargs)
        for name in self.active_in(self.scales_factor):
            output = output * self.scales_factor[name].to(output.dtype)
        return output


class ScalesModel(AnatomyTuner):
    """Puts a `ScalesLayer` at both ends of every adapted layer."""

    prefix = "scales_"
    tuner_layer_cls = ScalesLayer

    def default_targets(self, peft_config, anatomy, layers):
        """A regular expression for the modules that are wrapped, whatever the architecture calls them."""
        return anatomy.layer_pattern(layers, ("attention_end", "feed_forward_end"))

    def create_layer(self, peft_config, target, key):
        """Wraps a module, without an adapter."""
        return ScalesLayer(target, self.model.config.hidden_size)
