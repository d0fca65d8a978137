"""Finds a study: one that ships, or a file of the user's."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from petl_bench.config import CONFIG_MODULE
from petl_bench.errors import RequestError
from petl_bench.reports.claims import check_claim
from petl_bench.studies.config import StudyConfig

_SUFFIX = ".yaml"


def study_names() -> list[str]:
    """The studies that ship."""
    folder = files(CONFIG_MODULE).joinpath("study")
    return sorted(item.name.removesuffix(_SUFFIX) for item in folder.iterdir() if item.name.endswith(_SUFFIX))


def open_study(name_or_file: str) -> tuple[str, StudyConfig]:
    """Reads a study.

    Returns:
        Its name, and what it asks for.

    Raises:
        RequestError: where there is none, or it does not fit the schema.
    """
    if name_or_file.endswith((_SUFFIX, ".yml")):
        path = Path(name_or_file).expanduser()
        try:
            return path.stem, _parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"The study {path} cannot be read: {error}.") from error
    names = study_names()
    if name_or_file not in names:
        near = difflib.get_close_matches(name_or_file, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise RequestError(
            f"There is no study {name_or_file}.{hint} Name a file (NAME.yaml) or one of: {', '.join(names)}."
        )
    text = files(CONFIG_MODULE).joinpath("study", name_or_file + _SUFFIX).read_text(encoding="utf-8")
    return name_or_file, _parse(text, f"conf/study/{name_or_file}{_SUFFIX}")


def _parse(text: str, where: str) -> StudyConfig:
    try:
        content = OmegaConf.create(text)
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyConfig), content))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        key = getattr(error, "full_key", None)
        raise RequestError(f"{where} is no study{f', at {key}' if key else ''}: {words}.") from error
    assert isinstance(study, StudyConfig)
    _check(study, where)
    return study


def _check(study: StudyConfig, where: str) -> None:
    """Raises RequestError where names do not fit together."""
    if not study.methods or not study.tasks or not study.seeds:
        raise RequestError(f"{where} needs at least one of each: methods, tasks, seeds.")
    named = [("cells", "methods", name) for cell in study.cells for name in cell.methods]
    named += [("cells", "tasks", name) for cell in study.cells for name in cell.tasks]
    named += [("learning_rates", "methods", name) for name in study.learning_rates]
    named += [("published", "methods", row.method) for row in study.published if row.method is not None]
    for section, kind, name in named:
        known = getattr(study, kind)
        if name not in known:
            raise RequestError(f"{where}, {section}: {name} is none of its {kind}: {', '.join(known)}.")
    for claim in study.claims:
        check_claim(claim, study.methods, study.tasks)
    for row in study.published:
        if not row.comparable and not row.why:
            raise RequestError(f"{where}, published, {row.row}: say why it is not comparable (why: ...).")
