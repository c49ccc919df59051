"""Rows on standard output: a table on a terminal, aligned columns anywhere else."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from btrsync.report import format_table

if TYPE_CHECKING:
    from collections.abc import Sequence


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows under their headings; rich is imported on a terminal only."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        click.echo(format_table(headings, rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        # Only the last column, the one in words, may go on below itself.
        table.add_column(heading, overflow="fold", no_wrap=heading != headings[-1])
    for row in rows:
        table.add_row(*(Text(cell or "-") for cell in row))
    Console().print(table)
