"""The record of a run.

A record is one JSON object, typed and versioned. Field names contain the units. Values that were not measured are
`None`, never 0. Within a schema version, fields are only added; `petl_bench.records.reading` reads older versions.
"""

from __future__ import annotations

import dataclasses
import reprlib
from dataclasses import dataclass, field
from typing import Any

from petl_bench.process import name_fault
from petl_bench.records.predictions import Ood, Tagging
from petl_bench.records.reading import (
    SCHEMA_VERSION,
    Number,
    PartialConfig,
    RecordedConfig,
    RecordedHardware,
    check_hash,
    corrected,
    finite,
    migrated,
    validate,
)


@dataclass
class RunProtocol:
    """The protocol of a run: the data for training, selection and scoring."""

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

    def selected(self, scores: list[float]) -> float:
        """Returns the score of the selected weights, given the scores of all evaluations in order."""
        if self.selection != "best":
            return scores[-1]
        return max(scores) if self.higher_is_better else min(scores)


@dataclass
class Params:
    """Numbers of parameters; see `petl_bench.model`."""

    total: int
    backbone: int
    trainable: int
    trainable_method: int
    trainable_head: int
    trainable_share_of_backbone_percent: Number
    stored_bytes: int | None = None


@dataclass
class Scores:
    """Scores on the report split of the best weights (chosen on the selection split) and of the last weights."""

    best: dict[str, Number]
    last: dict[str, Number]
    best_epoch: Number


@dataclass
class HistoryEntry:
    """One evaluation on the selection split."""

    epoch: Number
    step: int
    train_loss: Number
    scores: dict[str, Number]
    seconds: Number


@dataclass
class Time:
    """Seconds and rates. Training excludes evaluation; its rates exclude compiling and the first updates (warm-up).

    `features_seconds` is the time of the original computation of the cached features, in whichever run that was. The
    time that this run took to find, read and write them is `cache_seconds`.
    """

    train_seconds: Number
    eval_seconds: Number
    features_seconds: Number | None
    train_examples_per_second: Number
    train_tokens_per_second: Number
    padding_share: Number
    # The number of first updates that the rates exclude, and how long they took.
    warm_up_updates: int = 0
    warm_up_seconds: Number = 0.0
    cache_seconds: Number | None = None
    # The part of the training time spent in torch's compiler; None if nothing is compiled, and in older records.
    compile_seconds: Number | None = None


@dataclass
class MemoryAtPeak:
    """Bytes of each kind of memory at the peak of a training step; they sum to the peak."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    temporaries_bytes: int


@dataclass
class MemoryEstimate:
    """Memory of one training step by kind, each at its maximum. docs/measuring.md defines the kinds.

    `temporaries_bytes` is everything at the peak that does not belong to another kind.
    """

    batch_size: int
    sequence_length: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    temporaries_bytes: int
    peak_bytes: int
    # The number of forward and backward passes per update.
    accumulation: int = 1
    # forward, backward or optimizer
    peak_phase: str | None = None
    at_peak: MemoryAtPeak | None = None
    # The device whose kernels the estimate assumes, and its attention kernel.
    device: str | None = None
    attention_kernel: str | None = None


@dataclass
class DeviceMemory:
    """Peaks of the CUDA allocator by phase; the first updates, which are a warm-up, form a separate phase.

    In the features phase, the features of the frozen layers are computed before training; older records lack it.
    `held_before_bytes` is the device memory that was in use before the run outside of our allocator, by other processes
    and by the CUDA context.
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
    features_peak_allocated_bytes: int | None = None
    features_peak_reserved_bytes: int | None = None

    @property
    def peak_allocated_bytes(self) -> int | None:
        """The highest allocated peak over all phases in bytes; None if no phase was measured."""
        phases = (
            self.load_peak_allocated_bytes,
            self.features_peak_allocated_bytes,
            self.first_updates_peak_allocated_bytes,
            self.train_peak_allocated_bytes,
            self.eval_peak_allocated_bytes,
        )
        return max((peak for peak in phases if peak is not None), default=None)


@dataclass
class Memory:
    """Memory of a run: the estimate of one training step, the peaks of the device, and the peak of the process.

    The peak of the process is None if the same process had already executed another run.
    """

    estimate: MemoryEstimate | None = None
    device: DeviceMemory | None = None
    process_peak_rss_bytes: int | None = None


@dataclass
class Flops:
    """Floating-point operations at the batch shape of the memory estimate.

    `merged` says whether the adapter was merged into the weights for inference.
    """

    train_step_flops: int
    inference_flops: int
    merged: bool = False


@dataclass
class Inference:
    """Speed of the finished model: latency for one row and throughput at `batch_size` rows, medians over repeats.

    `merged` says whether the adapter was merged into the weights beforehand.
    """

    batch_size: int
    sequence_length: int
    latency_ms_median: Number
    examples_per_second: Number
    latency_ms_quartiles: list[Number] | None = None
    examples_per_second_quartiles: list[Number] | None = None
    repeats: int | None = None
    merged: bool = False


# Baselines without a backbone that `petl_bench.tasks.baselines` scores on the same rows.
BASELINES = {
    "majority": "the most frequent class or tag of the training rows; in regression their mean, with several labels a "
    "row those of at least half of them",
    "tfidf": "TF-IDF of words and pairs of words with logistic regression, or ridge regression, of scikit-learn on the "
    "same training rows",
}

CACHE_PLACES = {"device": "kept on the device", "memory": "kept in memory", "disk": "kept on disk",
                "off": "computed with every batch"}  # fmt: skip
MEMORY_KINDS = tuple(kind.name.removesuffix("_bytes") for kind in dataclasses.fields(MemoryAtPeak))


@dataclass
class FrozenFeatures:
    """The frozen layers below the lowest trained one, and the cache of their hidden states.

    `layers` is their number, from the embeddings up. `states` is the number of hidden states cached per token.
    `reused` says whether an earlier run had already computed them.
    """

    layers: int
    states: int
    first_token_only: bool
    # Where they are cached: one of CACHE_PLACES.
    cache: str
    bytes: int
    reused: bool


@dataclass
class Data:
    """The rows that were used. `left_out_per_split` counts the rows without a label, for splits that have any."""

    dataset: str
    revision: str | None
    fingerprint: str
    rows_per_split: dict[str, int]
    left_out_per_split: dict[str, int] = field(default_factory=dict)


@dataclass
class Layers:
    """The adapted layers, counted from 1, and how they were chosen if a rule chose them.

    `variability` is the metric of layers 1..L over `num_examples` training rows. `variability_shuffled` is the same
    metric with shuffled labels, i.e. the value of a layer without information about the classes. None stands for
    infinity.
    """

    bottom: int
    top: int
    head: int
    num_layers: int
    variability: list[Number] | None = None
    variability_shuffled: list[Number] | None = None
    num_examples: int | None = None


@dataclass
class Record:
    """Everything that is recorded about a run."""

    run_key: str
    config: dict[str, Any]
    schema_version: int = SCHEMA_VERSION
    # finished, failed, out_of_memory, diverged or interrupted
    status: str = "finished"
    error: str | None = None
    protocol: RunProtocol | None = None
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
    tagging: Tagging | None = None
    ood: Ood | None = None
    # Scores on the report split by baseline (one of BASELINES) and metric; empty if they were not requested, and in
    # older records.
    baselines: dict[str, dict[str, Number]] = field(default_factory=dict)
    # For multi-label tasks, the lowest probability at which a label is assigned.
    threshold: Number | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    # Updates after which training was interrupted and then resumed in another process; times are summed over the parts.
    resumed_at_updates: list[int] = field(default_factory=list)
    # Updates that were skipped because a gradient overflowed in fp16; None for other precisions, and in older records.
    skipped_updates: int | None = None
    # The version of the run key, and when the run ended, in UTC. Reports use the newest of several records of one run.
    key_version: int | None = None
    ended_at: str | None = None
    # Hex sha256 of each file of the pretrained backbone, by name; None for random weights and in older records.
    base_files: dict[str, str] | None = None
    # The same for each file of the run that is read back (weights, settings, predictions), by its path in the folder.
    stored_files: dict[str, str] | None = None

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes in the order of the logits; None for regression."""
        return self.ood.classes if self.ood is not None else self.config["task"].get("labels")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain containers for JSON, with None for numbers that are not finite."""
        return finite(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Record:
        """Reads the output of `to_dict`, in this schema version or an older one; unknown fields are ignored.

        Raises:
            ValueError: If the content does not match its hash; if a field is missing or has the wrong type (the message
                names it); or if the schema version is newer than this program's.
        """
        if not isinstance(content, dict):
            raise ValueError(f"it is {reprlib.repr(content)}, not an object")
        check_hash(content, "restore it from a copy, or make the run again")
        content = corrected(migrated(content))
        try:
            record = validate(cls, content)
            if fault := name_fault(record.run_key):
                raise ValueError(f"run_key{fault}")
            validate(RecordedHardware, record.hardware, "hardware")
            is_scored = record.protocol is not None and record.scores is not None
            # A run that failed early may have recorded only part of its config.
            validate(RecordedConfig if is_scored else PartialConfig, record.config, "config")
        except ValueError as error:
            raise ValueError(f"not a record: {error}") from error
        return record

    def answers(self, cache: str) -> bool:
        """Whether the record's times are those that `train.cache=<cache>` requests; scores do not depend on it.

        `auto` and `shared` accept any. A run that requested this mode but could not use it counts as well, because
        another attempt would have the same result.
        """
        if cache in ("auto", "shared") or self.frozen is None:
            return True
        return cache in (self.frozen.cache, (self.config.get("train") or {}).get("cache"))

    @property
    def selected_scores(self) -> dict[str, float]:
        """Scores of the weights that the protocol selects; empty if there are none."""
        if self.scores is None or self.protocol is None:
            return {}
        return self.scores.best if self.protocol.selection == "best" else self.scores.last

    @property
    def batch_size(self) -> int | None:
        """The number of rows per update; None if the run failed before its settings were complete."""
        size = (self.config.get("train") or {}).get("batch_size")
        return size if isinstance(size, int) else None

    @property
    def updates_to_95_percent(self) -> float | None:
        """Updates until the interpolated selection score reached 95 % of the selected weights' score.

        An upper bound if the first evaluation did. None for errors, scores of 0 or less, and runs no better than the
        majority baseline on the reported rows.
        """
        if self.protocol is None or not self.history or not self.protocol.higher_is_better:
            return None
        metric = self.protocol.metric
        points = [(entry.step, entry.scores.get(metric)) for entry in self.history]
        scores = [score for _, score in points if score is not None]
        majority, reported = (self.baselines or {}).get("majority", {}).get(metric), self.selected_scores.get(metric)
        if len(scores) < len(points) or (majority is not None and reported is not None and reported <= majority):
            return None
        if (mark := 0.95 * self.protocol.selected(scores)) <= 0:
            return None
        if not (number := next(index for index, score in enumerate(scores) if score >= mark)):
            return float(points[0][0])
        (before, low), (after, high) = ((points[i][0], scores[i]) for i in (number - 1, number))
        return before + (mark - low) / (high - low) * (after - before)
