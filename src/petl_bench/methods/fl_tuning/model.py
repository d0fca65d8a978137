"""The PEFT tuner of FL-tuning."""

from __future__ import annotations

import warnings
from typing import Any, cast

from torch import nn

from petl_bench.backbones.anatomy import Anatomy
from petl_bench.methods.base import AnatomyTuner
from petl_bench.methods.fl_tuning.config import FlTuningConfig
from petl_bench.methods.fl_tuning.layer import WidenedIn, WidenedOut, WidenedProjection


class FlTuningModel(AnatomyTuner):
    """Adds hidden units to feed-forward networks (arXiv 2206.15312; genggui001/FL-Tuning).

    Args:
        model: The model to adapt.
        config: An `FlTuningConfig`.
        adapter_name: Name of the adapter.
    """

    prefix = "fl_tuning_"
    tuner_layer_cls = WidenedProjection

    def default_targets(self, peft_config: FlTuningConfig, anatomy: Anatomy, layers: list[int]) -> str:
        """See `AnatomyTuner.default_targets`."""
        return anatomy.layer_pattern(layers, ("feed_forward_in", "feed_forward_out"))

    def create_layer(self, peft_config: FlTuningConfig, target: nn.Module, key: str) -> WidenedProjection:
        """See `AnatomyTuner.create_layer`."""
        if not isinstance(target, nn.Linear):
            raise ValueError(f"{key} is a {type(target).__name__}, not a linear projection")
        if self.anatomy.is_role(key, "feed_forward_in"):
            return WidenedIn(target, self.anatomy.gated)
        return WidenedOut(target)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:  # type: ignore[override]
        model = cast("nn.Module", super()._unload_and_optionally_merge(merge=merge, **kwargs))
        if merge:
            self._note_width(model)
        return model

    def _note_width(self, model: nn.Module) -> None:
        """Writes the width of the wider networks into the config, so that the merged model can be saved and loaded."""
        anatomy, config = self.anatomy, cast("Any", model.config)
        key = anatomy.feed_forward_size_key
        outs = [module for name, module in model.named_modules() if anatomy.is_role(name, "feed_forward_out")]
        widths = {cast("nn.Linear", module).in_features for module in outs}
        if len(widths) == 1:
            setattr(config, key, widths.pop())
        else:
            warnings.warn(
                f"The merged feed-forward networks have different widths ({sorted(widths)}), which config.{key} cannot "
                "say: the merged model runs, but from_pretrained cannot load it.",
                stacklevel=2,
            )
