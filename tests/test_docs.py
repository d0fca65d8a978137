"""What the documents say is there, is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from petl_bench.config import load_config
from petl_bench.estimate.plan import plan
from petl_bench.records.schema import Record

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHIPPED = sorted((ROOT / "conf").glob("*/*.yaml"))


def commands(text: str) -> list[str]:
    """The `petl-bench run` commands of a text, comments cut off."""
    found = re.findall(r"^(?:# )?(?:[A-Z_]+=\S+ )*petl-bench run.*$", text.replace("\\\n", " "), flags=re.MULTILINE)
    return [line.removeprefix("# ").split("  #")[0].split(", then:")[0] for line in found]


def overrides(command: str) -> list[str]:
    """A command's overrides; of a list to sweep over, the first."""
    words = shlex.split(command)
    words = words[words.index("run") + 1 :]
    plain = [word for word in words if not word.startswith("-") and "--config-dir" not in words]
    # The columns of a file are found when it is read; this one is nobody's.
    if any(word.startswith("data=") for word in plain):
        own = ["task=custom", "task.train_file=tickets.csv", "task.text_columns=[text]"]
        plain = [*own, *(word for word in plain if not word.startswith("data="))]
    return [word if "[" in word else word.split(",")[0] for word in plain]


ALL = [(file, command) for file in [*DOCUMENTS, *SHIPPED] for command in commands(file.read_text())]


@pytest.mark.parametrize(("file", "command"), ALL, ids=[f"{file.name}: {command[:60]}" for file, command in ALL])
def test_every_command_composes(file, command):
    assert load_config(overrides(command)).runs_dir


def test_commands_are_found():
    assert len(ALL) > 40


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_links_lead_somewhere_and_nothing_is_left_open(file):
    text = file.read_text()
    assert "@@" not in text
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (file.parent / target).exists(), target


def test_the_page_on_records_names_every_field():
    text = (ROOT / "docs" / "records.md").read_text()
    # docs/measuring.md describes these two; the config is that of the command line.
    elsewhere = ("schema_version", "config", "flops", "inference")
    assert [name for name in Record.__dataclass_fields__ if f"`{name}" not in text and name not in elsewhere] == []
    assert all(name in text for name in ("padding_share", "train_seconds", "features_seconds"))


@pytest.mark.slow
def test_the_documented_ratios_of_memory_are_those_of_the_plan():
    text = (ROOT / "docs" / "measuring.md").read_text()
    rows = re.findall(r"^\| (\d+) x (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 9
    for batch, length, *documented in rows:
        shape = ["backbone=bert_base", "task=mrpc", f"train.batch_size={batch}", f"task.max_length={length}"]
        planned = plan([*shape, "method=flat,full,lora,houlsby"])
        peaks = dict(
            zip(("flat", "full", "lora", "houlsby"), (row.estimate.peak_bytes for row in planned), strict=True)
        )
        found = [f"{peaks[method] / peaks['flat']:.1f}" for method in ("full", "lora", "houlsby")]
        assert found == documented, (batch, length)
