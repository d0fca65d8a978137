"""Where the parts of each architecture are, and which of its layers are adapted. A new architecture is a new row.

The rows are those in this table and those that other packages add (entry-point group `petl_bench.architectures`).

Names are those of transformers 5's `AutoModelForSequenceClassification` classes, and `Anatomy.as_tagger` gives those of
`AutoModelForTokenClassification`. Paths within a layer are relative to the layer; all others start at the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.process import load_plugins
from petl_bench.settings import setting

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of one architecture are.

    Attributes:
        model_type: The `model_type` of the transformers config.
        encoder: The base model.
        embeddings: Everything below the first layer.
        layers: The list of layers.
        self_attention: The module that computes attention.
        query, key, value: Attention's input projections; the same name three times where they are fused.
        attention_output: Attention's output projection.
        attention_end: The last module that attention's output passes before it is added to the layer's input.
        feed_forward_in, feed_forward_out: The feed-forward pair.
        feed_forward_end: The last module that its output passes before it is added to its input.
        norms: The norms of a layer.
        above_layers: Backbone modules between the last layer and the head (final norm, pretrained pooler).
        head: The modules of the task, which are always trained.
        pretrained_head: Modules of the head that come with the pretrained weights; all others are newly initialised.
        pooler: The pretrained dense layer on the first token's state, if it is not part of the head.
        num_layers_key: Name of the number of layers in the config.
        feed_forward_size_key: Name of the width of the feed-forward network in the config.
        activation_key: Name of the feed-forward network's activation in the config.
        gated: Whether the feed-forward network has gates: `feed_forward_in` then computes units and gates together.
        norm_first: Whether the norms come before attention and the feed-forward network, not after the sums.
        relative_positions: Whether attention adds a term for the distance between two tokens to their score.
        positions_after_padding: Whether positions are numbered from `pad_token_id + 1`, not from 0.
        is_tagger: Whether the head classifies every token, not the sequence.
    """

    model_type: str
    encoder: str
    embeddings: tuple[str, ...]
    layers: str
    self_attention: str
    query: str
    key: str
    value: str
    attention_output: str
    attention_end: str
    feed_forward_in: str
    feed_forward_out: str
    feed_forward_end: str
    norms: tuple[str, ...]
    head: tuple[str, ...]
    above_layers: tuple[str, ...] = ()
    pretrained_head: tuple[str, ...] = ()
    pooler: str | None = None
    num_layers_key: str = "num_hidden_layers"
    feed_forward_size_key: str = "intermediate_size"
    activation_key: str = "hidden_act"
    gated: bool = False
    norm_first: bool = False
    relative_positions: bool = False
    positions_after_padding: bool = False
    is_tagger: bool = False

    def as_tagger(self) -> Anatomy:
        """The same architecture with a head that classifies every token: a linear layer, without a pooler."""
        above = tuple(module for module in self.above_layers if module != self.pooler)
        head = (*self.pretrained_head, self.head[-1])
        return replace(self, above_layers=above, head=head, pooler=None, is_tagger=True)

    @property
    def fresh_head(self) -> tuple[str, ...]:
        """Modules of the head that every run initialises anew, from its seed."""
        return tuple(module for module in self.head if module not in self.pretrained_head)

    @property
    def last_norm(self) -> str:
        """The last of a layer's norms."""
        return self.norms[-1]

    def num_layers(self, config: Any) -> int:
        """Number of layers that a transformers config (or a dict of its arguments) describes."""
        return int(config[self.num_layers_key] if isinstance(config, dict) else getattr(config, self.num_layers_key))

    def max_length(self, config: Any) -> int:
        """The largest number of tokens that the model accepts in one sequence."""
        positions = int(config.max_position_embeddings)
        return positions - config.pad_token_id - 1 if self.positions_after_padding else positions

    def layer_pattern(self, layers: Iterable[int], roles: Iterable[str]) -> str:
        """A regular expression for `target_modules` that matches exactly these parts of these layers (1-based).

        It works for the bare encoder and for the model with its head. Without roles it matches the layers themselves.
        """
        indices = "|".join(str(layer - 1) for layer in layers)
        paths = dict.fromkeys(getattr(self, role) for role in roles)
        parts = "|".join(re.escape(path) for path in paths)
        return rf"{self._layers_pattern}\.({indices})" + (rf"\.({parts})" if parts else "")

    def layer_number(self, name: str) -> int | None:
        """The 1-based layer that a parameter or module of this name belongs to; None outside the layers."""
        match = re.match(rf"{self._layers_pattern}\.(\d+)(\.|$)", name)
        return int(match.group(1)) + 1 if match else None

    def is_role(self, name: str, role: str) -> bool:
        """Whether the module of this name plays this role in its layer."""
        return re.fullmatch(rf"{self._layers_pattern}\.\d+\.{re.escape(getattr(self, role))}", name) is not None

    @property
    def _layers_pattern(self) -> str:
        inside = self.layers.removeprefix(f"{self.encoder}.")
        return rf"(?:{re.escape(self.encoder)}\.)?{re.escape(inside)}"

    def in_head(self, name: str) -> bool:
        """Whether a parameter or module of this name belongs to the head, in a plain or a PEFT-wrapped model."""
        wrapped = name.removeprefix("module.").removeprefix("base_model.")
        return any(is_within(plain, self.head) for plain in (wrapped, wrapped.removeprefix("model.")))

    def get_layers(self, model: nn.Module) -> nn.ModuleList:
        """The list of layers of a model with its head, or of the bare encoder."""
        path = self.layers if hasattr(model, self.encoder) else self.layers.removeprefix(f"{self.encoder}.")
        layers: nn.ModuleList = model.get_submodule(path)  # type: ignore[assignment]
        return layers


PROJECTION_ROLES = ("query", "key", "value", "attention_output", "feed_forward_in", "feed_forward_out")


def classifier_of(model: nn.Module) -> Any:
    """The backbone with its head, without PEFT's wrapper if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def is_within(name: str, modules: Iterable[str]) -> bool:
    """Whether `name` is one of these modules or lies inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _bert_like(model_type: str, encoder: str, **parts: Any) -> Anatomy:
    """A row for the architectures whose layers are laid out like BERT's."""
    row: dict[str, Any] = {
        "embeddings": (f"{encoder}.embeddings",),
        "layers": f"{encoder}.encoder.layer",
        "self_attention": "attention.self",
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_end": "attention.output.dropout",
        "feed_forward_in": "intermediate.dense",
        "feed_forward_out": "output.dense",
        "feed_forward_end": "output.dropout",
        "norms": ("attention.output.LayerNorm", "output.LayerNorm"),
        "head": ("classifier",),
    }
    return Anatomy(model_type=model_type, encoder=encoder, **(row | parts))


_ROWS = (
    _bert_like("bert", "bert", above_layers=("bert.pooler",), pooler="bert.pooler"),
    _bert_like("roberta", "roberta", positions_after_padding=True),
    _bert_like("xlm-roberta", "roberta", positions_after_padding=True),
    _bert_like("electra", "electra", embeddings=("electra.embeddings", "electra.embeddings_project")),
    Anatomy(
        model_type="distilbert",
        encoder="distilbert",
        embeddings=("distilbert.embeddings",),
        layers="distilbert.transformer.layer",
        self_attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        # There is no dropout after attention.
        attention_end="attention.out_lin",
        feed_forward_in="ffn.lin1",
        feed_forward_out="ffn.lin2",
        feed_forward_end="ffn.dropout",
        norms=("sa_layer_norm", "output_layer_norm"),
        head=("pre_classifier", "classifier"),
        num_layers_key="n_layers",
        feed_forward_size_key="hidden_dim",
        activation_key="activation",
    ),
    _bert_like(
        "deberta-v2",
        "deberta",
        # The relative-position table and its norm are shared by all layers.
        embeddings=("deberta.embeddings", "deberta.encoder.rel_embeddings", "deberta.encoder.LayerNorm"),
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        head=("pooler", "classifier"),
        relative_positions=True,
    ),
    _bert_like(
        "mpnet",
        "mpnet",
        # All layers share the biases for relative distances.
        embeddings=("mpnet.embeddings", "mpnet.encoder.relative_attention_bias"),
        self_attention="attention.attn",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_output="attention.attn.o",
        attention_end="attention.dropout",
        norms=("attention.LayerNorm", "output.LayerNorm"),
        relative_positions=True,
        positions_after_padding=True,
    ),
    Anatomy(
        model_type="modernbert",
        encoder="model",
        embeddings=("model.embeddings",),
        layers="model.layers",
        self_attention="attn",
        query="attn.Wqkv",
        key="attn.Wqkv",
        value="attn.Wqkv",
        attention_output="attn.Wo",
        attention_end="attn.out_drop",
        feed_forward_in="mlp.Wi",
        feed_forward_out="mlp.Wo",
        # Its dropout comes before the projection.
        feed_forward_end="mlp.Wo",
        norms=("attn_norm", "mlp_norm"),
        above_layers=("model.final_norm",),
        head=("head", "classifier"),
        # The head of its masked language model, without the decoder.
        pretrained_head=("head",),
        activation_key="hidden_activation",
        gated=True,
        norm_first=True,
    ),
)

_ANATOMIES = {row.model_type: row for row in _ROWS}
_plugins_are_loaded = False


def all_anatomies() -> dict[str, Anatomy]:
    """Returns every row by its `model_type`."""
    global _plugins_are_loaded
    if not _plugins_are_loaded:
        # Set before the imports, as an imported plugin may call this function itself.
        _plugins_are_loaded = True
        load_plugins("petl_bench.architectures", "architecture", _add_plugin)
    return _ANATOMIES


def _add_plugin(row: Any) -> None:
    if not isinstance(row, Anatomy):
        raise TypeError(f"it is no Anatomy but {type(row).__name__}")
    if row.model_type in _ANATOMIES:
        raise ValueError(f"there is a row for {row.model_type} already")
    _ANATOMIES[row.model_type] = row


def anatomy_of(model_type: str) -> Anatomy:
    """Returns the row for a `model_type`.

    Raises:
        RequestError: If the table has no such row.
    """
    rows = all_anatomies()
    if model_type not in rows:
        raise unknown_choice("backbone.model_type", model_type, rows)
    return rows[model_type]


LAYER_PLANS = ("all", "top", "window", "variability")

STRATEGIES = ("prefix", "window", "window_top_head", "top")


@dataclass
class LayersConfig:
    """Which layers are adapted and where the head sits; layers are numbered 1..L."""

    name: str = "all"
    k: int | None = setting(None, "layers=top: how many layers are adapted. layers=variability: width of the windows.")
    bottom: int | None = setting(None, "layers=window: the lowest adapted layer, counted from 1.")
    top: int | None = setting(None, "layers=window: the highest adapted layer.")
    head: int | None = setting(
        None, "layers=window: the layer that the head reads, above which none is loaded; null: the highest adapted one."
    )
    strategy: str | None = setting(
        None,
        "layers=variability: what is adapted around the best layer l*. prefix: layers 1..l*, head at l*. window: the k "
        "layers up to l*, head at l*. window_top_head: the same, head on top. top: as many uppermost layers as prefix "
        "adapts (the baseline).",
        choices=STRATEGIES,
    )
    num_examples: int | None = setting(
        None,
        "layers=variability: training rows that are looked at, drawn at random; null: all. Values are comparable only "
        "between runs with the same number of rows.",
    )
    num_bins: int | None = setting(
        None,
        "layers=variability: regression rows are put into so many classes of equal size by their target (ours; the "
        "paper does not say).",
    )


@dataclass(frozen=True)
class LayerPlan:
    """Resolved layers: `bottom..top` are adapted, the head reads layer `head` (all 1-based, inclusive)."""

    bottom: int
    top: int
    head: int
    num_layers: int

    @property
    def everything(self) -> bool:
        """Whether the whole backbone is adapted, embeddings included."""
        return (self.bottom, self.top, self.head) == (1, self.num_layers, self.num_layers)

    @property
    def adapted(self) -> range:
        """The adapted layers, 1-based."""
        return range(self.bottom, self.top + 1)


def resolve_layers(layers: LayersConfig, num_layers: int) -> LayerPlan:
    """Turns the settings into a plan for an encoder of `num_layers` layers.

    Raises:
        RequestError: If the plan does not fit the encoder.
    """
    if layers.name not in LAYER_PLANS:
        raise unknown_choice("layers", layers.name, LAYER_PLANS)
    if layers.name == "all":
        return LayerPlan(1, num_layers, num_layers, num_layers)
    if layers.name == "top":
        if layers.k is None or not 1 <= layers.k <= num_layers:
            raise RequestError(f"layers.k={layers.k} must lie in 1..{num_layers}, the layers of this backbone.")
        return LayerPlan(num_layers - layers.k + 1, num_layers, num_layers, num_layers)
    if layers.name == "variability":
        raise RequestError("layers=variability is chosen by a task's rows: use layers=window if there are none.")
    if layers.bottom is None or layers.top is None:
        raise RequestError("layers=window needs layers.bottom and layers.top.")
    head = layers.top if layers.head is None else layers.head
    if not 1 <= layers.bottom <= layers.top <= head <= num_layers:
        raise RequestError(
            f"layers.bottom={layers.bottom} layers.top={layers.top} layers.head={head} must satisfy "
            f"1 <= bottom <= top <= head <= {num_layers}, the layers of this backbone."
        )
    return LayerPlan(layers.bottom, layers.top, head, num_layers)


def layer_window(layers: LayersConfig, best: int, num_layers: int) -> LayersConfig:
    """The window that a strategy derives from the best layer l* (1-based)."""
    width = min(layers.k or best, best)
    bottom, top, head = {
        "prefix": (1, best, best),
        "window": (best - width + 1, best, best),
        "window_top_head": (best - width + 1, best, num_layers),
        "top": (num_layers - best + 1, num_layers, num_layers),
    }[layers.strategy or "prefix"]
    return LayersConfig(name="window", bottom=bottom, top=top, head=head)


def check_variability(layers: LayersConfig) -> None:
    """Raises RequestError if a setting of `layers=variability` is out of range."""
    if layers.strategy not in STRATEGIES:
        raise unknown_choice("layers.strategy", layers.strategy, STRATEGIES)
    if (layers.num_bins or 0) < 2:
        raise RequestError(f"layers.num_bins={layers.num_bins} must be at least 2.")
    if layers.k is not None and layers.k < 1:
        raise RequestError(f"layers.k={layers.k} must be at least 1.")
    if layers.num_examples is not None and layers.num_examples < 2:
        raise RequestError(f"layers.num_examples={layers.num_examples} must be at least 2.")
