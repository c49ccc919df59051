"""The other direction: one backup of a job comes back from a target, over the same wire.

It is received as a server receives: staged, inspected, checkpointed, and only then given its name. The
directory that it goes to is the user's: nothing in it is touched but what bears a staging name of ours.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from btrsync import partials
from btrsync.connections import Connections
from btrsync.errors import (
    MACHINE_ERRNOS,
    BtrsyncError,
    ConfigError,
    RefusedError,
    StorageError,
    storage_error,
)
from btrsync.incoming import INCOMING_PREFIX
from btrsync.plan.fetching import FetchPlan, Present, plan_fetch
from btrsync.plan.names import is_staging_name
from btrsync.plan.sizes import format_size
from btrsync.remote import rate_limit
from btrsync.report import ErrorReport, JobOutcome, RunReport
from btrsync.system import btrfs
from btrsync.system.lock import Lock, directory_lock
from btrsync.target import check_receivable

if TYPE_CHECKING:
    from uuid import UUID

    from btrsync.config import ClientConfig
    from btrsync.inflow import Request
    from btrsync.partials import Partial
    from btrsync.remote import Remote
    from btrsync.report import Reporter

PARTIAL_TTL = timedelta(days=7)
"""How long what a cut fetch has left here is kept for the next one; as a server does by default."""


class FetchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. snapshot: None for the latest; directory: None for the job's own snapshots."""

    job: str
    run_id: str
    now: Callable[[], datetime]
    lock_directory: Path
    snapshot: str | None = None
    target: str | None = None
    directory: Path | None = None
    is_dry_run: bool = False


def run(config: ClientConfig, options: FetchOptions, report: Reporter) -> RunReport:
    """Fetch what is asked for and return what came of it.

    Raises ConfigError for a job or target that is not configured; any other failure is an outcome.
    """
    target = _choose_target(config, options)
    started, began = options.now(), time.monotonic()
    fetch = _Fetch(config, options, target, report)
    try:
        outcome = fetch.run()
    except (BtrsyncError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in MACHINE_ERRNOS:
            raise
        failure = storage_error(error) if isinstance(error, OSError) else error
        outcome = JobOutcome(
            job=options.job, target=target, result="failed", error=ErrorReport.of(failure),
            detail=fetch.kept,
        )  # fmt: skip
    seconds = time.monotonic() - began
    outcome = msgspec.structs.replace(outcome, seconds=seconds)
    report.outcome(outcome)
    return RunReport(run_id=options.run_id, started=started, seconds=seconds, outcomes=(outcome,))


def _choose_target(config: ClientConfig, options: FetchOptions) -> str:
    job = config.jobs.get(options.job)
    if job is None:
        raise ConfigError(config.file, [f"there is no job {options.job!r}; it has {', '.join(config.jobs)}"])
    if options.target is None and len(job.targets) == 1:
        return job.targets[0]
    if options.target not in job.targets:
        problem = (
            f"job {options.job} has several targets" if options.target is None
            else f"job {options.job} does not go to {options.target!r}"
        )  # fmt: skip
        raise ConfigError(config.file, [f"{problem}; name one with --target: {', '.join(job.targets)}"])
    return options.target


class _Fetch:
    def __init__(self, config: ClientConfig, options: FetchOptions, target: str, report: Reporter) -> None:
        self._config = config
        self._options = options
        self._job = options.job
        self._target = target
        self._report = report
        self._rate = rate_limit(config.targets[target])
        self._lock_fd = -1
        self.kept = ""
        """What of a fetch that failed is kept, in words."""
        self._kept_bytes = 0
        """How far any try has come."""
        self._has_advanced = False

    def run(self) -> JobOutcome:
        with contextlib.ExitStack() as stack:
            if not self._options.is_dry_run:
                self._lock_fd = stack.enter_context(self._lock()).fileno()
            # It starts first: ssh logs in while we look here. On the server a fetch changes nothing.
            connections = stack.enter_context(
                Connections(
                    self._config, [self._target], self._options.run_id, is_look_only=True, report=self._report
                )
            )
            self._directory = _usable(self._options.directory or self._config.jobs[self._job].snapshots)
            if not self._options.is_dry_run:
                check_receivable(self._directory)
            return self._persist(connections)

    def _lock(self) -> Lock:
        directory = self._options.lock_directory
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        return Lock(
            directory / f".fetch-{self._job}.lock", f"job {self._job} is being fetched already",
            run_id=self._options.run_id,
        )  # fmt: skip

    def _persist(self, connections: Connections) -> JobOutcome:
        """Try, and try again while it is the link that fails: so often without getting any further."""
        remote, tries, is_again = connections.open(self._target), 0, False
        while True:
            self._has_advanced = False
            try:
                if is_again:
                    remote = connections.reopen(self._target)
                return self._attempt(remote)
            except BtrsyncError as error:
                config = self._config.targets[self._target]
                if self._has_advanced:
                    tries = 0
                if not (remote.is_lost and error.retryable) or tries >= config.retries:
                    raise
                pause_s = config.retry_pause_s * 2**tries
                tries += 1
                self._step(f"link lost ({error}), trying again in {pause_s} s ({tries} of {config.retries})")
                is_again = True
                time.sleep(pause_s)

    def _attempt(self, remote: Remote) -> JobOutcome:
        kept = [] if self._options.is_dry_run else self._sweep()
        plan = self._plan(remote)
        if isinstance(plan, Present):
            return JobOutcome(
                job=self._job, target=self._target, result="present", snapshot=plan.name,
                detail=f"in {self._directory}",
            )  # fmt: skip
        name = plan.backup.name
        if os.path.lexists(self._directory / name):
            raise RefusedError(
                f"{self._directory / name} is there already, and is something else",
                hint="choose another directory with --to",
            )
        # Late: a fetch may find nothing to do.
        from btrsync.inflow import Inflow

        before = [partial for partial in kept if partial.entry.uuid == plan.backup.received_uuid]
        request = self._request(plan, before)
        if request.goes_on is not None:
            self._kept_bytes = max(self._kept_bytes, request.goes_on.entry.offset_bytes)
        inflow, parent = Inflow(request, self), request.send_parent
        how = f"incremental from {parent.name}" if parent else "full"
        self._step(f"fetching {name}, {how}")
        if self._options.is_dry_run:
            begin = remote.converse(inflow.look)
            return msgspec.structs.replace(
                self._outcome("would_fetch", request), bytes_written=begin.total_bytes
            )
        try:
            remote.converse(inflow.run)
        finally:
            if inflow.kept_bytes:
                size = format_size(inflow.kept_bytes)
                self.kept = f"{size} of the stream are kept: the next fetch goes on from there"
                self._has_advanced = inflow.kept_bytes > self._kept_bytes
        return msgspec.structs.replace(
            self._outcome("fetched", request),
            bytes_sent=inflow.size_bytes,
            bytes_written=inflow.data_bytes + inflow.rewritten_bytes,
            resumed_from_bytes=inflow.resumed_from_bytes,
            detail=_rewritten(inflow.rewritten_bytes, request.progs_version),
        )

    def _plan(self, remote: Remote) -> FetchPlan | Present:
        own = btrfs.subvolumes_in(self._directory)
        # What is cut carries the received UUID of what it is to become.
        staging = {found.id for name, found in own.items() if is_staging_name(name)}
        received: defaultdict[UUID, list[str]] = defaultdict(list)
        for one in btrfs.received(self._directory):
            if one.id not in staging:
                received[one.uuid].append(one.path)
        return plan_fetch(
            remote.backups.get(self._job, ()),
            {name: found for name, found in own.items() if not is_staging_name(name)},
            received,
            job=self._job, target=self._target, name=self._options.snapshot,
        )  # fmt: skip

    def _request(self, plan: FetchPlan, before: list[Partial]) -> Request:
        from btrsync.inflow import Request

        goes_on = before[-1] if before else None
        parent = plan.send_parent
        if goes_on is not None:
            wanted = goes_on.entry.send_parent
            if wanted is not None and wanted not in plan.proven:
                goes_on = None
            else:
                parent = plan.proven[wanted] if wanted else None
        return Request(
            self._job, plan.backup, parent, self._directory, before, goes_on, self._lock_fd,
            btrfs.progs_version(), self._config.targets[self._target].buffer_bytes, self._rate,
        )  # fmt: skip

    def warning(self, text: str) -> None:
        """Pass on a warning of the transfer."""
        self._report.warning(f"job {self._job}: {text}")

    def progress(self, data_bytes: int, total_bytes: int | None) -> None:
        """Pass on how far the transfer is."""
        self._report.progress(self._job, self._target, data_bytes, total_bytes)

    def _sweep(self) -> list[Partial]:
        """Delete what dead fetches left behind, and return what can go on, the newest last."""
        with directory_lock(self._directory, f"{self._directory} is being received into", is_shared=False):
            found = btrfs.subvolumes_in(self._directory)
            for name in list(found):
                if is_staging_name(name) and name.startswith(INCOMING_PREFIX):
                    btrfs.delete_subvolume(self._directory / name)
                    self._step(f"deleted {name}, left by an interrupted fetch")
                    del found[name]
            # Whatever else is hidden there is not ours.
            known = {
                name: one for name, one in found.items() if is_staging_name(name) or not name.startswith(".")
            }
            swept = partials.sweep(self._directory, known, now=self._options.now(), ttl=PARTIAL_TTL)
            left = {name: one for name, one in known.items() if name not in swept}
            return partials.found_in(self._directory, left)

    def _outcome(self, result: Literal["fetched", "would_fetch"], request: Request) -> JobOutcome:
        parent = request.send_parent
        return JobOutcome(
            job=self._job, target=self._target, result=result,
            kind="incremental" if parent else "full",
            snapshot=request.backup.name, send_parent=parent.name if parent else None,
        )  # fmt: skip

    def _step(self, text: str) -> None:
        self._report.step(self._job, self._target, text)


def _usable(directory: Path) -> Path:
    """Return `directory` without links in it. Raises StorageError if nothing can be received there.

    Who else could write in it could put something else in the place of what is being received.
    """
    if not directory.is_dir():
        raise StorageError(
            f"{directory} is not there", hint=f"mkdir {directory}, or choose another with --to"
        )
    directory = directory.resolve()
    if not btrfs.is_btrfs(directory):
        raise StorageError(f"{directory} is not on a btrfs filesystem", hint="choose another with --to")
    status = directory.stat()
    if status.st_uid != 0 or stat.S_IMODE(status.st_mode) & 0o022:
        raise StorageError(
            f"{directory} must be a directory that only root can write, and it is not",
            hint=f"chown root:root {directory}; chmod go-w {directory}",
        )
    return directory


def _rewritten(size_bytes: int, progs_version: str) -> str:
    if not size_bytes:
        return ""
    return (
        f"{format_size(size_bytes)} of clones from the parent were written as data:"
        f" btrfs-progs {progs_version} here cannot clone from an original"
    )
