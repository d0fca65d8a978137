"""What petl_bench asks of every method, and what this one computes."""

import pytest
import torch
from my_scales.model import ScalesConfig, ScalesLayer

from petl_bench.catalog import check_method


# Two unlike ones: `petl-bench check scales` tries all architectures.
@pytest.mark.parametrize("backbone", ["tiny_bert", "tiny_modernbert"])
def test_it_does_what_every_method_must(backbone):
    outcomes = check_method(["method=scales", f"backbone={backbone}"])
    assert not [one for one in outcomes if one.status in ("failed", "refused")]


def test_the_output_is_multiplied():
    layer = ScalesLayer(torch.nn.Identity(), size=3)
    layer.update_layer("default", ScalesConfig(init_std=0.0))
    layer.set_adapter("default")
    layer.scales_factor["default"].data = torch.tensor([1.0, 2.0, 0.5])
    assert layer(torch.tensor([[4.0, 4.0, 4.0]])).tolist() == [[4.0, 8.0, 2.0]]


def test_an_option_out_of_range_is_refused():
    with pytest.raises(ValueError, match="init_std=-1 must be at least 0"):
        ScalesConfig(init_std=-1)
