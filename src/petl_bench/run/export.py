"""What a run provides for other programs: its model card, and its model in a form that loads without this package."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import logit
from torch import nn

from petl_bench.backbones.source import base_name
from petl_bench.config import RunConfig, config_from_dict
from petl_bench.errors import RequestError, RunError, first_line
from petl_bench.methods.peft import merged
from petl_bench.methods.registry import get_method
from petl_bench.process import user_path
from petl_bench.records.schema import Record
from petl_bench.records.store import CARD_FILE, MODEL_CONFIG, RunFolder
from petl_bench.run.lifecycle import FinishedRun
from petl_bench.tasks.encode import encode
from petl_bench.tasks.load import columns_of_texts, load_task, read_file, rows_of_table
from petl_bench.tasks.rows import Rows

if TYPE_CHECKING:
    from petl_bench.training.batches import BatchSource

ONNX_FILE = "model.onnx"

# The number of rows on which an exported model is compared with the run, and the batch size.
_CHECKED_ROWS, _CHECKED_BATCH = 64, 8

# The allowed difference of their logits, as a share of the largest logit.
_TOLERANCE = 1e-4

# The maximum number of labels that a card lists.
_LABELS_LISTED = 20

_log = logging.getLogger(__name__)


# The model card


def model_card(record: Record, form: str) -> str:
    """The card of a trained model, with the header that the hub reads; the same record gives the same text.

    Args:
        record: Of the run, with its scores.
        form: The form of the model that the card belongs to: `adapter`, `model` (of transformers) or `onnx`.

    Returns:
        Markdown, without any of the rows' texts.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    config: RunConfig = config_from_dict(record.config)
    task, protocol = config.task, record.protocol
    assert protocol
    name = f"{task.name}-{config.method.name}-{Path(base_name(config.backbone)).name}"
    pipeline = "token-classification" if task.type == "tagging" else "text-classification"
    data = ModelCardData(
        base_model=None if config.backbone.path else config.backbone.hub_id,
        library_name={"adapter": "peft", "model": "transformers", "onnx": "onnx"}[form],
        pipeline_tag=pipeline,
        tags=["petl_bench", config.method.name],
        model_name=name,
        eval_results=[
            EvalResult(pipeline, task.dataset or task.name, task.name, metric, round(value, 4),
                       dataset_config=task.subset, dataset_split=protocol.report_split)
            for metric, value in record.selected_scores.items()
        ],
    )  # fmt: skip
    parts = [f"# {name}", *_described(config, record), "## Use", _usage(config, record, form)]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _described(config: RunConfig, record: Record) -> list[str]:
    """The paragraphs of a card except the last one."""
    task, train, protocol, params = config.task, config.train, record.protocol, record.params
    assert protocol
    assert params
    labels = record.classes or []
    shown_labels = ", ".join(labels[:_LABELS_LISTED]) + (", ..." if len(labels) > _LABELS_LISTED else "")
    revision = f", revision {config.backbone.revision}" if config.backbone.revision and not config.backbone.path else ""
    licence = "unknown" if config.backbone.path else config.backbone.license or "unknown"
    about = {
        "Base model": "random weights"
        if config.backbone.weights == "random"
        else f"{base_name(config.backbone)}{revision}",
        "Licence of the base model": None if config.backbone.weights == "random" else licence,
        "Task": f"{task.name} ({task.type})",
        "Labels": f"{len(labels)} ({shown_labels})" if labels else None,
        "Threshold": f"a label is given from a probability of {record.threshold:g}" if record.threshold else None,
        "Training rows": f"{protocol.num_train_examples:,} of {record.data.dataset}" if record.data else None,
    }
    # A folder of this machine is of no use elsewhere.
    unsaid = ["name", "default_learning_rate", "default_head_learning_rate", *(["init"] if config.method.start else [])]
    settings = record.config["method"].items()
    options = [f"{name}={value}" for name, value in settings if name not in unsaid and value is not None]
    layers = record.layers
    training = {
        "Method": config.method.name + (f" ({', '.join(options)})" if options else ""),
        "Started from": "the adapter of another training" if config.method.start else None,
        "Adapted layers": layers and f"{layers.bottom} to {layers.top} of {layers.num_layers}, head on {layers.head}",
        "Trained parameters": f"{params.trainable:,}, {params.trainable_head:,} of them in the head",
        "Learning rate": f"{train.learning_rate:g}",
        "Learning rate of the head": train.head_learning_rate and f"{train.head_learning_rate:g}",
        "Epochs": None if train.max_steps else train.epochs,
        "Updates": train.max_steps,
        "Batch size": train.batch_size,
        "Seed": train.seed,
        "Longest row": f"{task.max_length} tokens",
        "Precision": train.precision,
        "Versions": ", ".join(f"{name} {record.versions[name]}" for name in _VERSIONS if record.versions.get(name)),
    }
    return [markdown_list(about), "## Scores", *_scored(record), "## Training", markdown_list(training)]


def _scored(record: Record) -> list[str]:
    """The rows that the scores were computed on, and the scores."""
    protocol = record.protocol
    assert protocol
    chosen = "They are those of the last weights."
    if protocol.selection == "best":
        chosen = f"The weights are those with the best {protocol.metric} on {protocol.selection_split}."
        if protocol.selection_split == protocol.report_split:
            chosen += " These are the same rows, which can make the scores higher than on new ones."
    table = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in record.selected_scores.items())
    return [
        f"Scores on {protocol.num_eval_examples:,} rows ({protocol.report_split}). {chosen}",
        f"| metric | score |\n| --- | ---: |\n{table}",
    ]


_VERSIONS = ("petl-bench", "torch", "transformers", "peft")


def markdown_list(items: dict[str, Any]) -> str:
    """A Markdown list of what is not None."""
    return "\n".join(f"- {name}: {value}" for name, value in items.items() if value is not None)


def _usage(config: RunConfig, record: Record, form: str) -> str:
    """Code that loads the model and predicts with it."""
    if form == "adapter" and config.backbone.weights == "random":
        return "The base model has random weights, which only `petl-bench predict` with the run's folder draws again."
    is_tagger = config.task.type == "tagging"
    kind = f"AutoModelFor{'Token' if is_tagger else 'Sequence'}Classification"
    texts = '"a text"' if len(config.task.text_columns) == 1 else '"a text", "the second one"'
    # Words are tokenized one by one; byte-pair tokenizers treat each as if it followed a space.
    texts, space = (
        (f"{texts}.split(), is_split_into_words=True", ", add_prefix_space=True") if is_tagger else (texts, "")
    )
    tokenize = f"inputs = tokenizer({texts}, truncation=True, max_length={config.task.max_length}, return_tensors="
    if form == "onnx":
        select_inputs = "inputs = {one.name: inputs[one.name] for one in session.get_inputs()}"
        code = [*_load_onnx(space), f'{tokenize}"np")', select_inputs, "outputs = session.run(None, inputs)[0][0]"]
    else:
        loading = _load_model(config, kind, space) if form == "model" else _load_adapter(config, record, kind, space)
        code = [*loading, f'{tokenize}"pt")', "with torch.no_grad():", "    outputs = model(**inputs).logits[0]"]
    answer = {
        "classification": "config.id2label[int(outputs.argmax())]",
        "regression": "float(outputs[0])",
        "multilabel": "[config.id2label[i] for i, one in enumerate(outputs.tolist()) if one >= "
        f"{logit(record.threshold or 0.5):.6g}]",
        "tagging": "[config.id2label[i] for i in outputs.argmax(-1).tolist()]",
    }[config.task.type]
    return "\n".join(["```python", *code, f"print({answer})", "```"])


def _load_onnx(space: str) -> list[str]:
    return [
        "# pip install onnxruntime transformers",
        "import onnxruntime",
        "from transformers import AutoConfig, AutoTokenizer",
        "",
        'folder = "."  # of this file',
        "config = AutoConfig.from_pretrained(folder)",
        f"tokenizer = AutoTokenizer.from_pretrained(folder{space})",
        f'session = onnxruntime.InferenceSession(f"{{folder}}/{ONNX_FILE}")',
    ]


def _load_model(config: RunConfig, kind: str, space: str) -> list[str]:
    is_pooled = config.backbone.pooling is not None
    return [
        f"# pip install torch transformers{' petl-bench' if is_pooled else ''}",
        "import torch",
        f"from transformers import {kind}, AutoTokenizer",
        *(["from petl_bench.backbones.load import read_pooled"] if is_pooled else []),
        "",
        'folder = "."  # of this file',
        f"model = {kind}.from_pretrained(folder).eval()",
        *(["read_pooled(model)  # the head reads what config.classifier_pooling says"] if is_pooled else []),
        "config = model.config",
        f"tokenizer = AutoTokenizer.from_pretrained(folder{space})",
    ]


def _load_adapter(config: RunConfig, record: Record, kind: str, space: str) -> list[str]:
    # PEFT knows neither our tuners nor layers that are left out.
    layers = record.layers
    is_ours = get_method(config.method.name).tuner or (layers and layers.head < layers.num_layers)
    is_ours = is_ours or config.backbone.pooling is not None
    return [
        f"# pip install torch transformers {'petl-bench' if is_ours else 'peft'}",
        "import torch",
        "from petl_bench.model import load_adapter" if is_ours else "from peft import PeftModel",
        f"from transformers import AutoConfig, {kind}, AutoTokenizer",
        "",
        f'base = "{base_name(config.backbone)}"' + ("  # the folder of the base model" if config.backbone.path else ""),
        'folder = "."  # of this file',
        f'config = AutoConfig.from_pretrained(f"{{folder}}/{MODEL_CONFIG}")',
        "# A head that the base may have gives way to that of the adapter.",
        f"model = {kind}.from_pretrained(base, config=config, ignore_mismatched_sizes=True)",
        f"model = {'load_adapter' if is_ours else 'PeftModel.from_pretrained'}(model, folder).eval()",
        f"tokenizer = AutoTokenizer.from_pretrained(base{space})",
    ]


# Export


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        folder: Where it is.
        num_rows: Rows on which its logits were compared with the run's.
        largest_difference: The largest absolute difference of a logit.
    """

    folder: str
    num_rows: int
    largest_difference: float

    def __str__(self) -> str:
        of_rows = f"the logits of {self.num_rows} rows differ by at most {self.largest_difference:.1e} from the run's"
        return f"{of_rows}\n  {self.folder}"


def export(run: FinishedRun, form: str, out: str, file: str | None = None, data_root: str | None = None) -> Export:
    """Writes the model of a run in a form that loads without this package, and compares its logits with the run's.

    Args:
        run: The finished run.
        form: `merged`, a plain model of transformers, or `onnx`.
        out: A new folder.
        file: Rows for the comparison, with the task's text columns; None: those that the run reported on.
        data_root: Where the latter are; None: where they were.

    Returns:
        The folder, the number of rows compared, and the largest difference of a logit from the run's.

    Raises:
        RequestError: If the model has no such form, the folder is not empty, or the rows cannot be read.
        RunError: If the exported model gives other logits than the run's.
    """
    import torch

    from petl_bench.run.evaluate import predict_logits
    from petl_bench.training.batches import BatchSource
    from petl_bench.training.device import make_accelerator

    target = user_path(out, "--out")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RequestError(f"--out={out} is there already and not empty: name a new folder.")
    rows, tokenizer = _rows_to_check(run, file, data_root), run.backbone.load_tokenizer()
    source = BatchSource(encode(rows, tokenizer, run.config.task.max_length, cached=False), torch.device("cpu"))
    accelerator = make_accelerator(replace(run.config.train, device="cpu", precision="fp32"))

    def logits(model: nn.Module) -> np.ndarray:
        return predict_logits(model, source, _CHECKED_BATCH, accelerator)

    # Weights that were stored in bf16 keep their values.
    model = run.load_model().float()
    expected = logits(model)
    with RunFolder(target.parent).replace_folder(target.name) as folder:
        exported = _to_onnx(run, model, source, folder) if form == "onnx" else _to_plain(run, model, folder)
        tokenizer.save_pretrained(str(folder))
        card = model_card(run.record, "onnx" if form == "onnx" else "model")
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        difference = float(np.abs(logits(exported) - expected).max())
        if difference > _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise RunError(
                f"The logits of the exported model differ by up to {difference:.2g} from those of {run.folder.path}: "
                "it is not kept."
            )
    return Export(out, len(rows), difference)


def _rows_to_check(run: FinishedRun, file: str | None, data_root: str | None) -> Rows:
    """The first of the rows on which an exported model is compared with the run's."""
    task = run.config.task
    if file is not None:
        rows = rows_of_table(read_file(task, file, "--file", columns_of_texts(task)), task, run.labels)
    else:
        try:
            rows = load_task(task, data_root or run.config.data_root).report
        except (RequestError, RunError) as error:
            raise RequestError(
                f"{error} The exported model is compared with the run's on these rows: give their folder with "
                "--data-root, or other rows with --file."
            ) from error
    return rows.take(np.arange(min(len(rows), _CHECKED_ROWS)))


def _to_plain(run: FinishedRun, model: nn.Module, folder: Path) -> nn.Module:
    """Writes the model with its adapter merged, and reads it back as transformers does."""
    from peft import PeftModel

    if run.config.backbone.pooling is not None:
        raise RequestError(
            f"backbone.pooling={run.config.backbone.pooling}: the head of a plain model would read another state. "
            "Export the run with --to onnx, or load it as its model card says."
        )
    plain, is_merged = merged(model)
    if isinstance(model, PeftModel) and not is_merged:
        raise RequestError(
            f"method={run.config.method.name} adds modules that cannot be merged into the backbone's weights: export "
            "the run with --to onnx, or load its adapter as docs/adapters.md says."
        )
    plain.save_pretrained(folder)  # type: ignore[operator]
    loaded: nn.Module = run.backbone.model_class.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    return loaded.eval()


def _to_onnx(run: FinishedRun, model: nn.Module, source: BatchSource, folder: Path) -> nn.Module:
    """Writes the model as `model.onnx`, for any number of rows and tokens, beside the config of transformers."""
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RequestError("--to onnx needs the extra `onnx`: pip install 'petl-bench[onnx]'.") from error
    # Silences messages about packages that this model does not need.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    inputs = source.batch(np.resize(np.arange(len(source.rows)), 2)).inputs
    inputs = {"input_ids": inputs["input_ids"], "attention_mask": torch.ones_like(inputs["input_ids"])} | inputs
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with warnings.catch_warnings():
            # These warnings concern torch's own code.
            warnings.simplefilter("ignore", FutureWarning)
            torch.onnx.export(
                _LogitsOnly(model, list(inputs)).eval(),
                tuple(inputs.values()),
                folder / ONNX_FILE,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes=(tuple(any_size for _ in inputs),),
                dynamo=True,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    except Exception as error:  # of torch's exporter and of onnxruntime, which have many
        _log.debug("the export to ONNX failed", exc_info=error)
        raise RequestError(
            f"method={run.config.method.name} on {base_name(run.config.backbone)} cannot be exported to ONNX: "
            f"{first_line(error)}"
        ) from error
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    return _OnnxModel(session)


class _LogitsOnly(nn.Module):
    """A model whose only output is its logits, and whose inputs come in this order."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self._names = model, names

    def forward(self, *inputs: Any) -> Any:
        """The logits."""
        return self.model(**dict(zip(self._names, inputs, strict=True))).logits


class _OnnxModel(nn.Module):
    """An onnxruntime session that is called like a model."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session

    def forward(self, **inputs: Any) -> Any:
        """Outputs with `logits`."""
        import torch

        inputs = {"attention_mask": torch.ones_like(inputs["input_ids"])} | inputs
        arrays = {node.name: inputs[node.name].numpy() for node in self._session.get_inputs()}
        return SimpleNamespace(logits=torch.from_numpy(self._session.run(None, arrays)[0]))
