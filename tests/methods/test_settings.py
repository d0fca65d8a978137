"""A method's options are declared once: its schema and its PEFT config take them from one dataclass."""

from __future__ import annotations

import dataclasses
import pkgutil
from importlib.resources import files

import pytest
import yaml
from omegaconf import OmegaConf

from petl_bench.config import load_config
from petl_bench.methods.registry import MethodConfig, all_methods
from petl_bench.settings import CONFIG_MODULE

METHODS = all_methods()
COMMON = [field.name for field in dataclasses.fields(MethodConfig)]
# Of all methods, unless one has an option of this name itself.
INIT = {"init": None}
# What the benchmark sets otherwise than the declaration, with the reason.
DEPARTURES = {("prefix", "dropout"): (0.0, "in the few epochs that were tried, runs without dropout went further")}


def declared(method):
    """The options of a method with their defaults."""
    if method.settings is None:
        return {}
    missing = dataclasses.MISSING
    fields = dataclasses.fields(method.settings)
    return {one.name: one.default if one.default is not missing else one.default_factory() for one in fields}


def in_yaml(name):
    file = files(CONFIG_MODULE).joinpath("method", f"{name}.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key != "defaults"}


@pytest.mark.parametrize("name", METHODS)
def test_the_schema_is_made_of_the_declared_options(name):
    schema = OmegaConf.structured(METHODS[name].config)
    options = {key: value for key, value in OmegaConf.to_container(schema).items() if key not in COMMON[:-1]}
    assert options == INIT | declared(METHODS[name])
    assert schema.name == name


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.settings and method.peft_config])
def test_the_peft_config_inherits_the_declared_options(name):
    method = METHODS[name]
    config = pkgutil.resolve_name(method.peft_config)
    assert issubclass(config, method.settings)
    own = vars(config).get("__annotations__", {})
    assert not own.keys() & declared(method).keys()


@pytest.mark.parametrize("name", METHODS)
def test_every_option_says_what_it_means(name):
    if METHODS[name].settings is not None:
        assert all(len(one.metadata["help"]) > 10 for one in dataclasses.fields(METHODS[name].settings))


@pytest.mark.parametrize("name", METHODS)
def test_a_yaml_holds_only_what_the_benchmark_sets_otherwise(name):
    found = {key: value for key, value in in_yaml(name).items() if key not in COMMON[1:]}
    assert found == {option: value for (method, option), (value, _) in DEPARTURES.items() if method == name}
    assert all(declared(METHODS[name])[option] != value for option, value in found.items())


@pytest.mark.parametrize("name", METHODS)
def test_the_composed_settings_are_the_declared_ones_with_the_departures(name):
    settings = dataclasses.asdict(load_config([f"method={name}"]).method)
    assert settings == INIT | declared(METHODS[name]) | in_yaml(name) | {
        "name": name,
        "default_head_learning_rate": in_yaml(name).get("default_head_learning_rate"),
    }
