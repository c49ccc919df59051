"""The pytest plugin, by sessions that pass, fail, skip, leak and hang on purpose."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import command, processes, wait

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.command import Completed

REPOSITORY = Path(__file__).parent.parent.parent
LEFT = "left behind by this session"
HEAD = "import os, signal, sys, time, pathlib, pytest\n"


def plant(directory: Path, body: str) -> None:
    (directory / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    (directory / "conftest.py").write_text('pytest_plugins = ["harness.plugin"]\n')
    (directory / "test_planted.py").write_text(HEAD + textwrap.dedent(body))


def environment(**more: str) -> dict[str, str]:
    ours = {"PYTHONPATH": str(REPOSITORY), "BTRSYNC_CONTAINED": "", "CI": "", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**ours, **more}


def session(directory: Path, body: str, *words: str, ok: int | None = 0, **env: str) -> Completed:
    plant(directory, body)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words, str(directory)]
    allowed = None if ok is None else (ok,)
    return command.run(argv, cwd=directory, env=environment(**env), ok=allowed, timeout_s=90)


needs_containment = pytest.mark.requires("containment")
needs_hosts = pytest.mark.requires("containment", "host", "btrfs")


@needs_containment
def test_a_session_is_contained_and_its_words_and_status_pass_through(tmp_path: Path) -> None:
    body = """
    from harness import containment
    def test_inside():
        assert containment.is_contained()
        print("words of", os.getpid())
        assert os.getppid() == 1
    """
    done = session(tmp_path, body, "-s")
    assert "words of" in done.stdout and "1 passed" in done.stdout
    assert "harness: contained: yes" in done.stdout
    assert done.stdout.count("test session starts") == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("def test_no(): pytest.exit('enough', returncode=7)", 7),
        ("def test_no(): os.kill(os.getpid(), signal.SIGSEGV)", 128 + signal.SIGSEGV),
    ],
)
@needs_containment
def test_every_status_of_a_session_passes_through(body: str, status: int, tmp_path: Path) -> None:
    session(tmp_path, body, ok=status)


@needs_containment
def test_containment_can_be_switched_off(tmp_path: Path) -> None:
    body = """
    from harness import containment
    def test_outside():
        assert not containment.is_contained()
    """
    done = session(tmp_path, body, "--no-isolate")
    assert "harness: contained: no: --no-isolate" in done.stdout


@contextmanager
def running(
    directory: Path, body: str, *words: str, stdin: int = command.DEVNULL
) -> Iterator[command.Process]:
    plant(directory, body)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", *words, str(directory)]
    with command.spawn(argv, cwd=directory, env=environment(), stdin=stdin) as process:
        yield process


HANGS = """
def test_hangs():
    print("hanging", flush=True)
    time.sleep(3145)
"""


@pytest.mark.parametrize(("number", "statuses"), [(signal.SIGINT, (2,)), (signal.SIGTERM, (128 + 15,))])
@needs_containment
def test_a_session_that_hangs_ends_when_it_is_asked_to(
    number: signal.Signals, statuses: tuple[int, ...], tmp_path: Path
) -> None:
    with running(tmp_path, HANGS) as process:
        wait.until(lambda: "hanging" in process.stdout, timeout_s=20, what="the hang")
        inside = set(processes.descendants(process.pid))
        os.kill(process.pid, number)
        assert process.wait(10) in statuses
        assert not inside & set(processes.everything())


@needs_containment
def test_a_session_killed_leaves_no_process(tmp_path: Path) -> None:
    with running(tmp_path, HANGS) as process:
        wait.until(lambda: "hanging" in process.stdout, timeout_s=20, what="the hang")
        inside = set(processes.descendants(process.pid))
        assert len(inside) >= 3
        os.kill(process.pid, signal.SIGKILL)
        wait.until(lambda: not inside & set(processes.everything()), timeout_s=5, what="the end of all")


LEAKS = {
    "small things": (
        """
        from harness import command
        from harness.loop import LoopDevice
        KEPT = LoopDevice(1 << 20, name="planted")
        def test_leaks():
            command.run(["sh", "-c", "setsid sleep 3146 >/dev/null 2>&1 </dev/null &"])
            command.run(["mount", "-t", "tmpfs", "planted", "/mnt"])
            os.open("/etc/passwd", os.O_RDONLY)
            KEPT.__enter__()
        """,
        (
            "process ",
            "open descriptor /etc/passwd",
            "loop device /dev/loop",
            "mount /mnt (tmpfs from planted)",
        ),
    ),
    "hosts": (
        """
        from harness import command
        from harness.host import Host
        KEPT = Host("planted")
        def test_leaks():
            KEPT.__enter__()
            command.run(["mount", "-t", "tmpfs", "planted", "/run"])
            command.run(["ip", "netns", "add", "planted"])
        """,
        ("namespace net:[", "namespace /run/netns/planted", "host_init.py"),
    ),
}


@pytest.mark.parametrize("kind", LEAKS)
@needs_hosts
def test_a_session_that_leaves_something_behind_fails_and_names_it(kind: str, tmp_path: Path) -> None:
    body, expected = LEAKS[kind]
    done = session(tmp_path, body, ok=1)
    assert "1 passed" in done.stdout
    left = done.stdout[done.stdout.index(LEFT) :]
    assert [words for words in expected if words not in left] == []


def test_an_uncontained_session_that_leaves_something_behind_fails_too(tmp_path: Path) -> None:
    body = "from harness import command\nKEPT = []\ndef test_leaks(): KEPT.append(command.Process(['sleep', '3147']))"
    done = session(tmp_path, body, "--no-isolate", "-W", "ignore", ok=1)
    assert "sleep 3147" in done.stdout[done.stdout.index(LEFT) :]
    for info in processes.everything().values():
        if info.argv == ("sleep", "3147"):
            os.kill(info.pid, signal.SIGKILL)


@needs_hosts
def test_a_clean_session_with_hosts_and_arrays_passes(tmp_path: Path) -> None:
    body = """
    def test_all(workstation, daisy, link, daisy_sshd, array, mirror_root, loop_device):
        (mirror_root / "file").write_text("words")
        assert daisy.run(["cat", "/MirrorRoot/file"]).stdout == "words"
        assert daisy_sshd.pid and link.carrier() == 1 and loop_device.device.exists()
        assert workstation.is_alive and array.uuid
    """
    done = session(tmp_path, body)
    assert "1 passed" in done.stdout and LEFT not in done.stdout


MISSING = """
@pytest.mark.requires("program:no-such-program", "loop", "program:nor-this-one")
def test_needs_much(): pass
"""


def test_a_test_that_misses_something_is_skipped_with_every_reason(tmp_path: Path) -> None:
    done = session(tmp_path, MISSING, "--no-isolate", "-rs")
    reason = (
        "missing: program:no-such-program (no no-such-program on PATH); program:nor-this-one (no nor-this-one"
    )
    assert "1 skipped" in done.stdout and reason in done.stdout
    assert "harness: off: program:no-such-program" in done.stdout


@pytest.mark.requires("loop")
def test_a_test_that_misses_something_fails_in_ci(tmp_path: Path) -> None:
    done = session(tmp_path, MISSING, "--no-isolate", ok=1, CI="true")
    assert "1 error" in done.stdout and "missing: program:no-such-program" in done.stdout
    assert "harness: on: loop" in done.stdout


def test_a_name_that_nobody_knows_is_an_error_and_no_skip(tmp_path: Path) -> None:
    done = session(tmp_path, '@pytest.mark.requires("btrsf")\ndef test_x(): pass', "--no-isolate", ok=None)
    assert done.returncode != 0 and "no such name: btrsf" in done.stdout + done.stderr


def test_a_test_for_guests_is_deselected_here_and_run_there(tmp_path: Path) -> None:
    body = "@pytest.mark.vm\ndef test_guest(): pass\ndef test_host(): pass"
    assert "1 passed, 1 deselected" in session(tmp_path, body, "--no-isolate").stdout
    assert "2 passed" in session(tmp_path, body, "--no-isolate", BTRSYNC_VM="1").stdout


PROVOKES = """
from harness import command
from harness.filesystem import mount
{marker}
def test_provokes(daisy, array):
    with pytest.raises(command.CommandFailed):
        with mount(array, "/MirrorRoot", host=daisy, options="space_cache"):
            pass
"""


@pytest.mark.requires("containment", "host", "btrfs", "kernel_log")
@pytest.mark.kernel_errors_expected
def test_what_the_kernel_says_is_held_against_a_test_unless_it_expects_that(tmp_path: Path) -> None:
    done = session(tmp_path, PROVOKES.format(marker=""), ok=1)
    assert (
        "the kernel said during this test" in done.stdout and "cannot disable free-space-tree" in done.stdout
    )
    expected = PROVOKES.format(marker="@pytest.mark.kernel_errors_expected")
    assert "1 passed" in session(tmp_path, expected).stdout


@needs_hosts
def test_a_kept_wreck_can_be_entered_from_another_terminal(tmp_path: Path) -> None:
    body = """
    def test_fails(workstation, daisy):
        assert False, "as planned"
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with running(tmp_path, body, "--keep", stdin=read_end) as process:
        os.close(read_end)
        wait.until(lambda: "goes on and takes them down" in process.stdout, timeout_s=20, what="the pause")
        line = next(line for line in process.stdout.splitlines() if line.endswith(" daisy"))
        assert "as planned" in process.stdout
        said = command.run([*line.split(), "hostname"], env=environment())
        assert said.stdout == "daisy\n"
        unknown = command.run([*line.split()[:-1], "lily"], env=environment(), ok=(1,))
        assert "has no host lily; it has: " in unknown.stderr
        os.write(write_end, b"\n")
        assert process.wait(20) == 1
    os.close(write_end)
