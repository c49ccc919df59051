"""The command line as a process of its own: signals, pipes, terminals, and what is imported."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from harness import command, wait

SMALLEST = Path(__file__).parents[1] / "unit/config/valid/client-smallest.toml"
BTRSYNC = [sys.executable, "-m", "btrsync"]

WAITING = """
import pathlib, sys, time
from btrsync import cli
from btrsync.commands import config

def read_sample(which):
    try:
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

config.read_sample = read_sample
sys.exit(cli.main(["config", "sample"]))
"""

BARS = """
import sys
from btrsync.commands.bars import TerminalReporter
from btrsync.report import JobOutcome

with TerminalReporter(sys.stdout) as reporter:
    reporter.REDRAW_INTERVAL_S = 0
    reporter.step("share", "daisy", "sending it")
    for sent in range(0, 101, 10):
        reporter.progress("share", "daisy", sent << 20, 100 << 20)
        reporter.progress("share", "usb", sent << 20, None)
    reporter.warning("one warning")
    reporter.outcome(JobOutcome(job="share", target="daisy", result="nothing_changed", snapshot="snapshot-1"))
    reporter.progress("share", "usb", 200 << 20, None)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_process_with_128_and_its_number_after_a_clean_up(
    number: signal.Signals, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    with command.spawn([sys.executable, "-c", WAITING, ready]) as process:
        wait.until(ready.exists, timeout_s=20, what="the command is at work")
        os.kill(process.pid, number)
        assert process.wait(20) == 128 + number
        assert process.stdout == "cleaned up\n"
        assert process.stderr == f"btrsync: stopped by {number.name}\n"


def test_a_reader_that_leaves_early_ends_the_command_quietly_with_141() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with command.spawn([*BTRSYNC, "config", "sample"], stdout=writer) as process:
            assert process.wait(20) == 141
            assert process.stderr == ""
    finally:
        os.close(writer)


def test_a_full_disk_below_standard_output_is_told_in_one_line() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        with command.spawn([*BTRSYNC, "config", "sample"], stdout=full.fileno()) as process:
            assert process.wait(20) == 1
            assert process.stderr == "btrsync: standard output: No space left on device\n"


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=str)
def test_closed_standard_streams_harm_nothing(closed: tuple[int, ...]) -> None:
    closing = "".join(f"os.close({fd});" for fd in closed)
    script = f"import os, sys; {closing} os.execv(sys.executable, [sys.executable, '-m', 'btrsync', *sys.argv[1:]])"
    assert command.run([sys.executable, "-c", script, "config", "sample"]).returncode == 0
    done = command.run([sys.executable, "-c", script, "config", "check", "--config", "/nowhere"], ok=(3,))
    assert "there is no such file" in done.stderr or 2 in closed


def test_a_locale_without_arrows_stops_nothing() -> None:
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = "from btrsync import cli; import btrsync.commands.config as c\n"
    script += "c.read_sample = lambda which: print('a \\u2192 b') or ''\n"
    script += "raise SystemExit(cli.main(['config', 'sample']))"
    assert command.run([sys.executable, "-c", script], env=env).stdout == "a \\u2192 b\n"


def imported_by(arguments: list[str], *, status: int) -> set[str]:
    """Names of the modules that are loaded when a command line has been run."""
    script = (
        "import sys; from btrsync import cli; status = cli.main(sys.argv[1:]);"
        "print('MODULES', *sorted(sys.modules), file=sys.stderr); sys.exit(status)"
    )
    done = command.run([sys.executable, "-c", script, *arguments], ok=(status,))
    line = next(line for line in done.stderr.splitlines() if line.startswith("MODULES"))
    return set(line.split()[1:])


def test_the_forced_command_imports_neither_click_nor_rich_nor_the_client() -> None:
    # Nobody is at the other end: UnreachableError, after the banner was sent.
    loaded = imported_by(["serve", "workstation"], status=5)
    assert "btrsync.serve" in loaded
    unwanted = {"click", "rich", "tomllib", "btrsync.sync", "btrsync.remote", "btrsync.report", "asyncio"}
    assert loaded & unwanted == set()


def test_serve_with_options_goes_the_long_way_and_serves_too() -> None:
    assert "click" in imported_by(["serve", "workstation", "--root", "/nowhere"], status=5)


def test_a_sync_without_a_terminal_imports_no_rich_and_no_other_command() -> None:
    loaded = imported_by(["sync", "--config", str(SMALLEST.with_name("nowhere.toml"))], status=3)
    assert "btrsync.commands.sync" in loaded
    unwanted = {"rich", "difflib", "btrsync.commands.list", "btrsync.commands.status", "btrsync.sync"}
    assert loaded & unwanted == set()


def on_a_terminal(argv: list[str], env: dict[str, str] | None = None) -> str:
    """What a command shows on a terminal of its own, made by script(1)."""
    words = " ".join(f"'{word}'" for word in argv)
    return command.run(
        ["script", "-qec", words, "/dev/null"], env={"TERM": "xterm", "COLUMNS": "120", **(env or {})}
    ).stdout


@pytest.mark.requires("program:script")
def test_a_terminal_gets_bars_that_are_gone_at_the_end(tmp_path: Path) -> None:
    script = tmp_path / "bars.py"
    script.write_text(BARS)
    shown = on_a_terminal([sys.executable, str(script)])
    assert "share → daisy: sending it" in shown
    assert "50.0/100.0 MiB" in shown
    assert "btrsync: warning: one warning" in shown
    assert "share → daisy: nothing changed since snapshot-1" in shown
    # The cursor is shown again at the very end.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


@pytest.mark.requires("program:script")
def test_no_color_keeps_colours_off_a_terminal(tmp_path: Path) -> None:
    script = tmp_path / "table.py"
    script.write_text("from btrsync.commands.tables import show_table; show_table(['JOB'], [['share']])")
    argv = [sys.executable, str(script)]
    assert "\x1b[1m" in on_a_terminal(argv)
    assert "share" in on_a_terminal(argv, {"NO_COLOR": "1"})
    piped = command.run(argv).stdout
    assert piped == "JOB\nshare\n"
