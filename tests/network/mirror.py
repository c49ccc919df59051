"""What the tests of the mirror over ssh share: hosts with data, a transfer that goes on, an equal mirror."""

from __future__ import annotations

import contextlib
import os
import random
from typing import TYPE_CHECKING, Any

from harness import faults, sshd, tree, wait
from harness.scenario import INCOMING_PREFIX, Synced, Target, TwoHosts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.command import Process

SLOW_RATE_BITS = 8_000_000
BULK_BYTES = 12_000_000
"""At the slow rate twelve seconds: whatever is done within the first three comes in the middle."""
MOVED_BYTES = 400_000
GATE = "/run/gate"
ONCE = Target(settings={"retries": 0})


@contextlib.contextmanager
def small(**changes: Any) -> Iterator[TwoHosts]:
    """Two hosts with one small disk each, and a tiny tree of every kind of node to be mirrored.

    Unless told otherwise, a run whose link fails does not try again: then its failure is what is seen.
    """
    changes.setdefault("targets", (ONCE,))
    with TwoHosts(members=1, **changes) as both:
        for job in both.jobs:
            plant(both, job)
        yield both


def plant(both: TwoHosts, job: str = "share", *, seed: int = 1) -> None:
    """Generate a tiny tree in a job's subvolume."""
    data = both.source(job) / "data"
    data.mkdir()
    tree.generate(data, seed, "tiny")


def add_bulk(both: TwoHosts, job: str = "share", *, seed: int = 2, size_bytes: int = BULK_BYTES) -> None:
    """Write data that no compression makes smaller, so that a transfer takes its time."""
    path = both.source(job) / f"bulk-{seed}"
    path.write_bytes(random.Random(seed).randbytes(size_bytes))


def change(both: TwoHosts, job: str = "share", *, seed: int = 1) -> list[str]:
    """Mutate the tree a little, and see that it was."""
    applied = tree.mutate(both.source(job) / "data", seed, ["name-rotation"])
    (both.source(job) / f"changed-{seed}").write_text(f"change {seed}\n")
    return list(applied)


def visible_backups(both: TwoHosts, job: str = "share", target: str = "daisy") -> list[str]:
    """Return the backups by name, none of them hidden; any hidden name is a failure."""
    names = both.backups(job, target)
    assert not [name for name in names if name.startswith(".")], names
    return names


def partials(both: TwoHosts, job: str = "share", target: str = "daisy") -> list[str]:
    """Return the partials by name, each with its record beside it; nothing else is hidden there."""
    hidden = [name for name in both.backups(job, target) if name.startswith(".")]
    found = [name for name in hidden if name.startswith(".partial-") and not name.endswith(".json")]
    assert hidden == sorted([*found, *(f"{name}.json" for name in found)]), hidden
    return found


def committed(both: TwoHosts, job: str = "share", target: str = "daisy") -> list[str]:
    """Return the backups by name, where a partial may lie beside them and nothing else."""
    names = [name for name in both.backups(job, target) if not name.startswith(".")]
    partials(both, job, target)
    return names


def assert_mirrored(both: TwoHosts, synced: Synced, job: str = "share", target: str = "daisy") -> str:
    """See that the snapshot which a run names is at the target, whole and equal; return its name."""
    outcome = synced.outcome(job, target)
    name = str(outcome["snapshot"])
    assert outcome["result"] in {"sent", "nothing_changed"}, outcome
    assert name in visible_backups(both, job, target)
    assert both.differences(name, job, target) == []
    return name


def words(synced: Synced) -> str:
    """Return the sentence and the hint of a run's only failure, which was no traceback."""
    assert "Traceback" not in synced.completed.stdout + synced.stderr
    (failed,) = [outcome for outcome in synced.outcomes if outcome["result"] == "failed"]
    return f"{failed['error']['message']}\n{failed['error']['hint'] or ''}"


def lasting(listing: Sequence[str]) -> list[str]:
    """Return a server's listing without the client's lock, which every run writes its name into."""
    return [line for line in listing if "/.lock " not in line]


@contextlib.contextmanager
def moving(both: TwoHosts, *arguments: str, job: str = "share") -> Iterator[Process]:
    """A sync in the middle of its transfer: a receive is at work, and bytes pass the slow link."""
    both.link.slow(SLOW_RATE_BITS)
    try:
        with both.syncing(*arguments) as process:
            wait_until_moving(both, process, job)
            yield process
    finally:
        both.link.normal()


def wait_until_moving(both: TwoHosts, process: Process, job: str = "share") -> None:
    """Wait until a receive is at work and bytes pass; raise if the run ends before."""
    before = both.bytes_on_link()

    def is_moving() -> bool:
        assert process.poll() is None, f"the transfer ended before the fault: {process.completed()}"
        # Until receive has data of the large file, a cut transfer is not worth keeping.
        written = both.backup_directory(job).glob(f"{INCOMING_PREFIX}*/bulk-*")
        return both.bytes_on_link() > before + MOVED_BYTES and any(path.stat().st_size for path in written)

    wait.until(is_moving, timeout_s=15, what="a transfer under way")
    assert faults.find(both.daisy, "btrfs receive")


def finished(process: Process, *, timeout_s: float = 60) -> Synced:
    """Wait for the end of a run and return what it reported."""
    process.wait(timeout_s)
    return Synced.of(process.completed())


def nobody_is_left(both: TwoHosts, *, timeout_s: float = 15) -> None:
    """Wait until no process of the mirror runs on either side."""

    def left() -> list[str]:
        programs = ("btrsync", "btrfs send", "btrfs receive", "ssh", "btrsync serve", "python -m btrsync")
        hosts = (host for host in (both.workstation, both.daisy) if host.is_alive)
        return [str(info) for host in hosts for program in programs for info in faults.find(host, program)]

    wait.until(lambda: not left() or None, timeout_s=timeout_s, what="no process of the mirror is left")


def bind(both: TwoHosts, forced_command: str, client: str = "workstation") -> None:
    """Let a client's key run this command on daisy, and nothing else."""
    both.daisy.write_text(sshd.AUTHORIZED_KEYS, "", mode=0o600)
    sshd.authorize(both.daisy, both.client_key(client), command=forced_command)


def pretend_old_progs(both: TwoHosts) -> None:
    """Let daisy's btrfs-progs say that they are older than they are, until a key is bound anew."""
    real = both.daisy.run(["sh", "-c", "command -v btrfs"]).stdout.strip()
    script = f'#!/bin/sh\n[ "$1" = version ] || exec {real} "$@"\necho btrfs-progs v5.10.1\n'
    both.daisy.write_text("/opt/old/btrfs", script, mode=0o755)
    bind(both, f"PATH=/opt/old:$PATH {both.forced_command()}")


def connections(both: TwoHosts) -> int:
    """Return how many forced commands daisy's sshd has started so far."""
    return both.sshd.log_text().count("Starting session: forced-command")


def gate_receive(both: TwoHosts) -> None:
    """Let every `btrfs receive` on daisy wait, when it has done its work, until `open_gate`."""
    real = both.daisy.run(["sh", "-c", "command -v btrfs"]).stdout.strip()
    script = f"""#!/bin/sh
[ "$1" = receive ] || exec {real} "$@"
{real} "$@"
status=$?
touch {GATE}.reached
until [ -e {GATE}.open ]; do sleep 0.02; done
exit $status
"""
    both.daisy.write_text("/opt/gate/btrfs", script, mode=0o755)
    bind(both, f"PATH=/opt/gate:$PATH {both.forced_command()}")


def wait_at_gate(both: TwoHosts) -> None:
    """Wait until a receive has done its work, and its subvolume is complete and hidden."""
    reached = both.daisy.path(f"{GATE}.reached")
    wait.until(reached.exists, timeout_s=20, what="a receive that has done its work")
    (name,) = [name for name in both.backups() if name.startswith(INCOMING_PREFIX)]
    flags = both.daisy.run(
        ["btrfs", "property", "get", f"/MirrorRoot/btrsync/workstation/share/{name}", "ro"]
    )
    assert flags.stdout.strip() == "ro=true"


def open_gate(both: TwoHosts) -> None:
    """Let the receives at the gate go on, and all that come after."""
    both.daisy.write_text(f"{GATE}.open", "")


def delete_subvolumes(both: TwoHosts, job: str, names: Sequence[str]) -> None:
    """Delete snapshots on the workstation by hand."""
    paths = [both.jobs[job].snapshots / name for name in names]
    both.workstation.run(["btrfs", "subvolume", "delete", *paths])


def generation(both: TwoHosts, path: str) -> int:
    """Return the generation of a subvolume of the workstation, which every committed write moves."""
    shown = both.workstation.run(["btrfs", "subvolume", "show", path]).stdout
    (line,) = [line for line in shown.splitlines() if line.strip().startswith("Generation:")]
    return int(line.split()[1])


def inode(path: os.PathLike[str]) -> int:
    """Return the inode number of a path, not following a link."""
    return os.lstat(path).st_ino
