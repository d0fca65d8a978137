"""PEFT config of bottleneck adapters, and where their variants are placed."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftType
from transformers.activations import ACT2FN

from petl_bench.methods.base import LayerwiseConfig
from petl_bench.methods.bottleneck import INITIALISATIONS


@dataclass(frozen=True)
class Variant:
    """One placement of bottleneck adapters.

    Attributes:
        roles: Parts of a layer, by their names in the anatomy table, that are wrapped.
        trains_norms: Whether the backbone's norms are trained where the user does not say.
        source: Where this placement was read.
    """

    roles: tuple[str, ...]
    trains_norms: bool
    source: str


VARIANTS = {
    "houlsby": Variant(
        roles=("attention_end", "feed_forward_end"),
        trains_norms=True,
        source="Houlsby et al., ICML 2019, section 2.1; google-research/adapter-bert",
    ),
    "pfeiffer": Variant(
        roles=("last_norm",), trains_norms=False, source="Pfeiffer et al., EACL 2021; SeqBnConfig of adapters 1.3.0"
    ),
    "parallel": Variant(
        roles=("feed_forward_in", "feed_forward_end"),
        trains_norms=False,
        source="He et al., ICLR 2022, section 3.3; ParBnConfig of adapters 1.3.0",
    ),
}


@dataclass
class HoulsbyConfig(LayerwiseConfig):
    """Configuration of a `HoulsbyModel`.

    Args:
        bottleneck: Width m of the adapters; the paper uses 8, 64 and 256.
        variant: `houlsby` (two serial adapters a layer), `pfeiffer` (one serial adapter a layer, between the norms of
            the feed-forward network) or `parallel` (one beside the feed-forward network).
        activation: An activation of transformers' table, or `model` for the backbone's own. The authors' code uses the
            tanh approximation of GELU.
        init: `truncated_normal` (cut at two standard deviations, the paper), `normal`, or `lora` (zero up-projection).
        init_std: Standard deviation of the weights; the paper's main runs use 0.01, the authors' code starts at 0.001.
        scale: Factor on the adapter's output; He et al. (2022) use 4 for `parallel`.
        train_layernorm: Whether the backbone's norms are trained too. None: as the variant has it (`houlsby` only).
    """

    bottleneck: int = field(default=64, metadata={"help": "Width of the adapters."})
    variant: str = field(default="houlsby", metadata={"help": "houlsby, pfeiffer or parallel."})
    activation: str = field(default="gelu_pytorch_tanh", metadata={"help": "Activation, or `model`."})
    init: str = field(default="truncated_normal", metadata={"help": "truncated_normal, normal or lora."})
    init_std: float = field(default=0.01, metadata={"help": "Standard deviation of the weights at the start."})
    scale: float = field(default=1.0, metadata={"help": "Factor on the adapter's output."})
    train_layernorm: bool | None = field(default=None, metadata={"help": "Train the norms; None: by variant."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Registers the type, in whatever order things were imported.
        from petl_bench.methods.houlsby import model  # noqa: F401

        self.peft_type = PeftType("HOULSBY")
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck={self.bottleneck} must be at least 1")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant} must be one of {', '.join(VARIANTS)}")
        if self.init not in INITIALISATIONS:
            raise ValueError(f"init={self.init} must be one of {', '.join(INITIALISATIONS)}")
        if self.activation != "model" and self.activation not in ACT2FN:
            raise ValueError(f"activation={self.activation} is neither `model` nor in transformers' table")
        if not self.init_std > 0:
            raise ValueError(f"init_std={self.init_std} must be greater than 0")
        if self.train_layernorm is None:
            self.train_layernorm = VARIANTS[self.variant].trains_norms
        if self.train_layernorm and self.variant == "pfeiffer":
            raise ValueError("variant=pfeiffer adapts the norms themselves, so train_layernorm must be false")
