"""The rows and columns of the behaviour suite: a new method joins by a row in METHODS."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from composed import composed
from petl_bench.backbones.anatomy import Anatomy
from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.catalog import TINY_BACKBONES
from petl_bench.testing import LABELS, Subject, batch, logits, repetitive_batch, train, trainable

__all__ = ["LABELS", "batch", "logits", "repetitive_batch", "train", "trainable"]

ARCHITECTURES = list(TINY_BACKBONES)
# What one layer gains, as (role in the anatomy table, names inside that part).
Parts = dict[str, tuple[str, ...]]
LINEAR = ("weight", "bias")


def inside(prefix: str, *modules: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.default.{module}.{kind}" for module in modules for kind in LINEAR)


ADAPTER = inside("houlsby_adapter", "down", "up")
UNITS = tuple(f"fl_tuning_units.default.{kind}" for kind in LINEAR)


@dataclass(frozen=True)
class Row:
    """One method of the suite.

    Attributes:
        overrides: What chooses it.
        parts: Names that every layer gains, by role; None where another test holds the names.
        trains_norms: Whether all norms of the encoder are trained.
        merges: Whether `merge_and_unload` is exact.
        not_on: Architectures it refuses.
        blocked: Whether a trainable parameter may stay where it is in three steps, by name.
        own: Whether it is a tuner of ours.
    """

    overrides: list[str]
    parts: Parts | None = None
    trains_norms: bool = False
    merges: bool = False
    not_on: tuple[str, ...] = ()
    blocked: Callable[[str], bool] = field(default=lambda _: False)
    own: bool = True


METHODS = {
    "head": Row(["method=head"], {}, merges=True, own=False),
    "head_pooler": Row(["method=head", "method.pooler=true"], None, merges=True, own=False),
    "lora": Row(
        ["method=lora"],
        dict.fromkeys(("query", "value"), ("lora_A.default.weight", "lora_B.default.weight")),
        merges=True,
        own=False,
    ),
    "ia3": Row(["method=peft", "method.type=IA3"], None, own=False),
    "loha": Row(["method=peft", "method.type=LOHA", "+method.args.r=2"], None, own=False),
    "adalora": Row(["method=peft", "method.type=ADALORA"], None, own=False, blocked=lambda name: "ranknum" in name),
    # The key bias cancels in the softmax over keys; DeBERTa's positions use it.
    "bitfit": Row(
        ["method=bitfit"],
        None,
        merges=True,
        not_on=("modernbert",),
        blocked=lambda name: "key" in name or "k_lin" in name or ".attn.k." in name,
    ),
    "houlsby": Row(["method=houlsby"], {"attention_end": ADAPTER, "feed_forward_end": ADAPTER}, trains_norms=True),
    "pfeiffer": Row(["method=houlsby", "method.variant=pfeiffer"], {"last_norm": ADAPTER}, not_on=("modernbert",)),
    "parallel": Row(["method=houlsby", "method.variant=parallel"], {"feed_forward_end": ADAPTER}),
    "prefix": Row(
        ["method=prefix", "method.length=5", "method.dropout=0"],
        {"self_attention": ("prefix_key.default", "prefix_value.default")},
    ),
    "prefix_mlp": Row(["method=prefix", "method.length=5", "method.mlp_hidden=16", "method.dropout=0"], None),
    "fl_tuning": Row(
        ["method=fl_tuning", "method.units=12"], {"feed_forward_in": UNITS, "feed_forward_out": UNITS}, merges=True
    ),
    "coda": Row(["method=coda"], {"": (*inside("coda_adapter", "down", "up"), "coda_router.default")}),
    "coda_plain": Row(["method=coda", "method.reduction=1"], {"": inside("coda_adapter", "down", "up")}),
    "coda_k2all": Row(
        ["method=coda", "method.attention=k2all"],
        {"": (*inside("coda_adapter", "down", "up"), "coda_router.default")},
        not_on=("deberta-v2", "mpnet", "modernbert"),
    ),
    "coda_iterative": Row(["method=coda", "method.solver=iterative"], None),
    "coda_random": Row(["method=coda", "method.router=random"], {"": inside("coda_adapter", "down", "up")}),
    "flat": Row(["method=flat"], None),
    "flat_scalar": Row(["method=flat", "method.score=scalar", "method.side=none"], None),
    "lst": Row(["method=lst"], None),
}
# Where one method's rows differ in a setting alone, three unlike architectures stand for all.
VARIANTS = ("head_pooler", "loha", "prefix_mlp", "coda_plain", "coda_iterative", "coda_random", "flat_scalar")
UNLIKE = ("bert", "deberta-v2", "modernbert")
# XLM-R's layers are RoBERTa's, so one method for each place where methods act shows that its row fits.
ON_XLM_R = ("lora", "houlsby", "prefix", "coda", "flat")
OWN = [name for name, row in METHODS.items() if row.own]
MATRIX = [
    (name, arch)
    for name, row in METHODS.items()
    for arch in (UNLIKE if name in VARIANTS else ARCHITECTURES)
    if arch not in row.not_on and (arch != "xlm-roberta" or name in ON_XLM_R)
]
OWN_MATRIX = [(name, arch) for name, arch in MATRIX if METHODS[name].own]


def half(pairs: list[tuple[str, str]], turn: int) -> list[Any]:
    """The pairs as parameters, of which every second one is slow, like the squares of a chessboard.

    In one behaviour each method meets half of the architectures, and in the behaviours of the other turn the others.

    Args:
        pairs: A method and something else, such as an architecture.
        turn: 0 or 1.
    """
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    is_quick = [(rows.index(row) + columns.index(column) + turn) % 2 == 0 for row, column in pairs]
    return [
        pytest.param(*pair, marks=[] if quick else [pytest.mark.slow])
        for pair, quick in zip(pairs, is_quick, strict=True)
    ]


def two_layers(architecture: str) -> str:
    """One that reads the embeddings and one that reads a layer; ModernBERT's have two kinds of attention."""
    return f"backbone.architecture.{'n_layers' if architecture == 'distilbert' else 'num_hidden_layers'}=2"


@functools.cache
def opened(architecture: str, *overrides: str):
    cfg = composed("task=smoke", f"backbone={TINY_BACKBONES[architecture]}", *overrides)
    return cfg, open_backbone(cfg.backbone, cfg.layers)


# Building, adapting and copying take longer than most tests. The models that are shared must be left as they are.
@functools.cache
def shared_plain(architecture: str, *overrides: str) -> torch.nn.Module:
    return Subject(*opened(architecture, *overrides)).plain


@functools.cache
def subject(method: str, architecture: str, *overrides: str) -> Subject:
    """What the checks of `petl_bench.testing` take."""
    # A model without the method is the same for all of them, but for settings of the backbone and the layers.
    of_backbone = [one for one in overrides if one.lstrip("+").startswith(("backbone", "layers"))]
    plain = shared_plain(architecture, *of_backbone)
    return Subject(*opened(architecture, *METHODS[method].overrides, *overrides), plain)


def shared_adapted(method: str, architecture: str, *overrides: str) -> torch.nn.Module:
    return subject(method, architecture, *overrides).fresh


def shared_trained(method: str, architecture: str, *overrides: str) -> torch.nn.Module:
    """An adapted model after three updates."""
    return subject(method, architecture, *overrides).learned


# A copy is independent, as a test says.
def plain_model(architecture: str, *overrides: str) -> torch.nn.Module:
    return copy.deepcopy(shared_plain(architecture, *overrides))


def adapted(method: str, architecture: str, *overrides: str) -> tuple[torch.nn.Module, Backbone]:
    one = subject(method, architecture, *overrides)
    return one.adapted(), one.backbone


def trained(method: str, architecture: str, *overrides: str) -> tuple[torch.nn.Module, Backbone]:
    one = subject(method, architecture, *overrides)
    return one.trained(), one.backbone


def expected_names(method: str, anatomy: Anatomy, model: torch.nn.Module, plain: torch.nn.Module) -> set[str] | None:
    """Trainable names outside the head, from the anatomy table, the row and the model without the method."""
    row = METHODS[method]
    if row.parts is None:
        return None
    num_layers = anatomy.num_layers(model.config)
    names = set()
    for layer in range(num_layers):
        for role, inner in row.parts.items():
            part = f".{getattr(anatomy, role)}" if role else ""
            names |= {f"base_model.model.{anatomy.layers}.{layer}{part}.{name}" for name in inner}
    if getattr(model.config, "classifier_pooling", "cls") == "cls":
        # The head reads the first token alone, whatever CoDA's last router would choose.
        names.discard(f"base_model.model.{anatomy.layers}.{num_layers - 1}.coda_router.default")
    bias = any(name.endswith(f"{anatomy.feed_forward_in}.base_layer.bias") for name, _ in model.named_parameters())
    if "feed_forward_in" in row.parts and not bias:
        names = {name for name in names if not name.endswith("bias")}
    if row.trains_norms:
        for name, module in plain.named_modules():
            if "LayerNorm" in type(module).__name__ and not anatomy.in_head(name):
                kinds = [kind for kind, _ in module.named_parameters()]
                names |= {f"base_model.model.{name}.modules_to_save.default.{kind}" for kind in kinds}
    return names
