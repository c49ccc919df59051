"""What happened, as values with names, and the lines that show them while it happens and afterwards."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol
from uuid import UUID

import msgspec

from btrsync.errors import BtrsyncError
from btrsync.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TextIO

Result = Literal["sent", "nothing_changed", "would_send", "fetched", "would_fetch", "present", "failed"]
Kind = Literal["full", "incremental"]
Where = Literal["source", "target", "both"]

BUG_STATUS = 70
PROGRESS_INTERVAL_S = 30.0


class ErrorReport(msgspec.Struct, frozen=True):
    """A failure as it stands in a report: what, what to do next, and the exit status it means."""

    message: str
    hint: str | None
    exit_status: int

    @classmethod
    def of(cls, error: BaseException) -> ErrorReport:
        """Return the report of an exception; anything but a BtrsyncError is a bug, and says so."""
        if isinstance(error, BtrsyncError):
            return cls(error.message, error.hint, error.exit_status)
        return cls(f"bug in btrsync: {type(error).__name__}: {error}", None, BUG_STATUS)


class JobOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one job at one target.

    snapshot: the name of what was sent or fetched, would be, or is the latest on both sides where nothing
    changed, or of what is "present" and so not fetched; send_parent: the name of the snapshot an
    incremental send started from; bytes_sent: on the wire in this run; bytes_written: of data, before
    compression, that the whole backup wrote or would write, resumed_from_bytes: as many of them were there
    from an earlier run; files: regular files made or changed; largest: printable paths with the most data
    and their bytes, if they were asked for; detail: one more sentence for people, may be empty; error: set
    if and only if the result is "failed".
    """

    job: str
    target: str
    result: Result
    kind: Kind | None = None
    snapshot: str | None = None
    send_parent: str | None = None
    bytes_sent: int = 0
    bytes_written: int | None = None
    resumed_from_bytes: int = 0
    files: int | None = None
    largest: tuple[tuple[str, int], ...] = ()
    seconds: float = 0.0
    detail: str = ""
    error: ErrorReport | None = None

    @property
    def has_failed(self) -> bool:
        return self.result == "failed"


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run of `btrsync sync`: an outcome for each job at each of its targets."""

    run_id: str
    started: datetime
    seconds: float
    outcomes: tuple[JobOutcome, ...]

    @property
    def exit_status(self) -> int:
        """0 if all was served, 1 if only some, else the highest of the failures' statuses 3 to 10."""
        failures = [outcome for outcome in self.outcomes if outcome.has_failed]
        if not failures:
            return 0
        if len(failures) < len(self.outcomes):
            return 1
        statuses = [failure.error.exit_status if failure.error else BUG_STATUS for failure in failures]
        return max((status for status in statuses if 3 <= status <= 10), default=max(statuses))


class SnapshotRow(msgspec.Struct, frozen=True, kw_only=True):
    """One snapshot or backup of a job, as `list` shows it; one that both sides hold is one row.

    created: when the snapshot was made, UTC; is_latest_common: the latest that a send may start from: pinned.
    """

    name: str
    uuid: UUID
    created: datetime | None
    where: Where
    is_latest_common: bool = False
    is_readonly: bool = True
    remark: str = ""


class PartialRow(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer that was cut and can go on: the snapshot's name, and how much of its data the target has.

    total_bytes, percent: None where it was not counted; made: when the target put it on disk, UTC.
    """

    snapshot: str
    uuid: UUID
    data_bytes: int
    total_bytes: int | None
    percent: int | None
    made: datetime


class JobSurvey(msgspec.Struct, frozen=True, kw_only=True):
    """What a job's source and one target hold now, oldest first; `error` where it could not be seen."""

    job: str
    target: str
    error: str | None = None
    snapshots: tuple[SnapshotRow, ...] = ()
    partials: tuple[PartialRow, ...] = ()

    @property
    def latest_common(self) -> SnapshotRow | None:
        return next((row for row in self.snapshots if row.is_latest_common), None)

    @property
    def snapshots_behind(self) -> int:
        """Number of the source's snapshots that the target lacks, newer than the latest common."""
        rows = [row for row in self.snapshots if row.where != "target"]
        for index, row in enumerate(rows):
            if row.is_latest_common:
                return len(rows) - index - 1
        return len(rows)


class Reporter(Protocol):
    """Who is told what happens while it happens, from any thread. Nothing here may raise or read anything.

    progress: of the backup's data, before compression, so much is written, of so much in all if known;
    after a link failed, or where a transfer goes on, it may begin anywhere. totals_after_s: seconds into a
    transfer from which its total is worth a count beside it.
    """

    @property
    def totals_after_s(self) -> float: ...
    def step(self, job: str, target: str, text: str) -> None: ...
    def progress(self, job: str, target: str, bytes_written: int, total_bytes: int | None) -> None: ...
    def warning(self, text: str) -> None: ...
    def outcome(self, outcome: JobOutcome) -> None: ...


class NullReporter:
    """Tells nobody."""

    totals_after_s = 3600.0

    def step(self, job: str, target: str, text: str) -> None:
        """Pass over a step."""

    def progress(self, job: str, target: str, bytes_written: int, total_bytes: int | None) -> None:
        """Pass over progress."""

    def warning(self, text: str) -> None:
        """Pass over a warning."""

    def outcome(self, outcome: JobOutcome) -> None:
        """Pass over an outcome."""


class PlainReporter:
    """Whole lines for a log: no colours, no carriage returns, progress at most every 30 s per target.

    log: where steps, progress, warnings and failures go; summary: where each other outcome goes;
    has_steps: False leaves the steps out, as a run without -v does.
    """

    totals_after_s = PROGRESS_INTERVAL_S - 10
    """Before the first line on progress nobody reads a total."""

    def __init__(
        self,
        log: TextIO | None = None,
        summary: TextIO | None = None,
        *,
        has_steps: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = sys.stderr if log is None else log
        self._summary = sys.stdout if summary is None else summary
        self._has_steps = has_steps
        self._monotonic = monotonic
        self._began: dict[tuple[str, str], tuple[float, int]] = {}
        self._said: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def step(self, job: str, target: str, text: str) -> None:
        """Write one line on what is being done now."""
        if self._has_steps:
            self._write(self._log, f"{format_pair(job, target)}: {text}")

    def progress(self, job: str, target: str, bytes_written: int, total_bytes: int | None) -> None:
        """Write one line on how far a send is, unless the last one is younger than 30 s."""
        key, now = (job, target), self._monotonic()
        with self._lock:
            began, first_bytes = self._began.setdefault(key, (now, bytes_written))
            if bytes_written < first_bytes:  # the link failed, and the server has no more than that
                began, first_bytes = self._began[key] = now, bytes_written
            if now - self._said.setdefault(key, now) < PROGRESS_INTERVAL_S:
                return
            self._said[key] = now
        words = format_progress(bytes_written, total_bytes, now - began, first_bytes=first_bytes)
        self._write(self._log, f"{format_pair(job, target)}: {words}")

    def warning(self, text: str) -> None:
        """Write one line that wants attention."""
        self._write(self._log, f"btrsync: warning: {text}")

    def outcome(self, outcome: JobOutcome) -> None:
        """Write what came of one job at one target; a failure to the log, where a timer's mail sees it."""
        key = (outcome.job, outcome.target)
        with self._lock:
            self._began.pop(key, None)
            self._said.pop(key, None)
        words = format_outcome(outcome)
        if self._has_steps:
            words += "".join(f"\n  {format_size(size):>10}  {path}" for path, size in outcome.largest)
        self._write(self._log if outcome.has_failed else self._summary, words)

    def _write(self, file: TextIO, line: str) -> None:
        # A backup does not stop because nobody reads its log any more (`| head`, a full disk):
        # `cli` meets the same error when it flushes at the end, and says so by the exit status.
        with self._lock, suppress(OSError):
            file.write(line + "\n")
            file.flush()


def format_pair(job: str, target: str) -> str:
    """Return "share → daisy", or the job alone for what concerns all its targets."""
    return f"{job} → {target}" if target else job


def format_outcome(outcome: JobOutcome) -> str:
    """Return the one line for an outcome, with a second one for the hint of a failure."""
    pair = format_pair(outcome.job, outcome.target)
    detail = f"; {outcome.detail}" if outcome.detail else ""
    if outcome.error is not None:
        hint = f"\n  hint: {outcome.error.hint}" if outcome.error.hint else ""
        message = outcome.error.message.replace("\n", "\n  ")
        return f"{pair}: FAILED: {message}{detail}{hint}"
    how = f"incremental from {outcome.send_parent}" if outcome.send_parent else "full"
    if outcome.result == "sent":
        return f"{pair}: sent {outcome.snapshot} ({how}, {_format_amounts(outcome)}){detail}"
    if outcome.result == "fetched":
        return f"{pair}: fetched {outcome.snapshot} ({how}, {_format_amounts(outcome)}){detail}"
    if outcome.result == "present":
        return f"{pair}: {outcome.snapshot} is here already{detail}"
    if outcome.result == "would_fetch":
        size = f", {format_size(outcome.bytes_written)}" if outcome.bytes_written is not None else ""
        return f"{pair}: would fetch {outcome.snapshot} ({how}{size}){detail}"
    if outcome.result == "would_send":
        name = outcome.snapshot or "a new snapshot"
        if outcome.files is None or outcome.bytes_written is None:
            return f"{pair}: would send {name} ({how}){detail}"
        files = f"{outcome.files} file{'' if outcome.files == 1 else 's'}"
        parent = f"parent {outcome.send_parent}" if outcome.send_parent else "in full"
        resumed = f", {_format_resumed(outcome)}" if outcome.resumed_from_bytes else ""
        size = format_size(outcome.bytes_written)
        return f"{pair}: would send {files}, {size}, {parent}{resumed}: {name}{detail}"
    return f"{pair}: nothing changed" + (f" since {outcome.snapshot}" if outcome.snapshot else "") + detail


def _format_amounts(outcome: JobOutcome) -> str:
    """Return what a send has cost: "12.3 MiB on the wire, 30.1 MiB written, ratio 0.41, in 4.0 s"."""
    words = [_format_resumed(outcome)] if outcome.resumed_from_bytes else []
    words.append(f"{format_size(outcome.bytes_sent)} on the wire")
    if outcome.bytes_written is not None:
        written = max(0, outcome.bytes_written - outcome.resumed_from_bytes)
        words.append(f"{format_size(written)} written")
        if written:
            words.append(f"ratio {outcome.bytes_sent / written:.2f}")
    return ", ".join([*words, f"in {format_seconds(outcome.seconds)}"])


def _format_resumed(outcome: JobOutcome) -> str:
    if not outcome.bytes_written:
        return f"resumed at {format_size(outcome.resumed_from_bytes)}"
    return f"resumed at {min(100, 100 * outcome.resumed_from_bytes // outcome.bytes_written)} %"


def format_progress(
    bytes_written: int, total_bytes: int | None, seconds: float, *, first_bytes: int = 0
) -> str:
    """Return how far a send is: bytes and rate, with share and time left where the total is known.

    first_bytes: how many there were when the seconds began.
    """
    rate = (bytes_written - first_bytes) / seconds if seconds > 0 else 0.0
    words = f"{format_size(bytes_written)} written, {format_size(int(rate))}/s"
    if total_bytes and rate > 0:
        percent = min(100, 100 * bytes_written // total_bytes)
        left = max(0, total_bytes - bytes_written) / rate
        words += f", {percent} % of {format_size(total_bytes)}, {format_seconds(left)} left"
    return words


def format_seconds(seconds: float) -> str:
    """Return a duration in words: "1.4 s", "3 min 20 s", "5 h 12 min", "3 d 4 h"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, small, size, limit in (("min", "s", 60, 3600), ("h", "min", 3600, 86400)):
        if whole < limit:
            rest = whole % size // (1 if small == "s" else 60)
            return f"{whole // size} {large} {rest} {small}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_partial(partial: PartialRow) -> str:
    """Return how much of a cut transfer is there: "partial, 42 % of 1.3 GiB", "partial, 12.0 MiB"."""
    if partial.total_bytes is None:
        return f"partial, {format_size(partial.data_bytes)}"
    return f"partial, {partial.percent} % of {format_size(partial.total_bytes)}"


def format_age(then: datetime, now: datetime) -> str:
    """Return how long ago something was, never less than nothing."""
    return format_seconds(max(0.0, round((now - then).total_seconds())))


def run_json(report: RunReport) -> bytes:
    """Return the one line of JSON for a run: its fields, and its exit status."""
    fields: dict[str, Any] = msgspec.to_builtins(report)
    return msgspec.json.encode({"ok": report.exit_status == 0, "exit_status": report.exit_status, **fields})


def utc_text(moment: datetime) -> str:
    """Return a time as people read it: "2026-11-22 21:30:00 UTC"."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns that are aligned by spaces, with the headings above; "" stands out as "-"."""
    lines = [list(headings), *([cell or "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
