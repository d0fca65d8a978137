"""Starts the worker processes of a study: on this machine, on a Slurm cluster, on a Ray cluster."""

from __future__ import annotations

from typing import Protocol

from petl_bench.errors import unknown_choice
from petl_bench.records.study_file import PlannedRun
from petl_bench.studies.definition import ExecutorConfig
from petl_bench.studies.folder import StudyFolder

EXECUTORS = ("local", "slurm", "ray")


class Workers(Protocol):
    """Workers of one study that were started."""

    def alive(self) -> bool:
        """Whether some are at work or waiting for a machine; looks after those that died.

        Raises:
            RunError: If they cannot work at all.
        """

    def stop(self, signum: int) -> None:
        """Ends the workers that end with us; they keep their checkpoints."""


def start_workers(settings: ExecutorConfig, folder: StudyFolder, plan: str, runs: list[PlannedRun]) -> Workers:
    """Starts workers for these runs.

    Args:
        settings: Where and how many.
        folder: The study's.
        plan: Name of the file there that lists the study's runs.
        runs: Those to make.

    Raises:
        RequestError: If the executor is unknown, or its package or cluster is missing.
    """
    if settings.name == "local":
        from petl_bench.studies.executors.local import LocalWorkers

        return LocalWorkers(settings, folder, plan, runs)
    if settings.name == "slurm":
        from petl_bench.studies.executors.clusters import SlurmWorkers

        return SlurmWorkers(settings, folder, plan, runs)
    if settings.name == "ray":
        from petl_bench.studies.executors.clusters import RayWorkers

        return RayWorkers(settings, folder, plan, runs)
    raise unknown_choice("executor", settings.name, EXECUTORS)
