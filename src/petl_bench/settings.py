"""How settings are declared, and the files of options that set them: those that ship, and the user's own."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import yaml

from petl_bench.errors import RequestError, unknown_choice
from petl_bench.process import CONFIG_VARIABLE, check_name, user_path
from petl_bench.records.reading import parse_yaml, read_text, yaml_fault

if TYPE_CHECKING:
    from omegaconf import DictConfig

# OmegaConf's MISSING. Importing it from there would take a fifth of the time of `petl-bench list`.
MISSING: Any = "???"

CONFIG_MODULE = "petl_bench.conf"

# The groups of options that a run takes, and all groups.
RUN_GROUPS = ("backbone", "method", "layers", "task", "train", "tracker", "recipe")
GROUPS = (*RUN_GROUPS, "study", "executor")

_SUFFIX = ".yaml"


def setting(
    default: Any,
    meaning: str,
    *,
    choices: tuple[str, ...] | None = None,
    search: list[Any] | None = None,
    is_path: bool = False,
) -> Any:
    """Declares one setting of a dataclass.

    Args:
        default: Its default; `MISSING` where an option or the user must give it.
        meaning: The description that `petl-bench list settings` and `run --help` show.
        choices: The values that it may have besides null, if there are only a few.
        search: For an option of a method, the values that a hyper-parameter search draws from; None: it is not
            searched.
        is_path: Whether it names a file or a folder; in a study's file it is relative to that file.

    Returns:
        A field of the dataclass, with these values in its metadata.
    """
    metadata: dict[str, Any] = {"help": meaning, "is_path": is_path}
    if choices is not None:
        metadata["choices"] = choices
    if search is not None:
        metadata["search"] = search
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_choices(group: str, settings: Any, *, free: str | None = None) -> None:
    """Raises RequestError for a value that its setting does not allow; the setting `free` may have any value."""
    for field in dataclasses.fields(settings):
        if field.name == free:
            continue
        value, choices = getattr(settings, field.name), field.metadata.get("choices")
        may_be_null = value is None and "None" in str(field.type)
        if choices is not None and not may_be_null and value not in choices:
            raise unknown_choice(f"{group}.{field.name}", value, choices)


def check_texts(settings: Any, key: str = "") -> None:
    """Checks that records can hold all texts of settings in plain containers.

    Raises:
        RequestError: If UTF-8 cannot write one, such as the name of a file whose bytes are Latin-1.
    """
    if isinstance(settings, dict):
        for name, value in settings.items():
            check_texts(name, key)
            check_texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(settings, list):
        for value in settings:
            check_texts(value, key)
    elif isinstance(settings, str):
        try:
            settings.encode()
        except UnicodeEncodeError as error:
            fault = "holds bytes that are no UTF-8: rename the file, folder or column"
            raise RequestError(f"{key}={settings!a} {fault}.") from error


@dataclass(frozen=True)
class Setting:
    """A setting as it is declared.

    Attributes:
        name: Its dotted name, as on the command line.
        type: Its annotation.
        default: Its default; `MISSING` where an option sets it, or the user must.
        meaning: What it is for; empty for another package's setting that has no description.
        choices: The values that it may have, if there are only a few.
        option: The option of a group that adds it, such as `method=lora`; empty if it always exists.
        is_path: Whether it names a file or a folder.
    """

    name: str
    type: str
    default: Any
    meaning: str
    choices: tuple[str, ...] = ()
    option: str = ""
    is_path: bool = False

    @property
    def is_list(self) -> bool:
        """Whether it takes a list of values."""
        return self.type.startswith("list")

    @property
    def allowed(self) -> str:
        """Its allowed values, in words."""
        of_type, _, null = self.type.partition(" | ")
        of_type = re.sub(r"list\[(\w+)\]", r"list of \1", re.sub(r"dict\[.*\]", "mapping", of_type))
        return f"{', '.join(self.choices) or of_type}{' or null' if null else ''}"


def declared(config: Any, group: str = "", option: str = "") -> list[Setting]:
    """The settings that a dataclass declares for a group and one of its options, in order of declaration."""
    settings = []
    for field in dataclasses.fields(config):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        type_name = field.type.__name__ if isinstance(field.type, type) else str(field.type)
        meaning, choices = field.metadata.get("help", ""), tuple(field.metadata.get("choices", ()))
        name, is_path = f"{group}.{field.name}".lstrip("."), bool(field.metadata.get("is_path"))
        settings.append(Setting(name, type_name, default, meaning, choices, option, is_path))
    return settings


def written(value: Any) -> str:
    """A value as it is written on the command line; nothing for one that must be given."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    return "" if value == MISSING else str(value)


# Where meanings begin in `run --help`.
_HELP_INDENT = 34


def help_lines(entry: Setting, values: Any) -> list[str]:
    """A setting with its value and, next to or below it, its meaning.

    Args:
        entry: The setting.
        values: The values of all settings, in plain containers.
    """
    for part in entry.name.split("."):
        values = values[part]
    head, width = f"{entry.name}={written(values)}", min(get_terminal_size().columns, 120)
    text = wrap(f"{entry.meaning} ({entry.allowed})", width - _HELP_INDENT)
    beside = len(head) < _HELP_INDENT - 1
    first = f"{head:{_HELP_INDENT}}{text.pop(0)}" if beside else head
    return [first, *(" " * _HELP_INDENT + line for line in text)]


def own_config() -> Path | None:
    """The user's folder of options, checked; None where none is given.

    Raises:
        RequestError: If it is not a folder, or contains a folder that is not a group or a file that is not an option.
    """
    given = os.environ.get(CONFIG_VARIABLE)
    if not given:
        return None
    folder = user_path(given, "--config-dir").absolute()
    _check_folder(folder)
    return folder


@cache
def _check_folder(folder: Path) -> None:
    """Checks all files up front, so that a mistake is reported with file and line, not by code that reads it later."""
    if not folder.is_dir():
        raise RequestError(f"--config-dir={folder} (or {CONFIG_VARIABLE}) is no folder.")
    for group in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))):
        if group.name not in GROUPS:
            raise unknown_choice(f"{folder} holds a folder that is no group: folder", group.name, GROUPS)
        for file in sorted(group.glob(f"*{_SUFFIX}")):
            _check_option(group.name, file)


def _check_option(group: str, file: Path) -> None:
    check_name(f"{file}: the option's name", file.stem)
    if file.name in _names(files(CONFIG_MODULE).joinpath(group)):
        raise RequestError(f"{file}: there is an option {group}={file.stem} already; give the file another name.")
    try:
        content = parse_yaml(read_text(file))
    except yaml.MarkedYAMLError as error:
        raise RequestError(f"{file}{yaml_fault(error)}.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RequestError(f"{file} cannot be read: {error}.") from error
    if not isinstance(content, dict | None):
        raise RequestError(f"{file} holds no settings: write lines of the form key: value.")
    if any(_holds_target(value) for value in (content or {}).items()):
        raise RequestError(f"{file} holds _target_, which would name code to run: settings are plain values here.")


def _holds_target(value: Any) -> bool:
    if isinstance(value, dict):
        value = tuple(value.items())
    return value == "_target_" or (isinstance(value, list | tuple) and any(map(_holds_target, value)))


def option_names(group: str) -> list[str]:
    """The names of a group's options, the user's included, in alphabetical order.

    A file whose name begins with an underscore is not an option, but content that several options share.
    """
    names = {name for folder in _folders(group) for name in _names(folder)}
    return sorted(name.removesuffix(_SUFFIX) for name in names if not name.startswith("_"))


def option_file(group: str, name: str) -> Traversable | None:
    """The file of an option, or of content that several share; None if there is none."""
    candidates = (folder.joinpath(name + _SUFFIX) for folder in _folders(group))
    return next((file for file in candidates if file.is_file()), None)


def option_text(group: str, name: str) -> str:
    """The text of an existing option."""
    file = option_file(group, name)
    assert file is not None
    return file.read_text(encoding="utf-8")


def _folders(group: str) -> Iterator[Traversable]:
    yield files(CONFIG_MODULE).joinpath(group)
    own = own_config()
    if own is not None:
        yield own / group


def _names(folder: Traversable) -> list[str]:
    return [file.name for file in folder.iterdir() if file.name.endswith(_SUFFIX)] if folder.is_dir() else []


def compose_options(primary: str, overrides: list[str], *, with_hydra: bool = False) -> DictConfig:
    """Composes a file of conf/ and overrides with Hydra.

    Args:
        primary: The file to start from, without its ending.
        overrides: As on the command line.
        with_hydra: Include Hydra's own section.

    Returns:
        The composed config, not yet checked.
    """
    from hydra import compose, initialize_config_module

    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        return compose(primary, overrides=[*overrides, *search_path()], return_hydra_config=with_hydra)


def search_path() -> list[str]:
    """The override by which Hydra finds the user's options too."""
    own = own_config()
    return [] if own is None else [f"hydra.searchpath=[{as_value(f'file://{own}')}]"]


def given_values(overrides: list[str]) -> dict[str, str]:
    """The values of the overrides that give one, by key, as Hydra's grammar reads them.

    Raises:
        HydraException: If it cannot read one.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    settings = [override for override in overrides if "=" in override and not override.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(settings)
    return {override.key_or_group: str(override.value()) for override in parsed}


def given_text(override: str) -> str:
    """The value of an override without quotation marks; as it is written if Hydra cannot read it, and will say so."""
    from hydra.errors import HydraException

    text = override.partition("=")[2]
    try:
        return text if text in ("", "null") else next(iter(given_values([override]).values()), text)
    except HydraException:
        return text


def as_setting(key: str, value: object) -> str:
    """An override, its value in quotation marks where Hydra's grammar requires them."""
    return f"{key}={as_value(value)}"


# Texts that Hydra's grammar reads as they are, except for its own words.
_PLAIN = re.compile(r"[a-z_/][\w./-]*", re.ASCII | re.IGNORECASE)
_HYDRAS_WORDS = ("null", "true", "false", "nan", "inf")


def as_value(value: object) -> str:
    """A value of an override, or of a list in it: a text is in quotation marks where Hydra would read another value.

    Raises:
        RequestError: As `quoted` does.
    """
    text = str(value)
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in _HYDRAS_WORDS
    return text if is_plain or isinstance(value, int | float) else quoted(text)


def quoted(text: str) -> str:
    """A text in quotation marks, which Hydra and OmegaConf read as it is: as no number, no word and no `${...}`.

    Raises:
        RequestError: If it is `???`, which OmegaConf takes for a missing value, however it is written.
    """
    if text == MISSING:
        raise RequestError(
            f"The name {text!r} means a missing value in the settings: rename the file, column or label."
        )
    # Before ${ and quotation marks a backslash needs another one; everywhere else it stands for itself.
    escaped = re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", text)
    escaped = re.sub(r"\\+(?='|\Z)", lambda match: 2 * match[0], escaped).replace("'", "\\'")
    return f"'{escaped}'"
