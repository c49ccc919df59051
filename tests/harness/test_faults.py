"""Faults of processes and disks, each seen to strike and to be put back."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from harness import command, faults, wait
from harness.filesystem import Array, mount

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.host import Host

SIZE = 256 << 20
NO_SPACE = os.strerror(errno.ENOSPC)
READ_ERROR = os.strerror(errno.EIO)
COUNTER = "import sys, time\nwhile True: print('tick', flush=True); time.sleep(0.01)"


@pytest.mark.parametrize(
    ("argv", "words", "is_found"),
    [
        (["btrfs", "receive", "-C", "/x"], "btrfs receive", True),
        (["/usr/bin/btrfs", "receive", "/x"], "btrfs receive", True),
        (["btrfs", "send", "/x"], "btrfs receive", False),
        (["ssh", "daisy", "btrfs", "receive"], "btrfs receive", False),
        (["sh", "-c", "btrfs receive /x"], "btrfs receive", False),
        (["/usr/bin/python3.11", "/opt/bin/btrsync", "serve", "workstation"], "btrsync serve", True),
        (["python3", "-I", "/opt/bin/btrsync", "serve", "workstation"], "btrsync serve", True),
        (["python3", "-c", "btrsync serve"], "btrsync serve", False),
        (["sshd: root@notty"], "sshd: root@notty", True),
        (["sshd-session: root@notty"], "sshd: root@notty", True),
        (["sshd-session: root [priv]"], "sshd: root@notty", False),
        (["nsenter", "-t", "1", "--", "btrfs", "receive"], "btrfs receive", False),
        (["nsenter", "-t", "1", "--", "btrfs", "receive"], "nsenter", False),
        (["ssh", "daisy"], "ssh", True),
        ([], "ssh", False),
    ],
)
def test_a_process_is_found_by_how_its_command_line_begins(
    argv: list[str], words: str, is_found: bool
) -> None:
    assert faults.is_match(argv, words.split()) is is_found


@pytest.mark.requires("host")
def test_only_processes_of_that_host_are_found(workstation: Host, daisy: Host) -> None:
    with workstation.spawn(["sleep", "3141"]), command.spawn(["sleep", "3141"]) as ours:
        found = faults.wait_for_process(workstation, "sleep 3141")
        assert found.pid != ours.pid
        assert faults.find(daisy, "sleep 3141") == []
        assert [info.pid for info in faults.find(workstation, "sleep 3141")] == [found.pid]


@pytest.mark.requires("host")
def test_a_killed_process_is_dead_at_once_and_others_live(workstation: Host, daisy: Host) -> None:
    with workstation.spawn(["sleep", "3142"]) as victim, daisy.spawn(["sleep", "3142"]) as other:
        faults.wait_for_process(daisy, "sleep 3142")
        faults.kill(workstation, "sleep 3142")
        assert victim.wait(5) == -signal.SIGKILL
        assert other.poll() is None


@pytest.mark.requires("host")
def test_a_process_gets_the_signal_it_is_sent(workstation: Host) -> None:
    with workstation.spawn(["sleep", "3143"]) as victim:
        faults.kill(workstation, "sleep 3143", signal.SIGTERM)
        assert victim.wait(5) == -signal.SIGTERM


@pytest.mark.requires("host")
def test_a_fault_without_a_victim_is_never_passed_over(workstation: Host) -> None:
    with pytest.raises(wait.NeverCame, match="a process 'btrfs receive' on workstation"):
        faults.kill(workstation, "btrfs receive", timeout_s=0.1)


@pytest.mark.requires("host")
def test_a_stopped_process_does_nothing_and_then_goes_on(workstation: Host) -> None:
    with workstation.spawn([sys.executable, "-c", COUNTER]) as counter:
        wait.until(lambda: counter.stdout, timeout_s=10, what="a tick")
        with faults.StoppedProcess(workstation, "python -c") as stopped:
            before = len(counter.stdout)
            with pytest.raises(wait.NeverCame):
                wait.until(lambda: len(counter.stdout) > before, timeout_s=0.3, what="a tick while stopped")
        wait.until(lambda: len(counter.stdout) > before, timeout_s=5, what="a tick afterwards")
        os.kill(stopped.pid, signal.SIGTERM)
        assert counter.wait(5) == -signal.SIGTERM, "nsenter sees the end too"


@pytest.mark.requires("host")
def test_a_stopped_process_may_die_meanwhile(workstation: Host) -> None:
    with workstation.spawn(["sleep", "3144"]) as victim:
        with faults.StoppedProcess(workstation, "sleep 3144") as stopped:
            os.kill(stopped.pid, signal.SIGKILL)
        assert victim.wait(5) == -signal.SIGKILL


@pytest.fixture
def small(daisy: Host) -> Iterator[tuple[Array, Path]]:
    with Array(2, SIZE) as array, mount(array, "/MirrorRoot", host=daisy) as path:
        yield array, path


@pytest.mark.requires("host", "btrfs")
def test_a_full_filesystem_takes_nothing_and_then_again(small: tuple[Array, Path]) -> None:
    _, path = small
    with faults.FullFilesystem(path):
        with pytest.raises(OSError, match=NO_SPACE):
            _write_synced(path / "more", 4 << 20)
        (path / "more").unlink()
    _write_synced(path / "more", 4 << 20)


@pytest.mark.requires("host", "btrfs")
def test_a_nearly_full_filesystem_takes_a_little(small: tuple[Array, Path]) -> None:
    _, path = small
    with faults.FullFilesystem(path, free_bytes=64 << 20):
        _write_synced(path / "little", 8 << 20)
        with pytest.raises(OSError, match=NO_SPACE):
            _write_synced(path / "much", 200 << 20)


def _write_synced(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        for _ in range(size_bytes >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.kernel_errors_expected
@pytest.mark.requires("host", "btrfs")
def test_a_member_with_read_errors_gives_eio_and_is_then_whole_again(
    small: tuple[Array, Path], daisy: Host
) -> None:
    array, path = small
    content = os.urandom(32 << 20)
    (path / "file").write_bytes(content)
    command.run(["sync", "-f", path])
    with faults.ReadErrors(array):
        with pytest.raises(OSError, match=READ_ERROR):
            (path / "file").read_bytes()
        stats = daisy.run(["btrfs", "device", "stats", "/MirrorRoot"]).stdout.split()
        errors = [int(stats[place + 1]) for place, word in enumerate(stats) if "read_io_errs" in word]
        assert sum(errors) > 0
    assert (path / "file").read_bytes() == content


@pytest.mark.kernel_errors_expected
@pytest.mark.requires("host", "btrfs")
def test_what_is_written_during_read_errors_is_kept(daisy: Host) -> None:
    with Array(2, SIZE, data="raid1") as array, mount(array, "/MirrorRoot", host=daisy) as path:
        old, new = os.urandom(8 << 20), os.urandom(8 << 20)
        (path / "old").write_bytes(old)
        command.run(["sync", "-f", path])
        with faults.ReadErrors(array, member=1):
            (path / "new").write_bytes(new)
            command.run(["sync", "-f", path])
            assert (path / "old").read_bytes() == old, "the other member has it"
        assert (path / "new").read_bytes() == new
        daisy.run(["btrfs", "scrub", "start", "-B", "/MirrorRoot"], ok=None)
        faults.DROP_CACHES.write_text("3\n")
        assert ((path / "old").read_bytes(), (path / "new").read_bytes()) == (old, new)
