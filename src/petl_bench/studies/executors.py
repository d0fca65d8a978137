"""Starts the worker processes of a study: on this machine, on a Slurm cluster, on a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from petl_bench.errors import RequestError, RunError, unknown_choice
from petl_bench.process import gpu_may_be_there
from petl_bench.records.study_file import PlannedRun
from petl_bench.studies import EXECUTORS
from petl_bench.studies.definition import ExecutorConfig
from petl_bench.studies.folder import StudyFolder
from petl_bench.studies.worker import work, write_failure


class Workers(Protocol):
    """The started workers of one study."""

    def alive(self) -> bool:
        """Whether any worker is running or waiting for a machine; also handles workers that died.

        Raises:
            RunError: If they cannot work at all.
        """

    def stop(self, signum: int) -> None:
        """Stops the workers that do not outlive this process; their checkpoints are kept."""


def start_workers(settings: ExecutorConfig, folder: StudyFolder, plan: str, runs: list[PlannedRun]) -> Workers:
    """Starts workers for these runs.

    Args:
        settings: Where to start workers, and how many.
        folder: The study's folder.
        plan: Name of the file there that lists the study's runs.
        runs: The runs to make.

    Returns:
        The started workers.

    Raises:
        RequestError: If the executor is unknown, or its package or cluster is missing.
    """
    if settings.name not in _CLASSES:
        raise unknown_choice("executor", settings.name, EXECUTORS)
    return _CLASSES[settings.name](settings, folder, plan, runs)


# A run whose process dies this many times during one command has failed.
_MOST_DEATHS = 2

_SECONDS_TO_STOP = 30


class LocalWorkers:
    """Worker processes on this machine, which end with this process.

    Args:
        settings: The executor's settings.
        folder: The study's folder.
        plan: Name of the file there that lists the study's runs.
        runs: The runs to make, in this order.
    """

    def __init__(self, settings: ExecutorConfig, folder: StudyFolder, plan: str, runs: list[PlannedRun]) -> None:
        self._folder, self._plan, self._runs = folder, plan, {run.key: run for run in runs}
        self._gpus = visible_gpus()
        per_machine = settings.runs_per_gpu * len(self._gpus) or 1
        self._count = min(settings.workers or per_machine, len(runs))
        # By run key; for workers that held no run, by the worker's number.
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
                # Ctrl-C reaches only this process, which then stops its workers.
                start_new_session=True,
            )

    def _note_death(self, number: int, pid: int, code: int) -> None:
        """Counts the death of a worker; a run that repeatedly kills its process must not hold up the others."""
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
        process = {"pid": pid, "host": socket.gethostname()}
        return [
            run
            for run in self._runs.values()
            if (holder := self._folder.last_holder(run)) is not None and process.items() <= holder.items()
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


_log = logging.getLogger(__name__)


class PreemptibleWork:
    """The work of a job; if the job is preempted or times out, it is requeued and its run resumes from a checkpoint."""

    def __init__(self, path: str, plan: str, keys: list[str]) -> None:
        self.path, self.plan, self.keys = path, plan, keys

    def __call__(self) -> None:
        """Works in the job's process."""
        from petl_bench.process import setup_logging

        setup_logging()
        work(Path(self.path), self.plan, self.keys)

    def checkpoint(self) -> Any:
        """Returns what submitit requeues when the job is preempted or times out."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _submitit_executor(settings: ExecutorConfig, folder: StudyFolder, *, submits: bool = True) -> Any:
    """Returns submitit's executor with the study's parameters.

    Args:
        settings: The parameters.
        folder: The study's folder; its path is resolved, because jobs start elsewhere.
        submits: Whether jobs are submitted; if not, no cluster is needed.

    Raises:
        RequestError: If submitit or the cluster is missing, or a parameter does not fit.
    """
    try:
        import submitit
    except ImportError as error:
        raise RequestError("executor=slurm needs submitit: pip install 'petl-bench[slurm]'.") from error
    jobs = folder.private.resolve() / "submitit"
    try:
        executor = submitit.AutoExecutor(folder=jobs, cluster=settings.cluster if submits else "debug")
        if not submits:
            executor.cluster, executor._executor = "slurm", _without_a_cluster(submitit.SlurmExecutor)(jobs)
        executor.update_parameters(**settings.submitit)
    except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
        raise RequestError(
            f"executor=slurm cannot be used (executor.cluster={settings.cluster}, executor.submitit="
            f"{settings.submitit}): {error}"
        ) from error
    return executor


def _without_a_cluster(executor_class: Any) -> Any:
    """Returns a variant of submitit's Slurm executor that needs no cluster: it writes scripts and submits nothing."""
    return type("SlurmScripts", (executor_class,), {"affinity": classmethod(lambda _: 1)})


def sbatch_script(settings: ExecutorConfig, folder: StudyFolder, num_runs: int) -> str:
    """Returns the script that submitit would pass to sbatch; this needs no cluster and writes nothing.

    Args:
        settings: The executor's settings.
        folder: The study's folder.
        num_runs: How many runs are left.

    Raises:
        RequestError: If submitit is missing, or a parameter does not fit.
    """
    slurm = _submitit_executor(settings, folder, submits=False)._executor
    jobs = min(settings.workers or 1, num_runs)
    if jobs > 1:
        # As submitit does for a job array.
        slurm.parameters["map_count"] = jobs
    return str(slurm._make_submission_file_text(slurm._submitit_command_str, ""))


class SlurmWorkers:
    """Slurm jobs, which outlive this process; the same command finds them again through the study's folder.

    Args:
        settings: The executor's settings.
        folder: The study's folder.
        plan: Name of the file there that lists the study's runs.
        runs: The runs to make, in this order.
    """

    def __init__(self, settings: ExecutorConfig, folder: StudyFolder, plan: str, runs: list[PlannedRun]) -> None:
        executor = _submitit_executor(settings, folder)
        count = min(settings.workers or 1, len(runs))
        job = PreemptibleWork(str(folder.path.resolve()), plan, [run.key for run in runs])
        with executor.batch():
            self._jobs = [executor.submit(job) for _ in range(count)]
        _log.info("jobs: %s", ", ".join(job.job_id for job in self._jobs))

    def alive(self) -> bool:
        """See `Workers.alive`."""
        return not all(job.done() for job in self._jobs)

    def stop(self, signum: int) -> None:
        """Leaves the jobs running."""
        del signum
        ids = " ".join(job.job_id for job in self._jobs)
        _log.info("the jobs go on; `scancel %s` ends them, the same command shows how far they are", ids)


_RETRIES = 3


def _work(path: str, plan: str, keys: list[str], environment: dict[str, str]) -> None:
    from petl_bench.process import setup_logging

    os.environ.update(environment)
    setup_logging()
    work(Path(path), plan, keys)


class RayWorkers:
    """Ray tasks, which end with this process.

    Args:
        settings: The executor's settings.
        folder: The study's folder.
        plan: Name of the file there that lists the study's runs.
        runs: The runs to make, in this order.
    """

    def __init__(self, settings: ExecutorConfig, folder: StudyFolder, plan: str, runs: list[PlannedRun]) -> None:
        try:
            import ray
        except ImportError as error:
            raise RequestError("executor=ray needs Ray: pip install 'petl-bench[ray]'.") from error
        self._ray: Any = ray
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(address=settings.address, log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RequestError(
                f"executor.address={settings.address}: no Ray cluster can be reached ({error}); executor.address=null "
                "starts Ray on this machine."
            ) from error
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = min(settings.workers or settings.runs_per_gpu * gpus or 1, len(runs))
        task = ray.remote(max_retries=_RETRIES)(_work).options(
            num_cpus=1, num_gpus=1 / settings.runs_per_gpu if gpus else 0
        )
        # Environment variables say where rows and caches are, and a running cluster does not have them.
        variables = {
            name: value for name, value in os.environ.items() if name.startswith(("PETL_BENCH_", "WANDB_", "HF_"))
        }
        if count > 1:
            variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
        path = str(folder.path.resolve())
        self._tasks = [task.remote(path, plan, [run.key for run in runs], variables) for _ in range(count)]

    def alive(self) -> bool:
        """See `Workers.alive`."""
        ended, self._tasks = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        # Raises the error that ended a task.
        self._ray.get(ended)
        if not self._tasks:
            self._ray.shutdown()
        return bool(self._tasks)

    def stop(self, signum: int) -> None:
        """See `Workers.stop`."""
        del signum
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()


_CLASSES: dict[str, Callable[..., Workers]] = {"local": LocalWorkers, "slurm": SlurmWorkers, "ray": RayWorkers}
