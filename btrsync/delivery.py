"""One job at one target: look, decide, send; again while only the link fails; go on where it was cut."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from btrsync.errors import (
    BtrsyncError,
    ConflictError,
    RemoteError,
    StorageError,
    UnreachableError,
    storage_error,
)
from btrsync.plan.names import printable_name
from btrsync.plan.parent import Transfer, UpToDate, plan_transfer
from btrsync.plan.sizes import format_size
from btrsync.protocol import Begin
from btrsync.report import JobOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from btrsync.amount import Amount
    from btrsync.config import JobConfig, TargetConfig
    from btrsync.plan.parent import Conflict
    from btrsync.plan.resume import Resumption, ResumptionPlan
    from btrsync.plan.snapshots import Backup, Snapshot, SourceInventory
    from btrsync.protocol import PartialEntry
    from btrsync.remote import Remote
    from btrsync.report import Reporter, Result
    from btrsync.source import Source
    from btrsync.stream.totals import Totals


class Wishes(Protocol):
    """What the run is asked to do: `btrsync.sync.SyncOptions`."""

    @property
    def is_full(self) -> bool: ...
    @property
    def is_dry_run(self) -> bool: ...
    @property
    def is_forced(self) -> bool: ...
    @property
    def has_largest(self) -> bool: ...


class SnapshotMaker(Protocol):
    """Gives the run's new snapshot of the job to whom it is new; tells whether a snapshot is such a one."""

    def new_snapshot(self, source: SourceInventory, backups: Sequence[Backup]) -> Snapshot: ...
    def has_made(self, snapshot: Snapshot) -> bool: ...


class Line(Protocol):
    """The connection to the target: `btrsync.connections.Connections`, or a job's `btrsync.pool.Lease`."""

    def open(self, name: str) -> Remote: ...
    def lose(self, name: str, error: BtrsyncError) -> None: ...
    def pause(self, seconds: float) -> None: ...
    def reopen(self, name: str) -> Remote: ...


class Delivery:
    """What one job sends to the target `target` in one run."""

    def __init__(
        self,
        job: str,
        target: str,
        *,
        config: tuple[JobConfig, TargetConfig],
        wishes: Wishes,
        source: Source,
        maker: SnapshotMaker,
        line: Line,
        report: Reporter,
    ) -> None:
        self._job = job
        self._target = target
        self._job_config, self._target_config = config
        self._wishes = wishes
        self._source = source
        self._maker = maker
        self._line = line
        self._report = report
        self._is_full = wishes.is_full
        self._in_doubt: tuple[Snapshot, JobOutcome] | None = None
        """What was sent whole before the link broke, and what it would mean if that was committed."""
        self._found_bytes: int | None = None
        """How much was there of what is sent, from an earlier run; None before anything is sent."""

    def outcomes(self, source: SourceInventory) -> Iterator[JobOutcome]:
        """Send what the target lacks; yield what came of it, twice if it first ended an earlier run's work.

        source: looked at in this run. Raises BtrsyncError for what failed, OSError for a machine in trouble.
        """
        remote = self._line.open(self._target)
        yield self._persist(remote, source)
        if self._found_bytes:
            # What was sent is as old as the run that was cut: there may be more by now.
            self._is_full = False
            more = self._persist(remote, self._source.inventory())
            if more.result != "nothing_changed":
                yield more

    def _persist(self, remote: Remote, source: SourceInventory) -> JobOutcome:
        """Try, and try again while it is the link that fails: so often without getting any further."""
        began, sent_bytes, tries = time.monotonic(), remote.sent_bytes, 0
        times, kept_bytes = 0, self._kept_bytes(remote)
        self._found_bytes, self._in_doubt = None, None
        while True:
            try:
                outcome = self._attempt(remote, source)
                if times:
                    outcome = replace(outcome, detail=_joined(outcome.detail, _tried_again(times)))
                return replace(
                    outcome, bytes_sent=remote.sent_bytes - sent_bytes, seconds=time.monotonic() - began
                )
            except OSError as error:
                # Whose turn it is to speak on that wire is not known any more.
                self._line.lose(self._target, storage_error(error))
                raise
            except BtrsyncError as error:
                if not remote.is_lost:
                    raise
                self._line.lose(self._target, error)
                before, tries = tries, self._reconnect(error, tries)
                times += tries - before
                if (now_bytes := self._kept_bytes(remote)) > kept_bytes:
                    tries, kept_bytes = 0, now_bytes
            source = self._source.inventory()

    def _kept_bytes(self, remote: Remote) -> int:
        """Return how far the target has come with what it holds in part, as the last greeting told."""
        return max((partial.offset_bytes for partial in remote.partials.get(self._job, ())), default=0)

    def _reconnect(self, error: BtrsyncError, tries: int) -> int:
        """Wait and connect anew, as often as is allowed; return the tries so far, or raise the last error."""
        config = self._target_config
        while True:
            may_pass = error.retryable and isinstance(error, (UnreachableError, RemoteError))
            if not may_pass or tries >= config.retries:
                raise error
            pause_s = config.retry_pause_s * 2**tries
            tries += 1
            self._step(f"link lost ({error}), trying again in {pause_s} s ({tries} of {config.retries})")
            self._line.pause(pause_s)
            try:
                self._line.reopen(self._target)
            except UnreachableError as again:
                error = again
            else:
                return tries

    # --- one try ---------------------------------------------------------------------------------

    def _attempt(self, remote: Remote, source: SourceInventory) -> JobOutcome:
        backups = remote.backups.get(self._job, ())
        if self._in_doubt is not None and self._in_doubt[0].announced_uuid in _held(backups):
            return self._in_doubt[1]
        resumption, why_not = self._plan_resumption(remote, source, backups)
        plan = resumption.transfer if resumption else self._plan(source, backups)
        if isinstance(plan, UpToDate):
            return self._outcome("nothing_changed", snapshot=_name(plan.latest_common.snapshot))
        if not isinstance(plan, Transfer):
            raise ConflictError(plan)
        detail = _joined(*(f"starts over: {why}" for why in why_not))
        if self._wishes.is_dry_run:
            return self._would_send(source, plan, resumption, detail)
        snapshot = plan.snapshot or self._maker.new_snapshot(source, backups)
        plan = replace(plan, snapshot=snapshot)
        return self._send(remote, plan, snapshot, resumption.partial if resumption else None, detail)

    def _plan(self, source: SourceInventory, backups: Sequence[Backup]) -> Transfer | UpToDate | Conflict:
        return plan_transfer(
            source, backups,
            job=self._job, target=self._target,
            clone_source_limit=self._job_config.clone_sources,
            is_full=self._is_full, is_forced=self._wishes.is_forced,
        )  # fmt: skip

    def _plan_resumption(
        self, remote: Remote, source: SourceInventory, backups: Sequence[Backup]
    ) -> ResumptionPlan[PartialEntry] | tuple[None, tuple[str, ...]]:
        partials = remote.partials.get(self._job, ())
        if not partials:
            return None, ()
        # Late: most runs have nothing to go on with.
        from btrsync.plan.resume import plan_resumption
        from btrsync.system import btrfs

        return plan_resumption(
            source, backups, partials,
            compressed=self._target_config.compressed, send_protocol=btrfs.send_protocol(),
            is_full=self._is_full,
        )  # fmt: skip

    def _would_send(
        self,
        source: SourceInventory,
        plan: Transfer,
        resumption: Resumption[PartialEntry] | None,
        detail: str,
    ) -> JobOutcome:
        from btrsync.totals import count_totals

        outcome = self._outcome("would_send", plan, detail=detail)
        if resumption is not None:
            outcome = replace(outcome, resumed_from_bytes=resumption.partial.data_bytes)
        with contextlib.ExitStack() as stack:
            try:
                snapshot = plan.snapshot or stack.enter_context(
                    self._source.passing_snapshot(source.subvolume)
                )
            except StorageError as error:
                # A look must not fail for what only a count needs: the sources of a rescue are read-only.
                return replace(outcome, detail=_joined(detail, f"not counted: {error}"))
            totals = count_totals(self._source.counting_argv(snapshot, plan))
        return self._with_totals(outcome, totals, is_written=False)

    def _send(
        self, remote: Remote, plan: Transfer, snapshot: Snapshot, partial: PartialEntry | None, detail: str
    ) -> JobOutcome:
        # Late: most runs send nothing.
        from btrsync.amount import Amount
        from btrsync.remote import UncertainError
        from btrsync.sending import Order
        from btrsync.system import btrfs

        outcome = self._outcome("sent", plan, detail=detail)
        with Amount(
            remote, self._source, plan, snapshot, partial, beside_after_s=self._report.totals_after_s
        ) as amount:
            told = _Told(self._report, self._job, self._target, amount)
            order = Order(
                _begin(self._job, snapshot, plan),
                lambda choice: self._source.send_argv(snapshot, plan, choice),
                amount.total_bytes,
                btrfs.send_protocol(),
                partial,
            )
            self._step(_doing(outcome, partial))
            if self._found_bytes is None:
                self._found_bytes = partial.data_bytes if partial else 0
            try:
                committed = remote.send(order, told)
            except UncertainError:
                self._in_doubt = snapshot, outcome
                raise
            finally:
                if told.reason:
                    self._found_bytes = 0
            totals = amount.totals(is_wanted=self._wishes.has_largest)
        outcome = replace(
            outcome,
            bytes_written=committed.data_bytes,
            resumed_from_bytes=self._found_bytes or 0,
            detail=_joined(detail, told.reason),
        )
        return self._with_totals(outcome, totals) if totals else outcome

    def _with_totals(self, outcome: JobOutcome, totals: Totals, *, is_written: bool = True) -> JobOutcome:
        from btrsync.totals import printable_largest

        return replace(
            outcome,
            files=totals.files,
            bytes_written=outcome.bytes_written if is_written else totals.data_bytes,
            largest=printable_largest(totals) if self._wishes.has_largest else (),
        )

    def _outcome(
        self, result: Result, plan: Transfer | None = None, *, snapshot: str | None = None, detail: str = ""
    ) -> JobOutcome:
        if plan is None:
            return JobOutcome(job=self._job, target=self._target, result=result, snapshot=snapshot)
        return JobOutcome(
            job=self._job, target=self._target, result=result, kind=plan.kind,
            snapshot=plan.snapshot.name if plan.snapshot else None,
            send_parent=_name(plan.send_parent.snapshot) if plan.send_parent else None,
            detail=detail,
        )  # fmt: skip

    def _step(self, text: str) -> None:
        self._report.step(self._job, self._target, text)


class _Told:
    """Hears how one transfer goes, and passes it on."""

    def __init__(self, report: Reporter, job: str, target: str, amount: Amount) -> None:
        self.reason = ""
        self._amount = amount
        self._report = report
        self._job = job
        self._target = target

    def step(self, text: str) -> None:
        self._report.step(self._job, self._target, text)

    def warning(self, text: str) -> None:
        self._report.warning(f"job {self._job}: {text}")

    def progress(self, data_bytes: int, total_bytes: int | None) -> None:
        self._report.progress(self._job, self._target, data_bytes, total_bytes)

    def starts_over(self, why: str) -> None:
        self.reason = f"starts over: {why}"
        self.step(self.reason)
        self._amount.start_over()


def _begin(job: str, snapshot: Snapshot, plan: Transfer) -> Begin:
    return Begin(
        job, snapshot.name, snapshot.announced_uuid, snapshot.subvolume.ctransid,
        send_parent=plan.send_parent.snapshot.announced_uuid if plan.send_parent else None,
        clone_sources=[common.snapshot.announced_uuid for common in plan.clone_sources],
    )  # fmt: skip


def _doing(outcome: JobOutcome, partial: PartialEntry | None) -> str:
    how = f"incremental from {outcome.send_parent}" if outcome.send_parent else "full"
    if partial is None:
        return f"sending {outcome.snapshot}, {how}"
    return (
        f"going on with {outcome.snapshot}, {how}: {format_size(partial.data_bytes)} of it are there,"
        f" {format_size(partial.offset_bytes)} are read again"
    )


def _joined(*clauses: str) -> str:
    return "; ".join(clause for clause in clauses if clause)


def _tried_again(times: int) -> str:
    return f"the link was lost, tried again {'once' if times == 1 else f'{times} times'}"


def _held(backups: Sequence[Backup]) -> set[UUID | None]:
    return {backup.received_uuid for backup in backups}


def _name(snapshot: Snapshot) -> str:
    return printable_name(snapshot.name)
