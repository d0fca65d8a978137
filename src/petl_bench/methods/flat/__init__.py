"""FLAT: a side network that fuses the representations of all layers (Neural Networks 179, 2024, 106631)."""

from dataclasses import dataclass

from petl_bench.methods.registry import Method, register
from petl_bench.settings import setting


@dataclass
class FlatSettings:
    """Options of FLAT."""

    width: int | None = setting(
        None,
        "Width r of the side network. None: a sixteenth of the backbone's width, and at least 16 (48 for BERT-base).",
        search=[16, 32, 64, 128],
    )
    score: str = setting(
        "dot",
        "How a token weighs the layers. dot: its top state is the query. additive: each state scores "
        "itself. scalar: the same trained weights for all tokens, as in ELMo. uniform: the mean. last: only the "
        "top layer.",
        choices=("dot", "additive", "scalar", "uniform", "last"),
    )
    side: str = setting(
        "transformer",
        "What follows the fusion: transformer blocks, mlp blocks, or none.",
        choices=("transformer", "mlp", "none"),
    )
    num_blocks: int = setting(2, "Number of these blocks.")
    pool: str = setting("mean", "mean over the tokens, or cls (the first token).", choices=("mean", "cls"))
    include_embeddings: bool = setting(True, "Treat the embeddings as a layer.")
    dropout: float = setting(0.1, "Dropout in the blocks.")


register(
    Method(
        name="flat",
        summary="a side network that weighs all layers token by token; nothing enters the backbone",
        origin="reconstruction",
        settings=FlatSettings,
        peft_config="petl_bench.methods.flat.model:FlatConfig",
        tuner="petl_bench.methods.flat.model:FlatModel",
    )
)
