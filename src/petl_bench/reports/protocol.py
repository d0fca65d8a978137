"""How comparable the methods of a table are: which settings differ, and which methods were still improving."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from petl_bench.records.schema import Record
from petl_bench.reports.groups import Group, recorded_settings
from petl_bench.reports.results_table import ResultsTable
from petl_bench.reports.significance import Statistic

# Each method may choose these settings: differences are reported, but are not part of the protocol.
_CHOSEN_BY_METHOD = (
    "learning_rate",
    "head_learning_rate",
    "accumulation",
    "gradient_checkpointing",
    "compile",
    "last_layer",
    "device",
    "processes",
)

# These settings only affect the speed of scoring, or follow from another setting that is shown.
_NOT_SHOWN = (
    "eval_batch_size",
    "rows",
    "task.num_train_examples",
    # Paths; the hash of the rows shows whether the data differ.
    "backbone.path",
    "task.train_file",
    "task.validation_file",
    "task.test_file",
)

_SHOWN_NAMES = {"data": "data (hash of the rows)", "max_steps": "most updates"}


def settings_of(record: Record) -> dict[str, str]:
    """The training and scoring settings of a run, except method and layers: values as text by their name in notes."""
    protocol = record.protocol
    counts = (
        {}
        if protocol is None
        else {"training rows": f"{protocol.num_train_examples:,}", "scored rows": f"{protocol.num_eval_examples:,}"}
    )
    settings = {name: value for name, value in recorded_settings(record).items() if name not in _NOT_SHOWN}
    shown_names = {name: _SHOWN_NAMES.get(name, name.removeprefix("task.").replace("_", " ")) for name in settings}
    return counts | {shown_names[name]: "none" if value == "None" else value for name, value in settings.items()}


def protocol_of(group: Group) -> tuple[tuple[str, str], ...]:
    """The settings that must match for a shared Pareto front: the same rows, training length and scoring."""
    free = {name.replace("_", " ") for name in _CHOSEN_BY_METHOD}
    return tuple(sorted(item for item in settings_of(group.first).items() if item[0] not in free))


def protocol_numbers(groups: list[Group]) -> list[int]:
    """Numbers the protocols in order of appearance and returns each group's number; equal protocols share one."""
    protocols = list(map(protocol_of, groups))
    known = list(dict.fromkeys(protocols))
    return [known.index(protocol) for protocol in protocols]


def batch_text(groups: Iterable[Group]) -> str:
    """The number of rows per update that memory and operations refer to, e.g. `batch of 16 or 32 rows`."""
    sizes = sorted({size for group in groups if (size := group.first.batch_size) is not None})
    return f"batch of {' or '.join(map(str, sizes)) or 'unknown number of'} rows"


def setting_notes(results: ResultsTable) -> list[str]:
    """Names every setting in which the methods of a task differ, with its values and the methods that have each."""
    by_task = {
        task: {group.label: settings_of(group.first) for group in results.groups() if group.task == task}
        for task in results.tasks
    }
    by_task = {task: methods for task, methods in by_task.items() if len(methods) > 1}
    names = dict.fromkeys(name for methods in by_task.values() for settings in methods.values() for name in settings)
    notes = []
    for name in names:
        values = {
            task: {method: settings.get(name, "default") for method, settings in methods.items()}
            for task, methods in by_task.items()
        }
        differing = {task: by_method for task, by_method in values.items() if len(set(by_method.values())) > 1}
        for tasks, by_method in _alike(differing):
            where = "" if len(tasks) == len(values) else f" on {', '.join(tasks)}"
            notes.append(f"not the same for all methods{where}: {name} {_by_value(by_method)}")
    return notes


def _alike(by_task: Mapping[str, Mapping[str, str]]) -> list[tuple[list[str], dict[str, str]]]:
    """Joins tasks on which every method has the same value."""
    joined: list[tuple[list[str], dict[str, str]]] = []
    for task, values in by_task.items():
        for tasks, known in joined:
            if all(known.get(method, value) == value for method, value in values.items()):
                tasks.append(task)
                known |= values
                break
        else:
            joined.append(([task], dict(values)))
    return joined


def _by_value(values: Mapping[str, str]) -> str:
    methods: dict[str, list[str]] = {}
    for method, value in values.items():
        methods.setdefault(value, []).append(method)
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in methods.items())


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation step: the primary metric over the seeds that reached it."""

    step: int
    epoch: float
    score: Statistic


def learning_curve(group: Group) -> list[CurvePoint]:
    """Computes mean and spread over the seeds at every step that was evaluated."""
    by_step: dict[int, list[float | None]] = defaultdict(list)
    epochs: dict[int, float] = {}
    for record in group.records:
        for entry in record.history:
            by_step[entry.step].append(entry.scores.get(group.metric))
            epochs[entry.step] = entry.epoch
    described = ((step, Statistic.of(by_step[step])) for step in sorted(by_step))
    return [CurvePoint(step, epochs[step], score) for step, score in described if score is not None]


def still_improving(group: Group) -> bool:
    """Whether the last evaluation gave the best mean score on the selection split, better than all before it."""
    sign = 1 if group.in_percent else -1
    means = [sign * point.score.mean for point in learning_curve(group)]
    return len(means) > 1 and means[-1] > max(means[:-1])


def improving_notes(results: ResultsTable) -> list[str]:
    """Names the methods that longer training might have made better, task by task."""
    improving = {
        task: [group.label for group in results.groups() if group.task == task and still_improving(group)]
        for task in results.tasks
    }
    where = "; ".join(f"{task} ({', '.join(methods)})" for task, methods in improving.items() if methods)
    return [f"still improving at the last evaluation, longer training may give more: {where}"] if where else []


def rate_notes(results: ResultsTable) -> list[str]:
    """Names the methods whose chosen learning rate is the first or last of the list that was tried."""
    notes = []
    for end, other in (("highest", "higher"), ("lowest", "lower")):
        at_end = {
            method: [task for task in results.tasks if results.cells[method, task].rate_end == end]
            for method in results.methods
        }
        where = "; ".join(
            f"{method} ({'all tasks' if len(tasks) == len(results.tasks) else ', '.join(tasks)})"
            for method, tasks in at_end.items()
            if tasks
        )
        if where:
            notes.append(f"the {end} learning rate that was tried was chosen, a {other} one may give more: {where}")
    return notes


def treatment_notes(results: ResultsTable) -> list[str]:
    """Where the methods of a table were not treated alike: settings, rates at an end of their list, too few updates."""
    return [*setting_notes(results), *rate_notes(results), *improving_notes(results)]
