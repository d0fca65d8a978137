"""Workers as a job array of a Slurm cluster, through submitit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from petl_bench.errors import RequestError
from petl_bench.records.study_file import PlannedRun
from petl_bench.studies.config import ExecutorConfig
from petl_bench.studies.folder import StudyFolder
from petl_bench.studies.worker import work

_log = logging.getLogger(__name__)


class PreemptibleWork:
    """What a job does; preempted or out of time it is queued again, and its run goes on from its checkpoint."""

    def __init__(self, path: str, plan: str, keys: list[str]) -> None:
        self.path, self.plan, self.keys = path, plan, keys

    def __call__(self) -> None:
        """Works in the job's process."""
        from petl_bench.logs import setup_logging

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
