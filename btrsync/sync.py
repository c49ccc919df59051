"""The order of a run: lock, connect, look, decide, snapshot, send, report.

A job is served at each of its targets; what fails is reported by name and the next one goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from btrsync.connections import Connections
from btrsync.errors import MACHINE_ERRNOS, BtrsyncError, ConflictError, StorageError, storage_error
from btrsync.plan.names import new_snapshot_name, printable_name
from btrsync.plan.parent import Transfer, UpToDate, plan_transfer
from btrsync.protocol import Begin
from btrsync.report import ErrorReport, JobOutcome, RunReport
from btrsync.selection import choose_pairs
from btrsync.system.lock import Lock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from btrsync.config import ClientConfig, JobConfig
    from btrsync.plan.snapshots import Backup, Snapshot, SourceInventory
    from btrsync.remote import Remote
    from btrsync.report import Reporter


class SyncOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one run is asked to do. jobs, targets: empty means all; has_largest: name the largest paths."""

    run_id: str
    now: Callable[[], datetime]
    lock_directory: Path
    jobs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    is_full: bool = False
    is_dry_run: bool = False
    is_forced: bool = False
    has_largest: bool = False


def run(config: ClientConfig, options: SyncOptions, report: Reporter) -> RunReport:
    """Serve the chosen jobs at the chosen targets and return what came of each.

    Raises ConfigError for a job or target that is not configured; any other failure is an outcome.
    """
    pairs = choose_pairs(config, options.jobs, options.targets)
    started, began = options.now(), time.monotonic()
    outcomes: list[JobOutcome] = []

    def tell(outcome: JobOutcome) -> None:
        outcomes.append(outcome)
        report.outcome(outcome)

    with contextlib.ExitStack() as stack:
        failed: dict[str, BtrsyncError] = {}
        if not options.is_dry_run:
            for job in _unique(pair.job for pair in pairs):
                try:
                    stack.enter_context(_job_lock(options, job))
                except BtrsyncError as error:
                    failed[job] = error
                except OSError as error:
                    where = error.filename or options.lock_directory
                    failed[job] = StorageError(f"cannot lock job {job}: {where}: {error.strerror}")
        # All connections start first: ssh logs in while we look at the sources.
        connections = Connections(
            config, _unique(pair.target for pair in pairs if pair.job not in failed), options.run_id,
            is_look_only=options.is_dry_run, report=report,
        )  # fmt: skip
        stack.enter_context(connections)
        for job in _unique(pair.job for pair in pairs):
            targets = [pair.target for pair in pairs if pair.job == job]
            if job in failed:
                for target in targets:
                    tell(_failure(job, target, failed[job], 0.0))
                continue
            _JobRun(job, config.jobs[job], options, connections, report, tell).serve(targets)
    return RunReport(
        run_id=options.run_id, started=started, seconds=time.monotonic() - began, outcomes=tuple(outcomes)
    )


def _job_lock(options: SyncOptions, job: str) -> Lock:
    options.lock_directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    return Lock(
        options.lock_directory / f"{job}.lock", f"job {job} is running already", run_id=options.run_id
    )


class _JobRun:
    """One job at all its targets: at most one new snapshot for all of them."""

    def __init__(
        self, job: str, config: JobConfig, options: SyncOptions, connections: Connections,
        report: Reporter, tell: Callable[[JobOutcome], None],
    ) -> None:  # fmt: skip
        self._job = job
        self._config = config
        self._options = options
        self._connections = connections
        self._report = report
        self._tell = tell
        # Late, while ssh connects.
        from btrsync.source import Source

        self._source = Source(config.subvolume, config.snapshots)
        self._new: Snapshot | None = None

    def serve(self, targets: list[str]) -> None:
        began = time.monotonic()
        try:
            source = self._source.inventory()
        except (BtrsyncError, OSError) as error:
            for target in targets:
                self._tell(_failure(self._job, target, error, time.monotonic() - began))
            return
        try:
            for target in targets:
                began = time.monotonic()
                try:
                    outcome = self._serve_target(source, target, began)
                except (BtrsyncError, OSError) as error:
                    outcome = _failure(self._job, target, error, time.monotonic() - began)
                self._tell(outcome)
        finally:
            self._drop_unwanted()

    def _serve_target(self, source: SourceInventory, target: str, began: float) -> JobOutcome:
        remote = self._connections.open(target)
        backups = remote.backups.get(self._job, ())
        plan = plan_transfer(
            source, backups,
            job=self._job, target=target,
            clone_source_limit=self._config.clone_sources,
            is_full=self._options.is_full, is_forced=self._options.is_forced,
        )  # fmt: skip
        if isinstance(plan, UpToDate):
            return JobOutcome(
                job=self._job, target=target, result="nothing_changed",
                snapshot=printable_name(plan.latest_common.snapshot.name), seconds=time.monotonic() - began,
            )  # fmt: skip
        if not isinstance(plan, Transfer):
            raise ConflictError(plan)
        send_parent = printable_name(plan.send_parent.snapshot.name) if plan.send_parent else None
        if self._options.is_dry_run:
            return JobOutcome(
                job=self._job, target=target, result="would_send", kind=plan.kind,
                snapshot=plan.snapshot.name if plan.snapshot else None,
                send_parent=send_parent, seconds=time.monotonic() - began,
            )  # fmt: skip
        snapshot = plan.snapshot or self._new_snapshot(source, backups)
        how = f"incremental from {send_parent}" if send_parent else "full"
        self._report.step(self._job, target, f"sending {snapshot.name}, {how}")
        size_bytes = self._send(remote, plan, snapshot)
        return JobOutcome(
            job=self._job, target=target, result="sent", kind=plan.kind, snapshot=snapshot.name,
            send_parent=send_parent, bytes_sent=size_bytes, seconds=time.monotonic() - began,
        )  # fmt: skip

    def _send(self, remote: Remote, plan: Transfer, snapshot: Snapshot) -> int:
        begin = Begin(
            self._job, snapshot.name, snapshot.announced_uuid, snapshot.subvolume.ctransid,
            send_parent=plan.send_parent.snapshot.announced_uuid if plan.send_parent else None,
            clone_sources=[common.snapshot.announced_uuid for common in plan.clone_sources],
        )  # fmt: skip
        try:
            _, size_bytes = remote.send(
                begin,
                self._source.send_argv(snapshot, plan.send_parent, plan.clone_sources),
                on_progress=lambda sent: self._report.progress(self._job, remote.name, sent, None),
            )
        except BtrsyncError as error:
            if remote.is_lost:
                self._connections.lose(remote.name, error)
            raise
        except OSError as error:
            # Whose turn it is to speak on that wire is not known any more.
            self._connections.lose(remote.name, storage_error(error))
            raise
        return size_bytes

    def _new_snapshot(self, source: SourceInventory, backups: Iterable[Backup]) -> Snapshot:
        """Make the run's one new snapshot, under a name that is free on both sides."""
        if self._new is None:
            taken = self._source.names() | {backup.name for backup in backups}
            name = new_snapshot_name(self._config.snapshot_name, self._options.now(), taken)
            self._report.step(self._job, "", f"making snapshot {name}")
            self._new = self._source.make_snapshot(name, origin=source.subvolume)
        return self._new

    def _drop_unwanted(self) -> None:
        """Delete the new snapshot if no target holds it, nor may hold it: also when a signal stops us."""
        if self._new is not None and not self._connections.may_hold(self._new.announced_uuid):
            try:
                self._source.delete_snapshot(self._new)
            except BtrsyncError as error:
                self._report.warning(f"job {self._job}: {error}")


def _failure(job: str, target: str, error: BtrsyncError | OSError, seconds: float) -> JobOutcome:
    if isinstance(error, OSError):
        if error.errno not in MACHINE_ERRNOS:
            raise error
        error = storage_error(error)
    return JobOutcome(job=job, target=target, result="failed", seconds=seconds, error=ErrorReport.of(error))


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
