"""Several jobs at once, over the one connection: what they share, what they do not, and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import faults, wait
from harness.scenario import INCOMING_PREFIX, SERVER_FILE, Job, Target
from tests.network import mirror

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.command import Process
    from harness.scenario import Synced, TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd", "tbf", "nftables")

NAMES = ("share", "music", "mail")
JOBS = tuple(
    Job(name, Path(f"/home/foo/{name}"), Path(f"/home/foo/{name}/snapshots"), ("daisy",)) for name in NAMES
)
TWOFOLD = Target(settings={"parallel": 2, "retries": 5, "retry_pause_s": 1})
BULK_BYTES = 12_000_000
RATE_BITS = 40_000_000
LEAST_BYTES = 2_000_000
"""Of each when the fault strikes. Who is second finds the other one's megabytes in the line's buffers."""


@pytest.fixture(scope="module")
def both() -> Iterator[TwoHosts]:
    """Three jobs of which two may go at once; each test leaves equal mirrors."""
    with mirror.small(jobs=JOBS, targets=(TWOFOLD,)) as made:
        for name in NAMES[1:]:
            (made.source(name) / "data" / name).write_text(name)
        made.daisy.append_text(SERVER_FILE, "checkpoint_bytes = 2097152\n")
        assert_mirrored(made, made.sync())
        yield made


def assert_mirrored(both: TwoHosts, synced: Synced) -> None:
    """See that a run served every job whole, in the configuration's order, and that nothing else is there."""
    assert synced.returncode == 0, synced
    assert [outcome["job"] for outcome in synced.outcomes] == list(NAMES)
    for name in NAMES:
        mirror.assert_mirrored(both, synced, name)
        assert both.snapshots(name) == both.backups(name)
    sockets_are_gone(both)


def sockets_are_gone(both: TwoHosts) -> None:
    """See that no directory for sockets is left."""
    assert socket_directories(both) == []


def fill(both: TwoHosts, *names: str) -> None:
    """Change every job, and two so much that they take their time."""
    for number, name in enumerate(NAMES):
        for old in both.source(name).glob("bulk-*"):
            old.unlink()
        seed = 10 * len(both.snapshots(name)) + number
        mirror.change(both, name, seed=seed)
        if name in names:
            mirror.add_bulk(both, name, seed=seed, size_bytes=BULK_BYTES)


def received_bytes(both: TwoHosts, name: str) -> int:
    """Return how much of a job's large file has been written by the receive at work there, if there is one."""
    (bulk,) = both.source(name).glob("bulk-*")
    with contextlib.suppress(FileNotFoundError):
        for entry in both.backups(name):
            if entry.startswith(INCOMING_PREFIX):
                return (both.backup_directory(name) / entry / bulk.name).stat().st_size
    return 0


@contextlib.contextmanager
def two_moving(both: TwoHosts, *arguments: str) -> Iterator[Process]:
    """A sync in the middle of two transfers at once."""
    fill(both, "share", "music")
    both.link.slow(RATE_BITS)
    try:
        with both.syncing("-v", *arguments) as process:

            def are_moving() -> bool:
                assert process.poll() is None, f"it ended before the fault: {process.completed()}"
                are_well_on = all(received_bytes(both, name) > LEAST_BYTES for name in ("share", "music"))
                # At a checkpoint there is none for a moment.
                return are_well_on and len(faults.find(both.daisy, "btrfs receive")) == 2

            wait.until(are_moving, timeout_s=20, what="two transfers at once")
            yield process
    finally:
        both.link.normal()


def logins(both: TwoHosts) -> int:
    """Return how many TCP connections daisy's sshd has let in so far."""
    return both.sshd.log_text().count("Accepted publickey")


def established(both: TwoHosts) -> int:
    """Return how many TCP connections daisy's sshd has just now, from /proc/PID/net/tcp."""
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{both.daisy.pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return sum(fields[3] == "01" and fields[1].endswith(":0016") for fields in lines)


def test_two_jobs_are_received_at_once_over_one_connection(both: TwoHosts) -> None:
    began, sessions = logins(both), mirror.connections(both)
    with two_moving(both) as process:
        assert established(both) == 1
        synced = mirror.finished(process)
    assert logins(both) == began + 1
    assert mirror.connections(both) == sessions + 2
    assert_mirrored(both, synced)
    for name in NAMES:
        assert synced.outcome(name)["kind"] == "incremental"
    # They shared the line: neither waited for the other's end.
    seconds = [synced.outcome(name)["seconds"] for name in ("share", "music")]
    assert min(seconds) > 0.7 * max(seconds), seconds
    mirror.nobody_is_left(both)
    assert {outcome["result"] for outcome in both.sync().outcomes} == {"nothing_changed"}


def test_a_reset_link_ends_both_and_both_go_on_within_the_run(both: TwoHosts) -> None:
    began = logins(both)
    with two_moving(both) as process:
        with faults.ResettingLink(both.link):
            wait.until(lambda: process.stderr.count("link lost") == 2, timeout_s=10, what="both are lost")
        both.link.normal()
        synced = mirror.finished(process)
    assert_mirrored(both, synced)
    for name in ("share", "music"):
        outcome = synced.outcome(name)
        assert outcome["detail"].startswith("the link was lost, tried again "), outcome
        assert f"{name} → daisy: going on with {outcome['snapshot']}" in synced.stderr
        assert outcome["bytes_sent"] < 2 * BULK_BYTES
    assert logins(both) == began + 2
    mirror.nobody_is_left(both)


def test_a_session_that_dies_alone_takes_the_others_along_and_all_go_on(both: TwoHosts) -> None:
    began = logins(both)
    with two_moving(both) as process:
        # A third one for a moment is a child that is yet to become a receive.
        first, second, *_ = faults.find(both.daisy, "btrsync serve")
        os.kill(second.pid, signal.SIGTERM)
        wait.until(lambda: process.stderr.count("link lost") == 2, timeout_s=10, what="both are lost")
        both.link.normal()
        synced = mirror.finished(process)
    assert first.pid != second.pid
    assert_mirrored(both, synced)
    assert "asked to stop), trying again in 1 s" in synced.stderr
    assert "the connection was lost in the transfer of another job" in synced.stderr
    assert synced.stderr.count("going on with") == 2
    assert logins(both) == began + 2


def test_a_job_that_fails_does_not_hinder_the_other(both: TwoHosts) -> None:
    with two_moving(both) as process:
        receives = faults.find(both.daisy, "btrfs receive")
        os.kill(receives[0].pid, signal.SIGKILL)
        both.link.normal()
        synced = mirror.finished(process)
    assert synced.returncode == 1, synced
    results = {outcome["job"]: outcome["result"] for outcome in synced.outcomes}
    assert list(results) == list(NAMES)
    assert sorted(results.values()) == ["failed", "sent", "sent"]
    assert "link lost" not in synced.stderr
    for name, result in results.items():
        if result == "sent":
            mirror.assert_mirrored(both, synced, name)
    again = both.sync()
    assert_mirrored(both, again)
    assert sorted(outcome["result"] for outcome in again.outcomes) == [
        "nothing_changed", "nothing_changed", "sent",
    ]  # fmt: skip


def test_a_stopped_run_leaves_no_process_and_two_partials_which_the_next_one_goes_on_with(
    both: TwoHosts,
) -> None:
    with two_moving(both) as process:
        began = time.monotonic()
        faults.kill(both.workstation, "btrsync sync", signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 5
        assert "stopped by SIGTERM" in process.stderr
        assert "Traceback" not in process.stderr
        assert "FAILED" not in process.stderr
    mirror.nobody_is_left(both)
    sockets_are_gone(both)
    for name in ("share", "music"):
        assert len(mirror.partials(both, name)) == 1
    assert mirror.partials(both, "mail") == []
    synced = both.sync()
    # What was sent is as old as the run that was stopped; nothing has changed since.
    assert_mirrored(both, synced)
    for name in ("share", "music"):
        assert synced.outcome(name)["resumed_from_bytes"] > LEAST_BYTES / 2
    # Of a job that had not begun nothing was left, its new snapshot neither.
    assert synced.outcome("mail")["result"] == "sent"


def socket_directories(both: TwoHosts) -> list[Path]:
    return list(both.workstation.path("/run/btrsync").glob("ssh-*"))


def test_a_run_that_is_killed_leaves_nothing_that_stands_in_the_way_of_the_next(both: TwoHosts) -> None:
    with two_moving(both) as process:
        faults.kill(both.workstation, "btrsync sync")
        assert process.wait(10) == -signal.SIGKILL
    mirror.nobody_is_left(both)
    assert len(socket_directories(both)) == 1
    synced = both.sync()
    assert socket_directories(both) == []
    for name in NAMES:
        mirror.assert_mirrored(both, synced, name)
        assert both.snapshots(name) == both.backups(name)


USB = Target("usb", path=Path("/mnt/usb/backups"), settings={"parallel": 2, "rate_limit_bytes": 3_000_000})
EVERYWHERE = tuple(
    Job(name, Path(f"/home/foo/{name}"), Path(f"/home/foo/{name}/snapshots"), ("daisy", "usb"))
    for name in NAMES[:2]
)


@pytest.fixture(scope="module")
def narrow() -> Iterator[TwoHosts]:
    """Two jobs, a server that opens one session for each connection, and a disk."""
    with mirror.small(jobs=EVERYWHERE, targets=(TWOFOLD, USB), sshd_options=("MaxSessions 1",)) as made:
        yield made


def test_where_the_server_opens_one_session_the_run_goes_on_with_it_and_says_so(narrow: TwoHosts) -> None:
    synced = narrow.sync("--target", "daisy")
    for name in narrow.jobs:
        mirror.assert_mirrored(narrow, synced, name)
    assert synced.returncode == 0
    assert synced.stderr.count("warning: daisy: 1 at once and no more, `parallel` asks for more: ") == 1
    assert "the server opens no further session over one connection" in synced.stderr
    assert logins(narrow) == 1


def test_a_disk_is_served_by_two_at_once_who_share_its_rate(narrow: TwoHosts) -> None:
    for name in narrow.jobs:
        mirror.add_bulk(narrow, name, size_bytes=3_000_000)
    began = time.monotonic()
    with narrow.syncing("--target", "usb") as process:

        def are_both_incoming() -> bool:
            assert process.poll() is None, process.completed()
            return all(
                any(entry.startswith(INCOMING_PREFIX) for entry in narrow.backups(name, "usb"))
                for name in narrow.jobs
            )

        wait.until(are_both_incoming, timeout_s=20, what="two transfers at once")
        assert len(faults.find(narrow.workstation, "btrfs receive")) == 2
        synced = mirror.finished(process)
    assert time.monotonic() - began > synced.bytes_sent / 3_000_000 - 0.5
    for name in narrow.jobs:
        mirror.assert_mirrored(narrow, synced, name, "usb")
    mirror.nobody_is_left(narrow)
