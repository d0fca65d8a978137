"""The command line: runs the command that is asked for, and turns errors into messages and exit codes.

Nothing heavy is imported here, so that `petl-bench --help` answers at once. The options of each command are in
`parsers.py`, what it does is in `commands.py`.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import io
import os
import signal
import sys
from collections.abc import Sequence

from petl_bench.errors import Interrupted, RequestError, RunError, explained_refusal, first_line, system_error
from petl_bench.parsers import build_parsers, complete
from petl_bench.process import (
    CONFIG_VARIABLE,
    DEBUG_VARIABLE,
    debugging,
    print_error,
    setup_logging,
    user_path,
)

# Commands that go on where they were interrupted.
_RESUMED = {"run", "study", "choose", "pretrain", "sync"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        arguments: What follows `petl-bench`; None: those of this process.

    Returns:
        The exit code.
    """
    if "_ARGCOMPLETE" in os.environ:
        complete()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _allow_any_character()
    try:
        try:
            arguments = _with_config_dir(arguments)
            code = _dispatch(arguments)
        except SystemExit:
            _flush_output()
            raise
        _flush_output()
        return code
    except (RequestError, RunError) as error:
        if debugging():
            raise
        print_error(error)
        return error.exit_code
    except BrokenPipeError:
        # The reader (`| head`) has gone.
        _discard_output()
        return 0
    except OSError as error:
        if debugging() or error.filename is not None or error.errno not in _OUTPUT_ERRORS:
            return _unforeseen(error)
        _discard_output()
        fault = f"Standard output cannot be written: {error.strerror}."
        message = RunError(f"{fault} Free disk space or redirect it elsewhere.")
        print_error(message)
        return message.exit_code
    except Exception as error:
        return _unforeseen(error)
    except (Interrupted, KeyboardInterrupt) as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        goes_on = "; the same command goes on from there" if _RESUMED & set(arguments[:1]) else ""
        print(f"petl-bench: interrupted{goes_on}.", file=sys.stderr)  # noqa: T201
        return 128 + signum


def _with_config_dir(arguments: list[str]) -> list[str]:
    """Takes `--config-dir DIR` out of the arguments, wherever it stands, and sets the variable for it."""
    parser = argparse.ArgumentParser(prog="petl-bench", add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", metavar="DIR")
    parsed, others = parser.parse_known_args(arguments)
    if parsed.config_dir is not None:
        os.environ[CONFIG_VARIABLE] = str(user_path(parsed.config_dir, "--config-dir").absolute())
    return others


def _flush_output() -> None:
    """Flushes standard output, as an error at the end of the process could no longer be reported."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _unforeseen(error: Exception) -> int:
    if debugging():
        raise error
    refused = system_error(error)
    sentence = None if refused is None else explained_refusal(refused, "a file", "give another place")
    message = RunError(sentence or f"{type(error).__name__}: {first_line(error)} ({DEBUG_VARIABLE}=1 shows where).")
    print_error(message)
    return message.exit_code


# Errors of standard output on a full disk or a broken device.
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# Replacements for characters of tables and messages that the encoding of the output lacks.
_ASCII = {
    "±": "+-", "−": "-", "×": "x", "·": "*", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "∞": "inf", "→": "->", "–": "-",
    "—": "-", "…": "...", "√": "sqrt", "µ": "u", "²": "^2", "³": "^3", "✓": "v", "✗": "x", "▶": ">",
}  # fmt: skip


def _allow_any_character() -> None:
    """Makes standard output and error replace characters that their encoding lacks, such as `±` in ASCII."""

    def replaced(error: UnicodeError) -> tuple[str | bytes, int]:
        if isinstance(error, UnicodeEncodeError) and error.object[error.start] in _ASCII:
            return _ASCII[error.object[error.start]], error.start + 1
        return codecs.backslashreplace_errors(error)

    codecs.register_error("petl_bench", replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="petl_bench")


def _discard_output() -> None:
    """Discards the remaining output, as writing it at the end of the process would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    parser, commands = build_parsers()
    name = arguments[0] if arguments else ""
    if name == "run":
        # Hydra reads what follows `run`, --help included.
        from petl_bench.commands import run

        return run(arguments[1:])
    if name not in commands:
        # Prints --help or --version, or an error that names the commands.
        parser.parse_args(arguments)
    # Intermixed, so that options may stand between overrides.
    parsed = commands[name].parse_intermixed_args(arguments[1:])
    setup_logging()
    from petl_bench.commands import COMMANDS

    return COMMANDS[name](parsed)
