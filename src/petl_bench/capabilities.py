"""What every method can do on every architecture, found out by trying it on a tiny random model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from petl_bench.backbones.load import open_backbone
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.methods.context import AdaptContext
from petl_bench.methods.registry import all_methods, get_method

# One random backbone an architecture, by its option's name.
TINY_BACKBONES = {
    "bert": "tiny_bert",
    "roberta": "tiny_roberta",
    "electra": "tiny_electra",
    "distilbert": "tiny_distilbert",
    "deberta-v2": "tiny_deberta_v2",
    "modernbert": "tiny_modernbert",
}
# Settings under which a method can do less, or other things, than under its defaults.
VARIANTS = {
    "coda": ("method.attention=k2all",),
    "houlsby": ("method.variant=pfeiffer", "method.variant=parallel"),
}


@dataclass(frozen=True)
class Capability:
    """What one method can do on one architecture; each is None where it can, else the reason why not."""

    method: str
    architecture: str
    adapts: str | None
    merges: str | None


def probe_all() -> list[Capability]:
    """Tries every method, plugins and notable variants included, on every architecture of the anatomy table."""
    requests = []
    for name in all_methods():
        requests += [[f"method={name}"], *([f"method={name}", variant] for variant in VARIANTS.get(name, ()))]
    return [probe(request, architecture) for request in requests for architecture in TINY_BACKBONES]


def probe(request: list[str], architecture: str) -> Capability:
    """Tries one method.

    Args:
        request: Overrides that choose it, e.g. `["method=coda", "method.attention=k2all"]`.
        architecture: A `model_type` of the anatomy table.
    """
    cfg = load_config([f"backbone={TINY_BACKBONES[architecture]}", "layers=all", *request])
    backbone = open_backbone(cfg.backbone, cfg.layers)
    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps=100)
    label = " ".join(word.removeprefix("method=").removeprefix("method.") for word in request)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = get_method(cfg.method.name).load_adapt()(backbone.build_model(2), cfg.method, context)
        except RequestError as error:
            return Capability(label, architecture, str(error), "it does not adapt")
        return Capability(label, architecture, None, _merging_refused(model))


def _merging_refused(model: Any) -> str | None:
    if not hasattr(model, "peft_config"):
        return None
    try:
        model.merge_and_unload()
    except (ValueError, NotImplementedError, AttributeError) as error:
        return str(error) or f"PEFT does not merge it ({type(error).__name__})"
    return None
