"""Single processes: what they are given, what is kept of them, and that they end."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from btrsync.errors import CommandError, CommandNotFoundError, CommandTimeoutError
from btrsync.system import process
from harness import wait


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def read_line(fd: int) -> str:
    line = b""
    while not line.endswith(b"\n"):
        block = os.read(fd, 1)
        assert block, f"end of file after {line!r}"
        line += block
    return line.decode().strip()


def test_a_run_returns_stdout_as_bytes_and_stderr_as_text() -> None:
    done = process.run(["sh", "-c", r"printf 'a\377\n'; echo words >&2"])
    assert (done.stdout, done.stderr, done.returncode) == (b"a\xff\n", "words\n", 0)


def test_an_unexpected_status_is_an_error_with_its_last_words() -> None:
    with pytest.raises(CommandError) as caught:
        process.run(["sh", "-c", "echo first >&2; echo no such thing >&2; exit 3"])
    assert caught.value.exit.returncode == 3
    assert "exited with status 3" in str(caught.value)
    assert "no such thing" in str(caught.value)


def test_an_expected_status_other_than_zero_is_no_error() -> None:
    assert process.run(["sh", "-c", "exit 3"], ok=(0, 3)).returncode == 3


def test_a_process_killed_by_a_signal_says_which() -> None:
    with pytest.raises(CommandError, match="killed by signal 9"):
        process.run(["sh", "-c", "kill -9 $$"])


def test_input_reaches_stdin_whole_though_larger_than_any_pipe() -> None:
    sent = os.urandom(5 << 20)
    assert process.run(["cat"], input=sent).stdout == sent


def test_input_that_nobody_reads_is_no_error_of_ours() -> None:
    assert process.run(["true"], input=bytes(5 << 20)).stdout == b""


def test_without_input_stdin_is_at_its_end() -> None:
    assert process.run(["cat"]).stdout == b""


def test_only_the_last_32_kib_of_stderr_are_kept() -> None:
    done = process.run(["sh", "-c", "yes wwwwwww | head -c 200000 >&2; printf the-end >&2"])
    assert len(done.stderr) == process.STDERR_TAIL_BYTES
    assert done.stderr.endswith("the-end")


def test_stderr_that_is_not_utf8_is_still_readable() -> None:
    assert (
        process.run(["sh", "-c", r"printf 'caf\351 closed' >&2"]).stderr
        == "caf\N{REPLACEMENT CHARACTER} closed"
    )


def test_words_after_a_program_cut_its_own_stderr_are_kept_without_a_gap() -> None:
    # As `> /dev/stderr` in a shell does: it opens the file anew, and empties it.
    assert process.run(["sh", "-c", "echo first >&2; echo second >/dev/stderr; echo third >&2"]).stderr == (
        "second\nthird\n"
    )


def test_a_program_that_is_missing_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process, "USUAL_DIRECTORIES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandNotFoundError, match="btrfs: no such program") as caught:
        process.run(["btrfs", "version"])
    assert caught.value.hint == "apt install btrfs-progs"


@pytest.mark.parametrize("content", [b"", b"no program\n", b"#!/nonexistent/interpreter\n"])
def test_a_file_that_cannot_be_executed_is_named(tmp_path: Path, content: bytes) -> None:
    program = tmp_path / "program"
    program.write_bytes(content)
    program.chmod(0o755 if content else 0o644)
    with pytest.raises(CommandNotFoundError, match=str(program)):
        process.run([program])


def test_the_environment_is_built_and_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "ja_JP.UTF-8")
    monkeypatch.setenv("BTRFS_FORCE", "1")
    monkeypatch.setenv("PATH", "relative:/opt/mine:/usr/bin")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("HOME", "/root")
    said = process.run(["env"], env={"EXTRA": "1"}).stdout.decode()
    found = dict(line.split("=", 1) for line in said.splitlines())
    assert found == {
        "PATH": "/opt/mine:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "SSH_AUTH_SOCK": "/run/agent",
        "EXTRA": "1",
    }


def test_the_system_directories_are_searched_though_PATH_lacks_them(monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N802
    monkeypatch.setenv("PATH", "/nonexistent")
    assert process.run(["sh", "-c", "command -v sh"]).stdout.strip().endswith(b"/sh")


def test_a_command_is_logged_with_its_status_but_never_its_input(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    process.run(["cat", "/dev/null", "-"], input=b"secret key")
    first, last = caplog.messages
    assert first == "+ cat /dev/null -"
    assert last.startswith("cat: status 0 after ")
    assert "secret" not in caplog.text


def test_a_run_beyond_its_time_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {pid_file}; echo still here >&2; wait"
    with pytest.raises(CommandTimeoutError, match=r"did not end within 0\.3 s and was killed: still here"):
        process.run(["sh", "-c", script], timeout_s=0.3)
    wait.until(lambda: not is_running(int(pid_file.read_text())), timeout_s=10, what="the grandchild ends")


def test_a_wait_beyond_its_time_leaves_the_process_running() -> None:
    with process.spawn(["sleep", "1000"]) as child:
        with pytest.raises(CommandTimeoutError, match=r"sleep 1000 did not end within 0\.05 s"):
            child.wait(timeout_s=0.05)
        assert child.poll() is None
        child.terminate()
        assert child.wait(timeout_s=10).returncode == -15


def test_an_end_is_noticed_at_once_and_not_at_the_next_look() -> None:
    read_fd, write_fd = os.pipe()
    with process.spawn(["sh", "-c", "read line; exit 4"], stdin=read_fd) as child:
        os.close(read_fd)
        os.write(write_fd, b"go\n")
        assert child.wait(timeout_s=30).returncode == 4
    os.close(write_fd)


def test_the_exit_of_a_spawned_process_carries_its_stderr() -> None:
    with process.spawn(["sh", "-c", "echo ERROR: no >&2; exit 1"]) as child:
        exit = child.wait()
    assert str(exit) == "sh -c 'echo ERROR: no >&2; exit 1' exited with status 1: ERROR: no"


def test_leaving_the_context_ends_the_process_and_those_it_started() -> None:
    read_fd, write_fd = os.pipe()
    with process.spawn(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=write_fd) as child:
        os.close(write_fd)
        grandchild = int(read_line(read_fd))
    os.close(read_fd)
    assert not is_running(child.pid)
    wait.until(lambda: not is_running(grandchild), timeout_s=10, what="the grandchild ends")


def test_a_process_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TERMINATE_GRACE_S", 0.1)
    read_fd, write_fd = os.pipe()
    with process.spawn(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], stdout=write_fd
    ) as child:
        os.close(write_fd)
        assert read_line(read_fd) == "ready"
    os.close(read_fd)
    assert child.poll() == -9


def test_an_exception_inside_the_context_outlives_the_process() -> None:
    with pytest.raises(ZeroDivisionError), process.spawn(["sleep", "1000"]) as child:
        raise ZeroDivisionError
    assert not is_running(child.pid)
    assert child.poll() == -15


def test_a_child_has_a_session_of_its_own_and_no_terminal_to_ask_at() -> None:
    said = process.run(
        [sys.executable, "-c", "import os; print(os.getpid(), os.getsid(0), os.getpgid(0))"]
    ).stdout
    pid, session, group = said.split()
    assert pid == session == group


def test_a_child_dies_of_sigpipe_although_python_ignores_it() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with process.spawn(["yes"], stdout=write_fd) as child:
        os.close(write_fd)
        assert child.wait(timeout_s=10).returncode == -13


def test_only_the_descriptors_passed_on_are_open_in_a_child() -> None:
    read_fd, write_fd = os.pipe()
    os.set_inheritable(read_fd, True)  # as some library might
    listing = "import os; print(*sorted(map(int, os.listdir('/proc/self/fd'))))"
    out_read, out_write = os.pipe()
    with process.spawn([sys.executable, "-c", listing], stdout=out_write, pass_fds=(write_fd,)) as child:
        os.close(out_write)
        numbers = [int(word) for word in read_line(out_read).split()]
        child.wait()
    assert write_fd in numbers
    assert read_fd not in numbers
    for fd in (read_fd, write_fd, out_read):
        os.close(fd)


def test_a_standing_pipe_is_made_by_the_caller() -> None:
    with pytest.raises(ValueError, match="pipe"), process.spawn(["true"], stdout=-1):
        pass
