"""What each command of `petl-bench` does once its options are parsed: calls the package in charge, prints the result.

Imports are inside the functions, so that a command loads what it needs and no more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_bench.errors import RequestError, RunError
from petl_bench.process import debugging, is_main_process, print_error, setup_logging

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from petl_bench.config import RunConfig
    from petl_bench.records.schema import Record

_log = logging.getLogger(__name__)

# In less time, `petl-bench choose` cannot train anything.
_LEAST_SECONDS = 30

# Rows that `petl-bench compare` lists in a terminal.
_ROWS_LISTED = 20


def run(arguments: list[str]) -> int:
    """Carries out the run that the overrides describe, or with -m the runs of all combinations.

    With other options of Hydra, or with Hydra's own settings, Hydra calls back once per run.

    Args:
        arguments: What follows `petl-bench run`.

    Returns:
        The exit code.
    """
    from petl_bench.config_errors import check_options

    as_json = "--json" in arguments
    overrides = ["force=true" if word == "--force" else word for word in arguments if word != "--json"]
    if any(override.startswith("data=") for override in overrides):
        from petl_bench.config import with_data

        setup_logging()
        overrides = with_data(overrides, adjust_training=True)
    check_options(overrides)
    settings = [override for override in overrides if override not in ("-m", "--multirun")]
    # Hydra itself would compose everything twice.
    if not any(text.startswith("-") or text.lstrip("+~").startswith("hydra") for text in settings):
        from petl_bench.config import combinations, load_config

        if settings != overrides:
            return _sweep(combinations(settings), as_json=as_json)
        _one_run(load_config(settings), as_json=as_json)
        return 0
    # Hydra would print its own errors and exit with 1; with this it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    import hydra

    from petl_bench.config import as_list, from_hydra, register_schemas, run_help
    from petl_bench.config_errors import explained
    from petl_bench.settings import CONFIG_MODULE, search_path

    register_schemas()
    if {"--help", "-h"} & set(overrides):
        _print(run_help(overrides))
        return 0
    failures: dict[str, int] = {}
    this_process = os.getpid()

    def job(cfg: DictConfig) -> None:
        """Carries out one run of a multirun, or the only one."""
        # Hydra would add its own text to errors; other processes (launchers) can only raise them.
        collected = _failures_collected(failures) if os.getpid() == this_process else nullcontext()
        with collected, explained(overrides):
            _one_run(from_hydra(cfg), as_json=as_json)

    sys.argv = ["petl-bench run", *map(as_list, overrides), *search_path()]
    with explained(overrides):
        hydra.main(config_path=f"pkg://{CONFIG_MODULE}", config_name="config", version_base="1.3")(job)()
    return _exit_code(failures)


def _sweep(combinations: list[list[str]], *, as_json: bool) -> int:
    """Carries out a run for each combination of overrides; one that fails does not stop the others."""
    from petl_bench.config import load_config

    failures: dict[str, int] = {}
    for overrides in combinations:
        with _failures_collected(failures):
            _one_run(load_config(overrides), as_json=as_json)
    return _exit_code(failures)


@contextmanager
def _failures_collected(failures: dict[str, int]) -> Iterator[None]:
    """A context that prints an error of one of several runs and keeps its exit code, so that the others are made."""
    try:
        yield
    except (RequestError, RunError) as error:
        if debugging():
            raise
        # An error unrelated to the varied settings is the same for all runs: it is printed once.
        if str(error) not in failures:
            print_error(error)
        # Not the error itself, whose traceback would keep the memory of the failed run from the later ones.
        failures[str(error)] = error.exit_code


def _exit_code(failures: dict[str, int]) -> int:
    """The exit code of several runs: a failed run takes precedence over a wrong request."""
    return min(failures.values(), default=0)


def _one_run(config: RunConfig, *, as_json: bool) -> None:
    """Carries out one run, and prints its folder with its scores or its record."""
    setup_logging()
    from petl_bench.records.run_key import run_name
    from petl_bench.run.run import run as make_run

    record = make_run(config)
    if is_main_process():
        folder = Path(config.runs_dir).expanduser() / run_name(record.config, record.run_key)
        _print(json.dumps(record.to_dict()) if as_json else f"{_summary(record)}\n  {folder}")


def _summary(record: Record) -> str:
    from petl_bench.records.run_key import backbone_name
    from petl_bench.reports.fields import shown_score

    assert record.protocol
    assert record.params
    scores = "  ".join(shown_score(name, value) for name, value in record.selected_scores.items())
    return (
        f"{record.protocol.task}  {record.config['method']['name']}  {backbone_name(record.config['backbone'])}  "
        f"seed {record.protocol.seed}:  {scores}  ({record.params.trainable:,} parameters trained)"
    )


def _report(parsed: argparse.Namespace) -> int:
    from petl_bench.reports.report import write_paper_report, write_report, write_rows_report

    alone = "--rows" if parsed.rows else "--layout paper" if parsed.layout else None
    if alone is not None:
        if parsed.plot or parsed.html or parsed.compare or parsed.columns or parsed.method_comparison:
            others = "--plot, --html, --compare, --columns and --method-comparison"
            raise RequestError(f"{alone} has tables of its own: leave out {others}.")
        write = write_rows_report if parsed.rows else write_paper_report
        write(parsed.folders, parsed.format, _print, wide=parsed.wide)
        return 0
    write_report(
        parsed.folders,
        parsed.format,
        parsed.plot,
        _print,
        statistic=parsed.statistic,
        reference=parsed.compare,
        plot_kind=parsed.plot_kind,
        page=parsed.html,
        columns=[name.strip() for name in parsed.columns.split(",") if name.strip()] if parsed.columns else [],
        wide=parsed.wide,
        exported=parsed.method_comparison,
    )
    return 0


def _compare(parsed: argparse.Namespace) -> int:
    from petl_bench.reports.run_comparison import print_comparison
    from petl_bench.run.compare import compare_runs

    if parsed.limit is not None and parsed.limit < 0:
        raise RequestError(f"--limit={parsed.limit} must not be negative.")
    comparison = compare_runs(parsed.run_a, parsed.run_b, parsed.data_root)
    if parsed.json:
        _print(json.dumps(comparison.to_dict(parsed.limit), indent=2))
    else:
        print_comparison(comparison, _ROWS_LISTED if parsed.limit is None else parsed.limit, _print)
    return 0


def _list(parsed: argparse.Namespace) -> int:
    from petl_bench.catalog import print_catalog

    print_catalog(parsed.kind, parsed.format, parsed.group)
    return 0


def _predict(parsed: argparse.Namespace) -> int:
    from petl_bench.run.predict import Predictor, predict_stdin, predict_texts, standard_input, submit
    from petl_bench.run.predict_file import check_out, predict_file

    if parsed.out and not parsed.file:
        raise RequestError("--out is for the predictions of --file: give both.")
    if parsed.out:
        check_out(parsed.out)
    stream = None if parsed.submit or parsed.file or parsed.text else standard_input()
    predictor = Predictor(parsed.run_dir, parsed.base, any_base=parsed.any_base, ood=parsed.ood)
    if parsed.submit:
        for file in submit(predictor, parsed.submit, parsed.data_root):
            _print(str(file))
        return 0
    if parsed.file:
        predictions = predict_file(predictor, parsed.file, parsed.id_column)
        lines = predictions.lines(as_json=parsed.json)
        if parsed.out:
            predictions.write(parsed.out)
            lines = iter([json.dumps(predictions.summary()) if parsed.json else f"{predictions}\n  {parsed.out}"])
        elif predictions.scores:
            _log.info("%s", predictions)
    elif parsed.text:
        lines = predict_texts(predictor, parsed.text, as_json=parsed.json)
    else:
        assert stream is not None
        lines = predict_stdin(predictor, stream, as_json=parsed.json)
    for line in lines:
        _print(line)
    return 0


def _export(parsed: argparse.Namespace) -> int:
    from petl_bench.run.export import export
    from petl_bench.run.lifecycle import open_finished

    run = open_finished(parsed.run_dir, parsed.base, any_base=parsed.any_base)
    done = export(run, parsed.to, parsed.out, parsed.file, parsed.data_root)
    _print(json.dumps(dataclasses.asdict(done)) if parsed.json else done)
    return 0


def _plan(parsed: argparse.Namespace) -> int:
    from petl_bench.config import with_data
    from petl_bench.errors import parse_bytes
    from petl_bench.estimate.plan import plan
    from petl_bench.reports.plots.kinds import draw_memory
    from petl_bench.reports.render import check_picture, print_table
    from petl_bench.reports.tables import cost_table

    if parsed.plot:
        check_picture(Path(parsed.plot))
    budget = None if parsed.budget is None else parse_bytes("--budget", parsed.budget)
    rows = [row.to_dict() for row in plan(with_data(parsed.overrides, adjust_training=True), budget)]
    if parsed.json:
        _print(json.dumps(rows, indent=2))
    else:
        print_table(dataclasses.replace(cost_table(rows), whole=parsed.wide))
    if parsed.plot:
        draw_memory(rows, Path(parsed.plot))
        _log.info("plot: %s", Path(parsed.plot).resolve())
    return 0


def _choose(parsed: argparse.Namespace) -> int:
    import time

    from petl_bench.process import process_seconds

    # Imports and planning are part of the time.
    started = time.monotonic() - process_seconds()
    from petl_bench.config import with_data
    from petl_bench.errors import parse_bytes, parse_seconds, parse_share

    seconds = None if parsed.time is None else parse_seconds("--time", parsed.time)
    if seconds is not None and seconds < _LEAST_SECONDS:
        raise RequestError(
            f"--time={parsed.time} is too short, as torch alone takes seconds to import: give {_LEAST_SECONDS}s at the "
            "very least, and minutes for an encoder of the usual size."
        )
    from petl_bench.studies.answer import print_choice
    from petl_bench.studies.choice import Limits
    from petl_bench.studies.choose import choose
    from petl_bench.studies.definition import parse_request

    trainable, percent = parse_share("--trainable", parsed.trainable)
    limits = Limits(
        memory_bytes=None if parsed.memory is None else parse_bytes("--memory", parsed.memory),
        seconds=seconds,
        latency_ms=None if parsed.latency is None else 1000 * parse_seconds("--latency", parsed.latency),
        trainable=trainable,
        trainable_percent=percent,
    )
    # A study has several tasks, a choice has one.
    setup_logging()
    overrides = with_data(parsed.overrides, adjust_training=False)
    of_task = [override for override in overrides if override.startswith(("task=", "method="))]
    executor = [] if parsed.executor is None else [f"executor={parsed.executor}"]
    request = parse_request([*executor, *(override for override in overrides if override not in of_task)])
    if request.tasks is not None or request.seeds is not None or not request.tries_settings:
        raise RequestError("petl-bench choose takes one task, as task=NAME, and has seeds and a search of its own.")
    request.overrides = of_task + request.overrides
    methods = parsed.methods.split(",") if parsed.methods else request.methods
    choice = choose(request, limits, methods, started)
    print_choice(choice, choice.state.seconds, _print, as_json=parsed.json)
    return 0


def _study(parsed: argparse.Namespace) -> int:
    from petl_bench.studies.definition import parse_request, study_and_overrides
    from petl_bench.studies.progress import print_outcome, print_plan
    from petl_bench.studies.study import keep_costs, plan_costs, prepare, run_study

    name, overrides = study_and_overrides(parsed.name_and_overrides)
    study = prepare(name, parse_request(overrides))
    if parsed.dry_run or parsed.plan:
        costs = plan_costs(study)
        if parsed.plan:
            keep_costs(study, costs)
        print_plan(study, costs, _print, as_json=parsed.json, wide=parsed.wide)
        return 0
    unfinished = run_study(study, retry_failed=parsed.retry == "failed")
    print_outcome(study, _print, as_json=parsed.json)
    return RunError.exit_code if unfinished else 0


def _wandb_sweeps(parsed: argparse.Namespace) -> int:
    from petl_bench.studies.study import write_sweeps

    write_sweeps(parsed.name_and_overrides, parsed.runs, parsed.out, _print)
    return 0


def _check(parsed: argparse.Namespace) -> int:
    from petl_bench.catalog import check_lines, check_method

    outcomes = check_method([f"method={parsed.method}", *parsed.overrides])
    _print(json.dumps(list(map(dataclasses.asdict, outcomes))) if parsed.json else "\n".join(check_lines(outcomes)))
    return RunError.exit_code if any(outcome.status == "failed" for outcome in outcomes) else 0


def _sync(parsed: argparse.Namespace) -> int:
    from petl_bench.trackers.sync import sync

    for done in sync(parsed.folders, tracker=parsed.tracker, project=parsed.project, dry_run=parsed.dry_run):
        _print(json.dumps(dataclasses.asdict(done)) if parsed.json else done.line)
    return 0


def _dashboard(parsed: argparse.Namespace) -> int:
    from petl_bench.trackers.dashboard import show_dashboard

    show_dashboard(parsed.study, parsed.project, parsed.entity, save=parsed.save, as_json=parsed.json, write=_print)
    return 0


def _fetch(parsed: argparse.Namespace) -> int:
    """Downloads a backbone and a task once, so that machines without a network can use them from the local cache."""
    from petl_bench.backbones.source import find_source
    from petl_bench.config import load_config
    from petl_bench.tasks.load import load_task

    cfg = load_config(parsed.overrides)
    nothing = "random weights, nothing to fetch" if cfg.backbone.weights == "random" else None
    _print(f"backbone {cfg.backbone.name}: {nothing or find_source(cfg.backbone).folder}")
    rows = load_task(cfg.task, cfg.data_root).rows_per_split()
    _print(f"task {cfg.task.name}: " + ", ".join(f"{count:,} {split} rows" for split, count in rows.items()))
    return 0


def _print(text: Any) -> None:
    print(text, flush=True)  # noqa: T201


def _pretrain(parsed: argparse.Namespace) -> int:
    from petl_bench.run.pretrain import load_pretrain_config, pretrain

    record, folder = pretrain(load_pretrain_config(parsed.overrides))
    if is_main_process():
        first, last = (record.history[index].scores["distance"] for index in (0, -1))
        line = f"distance from the dense encoder {first:.4f} -> {last:.4f} in {record.updates} updates\n  {folder}"
        _print(json.dumps(record.to_dict()) if parsed.json else line)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "report": _report,
    "compare": _compare,
    "list": _list,
    "predict": _predict,
    "export": _export,
    "plan": _plan,
    "choose": _choose,
    "study": _study,
    "sweep": _wandb_sweeps,
    "check": _check,
    "pretrain": _pretrain,
    "sync": _sync,
    "dashboard": _dashboard,
    "fetch": _fetch,
}
