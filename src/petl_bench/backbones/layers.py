"""Which layers are adapted and where the head sits: settings, and the plan that they come to."""

from __future__ import annotations

from dataclasses import dataclass

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.records.schema import Layers

LAYER_PLANS = ("all", "top", "window", "variability")

STRATEGIES = ("prefix", "window", "window_top_head", "top")


@dataclass
class LayersConfig:
    """Which layers are adapted and where the head sits; layers are numbered 1..L."""

    name: str = "all"
    k: int | None = None
    bottom: int | None = None
    top: int | None = None
    head: int | None = None
    # Of layers=variability: conf/layers/variability.yaml says what each means.
    strategy: str | None = None
    num_examples: int | None = None
    num_bins: int | None = None


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
        RequestError: for a plan that does not fit the encoder.
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


def place(layers: LayersConfig, best: int, num_layers: int) -> LayersConfig:
    """The window that a strategy makes of the best layer l* (1-based)."""
    width = min(layers.k or best, best)
    bottom, top, head = {
        "prefix": (1, best, best),
        "window": (best - width + 1, best, best),
        "window_top_head": (best - width + 1, best, num_layers),
        "top": (num_layers - best + 1, num_layers, num_layers),
    }[layers.strategy or "prefix"]
    return LayersConfig(name="window", bottom=bottom, top=top, head=head)


def check_variability(layers: LayersConfig) -> None:
    """Raises RequestError for a setting of `layers=variability` out of its range."""
    if layers.strategy not in STRATEGIES:
        raise unknown_choice("layers.strategy", layers.strategy, STRATEGIES)
    if (layers.num_bins or 0) < 2:
        raise RequestError(f"layers.num_bins={layers.num_bins} must be at least 2.")
    if layers.k is not None and layers.k < 1:
        raise RequestError(f"layers.k={layers.k} must be at least 1.")
    if layers.num_examples is not None and layers.num_examples < 2:
        raise RequestError(f"layers.num_examples={layers.num_examples} must be at least 2.")


def extreme_plans(layers: LayersConfig, num_layers: int) -> list[LayersConfig]:
    """The plans that `layers` comes to with the lowest and the highest layer chosen, and the lowest at full width.

    A plan that does not depend on rows is returned as it is.

    Raises:
        RequestError: for a setting out of its range.
    """
    if layers.name != "variability":
        return [layers]
    check_variability(layers)
    widest = min(layers.k or num_layers, num_layers)
    choices = {1, widest, num_layers} if layers.strategy == "window_top_head" else {1, num_layers}
    return [place(layers, best, num_layers) for best in sorted(choices)]


def resolved_layers(layers: LayersConfig, record: Layers | None) -> LayersConfig:
    """The plan of a finished run, without looking at rows again."""
    if record is None or layers.name != "variability":
        return layers
    return LayersConfig(name="window", bottom=record.bottom, top=record.top, head=record.head)
