"""What `petl-bench list` and `check` show: options, settings, what a method can do, and what it must."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import yaml
from rich.markup import escape
from rich.table import Table

from petl_bench.backbones.source import installed_folder
from petl_bench.errors import RequestError, first_line, unknown_choice
from petl_bench.methods.registry import AdaptContext, all_methods
from petl_bench.reports.render import ReportTable, console, to_markdown
from petl_bench.settings import declared, option_file, option_names, option_text, written

if TYPE_CHECKING:
    from petl_bench.backbones.source import BackboneConfig
    from petl_bench.config import RunConfig

Row = dict[str, Any]

# In the terminal: columns of names of at most this many characters are not wrapped; a cell shows so many list items.
_SHORT, _LISTED = 20, 2

# A random backbone of each architecture, by the name of its option.
TINY_BACKBONES = {
    "bert": "tiny_bert",
    "roberta": "tiny_roberta",
    "xlm-roberta": "tiny_xlm_roberta",
    "electra": "tiny_electra",
    "distilbert": "tiny_distilbert",
    "deberta-v2": "tiny_deberta_v2",
    "mpnet": "tiny_mpnet",
    "modernbert": "tiny_modernbert",
}

# Settings under which a method has other capabilities than under its defaults.
CAPABILITY_VARIANTS = {
    "coda": ("method.attention=k2all",),
    "head": ("method.pooler=true",),
    "houlsby": ("method.variant=pfeiffer", "method.variant=parallel"),
    "peft": ("method.type=PREFIX_TUNING",),
}


def print_catalog(kind: str | None, form: str, group: str | None = None) -> None:
    """Prints one kind of entries, or all kinds.

    Args:
        kind: The kind; None: all kinds with short tables.
        form: `table`, Markdown (`md`) or `json`.
        group: For settings: show only those of this group or method.

    Raises:
        RequestError: If there is no such group.
    """
    kinds = [kind] if kind else list(_KINDS)
    rows = {name: (_KINDS | _ASKED_FOR)[name]() for name in kinds}
    if group is not None:
        rows = {name: _of_group(name, all_rows, group) for name, all_rows in rows.items()}
    if form == "json":
        print(json.dumps(rows if kind is None else rows[kind], indent=2))  # noqa: T201
        return
    if form == "md":
        print("\n\n".join(to_markdown(_as_table(*item)).rstrip() for item in rows.items()))  # noqa: T201
        return
    out = console()
    for name in kinds:
        table = Table(title=name, title_justify="left", box=None, pad_edge=False, header_style="bold")
        first, *others = rows[name][0]
        # A name is copied from here, so it stays in one piece, if there is room for the rest.
        table.add_column(first, overflow="fold", no_wrap=max(len(str(row[first])) for row in rows[name]) <= _SHORT)
        for column in others:
            table.add_column(column, overflow="fold")
        for row in rows[name]:
            table.add_row(*(escape(_cell(value, most=_LISTED)) for value in row.values()))
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
        weights = "random" if option.get("weights") == "random" else option["hub_id"] or "backbone.hub_id=NAME"
        rows.append(
            {
                "backbone": name,
                "architecture": option.get("model_type"),
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
    """Every shipped study, with what it compares and what it needs."""
    return [
        {
            "study": name,
            "about": option["description"],
            "needs": option.get("needs", ""),
            "methods": list(option["methods"]),
            "tasks": list(option["tasks"]),
            "seeds": len(option["seeds"]),
        }
        for name, option in _options("study")
    ]


def _described(group: str) -> Callable[[], list[Row]]:
    def rows() -> list[Row]:
        """One row per option: the command at the head of its file, and the file's description."""
        described = []
        for name in option_names(group):
            lines = option_text(group, name).splitlines()
            header = [line[2:] for line in takewhile(lambda line: line[:2] == "# ", lines) if "@package" not in line]
            about = [line for line in header if not line.startswith("petl-bench ")]
            command = header[0] if header else f"petl-bench run {group}={name}"
            described.append({group: name, "command": command, "about": " ".join(about)})
        return described

    return rows


def _options(group: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, _option(group, name)) for name in option_names(group)]


def _option(group: str, name: str) -> dict[str, Any]:
    """An option, including what it inherits from the options of its group in its defaults list."""
    # Not composed, and read with PyYAML's fast loader if available.
    content = yaml.load(option_text(group, name), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    assert isinstance(content, dict)
    own = {str(key): value for key, value in content.items()}
    bases = [base for base in own.get("defaults", []) if isinstance(base, str) and option_file(group, base)]
    return {key: value for base in bases for key, value in _option(group, base).items()} | own


def list_settings() -> list[Row]:
    """Every setting with its allowed values, its default and its meaning."""
    from petl_bench.config import run_settings
    from petl_bench.methods.coda import CodaPretraining
    from petl_bench.studies.definition import ExecutorConfig
    from petl_bench.tasks import TextsConfig

    groups = ((ExecutorConfig, "executor"), (TextsConfig, "texts"), (CodaPretraining, "phase"))
    of_groups = (setting for kind, name in groups for setting in declared(kind, name) if setting.meaning)
    return [
        {
            "setting": setting.name,
            "with": setting.option,
            "values": setting.allowed,
            "default": written(setting.default),
            "meaning": setting.meaning,
        }
        for setting in (*run_settings(), *of_groups)
    ]


def _of_group(kind: str, rows: list[Row], group: str) -> list[Row]:
    """The rows of settings that belong to a group or a method."""
    if kind != "settings":
        raise RequestError(f"petl-bench list {kind} shows all of them: leave out {group}.")
    owners = [{row["setting"].partition(".")[0], row["with"].partition("=")[2]} for row in rows]
    selected = [row for row, names in zip(rows, owners, strict=True) if group in names]
    if not selected:
        raise unknown_choice("petl-bench list settings: group or method", group, set().union(*owners) - {""})
    return selected


@dataclass(frozen=True)
class Capability:
    """Whether a method adapts an architecture, whether it merges, and whether it adapts it for tagging.

    Each field is None for yes, else the reason why not. Tasks with one label, several labels or a value per text use
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
        variants = CAPABILITY_VARIANTS.get(name, ())
        requests += [[f"method={name}"], *([f"method={name}", variant] for variant in variants)]
    return [probe(request, architecture) for request in requests for architecture in TINY_BACKBONES]


def probe(request: list[str], architecture: str) -> Capability:
    """Tries one method on a tiny random model.

    Args:
        request: Overrides that choose it, e.g. `["method=coda", "method.attention=k2all"]`.
        architecture: A `model_type` of the anatomy table.

    Returns:
        Whether it adapts, merges and tags, with the reasons why not.
    """
    from petl_bench.config import load_config

    # Composed separately, so that neither is composed again for each pair.
    cfg = load_config(["layers=all", *request])
    settings = load_config([f"backbone={TINY_BACKBONES[architecture]}"]).backbone
    label = " ".join(override.removeprefix("method=").removeprefix("method.") for override in request)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, refused = _adapted(cfg, settings, "classification")
        _, tags = _adapted(cfg, settings, "tagging")
        merges = "it does not adapt" if refused else _merging_refused(model)
        return Capability(label, architecture, refused, merges, tags)


def _adapted(cfg: RunConfig, settings: BackboneConfig, task_type: str) -> tuple[Any, str | None]:
    """A backbone with a method's adapter, or the reason why there is none."""
    from petl_bench.backbones.load import open_backbone
    from petl_bench.methods.base import adapt

    backbone = open_backbone(settings, cfg.layers, task_type=task_type)
    context = AdaptContext(backbone.anatomy, backbone.plan, num_training_steps=100)
    try:
        return adapt(backbone.build_model(2), cfg.method, context), None
    except RequestError as error:
        return None, str(error)
    except Exception as error:  # of a method of another package
        return None, f"{type(error).__name__}: {first_line(error)}"


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
    """Which architectures each method adapts, whether it merges, and whether it tags; each is tried."""
    by_method: dict[str, list[Capability]] = {}
    for probed in probe_all():
        by_method.setdefault(probed.method, []).append(probed)
    return [_capability_row(method, capabilities) for method, capabilities in by_method.items()]


def _capability_row(method: str, capabilities: list[Capability]) -> Row:
    adapting = [item for item in capabilities if not item.adapts]
    tagging = [item.architecture for item in adapting if not item.tags]
    reasons = [reason for item in capabilities for reason in (item.adapts or item.merges, item.tags) if reason]
    # The fields contain reasons why not; None means yes.
    adapts = {
        item.architecture: "no" if item.adapts else "yes" if item.merges else "yes, merges" for item in capabilities
    }
    return {
        "method": method,
        **adapts,
        "tagging": "yes" if len(tagging) == len(adapting) else ", ".join(tagging) or "no",
        "why not": "; ".join(dict.fromkeys(reasons)),
    }


@dataclass(frozen=True)
class CheckOutcome:
    """What a check found: `ok`, `failed`, `does not apply`, or `refused` where the method refuses the architecture."""

    check: str
    architecture: str
    status: str
    reason: str | None = None


def check_method(overrides: list[str]) -> list[CheckOutcome]:
    """Runs all checks of a method, on the backbone that the overrides name, or on a tiny one of every architecture.

    Raises:
        RequestError: If the overrides do not compose.
    """
    from petl_bench.backbones.load import open_backbone
    from petl_bench.config import load_config
    from petl_bench.testing import CHECKS, Subject

    cfg = load_config(["task=smoke", "layers=all", *overrides])
    if any(override.startswith("backbone=") for override in overrides):
        backbones = [cfg.backbone]
    else:
        backbones = [load_config([f"backbone={name}"]).backbone for name in TINY_BACKBONES.values()]
    outcomes = []
    for settings in backbones:
        subject = Subject(replace(cfg, backbone=settings), open_backbone(settings, cfg.layers))
        architecture = subject.backbone.anatomy.model_type
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes += [CheckOutcome(check.__name__, architecture, *_outcome(check, subject)) for check in CHECKS]
    return outcomes


def _outcome(check: Callable[[Any], str | None], subject: Any) -> tuple[str, str | None]:
    """The outcome of a check, and the reason where it is not `ok`."""
    try:
        reason = check(subject)
    except RequestError as error:
        return "refused", str(error).rstrip(".")
    except AssertionError as error:
        return "failed", first_line(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {first_line(error)}"
    return ("ok", None) if reason is None else ("does not apply", reason)


def check_lines(outcomes: list[CheckOutcome]) -> list[str]:
    """One line per check and outcome, with the reason and the architectures, followed by a summary line."""
    architectures = list(dict.fromkeys(outcome.architecture for outcome in outcomes))
    checks = list(dict.fromkeys(outcome.check for outcome in outcomes))
    lines = []
    for check in checks:
        by_result: dict[tuple[str, str | None], list[str]] = {}
        for outcome in outcomes:
            if outcome.check == check:
                by_result.setdefault((outcome.status, outcome.reason), []).append(outcome.architecture)
        for (status, reason), names in by_result.items():
            where = "" if len(names) == len(architectures) else f" on {', '.join(names)}"
            lines.append(f"{status:16}{check}{where}" + ("" if reason is None else f": {reason}"))
    failed = len({outcome.check for outcome in outcomes if outcome.status == "failed"})
    return [*lines, f"{len(checks)} checks on {', '.join(architectures)}: {failed or 'none'} failed"]


_KINDS: dict[str, Callable[[], list[Row]]] = {
    "methods": list_methods,
    "backbones": list_backbones,
    "tasks": list_tasks,
    "layers": _described("layers"),
    "trackers": _described("tracker"),
    "train": _described("train"),
    "executors": _described("executor"),
    "recipes": _described("recipe"),
    "studies": list_studies,
}

# Long, or slow (seconds): shown only if requested by name.
_ASKED_FOR = {"settings": list_settings, "capabilities": list_capabilities}


def _cell(value: Any, most: int | None = None) -> str:
    """A value as text; for a list with more than `most` items, only their number."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return str(value)
    return ", ".join(map(str, value)) if most is None or len(value) <= most else str(len(value))
