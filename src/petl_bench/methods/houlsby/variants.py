"""Where the variants put their adapters."""

from __future__ import annotations

from dataclasses import dataclass


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
