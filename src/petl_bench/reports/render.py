"""Output: a table of text in the terminal, in Markdown and in LaTeX, and checks of the files that a report writes."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from petl_bench.errors import RequestError, RunError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class ReportTable:
    """Rows of text cells under a header, with notes that define the columns.

    Attributes:
        bold: (row, column) of the cells to print in bold.
        prose: The columns that hold sentences: they are aligned to the left and wrapped.
        headline: A sentence that stands above the table.
        baselines: The number of last rows that are baselines: an empty line or a rule sets them apart, except in
            Markdown.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    bold: frozenset[tuple[int, int]] = frozenset()
    prose: tuple[str, ...] = ()
    headline: str | None = None
    baselines: int = 0


_WIDEST = 1000


def console() -> Console:
    """A rich console on standard output, which leaves a reader that has gone to `petl_bench.cli`."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PipeConsole()


def print_table(table: ReportTable) -> None:
    """Prints a table with its notes, as wide as it needs to be."""
    from rich.table import Table
    from rich.text import Text

    # Text objects, so that rich does not read brackets as markup.
    shown = Table(title=Text(table.title), title_justify="left", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for number, name in enumerate(table.header):
        # One word per line keeps the columns of numbers narrow.
        prose = name in table.prose
        justify: Literal["left", "right"] = "left" if number == 0 or prose else "right"
        shown.add_column(Text(name.replace(" ", "\n")), justify=justify, no_wrap=not prose)
    for number, row in enumerate(table.rows):
        if number == len(table.rows) - table.baselines:
            shown.add_row()
        shown.add_row(
            *(Text(cell, "bold" if (number, column) in table.bold else "") for column, cell in enumerate(row))
        )
    out = console()
    if table.headline is not None:
        out.print(table.headline, highlight=False, soft_wrap=True, markup=False)
    # A table wider than the terminal is wrapped by it; rich would truncate the cells.
    natural = out.measure(shown, options=out.options.update(width=_WIDEST))
    out.width = max(out.width, natural.minimum if table.prose else natural.maximum)
    out.print(shown)
    for note in table.notes:
        out.print(f"  {note}", style="dim", highlight=False, soft_wrap=True, markup=False)


# A table with more columns than this is shrunk to the width of the page.
_WIDE = 8

# Written by hand so that plain pdflatex prints every text: pylatexenc gives commands that need further packages or font
# encodings, e.g. \CYRZH, \ng and \lesssim, and leaves | as it is, which the default fonts print as a dash.

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
    """Writes a table as GitHub Markdown."""
    lines = [
        *([table.headline, ""] if table.headline is not None else []),
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
    """Writes a table with its notes as a LaTeX fragment; its first line names the packages that it needs."""
    wide = len(table.header) > _WIDE
    rows = []
    for number, row in enumerate(table.rows):
        cells = [latex_text(cell) for cell in row]
        shown = [rf"\textbf{{{cell}}}" if (number, column) in table.bold else cell for column, cell in enumerate(cells)]
        rows += [r"\midrule"] * (number == len(table.rows) - table.baselines)
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
            *([rf"{latex_text(table.headline)}\par"] if table.headline is not None else []),
            *(rf"{latex_text(note)}.\par" for note in table.notes),
            r"\end{table}",
        ]
    )


def _latex_columns(table: ReportTable) -> str:
    plain = "l" + "r" * (len(table.header) - 1)
    wide = rf"p{{{0.8 / max(len(table.prose), 1):.2f}\linewidth}}"
    return "".join(wide if name in table.prose else form for name, form in zip(table.header, plain, strict=True))


def _latex_row(cells: list[str]) -> str:
    # LaTeX would read a bracket after \\ or a rule as an optional argument.
    first = "{}" + cells[0] if cells[0].startswith(("[", "*")) else cells[0]
    return " & ".join([first, *cells[1:]]) + r" \\"


def latex_text(text: str) -> str:
    """Escapes any text for pdflatex; a character that its fonts lack becomes its code point, e.g. U+4E2D."""
    return "".join(_LATEX.get(character) or _latex_letter(character) for character in text)


def _latex_letter(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() else " "
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(character, ""))
    # LaTeX has no commands for archaic letters.
    if greek and "\u0391" <= character <= "\u03c9":
        return _greek(greek[2].replace("LAMDA", "LAMBDA"), capital=greek[1] == "CAPITAL")
    base = unicodedata.normalize("NFKD", character)[0]
    return _LATEX.get(base, base) if base.isascii() else f"U+{ord(character):04X}"


def _greek(name: str, *, capital: bool) -> str:
    if capital:
        return _GREEK_AS_LATIN.get(name) or rf"$\{name.capitalize()}$"
    return "o" if name == "OMICRON" else rf"$\{name.lower()}$"


PICTURE_FORMATS = (".png", ".pdf", ".svg")

PLOT_KINDS = ("pareto", "curves", "low_resource", "variability", "tuning")

PAGE_FORMATS = (".html", ".htm")


def check_picture(file: Path) -> None:
    """Checks that a picture can be written, and makes its folder.

    Raises:
        RequestError: If the ending names a format that is not drawn.
        RunError: If nothing can be written there.
    """
    _check_file("--plot", file, PICTURE_FORMATS)


def check_page(file: Path) -> None:
    """Checks that an HTML page can be written, and makes its folder.

    Raises:
        RequestError: If browsers do not open files with this ending.
        RunError: If nothing can be written there.
    """
    _check_file("--html", file, PAGE_FORMATS)


def _check_file(option: str, file: Path, endings: tuple[str, ...]) -> None:
    if file.suffix not in endings:
        raise RequestError(f"{option} {file}: the ending must be one of {', '.join(endings)}.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        there = file.exists()
        file.open("ab").close()
        if not there:
            file.unlink()
    except OSError as error:
        raise RunError(f"{option} {file} cannot be written ({error.strerror}): name another place.") from error
