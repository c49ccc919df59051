"""The order of a run: lock, connect, look, decide, snapshot, send, report.

A job is served at each of its targets; what fails is reported by name and the next one goes on.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from btrsync.connections import Connections
from btrsync.delivery import Delivery
from btrsync.errors import MACHINE_ERRNOS, BtrsyncError, StorageError, storage_error
from btrsync.plan.names import new_snapshot_name
from btrsync.report import ErrorReport, JobOutcome, RunReport
from btrsync.selection import Pair, choose_pairs, sessions_at
from btrsync.system.lock import Lock
from btrsync.wire import StopAskedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from btrsync.config import ClientConfig, JobConfig
    from btrsync.delivery import Line
    from btrsync.plan.snapshots import Backup, Snapshot, SourceInventory
    from btrsync.report import Reporter


_NAMING = threading.Lock()


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
        served = [pair for pair in pairs if pair.job not in failed]
        sessions = sessions_at(config, served)
        at_once = 1 if options.is_dry_run else max(sessions.values(), default=1)
        # All connections start first: ssh logs in while we look at the sources.
        connections = Connections(
            config, _unique(pair.target for pair in served), options.run_id,
            is_look_only=options.is_dry_run, report=report,
            sessions=sessions if at_once > 1 else None, socket_directory=options.lock_directory,
        )  # fmt: skip
        stack.enter_context(connections)
        tasks: list[Callable[[], None]] = []
        for job in _unique(pair.job for pair in pairs):
            targets = [pair.target for pair in pairs if pair.job == job]
            if job in failed:
                tasks += [partial(tell, _failure(job, target, failed[job], 0.0)) for target in targets]
                continue
            job_run = _JobRun(job, config.jobs[job], options, connections, report, tell)
            tasks.append(partial(job_run.serve, targets))
        if at_once > 1:
            from btrsync.workers import work

            work(tasks, at_once, connections.stop)
        else:
            for task in tasks:
                task()
    # Those of jobs that were served at once came as they ended.
    outcomes.sort(key=lambda outcome: pairs.index(Pair(outcome.job, outcome.target)))
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
        self._made: list[Snapshot] = []

    def serve(self, targets: list[str]) -> None:
        began = time.monotonic()
        try:
            source = self._source.inventory()
        except (BtrsyncError, OSError) as error:
            for target in targets:
                self._tell(_failure(self._job, target, error, time.monotonic() - began))
            return
        self._sweep(source)
        try:
            for target in targets:
                began = time.monotonic()
                try:
                    with self._connections.lent(target) as line:
                        for outcome in self._delivery(target, line).outcomes(source):
                            self._tell(outcome)
                except StopAskedError:
                    raise
                except (BtrsyncError, OSError) as error:
                    self._tell(_failure(self._job, target, error, time.monotonic() - began))
        finally:
            self._drop_unwanted()

    def _sweep(self, source: SourceInventory) -> None:
        if self._options.is_dry_run:
            return
        try:
            for name in self._source.sweep(source.subvolume):
                self._report.step(self._job, "", f"deleted {name}, left by a dry run that was killed")
        except (BtrsyncError, OSError) as error:
            self._report.warning(f"job {self._job}: {error}")

    def _delivery(self, target: str, line: Line) -> Delivery:
        return Delivery(
            self._job, target,
            config=(self._config, self._connections.config(target)),
            wishes=self._options, source=self._source, maker=self,
            line=line, report=self._report,
        )  # fmt: skip

    def new_snapshot(self, source: SourceInventory, backups: Sequence[Backup]) -> Snapshot:
        """Make the run's one new snapshot, under a name that is free on both sides.

        source, backups: what is there now. A target that holds the one of this run gets another one.
        """
        if not self._made or self._made[-1].announced_uuid in {backup.received_uuid for backup in backups}:
            # Two jobs that are served at once may have one directory for their snapshots.
            with _NAMING:
                taken = self._source.names() | {backup.name for backup in backups}
                name = new_snapshot_name(self._config.snapshot_name, self._options.now(), taken)
                self._report.step(self._job, "", f"making snapshot {name}")
                self._made.append(self._source.make_snapshot(name, origin=source.subvolume))
        return self._made[-1]

    def has_made(self, snapshot: Snapshot) -> bool:
        """Tell whether a snapshot is of this run."""
        return any(made.subvolume.uuid == snapshot.subvolume.uuid for made in self._made)

    def _drop_unwanted(self) -> None:
        """Delete new snapshots of which no target may hold anything: also when a signal stops us."""
        for made in self._made:
            if not self._connections.may_hold(made.announced_uuid):
                try:
                    self._source.delete_snapshot(made)
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
