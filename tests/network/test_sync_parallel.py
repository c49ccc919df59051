"""Several jobs at once, over the one connection: what they share, what they do not, and how they end."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import faults, wait
from harness.scenario import INCOMING_PREFIX, SERVER_FILE, Job, Synced, Target
from tests.network import mirror

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.command import Process
    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd", "tbf", "nftables")

NAMES = ("share", "music", "mail")
JOBS = tuple(
    Job(name, Path(f"/home/foo/{name}"), Path(f"/home/foo/{name}/snapshots"), ("daisy",)) for name in NAMES
)
TWOFOLD = Target(settings={"parallel": 2, "retries": 5, "retry_pause_s": 1})
BULK_BYTES = 8_000_000
RATE_BITS = 60_000_000
MOVED_BYTES = 4_000_000


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
    assert not list(both.workstation.path("/run/btrsync").glob("ssh-*"))


def fill(both: TwoHosts, *names: str) -> None:
    """Change every job, and two so much that they take their time."""
    for number, name in enumerate(NAMES):
        seed = 10 * len(both.snapshots(name)) + number
        mirror.change(both, name, seed=seed)
        if name in names:
            mirror.add_bulk(both, name, seed=seed, size_bytes=BULK_BYTES)


def receiving(both: TwoHosts) -> list[str]:
    """Return the jobs into which something is being received just now, and has a receive at work."""
    jobs = [name for name in NAMES if any(entry.startswith(INCOMING_PREFIX) for entry in both.backups(name))]
    return jobs if len(faults.find(both.daisy, "btrfs receive")) == len(jobs) else []


@contextlib.contextmanager
def two_moving(both: TwoHosts, *arguments: str) -> Iterator[Process]:
    """A sync in the middle of two transfers at once."""
    fill(both, "share", "music")
    both.link.slow(RATE_BITS)
    try:
        with both.syncing("-v", *arguments) as process:
            began = both.bytes_on_link()

            def are_moving() -> bool:
                assert process.poll() is None, f"it ended before the fault: {process.completed()}"
                return receiving(both) == ["share", "music"] and both.bytes_on_link() > began + MOVED_BYTES

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
        assert len(faults.find(both.daisy, "btrsync serve")) == 2
        synced = mirror.finished(process)
    assert logins(both) == began + 1
    assert mirror.connections(both) == sessions + 2
    assert_mirrored(both, synced)
    for name in NAMES:
        assert synced.outcome(name)["kind"] == "incremental"
    # They shared the line: neither waited for the other's end.
    ended = [synced.stderr.find(f"{name} → daisy: sent") for name in ("share", "music")]
    seconds = [synced.outcome(name)["seconds"] for name in ("share", "music")]
    assert min(seconds) > 0.7 * max(seconds), (seconds, ended)
    mirror.nobody_is_left(both)
    assert {outcome["result"] for outcome in both.sync().outcomes} == {"nothing_changed"}
