"""Says in one sentence what is wrong with a command's overrides."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from petl_bench.errors import RequestError, unknown_choice

if TYPE_CHECKING:
    from collections.abc import Iterable

_HELP = "`petl-bench run --help` shows all groups and settings."

_FREE_MAPPINGS = ("method.args", "backbone.architecture")

CONFIG_ERRORS = (ConfigCompositionException, HydraException, OmegaConfBaseException)


def explain(error: Exception, known_settings: Iterable[str] = ()) -> RequestError:
    """Turns Hydra's and OmegaConf's errors into a request error that names the key and the way out.

    Args:
        error: What Hydra raised.
        known_settings: Keys that exist, for suggestions.
    """
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _missing_option(error, text)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_setting(match.group(1), known_settings)
    if match := re.search(r"Error merging override (\S+)", text):
        return RequestError(f"{match.group(1)}: {_cause(error)}. {_HELP}")
    if match := re.search(r"Could not append to config.*?'([^']+)'.*?already", text, re.DOTALL):
        return RequestError(f"+{match.group(1)}: this setting exists already, give it without the plus sign.")
    first_lines = " ".join(line.strip() for line in text.splitlines()[:2])
    return RequestError(f"{first_lines.rstrip('.')}. {_HELP}")


def setting_names(config: DictConfig) -> list[str]:
    """Every key of a config, dotted."""
    names: list[str] = []
    for key in map(str, config):
        node = OmegaConf.select(config, key, throw_on_missing=False)
        names += [f"{key}.{name}" for name in setting_names(node)] if isinstance(node, DictConfig) else [key]
    return names


def _missing_option(error: MissingConfigException, text: str) -> RequestError:
    if error.options is not None and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return unknown_choice(group, option, (name for name in error.options if not name.startswith("_")))
    return RequestError(f"{text.splitlines()[0]}. {_HELP}")


def _unknown_setting(key: str, known_settings: Iterable[str]) -> RequestError:
    if key in _FREE_MAPPINGS:
        return RequestError(f"{key} takes names of its own: add each with a plus sign, as in +{key}.NAME=VALUE.")
    known = list(known_settings)
    parent = f"{key.rpartition('.')[0]}." if "." in key else ""
    siblings = sorted({name[len(parent) :].partition(".")[0] for name in known if name.startswith(parent)})
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    hint = f" Did you mean {near[0]}?" if near else ""
    there = f" There are {', '.join(parent + name for name in siblings)}." if siblings else ""
    return RequestError(f"{key} is not a setting here.{hint}{there}")


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().splitlines()[0].rstrip(".")
