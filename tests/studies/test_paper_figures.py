"""Shipped studies against the figures of the papers that they follow."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from petl_bench.config import load_config
from petl_bench.records.study_file import PublishedRow
from petl_bench.reports.claims import check_claim
from petl_bench.studies.definition import StudyConfig
from petl_bench.studies.expand import cells

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "conf" / "study").glob("*.yaml"), key=lambda file: file.stem)
DESIGN = ROOT.parent / "shared" / "design"

every_study = pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
with_design = pytest.mark.skipif(
    not (DESIGN / "published.md").is_file(), reason="the notes on the papers' figures are not next to this checkout"
)


@cache
def loaded(file: Path) -> StudyConfig:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyConfig), OmegaConf.load(file)))


# --- the shipped studies ----------------------------------------------------------------------------------------------


def test_there_are_studies():
    assert {"demo", "glue_small", "low_resource", "lora_roberta_large", "flat"} <= {file.stem for file in STUDIES}


def test_the_documented_studies_are_those_that_ship_with_what_they_need():
    rows = re.findall(r"^\| (`.*`) \| .* \| (.*) \|$", (ROOT / "docs" / "reproducing.md").read_text(), re.MULTILINE)
    documented = {name: needs for names, needs in rows for name in re.findall(r"`(\w+)`", names)}
    needed = {file.stem: loaded(file).needs for file in STUDIES}
    assert {name: needs for name, needs in documented.items() if name in needed} == needed


@every_study
def test_every_study_says_what_it_is(file):
    study = loaded(file)
    assert file.read_text().startswith(f"# petl-bench study {file.stem}")
    assert study.description
    assert study.needs
    assert study.methods
    assert study.tasks
    assert len(set(study.seeds)) == len(study.seeds) > 0
    for cell in study.cells:
        assert set(cell.methods) <= set(study.methods)
        assert set(cell.tasks) <= set(study.tasks)
        assert cell.settings
    assert set(study.learning_rates) <= set(study.methods)
    if study.published or study.claims:
        assert study.deviations


@every_study
def test_every_published_row_has_its_source_and_reason(file):
    study = loaded(file)
    for row in study.published:
        assert row.source, row.row
        assert row.method is None or row.method in study.methods, row.row
        assert set(row.cells) <= set(study.tasks), row.row
        assert set(row.metrics) <= set(row.cells), row.row
        assert all(1 <= len(cell) <= 2 for cell in row.cells.values()), row.row
        assert row.comparable or row.why, row.row
        assert not (row.comparable and row.method is None), row.row
        assert not (row.comparable and row.split == "test"), f"{row.row}: GLUE's test labels are not public"
    names = [(row.row, row.source) for row in study.published]
    assert len(set(names)) == len(names)


@every_study
def test_every_claim_can_be_computed_or_says_why_not(file):
    study = loaded(file)
    for claim in study.claims:
        assert claim.source
        check_claim(claim, study.methods, study.tasks)


def test_the_settings_of_the_rows_with_a_dagger():
    study = loaded(ROOT / "conf" / "study" / "lora_roberta_large.yaml")
    overrides = {(cell.method, cell.task): cell.overrides for cell in cells(study, [])}
    found = {
        (method, task): load_config(overrides[method, task]).train
        for method, task in (("lora", "stsb"), ("adapter_h_6m", "mnli"), ("adapter_p_08m", "mnli"))
    }
    settings = {name: (train.batch_size, train.epochs, train.learning_rate) for name, train in found.items()}
    assert settings == {
        ("lora", "stsb"): (4, 10, 2e-4),
        ("adapter_h_6m", "mnli"): (32, 10, 3e-5),
        ("adapter_p_08m", "mnli"): (32, 5, 3e-4),
    }
    assert {train.head_learning_rate for train in found.values()} == {None}


# --- the papers' figures ----------------------------------------------------------------------------------------------

COLUMNS = {
    "MNLI": ("mnli", None), "MNLI-m": ("mnli", None), "MNLI-mm": ("mnli", "mismatched_accuracy"),
    "SST-2": ("sst2", None), "SST": ("sst2", None), "MRPC": ("mrpc", None),
    "CoLA": ("cola", None), "QNLI": ("qnli", None), "QQP": ("qqp", None),
    "RTE": ("rte", None), "STS-B": ("stsb", None), "MRPC F1": ("mrpc", None), "QQP F1": ("qqp", None),
}  # fmt: skip


def trusted(line: str) -> bool:
    """Whether a line is a source; lines tagged only as recollections are not."""
    return "[R]" not in line or any(f"[{tag}]" in line for tag in "TCS")


@cache
def source_lines() -> list[str]:
    return [line for line in (DESIGN / "published.md").read_text().splitlines() if trusted(line)]


def texts_of(number: float) -> set[str]:
    """How a number may be written."""
    written = {str(number), f"{number:g}", f"{number:.1f}", f"{number:.2f}"}
    written |= {text.removeprefix("0") for text in written if "." in text}
    return {text for text in written if float(text) == number}


def occurs(number: float, line: str) -> bool:
    return any(re.search(rf"(?<![\d.]){re.escape(text)}(?!\d|\.\d)", line) for text in texts_of(number))


def tables() -> list[list[list[str]]]:
    """The notes' tables: their rows of cells, the header first."""
    found, is_table = [], False
    for line in source_lines():
        if line.startswith("|") and not set(line) <= set("|- "):
            found += [] if is_table else [[]]
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        is_table = line.startswith("|")
    return found


def transposed() -> list[list[list[str]]]:
    """The tables that have a task in each row, turned."""
    return [list(map(list, zip(*table, strict=True))) for table in tables() if table[1][0] in COLUMNS]


def table_rows() -> list[dict[tuple[str, str | None], list[float]]]:
    """What the notes say of a method, in a row or column of a table or in a sentence: values by task and metric."""
    named = [zip(table[0], row, strict=False) for table in tables() for row in table[1:]]
    named += [zip(table[0], column, strict=True) for table in transposed() for column in table[1:]]
    sentences = [line for line in source_lines() if not line.startswith("|")]
    named += [re.findall(r"([A-Z][\w-]+) ([\d.]+ \+- [\d.]+)", line) for line in sentences]
    return [
        {COLUMNS[name]: [float(part) for part in re.split(r"\+-|±", cell)] for name, cell in cells
         if name in COLUMNS and is_score(cell)}
        for cells in named
    ]  # fmt: skip


def is_score(cell: str) -> bool:
    return bool(re.fullmatch(r"[\d.]+(\s*(\+-|±)\s*[\d.]+)?", cell))


def by_column(row: PublishedRow) -> dict[tuple[str, str | None], list[float]]:
    return {
        (task, "mismatched_accuracy" if row.metrics.get(task) == "mismatched_accuracy" else None): cell
        for task, cell in row.cells.items()
    }


@with_design
@every_study
def test_every_published_cell_is_in_the_notes(file):
    for row in loaded(file).published:
        numbers = [number for cell in row.cells.values() for number in cell]
        numbers += [row.average] if row.average is not None else []
        written = [*source_lines(), *(" ".join(column) for table in transposed() for column in table)]
        lines = [line for line in written if all(occurs(number, line) for number in numbers)]
        assert lines, f"{row.row}: no line of the notes has all of {numbers}"


@with_design
@pytest.mark.parametrize("name", ["lora_roberta_base", "lora_roberta_large", "he_2022", "houlsby_glue"])
def test_published_cells_are_in_their_columns(name):
    rows = table_rows()
    for row in loaded(ROOT / "conf" / "study" / f"{name}.yaml").published:
        cells = by_column(row)
        assert any(all(other.get(key) == cell for key, cell in cells.items()) for other in rows), row.row


@with_design
@every_study
def test_the_figures_in_claims_are_in_the_notes(file):
    lines = [
        *source_lines(),
        *(line for page in (DESIGN / "methods").glob("*.md") for line in page.open() if trusted(line)),
    ]
    for claim in loaded(file).claims:
        for number in re.findall(r"(?<![\d.])\d+\.\d+(?!\.?\d)", claim.claim):
            if number not in ("1.0", "1.1"):  # names of data sets
                assert any(occurs(float(number), line) for line in lines), f"{claim.claim}: {number}"


def test_the_check_on_figures_would_find_a_wrong_one():
    assert occurs(84.1, "MNLI 83.91/84.10, QNLI")
    assert occurs(0.4, "87.6 +-.4")
    assert not occurs(4.1, "84.1")
    assert not occurs(84.1, "84.15")
    assert not trusted("| x | 91.2 [R] |")
