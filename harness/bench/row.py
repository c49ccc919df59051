"""What one row of a benchmark is, and its verdict."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure: medians of both sides, and the median of the ratios pair by pair.

    theirs is None for an absolute row, whose ratio is the value itself. target None: not judged yet.
    """

    name: str
    ours: float
    theirs: float | None
    unit: str
    ratio: float
    target: float | None
    pairs: tuple[tuple[float, float | None], ...]
    baseline: str

    @property
    def ok(self) -> bool:
        return self.target is None or self.ratio <= self.target

    def as_json(self) -> dict[str, Any]:
        """Return the row as the fields of a JSON object."""
        return {**asdict(self), "ok": self.ok}


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that `action` takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def paired(
    name: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    *,
    pairs: int,
    target: float | None,
    baseline: str,
    unit: str = "s",
) -> Row:
    """Measure A B A B …, after one round that does not count.

    ours, theirs: do the thing once and return the figure; baseline: what theirs is, in words.
    """
    ours()
    theirs()
    measured = [(ours(), theirs()) for _ in range(pairs)]
    return Row(
        name,
        statistics.median(mine for mine, _ in measured),
        statistics.median(other for _, other in measured),
        unit,
        statistics.median(mine / other for mine, other in measured),
        target,
        tuple(measured),
        baseline,
    )


def absolute(name: str, ours: Callable[[], float], *, runs: int, target: float | None, unit: str) -> Row:
    """Measure one side alone, after one round that does not count; the ratio is the median."""
    ours()
    measured = [ours() for _ in range(runs)]
    value = statistics.median(measured)
    return Row(name, value, None, unit, value, target, tuple((figure, None) for figure in measured), "")
