"""PEFT config of BitFit."""

from __future__ import annotations

from dataclasses import dataclass, field

from petl_bench.methods.base import TunerConfig


@dataclass
class BitFitConfig(TunerConfig):
    """Configuration of a `BitFitModel`.

    Args:
        target_modules: Modules whose bias is trained: a list of names or name endings, or a regular expression that
            must match the whole name. None: every module with a bias, except for `modules_to_save`.
        exclude_modules: Modules that are left out, in the same form.
        modules_to_save: Other modules that are trained and saved as a whole, such as a new head.
    """

    method = "bitfit"

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules whose bias is trained."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules that are left out."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved as a whole."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
