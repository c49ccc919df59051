"""What `btrsync serve` keeps when everything around it is asked to stop at once, or at the worst moment."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from btrsync.protocol import Abort, Bye, Committed, End, Failed, Progress
from harness import wait
from tests.kernel.test_serve import connected, cut, ended, equal
from tests.kernel.test_serve_partials import kept, names, often

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.test_serve import Place

pytest_plugins = ["tests.kernel.test_serve"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process was sent a signal that it blocks: ShdPnd in proc(5)."""
    with open(f"/proc/{pid}/status") as file:
        (mask,) = [int(line.split()[1], 16) for line in file if line.startswith("ShdPnd:")]
    return bool(mask >> (number - 1) & 1)


def wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let `btrfs receive` be a shell script, in which $REAL is the true one."""
    real = shutil.which("btrfs")
    path = tmp_path / "wrapped" / "btrfs"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nREAL={real}\nif [ "$1" = receive ]; then\n{script}\nfi\nexec $REAL "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def test_a_server_asked_to_stop_while_it_commits_ends_that_first(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = tmp_path / "ready"
    wrapped(tmp_path, monkeypatch, f'$REAL "$@"; status=$?; touch {ready}; sleep 1; exit $status')
    stream = place.stream("s1")
    with connected(place) as client:
        client.hello()
        client.begin(place.begin("s1"))
        client.data(stream)
        client.wire.send(End(len(stream)))
        wait.until(ready.exists, timeout_s=10, what="the end of receive")
        os.kill(client.server.pid, signal.SIGTERM)
        assert ended(client) == 128 + signal.SIGTERM
    assert names(place) == ["s1"]
    equal(place, "s1")


@pytest.mark.requires("program:strace")
def test_a_backup_that_is_there_is_not_told_as_failed_when_its_mount_does_not_go(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    python = tmp_path / "python"
    strace = f"strace -o {trace} -e trace=umount2 -e inject=umount2:error=EIO:when=1"
    python.write_text(f'#!/bin/sh\nexec {strace} {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with connected(place) as client:
        client.hello()
        assert isinstance(client.send(place.begin("s1"), place.stream("s1")), Committed)
        client.wire.send(Bye())
        assert ended(client) == 0
    assert "EIO" in trace.read_text()
    equal(place, "s1")


def test_where_a_whole_session_is_asked_to_stop_what_came_is_kept(place: Place) -> None:
    with connected(place) as client:
        client.hello()
        client.begin(place.begin("s1"))
        client.data(cut(place.stream("s1")))
        wait.until(lambda: list(place.root.glob("*/*/.incoming-*/file-5")), timeout_s=10, what="data")
        # As systemd does to all that a session, or a service, has started.
        (receive,) = children(client.server.pid)
        os.kill(receive, signal.SIGTERM)
        assert is_pending(receive, signal.SIGTERM), "it has come, and waits"
        os.kill(client.server.pid, signal.SIGTERM)
        while isinstance(message := client.wire.receive(), Progress):
            pass
        assert isinstance(message, Failed)
        assert message.kept_bytes > 0
        assert ended(client) == 128 + signal.SIGTERM
    assert kept(place).offset_bytes == message.kept_bytes


def test_what_an_earlier_checkpoint_kept_is_told_when_the_last_one_fails(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    # The second piece comes to its end, and fails.
    wrapped(
        tmp_path,
        monkeypatch,
        f"echo >> {count}; [ $(wc -l < {count}) -lt 2 ] || {{ cat > /dev/null; exit 1; }}",
    )
    stream = place.stream("s1")
    with connected(place, config=often(place, tmp_path, checkpoint_bytes=400_000)) as client:
        client.hello()
        client.begin(place.begin("s1"))
        client.data(stream[: 6 * len(stream) // 10])
        while not isinstance(message := client.wire.receive(), Progress) or not message.offset_bytes:
            pass
        client.wire.send(Abort("enough"))
        failed = client.expect(Failed)
        entry = kept(place)
        assert failed.kept_bytes == entry.offset_bytes
