"""The door: names the sub-commands, turns errors into messages and exit codes.

Nothing heavy is imported here: `petl-bench --help` must answer at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petl_bench.errors import Interrupted, RequestError, RunError
from petl_bench.logs import DEBUG_VARIABLE, debugging, setup_logging
from petl_bench.parser import build_parser
from petl_bench.processes import is_main_process

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from petl_bench.records.schema import Record

_log = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_REQUEST = 2
# Options of plan and study whose value is the next word.
_TAKE_A_VALUE = ("--retry", "--budget", "--plot")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except (RequestError, RunError) as error:
        if debugging():
            raise
        _tell(error)
        return EXIT_REQUEST if isinstance(error, RequestError) else EXIT_FAILED
    except BrokenPipeError:
        # The reader (`| head`) has left; nothing more may be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debugging():
            raise
        words = (str(error).strip().splitlines() or [""])[0]
        _tell(RunError(f"{type(error).__name__}: {words} ({DEBUG_VARIABLE}=1 shows where)."))
        return EXIT_FAILED
    except (Interrupted, KeyboardInterrupt) as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        print("petl-bench: interrupted; the same command goes on from there.", file=sys.stderr)  # noqa: T201
        return 128 + signum


def _dispatch(arguments: list[str]) -> int:
    # Hydra reads the words after `run`, --help included.
    if arguments[:1] == ["run"]:
        return _run(arguments[1:])
    if arguments[:1] in (["plan"], ["fetch"], ["study"]):
        arguments = _options_first(arguments)
    parsed = build_parser().parse_args(arguments)
    setup_logging()
    return _COMMANDS[parsed.command](parsed)


def _options_first(arguments: list[str]) -> list[str]:
    """Puts `key=value` words last, after a study's name: argparse takes what is no option in one block only."""
    overrides = [word for word in arguments[1:] if re.match(r"[+~]*[A-Za-z_][\w./@]*=|~[A-Za-z_]", word)]
    others = [word for word in arguments[1:] if word not in overrides]
    options: list[str] = []
    named: list[str] = []
    for word in others:
        of_an_option = word.startswith("-") or (bool(options) and options[-1] in _TAKE_A_VALUE)
        (options if of_an_option else named).append(word)
    return [arguments[0], *options, *named, *overrides]


def _run(arguments: list[str]) -> int:
    """Hands the overrides to Hydra, which composes the config and calls back once a run."""
    as_json = "--json" in arguments
    words = ["force=true" if word == "--force" else word for word in arguments if word != "--json"]
    # Hydra would print its own errors and exit with 1; with this it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    import hydra

    from petl_bench.config import CONFIG_MODULE, register_schemas
    from petl_bench.hydra_errors import explained

    register_schemas()
    if {"--help", "-h"} & set(words):
        _print(_run_help(words))
        return 0
    failures: list[Exception] = []
    this_process = os.getpid()

    def job(cfg: DictConfig) -> None:
        try:
            _one_run(cfg, as_json=as_json)
        except (RequestError, RunError) as error:
            # Hydra would add words of its own; other processes (launchers) have no way but to raise.
            if debugging() or os.getpid() != this_process:
                raise
            failures.append(error)
            _tell(error)

    sys.argv = ["petl-bench run", *words]
    with explained(words):
        hydra.main(config_path=f"pkg://{CONFIG_MODULE}", config_name="config", version_base="1.3")(job)()
    if any(isinstance(error, RunError) for error in failures):
        return EXIT_FAILED
    return EXIT_REQUEST if failures else 0


def _run_help(words: list[str]) -> str:
    """What Hydra would print for --help, in a fraction of the time: Hydra also looks up groups for texts of its own."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from petl_bench.config import CONFIG_MODULE
    from petl_bench.hydra_errors import explained

    overrides = [word for word in words if not word.startswith("-")]
    with explained(words), initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        settings = compose("config", overrides=overrides)
        template = compose("config", overrides=overrides, return_hydra_config=True).hydra.help.template
    return str(template).replace("$CONFIG", OmegaConf.to_yaml(settings)).rstrip()


def _one_run(cfg: DictConfig, *, as_json: bool) -> None:
    """One run of `petl-bench run`, and what is printed of it."""
    setup_logging()
    from petl_bench.config import from_hydra
    from petl_bench.records.names import run_name
    from petl_bench.runner import run

    config = from_hydra(cfg)
    record = run(config)
    if is_main_process():
        folder = Path(config.runs_dir).expanduser() / run_name(record.config, record.run_key)
        _print(json.dumps(record.to_dict()) if as_json else f"{_summary(record)}\n  {folder}")


def _summary(record: Record) -> str:
    from petl_bench.records.names import backbone_name

    assert record.protocol
    assert record.params
    scores = "  ".join(f"{name} {value:.4f}" for name, value in record.selected_scores.items())
    return (
        f"{record.protocol.task}  {record.config['method']['name']}  {backbone_name(record.config['backbone'])}  "
        f"seed {record.protocol.seed}:  {scores}  ({record.params.trainable:,} parameters trained)"
    )


def _report(parsed: argparse.Namespace) -> int:
    from petl_bench.reports.report import write_report

    return write_report(
        parsed.folders,
        parsed.format,
        parsed.plot,
        _print,
        statistic=parsed.statistic,
        reference=parsed.compare,
        plot_kind=parsed.plot_kind,
        page=parsed.html,
    )


def _list(parsed: argparse.Namespace) -> int:
    from petl_bench.catalog import print_catalog

    print_catalog(parsed.kind, as_json=parsed.json)
    return 0


def _predict(parsed: argparse.Namespace) -> int:
    from petl_bench.predict import predict_file, predict_stdin, predict_texts, submit

    if parsed.submit:
        for file in submit(parsed.run_dir, parsed.submit, parsed.data_root):
            _print(str(file))
        return 0
    if parsed.file:
        lines = predict_file(parsed.run_dir, parsed.file, as_json=parsed.json)
    elif parsed.text:
        lines = predict_texts(parsed.run_dir, parsed.text, as_json=parsed.json)
    else:
        lines = predict_stdin(parsed.run_dir, sys.stdin, as_json=parsed.json)
    for line in lines:
        _print(line)
    return 0


def _plan(parsed: argparse.Namespace) -> int:
    from petl_bench.plan import plan
    from petl_bench.reports.file_formats import check_picture
    from petl_bench.reports.plots.ledgers import draw_ledgers
    from petl_bench.reports.tables.cost_table import cost_table
    from petl_bench.reports.tables.terminal import print_table
    from petl_bench.sizes import parse_bytes

    if parsed.plot:
        check_picture(Path(parsed.plot))
    budget = None if parsed.budget is None else parse_bytes("--budget", parsed.budget)
    rows = [row.to_dict() for row in plan(parsed.overrides, budget)]
    if parsed.json:
        _print(json.dumps(rows, indent=2))
    else:
        print_table(cost_table(rows))
    if parsed.plot:
        draw_ledgers(rows, Path(parsed.plot))
        _log.info("plot: %s", Path(parsed.plot).resolve())
    return 0


def _study(parsed: argparse.Namespace) -> int:
    from petl_bench.studies.request import parse_request
    from petl_bench.studies.study import count_costs, keep_costs, prepare, run_study
    from petl_bench.studies.tell import tell_outcome, tell_plan

    study = prepare(parsed.name, parse_request(parsed.overrides))
    if parsed.dry_run or parsed.plan:
        costs = count_costs(study)
        if parsed.plan:
            keep_costs(study, costs)
        tell_plan(study, costs, _print, as_json=parsed.json)
        return 0
    unfinished = run_study(study, retry_failed=parsed.retry == "failed")
    tell_outcome(study, _print, as_json=parsed.json)
    return EXIT_FAILED if unfinished else 0


def _sync(parsed: argparse.Namespace) -> int:
    import dataclasses

    from petl_bench.sync import sync

    for done in sync(parsed.folders, tracker=parsed.tracker, project=parsed.project, dry_run=parsed.dry_run):
        _print(json.dumps(dataclasses.asdict(done)) if parsed.json else done.line)
    return 0


def _dashboard(parsed: argparse.Namespace) -> int:
    from petl_bench.dashboard import show_dashboard

    show_dashboard(parsed.study, parsed.project, parsed.entity, save=parsed.save, as_json=parsed.json, write=_print)
    return 0


def _fetch(parsed: argparse.Namespace) -> int:
    from petl_bench.fetch import fetch
    from petl_bench.hydra_errors import load_explained

    for line in fetch(load_explained(parsed.overrides)):
        _print(line)
    return 0


def _tell(error: Exception) -> None:
    print(f"petl-bench: {error}", file=sys.stderr)  # noqa: T201


def _print(text: Any) -> None:
    print(text, flush=True)  # noqa: T201


_COMMANDS = {
    "report": _report,
    "list": _list,
    "predict": _predict,
    "plan": _plan,
    "study": _study,
    "sync": _sync,
    "dashboard": _dashboard,
    "fetch": _fetch,
}
