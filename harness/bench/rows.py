"""The rows by name: those of the promised figures, in an order that shares what was prepared, and others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.bench import parallel, resuming, starting, tools, transfers

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.bench.row import Row
    from harness.bench.stage import Stage

ROWS: dict[str, Callable[[Stage], Row]] = {
    **transfers.ROWS,
    **tools.ROWS,
    **resuming.ROWS,
    **parallel.ROWS,
    **starting.ROWS,
}
SMALL_ROWS = ("nothing-changed", "serve-ready")
"""What runs without --rows: seconds, not minutes."""
