"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from petl_bench.errors import RequestError

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
