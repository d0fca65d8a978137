"""The command line: commands and their options, errors as messages and exit codes.

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

from petl_bench import __version__
from petl_bench.errors import Interrupted, RequestError, RunError
from petl_bench.process import DEBUG_VARIABLE, debugging, is_main_process, setup_logging
from petl_bench.reports.output_files import PLOT_KINDS

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from petl_bench.records.schema import Record


_KINDS = ("methods", "backbones", "tasks", "layers", "trackers", "recipes", "studies", "capabilities")

_EPILOG = """\
exit codes: 0 done; 2 the request was wrong; 1 the run failed (its record says how); 130 or 143 interrupted.
Results go to stdout (--json for machines), everything else to stderr. PETL_BENCH_DEBUG=1 shows tracebacks.

  petl-bench run                                        the embedded default: LoRA on the demo task
  petl-bench run task=mrpc method=full data_root=DIR    one run on GLUE rows in a local folder
  petl-bench run -m method=full,lora train.seed=0,1     every combination
  petl-bench study demo                                 all methods on the demo task, resumed where it was cut off
  petl-bench report runs                                compare what was run
  petl-bench plan backbone=bert_large task=mnli         what every method would cost, in seconds
"""

_Commands = Any  # argparse has no public name for it


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `command` is the name of the one that was asked for."""
    parser = argparse.ArgumentParser(
        prog="petl-bench",
        description="Compare parameter-efficient transfer-learning methods on your encoder, your task, your memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"petl-bench {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("run", help="train and evaluate one method on one task; -m for every combination")
    for add in (_add_report, _add_list, _add_predict, _add_plan, _add_study, _add_sync, _add_dashboard, _add_fetch):
        add(commands)
    return parser


def _add_report(commands: _Commands) -> None:
    report = commands.add_parser("report", help="tables and plots from finished runs")
    report.add_argument("folders", nargs="+", metavar="DIR", help="folders of runs, searched for records")
    report.add_argument("--format", choices=("table", "md", "latex", "csv", "json"), default="table")
    report.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    report.add_argument("--plot", metavar="FILE", help="also draw a picture (.png, .pdf, .svg)")
    report.add_argument(
        "--statistic",
        choices=("mean", "median"),
        default="mean",
        help="what cells show: mean ± sd, or median and range",
    )
    report.add_argument(
        "--compare", metavar="METHOD", help="test every method against this one; default: against the best average"
    )
    report.add_argument(
        "--plot-kind",
        choices=PLOT_KINDS,
        help="what --plot draws: score against costs (default), learning curves, score by training rows, or the "
        "variability of layers",
    )
    report.add_argument("--html", metavar="FILE", help="also write one page with sortable tables and linked plots")
    report.set_defaults(command="report")


def _add_list(commands: _Commands) -> None:
    catalog = commands.add_parser(
        "list", help="the methods, backbones, tasks, layer plans, trackers, recipes and studies there are"
    )
    catalog.add_argument("kind", nargs="?", choices=_KINDS)
    catalog.add_argument("--json", action="store_true", help="print JSON")
    catalog.set_defaults(command="list")


def _add_predict(commands: _Commands) -> None:
    predict = commands.add_parser("predict", help="text in, labels and probabilities out, with a finished run's model")
    predict.add_argument("run_dir", metavar="RUN_DIR", help="the run's folder")
    source = predict.add_mutually_exclusive_group()
    source.add_argument("--text", nargs="+", metavar="TEXT", help="one text for each of the task's text columns")
    source.add_argument(
        "--file", metavar="FILE", help="a .csv, .tsv, .jsonl or .parquet file with the task's text columns"
    )
    source.add_argument("--submit", metavar="OUT_DIR", help="write the GLUE server's files for the task's test rows")
    predict.add_argument("--data-root", metavar="DIR", help="folder of the test rows; default: the run's own")
    predict.add_argument("--json", action="store_true", help="print JSON lines")
    predict.set_defaults(command="predict")


def _add_plan(commands: _Commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="what methods will cost: parameters, memory, operations; in seconds, without weights, rows or a GPU",
        description="Counts parameters, the memory of one update by kind, and operations of every method, or of those "
        "named with method=; takes the same settings as `petl-bench run`.",
    )
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. backbone=bert_large task=mnli method=all")
    plan.add_argument("--budget", metavar="SIZE", help="e.g. 16GiB: say what fits, and the largest batch that does")
    plan.add_argument("--json", action="store_true", help="print a JSON list, an object a method")
    plan.add_argument("--plot", metavar="FILE", help="also draw the peak by kind (.png, .pdf, .svg)")
    plan.set_defaults(command="plan")


def _add_study(commands: _Commands) -> None:
    study = commands.add_parser(
        "study",
        help="a grid of methods, tasks and seeds that survives whatever happens, held against papers",
        description="Makes the runs of a study that are not finished; the same command goes on where it was cut off. "
        "Settings are those of `petl-bench run` but for method=, task=, train.seed= and force=; and methods=, tasks= "
        "(which of them to run now), seeds=, runs_dir=, "
        "executor=local|slurm|ray with executor.workers= and more (conf/executor).",
    )
    study.add_argument("name", metavar="NAME", help="one of `petl-bench list studies`, or a file NAME.yaml")
    study.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. methods=lora,full executor.workers=2")
    study.add_argument("--dry-run", action="store_true", help="say what would run and what it takes; write nothing")
    study.add_argument("--plan", action="store_true", help="the same, and keep the costs for the report's tables")
    study.add_argument("--retry", choices=("failed",), help="make failed runs again")
    study.add_argument("--json", action="store_true", help="print a JSON list, an object a run")
    study.set_defaults(command="study")


def _add_sync(commands: _Commands) -> None:
    sync = commands.add_parser(
        "sync",
        help="mirror finished runs to Weights & Biases or TensorBoard afterwards, each once",
        description="Mirrors every finished record below DIR that is not mirrored as it stands; WANDB_MODE=offline "
        "and W&B's other variables are honoured.",
    )
    sync.add_argument("folders", nargs="+", metavar="DIR", help="folders of runs, searched for records")
    sync.add_argument("--project", metavar="NAME", help="W&B project; default: WANDB_PROJECT, or the run's own")
    sync.add_argument("--tracker", choices=("wandb", "tensorboard"), default="wandb")
    sync.add_argument("--dry-run", action="store_true", help="only say what would be mirrored")
    sync.add_argument("--json", action="store_true", help="print JSON lines, an object a run")
    sync.set_defaults(command="sync")


def _add_dashboard(commands: _Commands) -> None:
    dashboard = commands.add_parser(
        "dashboard",
        help="a Weights & Biases workspace and report over mirrored runs",
        description="Builds the workspace and the report and prints what they contain; --save puts them into W&B.",
    )
    dashboard.add_argument("study", nargs="?", metavar="DIR|STUDY", help="only one study's runs; default: the project")
    dashboard.add_argument("--project", metavar="NAME", help="W&B project; default: WANDB_PROJECT, or petl_bench")
    dashboard.add_argument("--entity", metavar="NAME", help="W&B user or team; default: WANDB_ENTITY, or your login's")
    dashboard.add_argument("--save", action="store_true", help="write both to W&B (needs a login)")
    dashboard.add_argument("--json", action="store_true", help="print both as W&B keeps them")
    dashboard.set_defaults(command="dashboard")


def _add_fetch(commands: _Commands) -> None:
    fetch = commands.add_parser("fetch", help="download a task and a backbone, for machines without a network")
    fetch.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. backbone=bert_base task=mrpc")
    fetch.set_defaults(command="fetch")


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
        _print_error(error)
        return EXIT_REQUEST if isinstance(error, RequestError) else EXIT_FAILED
    except BrokenPipeError:
        # The reader (`| head`) has left; nothing more may be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debugging():
            raise
        words = (str(error).strip().splitlines() or [""])[0]
        _print_error(RunError(f"{type(error).__name__}: {words} ({DEBUG_VARIABLE}=1 shows where)."))
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

    from petl_bench.config import CONFIG_MODULE, explained, register_schemas

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
            _print_error(error)

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

    from petl_bench.config import CONFIG_MODULE, explained

    overrides = [word for word in words if not word.startswith("-")]
    with explained(words), initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        settings = compose("config", overrides=overrides)
        template = compose("config", overrides=overrides, return_hydra_config=True).hydra.help.template
    return str(template).replace("$CONFIG", OmegaConf.to_yaml(settings)).rstrip()


def _one_run(cfg: DictConfig, *, as_json: bool) -> None:
    """One run of `petl-bench run`, and what is printed of it."""
    setup_logging()
    from petl_bench.config import from_hydra
    from petl_bench.records.run_key import run_name
    from petl_bench.run.run import run

    config = from_hydra(cfg)
    record = run(config)
    if is_main_process():
        folder = Path(config.runs_dir).expanduser() / run_name(record.config, record.run_key)
        _print(json.dumps(record.to_dict()) if as_json else f"{_summary(record)}\n  {folder}")


def _summary(record: Record) -> str:
    from petl_bench.records.run_key import backbone_name

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
    from petl_bench.run.predict import predict_file, predict_stdin, predict_texts, submit

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
    from petl_bench.errors import parse_bytes
    from petl_bench.estimate.plan import plan
    from petl_bench.reports.output_files import check_picture
    from petl_bench.reports.plots.costs import draw_memory
    from petl_bench.reports.render import print_table
    from petl_bench.reports.tables import cost_table

    if parsed.plot:
        check_picture(Path(parsed.plot))
    budget = None if parsed.budget is None else parse_bytes("--budget", parsed.budget)
    rows = [row.to_dict() for row in plan(parsed.overrides, budget)]
    if parsed.json:
        _print(json.dumps(rows, indent=2))
    else:
        print_table(cost_table(rows))
    if parsed.plot:
        draw_memory(rows, Path(parsed.plot))
        _log.info("plot: %s", Path(parsed.plot).resolve())
    return 0


def _study(parsed: argparse.Namespace) -> int:
    from petl_bench.commands import print_outcome, print_plan
    from petl_bench.studies.request import parse_request
    from petl_bench.studies.study import keep_costs, plan_costs, prepare, run_study

    study = prepare(parsed.name, parse_request(parsed.overrides))
    if parsed.dry_run or parsed.plan:
        costs = plan_costs(study)
        if parsed.plan:
            keep_costs(study, costs)
        print_plan(study, costs, _print, as_json=parsed.json)
        return 0
    unfinished = run_study(study, retry_failed=parsed.retry == "failed")
    print_outcome(study, _print, as_json=parsed.json)
    return EXIT_FAILED if unfinished else 0


def _sync(parsed: argparse.Namespace) -> int:
    import dataclasses

    from petl_bench.trackers.sync import sync

    for done in sync(parsed.folders, tracker=parsed.tracker, project=parsed.project, dry_run=parsed.dry_run):
        _print(json.dumps(dataclasses.asdict(done)) if parsed.json else done.line)
    return 0


def _dashboard(parsed: argparse.Namespace) -> int:
    from petl_bench.trackers.dashboard import show_dashboard

    show_dashboard(parsed.study, parsed.project, parsed.entity, save=parsed.save, as_json=parsed.json, write=_print)
    return 0


def _fetch(parsed: argparse.Namespace) -> int:
    from petl_bench.commands import fetch
    from petl_bench.config import load_explained

    for line in fetch(load_explained(parsed.overrides)):
        _print(line)
    return 0


def _print_error(error: Exception) -> None:
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
