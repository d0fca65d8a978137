"""Commands, and workers of studies, that are forked from a process in which everything is imported already.

Importing torch, transformers and PEFT takes longer than all that a small run or study does. A forked process is killed,
terminated and waited for like any other.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

# The server must have computed no gradients: autograd does not work in a process that is forked after it was used.
FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(
    ["petl_bench.cli", "petl_bench.studies.study", "petl_bench.studies.worker", "petl_bench.run.run", "peft",
     "petl_bench.frozen.batch_source", "petl_bench.training.loop", "sklearn.metrics", "pandas", "pyarrow.parquet",
     "transformers.models.bert.modeling_bert", "transformers.models.auto.tokenization_auto"]
)  # fmt: skip


class Worker:
    """In place of `subprocess.Popen` for the workers of a study: the part of its interface that they need."""

    def __init__(self, words, env, stdin, stdout, stderr, start_new_session):
        assert words[:2] == [sys.executable, "-m"]
        assert (stdin, stderr, start_new_session) == (subprocess.PIPE, stdout, True)
        self.returncode = None
        reads, self._writes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                for handled in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(handled, signal.SIG_DFL)
                logging.getLogger("petl_bench").handlers.clear()
                os.environ.clear()
                os.environ.update(env)
                become([reads, stdout.fileno(), stderr.fileno()], words[2], words[3:])
            finally:
                os._exit(1)
        os.close(reads)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def become(streams, module, words):
    """Does what `python -m MODULE WORDS` does, with these files as its streams and no other open; does not return."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    # Locks of files, and the ends of pipes, must not live on in this process.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.argv = [module, *words]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    os._exit(code)


def _run(words, folder, output, environment):
    from petl_bench.studies import executors

    # Tests that run in the background ignore Ctrl-C, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.update(environment)
    executors.subprocess = types.SimpleNamespace(
        Popen=Worker, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    with (
        Path(os.devnull).open() as nothing,
        (output / "stdout").open("w") as stdout,
        (output / "stderr").open("w") as stderr,
    ):
        become([nothing.fileno(), stdout.fileno(), stderr.fileno()], "petl_bench", words)


class Command:
    """A forked `petl-bench`, whose workers are forked too, with its output in files of a folder."""

    def __init__(self, words, cwd, output):
        output.mkdir()
        self._output = output
        self._process = FORK_SERVER.Process(target=_run, args=(words, cwd, output, dict(os.environ)))
        self._process.start()

    def poll(self):
        return self._process.exitcode

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self._process.pid, signum)

    def communicate(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            raise subprocess.TimeoutExpired("petl-bench", timeout)
        return tuple((self._output / name).read_text() for name in ("stdout", "stderr"))

    def errors(self):
        """What it wrote to stderr so far."""
        file = self._output / "stderr"
        return file.read_text() if file.exists() else ""

    @property
    def returncode(self):
        return self.poll()
