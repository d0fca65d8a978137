"""Markdown, LaTeX and the terminal print the same table, and LaTeX compiles."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from petl_bench.reports.comparison_table import comparison_table
from petl_bench.reports.groups import group_records
from petl_bench.reports.render import ReportTable, latex_text, print_table, to_latex, to_markdown
from petl_bench.reports.results_table import backbone_results
from reports.generated import analyses, record, records, results_tables

NASTY = r'100 % of a_b & #1 = {x} $y$ ~ ^ \macro | "q" <= [z] α λ Σ Ο ς ± − × ≥ é ﬁ ϛ ％ 中'  # noqa: RUF001


def tables():
    """A wide table, its comparisons, and one full of what LaTeX minds."""
    scores = {f"m_{k}": {"mrpc": [0.8 + k / 100, 0.81, 0.79], "rte": [0.7, 0.71, 0.7 + k / 90]} for k in range(3)}
    made = [*records(scores), record(r"\alpha_{50%}", "a & b", 0, 0.5)]
    nasty = ReportTable(NASTY, [NASTY, "[b]"], [["[first]", NASTY], ["*", NASTY]], [NASTY], frozenset({(0, 1)}))
    (analysis,) = analyses(backbone_results(group_records(made)))
    return [*results_tables(made), comparison_table(analysis), *results_tables(made, "median"), nasty]


def test_bold_cells_in_markdown_and_latex():
    table = ReportTable("title", ["method", "acc"], [["a", "80.0 ± 1.0"], ["b", "70.0"]], [], frozenset({(0, 1)}))
    assert "| a | **80.0 ± 1.0** |" in to_markdown(table)
    assert "| b | 70.0 |" in to_markdown(table)
    assert r"a & \textbf{80.0 $\pm$ 1.0} \\" in to_latex(table)
    assert r"b & 70.0 \\" in to_latex(table)


def test_bold_cells_and_brackets_in_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_table(ReportTable("[low] title", ["method", "acc"], [["a", "80.0 [x]"], ["b", "70.0"]], ["[n]"], {(0, 1)}))
    out = capsys.readouterr().out
    assert "\x1b[1m80.0 [x]" in out
    assert "\x1b[1m70.0" not in out
    assert "[low] title" in out
    assert "[n]" in out


def test_text_for_latex_by_hand():
    assert latex_text(r"a_b & 5 % #1 \x {y}") == r"a\_b \& 5 \% \#1 \textbackslash{}x \{y\}"
    assert latex_text("α=1 Λ Α ο ± é ％ 中") == r"$\alpha$=1 $\Lambda$ A o $\pm$ e \% U+4E2D"  # noqa: RUF001


def test_the_first_line_names_the_packages_and_a_wide_table_is_shrunk():
    text = to_latex(ReportTable("title", ["a"] * 3, [["1"] * 3], []))
    assert text.splitlines()[0] == r"% needs \usepackage{booktabs} and \usepackage{graphicx}"
    assert r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%" in text


def test_a_label_names_the_table():
    assert r"\label{tab:a_study-minilm-mean-sd-over-seeds}" in to_latex(
        ReportTable("a_study (minilm): mean ± sd over seeds", ["a"], [["1"]], [])
    )
    assert r"\label{tab:results}" in to_latex(ReportTable("中", ["a"], [["1"]], []))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    fragments = "\n\n".join(map(to_latex, tables()))
    document = "\n".join([
        r"\documentclass{article}", r"\usepackage{booktabs}", r"\usepackage{graphicx}", r"\begin{document}",
        fragments, r"\end{document}",
    ])  # fmt: skip
    (tmp_path / "report.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 1000
    log = (tmp_path / "report.log").read_text(errors="replace")
    # Signs that the font lacks would vanish without an error.
    assert "Missing character" not in log
    assert "multiply" not in log
    # Too wide for the page.
    assert "Overfull \\hbox" not in log
