"""PEFT config of BitFit."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig, PeftType


@dataclass
class BitFitConfig(PeftConfig):
    """Configuration of a `BitFitModel`.

    Args:
        target_modules: Modules whose bias is trained: a list of names or name endings, or a regular expression that
            the whole name must match. None: every module with a bias, outside `modules_to_save`.
        exclude_modules: Modules left out, given the same way.
        modules_to_save: Further modules that are trained and saved whole, such as a new head.
    """

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules whose bias is trained."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules left out."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved whole."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Registers the type, in whatever order things were imported.
        from petl_bench.methods.bitfit import model  # noqa: F401

        self.peft_type = PeftType("BITFIT")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
