"""What one row of a benchmark is, and its verdict."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure: medians of both sides, and the median of the ratios pair by pair.

    theirs is None for an absolute row, whose ratio is the value itself. target None: not judged.
    details: further samples, by what they are.
    """

    name: str
    ours: float
    theirs: float | None
    unit: str
    ratio: float
    target: float | None
    pairs: tuple[tuple[float, float | None], ...]
    baseline: str
    details: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.target is None or self.ratio <= self.target

    def as_json(self) -> dict[str, Any]:
        """Return the row as the fields of a JSON object."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        against = f" against {self.theirs:.3f} {self.unit} of {self.baseline}" if self.theirs else ""
        judged = "" if self.target is None else f"; target {self.target}, {'met' if self.ok else 'MISSED'}"
        return f"{self.name}: {self.ours:.3f} {self.unit}{against}: {self.ratio:.3f}{judged}"


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
    details: Mapping[str, Sequence[float]] | None = None,
) -> Row:
    """Measure A B, B A, A B …: who goes first finds the machine otherwise than who goes second.

    ours, theirs: do the thing once and return the figure; what must warm up has been done before.
    baseline: what theirs is, in words. details: samples that `ours` and `theirs` collect.
    """
    measured = []
    for number in range(pairs):
        if number % 2 == 0:
            mine = ours()
            other = theirs()
        else:
            other = theirs()
            mine = ours()
        measured.append((mine, other))
    return Row(
        name,
        statistics.median(mine for mine, _ in measured),
        statistics.median(other for _, other in measured),
        unit,
        statistics.median(mine / other for mine, other in measured),
        target,
        tuple(measured),
        baseline,
        details or {},
    )


def absolute(
    name: str,
    ours: Callable[[], float],
    *,
    runs: int,
    target: float | None,
    unit: str,
    details: Mapping[str, Sequence[float]] | None = None,
) -> Row:
    """Measure one side alone; the ratio is the median."""
    measured = [ours() for _ in range(runs)]
    value = statistics.median(measured)
    samples = tuple((figure, None) for figure in measured)
    return Row(name, value, None, unit, value, target, samples, "", details or {})
