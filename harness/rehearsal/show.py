"""What a person sees of a rehearsal: lines while it goes, the table at its end."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADINGS = ("step", "sent", "seconds", "MB/s", "verdict")
EVIDENCE_LINES = 40


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one step. rate: MB/s where it means anything; evidence: only where it failed."""

    name: str
    ok: bool
    seconds: float
    bytes_sent: int
    detail: str
    rate: float | None = None
    evidence: tuple[str, ...] = ()


def format_bytes(size_bytes: int) -> str:
    """Return bytes with a decimal unit: "0 B", "280.2 kB", "83.4 MB"."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("the last unit takes everything")


class Show:
    """Says things to a person on one stream; everything as whole lines, at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def line(self, text: str = "") -> None:
        """Say one line."""
        # A name from a user's tree may hold what the terminal's encoding lacks.
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        self._stream.flush()

    def fact(self, name: str, *lines: str) -> None:
        """Say what something consists of, in two columns."""
        for number, text in enumerate(lines):
            self.line(f"  {'' if number else name:<12} {text}")

    def step(self, name: str) -> None:
        """Say that a step begins."""
        self.line()
        self.line(name)

    def result(self, result: Result) -> None:
        """Say what came of a step, with the evidence if it failed."""
        self.line(f"  {'ok' if result.ok else 'FAILED'}: {result.detail}")
        for line in result.evidence[:EVIDENCE_LINES]:
            self.line(f"    {line}")
        if len(result.evidence) > EVIDENCE_LINES:
            self.line(f"    … and {len(result.evidence) - EVIDENCE_LINES} lines more")

    def table(self, results: Sequence[Result]) -> None:
        """Say all results once more, side by side."""
        rows = [_row(result) for result in results]
        self.line()
        if self._is_terminal:
            self._draw(rows)
            return
        for row in _aligned([HEADINGS, *rows]):
            self.line(row)

    def _draw(self, rows: Sequence[Sequence[str]]) -> None:
        # Only for a terminal: piped output needs no rich, and its import takes a tenth of a second.
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for heading, side in zip(HEADINGS, ("left", "right", "right", "right", "left"), strict=True):
            table.add_column(heading, justify=side)  # type: ignore[arg-type]
        for row in rows:
            table.add_row(*row[:-1], f"[bold {'green' if row[-1] == 'ok' else 'red'}]{row[-1]}[/]")
        Console(file=self._stream).print(table)


def _row(result: Result) -> tuple[str, str, str, str, str]:
    sent = format_bytes(result.bytes_sent)
    rate = "-" if result.rate is None else f"{result.rate:.1f}"
    return (result.name, sent, f"{result.seconds:.1f}", rate, "ok" if result.ok else "FAILED")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = []
    for row in rows:
        words = [
            cell.rjust(width) if column in {1, 2, 3} else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(words).rstrip())
    return lines


def stderr(text: str) -> None:
    """Say one line on standard error, whatever becomes of it."""
    print(f"btrsync-rehearse: {text}", file=sys.stderr, flush=True)
