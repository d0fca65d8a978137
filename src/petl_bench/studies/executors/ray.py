"""Workers as tasks of a Ray cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from petl_bench.errors import RequestError
from petl_bench.records.study_file import PlannedRun
from petl_bench.studies.config import ExecutorConfig
from petl_bench.studies.folder import StudyFolder
from petl_bench.studies.worker import work

_RETRIES = 3


def _work(path: str, plan: str, keys: list[str], environment: dict[str, str]) -> None:
    from petl_bench.logs import setup_logging

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
