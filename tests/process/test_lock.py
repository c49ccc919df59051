"""Locks between real processes: who waits, who is named, who may be ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from btrsync.errors import LockedError
from btrsync.system import lock, process
from btrsync.system.lock import Lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from btrsync.system.process import Process

HOLD = """
import signal, sys
from pathlib import Path
from btrsync.system.lock import Lock
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
with Lock(Path(sys.argv[1]), "job share", run_id=sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_holder(path: Path, run_id: str = "", *words: str) -> Iterator[tuple[Process, int]]:
    """Another process that holds the lock; it lets go when the descriptor yielded with it is closed."""
    out_read, out_write = os.pipe()
    in_read, in_write = os.pipe()
    argv = [sys.executable, "-c", HOLD, str(path), run_id, *words]
    try:
        with process.spawn(argv, stdin=in_read, stdout=out_write) as holder:
            os.close(out_write)
            os.close(in_read)
            assert os.read(out_read, 100) == b"held\n", holder.stderr_tail()
            yield holder, in_write
    finally:
        os.close(out_read)
        os.close(in_write)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def test_a_lock_names_its_holder_while_it_is_held(path: Path) -> None:
    with Lock(path, "job share", run_id="run-1"):
        holder = lock.holder(path)
        assert holder is not None
        assert (holder.pid, holder.run_id) == (os.getpid(), "run-1")
        assert holder.is_alive
        written = json.loads(path.read_text())
        assert sorted(written) == ["pid", "run_id", "since", "started_ticks"]
    assert lock.holder(path) is None


def test_nobody_holds_a_lock_that_was_never_taken(path: Path) -> None:
    assert lock.holder(path) is None
    assert not path.exists()


def test_a_lock_file_stays_when_the_lock_is_let_go(path: Path) -> None:
    with Lock(path, "job share"):
        inode = path.stat().st_ino
    assert path.stat().st_ino == inode
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_second_holder_is_refused_with_the_name_of_the_first(path: Path) -> None:
    with another_holder(path) as (holder, _):
        with pytest.raises(LockedError, match=rf"^job share: busy since 20.*\+00:00, pid {holder.pid}$"):
            Lock(path, "job share").__enter__()


def test_the_refused_one_leaves_the_holders_words_alone(path: Path) -> None:
    with another_holder(path, "run-1"):
        before = path.read_bytes()
        with pytest.raises(LockedError):
            Lock(path, "job share").__enter__()
        assert path.read_bytes() == before


def test_one_process_cannot_hold_a_lock_twice(path: Path) -> None:
    with Lock(path, "job share"), pytest.raises(LockedError, match=f"pid {os.getpid()}"):
        Lock(path, "job share").__enter__()


def test_waiting_ends_when_the_holder_lets_go(path: Path) -> None:
    looks = 0
    with another_holder(path) as (_, held_by):

        def let_go_at_the_third_look() -> None:
            nonlocal looks
            looks += 1
            if looks == 3:
                with open(os.devnull, "rb") as nothing:
                    os.dup2(nothing.fileno(), held_by)  # closes the pipe, and leaves a number to close

        with Lock(path, "job share", wait_s=30, on_wait=let_go_at_the_third_look):
            found = lock.holder(path)
            assert found is not None
            assert found.pid == os.getpid()
    assert looks >= 3


def test_waiting_ends_at_its_deadline_and_says_who_holds_on(path: Path) -> None:
    looks: list[float] = []
    with another_holder(path) as (holder, _):
        began = time.monotonic()
        with pytest.raises(LockedError, match=f"pid {holder.pid}"):
            Lock(path, "job share", wait_s=0.6, on_wait=lambda: looks.append(time.monotonic())).__enter__()
        assert 0.6 <= time.monotonic() - began < 5
    assert len(looks) >= 4


def test_a_holder_that_was_killed_holds_no_more(path: Path) -> None:
    with another_holder(path) as (holder, _):
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, though nobody has asked for it yet
        assert b'"pid"' in path.read_bytes()  # it could not wipe its name
        assert lock.holder(path) is None
        with Lock(path, "job share"):
            pass


def test_a_pid_that_now_belongs_to_another_process_is_no_holder(path: Path) -> None:
    path.write_text(json.dumps({"pid": os.getpid(), "started_ticks": 1, "since": "2026", "run_id": "r"}))
    assert lock.holder(path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": 1}', '{"pid": "x"}', "\0" * 10])
def test_what_is_not_a_holder_is_nobody(path: Path, content: str) -> None:
    path.write_text(content)
    assert lock.holder(path) is None
    with Lock(path, "job share"):
        assert lock.holder(path) is not None


def test_a_lock_is_not_followed_through_a_symbolic_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        Lock(path, "job share").__enter__()
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_child_does_not_inherit_the_lock(path: Path) -> None:
    with Lock(path, "job share"):
        child = process.spawn(["sleep", "1000"])
        child.__enter__()
    with Lock(path, "job share"):
        pass
    child.__exit__(None, None, None)


def test_an_error_inside_lets_the_lock_go(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lock(path, "job share"):
        raise ZeroDivisionError
    with Lock(path, "job share"):
        pass


# Eviction.


def test_the_holder_of_our_own_run_is_ended_and_the_lock_free(path: Path) -> None:
    with another_holder(path, "run-1") as (holder, _):
        assert lock.evict(path, "run-1")
        assert holder.wait(timeout_s=10).returncode == -signal.SIGTERM
        with Lock(path, "job share"):
            pass


def test_a_holder_that_does_not_listen_is_killed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "EVICTION_GRACE_S", 0.5)
    looks: list[None] = []
    with another_holder(path, "run-1", "stubborn") as (holder, _):
        assert lock.evict(path, "run-1", on_wait=lambda: looks.append(None))
        assert holder.wait(timeout_s=10).returncode == -signal.SIGKILL
    assert looks


@pytest.mark.parametrize(("theirs", "ours"), [("run-1", "run-2"), ("run-1", ""), ("", "")])
def test_the_holder_of_another_run_is_left_alone(path: Path, theirs: str, ours: str) -> None:
    with another_holder(path, theirs) as (holder, _):
        assert not lock.evict(path, ours)
        assert holder.poll() is None
        with pytest.raises(LockedError):
            Lock(path, "job share").__enter__()


def test_a_process_that_is_named_but_holds_nothing_is_left_alone(path: Path) -> None:
    with another_holder(path, "run-1") as (holder, _):
        elsewhere = path.with_name("other")
        elsewhere.write_bytes(path.read_bytes())
        assert lock.holder(elsewhere) is not None
        assert not lock.evict(elsewhere, "run-1")
        assert holder.poll() is None


def test_a_pid_that_now_belongs_to_another_process_is_left_alone(path: Path) -> None:
    with another_holder(path, "run-1") as (holder, _):
        words = json.loads(path.read_text())
        with process.spawn(["sleep", "1000"]) as bystander:
            path.write_text(json.dumps({**words, "pid": bystander.pid}))
            assert not lock.evict(path, "run-1")
            assert bystander.poll() is None
        assert holder.poll() is None


def test_we_never_end_ourselves(path: Path) -> None:
    with Lock(path, "job share", run_id="run-1"):
        assert not lock.evict(path, "run-1")


def test_there_is_nobody_to_end_where_nobody_holds_the_lock(path: Path) -> None:
    assert not lock.evict(path, "run-1")
    with Lock(path, "job share", run_id="run-1"):
        pass
    assert not lock.evict(path, "run-1")


OWN_DIRECTORY = """
import sys
from pathlib import Path
from btrsync.system.lock import own_directory
with own_directory(Path(sys.argv[1]), "ssh-") as made:
    (made / "0").touch()
    print(made, flush=True)
    sys.stdin.read()
"""


@contextmanager
def anothers_directory(parent: Path) -> Iterator[tuple[Process, Path]]:
    """Another process with a directory of its own below `parent`."""
    with contextlib.ExitStack() as stack:
        out_read, out_write = os.pipe()
        in_read, in_write = os.pipe()
        for fd in (out_read, out_write, in_read, in_write):
            stack.callback(os.close, fd)
        argv = [sys.executable, "-c", OWN_DIRECTORY, str(parent)]
        owner = stack.enter_context(process.spawn(argv, stdin=in_read, stdout=out_write))
        yield owner, Path(os.read(out_read, 4096).decode().strip())


def test_what_a_killed_process_left_of_its_own_directory_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "ssh-somebodys").mkdir()
    with anothers_directory(tmp_path) as (_, living), anothers_directory(tmp_path) as (owner, dead):
        owner.kill()
        owner.wait(5)
        assert (dead / "0").exists()
        with lock.own_directory(tmp_path, "ssh-") as ours:
            assert set(tmp_path.iterdir()) == {tmp_path / "ssh-somebodys", living, ours}
            assert (living / "0").exists()
            assert ours.stat().st_mode & 0o777 == 0o700
        assert set(tmp_path.iterdir()) == {tmp_path / "ssh-somebodys", living}
