"""What `petl-bench list` shows: methods, backbones, tasks, layer plans, trackers, recipes, studies, capabilities."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from itertools import takewhile
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from petl_bench.backbones.load import open_backbone
from petl_bench.backbones.source import installed_folder
from petl_bench.config import CONFIG_MODULE, load_config, option_names
from petl_bench.errors import RequestError
from petl_bench.methods.registry import AdaptContext, all_methods
from petl_bench.reports.render import ReportTable, console, to_markdown

Row = dict[str, Any]

# A random backbone of each architecture, by the name of its option.
TINY_BACKBONES = {
    "bert": "tiny_bert",
    "roberta": "tiny_roberta",
    "electra": "tiny_electra",
    "distilbert": "tiny_distilbert",
    "deberta-v2": "tiny_deberta_v2",
    "modernbert": "tiny_modernbert",
}

# Settings under which a method has other capabilities than under its defaults.
VARIANTS = {
    "coda": ("method.attention=k2all",),
    "head": ("method.pooler=true",),
    "houlsby": ("method.variant=pfeiffer", "method.variant=parallel"),
    "peft": ("method.type=PREFIX_TUNING",),
}


def print_catalog(kind: str | None, form: str) -> None:
    """Prints one kind of entries, or all kinds, as a `table`, as Markdown (`md`) or as `json`."""
    kinds = [kind] if kind else list(_KINDS)
    rows = {name: (_KINDS | _PROBED)[name]() for name in kinds}
    if form == "json":
        print(json.dumps(rows if kind is None else rows[kind], indent=2))  # noqa: T201
        return
    if form == "md":
        print("\n\n".join(to_markdown(_as_table(*item)).rstrip() for item in rows.items()))  # noqa: T201
        return
    out = console()
    for name in kinds:
        table = Table(title=name, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for column in rows[name][0]:
            table.add_column(column, overflow="fold")
        for row in rows[name]:
            table.add_row(*(_cell(value) for value in row.values()))
        out.print(table)
        out.print()


def _as_table(name: str, rows: list[Row]) -> ReportTable:
    cells = [[_cell(value) for value in row.values()] for row in rows]
    return ReportTable(name, list(rows[0]), cells, [], prose=tuple(rows[0]))


def list_methods() -> list[Row]:
    """Every registered method, plugins included."""
    return [
        {"method": method.name, "origin": method.origin, "what is trained": method.summary}
        for method in all_methods().values()
    ]


def list_backbones() -> list[Row]:
    """Every shipped backbone, with its size and the source of its weights."""
    rows = []
    for name, option in _options("backbone"):
        shape = option.get("architecture", {})
        here = installed_folder(option.get("package")) is not None
        weights = "random" if option.get("weights") == "random" else option.get("hub_id")
        rows.append(
            {
                "backbone": name,
                "architecture": option["model_type"],
                "layers": shape.get("num_hidden_layers", shape.get("n_layers")),
                "width": shape.get("hidden_size", shape.get("dim")),
                "weights": f"{weights} (installed)" if here else weights,
            }
        )
    return rows


def list_tasks() -> list[Row]:
    """Every shipped task, with its kind and its metrics."""
    return [
        {
            "task": name,
            "type": option["type"],
            "texts": list(option["text_columns"]),
            "labels": len(option["labels"]) if option.get("labels") else None,
            "metrics": [metric + ("*" if metric == option["metric"] else "") for metric in option["metrics"]],
            "rows": f"trained by {option['trained_by']}" if option.get("trained_by") else option["source"],
        }
        for name, option in _options("task")
    ]


def list_studies() -> list[Row]:
    """Every shipped study, with what it compares."""
    return [
        {
            "study": name,
            "methods": list(option["methods"]),
            "tasks": list(option["tasks"]),
            "seeds": len(option["seeds"]),
            "about": option["description"],
        }
        for name, option in _options("study")
    ]


def _described(group: str) -> Callable[[], list[Row]]:
    def rows() -> list[Row]:
        folder = files(CONFIG_MODULE).joinpath(group)
        found = []
        for name, _ in _options(group):
            lines = folder.joinpath(f"{name}.yaml").read_text().splitlines()
            header = [line[2:] for line in takewhile(lambda line: line[:2] == "# ", lines) if "@package" not in line]
            about = [line for line in header if not line.startswith("petl-bench ")]
            found.append({group: name, "command": header[0], "about": " ".join(about)})
        return found

    return rows


def _options(group: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, _option(group, name)) for name in option_names(group)]


def _option(group: str, name: str) -> dict[str, Any]:
    """An option with what it takes from others of its group, which its list of defaults names."""
    folder = files(CONFIG_MODULE).joinpath(group)
    content = OmegaConf.to_container(OmegaConf.create(folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")))
    assert isinstance(content, dict)
    own = {str(key): value for key, value in content.items()}
    bases = [
        base for base in own.get("defaults", []) if isinstance(base, str) and folder.joinpath(f"{base}.yaml").is_file()
    ]
    return {key: value for base in bases for key, value in _option(group, base).items()} | own


@dataclass(frozen=True)
class Capability:
    """Whether a method adapts an architecture, whether it merges, and whether it adapts it as a tagger.

    Each is None if it does, else the reason why not. Tasks with one label, several labels or a value for each text have
    the same model.
    """

    method: str
    architecture: str
    adapts: str | None
    merges: str | None
    tags: str | None = None


def probe_all() -> list[Capability]:
    """Tries every method, plugins and notable variants included, on every architecture of the anatomy table."""
    requests = []
    for name in all_methods():
        requests += [[f"method={name}"], *([f"method={name}", variant] for variant in VARIANTS.get(name, ()))]
    return [probe(request, architecture) for request in requests for architecture in TINY_BACKBONES]


def probe(request: list[str], architecture: str) -> Capability:
    """Tries one method on a tiny random model.

    Args:
        request: Overrides that choose it, e.g. `["method=coda", "method.attention=k2all"]`.
        architecture: A `model_type` of the anatomy table.
    """
    from petl_bench.methods.base import adapt

    # Apart, so that neither is composed anew for each pair.
    cfg = load_config(["layers=all", *request])
    settings = load_config([f"backbone={TINY_BACKBONES[architecture]}"]).backbone
    label = " ".join(one.removeprefix("method=").removeprefix("method.") for one in request)

    def adapted(task_type: str) -> Any:
        """The adapted model, or the reason why there is none."""
        backbone = open_backbone(settings, cfg.layers, task_type=task_type)
        context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps=100)
        try:
            return adapt(backbone.build_model(2), cfg.method, context)
        except RequestError as error:
            return str(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, tagger = adapted("classification"), adapted("tagging")
        tags = tagger if isinstance(tagger, str) else None
        if isinstance(model, str):
            return Capability(label, architecture, model, "it does not adapt", tags)
        return Capability(label, architecture, None, _merging_refused(model), tags)


def _merging_refused(model: Any) -> str | None:
    if not hasattr(model, "peft_config"):
        return None
    try:
        model.merge_and_unload()
    except AttributeError:
        # PEFT's models with tokens or keys of their own have no such method.
        return "PEFT does not merge it"
    except (ValueError, NotImplementedError) as error:
        return str(error) or f"PEFT does not merge it ({type(error).__name__})"
    return None


def list_capabilities() -> list[Row]:
    """Which architectures each method adapts, whether it merges, and whether it tags: found out by trying."""
    by_method: dict[str, list[Capability]] = {}
    for found in probe_all():
        by_method.setdefault(found.method, []).append(found)
    return [_capability_row(method, found) for method, found in by_method.items()]


def _capability_row(method: str, found: list[Capability]) -> Row:
    adapting = [one for one in found if not one.adapts]
    tagging = [one.architecture for one in adapting if not one.tags]
    reasons = [reason for one in found for reason in (one.adapts or one.merges, one.tags) if reason]
    return {
        "method": method,
        **{one.architecture: "no" if one.adapts else "yes" if one.merges else "yes, merges" for one in found},
        "tagging": "yes" if len(tagging) == len(adapting) else ", ".join(tagging) or "no",
        "why not": "; ".join(dict.fromkeys(reasons)),
    }


_KINDS: dict[str, Callable[[], list[Row]]] = {
    "methods": list_methods,
    "backbones": list_backbones,
    "tasks": list_tasks,
    "layers": _described("layers"),
    "trackers": _described("tracker"),
    "recipes": _described("recipe"),
    "studies": list_studies,
}

# Takes seconds, so only where it is asked for.
_PROBED = {"capabilities": list_capabilities}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
