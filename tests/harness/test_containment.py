"""A session killed at any moment leaves no loop device, mount, namespace or process."""

from __future__ import annotations

import os
import random
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import command, containment, loop, processes, wait

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.requires("containment", "host", "btrfs", "veth")
SESSION = Path(__file__).with_name("session.py")
REPOSITORY = Path(__file__).parent.parent.parent
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "BTRSYNC_CONTAINED": ""}
GONE_S = 5.0


def start(name: str, how: str, *here: str, env: dict[str, str] | None = None) -> command.Process:
    argv = [sys.executable, str(SESSION), name, how, *here]
    return command.Process(argv, env={**ENVIRONMENT, **(env or {})})


def wait_until_ready(process: command.Process) -> None:
    def is_ready() -> bool:
        assert process.poll() is None, process.stderr
        return "ready" in Path(f"/proc/{process.pid}/fd/1").read_text()

    wait.until(is_ready, timeout_s=30, what="the session", interval_s=0.02)


def remains(name: str) -> list[str]:
    """Everything of that name, and every namespace that only such a process is in."""
    found = [str(info) for info in processes.everything().values() if any(name in word for word in info.argv)]
    found += [f"{device} {file}" for device, file in loop.attached().items() if name in file]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    return found


def assert_nothing_remains(name: str) -> None:
    last: list[str] = []

    def is_clean() -> bool:
        last[:] = remains(name)
        return not last

    try:
        wait.until(is_clean, timeout_s=GONE_S, what="nothing left", interval_s=0.02)
    except wait.NeverCame:
        pytest.fail(f"left behind: {last}")


def tree(pid: int) -> list[int]:
    return [pid, *sorted(processes.descendants(pid))]


@pytest.fixture
def name() -> str:
    return f"killed{secrets.token_hex(3)}"


def the_keeper(pids: list[int]) -> int:
    return pids[0]


def unshare_itself(pids: list[int]) -> int:
    return pids[1]


def the_first_process(pids: list[int]) -> int:
    return pids[2]


@pytest.mark.parametrize("choose", [the_keeper, unshare_itself, the_first_process])
def test_a_contained_session_killed_leaves_nothing(choose: Callable[[list[int]], int], name: str) -> None:
    process = start(name, "contained")
    try:
        wait_until_ready(process)
        assert len(remains(name)) > 6
        os.kill(choose(tree(process.pid)), signal.SIGKILL)
        process.wait(GONE_S)
        assert_nothing_remains(name)
    finally:
        process.end()
        process.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_contained_session_killed_while_it_is_set_up_leaves_nothing(seed: int, name: str) -> None:
    process = start(name, "contained")
    try:
        # No readiness is waited for: the moment is what the test is about.
        time.sleep(random.Random(seed).uniform(0.0, 1.2))
        os.kill(process.pid, signal.SIGKILL)
        process.wait(GONE_S)
        assert_nothing_remains(name)
    finally:
        process.end()
        process.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_contained_session_ends_when_it_is_asked_to(number: signal.Signals, name: str) -> None:
    process = start(name, "contained")
    try:
        wait_until_ready(process)
        os.kill(process.pid, number)
        assert process.wait(GONE_S) in (128 + number, 1)
        assert_nothing_remains(name)
    finally:
        process.end()
        process.close()


def test_hosts_of_an_uncontained_session_die_with_it_too(name: str, tmp_path: Path) -> None:
    process = start(name, "uncontained", env={"BTRSYNC_LEDGER": str(tmp_path / "ledger")})
    try:
        wait_until_ready(process)
        process.kill()
        process.wait(GONE_S)
        assert_nothing_remains(name)
    finally:
        process.end()
        process.close()


def contained(*argv: str, ok: int = 0) -> str:
    program = "import sys; from harness import containment; raise SystemExit(containment.run(sys.argv[1:]))"
    done = command.run([sys.executable, "-c", program, *argv], env=ENVIRONMENT, ok=(ok,))
    return done.stdout


def test_a_contained_command_has_our_output_and_gives_its_status() -> None:
    assert contained("sh", "-c", "echo words; exit 7", ok=7) == "words\n"


def test_a_contained_command_killed_by_a_signal_gives_128_more() -> None:
    contained("sh", "-c", "kill -SEGV $$", ok=128 + signal.SIGSEGV)


def test_a_contained_command_sees_its_own_processes_only_with_tini_first() -> None:
    names = [line.split()[1] for line in contained("ps", "-e", "-o", "pid=,comm=").splitlines()]
    assert names[0] in ("tini-static", "tini")
    assert names[1:] == ["ps"]


def test_a_mount_of_a_contained_command_is_not_seen_outside(tmp_path: Path) -> None:
    contained("sh", "-c", f"mount -t tmpfs planted {tmp_path} && touch {tmp_path}/file")
    assert list(tmp_path.iterdir()) == []


def test_a_contained_command_knows_it() -> None:
    said = contained(
        sys.executable, "-c", "from harness import containment as c; print(c.is_contained(), c.keeper_pid())"
    )
    flag, pid = said.split()
    assert flag == "True" and int(pid) > 1
    assert containment.problem() is None
