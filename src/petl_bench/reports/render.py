"""A table of text, and the forms that it is written in: terminal, Markdown, LaTeX."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ReportTable:
    """Rows of text cells under a header, with notes that say what the columns mean.

    Attributes:
        bold: (row, column) of the cells to print in bold.
        prose: Names of columns that hold sentences: aligned to the left, and wrapped where a line has an end.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    bold: frozenset[tuple[int, int]] = frozenset()
    prose: tuple[str, ...] = ()


_WIDEST = 1000


def print_table(table: ReportTable) -> None:
    """Prints a table with its notes, as wide as it needs to be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # As text: brackets in it are no markup.
    shown = Table(title=Text(table.title), title_justify="left", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for number, name in enumerate(table.header):
        # A word a line: numbers are short, and a table that fits can be read.
        prose = name in table.prose
        justify: Literal["left", "right"] = "left" if number == 0 or prose else "right"
        shown.add_column(Text(name.replace(" ", "\n")), justify=justify, no_wrap=not prose)
    for number, row in enumerate(table.rows):
        shown.add_row(
            *(Text(cell, "bold" if (number, column) in table.bold else "") for column, cell in enumerate(row))
        )
    console = Console()
    # What is wider than the terminal is wrapped by it, rather than cut short.
    natural = console.measure(shown, options=console.options.update(width=_WIDEST))
    console.width = max(console.width, natural.minimum if table.prose else natural.maximum)
    console.print(shown)
    for note in table.notes:
        console.print(f"  {note}", style="dim", highlight=False, soft_wrap=True, markup=False)


# A table with more columns is made as narrow as the page.
_WIDE = 8

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    '"': "''",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "→": r"$\rightarrow$",
    "√": r"$\surd$",
    "µ": r"$\mu$",
    "²": "$^2$",
    "³": "$^3$",
    "°": r"$^\circ$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
}

_GREEK_AS_LATIN = {
    "ALPHA": "A", "BETA": "B", "EPSILON": "E", "ZETA": "Z", "ETA": "H", "IOTA": "I", "KAPPA": "K", "MU": "M", "NU": "N",
    "OMICRON": "O", "RHO": "P", "TAU": "T", "CHI": "X",
}  # fmt: skip


def to_markdown(table: ReportTable) -> str:
    """GitHub Markdown."""
    lines = [
        f"**{table.title}**",
        "",
        _markdown_row(table.header),
        _markdown_row(["---"] + ["---" if name in table.prose else "---:" for name in table.header[1:]]),
    ]
    for number, row in enumerate(table.rows):
        shown = [f"**{cell}**" if (number, column) in table.bold else cell for column, cell in enumerate(row)]
        lines.append(_markdown_row(shown))
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)])


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_latex(table: ReportTable) -> str:
    """A booktabs table with its notes below; a fragment to be put into a document."""
    wide = len(table.header) > _WIDE
    rows = []
    for number, row in enumerate(table.rows):
        cells = [latex_text(cell) for cell in row]
        shown = [rf"\textbf{{{cell}}}" if (number, column) in table.bold else cell for column, cell in enumerate(cells)]
        rows.append(_latex_row(shown))
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}" + (r" and \usepackage{graphicx}" if wide else ""),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}.}}",
            *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
            rf"\begin{{tabular}}{{{_latex_columns(table)}}}",
            r"\toprule",
            _latex_row([latex_text(name) for name in table.header]),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}" + ("}" if wide else ""),
            r"\par\smallskip\raggedright\footnotesize",
            *(rf"{latex_text(note)}.\par" for note in table.notes),
            r"\end{table}",
        ]
    )


def _latex_columns(table: ReportTable) -> str:
    plain = "l" + "r" * (len(table.header) - 1)
    wide = rf"p{{{0.8 / max(len(table.prose), 1):.2f}\linewidth}}"
    return "".join(wide if name in table.prose else form for name, form in zip(table.header, plain, strict=True))


def _latex_row(cells: list[str]) -> str:
    # After \\ or a rule, a bracket would be read as an argument.
    first = "{}" + cells[0] if cells[0].startswith(("[", "*")) else cells[0]
    return " & ".join([first, *cells[1:]]) + r" \\"


def latex_text(text: str) -> str:
    """Any text so that pdflatex prints it; a letter that its fonts lack by its code."""
    return "".join(_LATEX.get(character) or _latex_letter(character) for character in text)


def _latex_letter(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() else " "
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(character, ""))
    # Within the alphabet; LaTeX has no names for letters out of use.
    if greek and "\u0391" <= character <= "\u03c9":
        return _greek(greek[2].replace("LAMDA", "LAMBDA"), capital=greek[1] == "CAPITAL")
    base = unicodedata.normalize("NFKD", character)[0]
    return _LATEX.get(base, base) if base.isascii() else f"U+{ord(character):04X}"


def _greek(name: str, *, capital: bool) -> str:
    if capital:
        return _GREEK_AS_LATIN.get(name) or rf"$\{name.capitalize()}$"
    return "o" if name == "OMICRON" else rf"$\{name.lower()}$"
