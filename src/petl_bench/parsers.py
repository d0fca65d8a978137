"""The commands and their options, as argparse reads them; and what the Tab key completes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from petl_bench import __version__
from petl_bench.errors import RequestError
from petl_bench.records import OOD_SCORES
from petl_bench.reports.render import PLOT_KINDS
from petl_bench.studies import EXECUTORS

_KINDS = ("methods", "backbones", "tasks", "layers", "train", "trackers", "executors", "recipes", "studies")
_LONG_KINDS = ("settings", "capabilities")

_EPILOG = """\
exit codes: 0 done; 2 the request was wrong; 1 the run failed (its record says how); 130 or 143 interrupted.
Results go to stdout (--json for machines), everything else to stderr. PETL_BENCH_DEBUG=1 shows tracebacks.
--config-dir DIR (or PETL_BENCH_CONF=DIR), with every command: options of your own, as DIR/task/NAME.yaml.

  petl-bench run                                        the embedded default: LoRA on Banking77, ten rows an intent
  petl-bench run task=mrpc method=full data_root=DIR    one run on GLUE rows in a local folder
  petl-bench run -m method=full,lora train.seed=0,1     every combination
  petl-bench choose data=tickets.csv --time 30min       which method to use for your rows
  petl-bench study demo                                 all methods on the same rows, resumed after an interruption
  petl-bench report runs                                compare what was run
  petl-bench compare runs/RUN_A runs/RUN_B              where two runs disagree, row by row
  petl-bench plan backbone=bert_large task=mnli         what every method would cost, in seconds
"""

_Subparsers = Any  # argparse has no public name for it


def build_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and the parser of each command by its name."""
    parser = argparse.ArgumentParser(
        prog="petl-bench",
        description="Compare parameter-efficient transfer-learning methods on your encoder, your task, your memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"petl-bench {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    added = (
        _add_run,
        _add_report,
        _add_compare,
        _add_list,
        _add_predict,
        _add_export,
        _add_plan,
        _add_choose,
        _add_study,
        _add_sweep,
        _add_check,
        _add_pretrain,
        _add_sync,
        _add_dashboard,
        _add_fetch,
    )
    parsers = [add(commands) for add in added]
    return parser, {command.prog.rpartition(" ")[2]: command for command in parsers}


def _add_overrides(parser: argparse.ArgumentParser, example: str | None = None) -> None:
    overrides: Any = parser.add_argument("overrides", nargs="*", metavar="key=value", help=example)
    overrides.completer = _settings


def _add_run(commands: _Subparsers) -> argparse.ArgumentParser:
    """For completion alone: Hydra reads what follows `run`."""
    run: argparse.ArgumentParser = commands.add_parser(
        "run", help="train and evaluate one method on one task; -m for every combination"
    )
    _add_overrides(run)
    for option in ("--force", "--json", "-m"):
        run.add_argument(option, action="store_true")
    return run


def _add_report(commands: _Subparsers) -> argparse.ArgumentParser:
    report: argparse.ArgumentParser = commands.add_parser("report", help="tables and plots from finished runs")
    report.add_argument("folders", nargs="+", metavar="DIR", help="folders of runs, searched for records")
    report.add_argument("--format", choices=("table", "md", "latex", "csv", "json"), default="table")
    report.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    report.add_argument("--plot", metavar="FILE", help="also draw a plot (.png, .pdf, .svg)")
    report.add_argument(
        "--statistic",
        choices=("mean", "median"),
        default="mean",
        help="what cells show: mean ± sd, or median and range",
    )
    report.add_argument(
        "--compare", metavar="METHOD", help="test every method against this one; default: every pair of methods"
    )
    report.add_argument(
        "--plot-kind",
        choices=PLOT_KINDS,
        help="what --plot draws: score against costs (default), learning curves, score by training rows, the "
        "variability of layers, or the best of n trials of a search (tuning)",
    )
    report.add_argument(
        "--rows",
        action="store_true",
        help="other tables: calibration, scores of each class and confusion matrices, from the runs' predictions",
    )
    report.add_argument(
        "--layout",
        choices=("paper",),
        help="for studies with published rows: a paper's rows and tasks in its own order, each cell ours (published)",
    )
    report.add_argument("--html", metavar="FILE", help="also write one page with sortable tables and linked plots")
    report.add_argument(
        "--method-comparison", metavar="DIR", help="also write each run as peft's method_comparison suite keeps it"
    )
    report.add_argument(
        "--columns", metavar="NAMES", help="columns of the table of scores, e.g. 'sst2 acc,estimated MiB,batch'"
    )
    report.add_argument("--wide", action="store_true", help="show all columns, even if there is no room for them")
    return report


def _add_compare(commands: _Subparsers) -> argparse.ArgumentParser:
    compare: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="two finished runs of one task, row by row: where they disagree, and whether that shows a difference",
        description="Compares two runs on the rows that both have predicted, from the predictions that they have kept.",
    )
    compare.add_argument("run_a", metavar="RUN_A", help="a run's folder, or its result.json")
    compare.add_argument("run_b", metavar="RUN_B", help="another run of the same task")
    compare.add_argument(
        "--limit", type=int, metavar="N", help="list at most this many rows; default: 20, and all of them with --json"
    )
    compare.add_argument("--data-root", metavar="DIR", help="folder of the rows' texts; default: that of run A")
    compare.add_argument("--json", action="store_true", help="print a JSON object")
    return compare


def _add_list(commands: _Subparsers) -> argparse.ArgumentParser:
    catalog: argparse.ArgumentParser = commands.add_parser(
        "list", help="the options that there are: methods, backbones, tasks, studies and others; and all settings"
    )
    catalog.add_argument("kind", nargs="?", choices=_KINDS + _LONG_KINDS)
    catalog.add_argument("group", nargs="?", help="with settings: only this group or method, e.g. train or lora")
    catalog.add_argument("--format", choices=("table", "md", "json"), default="table")
    catalog.add_argument("--json", dest="format", action="store_const", const="json", help="same as --format json")
    return catalog


def _add_predict(commands: _Subparsers) -> argparse.ArgumentParser:
    predict: argparse.ArgumentParser = commands.add_parser(
        "predict", help="text in, labels and probabilities or entities out, with a finished run's model"
    )
    predict.add_argument("run_dir", metavar="RUN_DIR", help="the run's folder")
    source = predict.add_mutually_exclusive_group()
    source.add_argument("--text", nargs="+", metavar="TEXT", help="one text for each of the task's text columns")
    source.add_argument(
        "--file", metavar="FILE", help="a .csv, .tsv, .jsonl, .parquet or .txt file; scored where it has labels"
    )
    source.add_argument("--submit", metavar="OUT_DIR", help="write the GLUE server's files for the task's test rows")
    predict.add_argument("--out", metavar="FILE", help="with --file: output file (.csv, .jsonl, .parquet)")
    predict.add_argument("--id-column", metavar="NAME", help="with --file: column of row names; default: row numbers")
    predict.add_argument("--data-root", metavar="DIR", help="folder of the test rows; default: the run's own")
    _add_base(predict)
    predict.add_argument(
        "--ood",
        nargs="?",
        const=next(iter(OOD_SCORES)),
        choices=OOD_SCORES,
        help="for a run with task.ood: also say whether each text is in distribution, by the threshold of this score "
        "(default: %(const)s)",
    )
    predict.add_argument("--json", action="store_true", help="print JSON lines")
    return predict


def _add_base(command: argparse.ArgumentParser) -> None:
    command.add_argument("--base", metavar="DIR", help="folder of the pretrained backbone, if it has moved since")
    command.add_argument("--any-base", action="store_true", help="go on even with another backbone than the run's")


def _add_export(commands: _Subparsers) -> argparse.ArgumentParser:
    export: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="export a finished run's model as a plain transformers model or as ONNX",
        description="Writes the model with its tokenizer, label names and a model card, and compares its logits with "
        "those of the run's model on some rows.",
    )
    export.add_argument("run_dir", metavar="RUN_DIR", help="the run's folder")
    export.add_argument("--to", choices=("merged", "onnx"), required=True, help="onnx needs the extra `onnx`")
    export.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    export.add_argument("--file", metavar="FILE", help="rows to compare on; default: those that the run reported on")
    export.add_argument("--data-root", metavar="DIR", help="folder of the rows reported on; default: the run's own")
    _add_base(export)
    export.add_argument("--json", action="store_true", help="print a JSON object")
    return export


def _add_plan(commands: _Subparsers) -> argparse.ArgumentParser:
    plan: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="what methods will cost: parameters, memory, operations; in seconds, without weights, rows or a GPU",
        description="Counts parameters, the memory of one update by kind, and operations of every method, or of those "
        "named with method=; takes the same settings as `petl-bench run`.",
    )
    _add_overrides(plan, "e.g. backbone=bert_large task=mnli method=all")
    plan.add_argument("--budget", metavar="SIZE", help="e.g. 16GiB: say what fits, and the largest batch that does")
    plan.add_argument("--json", action="store_true", help="print a JSON list, an object a method")
    plan.add_argument("--wide", action="store_true", help="show all columns, even if there is no room for them")
    plan.add_argument("--plot", metavar="FILE", help="also draw the peak by kind (.png, .pdf, .svg)")
    return plan


def _add_choose(commands: _Subparsers) -> argparse.ArgumentParser:
    choose: argparse.ArgumentParser = commands.add_parser(
        "choose",
        usage="%(prog)s [options] [key=value ...]",
        help="recommend a method and settings for your rows within limits of time and memory",
        description="Tries all methods with several settings, drops the worse ones step by step, and says which to "
        "use, its score on rows not used for choosing, and what else is as good and cheaper. Settings are those of "
        "`petl-bench run` except method; runs_dir= names the folder, in which the same command goes on.",
    )
    _add_overrides(choose, "e.g. data=tickets.csv backbone=minilm train.epochs=5")
    choose.add_argument("--time", metavar="TIME", help="time limit for the whole command, e.g. 90s, 30min or 2h")
    choose.add_argument("--memory", metavar="SIZE", help="limit on the estimated memory of one update, e.g. 8GiB")
    choose.add_argument("--latency", metavar="TIME", help="limit on the time per row on this machine, e.g. 20ms")
    choose.add_argument("--trainable", metavar="N", help="limit on the trained parameters, e.g. 200000 or 1%%")
    choose.add_argument("--methods", metavar="NAMES", help="methods to compare, e.g. lora,houlsby,full; default: all")
    choose.add_argument(
        "--executor",
        choices=EXECUTORS,
        help="train in processes as `petl-bench study` does (executor.workers=N); default: in this one",
    )
    choose.add_argument("--json", action="store_true", help="print a JSON object")
    return choose


def _add_study(commands: _Subparsers) -> argparse.ArgumentParser:
    study: argparse.ArgumentParser = commands.add_parser(
        "study",
        usage="%(prog)s [options] NAME [key=value ...]",
        help="a grid of methods, tasks and seeds that survives interruptions, compared with papers",
        description="Makes the runs of a study that are not finished; the same command goes on after an interruption. "
        "NAME is one of `petl-bench list studies`, or a file NAME.yaml. "
        "Settings are those of `petl-bench run` but for method=, task=, train.seed= and force=; and methods=, tasks= "
        "(which of them to run now), seeds=, search=none (no settings are tried), runs_dir=, "
        "executor=local|slurm|ray with executor.workers= and more (`petl-bench list settings executor`).",
    )
    arguments: Any = study.add_argument(
        "name_and_overrides", nargs="+", metavar="NAME key=value", help="e.g. demo methods=lora,full executor.workers=2"
    )
    arguments.completer = _studies
    study.add_argument("--dry-run", action="store_true", help="say what would run and what it takes; write nothing")
    study.add_argument("--plan", action="store_true", help="the same, and keep the costs for the report's tables")
    study.add_argument("--wide", action="store_true", help="show all columns of --dry-run, whether they fit or not")
    study.add_argument("--retry", choices=("failed",), help="make failed runs again")
    study.add_argument("--json", action="store_true", help="print a JSON list, an object a run")
    return study


def _add_sweep(commands: _Subparsers) -> argparse.ArgumentParser:
    sweep: argparse.ArgumentParser = commands.add_parser(
        "sweep",
        usage="%(prog)s [options] STUDY|task=NAMES method=NAMES [key=value ...]",
        help="files of Weights & Biases sweeps: the settings of each method on each task, from their declared ranges",
        description="Writes a file for `wandb sweep` for each method and task, of a study or as named with task= and "
        "method=. A sweep searches the sizes and the rate of a method in the ranges of `petl-bench study`'s search, by "
        "the primary metric on the selection rows.",
    )
    arguments: Any = sweep.add_argument(
        "name_and_overrides", nargs="+", metavar="STUDY key=value", help="e.g. task=mrpc method=lora,full data_root=DIR"
    )
    arguments.completer = _studies
    sweep.add_argument("--out", metavar="DIR", help="folder of the files; default: one file is printed")
    sweep.add_argument("--runs", type=int, metavar="N", help="runs per sweep; default: the study's trials, or 12")
    return sweep


def _add_check(commands: _Subparsers) -> argparse.ArgumentParser:
    check: argparse.ArgumentParser = commands.add_parser(
        "check",
        usage="%(prog)s [options] METHOD [key=value ...]",
        help="check that a method meets the requirements for methods (for authors of methods)",
        description="Tries a method on a tiny random model of every architecture, or on backbone=NAME, and prints each "
        "check with its outcome and the reason; exits with 1 if one failed.",
    )
    check.add_argument("method", metavar="METHOD", help="one of `petl-bench list methods`")
    _add_overrides(check, "e.g. method.r=4 backbone=tiny_bert")
    check.add_argument("--json", action="store_true", help="print a JSON list, an object a check and architecture")
    return check


def _add_pretrain(commands: _Subparsers) -> argparse.ArgumentParser:
    pretrain: argparse.ArgumentParser = commands.add_parser(
        "pretrain",
        usage="%(prog)s [options] key=value ...",
        help="a method's training phase on texts without labels, for runs to start from (method.init=FOLDER)",
        description="Trains CoDA's routers, adapters and norms until the encoder gives nearly the same states as "
        "without them, and keeps an adapter. Texts are the training rows of tasks (texts.tasks=[sst2,qnli] "
        "data_root=DIR) or files with one text a line (texts.files=[FILE]). `petl-bench list settings texts` and "
        "`... phase` show its own settings; train.max_steps is the number of updates, and half=true stores the adapter "
        "in half precision. The same command goes on after an interruption.",
    )
    _add_overrides(pretrain, "e.g. 'texts.tasks=[banking77]'")
    pretrain.add_argument("--json", action="store_true", help="print the record")
    return pretrain


def _add_sync(commands: _Subparsers) -> argparse.ArgumentParser:
    sync: argparse.ArgumentParser = commands.add_parser(
        "sync",
        help="mirror finished runs to Weights & Biases or TensorBoard afterwards, each once",
        description="Mirrors every finished record below DIR that is not mirrored as it is now; WANDB_MODE=offline "
        "and W&B's other variables are honoured.",
    )
    sync.add_argument("folders", nargs="+", metavar="DIR", help="folders of runs, searched for records")
    sync.add_argument("--project", metavar="NAME", help="W&B project; default: WANDB_PROJECT, or the run's own")
    sync.add_argument("--tracker", choices=("wandb", "tensorboard"), default="wandb")
    sync.add_argument("--dry-run", action="store_true", help="only say what would be mirrored")
    sync.add_argument("--json", action="store_true", help="print JSON lines, an object a run")
    return sync


def _add_dashboard(commands: _Subparsers) -> argparse.ArgumentParser:
    dashboard: argparse.ArgumentParser = commands.add_parser(
        "dashboard",
        help="a Weights & Biases workspace and report over mirrored runs",
        description="Builds the workspace and the report and prints what they contain; --save puts them into W&B.",
    )
    dashboard.add_argument("study", nargs="?", metavar="DIR|STUDY", help="only one study's runs; default: the project")
    dashboard.add_argument("--project", metavar="NAME", help="W&B project; default: WANDB_PROJECT, or petl_bench")
    dashboard.add_argument("--entity", metavar="NAME", help="W&B user or team; default: WANDB_ENTITY, or your login's")
    dashboard.add_argument("--save", action="store_true", help="write both to W&B (needs a login)")
    dashboard.add_argument("--json", action="store_true", help="print both as W&B keeps them")
    return dashboard


def _add_fetch(commands: _Subparsers) -> argparse.ArgumentParser:
    fetch: argparse.ArgumentParser = commands.add_parser(
        "fetch", help="download a task and a backbone, for machines without a network"
    )
    _add_overrides(fetch, "e.g. backbone=bert_base task=mrpc")
    return fetch


# What a study takes besides the groups of a run.
_OF_STUDIES = ("methods", "tasks", "seeds", "executor")


def complete() -> None:
    """Answers a shell's completion request with the possible next words, and ends the process."""
    import argcomplete

    parser, _ = build_parsers()
    argcomplete.autocomplete(parser, always_complete_options=False, validator=lambda *_: True)


def _studies(prefix: str, **others: object) -> Iterable[str]:
    from petl_bench.settings import option_names

    words = [f"{group}=" for group in _OF_STUDIES] + option_names("study")
    return [*(word for word in words if word.startswith(prefix)), *_settings(prefix, **others)]


def _settings(prefix: str, **_others: object) -> Iterable[str]:
    """The possible completions of an override: a group, its options, a setting, its values."""
    key, equals, _ = prefix.partition("=")
    try:
        values = _values(key) if equals else _names()
    except RequestError:
        # A folder of options is wrong; the command itself will report it.
        return []
    words = [f"{key}={value}" for value in values] if equals else values
    return [word for word in words if word.startswith(prefix)]


def _names() -> list[str]:
    from petl_bench.config import run_settings
    from petl_bench.settings import RUN_GROUPS

    return [f"{name}=" for name in (*RUN_GROUPS, *(setting.name for setting in run_settings()))]


def _values(key: str) -> list[str]:
    from petl_bench.settings import GROUPS, option_names

    if key in GROUPS:
        return option_names(key)
    from petl_bench.config import run_settings

    values: list[str] = []
    for setting in run_settings():
        if setting.name == key:
            values += setting.choices or (["true", "false"] if setting.type == "bool" else [])
    return list(dict.fromkeys(values))
