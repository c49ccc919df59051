"""The harness's door for processes."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from harness import command, processes, wait


def test_a_command_gives_back_what_it_said_and_its_status() -> None:
    done = command.run(["sh", "-c", "echo out; echo err >&2; exit 3"], ok=(3,))
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_a_command_that_fails_is_told_with_all_it_said() -> None:
    with pytest.raises(command.CommandFailed) as failed:
        command.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    for words in ("exit status 3, not 0", "stdout: out", "stderr: err", "command: sh -c"):
        assert words in str(failed.value)


def test_any_status_is_allowed_on_request() -> None:
    assert command.run(["sh", "-c", "kill -KILL $$"], ok=None).returncode == -signal.SIGKILL


def test_a_command_reads_its_input_and_otherwise_nothing() -> None:
    assert command.run(["cat"], input="words").stdout == "words"
    assert command.run(["cat"], input=b"\xff").stdout == "\udcff"
    assert command.run(["cat"]).stdout == ""


def test_a_command_that_takes_too_long_is_killed_with_its_children() -> None:
    with pytest.raises(command.CommandFailed, match="still ran after"):
        command.run(["sh", "-c", "sleep 3133 & sleep 3133"], timeout_s=0.2)
    wait.until(
        lambda: not [info for info in processes.everything().values() if info.argv == ("sleep", "3133")],
        timeout_s=5,
        what="the end of both sleeps",
    )


def test_a_program_that_is_not_there_is_no_command_failure() -> None:
    with pytest.raises(FileNotFoundError):
        command.run(["no-such-program-here"])


def test_the_environment_is_built_and_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "ed")
    lines = command.run(["env"], env={"EXTRA": "1"}).stdout.splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert {"PATH", "LANG", "HOME", "EXTRA"} <= names
    assert "EDITOR" not in names


def test_a_large_output_does_not_block() -> None:
    size = 3_000_000
    program = f"import sys; sys.stderr.write('e' * {size}); sys.stdout.write('o' * {size})"
    done = command.run([sys.executable, "-c", program])
    assert (len(done.stdout), len(done.stderr)) == (size, size)


def test_a_started_command_is_ended_on_leaving() -> None:
    with command.spawn(["sleep", "3134"]) as process:
        assert process.poll() is None
    assert process.poll() == -signal.SIGTERM


def test_a_command_that_ignores_the_request_to_end_is_killed() -> None:
    with command.spawn(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]) as process:
        wait.until(lambda: process.stdout == "ready\n", timeout_s=5, what="the trap")
        assert process.end(grace_s=0.2) == -signal.SIGKILL


def test_a_stopped_command_is_ended_too() -> None:
    with command.spawn(["sleep", "3135"]) as process:
        os.kill(process.pid, signal.SIGSTOP)
    assert process.poll() == -signal.SIGTERM


def test_what_a_started_command_says_can_be_read_while_it_runs() -> None:
    with command.spawn(["sh", "-c", "echo now; exec sleep 3136"]) as process:
        assert wait.until(lambda: process.stdout, timeout_s=5, what="a word") == "now\n"
        assert process.poll() is None


def test_a_wait_says_what_was_seen_last() -> None:
    seen = iter(range(1000))
    with pytest.raises(wait.NeverCame, match=r"the end: not within 0.05 s; last seen: 0"):
        wait.until(lambda: next(seen) * 0, timeout_s=0.05, what="the end")


def test_a_wait_returns_what_the_condition_returned() -> None:
    answers = iter([None, "", "here"])
    assert wait.until(lambda: next(answers), timeout_s=5, what="an answer") == "here"
