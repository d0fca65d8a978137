"""Workers of clusters: a Slurm job array through submitit, tasks of a Ray cluster."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from petl_bench.errors import RequestError
from petl_bench.records.study_file import PlannedRun
from petl_bench.studies.definition import ExecutorConfig
from petl_bench.studies.folder import StudyFolder
from petl_bench.studies.worker import work

_log = logging.getLogger(__name__)


class PreemptibleWork:
    """What a job does; preempted or out of time it is queued again, and its run goes on from its checkpoint."""

    def __init__(self, path: str, plan: str, keys: list[str]) -> None:
        self.path, self.plan, self.keys = path, plan, keys

    def __call__(self) -> None:
        """Works in the job's process."""
        from petl_bench.process import setup_logging

        setup_logging()
        work(Path(self.path), self.plan, self.keys)

    def checkpoint(self) -> Any:
        """What submitit queues again when the job is taken from its machine."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmWorkers:
    """Jobs; they outlive this process, and the same command meets them again through the study's folder."""

    def __init__(self, settings: ExecutorConfig, folder: StudyFolder, plan: str, runs: list[PlannedRun]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise RequestError("executor=slurm needs submitit: pip install 'petl-bench[slurm]'.") from error
        # Jobs start elsewhere.
        path = folder.path.resolve()
        try:
            executor = submitit.AutoExecutor(folder=path / ".study" / "submitit", cluster=settings.cluster)
            executor.update_parameters(**settings.submitit)
        except (RuntimeError, ValueError, NameError, TypeError, AssertionError) as error:
            raise RequestError(
                f"executor=slurm cannot be used (executor.cluster={settings.cluster}, executor.submitit="
                f"{settings.submitit}): {error}"
            ) from error
        count = min(settings.workers or 1, len(runs))
        job = PreemptibleWork(str(path), plan, [run.key for run in runs])
        with executor.batch():
            self._jobs = [executor.submit(job) for _ in range(count)]
        _log.info("jobs: %s", ", ".join(job.job_id for job in self._jobs))

    def alive(self) -> bool:
        """See `Workers.alive`."""
        return not all(job.done() for job in self._jobs)

    def stop(self, signum: int) -> None:
        """Leaves the jobs alone."""
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
    """Tasks; they end with this process."""

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
        # Rows and caches are found by variables, which a running cluster does not know.
        known = {name: value for name, value in os.environ.items() if name.startswith(("PETL_BENCH_", "WANDB_", "HF_"))}
        if count > 1:
            known["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
        path = str(folder.path.resolve())
        self._tasks = [task.remote(path, plan, [run.key for run in runs], known) for _ in range(count)]

    def alive(self) -> bool:
        """See `Workers.alive`."""
        ended, self._tasks = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        # Raises what a task died of.
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
