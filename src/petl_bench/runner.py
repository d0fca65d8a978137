"""One run, top to bottom."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.config import RunConfig
from petl_bench.errors import RequestError
from petl_bench.evaluation import Evaluator
from petl_bench.identity import identify
from petl_bench.layers.choose import choose_layers
from petl_bench.measure.environment import git, hardware, versions
from petl_bench.methods.context import AdaptContext
from petl_bench.methods.hooks import after_update_hook, rank_patterns, restore_rank_patterns
from petl_bench.methods.registry import get_method
from petl_bench.recording import Recording
from petl_bench.records.schema import Data, DeviceMemory, HistoryEntry, Layers, Memory, Params, Protocol, Record, Time
from petl_bench.records.store import RunFolder
from petl_bench.tasks.encode import EncodedRows, encode
from petl_bench.tasks.load import Task, load_task
from petl_bench.trackers.tracker import Tracker, open_tracker
from petl_bench.weights import save_trained

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from petl_bench.measure.memory import PeakMemory
    from petl_bench.training.loop import FitResult

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
    identity = identify(cfg)
    folder = RunFolder(identity.folder)
    if not cfg.force and (done := folder.finished()) is not None:
        _log.info("finished already: %s", identity.folder)
        return done
    record = Record(run_key=identity.key, config=identity.config)
    with Recording(record, folder) as recording:
        _log.info("run %s", identity.folder)
        from accelerate.utils import set_seed

        from petl_bench.measure.memory import PeakMemory
        from petl_bench.training.loop import make_accelerator

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
            record.layers = found or _describe_layers(backbone)
            encoded = encode_task(task, backbone)
            model, record.params = build_adapted(cfg, task, backbone, len(encoded["train"]))
            model = accelerator.prepare_model(model)
        record.data, record.protocol = _describe_data(cfg, task), _describe_protocol(cfg, task, model, accelerator)
        if recording.is_main:
            recording.tracker = open_tracker(cfg.tracker, identity)
        evaluator = Evaluator(model, task, encoded, cfg.train.eval_batch_size, accelerator)
        result = _train(cfg, task, backbone, evaluator, memory, record, recording.tracker)
        with memory.phase("eval"):
            record.scores = evaluator.final_scores(result, cfg.train.selection)
        memory.log()
        record.time, record.memory = _describe_time(result, accelerator), _describe_memory(memory)
        if recording.is_main and cfg.train.save_weights:
            trained = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            record.params.stored_bytes = save_trained(folder, trained, backbone)
    return record


def encode_task(task: Task, backbone: Backbone) -> dict[str, EncodedRows]:
    """Token ids of all rows of a task: `train`, `selection`, `report`, and the extra ones by their names.

    Raises:
        RequestError: where the task's length does not fit the backbone.
    """
    length = task.settings.max_length
    if length > backbone.max_length:
        raise RequestError(
            f"task.max_length={length} does not fit backbone={backbone.settings.name}, which takes at most "
            f"{backbone.max_length} tokens."
        )
    tokenizer = backbone.load_tokenizer()
    splits = {"train": task.train, "selection": task.selection}
    splits |= {name: extra.rows for name, extra in task.extra.items()}
    encoded = {name: encode(rows, tokenizer, length) for name, rows in splits.items()}
    same_rows = task.report is task.selection
    return encoded | {"report": encoded["selection"] if same_rows else encode(task.report, tokenizer, length)}


def build_adapted(cfg: RunConfig, task: Task, backbone: Backbone, num_rows: int) -> tuple[nn.Module, Params]:
    """Builds the backbone with its head, applies the method, counts parameters."""
    from accelerate.utils import set_seed

    from petl_bench.measure.params import count_backbone, count_parameters
    from petl_bench.training.loop import num_training_steps

    method = get_method(cfg.method.name)
    set_seed(cfg.train.seed)
    model: nn.Module = backbone.build_model(task.num_labels, task.labels)
    num_backbone = count_backbone(model, backbone.anatomy.in_head)
    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps(num_rows, cfg.train))
    model = method.load_adapt()(model, cfg.method, context)
    counts = count_parameters(model, num_backbone, backbone.anatomy.in_head)
    if counts.trainable == 0:
        raise RequestError(f"method={cfg.method.name} leaves nothing to train with layers={cfg.layers.name}.")
    _log.info(
        "%s parameters trained, %s of them in the head: %.3f %% of the backbone's %s",
        *(f"{count:,}" for count in (counts.trainable, counts.trainable_head)),
        counts.trainable_share_of_backbone_percent,
        f"{counts.backbone:,}",
    )
    share = counts.trainable_share_of_backbone_percent
    return model, Params(**dataclasses.asdict(counts), trainable_share_of_backbone_percent=share)


def _train(
    cfg: RunConfig,
    task: Task,
    backbone: Backbone,
    evaluator: Evaluator,
    memory: PeakMemory,
    record: Record,
    tracker: Tracker,
) -> FitResult:
    from accelerate.utils import set_seed

    from petl_bench.training.loop import Fitter, num_training_steps
    from petl_bench.training.optimizer import build_optimizer, build_schedule

    model, accelerator, rows = evaluator.model, evaluator.accelerator, evaluator.encoded["train"]
    optimizer = build_optimizer(model, cfg.train, backbone.anatomy.in_head)
    schedule = build_schedule(optimizer, cfg.train, num_training_steps(len(rows), cfg.train))

    def selection_scores() -> dict[str, float]:
        with memory.phase("eval"):
            return evaluator.selection_scores()

    plain = accelerator.unwrap_model(model)
    best_ranks: dict[str, Any] = {}

    def on_evaluation(evaluation: HistoryEntry, is_best: bool) -> None:
        if is_best:
            best_ranks.update(rank_patterns(plain))
        record.history.append(evaluation)
        scores = {f"{task.selection_split}/{name}": value for name, value in evaluation.scores.items()}
        tracker.log(evaluation.step, {"epoch": evaluation.epoch, "train/loss": evaluation.train_loss, **scores})
        described = ", ".join(f"{name} {value:.4f}" for name, value in evaluation.scores.items())
        _log.info("epoch %.2f: train loss %.4f, %s", evaluation.epoch, evaluation.train_loss, described)

    # Dropout's stream starts here, whatever building the model drew; each process has its own.
    set_seed(cfg.train.seed + accelerator.process_index)
    with memory.phase("train"):
        result = Fitter(
            model,
            accelerator.prepare_optimizer(optimizer),
            schedule,
            rows,
            cfg.train,
            accelerator,
            selection_scores,
            metric=task.settings.metric,
            higher_is_better=task.higher_is_better,
            on_evaluation=on_evaluation,
            after_update=after_update_hook(plain),
        ).fit()
    if cfg.train.selection == "best":
        restore_rank_patterns(plain, best_ranks)
    return result


def _describe_layers(backbone: Backbone) -> Layers:
    plan = backbone.plan
    return Layers(plan.bottom, plan.top, plan.head, plan.num_layers)


def _describe_data(cfg: RunConfig, task: Task) -> Data:
    settings = cfg.task
    names = {"demo": "petl_bench demo", "files": "local files"}
    local = settings.source == "hub" and cfg.data_root is not None
    return Data(
        dataset=names.get(settings.source)
        or f"{settings.dataset}/{settings.subset}" + (" (local copy)" if local else ""),
        revision=None if local else settings.revision,
        fingerprint=task.fingerprint(),
        rows_per_split=task.rows_per_split(),
    )


def _describe_protocol(cfg: RunConfig, task: Task, model: nn.Module, accelerator: Accelerator) -> Protocol:
    model_config: Any = accelerator.unwrap_model(model).config
    return Protocol(
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
        attention_implementation=getattr(model_config, "_attn_implementation", None),
        batching=cfg.train.batching,
    )


def _describe_time(result: FitResult, accelerator: Accelerator) -> Time:
    """Throughput over all processes; the seconds are this process's."""
    import torch

    sums = torch.tensor([result.num_tokens, result.num_padded_tokens], dtype=torch.float64)
    tokens, padded = accelerator.reduce(sums.to(accelerator.device), reduction="sum").tolist()
    return Time(
        train_seconds=result.train_seconds,
        eval_seconds=result.eval_seconds,
        trunk_seconds=None,
        train_examples_per_second=result.num_examples / result.train_seconds,
        train_tokens_per_second=tokens / result.train_seconds,
        padding_share=1.0 - tokens / padded,
    )


def _describe_memory(memory: PeakMemory) -> Memory:
    load, train, evaluation = (memory.phases[name] for name in ("load", "train", "eval"))
    device = None
    if train.device_allocated_bytes is not None:
        device = DeviceMemory(
            load_peak_allocated_bytes=load.device_allocated_bytes,
            train_peak_allocated_bytes=train.device_allocated_bytes,
            train_peak_reserved_bytes=train.device_reserved_bytes,
            eval_peak_allocated_bytes=evaluation.device_allocated_bytes,
            alloc_retries=memory.alloc_retries,
        )
    return Memory(device=device, process_peak_rss_bytes=memory.process_peak_rss_bytes)
