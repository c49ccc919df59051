"""What a transfer writes in all: as its partial says, counted before its first byte, or beside it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from btrsync.plan.space import must_count_first
from btrsync.system.priority import priority_argv
from btrsync.totals import TotalsBeside, count_totals

if TYPE_CHECKING:
    from btrsync.plan.parent import Transfer
    from btrsync.plan.snapshots import Snapshot
    from btrsync.protocol import PartialEntry
    from btrsync.remote import Remote
    from btrsync.source import Source
    from btrsync.stream.totals import Totals


class Amount:
    """The amount of one transfer; a context manager, which counts on entering where it has to.

    It has to where the target may have too little room: the whole filesystem of the source would not fit.
    beside_after_s: where it has not, how long the transfer may take before it is counted beside it.
    """

    def __init__(
        self,
        remote: Remote,
        source: Source,
        plan: Transfer,
        snapshot: Snapshot,
        partial: PartialEntry | None,
        *,
        beside_after_s: float,
    ) -> None:
        self._remote = remote
        self._source = source
        self._partial = partial
        self._beside_after_s = beside_after_s
        self._argv = source.counting_argv(snapshot, plan)
        self._beside: TotalsBeside | None = None
        self._counted: Totals | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._partial is None or self._partial.total_bytes is None:
            self._begin()
        return self

    def _begin(self) -> None:
        if must_count_first(self._source.used_bytes(), self._remote.available_bytes):
            self._counted = self._count()
        else:
            self._beside = self._stack.enter_context(TotalsBeside(self._argv, delay_s=self._beside_after_s))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_over(self) -> None:
        """Count after all: the stream is another one than the partial's, and may write more than that."""
        if self._partial is not None and self._partial.total_bytes is not None:
            self._begin()
        self._partial = None

    def total_bytes(self, stream_version: int) -> int | None:
        """Return what a stream of that version writes of data, before compression, None if not known yet."""
        partial = self._partial
        if partial is not None and partial.total_bytes is not None:
            return partial.total_bytes
        counted = self._counted or (self._beside.value() if self._beside else None)
        return counted.written_bytes(stream_version) if counted else None

    def totals(self, *, is_wanted: bool) -> Totals | None:
        """Return all that was counted; where it is wanted, count it now if it was not, or not to its end."""
        if self._counted is None and self._beside is not None:
            self._counted = self._beside.finish() if is_wanted else self._beside.value()
        elif self._counted is None and is_wanted:
            self._counted = self._count()
        return self._counted

    def _count(self) -> Totals:
        config = self._remote.config
        argv = [*priority_argv(config.nice, config.io_class), *self._argv]
        return count_totals(argv, wait=self._remote.wait_input)
