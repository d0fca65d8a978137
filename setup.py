"""Finds the packages, which pyproject.toml cannot do for one that lies elsewhere; all else is there."""

from setuptools import find_packages, setup

setup(packages=[*find_packages("src"), "petl_bench.conf"])
