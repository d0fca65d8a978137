"""What every method must do, on tiny random models: for `petl-bench check METHOD`, and the tests of other packages.

A check is a function of a `Subject`, which is a method on one architecture. It raises `CheckFailed` with one sentence
if it fails, and returns a sentence that says why if it does not apply. The tests of petl_bench call the same checks.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petl_bench.backbones.anatomy import is_within
from petl_bench.backbones.load import Backbone
from petl_bench.config import RunConfig
from petl_bench.errors import first_line
from petl_bench.methods.base import adapt
from petl_bench.methods.registry import AdaptContext
from petl_bench.model import count_parameters, load_trained, save_trained
from petl_bench.records.store import RunFolder

LABELS = torch.tensor([0, 1, 0, 1])
_ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}


class CheckFailed(AssertionError):
    """A method does not do what every method must."""


def batch(padded: bool = True) -> dict[str, torch.Tensor]:
    """Four rows of at most ten tokens."""
    ids = torch.arange(10, 50).reshape(4, 10)
    mask = torch.ones_like(ids)
    if padded:
        for row, length in enumerate((10, 7, 4, 1)):
            mask[row, length:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def repetitive_batch() -> dict[str, torch.Tensor]:
    """Four rows of at most 23 tokens, most of which are equal to others of their row."""
    ids = 10 + torch.arange(4 * 23).reshape(4, 23) % torch.tensor([[2], [3], [5], [1]])
    mask = (torch.arange(23) < torch.tensor([[23], [17], [11], [6]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def train(model: nn.Module, steps: int = 3, learning_rate: float = 1e-2) -> None:
    """Makes a few updates of the trainable parameters, and leaves the model in evaluation mode."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    model.train()
    for _ in range(steps):
        model(**batch(), labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def logits(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    """The model's logits on these inputs, or on `batch()`."""
    with torch.no_grad():
        values: torch.Tensor = model(**(inputs or batch())).logits
    return values


def trainable(model: nn.Module) -> set[str]:
    """Names of the parameters that are trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


class Subject:
    """A method on one architecture, with random weights. Building models is the slowest part, so each is built once.

    Args:
        cfg: The run's settings; its method is checked.
        backbone: Opened with its layers, which are few and narrow.
        plain: The classifier without the method, if there is one already.
    """

    def __init__(self, cfg: RunConfig, backbone: Backbone, plain: nn.Module | None = None) -> None:
        self.cfg, self.backbone = cfg, backbone
        if plain is not None:
            self.plain = plain

    @cached_property
    def plain(self) -> nn.Module:
        """The classifier without the method, which must not be modified."""
        torch.manual_seed(0)
        return self.backbone.build_model(2).eval()

    @cached_property
    def fresh(self) -> nn.Module:
        """The adapted model before training, which must not be modified."""
        context = AdaptContext(self.backbone.anatomy, self.backbone.plan, num_training_steps=1000)
        model = copy.deepcopy(self.plain)
        torch.manual_seed(1)
        return adapt(model, self.cfg.method, context).eval()

    @cached_property
    def learned(self) -> nn.Module:
        """The adapted model after three updates, which must not be modified."""
        model = self.adapted()
        train(model)
        return model

    def adapted(self) -> Any:
        """A copy of the adapted model, which may be modified."""
        return copy.deepcopy(self.fresh)

    def trained(self) -> Any:
        """A copy of the adapted model after three updates, which may be modified."""
        return copy.deepcopy(self.learned)

    def in_head(self, name: str) -> bool:
        """Whether a parameter or module of this name belongs to the head."""
        return self.backbone.anatomy.in_head(name)


def require(condition: object, sentence: str) -> None:
    """Raises `CheckFailed` with the sentence unless the condition holds."""
    if not condition:
        raise CheckFailed(sentence)


def _require_close(
    actual: torch.Tensor, expected: torch.Tensor, sentence: str, *, rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    same = actual.shape == expected.shape and torch.allclose(actual, expected, rtol=rtol, atol=atol)
    require(same, sentence if same else f"{sentence}: {_difference(actual, expected)}")


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> str:
    if actual.shape != expected.shape:
        return f"their shapes are {tuple(actual.shape)} and {tuple(expected.shape)}"
    return f"the largest difference is {float((actual - expected).abs().max()):.2g}"


def _require_none(names: Iterable[str], sentence: str) -> None:
    """Raises `CheckFailed` with the sentence about the first of the names, if there is one."""
    first = next(iter(names), None)
    require(first is None, sentence.format(first))


def _no_adapter(subject: Subject, *, of_its_own: bool = False) -> str | None:
    """Why a check of PEFT adapters, or of those whose tuner is not PEFT's, does not apply; None if it does."""
    if not hasattr(subject.fresh, "peft_config"):
        return "the method is no PEFT adapter"
    base: Any = subject.fresh.base_model
    theirs = of_its_own and type(base).__module__.startswith(("peft.", "transformers."))
    return "the tuner is one of PEFT's" if theirs else None


def the_head_is_trained(subject: Subject) -> None:
    """Every module of the head has a trainable parameter; a method that brings a head replaces the last module."""
    head, config = subject.backbone.anatomy.head, getattr(subject.fresh, "peft_config", {}).get("default")
    brings_one = config is not None and not hasattr(config, "modules_to_save")
    names = {name.removeprefix("base_model.").removeprefix("model.") for name in trainable(subject.fresh)}
    frozen = [module for module in head if not any(is_within(name, [module]) for name in names)]
    require(head[-1] not in frozen, f"the head ({head[-1]}) is not trained")
    require(brings_one or not frozen, f"{' and '.join(frozen)} of the head is not trained")


def the_base_model_is_left_alone(subject: Subject) -> None:
    """Neither the method nor an update changes a weight that is not trained."""
    tensors, trained = list(subject.fresh.state_dict().values()), trainable(subject.fresh)
    for name, weight in subject.plain.named_parameters():
        is_unchanged = any(tensor.shape == weight.shape and torch.equal(tensor, weight) for tensor in tensors)
        require(is_unchanged or name in trained or subject.in_head(name), f"adapting the base model changes its {name}")
    moved = (name for name in _moved(subject) if name not in trained)
    _require_none(moved, "{} is not trainable, and moves in three updates")


def _moved(subject: Subject) -> list[str]:
    """Names of the parameters and buffers that three updates change."""
    both = (subject.fresh, subject.learned)
    before, after = (dict(model.named_parameters()) | dict(model.named_buffers()) for model in both)
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def something_is_trained_and_moves(subject: Subject, may_stay: Callable[[str], bool] = lambda _: False) -> None:
    """Every trainable parameter changes within three updates, but for those that may stay; there is at least one."""
    trained = trainable(subject.fresh)
    require(trained, "no parameter of the adapted model is trainable")
    stay = (name for name in sorted(trained - set(_moved(subject))) if not may_stay(name))
    _require_none(stay, "{} is trainable, and does not move in three updates")


def switched_off_it_is_the_base(subject: Subject) -> str | None:
    """After training, the model with its adapter disabled gives the base model's logits to the bit."""
    if reason := _no_adapter(subject):
        return reason
    model, plain = subject.trained(), logits(subject.plain)
    trained = logits(model)
    require(not torch.equal(trained, plain), "three updates do not change the logits")
    with model.disable_adapter():
        disabled = logits(model)
    require(torch.equal(disabled, plain), f"disabled, it is not the base model: {_difference(disabled, plain)}")
    require(torch.equal(logits(model), trained), "after it was disabled for a while, its logits are others than before")
    return None


def padding_changes_nothing(subject: Subject) -> None:
    """A row gives the same logits alone, in a batch, and with more padding; up to the order of sums."""
    model = subject.learned
    # Equal tokens have equal states where positions are relative.
    for inputs in (batch(), repetitive_batch()):
        together = logits(model, **inputs)
        for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
            alone = logits(model, **{name: tensor[row : row + 1, :length] for name, tensor in inputs.items()})
            sentence = f"a row of {length} tokens has other logits alone than padded in a batch"
            _require_close(alone[0], together[row], sentence, atol=2e-6)
        wider = {name: nn.functional.pad(tensor, (0, 7)) for name, tensor in inputs.items()}
        _require_close(logits(model, **wider), together, "seven columns of padding change the logits", atol=2e-6)


def it_is_saved_and_loads(subject: Subject) -> None:
    """What is saved after training gives the same logits when it is loaded: an adapter as PEFT does, else the model."""
    from peft import PeftModel

    model, expected = subject.learned, logits(subject.learned)
    with tempfile.TemporaryDirectory() as folder:
        if not isinstance(model, PeftModel):
            saved = RunFolder(Path(folder))
            save_trained(saved, copy.deepcopy(model), subject.backbone, card=str)
            actual = logits(load_trained(saved, subject.backbone, ["0", "1"]))
            require(torch.equal(actual, expected), f"loaded, it is another model: {_difference(actual, expected)}")
            return
        model.save_pretrained(folder, save_embedding_layers=False)
        others = {file.name for file in Path(folder).iterdir()} - _ADAPTER_FILES
        _require_none(others, "besides an adapter's files it saves {}")
        for further in (False, True):
            loaded = PeftModel.from_pretrained(copy.deepcopy(subject.plain), folder, is_trainable=further)  # type: ignore[arg-type]
            actual = logits(loaded.eval())
            require(torch.equal(actual, expected), f"loaded, it is another model: {_difference(actual, expected)}")
            require(bool(trainable(loaded)) == further, f"is_trainable={further} is ignored as it loads")


def merging_is_exact_or_refused(subject: Subject) -> str | None:
    """The merged model gives the same logits, or merging raises a ValueError that says why not."""
    if reason := _no_adapter(subject):
        return reason
    model = subject.trained()
    if not hasattr(model, "merge_and_unload"):
        return "PEFT does not merge it"
    before, names = logits(model), set(model.state_dict())
    try:
        merged = model.merge_and_unload()
    except (AttributeError, NotImplementedError):
        # PEFT's own tuners fail like this, some of them at modules without a weight.
        if not _no_adapter(subject, of_its_own=True):
            raise
        return "PEFT does not merge it"
    except ValueError as error:
        require(str(error), "merging is refused without a reason")
        left = set(model.state_dict()) == names and torch.equal(logits(model), before)
        require(left, "the refused merge has changed the model")
        return str(error)
    _require_close(logits(merged), before, "the merged model gives other logits")
    _require_none((name for name, _ in merged.named_parameters() if "default" in name), "merged, it still holds {}")
    return None


def unloaded_it_is_the_base(subject: Subject) -> str | None:
    """`unload` gives the modules and weights of the base model back, but for what was trained as a whole."""
    if reason := _no_adapter(subject, of_its_own=True):
        return reason
    model = subject.trained()
    unloaded, plain_weights = model.unload(), subject.plain.state_dict()
    actual, expected = ({n: type(m) for n, m in root.named_modules()} for root in (unloaded, subject.plain))
    changed = (name for name in actual | expected if actual.get(name) != expected.get(name))
    _require_none(changed, "unloaded, {} is not the base model's module")
    saved_whole = model.peft_config["default"].to_dict().get("modules_to_save") or []
    for name, tensor in unloaded.state_dict().items():
        # PEFT keeps the trained values of the modules that it trains as a whole.
        if not any(name.rpartition(".")[0].endswith(module) or f"{module}." in name for module in saved_whole):
            require(torch.equal(tensor, plain_weights[name]), f"unloaded, {name} is not the base model's")
    num_states = len(unloaded(**batch(), output_hidden_states=True).hidden_states)
    require(num_states == subject.backbone.plan.num_layers + 1, "unloaded, it does not give every layer's states")
    return None


def two_adapters_stay_apart(subject: Subject) -> str | None:
    """Another adapter on the same model is trained, switched to and deleted without a change of the first."""
    if reason := _no_adapter(subject, of_its_own=True):
        return reason
    model = subject.trained()
    first, settings = logits(model), copy.deepcopy(model.peft_config["default"])
    # PEFT appends its guess of the head's name a second time.
    if getattr(settings, "modules_to_save", None):
        settings.modules_to_save = list(dict.fromkeys(settings.modules_to_save))
    model.add_adapter("second", settings)
    model.set_adapter("second")
    require(not torch.equal(logits(model), first), "a second adapter starts with the first one's values")
    others = (name for name in trainable(model) if ".second" not in name)
    _require_none(others, "with the second adapter active, {} is trainable")
    train(model)
    second = logits(model)
    for name, expected in (("default", first), ("second", second)):
        model.set_adapter(name)
        require(torch.equal(logits(model), expected), "training a second adapter, or switching, changes the other")
    model.delete_adapter("second")
    model.set_adapter("default")
    require(torch.equal(logits(model), first), "deleting a second adapter changes the first")
    return None


def gradient_checkpointing_changes_no_gradient(subject: Subject) -> str | None:
    """Gradients with and without checkpointing are the same, up to the order of sums."""
    if not subject.plain.supports_gradient_checkpointing:
        return f"transformers cannot checkpoint {type(subject.plain).__name__}"
    gradients = []
    for checkpointing in (False, True):
        model = subject.adapted()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        torch.manual_seed(3)
        model(**batch(), labels=LABELS).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    require(plain.keys() == checkpointed.keys(), "with checkpointing, other parameters have gradients")
    for name, gradient in plain.items():
        sentence = f"with checkpointing, {name} has another gradient"
        _require_close(checkpointed[name], gradient, sentence, rtol=1e-4, atol=1e-6)
    return None


def it_trains_in_bf16(subject: Subject) -> None:
    """In bf16 the loss is finite and reaches all that is trained; so it is with autocast, on a base in bf16 too."""
    from peft import get_peft_model

    model = subject.adapted().to(torch.bfloat16)
    loss = model(**batch(), labels=LABELS).loss
    loss.backward()
    require(torch.isfinite(loss), "in bf16 the loss is not finite")
    without = (name for name, p in model.named_parameters() if p.requires_grad and p.grad is None)
    _require_none(without, "in bf16 {} has no gradient")
    if hasattr(model, "peft_config"):
        base: Any = copy.deepcopy(subject.plain).to(torch.bfloat16)
        mixed = get_peft_model(base, copy.deepcopy(model.peft_config["default"]))
        require(torch.isfinite(logits(mixed)).all(), "on a base in bf16 the logits are not finite")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        require(torch.isfinite(logits(subject.adapted())).all(), "with autocast the logits are not finite")


def hidden_states_are_what_the_layers_put_out(subject: Subject) -> None:
    """`output_hidden_states` gives the outputs of all layers as they are with the method."""
    model, outputs = subject.learned, []
    classifier: Any = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
    layers = subject.backbone.anatomy.get_layers(classifier)
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    with torch.no_grad():
        states = model(**batch(), output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    require(len(states) == len(outputs) + 1 == len(layers) + 1, "there is not one state for each layer and one below")
    # The last state may have passed through a norm.
    for number, (state, output) in enumerate(zip(states[1:-1], outputs[:-1], strict=True), start=1):
        require(torch.equal(state, output), f"the state of layer {number} is not what that layer puts out")
    require(states[-1].shape == states[0].shape, "the states do not have one shape")


def its_costs_are_counted_without_weights(subject: Subject) -> str | None:
    """`petl-bench plan` counts as many trained parameters as the model has, on tensors without values."""
    from petl_bench.estimate.costs import estimate_costs

    real = count_parameters(subject.fresh, 1, subject.in_head)
    try:
        counted = estimate_costs(subject.cfg, subject.backbone, ["0", "1"]).params
    except Exception as error:
        return f"its memory cannot be estimated: {first_line(error)}"
    same = (counted.trainable_method, counted.trainable_head) == (real.trainable_method, real.trainable_head)
    require(same, f"without weights, {counted.trainable:,} parameters are trained; with weights, {real.trainable:,}")
    return None


CHECKS: tuple[Callable[[Subject], str | None], ...] = (
    something_is_trained_and_moves,
    the_head_is_trained,
    the_base_model_is_left_alone,
    switched_off_it_is_the_base,
    padding_changes_nothing,
    it_is_saved_and_loads,
    merging_is_exact_or_refused,
    unloaded_it_is_the_base,
    two_adapters_stay_apart,
    gradient_checkpointing_changes_no_gradient,
    it_trains_in_bf16,
    hidden_states_are_what_the_layers_put_out,
    its_costs_are_counted_without_weights,
)
