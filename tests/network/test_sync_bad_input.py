"""What a run says of bad input: one clear sentence, its exit status, and nothing changed on either side.

All of these use the same two hosts, for each leaves them as it found them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import faults, sshd
from harness.scenario import CLIENT_FILE, KEY_FILE, Synced
from tests.network import mirror

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from harness.scenario import TwoHosts

    Breaking = Callable[[TwoHosts], AbstractContextManager[None]]

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd", "nftables")

TEXT = """
[targets.daisy]
host = "daisy"
key = "/root/.ssh/btrsync"
connect_timeout_s = 2

[jobs.share]
subvolume = "/home/foo/share"
snapshots = "/home/foo/share/snapshots"
targets = ["daisy"]
"""


@pytest.fixture(scope="module")
def mirrored() -> Iterator[TwoHosts]:
    """Two hosts with one common snapshot, and a change that was not sent yet."""
    with mirror.small() as made:
        mirror.assert_mirrored(made, made.sync())
        mirror.change(made)
        made.workstation.run(["sync", "-f", "/home/foo"])
        yield made


def refused(both: TwoHosts, breaking: AbstractContextManager[None], status: int) -> str:
    """Run while something is broken; see nothing changed on either side; return all that was said."""
    snapshots, listing = both.snapshots(), mirror.lasting(both.server_listing())
    before = mirror.generation(both, "/home/foo/share")
    with breaking:
        run = both.btrsync("sync", ok=(status,), timeout_s=30)
    said = run.stdout + run.stderr
    assert "Traceback" not in said
    assert "bug" not in said
    assert both.snapshots() == snapshots
    assert mirror.lasting(both.server_listing()) == listing
    assert mirror.generation(both, "/home/foo/share") - before <= GENERATIONS
    return said


GENERATIONS = 4
"""What making a snapshot inside the subvolume and deleting it again may move, where it came so far."""


@contextlib.contextmanager
def configured(both: TwoHosts, old: str, new: str) -> Iterator[None]:
    """The client's configuration with one thing replaced."""
    before = both.workstation.read_text(CLIENT_FILE)
    assert old in TEXT
    both.workstation.write_text(CLIENT_FILE, TEXT.replace(old, new))
    try:
        yield
    finally:
        both.workstation.write_text(CLIENT_FILE, before)


SUBVOLUME = 'subvolume = "/home/foo/share"'
SNAPSHOTS = 'snapshots = "/home/foo/share/snapshots"'
HOST = 'host = "daisy"'

CONFIGURATIONS = {
    "an unknown key": (
        HOST, 'hostname = "daisy"', 3, ["targets.daisy.hostname: unknown key; did you mean host?"]
    ),
    "two wrong types": (
        HOST, 'host = 5\nport = "many"', 3, ["targets.daisy.host: found the number 5", "targets.daisy.port: found"]
    ),
    "a subvolume that is a plain directory": (
        SUBVOLUME, 'subvolume = "/home/foo/share/data"', 8, ["/home/foo/share/data is a directory, not a subvolume"]
    ),
    "a subvolume that is missing": (
        SUBVOLUME, 'subvolume = "/home/foo/nothing"', 8, ["/home/foo/nothing does not exist"]
    ),
    "a subvolume on tmpfs": (SUBVOLUME, 'subvolume = "/run"', 8, ["/run is not on btrfs"]),
    "a subvolume on overlayfs": (SUBVOLUME, 'subvolume = "/etc"', 8, ["/etc is not on btrfs"]),
    "a snapshot directory that is missing": (
        SNAPSHOTS, 'snapshots = "/home/foo/nothing"', 8, ["/home/foo/nothing", "is not there", "mkdir /home/foo/nothing"]
    ),
    "a snapshot directory on another filesystem": (
        SNAPSHOTS, 'snapshots = "/run"', 8, ["/run is not on the filesystem of /home/foo/share, and a snapshot"]
    ),
    "a target that does not resolve": (
        HOST, 'host = "nowhere.invalid"', 5, ["nowhere.invalid: the name does not resolve"]
    ),
    "a port that refuses": (HOST, 'host = "daisy"\nport = 2', 5, ["daisy: the connection was refused"]),
    "a key that is missing": (
        'key = "/root/.ssh/btrsync"', 'key = "/root/.ssh/other"', 5, ["daisy: the key is missing", "ssh-keygen"]
    ),
    "an option that would accept any host key": (
        HOST, 'host = "daisy"\nssh_options = ["StrictHostKeyChecking=no"]', 10, ["StrictHostKeyChecking=yes is fixed"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_wrong_setting_is_told_in_a_sentence_and_nothing_is_changed(mirrored: TwoHosts, name: str) -> None:
    old, new, status, sentences = CONFIGURATIONS[name]
    said = refused(mirrored, configured(mirrored, old, new), status)
    for sentence in sentences:
        assert sentence in said, said


@contextlib.contextmanager
def read_only_snapshots(both: TwoHosts) -> Iterator[None]:
    directory = both.jobs["share"].snapshots
    both.workstation.run(["mount", "--bind", directory, directory])
    both.workstation.run(["mount", "-o", "remount,bind,ro", directory])
    yield
    both.workstation.run(["umount", directory])


@contextlib.contextmanager
def read_only_run(both: TwoHosts) -> Iterator[None]:
    both.workstation.run(["mount", "-t", "tmpfs", "-o", "ro", "none", "/run/btrsync"])
    yield
    both.workstation.run(["umount", "/run/btrsync"])


@contextlib.contextmanager
def changed_host_key(both: TwoHosts) -> Iterator[None]:
    before = both.workstation.read_text(sshd.KNOWN_HOSTS)
    other = sshd.host_key("somebody-else", "ed25519").public.split()[:2]
    both.workstation.write_text(sshd.KNOWN_HOSTS, f"daisy {' '.join(other)}\n", mode=0o600)
    yield
    both.workstation.write_text(sshd.KNOWN_HOSTS, before, mode=0o600)


@contextlib.contextmanager
def unknown_host_key(both: TwoHosts) -> Iterator[None]:
    before = both.workstation.read_text(sshd.KNOWN_HOSTS)
    both.workstation.path(sshd.KNOWN_HOSTS).unlink()
    yield
    assert not both.workstation.path(sshd.KNOWN_HOSTS).exists(), "a key was accepted"
    both.workstation.write_text(sshd.KNOWN_HOSTS, before, mode=0o600)


@contextlib.contextmanager
def refused_key(both: TwoHosts) -> Iterator[None]:
    both.client_key("stranger").install(both.workstation, KEY_FILE)
    yield
    both.client_key().install(both.workstation, KEY_FILE)


@contextlib.contextmanager
def readable_key(both: TwoHosts) -> Iterator[None]:
    both.workstation.path(KEY_FILE).chmod(0o644)
    yield
    both.workstation.path(KEY_FILE).chmod(0o600)


@contextlib.contextmanager
def key_without_forced_command(both: TwoHosts) -> Iterator[None]:
    both.daisy.write_text(sshd.AUTHORIZED_KEYS, both.client_key().public + "\n", mode=0o600)
    yield
    assert "ROOT LOGIN REFUSED FROM" in both.sshd.log_text()
    mirror.bind(both, both.forced_command())


@contextlib.contextmanager
def silent_host(both: TwoHosts) -> Iterator[None]:
    with configured(both, "connect_timeout_s = 2", "connect_timeout_s = 1"), faults.SilentLink(both.link):
        yield


def forced(words: str) -> Breaking:
    @contextlib.contextmanager
    def bound(both: TwoHosts) -> Iterator[None]:
        mirror.bind(both, words.replace("BTRSYNC", str(both.btrsync_path)))
        try:
            yield
        finally:
            mirror.bind(both, both.forced_command())

    return bound


@contextlib.contextmanager
def talkative_shell(both: TwoHosts) -> Iterator[None]:
    both.daisy.write_text("/root/.bashrc", "echo Welcome to daisy, have a nice day\n")
    yield
    both.daisy.path("/root/.bashrc").unlink()


BANNER = "instead of the btrsync banner"
SURROUNDINGS: dict[str, tuple[Breaking, int, list[str]]] = {
    "a snapshot directory on a read-only mount": (
        read_only_snapshots, 8, ["/home/foo/share/snapshots", "read-only mount"],
    ),
    "a lock directory on a read-only mount": (
        read_only_run, 8, ["cannot lock job share: /run/btrsync/share.lock: Read-only file system"],
    ),
    "a changed host key": (
        changed_host_key, 5, ["daisy: the host key has changed; it is never accepted silently", "ssh-keygen -R daisy"],
    ),
    "an unknown host key": (
        unknown_host_key, 5, ["daisy: its host key is not known; it is never accepted silently", "ssh-keyscan"],
    ),
    "a key that the server does not know": (refused_key, 5, ["daisy: the server does not accept the key"]),
    "a key that others can read": (readable_key, 5, ["can read", "chmod 600 /root/.ssh/btrsync"]),
    "a key without a forced command": (key_without_forced_command, 5, ["daisy: "]),
    "a host that swallows everything": (silent_host, 5, ["daisy: it does not answer"]),
    "a server without btrsync": (forced("/opt/nothing/btrsync serve workstation"), 5, ["the server has no btrsync"]),
    "a shell that prints first": (talkative_shell, 10, ["daisy said 'Welcome to daisy, have a nice day", BANNER]),
    "a forced command that says something else": (forced("echo hi"), 10, ["daisy said 'hi'", BANNER]),
    "a forced command that gives our words back": (
        forced("cat"), 10, ["daisy gives our own words back", "btrsync serve CLIENT"],
    ),
    "a forced command that says nothing and ends": (
        forced("true"), 5, ["daisy closed the connection before the btrsync banner", "btrsync serve CLIENT"],
    ),
    "a forced command that fails": (forced("false"), 6, ["the forced command on daisy exited with status 1"]),
    "a client name that leads elsewhere": (
        forced("BTRSYNC serve ../laptop"), 10, ["'../laptop' is not a name for a client", "serve NAME"],
    ),
    "an empty client name": (forced("BTRSYNC serve ''"), 10, ["'' is not a name for a client"]),
    "a forced command without a client": (forced("BTRSYNC serve"), 6, ["Missing argument", "CLIENT"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_wrong_surroundings_are_told_in_a_sentence_and_nothing_is_changed(
    mirrored: TwoHosts, name: str
) -> None:
    breaking, status, sentences = SURROUNDINGS[name]
    said = refused(mirrored, breaking(mirrored), status)
    for sentence in sentences:
        assert sentence in said, said


def make_writable(subvolume: Path) -> None:
    """Clear the read-only flag and nothing else. Source: linux/btrfs.h, BTRFS_IOC_SUBVOL_SETFLAGS."""
    fd = os.open(subvolume, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, 0x4008941A, struct.pack("Q", 0))
    finally:
        os.close(fd)


def test_a_writable_source_that_carries_a_received_uuid_is_refused(mirrored: TwoHosts) -> None:
    host = mirrored.workstation
    (name, *_) = mirrored.snapshots()
    snapshot = mirrored.jobs["share"].snapshots / name
    host.run(["mkdir", "/home/foo/received"])
    host.run(["sh", "-c", f"btrfs send --quiet {snapshot} | btrfs receive /home/foo/received"])
    received = Path("/home/foo/received") / name
    # By the bare ioctl: `btrfs property set -f` would drop the received UUID.
    make_writable(host.path(received))
    said = refused(mirrored, configured(mirrored, SUBVOLUME, f'subvolume = "{received}"'), 10)
    assert f"{received} is or was writable and carries a received UUID" in said
    assert "mirror a writable snapshot of it instead" in said


def test_a_job_or_target_that_is_not_configured_is_named(mirrored: TwoHosts) -> None:
    run = mirrored.btrsync("sync", "shar", ok=(3,))
    assert "there is no job 'shar'; it has share" in run.stderr
    run = mirrored.btrsync("sync", "--target", "rose", ok=(3,))
    assert "there is no target 'rose'; it has daisy" in run.stderr


def test_after_all_that_the_next_run_sends_the_change(mirrored: TwoHosts) -> None:
    synced = mirrored.sync()
    assert synced.outcome()["kind"] == "incremental"
    mirror.assert_mirrored(mirrored, synced)


def test_the_same_failures_are_told_to_programs(mirrored: TwoHosts) -> None:
    with forced("false")(mirrored):
        synced = Synced.of(mirrored.btrsync("sync", "--json", ok=(6,)))
    assert synced.report["ok"] is False
    assert synced.report["exit_status"] == 6
    assert synced.outcome()["error"]["exit_status"] == 6
    assert os.linesep not in synced.outcome()["error"]["message"]
