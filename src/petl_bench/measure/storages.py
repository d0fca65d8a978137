"""Watches every tensor storage be born and die, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

OnOperator = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]


class StorageLog(TorchDispatchMode):
    """While active, logs each new storage that an operator returns, and when it is freed.

    Views share a storage, which counts once. What a kernel allocates and frees inside itself is not seen.

    Args:
        counts: Whether storages on this device are logged.
        on_operator: Told of every operator that ran, with its arguments and what it returned.
    """

    def __init__(self, counts: Callable[[torch.device], bool], on_operator: OnOperator) -> None:
        super().__init__()
        self._counts, self._on_operator = counts, on_operator
        # (storage's number, bytes): positive where it was born, negative where it died.
        self.events: list[tuple[int, int]] = []
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._next = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would wrap each call for the sake of torch.compile, which takes longer than the call.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator, then notes what it returned."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._on_operator(func, args, kwargs, result)
        self._note_result(result)
        return result

    def _note_result(self, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            self.number(result)
        elif isinstance(result, list | tuple):
            for item in result:
                self._note_result(item)

    def number(self, tensor: torch.Tensor) -> int | None:
        """The number of a tensor's storage, which is logged as born if it was not known; None if it does not count."""
        if not self._counts(tensor.device):
            return None
        storage = tensor.untyped_storage()
        address = storage._cdata
        known = self._alive.get(address)
        if known is not None:
            return known[0]
        number, size = self._next, storage.nbytes()
        self._next += 1

        def died(_: object) -> None:
            self.events.append((number, -size))
            self._alive.pop(address, None)

        self._alive[address] = (number, weakref.ref(storage, died))
        self.events.append((number, size))
        return number

    def numbers(self, tensors: Iterable[torch.Tensor]) -> set[int]:
        """Numbers of these tensors' storages, each once."""
        return {number for number in map(self.number, tensors) if number is not None}

    @property
    def alive(self) -> set[int]:
        """Numbers of the storages that live now."""
        return {number for number, _ in self._alive.values()}
