"""Settings of what is measured beside the scores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class MeasureConfig:
    """What a run measures; conf/config.yaml says what each costs. It changes no score."""

    ledger: bool = True
    inference: bool = True
