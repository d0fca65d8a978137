"""Prints a table to the terminal."""

from __future__ import annotations

from typing import Literal

from petl_bench.reports.tables.table import ReportTable

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
