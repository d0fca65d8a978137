"""The page of `petl-bench report --html`: one file that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from petl_bench.reports.render import check_page

STYLES = ("page.css", "charts.css")

# The order matters: each script uses names of those before it.
SCRIPTS = (
    "elements.js",
    "state.js",
    "tooltip.js",
    "chart.js",
    "plots.js",
    "table.js",
    "head.js",
    "filters.js",
    "panels.js",
    "sections.js",
    "page.js",
)

_SLOT = re.compile(r"\{\{(\w+)\}\}")


def write_page(data: Mapping[str, Any], file: Path) -> None:
    """Writes the page.

    Args:
        data: The data as `page_data` collects it.
        file: The file to write.

    Raises:
        RequestError: If browsers do not open files with this ending.
        RunError: If nothing can be written there.
    """
    check_page(file)
    file.write_text(render_page(data), encoding="utf-8")


def render_page(data: Mapping[str, Any]) -> str:
    """Fills the template. The policy allows only scripts with this hash, so no text of the data can run as one."""
    script = "\n".join(map(_shipped, SCRIPTS))
    slots = {
        "title": html.escape(str(data["title"])),
        "policy": _policy(script),
        "style": "\n".join(map(_shipped, STYLES)),
        "data": _embedded(data),
        "script": script,
    }
    return _SLOT.sub(lambda match: slots[match[1]], _shipped("page.html"))


def _shipped(name: str) -> str:
    return files("petl_bench.reports.page").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def _embedded(data: Mapping[str, Any]) -> str:
    """Dumps JSON without characters that could end the element around it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
