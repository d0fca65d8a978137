"""Output: a table of text in the terminal, in Markdown and in LaTeX, and checks of the files that a report writes."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
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
        prose: The columns that contain sentences: they are left-aligned and wrapped.
        headline: A sentence that is shown above the table.
        baselines: The number of baseline rows at the end: an empty line or a rule separates them, except in
            Markdown.
        priority: Columns by importance, in groups that are kept together; the others come last.
        whole: Whether all columns are shown, even if there is no room for them.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    bold: frozenset[tuple[int, int]] = frozenset()
    prose: tuple[str, ...] = ()
    headline: str | None = None
    baselines: int = 0
    priority: tuple[tuple[str, ...], ...] = ()
    whole: bool = False

    def by_priority(self) -> list[list[str]]:
        """The names of the columns, most important first, in groups that are kept together."""
        groups = [[name for name in group if name in self.header] for group in self.priority]
        named = {name for group in groups for name in group}
        return [*filter(None, groups), *([name] for name in self.header if name not in named)]


def with_columns(table: ReportTable, names: Collection[str]) -> ReportTable:
    """Returns the table with only these columns, in the table's order; notes that define other columns are dropped."""
    shown = [number for number, name in enumerate(table.header) if name in names]
    removed = tuple(f"{name}: " for name in table.header if name not in names)
    return replace(
        table,
        header=[table.header[number] for number in shown],
        rows=[[row[number] for number in shown] for row in table.rows],
        notes=[note for note in table.notes if not note.startswith(removed)] if removed else table.notes,
        bold=frozenset((row, shown.index(column)) for row, column in table.bold if column in shown),
        prose=tuple(name for name in table.prose if name in names),
    )


def choose_columns(tables: Sequence[ReportTable], requested: Sequence[str]) -> list[ReportTable]:
    """Reduces each table to its first column and the requested ones, given by their names or the beginning of these.

    A table that lacks a requested column, e.g. because it is for another task, shows the others.

    Raises:
        RequestError: If a name matches no column of any table, or several columns of one table.
    """
    matches = {request: [_columns(table, request) for table in tables] for request in requested}
    for request, by_table in matches.items():
        for names in by_table:
            if len(names) > 1 or not any(by_table):
                what = f"may be {' or '.join(names)}" if names else "is no column"
                known = dict.fromkeys(name for table in tables for name in table.header)
                raise RequestError(f"--columns: {request} {what} of the table: it has {', '.join(known)}.")
    chosen = []
    for number, table in enumerate(tables):
        shown = {table.header[0]}.union(*(by_table[number] for by_table in matches.values()))
        chosen.append(replace(with_columns(table, shown), whole=True))
    return chosen


def _columns(table: ReportTable, word: str) -> list[str]:
    """The columns with this name, else those whose first words match it, else those that start with it."""
    return next(filter(None, (_beginning(table.header, word + end) for end in ("  ", " ", ""))), [])


def _beginning(names: Sequence[str], word: str) -> list[str]:
    return [name for name in names if f"{name}  ".lower().startswith(word.lower())]


def _left_out(table: ReportTable, names: Collection[str], why: str) -> ReportTable:
    """Returns the table with only the named columns, and a note that lists the others."""
    hidden = [name for name in table.header if name not in names]
    if table.whole or not hidden:
        return table
    narrow = with_columns(table, names)
    return replace(narrow, notes=[*narrow.notes, f"{why}: {', '.join(hidden)}"])


# Columns of a table on a page, unless the user asks for others.
_MOST_COLUMNS = 10


def for_a_page(table: ReportTable) -> ReportTable:
    """The table with as many columns as a page of Markdown or LaTeX has room for."""
    return _left_out(table, _first(table, lambda names: len(names) <= _MOST_COLUMNS), "further columns, see --wide")


def fitted(table: ReportTable, width: int) -> ReportTable:
    """Returns the table with the columns that fit into this width in characters, and the two most important groups."""
    from rich.cells import cell_len

    widths = {}
    for number, name in enumerate(table.header):
        cells = [row[number] for row in table.rows]
        words = [word for cell in cells for word in cell.split()] if name in table.prose else cells
        widths[name] = 1 + max(map(cell_len, [*name.split(" "), *words]), default=0)
    shown = _first(table, lambda names: sum(widths[name] for name in names) <= width)
    return _left_out(table, shown, "columns for which there is no room, see --wide")


def _first(table: ReportTable, has_room: Callable[[list[str]], bool]) -> list[str]:
    """The most important columns for which there is room; always includes the first two groups."""
    groups = table.by_priority()
    columns = [name for group in groups[:2] for name in group]
    for group in groups[2:]:
        if has_room(columns + group):
            columns += group
    return columns


_WIDEST = 1000


def console() -> Console:
    """A rich console on standard output that leaves the handling of broken pipes to `petl_bench.cli`."""
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PipeConsole()


def print_table(table: ReportTable) -> None:
    """Prints a table and its notes, with the columns that the terminal has room for.

    Output that does not go to a terminal has all columns, unless the environment variable COLUMNS sets its width.
    """
    from rich.table import Table
    from rich.text import Text

    out = console()
    if out.is_terminal or "COLUMNS" in os.environ:
        table = fitted(table, out.width)
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
    if table.headline is not None:
        out.print(table.headline, highlight=False, soft_wrap=True, markup=False)
    # A table wider than the terminal is wrapped by it; rich would truncate the cells.
    natural = out.measure(shown, options=out.options.update(width=_WIDEST))
    out.width = max(out.width, natural.minimum if table.prose else natural.maximum)
    out.print(shown)
    for note in table.notes:
        out.print(f"  {note}", style="dim", highlight=False, soft_wrap=True, markup=False)


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
    """Writes a table with its notes as a LaTeX fragment, which is shrunk where it is wider than the page.

    Its first line names the packages that it needs.
    """
    rows = []
    for number, row in enumerate(table.rows):
        cells = [latex_text(cell) for cell in row]
        shown = [rf"\textbf{{{cell}}}" if (number, column) in table.bold else cell for column, cell in enumerate(cells)]
        rows += [r"\midrule"] * (number == len(table.rows) - table.baselines)
        rows.append(_latex_row(shown))
    return "\n".join(
        [
            r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}.}}",
            rf"\label{{tab:{_latex_label(table.title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{_latex_columns(table)}}}",
            r"\toprule",
            _latex_row([latex_text(name) for name in table.header]),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\smallskip\raggedright\footnotesize",
            *([rf"{latex_text(table.headline)}\par"] if table.headline is not None else []),
            *(rf"{latex_text(note)}.\par" for note in table.notes),
            r"\end{table}",
        ]
    )


def _latex_label(title: str) -> str:
    """The title in letters, digits and hyphens, which a label may hold."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-") or "results"


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
        existed = file.exists()
        file.open("ab").close()
        if not existed:
            file.unlink()
    except OSError as error:
        raise RunError(f"{option} {file} cannot be written ({error.strerror}): name another place.") from error
