"""The record of a run: one JSON object, typed and versioned; `None` where something was not measured, never 0.

Units are in the names. Fields are only ever added: records of an older version stay readable.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from petl_bench.records.migrate import SCHEMA_VERSION, migrated
from petl_bench.records.open_parts import check_open_parts
from petl_bench.records.typed import build, check


@dataclass
class Protocol:
    """What was asked and how it was scored."""

    task: str
    metric: str
    higher_is_better: bool
    selection_split: str
    report_split: str
    selection: str
    num_train_examples: int
    num_eval_examples: int
    max_length: int
    seed: int
    precision: str
    attention_implementation: str | None
    batching: str


@dataclass
class Params:
    """Numbers of parameters; see `petl_bench.model`."""

    total: int
    backbone: int
    trainable: int
    trainable_method: int
    trainable_head: int
    trainable_share_of_backbone_percent: float
    stored_bytes: int | None = None


@dataclass
class Scores:
    """Scores on the report split: of the best weights (chosen on the selection split) and of the last."""

    best: dict[str, float]
    last: dict[str, float]
    best_epoch: float


@dataclass
class HistoryEntry:
    """One evaluation on the selection split."""

    epoch: float
    step: int
    train_loss: float
    scores: dict[str, float]
    seconds: float


@dataclass
class Time:
    """Where the time went; training excludes evaluation, and its rates the first updates, which warm up."""

    train_seconds: float
    eval_seconds: float
    features_seconds: float | None
    train_examples_per_second: float
    train_tokens_per_second: float
    padding_share: float
    # First updates that the rates leave out, and how long they took.
    warm_up_updates: int = 0
    warm_up_seconds: float = 0.0


@dataclass
class MemoryAtPeak:
    """What each kind of memory held when a training step's memory was highest; they sum to the peak."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    temporaries_bytes: int


@dataclass
class MemoryEstimate:
    """Memory of one training step by kind, each kind at its own most; docs/measuring.md defines them.

    `temporaries_bytes` is what was there at the peak beside the other kinds.
    """

    batch_size: int
    sequence_length: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    temporaries_bytes: int
    peak_bytes: int
    # Passes that the rows of an update were split into.
    accumulation: int = 1
    # forward, backward or optimizer
    peak_phase: str | None = None
    at_peak: MemoryAtPeak | None = None
    # Whose kernels were counted, and which of them did the attention.
    device: str | None = None
    attention_kernel: str | None = None


@dataclass
class DeviceMemory:
    """Peaks of the CUDA allocator by phase; training's first updates, which warm up, are a phase of their own.

    `held_before_bytes` is what the device held before the run beside our own allocator: other processes, and the
    CUDA context.
    """

    load_peak_allocated_bytes: int | None
    train_peak_allocated_bytes: int | None
    train_peak_reserved_bytes: int | None
    eval_peak_allocated_bytes: int | None
    alloc_retries: int
    load_peak_reserved_bytes: int | None = None
    first_updates_peak_allocated_bytes: int | None = None
    first_updates_peak_reserved_bytes: int | None = None
    eval_peak_reserved_bytes: int | None = None
    held_before_bytes: int | None = None


@dataclass
class Memory:
    """Memory: the ledger's account, the device's peaks, the process's peak."""

    estimate: MemoryEstimate | None = None
    device: DeviceMemory | None = None
    process_peak_rss_bytes: int | None = None


@dataclass
class Flops:
    """Floating-point operations at the ledger's batch shape; `merged`: the adapter was merged for inference."""

    train_step_flops: int
    inference_flops: int
    merged: bool = False


@dataclass
class Inference:
    """Speed of the finished model: latency of one row, throughput at `batch_size` rows, medians over repeats.

    `merged`: the adapter was merged into the weights before.
    """

    batch_size: int
    sequence_length: int
    latency_ms_median: float
    examples_per_second: float
    latency_ms_quartiles: list[float] | None = None
    examples_per_second_quartiles: list[float] | None = None
    repeats: int | None = None
    merged: bool = False


@dataclass
class FrozenFeatures:
    """The frozen layers below all that is trained, and their states, which every epoch reads.

    `layers` counts them, from the embeddings up; `states` is how many a token has; `reused`: they were there before the
    run.
    """

    layers: int
    states: int
    first_token_only: bool
    # memory, disk, or off: computed with every batch
    cache: str
    bytes: int
    reused: bool


@dataclass
class Data:
    """The rows that were used."""

    dataset: str
    revision: str | None
    fingerprint: str
    rows_per_split: dict[str, int]


@dataclass
class Layers:
    """The layers that were adapted (1-based), and how they were chosen where a rule chose them.

    `variability` is the metric of layers 1..L over `num_examples` training rows, `variability_shuffled` the same with
    shuffled labels: what a layer scores that knows nothing of the classes; None stands for infinity.
    """

    bottom: int
    top: int
    head: int
    num_layers: int
    variability: list[float | None] | None = None
    variability_shuffled: list[float | None] | None = None
    num_examples: int | None = None


@dataclass
class Record:
    """Everything that is kept of a run."""

    run_key: str
    config: dict[str, Any]
    schema_version: int = SCHEMA_VERSION
    # finished, failed, out_of_memory, diverged or interrupted
    status: str = "finished"
    error: str | None = None
    protocol: Protocol | None = None
    layers: Layers | None = None
    frozen: FrozenFeatures | None = None
    params: Params | None = None
    scores: Scores | None = None
    history: list[HistoryEntry] = field(default_factory=list)
    time: Time | None = None
    memory: Memory | None = None
    flops: Flops | None = None
    inference: Inference | None = None
    data: Data | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    # Updates after which the training was cut off and went on in another process; times are the parts' sums.
    resumed_at_updates: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON, numbers that are not finite as None."""
        return finite(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Record:
        """Reads what `to_dict` wrote; unknown fields (of a newer version) are left out.

        Raises:
            ValueError: where a field is missing or of another type, which it names; where the version is newer than
                this program's.
        """
        check(dict, content, "")
        content = migrated(content)
        try:
            record: Record = build(cls, content)
            scored = None not in (record.protocol, record.scores)
            check_open_parts(record.config, record.hardware, scored=scored)
        except ValueError as error:
            raise ValueError(f"not a record: {error}") from error
        return record

    @property
    def selected_scores(self) -> dict[str, float]:
        """Scores of the weights that the protocol selects; empty where there are none."""
        if self.scores is None or self.protocol is None:
            return {}
        return self.scores.best if self.protocol.selection == "best" else self.scores.last


def finite(value: Any) -> Any:
    """Plain containers with numbers that are not finite as None, which JSON needs."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value
