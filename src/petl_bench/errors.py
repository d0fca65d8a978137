"""The errors a user meets: each is one clear sentence that names the key or file and the way out."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Sequence


class RequestError(Exception):
    """The request was wrong: an option, a file or a combination that cannot work."""

    exit_code = 2


class RunError(Exception):
    """The run failed; `status` is what its record says."""

    exit_code = 1
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
    """The error for a value outside a closed set, which suggests the nearest name of the set."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return RequestError(f"{key}={value} is not known.{hint} Allowed: {', '.join(names)}.")


# Names that a message lists.
_NAMES_LISTED = 20


def listed(names: Sequence[object]) -> str:
    """The names as a list; if there are many, the first ones and the total number."""
    shown = ", ".join(map(repr, names[:_NAMES_LISTED]))
    return f"[{shown}]" if len(names) <= _NAMES_LISTED else f"[{shown}, ...] ({len(names)} in all)"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# System errors about a file or a folder, in words; `{file}` is its path, `{elsewhere}` how to give another place.
_REFUSALS = {
    errno.ENOSPC: "The disk is full ({file}): free some space or {elsewhere}",
    errno.EDQUOT: "The disk is full ({file}): free some space or {elsewhere}",
    errno.EACCES: "This user may not read or write {file}: change its permissions or {elsewhere}",
    errno.EPERM: "This user may not read or write {file}: change its permissions or {elsewhere}",
    errno.EROFS: "{file} lies on a file system that is read-only: {elsewhere}",
    errno.ENAMETOOLONG: "The path {file} is longer than the file system takes: shorten it or {elsewhere}",
    errno.EMFILE: "Too many files are open, so {file} could not be opened: raise the limit, e.g. with `ulimit -n 4096`",
    errno.ENFILE: "Too many files are open, so {file} could not be opened: close other programs",
    errno.EIO: "The disk reports an error at {file}: check it or {elsewhere}",
    errno.ENOENT: "{file} is missing: do not rename or delete files while petl-bench runs",
}


def system_error(error: BaseException) -> OSError | None:
    """The system error that an error is, or that caused it; None if there is none.

    Libraries wrap system errors in their own errors, and some keep only the message.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if error.__cause__ is not None:
        return system_error(error.__cause__)
    for number in _REFUSALS:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    return None


def explained_refusal(error: OSError, file: object, elsewhere: str) -> str | None:
    """One sentence that says what the system refused, and the way out.

    Args:
        error: The system's error.
        file: The file or the folder that it is about, if the error does not name one.
        elsewhere: How to give another place, e.g. `set runs_dir=DIR`.

    Returns:
        The sentence; None if the error is not about a file.
    """
    template = _REFUSALS.get(error.errno or 0)
    if template is None and error.filename is None:
        return None
    template = template or "{file} could not be read or written (" + str(error.strerror) + "): check it or {elsewhere}"
    return template.format(file=error.filename or file, elsewhere=elsewhere) + "."


_SECONDS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600}


def parse_seconds(key: str, text: str) -> float:
    """Reads a time such as `90s`, `30min`, `1.5h` or `20ms`.

    Args:
        key: The option that gives the time; error messages name it.
        text: The time.

    Returns:
        Seconds.

    Raises:
        RequestError: If the text is not a time.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|h)\s*", text)
    if match is None or float(match[1]) == 0:
        raise RequestError(f"{key}={text} is not a time: give a number with its unit, e.g. 90s, 30min or 2h.")
    return float(match[1]) * _SECONDS[match[2]]


_UNITS = {"B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", start=1)}


def parse_bytes(key: str, text: str) -> int:
    """Reads a size such as `16GiB`, `800 MB` or `1.5GiB`.

    Args:
        key: The option or setting that gives the size; error messages name it.
        text: The size.

    Returns:
        The size in bytes.

    Raises:
        RequestError: If the text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise RequestError(f"{key}={text} is not a size: give a number with its unit, e.g. 16GiB or 800MiB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_share(key: str, text: str | None) -> tuple[int | None, float | None]:
    """Reads a number, or a share in percent such as `1%`; neither for None.

    Raises:
        RequestError: If the text is neither, or not above 0; the message names the key.
    """
    if text is None:
        return None, None
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise RequestError(f"{key}={text} must be a number of parameters, or a share of the backbone's such as 1%.")
    return (None, number) if text.endswith("%") else (int(number), None)
