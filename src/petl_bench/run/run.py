"""One run from its config to its record: start reading here."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.config import RunConfig, resolved
from petl_bench.errors import RunError
from petl_bench.measure import git, hardware, versions
from petl_bench.methods.peft import RankAllocation
from petl_bench.model import build_adapted, save_trained
from petl_bench.process import in_process_group
from petl_bench.records.predictions import Predictions
from petl_bench.records.run_key import KEY_VERSION
from petl_bench.records.schema import Memory, Params, Record
from petl_bench.records.store import RunFolder
from petl_bench.run.describe import (
    describe_data,
    describe_device_memory,
    describe_layers,
    describe_protocol,
    describe_tagging,
    describe_time,
    log_rows,
    log_tokens,
)
from petl_bench.run.evaluate import Evaluator, ProgressReport, measure_finished, try_measuring
from petl_bench.run.export import model_card
from petl_bench.run.lifecycle import RunLifecycle, identify
from petl_bench.run.ood_detection import Detector, detect
from petl_bench.run.variability import choose_layers
from petl_bench.tasks.encode import EncodedRows, encode
from petl_bench.tasks.load import Task, load_task
from petl_bench.tasks.metrics import type_scores
from petl_bench.trackers import RunIdentity, open_tracker
from petl_bench.training.device import decided_by_main, freed_memory_kept, make_accelerator

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from petl_bench.measure.run_costs import PeakMemory
    from petl_bench.training.checkpoint import Checkpoints, Progress

_log = logging.getLogger(__name__)


def run(cfg: RunConfig) -> Record:
    """Trains and evaluates one method on one task with one backbone, and writes the record.

    A run that has a finished record already is not repeated, unless `cfg.force` is set or its times were
    measured with another `train.cache` than the requested one.

    Args:
        cfg: The whole config; `petl_bench.config.load_config` makes one from overrides.

    Returns:
        The record, as written to `<runs_dir>/<task>-<method>-<backbone>-s<seed>-<run key>/result.json`.

    Raises:
        RequestError: If the request cannot work.
        RunError: If the run failed; its record says how.
        Interrupted: On Ctrl-C or SIGTERM; its record says so.
    """
    cfg = resolved(cfg)
    identity = identify(cfg)
    folder = RunFolder(identity.folder)
    if in_process_group():
        make_accelerator(cfg.train)
    done = None if cfg.force else decided_by_main(folder.finished)
    if done is not None:
        if done.answers(cfg.train.cache):
            _log.info("finished already: %s", identity.folder)
            return done
        assert done.frozen
        _log.info("running again: the finished run was timed with train.cache=%s", done.frozen.cache)
    record = Record(run_key=identity.key, config=identity.config, key_version=KEY_VERSION)
    with RunLifecycle(record, folder) as lifecycle, freed_memory_kept():
        _train_and_evaluate(cfg, identity, lifecycle)
    return record


def _train_and_evaluate(cfg: RunConfig, identity: RunIdentity, lifecycle: RunLifecycle[Record]) -> None:
    """Carries out a run from its rows to its scores, and fills in its record."""
    from petl_bench.frozen.batch_source import open_batch_sources
    from petl_bench.measure.run_costs import PeakMemory
    from petl_bench.training.device import compile_layers

    record = lifecycle.record
    accelerator = make_accelerator(cfg.train)
    on_cuda = accelerator.device.type == "cuda"
    peaks = PeakMemory(on_cuda=on_cuda)
    record.versions, record.git = versions(), git()
    record.hardware = hardware(on_cuda=on_cuda, num_processes=accelerator.num_processes)

    with peaks.phase("load"):
        loaded = _load(cfg, identity, record, accelerator)
    # A request that cannot be run is refused above, and leaves no folder.
    _log.info("run %s", identity.folder)
    task, backbone = loaded.task, loaded.backbone
    model = accelerator.unwrap_model(loaded.model)
    record.data, record.protocol = describe_data(cfg, task), describe_protocol(cfg, task, model)
    record.tagging = describe_tagging(task, loaded.encoded)

    # The memory estimate comes before training, so that a run that exceeds the memory has it in its record.
    record.memory = Memory()
    if lifecycle.is_main and cfg.measure.ledger:
        _estimate(cfg, backbone, task.labels, record)
    if lifecycle.is_main:
        lifecycle.tracker = open_tracker(cfg.tracker, identity)

    # Features of the frozen layers are computed once; training and evaluation start from them.
    with peaks.phase("features"):
        sources = open_batch_sources(model, backbone.anatomy, loaded.encoded, cfg.train, accelerator)
        record.frozen = sources.frozen
    if cfg.train.compile:
        compile_layers(model, backbone.anatomy, record.frozen.layers if record.frozen else 0)

    evaluator = Evaluator(model, task, sources.by_split, cfg.train.eval_batch_size, accelerator)
    progress = _train(cfg, loaded, evaluator, peaks, lifecycle)
    with peaks.phase("eval"):
        predictions, detector = _score(evaluator, progress, cfg.train.selection, record)
    peaks.log()
    record.time = describe_time(progress, sources, accelerator, is_compiled=cfg.train.compile)
    record.memory.device = describe_device_memory(peaks)
    record.memory.process_peak_rss_bytes = peaks.process_peak_rss_bytes
    if lifecycle.is_main:
        trained = accelerator.unwrap_model(loaded.model, keep_fp32_wrapper=False)
        if cfg.train.save_weights:
            assert record.params
            card = partial(model_card, record)
            record.params.stored_bytes = save_trained(lifecycle.folder, trained, backbone, card)
            if detector is not None:
                detector.save(lifecycle.folder.path)
        measure_finished(cfg, trained, task, record, accelerator)
        # Last of all, because a repeated run that fails must not replace what belongs to a finished record.
        lifecycle.folder.write_predictions(predictions if cfg.measure.predictions else None)
        record.stored_files = lifecycle.folder.stored_files()


def _score(
    evaluator: Evaluator, progress: Progress, selection: str, record: Record
) -> tuple[dict[str, Predictions], Detector | None]:
    """Scores the trained model on all splits, and fills in what the record says of its predictions.

    Args:
        evaluator: Holds the trained model, the task and the batches of all splits.
        progress: What the training did; says which weights are the best ones.
        selection: `best` or `last`: the weights that the model has afterwards.
        record: Gets the scores, the threshold, the scores by type of entity and those out of distribution.

    Returns:
        Predictions by split, and the detector of rows out of distribution if the task has such rows.
    """
    record.scores, predictions = evaluator.final_scores(progress, selection)
    detector, task = None, evaluator.task
    if task.ood is not None:
        detection = detect(evaluator.model, task, evaluator.sources, evaluator.batch_size, evaluator.accelerator)
        record.ood, detector = detection.described, detection.detector
        predictions = detection.added_to(predictions, task.ood)
    record.threshold = evaluator.threshold
    if record.tagging is not None:
        reported = predictions["report"]
        record.tagging = replace(record.tagging, types=type_scores(reported.labels, reported.predicted))
    return predictions, detector


@dataclass
class _LoadedRun:
    """The parts of a run: its rows, also as token ids, and the adapted model, prepared for its device."""

    task: Task
    backbone: Backbone
    encoded: dict[str, EncodedRows]
    model: nn.Module


def _load(cfg: RunConfig, identity: RunIdentity, record: Record, accelerator: Accelerator) -> _LoadedRun:
    """Loads the task's rows and the backbone, and builds from it the model that the method trains.

    Args:
        cfg: The whole config.
        identity: The run's key, which must still fit the files once all of them are read.
        record: Gets the labels, the layers, the parameters and the hashes of the backbone's files.
        accelerator: Prepares the model for its device.

    Raises:
        RequestError: If the rows, the backbone and the method do not fit together.
        RunError: If the local files changed meanwhile.
    """
    from accelerate.utils import set_seed

    from petl_bench.training.loop import num_training_steps

    task = load_task(cfg.task, cfg.data_root)
    log_rows(task)
    # Labels that the settings leave out are taken from the rows and recorded, so that `predict` needs no rows.
    record.config["task"]["labels"] = task.all_labels
    # Layers are chosen on the backbone that will be trained, random weights included.
    set_seed(cfg.train.seed)
    layers, chosen = choose_layers(cfg.layers, cfg.backbone, task, cfg.train.eval_batch_size, str(accelerator.device))
    backbone = open_backbone(cfg.backbone, layers, task_type=cfg.task.type)
    record.layers = chosen or describe_layers(backbone)
    encoded = encode_task(task, backbone)
    num_steps = num_training_steps(len(encoded["train"]), cfg.train)
    model, record.params = build_adapted(cfg, backbone, task.labels, num_steps)
    record.base_files = backbone.file_hashes()
    if identify(cfg).key != identity.key:
        raise RunError("The local files of the rows or the backbone changed while they were read: run it again.")
    _log_params(record.params)
    return _LoadedRun(task, backbone, encoded, accelerator.prepare_model(model))


def encode_task(task: Task, backbone: Backbone) -> dict[str, EncodedRows]:
    """Encodes all rows of a task.

    Returns:
        Token ids by split: `train`, `selection`, `report`, `ood`, and the extra splits by their names.

    Raises:
        RequestError: If the task's length or the tokens do not fit the backbone.
    """
    length = task.settings.max_length
    backbone.check_length(length)
    tokenizer = backbone.load_tokenizer()
    splits = {"train": task.train, "selection": task.selection}
    splits |= {name: extra.rows for name, extra in task.extra.items()}
    splits |= {} if task.ood is None else {"ood": task.ood}
    encoded = {name: encode(rows, tokenizer, length) for name, rows in splits.items()}
    report = encoded["selection"] if task.reports_on_selection else encode(task.report, tokenizer, length)
    encoded |= {"report": report}
    for rows in encoded.values():
        backbone.check_segments(0 if rows.types is None else int(rows.types.max()) + 1)
    log_tokens(task, encoded, tokenizer)
    return encoded


def _log_params(params: Params) -> None:
    _log.info(
        "%s parameters trained, %s of them in the head: %.3f %% of the backbone's %s",
        *(f"{count:,}" for count in (params.trainable, params.trainable_head)),
        params.trainable_share_of_backbone_percent,
        f"{params.backbone:,}",
    )


def _estimate(cfg: RunConfig, backbone: Backbone, labels: list[str] | None, record: Record) -> None:
    """Fills in the memory estimate and the operations of one update, as `petl-bench plan` gives them.

    Args:
        cfg: The whole config.
        backbone: Opened with the run's layers.
        labels: Names of the classes or tags; None for regression.
        record: The record with an empty `memory`.
    """
    from petl_bench.estimate.costs import estimate_costs_once

    assert record.memory
    costs = try_measuring(
        "the memory estimate could not be counted",
        "measure.ledger",
        lambda: estimate_costs_once(cfg, backbone, labels),
    )
    if costs is not None:
        record.memory.estimate, record.flops = costs.estimate, costs.flops
        _log.info(
            "one update of %d rows x %d tokens: %.0f MiB estimated",
            *(costs.estimate.batch_size, costs.estimate.sequence_length, costs.estimate.peak_bytes / 2**20),
        )


def _train(
    cfg: RunConfig, loaded: _LoadedRun, evaluator: Evaluator, peaks: PeakMemory, lifecycle: RunLifecycle[Record]
) -> Progress:
    """Trains the model, from a checkpoint if an interrupted run left one.

    Args:
        cfg: The whole config.
        loaded: The adapted model, and the backbone that it was made of.
        evaluator: Scores the model on the selection split, and has the batches of all splits.
        peaks: Measures memory by phase.
        lifecycle: The record that the history goes to, with its folder and tracker.

    Returns:
        What the training did.
    """
    from accelerate.utils import set_seed

    from petl_bench.training.batches import balanced_weights
    from petl_bench.training.checkpoint import TrainingState
    from petl_bench.training.loop import TrainingLoop, build_optimizer, build_schedule, num_training_steps

    model, accelerator = loaded.model, evaluator.accelerator
    source, record = evaluator.sources["train"], lifecycle.record
    assert record.protocol
    optimizer = build_optimizer(model, cfg.train, loaded.backbone.anatomy.in_head)
    schedule = build_schedule(optimizer, cfg.train, num_training_steps(len(source.rows), cfg.train))
    plain: Any = accelerator.unwrap_model(model)
    is_balanced = cfg.train.class_weights == "balanced"
    weights = balanced_weights(source.rows, plain.config.num_labels) if is_balanced else None
    ranks = RankAllocation(plain)
    state = TrainingState(model, accelerator.prepare_optimizer(optimizer), schedule, accelerator, extra=ranks)
    record.history = state.progress.history

    def evaluate() -> dict[str, float]:
        with peaks.phase("eval"):
            return evaluator.selection_scores()

    loop = TrainingLoop(
        state,
        source,
        cfg.train,
        evaluate,
        metric=record.protocol.metric,
        higher_is_better=record.protocol.higher_is_better,
        callbacks=[ranks, evaluator, ProgressReport(record.protocol, lifecycle.tracker, peaks)],
        checkpoints=open_checkpoints(cfg, lifecycle, accelerator),
        class_weights=weights,
    )
    # Seeds dropout independently of what was drawn to build the model; each process has its own seed.
    set_seed(cfg.train.seed + accelerator.process_index)
    with peaks.phase("train"):
        progress = loop.run()
    record.resumed_at_updates = progress.resumed_at
    if accelerator.scaler is not None:
        record.skipped_updates = progress.num_skipped
        _log.info("%d of %d updates skipped, as gradients overflowed", progress.num_skipped, progress.num_steps)
    ranks.finish(cfg.train.selection)
    return progress


def open_checkpoints(cfg: RunConfig, lifecycle: RunLifecycle[Any], accelerator: Accelerator) -> Checkpoints:
    """The run's checkpoints, which the first of several processes writes and reads."""
    from petl_bench.training.checkpoint import Checkpoints

    record = lifecycle.record
    made_by = {
        "versions": record.versions,
        "git": record.git,
        "base_files": record.base_files,
        "device": accelerator.device.type,
        "num_processes": accelerator.num_processes,
        # Times are summed over the parts of a run.
        "cache": cfg.train.cache,
    }
    checkpoints = Checkpoints(lifecycle.folder.checkpoints, cfg.train.checkpoint_seconds, made_by)
    if cfg.force and lifecycle.is_main:
        checkpoints.remove()
    return checkpoints
