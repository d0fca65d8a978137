"""Mirrors a run to TensorBoard event files in the run's folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from petl_bench.errors import RequestError
from petl_bench.trackers.marker import Mirror, mark, record_hash
from petl_bench.trackers.tracker import RunIdentity, flat_numbers, headline

_RESULTS = ("params", "scores", "time", "memory", "flops", "inference")


class TensorBoardTracker:
    """Scalars by number of updates, the config as text, the record's results at the end.

    Args:
        run: How the run is called.
        live: Whether the run is being made now; afterwards, its event files are replaced.
    """

    def __init__(self, run: RunIdentity, *, live: bool = True) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RequestError(
                "tracker=tensorboard needs TensorBoard: `pip install 'petl-bench[tensorboard]'`."
            ) from error
        self._folder = run.folder
        events = run.folder / "tensorboard"
        if not live:
            shutil.rmtree(events, ignore_errors=True)
        self._writer = SummaryWriter(log_dir=str(events))
        self._writer.add_text("config", f"```json\n{json.dumps(run.config, indent=2)}\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point of the history."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Adds the record's results, closes the files, and marks a finished run as mirrored."""
        numbers = headline(record) | flat_numbers({name: record.get(name) or {} for name in _RESULTS})
        for name, value in numbers.items():
            self._writer.add_scalar(f"record/{name}", value)
        self._writer.close()
        if record.get("status") == "finished":
            mark(self._folder, Mirror(tracker="tensorboard", record=record_hash(record)))
