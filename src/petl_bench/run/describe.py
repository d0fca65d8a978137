"""Describes a run: the parts of its record, and what is logged about its rows before it trains."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from petl_bench.backbones.load import Backbone, attention_implementation
from petl_bench.config import RunConfig
from petl_bench.records.predictions import Tagging
from petl_bench.records.schema import Data, DeviceMemory, Inference, Layers, RunProtocol, Time
from petl_bench.tasks.encode import encode
from petl_bench.tasks.load import Task
from petl_bench.tasks.metrics import cut_entities, entities
from petl_bench.tasks.rows import Rows

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from petl_bench.frozen.batch_source import BatchSources
    from petl_bench.measure.run_costs import InferenceTimes, PeakMemory
    from petl_bench.tasks.encode import EncodedRows
    from petl_bench.training.checkpoint import Progress

_log = logging.getLogger(__name__)

# The maximum number of classes that the log lists individually.
_CLASSES_LISTED = 8
# The share of unknown tokens above which it is logged.
_UNKNOWN_SHARE = 0.03
# The share of cut tokens above which the log gives a length that would cut less, based on so many training rows.
_CUT_SHARE = 0.05
_ROWS_MEASURED = 2000
# The ratio of the largest class's rows to the smallest's from which the log suggests another metric.
_IMBALANCE = 5
# The number of training rows below which the log names a class.
_FEW_ROWS = 5


def describe_layers(backbone: Backbone) -> Layers:
    """Describes the layers of a plan that the settings gave."""
    plan = backbone.plan
    return Layers(plan.bottom, plan.top, plan.head, plan.num_layers)


def describe_data(cfg: RunConfig, task: Task) -> Data:
    """Describes the rows in use and where they came from."""
    settings = cfg.task
    names = {"demo": "petl_bench demo", "files": "local files"}
    if settings.source == "folder":
        names["folder"] = f"{settings.dataset or settings.name} (local copy)"
    local = settings.source == "hub" and cfg.data_root is not None
    return Data(
        dataset=names.get(settings.source)
        or "/".join(filter(None, (settings.dataset, settings.subset))) + (" (local copy)" if local else ""),
        revision=None if local else settings.revision,
        fingerprint=task.fingerprint(),
        rows_per_split=task.rows_per_split(),
        left_out_per_split=task.left_out,
    )


def log_rows(task: Task) -> None:
    """Logs how many rows and classes are in use, and what may distort the scores: few rows of a class, shared rows."""
    counts = task.rows_per_split()
    _log.info("rows: %s", ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for name, count in task.left_out.items():
        _log.warning(
            "%s: %d rows are left out, as their labels say that they have none (task.unlabelled=%s)",
            *(name, count, task.settings.unlabelled),
        )
    assert task.train.labels is not None
    if task.labels is None:
        targets = task.train.labels
        _log.info("targets of the training rows: %g to %g, mean %g", targets.min(), targets.max(), targets.mean())
    elif task.settings.type == "tagging":
        _log.info("%s", _entity_counts(task))
    elif task.settings.type == "multilabel":
        _log.info("%s", _label_counts(task.labels, task.train.labels))
    elif task.settings.rows_per_class is not None:
        drawn = (task.settings.rows_per_class, len(task.labels), task.settings.data_seed)
        _log.info("training rows: %d of each of the %d classes, drawn with task.data_seed=%d", *drawn)
    else:
        _log.info("%s", _shares(task.labels, task.train.labels))
        _log_imbalance(task)
    _warn_of_small_classes(task)
    _warn_of_shared_rows(task)


def _warn_of_small_classes(task: Task) -> None:
    """Logs which classes or labels have few training rows, and which others occur only in rows that are scored."""
    settings = task.settings
    if task.labels is None or settings.type == "tagging" or settings.rows_per_class is not None:
        return
    by_split = {name: _rows_of_each(task.labels, rows) for name, rows in task.rows_by_split().items()}
    trained = by_split.pop("train")
    few = np.flatnonzero(trained < _FEW_ROWS)
    if len(few):
        names = _abbreviated([f"{task.labels[index]!r} ({trained[index]})" for index in few])
        _log.warning("fewer than %d training rows for %d of %d classes: %s", _FEW_ROWS, len(few), len(trained), names)
    for name, scored in by_split.items():
        unknown = np.flatnonzero((trained == 0) & (scored > 0))
        if len(unknown):
            names = _abbreviated([repr(task.labels[index]) for index in unknown])
            _log.warning("%d rows of %s are of classes without a training row: %s", scored[unknown].sum(), name, names)


def _rows_of_each(labels: list[str], rows: Rows) -> np.ndarray:
    """How many rows each class or label has, shape (classes,)."""
    assert rows.labels is not None
    if rows.labels.ndim == 2:
        counts: np.ndarray = rows.labels.sum(axis=0).astype(int)
        return counts
    return np.bincount(rows.labels, minlength=len(labels))


def _warn_of_shared_rows(task: Task) -> None:
    """Logs how many training rows are repeated, and how many scored rows or groups are also training rows."""
    train, settings = task.train, task.settings
    first: dict[tuple[str, ...], int] = {}
    for number, texts in enumerate(zip(*train.texts, strict=True)):
        first.setdefault(texts, number)
    if repeated := len(train) - len(first):
        _log.info("%d training rows have the texts of another training row", repeated)
    for name, rows in task.rows_by_split().items():
        if name == "train":
            continue
        shared = [number for number, texts in enumerate(zip(*rows.texts, strict=True)) if texts in first]
        if shared:
            example = tuple(column[shared[0]] for column in rows.texts)
            _log.warning(
                "%d of %d rows of %s are training rows too, the first of them %s (equal to %s)",
                *(len(shared), len(rows), name, rows.place(shared[0]), train.place(first[example])),
            )
        if train.groups is not None and rows.groups is not None:
            both = np.flatnonzero(np.isin(rows.groups, train.groups))
            if len(both):
                _log.warning(
                    "%d of %d rows of %s are of groups that have training rows too (task.group_column=%s), the first "
                    "of them %s",
                    *(len(both), len(rows), name, settings.group_column, rows.place(int(both[0]))),
                )


def _log_imbalance(task: Task) -> None:
    """Logs that accuracy says little about the small classes, if there are any."""
    assert task.train.labels is not None
    counts = np.bincount(task.train.labels, minlength=len(task.labels or ()))
    if task.settings.metric == "accuracy" and counts.max() >= _IMBALANCE * max(counts.min(), 1):
        _log.info(
            "the largest class has %d rows, the smallest %d: accuracy says little of small classes; "
            "'task.metrics=[accuracy,macro_f1]' task.metric=macro_f1 weighs all classes alike",
            *(counts.max(), counts.min()),
        )


def _shares(labels: list[str], indices: np.ndarray) -> str:
    """The classes of the training rows with their shares; if there are many, only the largest and the smallest."""
    counts = np.bincount(indices, minlength=len(labels))
    order = np.argsort(-counts, kind="stable").tolist()
    shares = [f"{labels[i]!r} {100 * counts[i] / len(indices):.1f} %" for i in order]
    return f"{len(labels)} classes of the training rows: {_abbreviated(shares)}"


def _abbreviated(items: list[str]) -> str:
    """All items if there are few, else the first two and the last two."""
    return ", ".join(items if len(items) <= _CLASSES_LISTED else [*items[:2], "...", *items[-2:]])


def _entity_counts(task: Task) -> str:
    """Words, tagging scheme and entities of the training rows, by type."""
    tags = task.tags(task.train)
    types = Counter(kind for of_row in tags for kind, _, _ in entities(of_row))
    counts = ", ".join(f"{count:,} {kind!r}" for kind, count in types.most_common())
    return f"{sum(map(len, tags)):,} words of the training rows, scheme {task.scheme}; entities: {counts or 'none'}"


def _label_counts(labels: list[str], given: np.ndarray) -> str:
    """The labels of multi-label training rows with their shares, and how many rows have none."""
    shares = given.mean(axis=0)
    order = np.argsort(-shares, kind="stable").tolist()
    shown = [f"{labels[index]!r} {100 * shares[index]:.1f} %" for index in order]
    without = int((given.sum(axis=1) == 0).sum())
    return f"{len(labels)} labels of the training rows: {_abbreviated(shown)}; {without:,} rows without a label"


def describe_tagging(task: Task, encoded: dict[str, EncodedRows]) -> Tagging | None:
    """Describes the tags of a tagging task, and logs what the model does not see of its rows; None for other tasks.

    Args:
        task: The rows.
        encoded: Their token ids by split.
    """
    if task.scheme is None:
        return None
    rows_of = task.rows_by_split()
    words_cut, entities_cut = {}, {}
    for key, rows in encoded.items():
        name = {"selection": task.selection_split, "report": task.report_split}.get(key, key)
        assert rows.words is not None
        seen = [rows.words.is_seen(row) for row in range(len(rows))]
        words_cut[name] = sum(int((~of_row).sum()) for of_row in seen)
        pairs = zip(task.tags(rows_of[name]), seen, strict=True)
        entities_cut[name] = sum(cut_entities(tags, of_row) for tags, of_row in pairs)
    for name, count in words_cut.items():
        if count:
            _log.warning(
                "%s: %d words and %d entities are cut by task.max_length=%d, or no token is made of a word; such words "
                "are scored as outside of entities",
                *(name, count, entities_cut[name], task.settings.max_length),
            )
    return Tagging(task.scheme, words_cut, entities_cut, task.without_beginning())


def log_tokens(task: Task, encoded: dict[str, EncodedRows], tokenizer: PreTrainedTokenizerBase) -> None:
    """Logs the share of tokens that the length limit cuts, and that of unknown tokens if there are more than a few.

    Args:
        task: Names the splits and the limit.
        encoded: Token ids by split.
        tokenizer: The tokenizer that produced them.
    """
    names = {"train": "train", "selection": task.selection_split, "report": task.report_split}
    shares = {names.get(name, name): rows.num_cut / (rows.num_cut + len(rows.ids)) for name, rows in encoded.items()}
    cut = ", ".join(f"{100 * share:.1f} % of {name}" for name, share in shares.items())
    if shares["train"] > _CUT_SHARE and task.settings.type != "tagging":
        cut += f"; task.max_length={_length_that_keeps(task, tokenizer)} would keep 95 % of train"
    _log.info("tokens that task.max_length=%d cuts: %s", task.settings.max_length, cut)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for name, rows in encoded.items():
        words = rows.ids[~np.isin(rows.ids, list(special))]
        unknown = float((words == tokenizer.unk_token_id).mean()) if len(words) else 0.0
        if unknown > _UNKNOWN_SHARE:
            _log.warning(
                "%.1f %% of the tokens of %s are unknown to the tokenizer: is it made for this language and script?",
                *(100 * unknown, names.get(name, name)),
            )


def _length_that_keeps(task: Task, tokenizer: PreTrainedTokenizerBase) -> int:
    """The smallest length limit that cuts no more than a twentieth of the tokens of some training rows."""
    some = task.train.take(np.arange(min(len(task.train), _ROWS_MEASURED)))
    lengths = encode(some, tokenizer, int(1e6), cached=False).lengths
    # Numbers of rows with at least 1, 2, ... tokens; a limit keeps as many tokens as the sum of them up to it.
    at_least = np.cumsum(np.bincount(lengths)[::-1])[::-1][1:]
    return int(np.argmax(np.cumsum(at_least) >= (1 - _CUT_SHARE) * lengths.sum())) + 1


def describe_protocol(cfg: RunConfig, task: Task, model: nn.Module) -> RunProtocol:
    """Describes what was asked and how it is scored.

    Args:
        cfg: The whole config, its `auto` values resolved.
        task: The task's rows.
        model: The adapted model, unwrapped; it knows its attention implementation.

    Returns:
        What the record keeps of the protocol.
    """
    model_config: Any = model.config
    return RunProtocol(
        task=cfg.task.name,
        metric=cfg.task.metric,
        higher_is_better=task.higher_is_better,
        selection_split=task.selection_split,
        report_split=task.report_split,
        selection=cfg.train.selection,
        num_train_examples=len(task.train),
        num_eval_examples=len(task.report),
        max_length=cfg.task.max_length,
        seed=cfg.train.seed,
        precision=cfg.train.precision,
        attention_implementation=attention_implementation(model_config),
        batching=cfg.train.batching,
    )


def describe_time(
    progress: Progress, sources: BatchSources, accelerator: Accelerator, *, is_compiled: bool = False
) -> Time:
    """Describes where the time went.

    Args:
        progress: What the training did.
        sources: Know how long the cached features of frozen layers took.
        accelerator: Sums the tokens of all processes.
        is_compiled: Whether the layers were compiled.

    Returns:
        Rates over all processes; the seconds are those of this process.
    """
    import torch

    warm = progress.warm_up
    sums = torch.tensor(
        [progress.num_tokens, progress.num_padded_tokens, progress.num_tokens - warm.num_tokens], dtype=torch.float64
    )
    tokens, padded, timed_tokens = accelerator.reduce(sums.to(accelerator.device), reduction="sum").tolist()
    compile_seconds = progress.compile_seconds - warm.compile_seconds
    seconds = progress.train_seconds - warm.train_seconds - compile_seconds
    return Time(
        train_seconds=progress.train_seconds,
        eval_seconds=progress.eval_seconds,
        features_seconds=sources.features_seconds,
        cache_seconds=sources.cache_seconds,
        train_examples_per_second=(progress.num_examples - warm.num_examples) / seconds,
        train_tokens_per_second=timed_tokens / seconds,
        padding_share=1.0 - tokens / padded,
        warm_up_updates=warm.num_steps,
        warm_up_seconds=warm.train_seconds,
        compile_seconds=progress.compile_seconds if is_compiled else None,
    )


def describe_device_memory(memory: PeakMemory) -> DeviceMemory | None:
    """Describes the peaks of the CUDA allocator by phase; None for a run on the CPU."""
    load, features, train, evaluation = (memory.phases[name] for name in ("load", "features", "train", "eval"))
    first = memory.phases.get("first_updates", train)
    if train.device_allocated_bytes is None:
        return None
    return DeviceMemory(
        load_peak_allocated_bytes=load.device_allocated_bytes,
        load_peak_reserved_bytes=load.device_reserved_bytes,
        features_peak_allocated_bytes=features.device_allocated_bytes,
        features_peak_reserved_bytes=features.device_reserved_bytes,
        first_updates_peak_allocated_bytes=first.device_allocated_bytes,
        first_updates_peak_reserved_bytes=first.device_reserved_bytes,
        train_peak_allocated_bytes=train.device_allocated_bytes,
        train_peak_reserved_bytes=train.device_reserved_bytes,
        eval_peak_allocated_bytes=evaluation.device_allocated_bytes,
        eval_peak_reserved_bytes=evaluation.device_reserved_bytes,
        alloc_retries=memory.alloc_retries,
        held_before_bytes=memory.device_held_before_bytes,
    )


def describe_inference(times: InferenceTimes, sequence_length: int, *, is_merged: bool) -> Inference:
    """Describes the speed of the trained model: medians and quartiles of latency and throughput.

    Args:
        times: Seconds of each forward pass.
        sequence_length: Tokens of each row.
        is_merged: Whether the adapter was merged into the weights before.
    """
    from petl_bench.measure.run_costs import BATCH_SIZE, quartiles

    lower, median, upper = (1000 * seconds for seconds in quartiles(times.one_row))
    slow, middle, fast = (BATCH_SIZE / seconds for seconds in reversed(quartiles(times.batch)))
    return Inference(
        batch_size=BATCH_SIZE,
        sequence_length=sequence_length,
        latency_ms_median=median,
        examples_per_second=middle,
        latency_ms_quartiles=[lower, upper],
        examples_per_second_quartiles=[slow, fast],
        repeats=min(len(times.one_row), len(times.batch)),
        merged=is_merged,
    )
