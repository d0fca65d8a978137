"""What is wrong with overrides, in one sentence: errors of Hydra and OmegaConf become request errors."""

from __future__ import annotations

import difflib
import re
import shlex
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.methods.registry import unknown_method
from petl_bench.settings import RUN_GROUPS, compose_options, option_names, option_text

CONFIG_ERRORS = (ConfigCompositionException, HydraException, OmegaConfBaseException)

# OmegaConf's names of numeric and boolean types, in plain words.
_KINDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}

_HELP = "`petl-bench run --help` shows all groups and settings."

# Mappings whose keys the user chooses.
_FREE_MAPPINGS = ("method.args", "backbone.architecture")


# The options that Hydra accepts after `petl-bench run`.
_HYDRA_OPTIONS = (
    "-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-r", "--run",
    "-m", "--multirun", "-sc", "--shell-completion", "-cp", "--config-path", "-cn", "--config-name",
    "-cd", "--config-dir", "--experimental-rerun", "-i", "--info",
)  # fmt: skip


def check_options(overrides: list[str]) -> None:
    """Raises RequestError for an option after `petl-bench run` that neither we nor Hydra know."""
    for option in (override.partition("=")[0] for override in overrides if override.startswith("-")):
        if option not in _HYDRA_OPTIONS:
            raise RequestError(
                f"run has no option {option}: it takes --force, --json, -m and --config-dir, and those of "
                "Hydra that --hydra-help shows. `petl-bench plan` says what a run will cost."
            )


@contextmanager
def explained(overrides: list[str]) -> Iterator[None]:
    """A context that turns errors of Hydra and OmegaConf into a request error that explains what is wrong."""
    try:
        yield
    except CONFIG_ERRORS as error:
        raise _explain(error, overrides) from error
    except Exception as error:
        # An OSError without a file name means that standard output cannot be written.
        if not _is_hydras(error) or (isinstance(error, OSError) and error.filename is None):
            raise
        if isinstance(error, OSError):
            message = f"Hydra cannot write {error.filename} ({error.strerror}): give hydra.run.dir or hydra.sweep.dir."
            raise RequestError(message) from error
        # Hydra's check of `group=VALUE`, where the value is a number or null, or one of its options.
        of_group = "Config group override" in str(error)
        fault = _cause(error) if isinstance(error, ValueError) else f"Hydra fails with this request ({error!r})"
        raise _no_option(overrides) if of_group else RequestError(f"{fault}. {_HELP}") from error


def _is_hydras(error: Exception) -> bool:
    """Whether the error comes from Hydra, and not from our code that Hydra calls."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [name for name in modules if name.startswith(("hydra.", "petl_bench."))][-1].startswith("hydra.")


def _explain(error: Exception, overrides: list[str]) -> RequestError:
    """Turns an error of Hydra or OmegaConf into a request error that names the key and the way out."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).partition("/")
        names = [name for name in error.options if not name.startswith("_")]
        return _unknown_option(group, option, names)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if match := re.match(r"Ambiguous value for argument '(.*)'\n", text):
        key, _, value = match.group(1).partition("=")
        as_text, as_list = shlex.quote(f'{key}="{value}"'), shlex.quote(f"{key}=[{value}]")
        return RequestError(
            f"{key}: {value} is more than one value: -m makes a run of each; write a list as {as_list}, and one "
            f"value as {as_text}."
        )
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_setting(match.group(1), _known_settings(overrides))
    if match := re.search(r"Error merging override (\S+)", text):
        return RequestError(f"{match.group(1)}: {_cause(error)}. {_HELP}")
    if match := re.search(r"Could not append to config.*?'([^']+)'.*?already", text, re.DOTALL):
        return RequestError(f"+{match.group(1)}: this setting exists already, give it without the plus sign.")
    lines = text.splitlines()[: 1 if isinstance(error, MissingConfigException) else 2]
    return RequestError(f"{' '.join(line.strip() for line in lines).rstrip('.')}. {_HELP}")


def _unknown_option(group: str, option: str, names: list[str]) -> RequestError:
    if group == "method":
        return unknown_method(option, names)
    return _unknown_backbone(option, names) if group == "backbone" else unknown_choice(group, option, names)


def _unknown_backbone(option: str, names: list[str]) -> RequestError:
    """The error for a backbone that is not one of the options, but may be the name of a model on the hub."""
    hub_id = re.compile(rf"^hub_id: (\S+/)?{re.escape(option.rpartition('/')[2])}$", re.MULTILINE)
    if same := [name for name in names if hub_id.search(option_text("backbone", name))]:
        return RequestError(f"backbone={option}: this model of the hub is backbone={same[0]} here.")
    hint = f" A model of the hub is backbone=hub backbone.hub_id={option}." if re.search(r"[-/]", option) else ""
    return RequestError(f"{unknown_choice('backbone', option, names)}{hint}")


def _unreadable(override: str) -> RequestError:
    """The error for an override that Hydra's grammar does not read: shows it with the quotation marks that it needs."""
    key, equals, value = override.partition("=")
    if not (key and equals):
        hint = f" Did you mean {shlex.quote('data=' + override)}?" if Path(override).is_file() else ""
        return RequestError(f"{override!r} is no setting: write key=value, without spaces around =.{hint} {_HELP}")
    is_list = value.startswith("[") and value.endswith("]")
    items = value[1:-1].split(",") if is_list else [value]
    quoted = ",".join('"{}"'.format(item.strip(" '\"").replace('"', '\\"')) for item in items)
    example = shlex.quote(f"{key}=[{quoted}]" if is_list else f"{key}={quoted}")
    return RequestError(
        f"{key}: the value {value} holds characters with a meaning of their own, or not all its quotation marks and "
        f"brackets: put quotation marks around it within those of the shell, as in {example}. {_HELP}"
    )


def _no_option(overrides: list[str]) -> RequestError:
    """The error for a group whose value is not a name."""
    for override in overrides:
        group, _, option = override.partition("=")
        if group in RUN_GROUPS and option not in option_names(group):
            return unknown_choice(group, option, option_names(group))
    return RequestError(f"A group takes the name of one of its options, as in method=lora. {_HELP}")


def setting_names(config: DictConfig) -> list[str]:
    """The dotted keys of all settings of a config."""
    names: list[str] = []
    for key in map(str, config):
        node = OmegaConf.select(config, key, throw_on_missing=False)
        names += [f"{key}.{name}" for name in setting_names(node)] if isinstance(node, DictConfig) else [key]
    return names


def unknown_setting(key: str, known: list[str]) -> RequestError:
    """The error for an unknown setting, which suggests the nearest known one."""
    if key in _FREE_MAPPINGS:
        return RequestError(f"{key} takes names of its own: add each with a plus sign, as in +{key}.NAME=VALUE.")
    if key == "data":
        return RequestError(
            "data=FILE is for run, choose and plan. Here give task=custom task.train_file=FILE "
            "'task.text_columns=[NAME]' task.label_column=NAME."
        )
    parent = f"{key.rpartition('.')[0]}." if "." in key else ""
    siblings = sorted({name[len(parent) :].partition(".")[0] for name in known if name.startswith(parent)})
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    hint = f" Did you mean {near[0]}?" if near else ""
    there = f" There are {', '.join(parent + name for name in siblings)}." if siblings else ""
    return RequestError(f"{key} is not a setting here.{hint}{there}")


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    text = str(cause).strip().splitlines()[0].rstrip(".!")
    match = re.fullmatch(r"Value '.*' (?:of type '\w+' could not be converted to|is not a valid) (\w+).*", text)
    return f"it must be {_KINDS[match[1]]}" if match and match[1] in _KINDS else text


def _known_settings(overrides: list[str]) -> list[str]:
    """Keys of the config with the groups that the overrides choose, for suggestions; none if these do not compose."""
    options = [text for text in overrides if text.partition("=")[0] in RUN_GROUPS and "," not in text]
    GlobalHydra.instance().clear()
    try:
        return setting_names(compose_options("config", options))
    except CONFIG_ERRORS:
        return []
