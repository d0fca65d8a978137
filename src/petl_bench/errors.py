"""The errors a user meets: each is one clear sentence that names the key or file and the way out."""

from __future__ import annotations

import difflib
import re
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


_UNITS = {"": 1, "B": 1}

_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)}

_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)}


def parse_bytes(key: str, text: str) -> int:
    """Bytes of a size such as `16GiB`, `800 MB` or `1.5GiB`.

    Args:
        key: What the size is given for; errors name it.
        text: The size.

    Raises:
        RequestError: where it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise RequestError(f"{key}={text} is no size: give a number with its unit, e.g. 16GiB or 800MiB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])
