"""The errors a user meets: each is one clear sentence that names the key or file and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestError(Exception):
    """The request was wrong (exit code 2): an option, a file or a combination that cannot work."""


class RunError(Exception):
    """The run failed (exit code 1); `status` is what its record says."""

    status = "failed"


class DivergedError(RunError):
    """The loss or the model's outputs are not finite."""

    status = "diverged"


class OutOfMemoryError(RunError):
    """Host or device memory did not suffice."""

    status = "out_of_memory"


class Interrupted(BaseException):
    """A termination signal arrived; not an `Exception`, so that nothing swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum


def unknown_choice(key: str, value: object, allowed: Iterable[str]) -> RequestError:
    """Returns the error for a value outside a closed set, with the nearest name suggested."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return RequestError(f"{key}={value} is not known.{hint} Allowed: {', '.join(names)}.")
