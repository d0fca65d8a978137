"""Configs of many combinations of backbones and methods, in less time than Hydra takes for each of them."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

from petl_bench.config import RunConfig, load_config

_loaded = functools.cache(lambda *overrides: load_config(list(overrides)))


def composed(*overrides: str) -> RunConfig:
    """What `load_config` gives, with the backbone composed apart from all else.

    It is not for recipes, which bring a backbone.
    """
    backbone = [one for one in overrides if one.lstrip("+").startswith(("backbone=", "backbone."))]
    others = [one for one in overrides if one not in backbone]
    return copy.deepcopy(replace(_loaded(*others), backbone=_loaded(*backbone).backbone))
