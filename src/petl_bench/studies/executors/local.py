"""Workers on this machine; GPUs are dealt out, several workers to one where asked for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

from petl_bench.errors import RunError
from petl_bench.process import gpu_may_be_there
from petl_bench.records.study_file import PlannedRun
from petl_bench.studies.definition import ExecutorConfig
from petl_bench.studies.folder import StudyFolder
from petl_bench.studies.worker import write_failure

# A run whose process is killed so often, while the study lives, has failed.
_MOST_DEATHS = 2
_SECONDS_TO_STOP = 30


class LocalWorkers:
    """Processes of this machine. They end with this one."""

    def __init__(self, settings: ExecutorConfig, folder: StudyFolder, plan: str, runs: list[PlannedRun]) -> None:
        self._folder, self._plan, self._runs = folder, plan, {run.key: run for run in runs}
        self._gpus = visible_gpus()
        per_machine = settings.runs_per_gpu * len(self._gpus) or 1
        self._count = min(settings.workers or per_machine, len(runs))
        # By run; of workers that held none, by the worker's number.
        self._deaths: Counter[str | int] = Counter()
        self._processes = {number: self._start(number) for number in range(self._count)}

    def alive(self) -> bool:
        """See `Workers.alive`."""
        for number, process in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self._processes[number]
            if code != 0 or self._held_by(process.pid):
                self._note_death(number, process.pid, code)
                self._processes[number] = self._start(number)
        return bool(self._processes)

    def stop(self, signum: int) -> None:
        """See `Workers.stop`."""
        for process in self._processes.values():
            process.send_signal(signum)
        for process in self._processes.values():
            try:
                process.wait(_SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[number % len(self._gpus)]
        if self._count > 1:
            # More threads than cores would mostly wait for one another.
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // self._count)))
        self._log(number).parent.mkdir(parents=True, exist_ok=True)
        with self._log(number).open("ab") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "petl_bench.studies.worker",
                    str(self._folder.path),
                    self._plan,
                    ",".join(self._runs),
                ],
                env=environment | {"TQDM_DISABLE": "1"},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches this process alone, which then stops its workers.
                start_new_session=True,
            )

    def _note_death(self, number: int, pid: int, code: int) -> None:
        """Remembers whose process died; a run that kills its process again and again must not hold up the others."""
        held = self._held_by(pid)
        if not held:
            self._deaths[number] += 1
            if self._deaths[number] > _MOST_DEATHS:
                raise RunError(f"Workers end with code {code} before they make anything: {self._log(number)} says why.")
        for run in held:
            self._deaths[run.key] += 1
            if self._deaths[run.key] >= _MOST_DEATHS:
                how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
                cause = "; the system does so where memory runs out" if code == -signal.SIGKILL else ""
                write_failure(run, self._folder, f"The run's process ended {_MOST_DEATHS} times with {how}{cause}.")

    def _held_by(self, pid: int) -> list[PlannedRun]:
        """The runs that a process of this machine held when it ended."""
        mine = {"pid": pid, "host": socket.gethostname()}
        return [
            run
            for run in self._runs.values()
            if (holder := self._folder.last_holder(run)) is not None and mine.items() <= holder.items()
        ]

    def _log(self, number: int) -> Path:
        return self._folder.private / f"worker-{number}.log"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not gpu_may_be_there():
        return []
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
