"""Says in one sentence what is wrong with a command's overrides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from petl_bench.config import CONFIG_MODULE, RunConfig, load_config
from petl_bench.errors import RequestError, unknown_choice

if TYPE_CHECKING:
    from collections.abc import Iterable

_HELP = "`petl-bench run --help` shows all groups and settings."

_GROUPS = ("backbone", "method", "layers", "task", "train", "tracker", "recipe")
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


@contextmanager
def explained(overrides: list[str]) -> Iterator[None]:
    """Says in one sentence what is wrong with the overrides, where they do not compose."""
    try:
        yield
    except CONFIG_ERRORS as error:
        raise explain(error, _known_settings(overrides)) from error


def load_explained(overrides: list[str]) -> RunConfig:
    """Composes a run's config as `load_config` does.

    Raises:
        RequestError: where the overrides do not compose.
    """
    with explained(overrides):
        return load_config(overrides)


def _known_settings(overrides: list[str]) -> list[str]:
    """Keys of the config with the groups that were asked for, for suggestions; none where they do not compose."""
    options = [word for word in overrides if word.partition("=")[0] in _GROUPS and "," not in word]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            return setting_names(compose("config", overrides=options))
    except CONFIG_ERRORS:
        return []
