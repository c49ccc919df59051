"""Reports: exit statuses by rule, lines for people, JSON for programs."""

from __future__ import annotations

import errno
import io
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from btrsync.errors import ConflictError, NoSpaceError, UnreachableError
from btrsync.plan.sizes import format_size
from btrsync.report import (
    ErrorReport,
    JobOutcome,
    JobSurvey,
    NullReporter,
    PlainReporter,
    RunReport,
    SnapshotRow,
    format_outcome,
    format_progress,
    format_seconds,
    format_table,
    run_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STARTED = datetime(2026, 11, 22, 21, 30, tzinfo=UTC)
NAME = "snapshot-20261122213000"
EARLIER = "snapshot-20261121213000"
MIB = 1 << 20

SENT = JobOutcome(
    job="share", target="daisy", result="sent", kind="incremental", snapshot=NAME, send_parent=EARLIER,
    bytes_sent=12_900_000, bytes_written=31_600_000, files=214, seconds=4.02,
    largest=(("photos/new.raw", 30 * MIB), ("notes \\n of today", 12_345)),
)  # fmt: skip
SENT_ON = JobOutcome(
    job="share", target="daisy", result="sent", kind="incremental", snapshot=NAME, send_parent=EARLIER,
    bytes_sent=12_900_000, bytes_written=100_000_000, resumed_from_bytes=43_900_000, seconds=4.02,
)  # fmt: skip
SENT_NAMES = JobOutcome(
    job="share", target="daisy", result="sent", kind="incremental", snapshot=NAME, send_parent=EARLIER,
    bytes_sent=700, bytes_written=0, seconds=0.3,
)  # fmt: skip
SENT_IN_FULL = JobOutcome(
    job="share", target="usb", result="sent", kind="full", snapshot=NAME, bytes_sent=3 << 40, seconds=7384.0
)
UNCHANGED = JobOutcome(job="home", target="daisy", result="nothing_changed", snapshot=EARLIER)
WOULD_SEND = JobOutcome(
    job="share", target="daisy", result="would_send", kind="incremental", send_parent=EARLIER
)
WOULD_SEND_ALL = JobOutcome(job="share", target="usb", result="would_send", kind="full", snapshot=NAME)
WOULD_SEND_SO_MUCH = JobOutcome(
    job="share", target="daisy", result="would_send", kind="incremental", snapshot=NAME, send_parent=EARLIER,
    files=214, bytes_written=1_400_000_000,
)  # fmt: skip
WOULD_SEND_THE_REST = JobOutcome(
    job="share", target="usb", result="would_send", kind="full", snapshot=NAME, files=1, bytes_written=1000,
    resumed_from_bytes=430,
)  # fmt: skip
FETCHED = JobOutcome(
    job="share", target="daisy", result="fetched", kind="incremental", snapshot=NAME, send_parent=EARLIER,
    bytes_sent=700_000, bytes_written=1_400_000, resumed_from_bytes=140_000, seconds=2.0,
    detail="3.2 MiB of clones from the parent were written as data",
)  # fmt: skip
WOULD_FETCH = JobOutcome(
    job="share", target="usb", result="would_fetch", kind="full", snapshot=NAME, bytes_written=1_400_000_000
)
PRESENT = JobOutcome(
    job="home", target="daisy", result="present", snapshot=NAME, detail="in /home/.snapshots"
)


class Diverged:
    """A conflict as `plan` makes them."""

    remedy = "look at both lists, then send everything with --full"

    def __str__(self) -> str:
        return "share and daisy have no snapshot in common\nhere: a, b\nthere: c"


def failed(target: str, error: BaseException) -> JobOutcome:
    return JobOutcome(job="share", target=target, result="failed", seconds=10.0, error=ErrorReport.of(error))


UNREACHABLE = failed(
    "daisy", UnreachableError("daisy.local refused the connection", hint="is sshd running there?")
)
FULL = failed("usb", NoSpaceError("/mnt/usb has no room: 12 GiB announced, 3 GiB free"))
CONFLICT = failed("rose", ConflictError(Diverged()))
BUG = failed("tulip", KeyError("snapshots"))
EVERY_OUTCOME = [
    SENT, SENT_IN_FULL, SENT_ON, SENT_NAMES, UNCHANGED, WOULD_SEND, WOULD_SEND_ALL, WOULD_SEND_SO_MUCH,
    WOULD_SEND_THE_REST, FETCHED, WOULD_FETCH, PRESENT, UNREACHABLE, FULL, CONFLICT, BUG,
]  # fmt: skip


def report_of(outcomes: Sequence[JobOutcome]) -> RunReport:
    return RunReport(run_id="5f" * 16, started=STARTED, seconds=3.25, outcomes=tuple(outcomes))


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([], 0),
        ([SENT, UNCHANGED, WOULD_SEND], 0),
        ([FETCHED, WOULD_FETCH, PRESENT], 0),
        ([UNREACHABLE], 5),
        ([UNREACHABLE, FULL, CONFLICT], 8),
        ([UNREACHABLE, BUG], 5),
        ([BUG], 70),
        ([SENT, UNREACHABLE], 1),
        ([UNCHANGED, FULL, UNREACHABLE], 1),
    ],
    ids=[
        "nothing",
        "all served",
        "all fetched",
        "one failure",
        "highest",
        "a bug beside",
        "a bug",
        "some",
        "most failed",
    ],
)
def test_the_exit_status_follows_from_the_outcomes(outcomes: list[JobOutcome], status: int) -> None:
    assert report_of(outcomes).exit_status == status


def test_an_outcome_is_one_line_and_a_failure_has_its_hint_below(golden: Callable[[str], Any]) -> None:
    golden("outcomes.txt").check("".join(format_outcome(outcome) + "\n" for outcome in EVERY_OUTCOME))


def test_the_report_is_one_line_of_json_with_its_exit_status(golden: Callable[[str], Any]) -> None:
    line = run_json(report_of(EVERY_OUTCOME))
    assert b"\n" not in line
    golden("run-report.json").check(json.dumps(json.loads(line), indent=2, ensure_ascii=False) + "\n")


def test_a_program_reads_from_the_report_whether_all_went_well() -> None:
    assert json.loads(run_json(report_of([SENT])))["ok"] is True
    found = json.loads(run_json(report_of([SENT, FULL])))
    assert (found["ok"], found["exit_status"]) == (False, 1)


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_plain_log_has_whole_lines_and_progress_every_30_seconds_at_most(
    golden: Callable[[str], Any],
) -> None:
    log, clock = io.StringIO(), Clock()
    reporter = PlainReporter(log, log, monotonic=clock)
    reporter.step("share", "daisy", f"sending {NAME}")
    for _ in range(100):
        clock.now_s += 1
        sent = int(clock.now_s - 1000) * MIB
        reporter.progress("share", "daisy", sent, 200 * MIB)
        reporter.progress("home", "daisy", sent, None)
    reporter.warning("targets.usb has been pinned for 90 days")
    reporter.outcome(SENT)
    golden("plain-log.txt").check(log.getvalue())
    assert "\r" not in log.getvalue() and "\x1b" not in log.getvalue()


def test_without_steps_a_plain_log_keeps_to_outcomes_warnings_and_slow_sends() -> None:
    log, summary = io.StringIO(), io.StringIO()
    reporter = PlainReporter(log, summary, has_steps=False)
    reporter.step("share", "daisy", "looking")
    reporter.progress("share", "daisy", 1, None)
    reporter.outcome(UNCHANGED)
    assert log.getvalue() == ""
    assert summary.getvalue() == f"home → daisy: nothing changed since {EARLIER}\n"


def test_a_verbose_log_names_the_largest_paths() -> None:
    log, summary = io.StringIO(), io.StringIO()
    PlainReporter(log, summary).outcome(SENT)
    assert summary.getvalue() == (
        format_outcome(SENT) + "\n    30.0 MiB  photos/new.raw\n    12.1 KiB  notes \\n of today\n"
    )


def test_a_send_that_goes_on_from_a_checkpoint_has_the_speed_of_its_own() -> None:
    log, clock = io.StringIO(), Clock()
    reporter = PlainReporter(log, log, monotonic=clock)
    reporter.progress("share", "daisy", 100 * MIB, 200 * MIB)
    clock.now_s += 30
    reporter.progress("share", "daisy", 130 * MIB, 200 * MIB)
    # The link fails, and the server has less than had been sent.
    reporter.progress("share", "daisy", 90 * MIB, 200 * MIB)
    clock.now_s += 30
    reporter.progress("share", "daisy", 150 * MIB, 200 * MIB)
    assert log.getvalue().splitlines() == [
        "share → daisy: 130.0 MiB written, 1.0 MiB/s, 65 % of 200.0 MiB, 1 min 10 s left",
        "share → daisy: 150.0 MiB written, 2.0 MiB/s, 75 % of 200.0 MiB, 25.0 s left",
    ]


class SlowLog(io.StringIO):
    """A log in which a line comes letter by letter, so that two at once would mix."""

    def write(self, text: str) -> int:
        for letter in text:
            super().write(letter)
            if letter == "→":
                time.sleep(0.0005)
        return len(text)


def test_lines_of_several_threads_do_not_mix() -> None:
    log = SlowLog()
    reporter = PlainReporter(log, log)

    def tell(job: str) -> None:
        for number in range(50):
            reporter.step(job, "daisy", f"step {number}")
            reporter.progress(job, "daisy", number, None)
        reporter.outcome(JobOutcome(job=job, target="daisy", result="nothing_changed"))

    jobs = [f"job{number}" for number in range(4)]
    threads = [threading.Thread(target=tell, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = log.getvalue().splitlines()
    for job in jobs:
        assert [line for line in lines if line.startswith(f"{job} ")] == [
            *(f"{job} → daisy: step {number}" for number in range(50)),
            f"{job} → daisy: nothing changed",
        ]
    assert len(lines) == 4 * 51


def test_each_transfer_has_a_bar_of_its_own_that_is_right_whoever_is_drawn() -> None:
    from btrsync.commands.bars import TerminalReporter

    with TerminalReporter(io.StringIO()) as reporter:
        reporter.progress("share", "daisy", 100, 1000)
        reporter.progress("home", "daisy", 0, None)
        for number in range(50):
            reporter.progress("share", "daisy", 100 + number, 1000)
            reporter.progress("home", "daisy", 3 * number, 500)
        bars = {task.description: (task.completed, task.total) for task in reporter._bars.tasks}
        assert bars == {"share → daisy": (149, 1000), "home → daisy": (147, 500)}
        reporter.outcome(SENT)
        assert [task.description for task in reporter._bars.tasks] == ["home → daisy"]


class FullDisk(io.StringIO):
    """A log on a disk that has become full; counts what was tried."""

    tried = 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise OSError(errno.ENOSPC, text)


def test_a_failure_goes_where_a_timer_sees_it_and_a_success_to_the_output() -> None:
    log, summary = io.StringIO(), io.StringIO()
    reporter = PlainReporter(log, summary, has_steps=False)
    reporter.outcome(SENT)
    reporter.outcome(failed("attic", UnreachableError("attic: no route", hint="look")))
    assert log.getvalue() == "share → attic: FAILED: attic: no route\n  hint: look\n"
    assert summary.getvalue() == format_outcome(SENT) + "\n"


def test_a_log_that_cannot_be_written_does_not_stop_a_run() -> None:
    log = FullDisk()
    reporter = PlainReporter(log, log)
    reporter.step("share", "daisy", "sending")
    reporter.warning("odd")
    reporter.outcome(SENT)
    assert log.tried == 3


def test_the_null_reporter_takes_everything() -> None:
    reporter = NullReporter()
    reporter.step("share", "daisy", "sending")
    reporter.progress("share", "daisy", 1, None)
    reporter.warning("odd")
    assert reporter.outcome(SENT) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (12_900_000, "12.3 MiB"),
        ((1 << 20) - 1, "1.0 MiB"), ((1 << 30) - 1, "1.0 GiB"), (3 << 40, "3.0 TiB"), (5 << 50, "5.0 PiB"),
    ],
)  # fmt: skip
def test_sizes_have_one_decimal_and_the_unit_that_fits(size_bytes: int, words: str) -> None:
    assert format_size(size_bytes) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"), (1.42, "1.4 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"), (18_720, "5 h 12 min"), (86_400, "1 d 0 h"), (273_600, "3 d 4 h"),
    ],
)  # fmt: skip
def test_durations_have_the_two_units_that_matter(seconds: float, words: str) -> None:
    assert format_seconds(seconds) == words


def test_progress_tells_the_time_left_only_when_the_total_is_known() -> None:
    assert format_progress(50 * MIB, 200 * MIB, 10.0) == (
        "50.0 MiB written, 5.0 MiB/s, 25 % of 200.0 MiB, 30.0 s left"
    )
    assert format_progress(50 * MIB, None, 10.0) == "50.0 MiB written, 5.0 MiB/s"
    assert format_progress(0, 200 * MIB, 0.0) == "0 B written, 0 B/s"
    assert format_progress(150 * MIB, 200 * MIB, 10.0, first_bytes=100 * MIB) == (
        "150.0 MiB written, 5.0 MiB/s, 75 % of 200.0 MiB, 10.0 s left"
    )
    assert format_progress(300 * MIB, 200 * MIB, 10.0).endswith("100 % of 200.0 MiB, 0.0 s left")


def row(day: int, where: Any, *, is_latest_common: bool = False) -> SnapshotRow:
    return SnapshotRow(
        name=f"snapshot-{day}",
        uuid=UUID(int=day),
        created=STARTED + timedelta(days=day),
        where=where,
        is_latest_common=is_latest_common,
    )


def test_a_target_is_behind_by_the_snapshots_that_are_newer_than_the_latest_common() -> None:
    rows = (
        row(1, "target"),
        row(2, "both"),
        row(3, "both", is_latest_common=True),
        row(4, "source"),
        row(5, "target"),
        row(6, "source"),
    )
    survey = JobSurvey(job="share", target="daisy", snapshots=rows)
    assert survey.snapshots_behind == 2
    assert survey.latest_common == rows[2]
    never = JobSurvey(job="share", target="daisy", snapshots=(row(1, "source"), row(2, "source")))
    assert (never.latest_common, never.snapshots_behind) == (None, 2)


def test_columns_are_aligned_and_no_line_ends_in_blanks() -> None:
    table = format_table(("JOB", "STATE"), [("share", "in sync"), ("a-long-name", "")])
    assert table == "JOB          STATE\nshare        in sync\na-long-name  -"
