"""Settings of a backbone and of the layers that are adapted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from petl_bench.errors import RequestError, unknown_choice

WEIGHTS = ("pretrained", "random")
ATTENTION = ("eager", "sdpa")
LAYER_PLANS = ("all", "top", "window", "variability")
STRATEGIES = ("prefix", "window", "window_top_head", "top")


@dataclass
class BackboneConfig:
    """A pretrained encoder: where its files are and what shape it has."""

    name: str = MISSING
    model_type: str = MISSING
    hub_id: str | None = None
    revision: str | None = None
    # A Python package that ships the model's files, and the folder inside it.
    package: str | None = None
    package_folder: str = ""
    # Of model.safetensors; checked at load.
    sha256: str | None = None
    # A local folder in the Hugging Face format; takes the place of hub_id and package.
    path: str | None = None
    weights: str = "pretrained"
    # eager or sdpa; null: what transformers chooses for this architecture.
    attention: str | None = None
    # Arguments of the transformers config class, so that the model can be built without weights.
    architecture: dict[str, Any] = field(default_factory=dict)


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
        raise RequestError("layers=variability is chosen by a task's rows: use layers=window where there are none.")
    if layers.bottom is None or layers.top is None:
        raise RequestError("layers=window needs layers.bottom and layers.top.")
    head = layers.top if layers.head is None else layers.head
    if not 1 <= layers.bottom <= layers.top <= head <= num_layers:
        raise RequestError(
            f"layers.bottom={layers.bottom} layers.top={layers.top} layers.head={head} must satisfy "
            f"1 <= bottom <= top <= head <= {num_layers}, the layers of this backbone."
        )
    return LayerPlan(layers.bottom, layers.top, head, num_layers)
