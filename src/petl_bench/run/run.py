"""One run, top to bottom."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.config import RunConfig, resolved
from petl_bench.measure.environment import git, hardware, versions
from petl_bench.methods.hooks import ExtraState, after_update_hook
from petl_bench.model import build_adapted, save_trained
from petl_bench.records.schema import HistoryEntry, Params, Record
from petl_bench.records.store import RunFolder
from petl_bench.run.describe import (
    INFERENCE_SHARE,
    describe_data,
    describe_layers,
    describe_memory,
    describe_protocol,
    describe_time,
    predict_costs,
    time_inference,
)
from petl_bench.run.evaluate import Evaluator
from petl_bench.run.identity import identify
from petl_bench.run.lifecycle import RunLifecycle
from petl_bench.run.variability import choose_layers
from petl_bench.tasks.encode import EncodedRows, encode
from petl_bench.tasks.load import Task, load_task
from petl_bench.trackers.tracker import history_point, open_tracker
from petl_bench.training.device import freed_memory_kept

if TYPE_CHECKING:
    from accelerate import Accelerator

    from petl_bench.measure.device_memory import PeakMemory
    from petl_bench.training.checkpoint import Checkpoints
    from petl_bench.training.state import FitResult


_log = logging.getLogger(__name__)


def run(cfg: RunConfig) -> Record:
    """Trains and evaluates one method on one task with one backbone, and keeps the record.

    A run whose record exists is not made again, unless `cfg.force`.

    Args:
        cfg: The whole config; `petl_bench.config.load_config` makes one from overrides.

    Returns:
        The record, as written to `<runs_dir>/<task>-<method>-<backbone>-s<seed>-<run key>/result.json`.

    Raises:
        RequestError: where the request cannot work.
        RunError: where the run failed; its record says how.
        Interrupted: on Ctrl-C or SIGTERM; its record says so.
    """
    cfg = resolved(cfg)
    identity = identify(cfg)
    folder = RunFolder(identity.folder)
    if not cfg.force and (done := folder.finished()) is not None:
        _log.info("finished already: %s", identity.folder)
        return done
    record = Record(run_key=identity.key, config=identity.config)
    with RunLifecycle(record, folder) as lifecycle, freed_memory_kept():
        _log.info("run %s", identity.folder)
        from accelerate.utils import set_seed

        from petl_bench.frozen.batch_source import open_batch_sources
        from petl_bench.measure.device_memory import PeakMemory
        from petl_bench.training.device import compile_layers, make_accelerator
        from petl_bench.training.loop import num_training_steps

        accelerator = make_accelerator(cfg.train)
        on_cuda = accelerator.device.type == "cuda"
        memory = PeakMemory(on_cuda=on_cuda)
        record.versions, record.git = versions(), git()
        record.hardware = hardware(on_cuda=on_cuda, num_processes=accelerator.num_processes)
        with memory.phase("load"):
            task = load_task(cfg.task, cfg.data_root)
            # Found in the rows where the settings leave them out; `predict` then needs no rows.
            record.config["task"]["labels"] = task.labels
            # A backbone with random weights is looked at as it will be trained.
            set_seed(cfg.train.seed)
            layers, found = choose_layers(
                cfg.layers, cfg.backbone, task, cfg.train.eval_batch_size, str(accelerator.device)
            )
            backbone = open_backbone(cfg.backbone, layers)
            record.layers = found or describe_layers(backbone)
            encoded = encode_task(task, backbone)
            num_steps = num_training_steps(len(encoded["train"]), cfg.train)
            model, record.params = build_adapted(cfg, backbone, task.labels, num_steps)
            _log_params(record.params)
            model = accelerator.prepare_model(model)
        if lifecycle.is_main and cfg.measure.ledger:
            # Before training: a run that ends for want of memory has it too.
            record.memory, record.flops = predict_costs(cfg, backbone, task.labels)
        record.data, record.protocol = describe_data(cfg, task), describe_protocol(cfg, task, model, accelerator)
        if lifecycle.is_main:
            lifecycle.tracker = open_tracker(cfg.tracker, identity)
        with memory.phase("frozen"):
            plain = accelerator.unwrap_model(model)
            sources = open_batch_sources(plain, backbone.anatomy, encoded, cfg.train, accelerator)
            record.frozen = sources.frozen
        if cfg.train.compile:
            compile_layers(plain, backbone.anatomy, record.frozen.layers if record.frozen else 0)
        evaluator = Evaluator(model, task, sources.by_split, cfg.train.eval_batch_size, accelerator)
        result = _train(cfg, task, backbone, evaluator, memory, lifecycle)
        with memory.phase("eval"):
            record.scores = evaluator.final_scores(result, cfg.train.selection)
        memory.log()
        record.time = describe_time(result, sources.seconds, accelerator)
        record.memory = describe_memory(memory, record.memory.estimate if record.memory else None)
        if lifecycle.is_main:
            trained = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            if cfg.train.save_weights:
                record.params.stored_bytes = save_trained(folder, trained, backbone)
            if cfg.measure.inference:
                seconds = INFERENCE_SHARE * record.time.train_seconds
                record.inference = time_inference(trained, cfg.task.max_length, seconds, accelerator)
    return record


def encode_task(task: Task, backbone: Backbone) -> dict[str, EncodedRows]:
    """Token ids of all rows of a task: `train`, `selection`, `report`, and the extra ones by their names.

    Raises:
        RequestError: where the task's length does not fit the backbone.
    """
    length = task.settings.max_length
    backbone.check_length(length)
    tokenizer = backbone.load_tokenizer()
    splits = {"train": task.train, "selection": task.selection}
    splits |= {name: extra.rows for name, extra in task.extra.items()}
    encoded = {name: encode(rows, tokenizer, length) for name, rows in splits.items()}
    same_rows = task.report is task.selection
    return encoded | {"report": encoded["selection"] if same_rows else encode(task.report, tokenizer, length)}


def _train(
    cfg: RunConfig,
    task: Task,
    backbone: Backbone,
    evaluator: Evaluator,
    memory: PeakMemory,
    lifecycle: RunLifecycle,
) -> FitResult:
    from accelerate.utils import set_seed

    from petl_bench.training.loop import Fitter, num_training_steps
    from petl_bench.training.optimizer import build_optimizer, build_schedule

    record, tracker = lifecycle.record, lifecycle.tracker
    model, accelerator, source = evaluator.model, evaluator.accelerator, evaluator.sources["train"]
    optimizer = build_optimizer(model, cfg.train, backbone.anatomy.in_head)
    schedule = build_schedule(optimizer, cfg.train, num_training_steps(len(source.rows), cfg.train))

    def selection_scores() -> dict[str, float]:
        with memory.phase("eval"):
            return evaluator.selection_scores()

    plain = accelerator.unwrap_model(model)
    extra_state = ExtraState(plain)

    def keep(*evaluations: HistoryEntry) -> None:
        for one in evaluations:
            record.history.append(one)
            assert record.protocol
            tracker.log(one.step, history_point(one, record.protocol))

    def on_evaluation(evaluation: HistoryEntry, is_best: bool) -> None:
        if is_best:
            extra_state.save_best()
        keep(evaluation)
        described = ", ".join(f"{name} {value:.4f}" for name, value in evaluation.scores.items())
        _log.info("epoch %.2f: train loss %.4f, %s", evaluation.epoch, evaluation.train_loss, described)

    # Dropout's stream starts here, whatever building the model drew; each process has its own.
    set_seed(cfg.train.seed + accelerator.process_index)
    with memory.phase("train"):
        result = Fitter(
            model,
            accelerator.prepare_optimizer(optimizer),
            schedule,
            source,
            cfg.train,
            accelerator,
            selection_scores,
            metric=task.settings.metric,
            higher_is_better=task.higher_is_better,
            on_evaluation=on_evaluation,
            after_update=after_update_hook(plain),
            on_warm=lambda: memory.book("first_updates"),
            on_resume=lambda history: keep(*history),
            checkpoints=_open_checkpoints(cfg, lifecycle, accelerator),
            method_state=extra_state,
        ).fit()
    record.resumed_at_updates = result.resumed_at
    if cfg.train.selection == "best":
        extra_state.restore_best()
    return result


def _open_checkpoints(cfg: RunConfig, lifecycle: RunLifecycle, accelerator: Accelerator) -> Checkpoints | None:
    """Of one process; several would each need generators of their own."""
    from petl_bench.training.checkpoint import Checkpoints

    if accelerator.num_processes > 1:
        return None
    record = lifecycle.record
    made_by = {"versions": record.versions, "git": record.git, "device": accelerator.device.type}
    checkpoints = Checkpoints(lifecycle.folder.checkpoints, cfg.train.checkpoint_seconds, made_by)
    if cfg.force:
        checkpoints.remove()
    return checkpoints


def _log_params(params: Params) -> None:
    _log.info(
        "%s parameters trained, %s of them in the head: %.3f %% of the backbone's %s",
        *(f"{count:,}" for count in (params.trainable, params.trainable_head)),
        params.trainable_share_of_backbone_percent,
        f"{params.backbone:,}",
    )
