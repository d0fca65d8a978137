"""A method's training phase on texts without labels, from its config to an adapter that runs start from."""

from __future__ import annotations

import dataclasses
import logging
import pkgutil
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.config_store import ConfigStore

from petl_bench.backbones.load import Backbone, open_backbone
from petl_bench.backbones.source import base_name, model_files
from petl_bench.config import RunConfig, load_config, resolved
from petl_bench.errors import RequestError
from petl_bench.measure import git, hardware, versions
from petl_bench.methods.coda import CodaPretraining
from petl_bench.methods.registry import all_methods, get_method
from petl_bench.process import file_sha256, user_path, without_home
from petl_bench.records.reading import check_hash, finite, validate
from petl_bench.records.run_key import backbone_name, run_key
from petl_bench.records.schema import HistoryEntry, Number
from petl_bench.records.store import ADAPTER_FOLDER, RunFolder, read_json, write_record
from petl_bench.run.export import markdown_list
from petl_bench.run.lifecycle import RunLifecycle
from petl_bench.run.predict_file import one_a_line
from petl_bench.run.run import open_checkpoints
from petl_bench.settings import check_choices, setting
from petl_bench.tasks import TextsConfig
from petl_bench.tasks.encode import EncodedRows, encode, joined
from petl_bench.tasks.load import load_task
from petl_bench.tasks.rows import Rows
from petl_bench.tasks.table_files import read_table
from petl_bench.training.device import decided_by_main, freed_memory_kept, make_accelerator
from petl_bench.training.loop import Callback

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftModel

    from petl_bench.methods.coda.distillation import CodaDistillation
    from petl_bench.training.checkpoint import Progress

PRETRAINING_FILE = "pretraining.json"

_METRIC = "distance"

_log = logging.getLogger(__name__)


@dataclass
class PretrainConfig(RunConfig):
    """All settings of the phase: those of a run, its texts, and the method's own."""

    texts: TextsConfig = field(default_factory=TextsConfig)
    phase: CodaPretraining = field(default_factory=CodaPretraining)
    half: bool = setting(False, "Store the adapter in half precision.")


@dataclass
class Pretraining:
    """The record of the phase; its times are sums over the parts of an interrupted one."""

    run_key: str
    config: dict[str, Any]
    status: str = "running"
    error: str | None = None
    ended_at: str | None = None
    num_texts: int = 0
    num_tokens: int = 0
    trainable: int = 0
    updates: int = 0
    resumed_at_updates: list[int] = field(default_factory=list)
    train_seconds: Number | None = None
    eval_seconds: Number | None = None
    # Evaluations on the texts that were kept apart; all are distances from the dense encoder.
    history: list[HistoryEntry] = field(default_factory=list)
    versions: dict[str, str | None] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    base_files: dict[str, str] | None = None
    stored_files: dict[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return finite(dataclasses.asdict(self))


class PretrainingFolder(RunFolder):
    """The folder of one training phase, laid out as that of a run."""

    def finished(self) -> Pretraining | None:  # type: ignore[override]
        """The record of a finished phase; None where there is none, or a broken one."""
        try:
            content = read_json(self.path / PRETRAINING_FILE)
            check_hash(content)
            record = validate(Pretraining, content)
        except FileNotFoundError:
            return None
        except ValueError as error:
            _log.warning("%s cannot be read (%s): it is made again", self.path / PRETRAINING_FILE, error)
            return None
        return record if record.status == "finished" else None

    def write(self, record: Pretraining) -> None:  # type: ignore[override]
        """Writes the record by an atomic rename; a failed repetition never replaces a finished one."""
        if record.status == "finished" or self.finished() is None:
            write_record(self.path / PRETRAINING_FILE, record.to_dict())


def load_pretrain_config(overrides: list[str]) -> PretrainConfig:
    """Composes the config of a phase, as the command line does.

    Raises:
        RequestError: If the overrides do not compose, or the settings do not fit together.
    """
    # Checked before composing: conf/pretrain.yaml sets options that other methods do not have.
    able = [name for name, method in all_methods().items() if method.pretraining]
    for name in (override.partition("=")[2] for override in overrides if override.startswith("method=")):
        if name not in able:
            raise RequestError(f"method={name} has no training phase without labels: use one of {', '.join(able)}.")
    ConfigStore.instance().store(group="schema", name="pretrain", node=PretrainConfig)
    cfg = load_config(overrides, primary="pretrain")
    assert isinstance(cfg, PretrainConfig)
    texts, phase = cfg.texts, cfg.phase
    if not texts.tasks and not texts.files:
        raise RequestError("There are no texts: name tasks with texts.tasks=[...] or files with texts.files=[...].")
    sources = [*texts.tasks, *(Path(file).name for file in texts.files)]
    if twice := [name for name in sources if sources.count(name) > 1]:
        raise RequestError(f"Two sources of texts are called {twice[0]}: name each once, and give files other names.")
    if cfg.method.start is not None:
        raise RequestError(f"method.init={cfg.method.init}: the phase has a start of its own; leave this setting out.")
    if cfg.train.class_weights != "none":
        raise RequestError(
            f"train.class_weights={cfg.train.class_weights}: the phase has no classes; leave this setting out."
        )
    if cfg.layers.name != "all":
        raise RequestError(f"layers={cfg.layers.name}: the phase trains all layers; leave this setting out.")
    for key, value, low, high in (
        ("phase.k2all_share", phase.k2all_share, 0, 1),
        ("phase.widening_share", phase.widening_share, 0, 1),
        ("phase.largest_reduction", phase.largest_reduction, 1, float("inf")),
        ("phase.first_token_weight", phase.first_token_weight, 0, float("inf")),
        ("phase.inner_weight", phase.inner_weight, 0, float("inf")),
        ("texts.held_out", texts.held_out, 1, float("inf")),
    ):
        if not low <= value <= high:
            raise RequestError(f"{key}={value} must lie between {low} and {high}.")
    check_choices("phase", phase)
    return cfg


def pretrain(cfg: PretrainConfig) -> tuple[Pretraining, Path]:
    """Trains a method's adapter on texts without labels. A phase that is finished is not repeated.

    Args:
        cfg: The whole config; `load_pretrain_config` makes one.

    Returns:
        The record and the folder `<runs_dir>/pretrained-<method>-<backbone>-s<seed>-<key>`, whose `adapter` is in
        PEFT's format, for the bare encoder; `method.init` takes either folder.

    Raises:
        RequestError: If the request cannot work.
        RunError: If the training failed.
        Interrupted: On Ctrl-C or SIGTERM; the same command goes on from the last checkpoint.
    """
    cfg = resolved(cfg)
    sources = _read_texts(cfg)
    config = _recorded(cfg)
    files = model_files(user_path(cfg.backbone.path, "backbone.path")) if cfg.backbone.path else {}
    hashes = {name: rows.fingerprint() for name, rows in sources.items()}
    key = run_key(config, hashes | {name: file_sha256(file) for name, file in files.items()})
    name = f"pretrained-{cfg.method.name}-{backbone_name(config['backbone'])}-s{cfg.train.seed}-{key}"
    folder = PretrainingFolder(Path(cfg.runs_dir).expanduser() / name)
    accelerator = make_accelerator(cfg.train)
    done = None if cfg.force else decided_by_main(folder.finished)
    if done is not None:
        _log.info("finished already: %s", folder.path)
        return done, folder.path
    record = Pretraining(key, config)
    with RunLifecycle(record, folder) as lifecycle, freed_memory_kept():
        _log.info("pretraining %s", folder.path)
        _pretrain(cfg, sources, lifecycle, accelerator)
    return record, folder.path


def _recorded(cfg: PretrainConfig) -> dict[str, Any]:
    """The settings that the phase depends on."""
    config = cfg.to_dict()
    config["task"] = {"max_length": cfg.task.max_length, "data_seed": cfg.task.data_seed}
    config["texts"]["files"] = [without_home(file) for file in cfg.texts.files]
    config["backbone"]["path"] = cfg.backbone.path and without_home(cfg.backbone.path)
    return {name: config[name] for name in ("backbone", "method", "task", "train", "texts", "phase", "half")}


def _read_texts(cfg: PretrainConfig) -> dict[str, Rows]:
    """The texts by task or file, without their labels."""
    texts: dict[str, Rows] = {}
    for name in cfg.texts.tasks:
        task = load_config([f"task={name}"]).task
        texts[name] = replace(load_task(task, cfg.data_root).train, labels=None)
    for file in cfg.texts.files:
        texts[Path(file).name] = Rows((_texts_of_file(file),), None)
    generator = np.random.default_rng(cfg.task.data_seed)
    for name, rows in texts.items():
        drawn = rows.take(generator.permutation(len(rows))[: cfg.texts.most])
        if len(drawn) <= cfg.texts.held_out:
            raise RequestError(
                f"{name} gives {len(drawn)} texts, of which texts.held_out={cfg.texts.held_out} are kept apart: give "
                "more texts, or lower that number."
            )
        texts[name] = drawn
    return texts


def _texts_of_file(file: str) -> list[str]:
    """The lines of a file that hold words."""
    if user_path(file, "texts.files").is_dir() or re.search(r"\.(jsonl?|parquet)(\.gz)?$", file.lower()):
        raise RequestError(f"texts.files={file} is a folder or a table: give a plain text file with one text a line.")
    table = read_table(
        *(file, "texts.files", ["text"]),
        lambda text, source: one_a_line(text, source, ["text"], "these lines are left out"),
    )
    return [line for line in table.columns["text"] if line.strip()]


def _pretrain(
    cfg: PretrainConfig, sources: dict[str, Rows], lifecycle: RunLifecycle[Pretraining], accelerator: Accelerator
) -> None:
    """Trains and stores the adapter, and fills in the record.

    Args:
        cfg: The whole config.
        sources: Texts by task or file.
        lifecycle: The record, its folder, and whether this process writes.
        accelerator: The process's device, precision and place among the processes.
    """
    from accelerate.utils import set_seed

    from petl_bench.model import save_adapter

    record = lifecycle.record
    record.versions, record.git = versions(), git()
    record.hardware = hardware(on_cuda=accelerator.device.type == "cuda", num_processes=accelerator.num_processes)
    backbone = open_backbone(cfg.backbone, cfg.layers)
    backbone.check_length(cfg.task.max_length)
    record.base_files = backbone.file_hashes()
    tokenizer = backbone.load_tokenizer()

    def encoded(rows: Rows, start: int, stop: int) -> EncodedRows:
        return encode(rows.take(np.arange(start, stop)), tokenizer, cfg.task.max_length)

    train = joined([encoded(rows, cfg.texts.held_out, len(rows)) for rows in sources.values()])
    held_out = joined([encoded(rows, 0, cfg.texts.held_out) for rows in sources.values()])
    record.num_texts, record.num_tokens = len(train), len(train.ids)
    _log.info("texts: %s to train on, %d kept apart", f"{len(train):,}", len(held_out))

    set_seed(cfg.train.seed)
    student = _student(cfg, backbone)
    record.trainable = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    progress = _train(cfg, student, train, held_out, lifecycle, accelerator)
    record.updates, record.resumed_at_updates = progress.num_steps, progress.resumed_at
    record.train_seconds, record.eval_seconds = progress.train_seconds, progress.eval_seconds
    if lifecycle.is_main:
        card = _card(cfg, record)
        save_adapter(lifecycle.folder, student, backbone, card, classifies=False, half=cfg.half)
        record.stored_files = lifecycle.folder.stored_files([ADAPTER_FOLDER])


def _card(cfg: PretrainConfig, record: Pretraining) -> str:
    """The model card of the adapter, without any of the texts."""
    from huggingface_hub import ModelCard, ModelCardData

    name = f"pretrained-{cfg.method.name}-{Path(base_name(cfg.backbone)).name}"
    base = None if cfg.backbone.path else cfg.backbone.hub_id
    data = ModelCardData(base_model=base, library_name="peft", tags=["petl_bench", cfg.method.name], model_name=name)
    sources = [*cfg.texts.tasks, *(Path(file).name for file in cfg.texts.files)]
    about = {
        "Base model": base_name(cfg.backbone),
        "Texts": f"{record.num_texts:,} without labels, of {', '.join(sources)}",
        "Updates": f"{record.updates:,} of {cfg.train.batch_size} texts",
        "Learning rate": f"{cfg.train.learning_rate:g}",
        "Distance from the dense encoder on texts kept apart": f"{record.history[-1].scores[_METRIC]:.4f}",
        "Seed": cfg.train.seed,
    }
    use = "A start for runs of petl_bench: `method.init=FOLDER`. It has no head and gives no answers by itself."
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{markdown_list(about)}\n\n{use}\n"))


def _student(cfg: PretrainConfig, backbone: Backbone) -> PeftModel:
    """The bare encoder with the method's adapter."""
    from peft import get_peft_model

    from petl_bench.methods.base import peft_options

    method = get_method(cfg.method.name)
    assert method.peft_config is not None
    config_class = pkgutil.resolve_name(method.peft_config)
    options = peft_options(cfg.method, config_class)
    if cfg.phase.attention != "k2k":
        # Refused where the architecture cannot have it.
        options["attention"] = "k2all"
    encoder = backbone.build_model(1).get_submodule(backbone.anatomy.encoder)
    try:
        return get_peft_model(encoder, config_class(**options))  # type: ignore[arg-type]
    except ValueError as error:
        way_out = "; with phase.attention=k2k only that form is trained" if cfg.phase.attention != "k2k" else ""
        raise RequestError(f"method={cfg.method.name}: {error}{way_out}.") from error


class _UpdateCounter(Callback):
    """Sets the model's number of completed updates, which determines its reductions and its form of attention."""

    def __init__(self, model: CodaDistillation) -> None:
        self.model = model

    def on_resume(self, progress: Progress) -> None:
        """See `Callback`."""
        self.model.step = progress.num_steps - progress.num_skipped

    def on_update(self, step: int) -> None:
        """See `Callback`."""
        self.model.step = step


def _train(
    cfg: PretrainConfig,
    student: PeftModel,
    train: EncodedRows,
    held_out: EncodedRows,
    lifecycle: RunLifecycle[Pretraining],
    accelerator: Accelerator,
) -> Progress:
    """Trains the student, from a checkpoint if an interrupted phase left one.

    Args:
        cfg: The whole config.
        student: The encoder with its adapter; changed in place.
        train: Texts to train on.
        held_out: Texts on which the distance from the dense encoder is measured.
        lifecycle: The record, which gets the history, and the folder of the checkpoints.
        accelerator: The process's device, precision and place among the processes.
    """
    from accelerate.utils import set_seed

    from petl_bench.methods.peft import RankAllocation
    from petl_bench.training.batches import BatchSource, sorted_batches
    from petl_bench.training.checkpoint import TrainingState, load_trainable_weights
    from petl_bench.training.loop import TrainingLoop, build_optimizer, build_schedule, num_training_steps

    num_steps = num_training_steps(len(train), cfg.train)
    pretraining = get_method(cfg.method.name).pretraining
    assert pretraining is not None
    plain: CodaDistillation = pkgutil.resolve_name(pretraining)(student, cfg.phase, num_steps, cfg.train.seed)
    model = accelerator.prepare_model(plain)
    # Norms have their own learning rate, in place of a head's.
    rates = replace(cfg.train, head_learning_rate=cfg.phase.norm_learning_rate)
    optimizer = accelerator.prepare_optimizer(build_optimizer(model, rates, lambda name: "modules_to_save" in name))
    schedule = build_schedule(optimizer, cfg.train, num_steps)
    state = TrainingState(model, optimizer, schedule, accelerator, extra=RankAllocation(student))
    lifecycle.record.history = state.progress.history
    source, held_out_source = BatchSource(train, accelerator.device), BatchSource(held_out, accelerator.device)
    batches = sorted_batches(held_out.lengths, cfg.train.eval_batch_size)

    def evaluate() -> dict[str, float]:
        distances = plain.held_out_distances(held_out_source.batch(indices).inputs for indices in batches)
        _log.info("update %d of %d: distance %.4f", state.progress.num_steps, num_steps, distances[_METRIC])
        return distances

    loop = TrainingLoop(
        state,
        source,
        cfg.train,
        evaluate,
        metric=_METRIC,
        higher_is_better=False,
        callbacks=[_UpdateCounter(plain)],
        checkpoints=open_checkpoints(cfg, lifecycle, accelerator),
        count_terms=lambda indices: plain.loss_terms(train.lengths[indices]),
    )
    set_seed(cfg.train.seed + accelerator.process_index)
    progress = loop.run()
    if cfg.train.selection == "best":
        load_trainable_weights(plain, progress.best_weights)
    return progress
