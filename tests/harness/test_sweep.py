"""The sweep: what a dead uncontained run left is undone, and nothing else."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from pathlib import Path

import pytest

from harness import command, ledger, loop, sweep, wait
from harness.filesystem import Array, mount
from harness.identity import ProcessIdentity
from harness.loop import LoopDevice

pytestmark = pytest.mark.requires("host", "btrfs", "veth")
SESSION = Path(__file__).with_name("session.py")
REPOSITORY = Path(__file__).parent.parent.parent


def environment(directory: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(REPOSITORY), "BTRSYNC_CONTAINED": "", "BTRSYNC_LEDGER": str(directory)}


def run_sweep(directory: Path, *words: str, ok: int = 0) -> str:
    argv = [sys.executable, "-m", "harness", "sweep", *words]
    return command.run(argv, env=environment(directory), ok=(ok,)).stdout


def killed_session(directory: Path, name: str, point: Path) -> None:
    """Run a session with a mount in the present namespace, the one thing that outlives it, and kill it."""
    argv = [sys.executable, str(SESSION), name, "uncontained", str(point)]
    with command.spawn(argv, env=environment(directory)) as process:

        def is_ready() -> bool:
            assert process.poll() is None, process.stderr
            return "ready" in process.stdout

        wait.until(is_ready, timeout_s=30, what="the session")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(5)


def mounted(point: Path) -> bool:
    return any(
        line.split()[4] == str(point) for line in Path("/proc/self/mountinfo").read_text().splitlines()
    )


def loops_of(name: str) -> list[Path]:
    return [device for device, file in loop.attached().items() if name in file]


@pytest.fixture
def point(tmp_path: Path) -> Path:
    (tmp_path / "point").mkdir()
    return tmp_path / "point"


@pytest.fixture
def name() -> str:
    return f"swept{secrets.token_hex(3)}"


def test_the_sweep_removes_what_a_killed_run_left_and_only_that(
    tmp_path: Path, point: Path, name: str
) -> None:
    (tmp_path / "foreign").mkdir()
    with LoopDevice(64 << 20, name="foreign") as foreign, Array(1, 128 << 20) as array:
        with mount(array, tmp_path / "foreign") as elsewhere:
            killed_session(tmp_path / "ledger", name, point)
            assert mounted(point) and loops_of(name)
            said = run_sweep(tmp_path / "ledger")
            assert not mounted(point)
            assert not loops_of(name)
            assert f"removed: mount {point}" in said
            assert mounted(elsewhere) and foreign.device in loop.attached()
            (elsewhere / "file").write_text("still there")
    assert not (tmp_path / "ledger").exists()
    assert run_sweep(tmp_path / "ledger") == "nothing to sweep\n"


def test_a_dry_run_says_what_would_go_and_leaves_it(tmp_path: Path, point: Path, name: str) -> None:
    killed_session(tmp_path / "ledger", name, point)
    said = run_sweep(tmp_path / "ledger", "--dry-run")
    assert f"would remove: mount {point}" in said
    assert mounted(point) and loops_of(name)
    run_sweep(tmp_path / "ledger")
    assert not mounted(point)


def test_what_cannot_be_removed_stays_on_the_ledger(tmp_path: Path, point: Path, name: str) -> None:
    killed_session(tmp_path / "ledger", name, point)
    with command.spawn(["sleep", "3148"], cwd=point):
        argv = [sys.executable, "-m", "harness", "sweep"]
        failed = command.run(argv, env=environment(tmp_path / "ledger"), ok=(1,))
        assert "target is busy" in failed.stderr
    assert f"removed: mount {point}" in run_sweep(tmp_path / "ledger")


def write_ledger(directory: Path, *lines: dict[str, object], pid: int = 4_000_000) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{pid}-12345.jsonl"
    head = {"owner_pid": pid, "owner_start_ticks": 12345, "prefix": "btrsync-harness-000000-"}
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *lines)))
    return path


def swept(monkeypatch: pytest.MonkeyPatch, directory: Path) -> tuple[list[str], list[str]]:
    monkeypatch.setenv("BTRSYNC_LEDGER", str(directory))
    return sweep.sweep()


def test_a_loop_device_whose_number_went_to_somebody_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LoopDevice(64 << 20) as foreign:
        file = os.stat(foreign.backing_file)
        line = {"acquire": "loop", "serial": 1, "device": str(foreign.device)}
        write_ledger(tmp_path / "l", {**line, "file_device": file.st_dev, "inode": file.st_ino + 1})
        assert swept(monkeypatch, tmp_path / "l") == ([], [])
        # The same file, but the name shows another run.
        write_ledger(tmp_path / "l", {**line, "file_device": file.st_dev, "inode": file.st_ino})
        assert swept(monkeypatch, tmp_path / "l") == ([], [])
        assert foreign.device in loop.attached()


def test_a_mount_at_a_remembered_place_that_is_another_s_is_left(
    tmp_path: Path, point: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Array(1, 128 << 20) as array, mount(array, point):
        line = {"acquire": "mount", "serial": 1, "point": str(point), "source": str(array.devices[0])}
        write_ledger(tmp_path / "l", line)
        assert swept(monkeypatch, tmp_path / "l") == ([], [])
        assert mounted(point)


def test_a_process_that_only_has_the_same_pid_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with command.spawn(["sleep", "3149"]) as innocent:
        ticks = ProcessIdentity.of(innocent.pid).start_ticks
        line = {"acquire": "process", "serial": 1, "pid": innocent.pid, "start_ticks": ticks + 1}
        write_ledger(tmp_path / "l", line)
        assert swept(monkeypatch, tmp_path / "l") == ([], [])
        assert innocent.poll() is None
        write_ledger(tmp_path / "l", {**line, "start_ticks": ticks})
        assert swept(monkeypatch, tmp_path / "l") == ([f"host, first process {innocent.pid}"], [])
        assert innocent.wait(5) == -signal.SIGKILL


def test_a_mapping_of_the_same_name_on_other_disks_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"acquire": "mapping", "serial": 1, "name": "btrdm_01", "device": "/dev/loop7"}
    write_ledger(tmp_path / "l", line)
    assert swept(monkeypatch, tmp_path / "l") == ([], [])


def test_the_ledger_of_a_run_that_lives_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with command.spawn(["sleep", "3150"]) as owner, command.spawn(["sleep", "3151"]) as its_host:
        me, host = ProcessIdentity.of(owner.pid), ProcessIdentity.of(its_host.pid)
        line = {"acquire": "process", "serial": 1, "pid": host.pid, "start_ticks": host.start_ticks}
        path = write_ledger(tmp_path / "l", line)
        path = path.rename(path.with_name(f"{me.pid}-{me.start_ticks}.jsonl"))
        assert swept(monkeypatch, tmp_path / "l") == ([], [])
        assert its_host.poll() is None and path.exists()


def test_what_was_released_and_a_line_cut_short_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with command.spawn(["sleep", "3152"]) as innocent:
        ticks = ProcessIdentity.of(innocent.pid).start_ticks
        line = {"acquire": "process", "serial": 1, "pid": innocent.pid, "start_ticks": ticks}
        path = write_ledger(tmp_path / "l", line, {"release": "process", "serial": 1})
        with path.open("a") as file:
            file.write('{"acquire": "proc')
        assert swept(monkeypatch, tmp_path / "l") == ([], [])
        assert innocent.poll() is None


def test_a_ledger_is_there_only_while_something_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BTRSYNC_LEDGER", str(tmp_path / "l"))
    monkeypatch.delenv("BTRSYNC_CONTAINED", raising=False)
    with LoopDevice(1 << 20) as made:
        lines = [json.loads(line) for line in next((tmp_path / "l").iterdir()).read_text().splitlines()]
        assert lines[0]["owner_pid"] == os.getpid()
        assert lines[1]["acquire"] == "loop" and lines[1]["device"] == str(made.device)
        assert [entry.kind for entry in ledger.held()] == ["loop"]
    assert list((tmp_path / "l").iterdir()) == []
    assert ledger.held() == ()


def test_a_contained_run_keeps_no_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BTRSYNC_LEDGER", str(tmp_path / "l"))
    monkeypatch.setenv("BTRSYNC_CONTAINED", "1")
    with LoopDevice(1 << 20):
        assert not (tmp_path / "l").exists()
