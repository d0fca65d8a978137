"""The table of docs/methods/peft.md: what each type of the installed PEFT trains on each architecture, found by trying.

    python scripts/peft_types.py

Each type adapts a small random model with its default arguments and is trained for a step; what it is refused for, or
fails with first, is printed below the table.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from petl_bench.backbones.anatomy import PROJECTION_ROLES, Anatomy
from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.catalog import TINY_BACKBONES
from petl_bench.config import load_config
from petl_bench.errors import RequestError
from petl_bench.methods.base import adapt
from petl_bench.methods.registry import AdaptContext, all_methods
from petl_bench.reports.render import ReportTable, to_markdown
from petl_bench.testing import train

# Two layers, 64 wide: PEFT's default ranks fit.
SHAPES = dict.fromkeys(TINY_BACKBONES, ("hidden_size", "num_hidden_layers")) | {"distilbert": ("dim", "n_layers")}
WIDTH, LAYERS = 64, 2


@dataclass(frozen=True)
class Trained:
    """What a type trains besides the head.

    Attributes:
        parts: Where its parameters are, by the roles of the anatomy table.
        parameters: How many there are.
    """

    parts: tuple[str, ...]
    parameters: int


def types() -> list[str]:
    """The types of the installed PEFT, without those that this package adds."""
    ours = {name.upper() for name, method in all_methods().items() if method.tuner is not None}
    return sorted({str(known.value) for known in PEFT_TYPE_TO_CONFIG_MAPPING} - ours)


def open_small(architecture: str) -> Backbone:
    """A small random backbone of an architecture."""
    width, layers = SHAPES[architecture]
    shape = [f"backbone.architecture.{width}={WIDTH}", f"backbone.architecture.{layers}={LAYERS}"]
    if architecture == "deberta-v2":
        shape.append(f"backbone.architecture.pooler_hidden_size={WIDTH}")
    cfg = load_config([f"backbone={TINY_BACKBONES[architecture]}", *shape])
    return open_backbone(cfg.backbone, cfg.layers)


def adapted(peft_type: str, backbone: Backbone) -> torch.nn.Module:
    """A model that a type adapts with its default arguments.

    Raises:
        RequestError: If the type is refused.
    """
    cfg = load_config(["method=peft", f"method.type={peft_type}"])
    torch.manual_seed(0)
    plain = backbone.build_model(2)
    return adapt(plain, cfg.method, AdaptContext(backbone.anatomy, backbone.plan, num_training_steps=100))


def trained(model: torch.nn.Module, anatomy: Anatomy) -> Trained:
    """What an adapted model trains besides its head."""
    # Some types share their parameters between modules: each is named there, and counted once.
    own = {
        name.removeprefix("base_model.model."): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad and not anatomy.in_head(name)
    }
    parts = dict.fromkeys(part for name in own for part in _parts(name, anatomy))
    return Trained(tuple(parts), sum(parameter.numel() for parameter in set(own.values())))


def _parts(name: str, anatomy: Anatomy) -> list[str]:
    if name.startswith("prompt_encoder."):
        return ["virtual tokens"]
    outer = name.split(".")
    paths = [".".join(outer[:end]) for end in range(1, len(outer))]
    roles = [role for role in PROJECTION_ROLES for path in paths if anatomy.is_role(path, role)]
    # What belongs to no module is shared by all that the type changes.
    return [role.replace("_", " ") for role in roles] or ["norms" if "norm" in name.lower() else "shared vectors"]


def probe(peft_type: str, architecture: str) -> Trained | str:
    """What a type trains on an architecture, or the reason why it does not."""
    backbone = open_small(architecture)
    try:
        model = adapted(peft_type, backbone)
        train(model, steps=1)
    except RequestError as error:
        return str(error)
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        return f"{peft_type} fails in training on {architecture}: {error}"
    return trained(model, backbone.anatomy)


def row(peft_type: str) -> tuple[list[str], list[str]]:
    """The cells of a type, and the first reason why it does not train."""
    found = [probe(peft_type, architecture) for architecture in TINY_BACKBONES]
    where = next((one.parts for one in found if isinstance(one, Trained)), ())
    return [peft_type, ", ".join(where), *map(cell, found)], [one for one in found if isinstance(one, str)][:1]


def cell(found: Trained | str) -> str:
    """The cell of a type and an architecture."""
    return f"{found.parameters:,}" if isinstance(found, Trained) else "no"


def main() -> None:
    """Prints the table and the reasons."""
    warnings.simplefilter("ignore")
    rows, reasons = zip(*map(row, types()), strict=True)
    notes = [reason for several in reasons for reason in several]
    header = ["type", "trained in", *TINY_BACKBONES]
    print(to_markdown(ReportTable("types", header, list(rows), notes, prose=("trained in",))))


if __name__ == "__main__":
    main()
