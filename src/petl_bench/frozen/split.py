"""Finds the split point of a model: the layers below its lowest trained parameter can be computed separately.

Autograd shows up to which layer no state depends on a trained parameter, and an equivalence check shows that the rest
of the model gives the same outputs on given states. So any method is split correctly, even one from another package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from petl_bench.backbones.anatomy import Anatomy, classifier_of, is_within

# The two outputs are summed in different orders.
_TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}
_LOW_PRECISION_TOLERANCE = {"rtol": 1e-1, "atol": 1e-1}

# Standard deviation of the noise in an equivalence check, as adapters that start at zero would hide what they read.
_NOISE = 0.05

Autocast = Callable[[], AbstractContextManager[None]]

_log = logging.getLogger(__name__)


@contextmanager
def perturbed(model: nn.Module) -> Iterator[None]:
    """Adds random noise to all trained parameters within the context."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    values = [parameter.detach().clone() for parameter in trained]
    try:
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(_NOISE * torch.randn_like(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, values, strict=True):
                parameter.copy_(value)


def output_or_none(call: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """Returns the result of the call, or None if it fails."""
    try:
        return call()
    except (RuntimeError, IndexError, ValueError, TypeError, KeyError, AttributeError) as error:
        _log.debug("the model fails during an equivalence check", exc_info=error)
        return None


def outputs_match(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    """Whether neither output is None, and both are equal up to the order of sums."""
    if first is None or second is None:
        return False
    tolerance = _TOLERANCE if first.dtype == torch.float32 == second.dtype else _LOW_PRECISION_TOLERANCE
    same_shape = first.shape == second.shape
    return same_shape and torch.allclose(first.float(), second.float(), **tolerance, equal_nan=True)


@dataclass(frozen=True)
class SplitPoint:
    """Where a model is split into frozen layers and the layers above them.

    Attributes:
        depth: The embeddings and layers 1..depth are frozen.
        reads: Layers whose hidden states the rest of the model reads; 0 is the embeddings' output.
        in_tuples: Whether this architecture's layers return a tuple that begins with the hidden state.
        first_token: Whether the rest of the model reads only the first token's hidden state.
    """

    depth: int
    reads: tuple[int, ...]
    in_tuples: bool
    first_token: bool = False


class FrozenLayers:
    """Computes the hidden states of the frozen layers, and runs the rest of the model on given ones.

    Args:
        model: The adapted model, unwrapped.
        anatomy: Module paths of its architecture.
        split: The split point, as `find_split` returned it.
        autocast: Context manager of the run's precision.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, split: SplitPoint, autocast: Autocast) -> None:
        parts = _Parts(model, anatomy)
        self.model, self.split, self.autocast = model, split, autocast
        self.encoder, self.embeddings, self.foundation = parts.encoder, parts.embeddings, parts.foundation
        self.layers, self.above = parts.layers[: split.depth], parts.layers[split.depth :]

    def states(self, inputs: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Computes the hidden states that the rest of the model reads.

        Args:
            inputs: Model inputs of rows without padding; each of shape (rows, tokens).

        Returns:
            Hidden states by layer; each of shape (rows, tokens, d), or (rows, 1, d) if only the first token is read.
        """
        end = 1 if self.split.first_token else None
        return {layer: state[:, :end] for layer, state in self.states_of(inputs, self.split.reads).items()}

    def states_of(self, inputs: dict[str, torch.Tensor], layers: Collection[int]) -> dict[int, torch.Tensor]:
        """Computes hidden states of all tokens, without dropout and without gradients.

        Args:
            inputs: Model inputs of rows without padding; each of shape (rows, tokens).
            layers: Which states are kept, of 0..depth.

        Returns:
            Hidden states by layer in rising order; each of shape (rows, tokens, d).
        """
        states: dict[int, torch.Tensor] = {}
        for module in (*self.embeddings, *self.layers):
            if module.training:
                module.eval()
        with ExitStack() as stack:
            stack.enter_context(_hooked(self.layers, states, layers))
            for layer in self.above:
                stack.enter_context(_replaced(layer, self._pass_through()))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self.autocast())
            self.encoder(**inputs)
        return states

    @contextmanager
    def given(self, states: dict[int, torch.Tensor]) -> Iterator[None]:
        """Makes the model's forward pass start from these hidden states within the context."""
        lowest = states[min(states)]
        with ExitStack() as stack:
            for module in self.embeddings:
                stack.enter_context(_replaced(module, lambda *_args, **_kwargs: lowest))
            for number, layer in enumerate(self.layers, start=1):
                stack.enter_context(_replaced(layer, self._pass_through(states.get(number))))
            yield

    def _pass_through(self, state: torch.Tensor | None = None) -> Callable[..., Any]:
        """Returns a forward pass for a layer that returns `state`, or its own input if that is None."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = state if state is not None else (args[0] if args else kwargs["hidden_states"])
            return (output, None) if self.split.in_tuples else output

        return forward


def find_split(
    model: nn.Module, anatomy: Anatomy, inputs: dict[str, torch.Tensor], autocast: Autocast
) -> SplitPoint | None:
    """Finds the split point by running the model on a few rows.

    The model's outputs on given hidden states are compared with those of the whole model, with perturbed trainable
    parameters, as adapters that start at zero would hide what they read.

    Args:
        model: The adapted model, unwrapped; it stays in its current mode.
        anatomy: Module paths of its architecture.
        inputs: Model inputs of a few rows without padding; each of shape (rows, tokens).
        autocast: Context manager of the run's precision.

    Returns:
        The split point; None if no layer is frozen, or if the outputs do not match.
    """
    was_training = model.training
    try:
        # In evaluation mode adapters may be merged into frozen weights, so training mode is used here.
        parts = _Parts(model, anatomy)
        split = _frozen_part(model.train(), parts, inputs, autocast)
        if split is None:
            return None
        frozen = FrozenLayers(model.eval(), anatomy, split, autocast)
        with perturbed(model):
            checked = _checked(frozen, inputs) if not parts.unknown else None
        if checked is None:
            _log.warning("the frozen layers cannot be computed apart for this model: they run with every update")
        return checked
    finally:
        model.train(was_training)


def _checked(frozen: FrozenLayers, inputs: dict[str, torch.Tensor]) -> SplitPoint | None:
    """Returns the split point, `first_token` set, if the model gives the same outputs on given hidden states."""
    with frozen.autocast(), torch.no_grad():
        logits: torch.Tensor = frozen.model(**inputs).logits
    states = frozen.states(inputs)
    given = _logits_given(frozen, inputs, states)
    if given is None or not outputs_match(given, logits):
        return None
    (layer, state), *others = states.items()
    if others or frozen.above or inputs["input_ids"].shape[1] == 1:
        return frozen.split
    elsewhere = state.clone()
    elsewhere[:, 1:] = torch.randn_like(elsewhere[:, 1:])
    changed = _logits_given(frozen, inputs, {layer: elsewhere})
    alone = _logits_given(frozen, first_tokens(inputs), {layer: state[:, :1]})
    reads_first = changed is not None and torch.equal(changed, given) and outputs_match(alone, logits)
    return replace(frozen.split, first_token=reads_first)


def first_tokens(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the inputs of each row's first token, without a mask."""
    return {name: tensor[:, :1] for name, tensor in inputs.items() if name != "attention_mask"}


def _frozen_part(
    model: nn.Module, parts: _Parts, inputs: dict[str, torch.Tensor], autocast: Autocast
) -> SplitPoint | None:
    """Returns the split point below which no hidden state requires a gradient."""
    states: dict[int, torch.Tensor] = {}
    encoder_kwargs: dict[str, Any] = {}
    kinds: set[type] = set()
    handles = [
        parts.encoder.register_forward_pre_hook(
            lambda _, _args, kwargs: encoder_kwargs.update(kwargs), with_kwargs=True
        ),
        parts.layers[0].register_forward_hook(lambda _, _args, output: kinds.add(type(output))),
    ]
    try:
        with _hooked(parts.layers, states, range(len(parts.layers) + 1)), autocast(), torch.enable_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    depth = 0
    while depth < len(parts.layers) and depth + 1 in states and not states[depth + 1].requires_grad:
        depth += 1
    if depth == 0:
        return None
    reads_all = encoder_kwargs.get("output_hidden_states") or parts.encoder.config.output_hidden_states
    reads = tuple(range(depth + 1)) if reads_all else (depth,)
    return SplitPoint(depth, reads, in_tuples=kinds == {tuple})


def _logits_given(
    frozen: FrozenLayers, inputs: dict[str, torch.Tensor], states: dict[int, torch.Tensor]
) -> torch.Tensor | None:
    """Returns the outputs on given hidden states; None if the rest of the model fails on them."""
    with frozen.given(states), frozen.autocast(), torch.no_grad():
        return output_or_none(lambda: frozen.model(**inputs).logits)


class _Parts:
    """The encoder, embeddings and layers of a model, with or without an adapter around them."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        classifier = classifier_of(model)
        outer = classifier.get_submodule(anatomy.encoder)
        self.encoder: PreTrainedModel = next(part for part in outer.modules() if isinstance(part, PreTrainedModel))
        below = [path.removeprefix(f"{anatomy.encoder}.") for path in anatomy.embeddings]
        present = {name: part for name, part in self.encoder.named_modules() if name in below}
        self.foundation = list(present.values())
        # Parts that compute the input of the first layer; nested ones (relative positions) are used within layers.
        self.embeddings = [part for name, part in present.items() if "." not in name]
        self.layers = list(anatomy.get_layers(classifier))
        # A part that the anatomy table does not list may read any layer (DeBERTa's convolution): no split is safe.
        known = [path.removeprefix(f"{anatomy.encoder}.") for path in (anatomy.layers, *anatomy.above_layers)]
        names = (name for name, _ in self.encoder.named_parameters())
        self.unknown = any(not is_within(name, [*below, *known]) for name in names)


@contextmanager
def _hooked(layers: list[nn.Module], states: dict[int, torch.Tensor], numbers: Collection[int]) -> Iterator[None]:
    """Records hidden states into `states`: the input of the first layer, number 0, and the outputs of layers.

    Args:
        layers: All layers, numbered from 1.
        states: Filled by forward passes within the context.
        numbers: Numbers of the states that are recorded.
    """

    def record_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[0] = args[0] if args else kwargs["hidden_states"]

    def record_output(number: int, _module: nn.Module, _args: Any, output: Any) -> None:
        states[number] = output[0] if isinstance(output, tuple) else output

    handles = [layers[0].register_forward_pre_hook(record_input, with_kwargs=True)] if 0 in numbers else []
    for number, layer in enumerate(layers, start=1):
        if number in numbers:
            handles.append(layer.register_forward_hook(partial(record_output, number)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replaces a module's forward pass, compiled or not; its hooks stay. `_compiled_call_impl` is private to torch."""
    own, compiled = module.__dict__.get("forward"), module._compiled_call_impl
    module.forward, module._compiled_call_impl = forward, None
    try:
        yield
    finally:
        module._compiled_call_impl = compiled
        if own is None:
            del module.forward
        else:
            module.forward = own
