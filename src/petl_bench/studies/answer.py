"""The answer of `petl-bench choose`: what to use, how good it is, and what else is as good and cheaper."""

from __future__ import annotations

import json
import logging
import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from petl_bench.records.schema import Record
from petl_bench.records.study_file import PlannedRun, selection_score
from petl_bench.reports.differences import find_differences
from petl_bench.reports.fields import FIELDS, score_text
from petl_bench.reports.jackknife import pseudo_values
from petl_bench.reports.ranking import MethodComparison, compare_methods
from petl_bench.reports.report import write_report
from petl_bench.reports.results_table import study_results
from petl_bench.reports.significance import Estimate
from petl_bench.studies.choice import DEFAULTS_STEP, Choice, Limits
from petl_bench.studies.choice_trainings import REFERENCE
from petl_bench.studies.progress import setting_name
from petl_bench.studies.search import RATE
from petl_bench.tasks.baselines import at_least_as_good

_log = logging.getLogger(__name__)

_TOO_LITTLE_TIME = "as the time did not suffice for all of it"

# A cost counts as lower only below this share of the other's.
_CHEAPER = 0.9

PICTURE = "choice.png"


@dataclass(frozen=True)
class Answer:
    """The outcome of a choice.

    Attributes:
        recommended: The method's name.
        runs: Its finished runs with their records, on all rows and with several seeds if time allowed.
        on_all_rows: Whether they were trained on all rows, even if only for a share of a whole training.
        score: The mean score on the reported rows, in the unit of the metric.
        interval: The 95 % interval for the score of one more training on as many other rows; None if unknown.
        comparisons: The comparisons of all other finalists with it, corrected for every pair.
        cheaper: The lower costs of the methods that are not shown to be worse, by name.
    """

    recommended: str
    runs: list[tuple[PlannedRun, Record]]
    on_all_rows: bool
    score: float
    interval: tuple[float, float] | None
    comparisons: dict[str, MethodComparison]
    cheaper: dict[str, list[str]]

    @property
    def best(self) -> tuple[PlannedRun, Record]:
        """The recommended method's run that is best on the selection rows."""
        return max(self.runs, key=lambda run_and_record: _selection(run_and_record[1]))


def answer(choice: Choice) -> Answer:
    """Finds the recommended settings: the best on the selection rows; the reported rows only say how good they are."""
    finished = [(run, record) for run in choice.study.runs if (record := choice.record(run)) is not None]
    finals = [(run, record) for run, record in finished if not run.is_trial]
    longest = max(run.share for run, _ in finished)
    reported = finals or [(run, record) for run, record in finished if run.share == longest]
    by_settings: dict[tuple[str, str], list[tuple[PlannedRun, Record]]] = {}
    for run, record in reported:
        by_settings.setdefault(trained_settings(run), []).append((run, record))
    most = max(map(len, by_settings.values()))
    longest_tried = [runs for runs in by_settings.values() if len(runs) == most]
    # Latencies vary: a method that was fast enough when it was tried may not be so now.
    fast = [runs for runs in longest_tried if choice.limits.is_fast_enough(*(record for _, record in runs))]
    means = selection_means(finished, reported[0][0], by_rows=choice.rows.by_rows)
    best = max(fast or longest_tried, key=lambda runs: means[trained_settings(runs[0][0])])
    name = best[0][0].method

    def read(record: Record) -> Any:
        run = next(run for run, other in finished if other.run_key == record.run_key)
        return choice.folder.run_folder(run).read_predictions(record, "report")

    score, interval = _score(best, read)
    comparisons: dict[str, MethodComparison] = {}
    if finals:
        differences = find_differences(study_results(choice.study, [record for _, record in finals]), read)
        # Corrected for every pair: the trainings that are compared are those that chose the recommended method.
        compared = [_against(name, comparison) for comparison in compare_methods(differences)]
        comparisons = {one.method: one for one in compared if one is not None and one.difference is not None}
    alike = [
        method for method, comparison in comparisons.items() if comparison.verdict in ("no difference shown", "better")
    ]
    first = {run.method: record for run, record in reversed(finals)}
    cheaper = {method: savings for method in alike if (savings := _savings(first[method], first[name]))}
    return Answer(name, best, bool(finals), score, interval, comparisons, cheaper)


def why_nothing(records: Sequence[Record | None], limits: Limits, seconds: float) -> str:
    """Says why none of the first trainings (None: not begun) gave a method to choose in the seconds that it took."""
    ended = [record for record in records if record is not None and record.status != "interrupted"]
    if ended and all(record.status != "finished" for record in ended):
        return f"No training could be made: {ended[0].error}"
    if ended:
        return f"No method answers a row within --latency {limits.latency_ms:g}ms on this machine."
    return (
        f"No training could finish within --time {limits.seconds:g}s, as {seconds:.0f} s have been used already: give "
        "several minutes; the same command with more time goes on."
    )


def _against(name: str, comparison: MethodComparison) -> MethodComparison | None:
    """The comparison of another method with this one; None if it is of two others."""
    if name == comparison.method:
        turned = comparison.difference.turned() if comparison.difference else None
        return replace(comparison, method=comparison.reference, reference=name, difference=turned)
    return comparison if name == comparison.reference else None


def _selection(record: Record) -> float:
    score = selection_score(record)
    return -math.inf if score is None else score


def trained_settings(run: PlannedRun) -> tuple[str, str]:
    """Names the method and the settings of a training, whatever its seed and whether it chose."""
    return "lora" if run.method == REFERENCE else run.method, run.candidate


def selection_means(
    trained: Iterable[tuple[PlannedRun, Record]], like: PlannedRun, *, by_rows: bool
) -> dict[tuple[str, str], float]:
    """Returns the mean scores on the selection rows of all trainings that saw as many rows, as often, as another one.

    Args:
        trained: Finished trainings with their records.
        like: The other one.
        by_rows: Whether the trainings that choose see fewer rows than the last ones.

    Returns:
        The means by `trained_settings`. A training that chose is one more seed if it is like the last ones.
    """
    scores: dict[tuple[str, str], list[float]] = {}
    for run, record in trained:
        sees_as_many = not by_rows or run.is_trial == like.is_trial
        if run.share == like.share and sees_as_many:
            scores.setdefault(trained_settings(run), []).append(_selection(record))
    return {settings: statistics.fmean(of_settings) for settings, of_settings in scores.items()}


def _score(
    runs: list[tuple[PlannedRun, Record]], read: Callable[[Record], Any]
) -> tuple[float, tuple[float, float] | None]:
    """Returns the mean score on the reported rows, and the 95 % interval for one more training and as many new rows.

    With one seed, nothing is known about other trainings: the interval is for this one on as many new rows.
    """
    records = [record for _, record in runs]
    protocol = records[0].protocol
    assert protocol
    mean = statistics.fmean(record.selected_scores[protocol.metric] for record in records)
    rows = []
    for record in records:
        predictions = read(record)
        if predictions is None:
            return mean, None
        values = pseudo_values(protocol.metric, predictions.labels, predictions.predicted)
        if values is None:
            return mean, None
        rows.append(values)
    table = np.stack(rows)
    num_seeds, num_rows = table.shape
    by_row = table.mean(axis=0)
    if protocol.metric == "accuracy":
        # Two more rows that are right and two that are wrong (Agresti and Coull 1998): if nearly all rows are right,
        # their own variance says too little about the next ones.
        by_row = np.concatenate([by_row, [0.0, 0.0, 1.0, 1.0]])
    # The factor 2: the sampling errors of these rows and of the other rows are equally large.
    of_rows = math.sqrt(2 * float(by_row.var(ddof=1)) / len(by_row))
    if num_seeds == 1:
        estimate = Estimate(mean, of_rows, num_rows - 1)
    else:
        of_seeds = float(table.mean(axis=1).std(ddof=1)) * math.sqrt(1 + 1 / num_seeds)
        estimate = Estimate(mean, of_seeds, num_seeds - 1, of_rows)
    low, high = estimate.interval()
    lowest = -1.0 if protocol.metric in ("matthews_correlation", "pearson", "spearman") else 0.0
    return mean, (max(low, lowest), min(high, 1.0) if protocol.higher_is_better else high)


def _savings(record: Record, other: Record) -> list[str]:
    """Describes the costs of a run that are lower than those of another."""
    costs = {
        "params_trainable": "trained parameters",
        "estimated_peak_bytes": "memory",
        "inference_latency_ms": "latency",
    }
    ratios = {}
    for key, label in costs.items():
        cost, others_cost = FIELDS[key].value(record), FIELDS[key].value(other)
        if cost is not None and others_cost:
            ratios[label] = cost / others_cost
    if not _is_faster(record, other):
        ratios.pop("latency", None)
    return [f"{100 * ratio:.0f} % of its {label}" for label, ratio in ratios.items() if ratio < _CHEAPER]


def _is_faster(record: Record, other: Record) -> bool:
    """Whether the middle half of a run's latencies lies below another's: medians differ by chance on busy machines."""
    if record.inference is None or other.inference is None:
        return False
    quartiles, others_quartiles = record.inference.latency_ms_quartiles, other.inference.latency_ms_quartiles
    return quartiles is not None and others_quartiles is not None and quartiles[1] < others_quartiles[0]


def print_choice(choice: Choice, seconds: float, write: Callable[[str], None], *, as_json: bool) -> None:
    """Prints the answer of a choice, then the table of the methods that were trained on all rows, and draws them.

    Args:
        choice: The choice.
        seconds: How long it took, including all earlier commands.
        write: Prints text.
        as_json: Whether to print a JSON object instead.
    """
    result = answer(choice)
    if as_json:
        write(json.dumps(_as_dict(choice, result, seconds), indent=2))
        write = _log.debug
    else:
        for line in (
            *_score_lines(choice, result),
            *_comparison_lines(choice, result),
            *_search_lines(choice, result, seconds),
        ):
            write(line)
    if result.on_all_rows:
        picture = choice.folder.path / PICTURE
        write_report([str(choice.folder.path)], "json" if as_json else "table", str(picture), write)


def _as_dict(choice: Choice, result: Answer, seconds: float) -> dict[str, Any]:
    run, record = result.best
    assert record.protocol
    differences = {
        name: {
            "difference": comparison.difference.mean,
            "interval": comparison.difference.interval,
            "p_corrected": comparison.p,
            "verdict": comparison.verdict,
            "cheaper": result.cheaper.get(name, []),
        }
        for name, comparison in result.comparisons.items()
        if comparison.difference is not None
    }
    return {
        "method": "lora" if result.recommended == REFERENCE else result.recommended,
        "settings": run.tried,
        "command": shlex.join(choice.command(run)),
        "on_all_rows": result.on_all_rows,
        "share_of_training": run.share,
        "metric": record.protocol.metric,
        "score": result.score,
        "interval_of_other_rows": result.interval,
        "seeds": [run.seed for run, _ in result.runs],
        "report_rows": record.protocol.num_eval_examples,
        "baselines": record.baselines,
        "compared_with_it": differences,
        "left_out": choice.state.left_out,
        "not_trained": choice.not_trained,
        "trials_were_alike": trials_were_alike(choice),
        "failed": choice.failed,
        "trainings": len(choice.trained),
        "seconds": seconds,
        "folder": str(choice.folder.path),
        "run": str(choice.folder.path / run.folder),
    }


def _score_lines(choice: Choice, result: Answer) -> Iterator[str]:
    """What to run, and how well it does."""
    run, record = result.best
    assert record.protocol
    metric, percent = record.protocol.metric, record.protocol.higher_is_better
    unit = " %" if percent else ""
    settings = ", ".join(f"{setting_name(key)} {value}" for key, value in run.tried.items())
    yield f"recommended: {result.recommended} ({settings})\n  {shlex.join(choice.command(run))}"
    shown = f"score: {metric} {score_text(result.score, in_percent=percent)}{unit}"
    if result.on_all_rows:
        is_single = len(result.runs) == 1
        seeds = "one seed" if is_single else f"mean of {len(result.runs)} seeds"
        interval = ""
        if result.interval is not None:
            low, high = (score_text(end, in_percent=percent) for end in result.interval)
            which = "this training" if is_single else "one training"
            interval = f"; {which} on as many other rows: {low} to {high} (95 %)"
        yield f"{shown} on {record.protocol.num_eval_examples:,} rows that chose nothing, {seeds}{interval}"
    else:
        yield f"{shown} on the rows that chose it, so probably too high"
    limit = choice.limits.latency_ms
    if limit is not None and not choice.limits.is_fast_enough(record) and record.inference is not None:
        yield f"  at last it took {record.inference.latency_ms_median:.3g} ms a row, more than --latency {limit:g}ms"
    if run.share < 1 or run.is_trial:
        why = f"as those on all rows failed ({failed})" if (failed := choice.failed_on_all_rows) else _TOO_LITTLE_TIME
        what = (
            "not scored on other rows"
            if run.share == 1
            else f"after {100 * run.share:.0f} % of this command's training"
        )
        yield f"  {what}, {why}"
    if record.baselines:
        scores = {name: score_text(by[metric], in_percent=percent) for name, by in record.baselines.items()}
        yield "baselines on the same rows: " + ", ".join(f"{name} {score}{unit}" for name, score in scores.items())
        if alike := at_least_as_good(record.baselines, metric, result.score, higher_is_better=percent):
            hint = "more --time" if run.share < 1 or choice.not_trained else "other rows or another backbone"
            yield f"  no better than {' and '.join(alike)}: {hint} may do"


def _comparison_lines(choice: Choice, result: Answer) -> Iterator[str]:
    """What else is as good and cheaper, and what the choice gains over LoRA at its default."""
    default = dict(choice.state.steps[DEFAULTS_STEP].candidates).get("lora", {}).get(RATE)
    lora_is_default = any(
        run.tried == {RATE: default} for run in choice.trained if run.method == "lora" and not run.is_trial
    )
    protocol = result.best[1].protocol
    assert protocol
    percent = protocol.higher_is_better
    for name, savings in result.cheaper.items():
        points = _points(result.comparisons[name], percent=percent)
        how = (
            "better on the reported rows"
            if result.comparisons[name].verdict == "better"
            else "no significant difference"
        )
        yield f"{how}, and cheaper: {name} ({points}; {', '.join(savings)})"
    if result.comparisons and not result.cheaper:
        yield "no other method that was trained on all rows is cheaper without a significant difference on these rows"
    reference = result.comparisons.get(REFERENCE) or result.comparisons.get("lora" if lora_is_default else "")
    if reference is not None:
        gain = replace(reference, difference=reference.difference.turned() if reference.difference else None)
        verdict = {"worse": "gains", "better": "loses"}.get(reference.verdict, "no gain shown")
        yield f"against LoRA at its default: {verdict}, {_points(gain, percent=percent)}"


def _search_lines(choice: Choice, result: Answer, seconds: float) -> Iterator[str]:
    """What the search took and left out, and where the weights are."""
    methods = {run.method for run in choice.trained} - {REFERENCE}
    yield f"the search: {len(choice.trained)} trainings of {len(methods)} methods, {seconds / 60:.1f} min"
    if trials_were_alike(choice):
        yield "  its shorter trainings all scored the same, so which methods were trained on all rows is arbitrary:"
        yield "  more epochs or more --time may show a difference"
    if left_out := choice.state.left_out:
        yield "left out: " + "; ".join(f"{name} ({why.rstrip('.')})" for name, why in left_out.items())
    if failed := choice.failed:
        yield "failed: " + "; ".join(f"{name} ({why.rstrip('.')})" for name, why in failed.items())
    if not_trained := choice.not_trained:
        yield f"not trained, as the time did not suffice: {', '.join(not_trained)}"
    if result.on_all_rows:
        yield f"trained: {choice.folder.path / result.best[0].folder}\n"
    elif choice.failed_on_all_rows:
        yield "no weights were kept: the trainings that would have kept them failed\n"
    else:
        yield "no weights were kept: the command trains them; so does this one, given again with more --time\n"


def trials_were_alike(choice: Choice) -> bool:
    """Whether the longest of the trainings that choose gave several methods, and each of them, the same score."""
    by_share: dict[float, list[tuple[str, float]]] = {}
    for run in choice.study.runs:
        if run.is_trial and (record := choice.record(run)) is not None:
            by_share.setdefault(float(run.share), []).append((run.method, _selection(record)))
    compared = [share for share, trials in by_share.items() if len({method for method, _ in trials}) > 1]
    return bool(compared) and len({score for _, score in by_share[max(compared)]}) == 1


def _points(comparison: MethodComparison, *, percent: bool) -> str:
    difference = comparison.difference
    assert difference is not None
    text = f"{score_text(difference.mean, in_percent=percent, sign=True)}{' points' if percent else ''}"
    if difference.interval is None:
        return text
    low, high = (score_text(end, in_percent=percent, sign=True) for end in difference.interval)
    single = " (one run each)" if difference.test == "rows" else ""
    return f"{text}, {low} to {high}{single}"
