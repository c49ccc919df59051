"""The command line, in this process: words, exit statuses, help, manual pages, completion."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import btrsync
from btrsync import errors
from btrsync.cli import main
from btrsync.commands import config as config_command
from btrsync.commands import manual
from btrsync.commands.group import COMMANDS, group
from btrsync.commands.list import show_surveys
from btrsync.commands.serve import printable_command
from btrsync.commands.status import format_state, judge
from btrsync.commands.statuses import EXIT_STATUSES
from btrsync.report import JobSurvey, PartialRow, SnapshotRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
VALID = Path(__file__).parent / "config/valid"
INVALID = Path(__file__).parent / "config/invalid"
NOW = datetime(2026, 11, 22, 21, 30, tzinfo=UTC)

Run = tuple[int, str, str]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Run a command line; gives its status, and what it wrote to stdout and stderr."""
    monkeypatch.delenv("BTRSYNC_TRACEBACK", raising=False)
    monkeypatch.setenv("COLUMNS", "100")

    def run_line(*arguments: str | Path) -> Run:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        return (status, *capfd.readouterr())

    return run_line


def subclasses(cls: type[errors.BtrsyncError]) -> Iterator[type[errors.BtrsyncError]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def every_command() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in COMMANDS:
        command = group.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {part}", found) for part, found in command.commands.items())


def test_the_table_of_exit_statuses_agrees_with_the_classes() -> None:
    # RemoteError carries the status that its cause has at the other end.
    every: list[type[errors.BtrsyncError]] = [errors.BtrsyncError, *subclasses(errors.BtrsyncError)]
    ours = [cls for cls in every if cls is not errors.RemoteError]
    classes = {cls.__name__: str(cls.exit_status) for cls in ours if cls.__module__ == "btrsync.errors"}
    table = {name: row.status for row in EXIT_STATUSES for name in row.classes}
    assert table == classes


def test_no_error_ends_with_a_status_that_the_table_lacks() -> None:
    statuses = {row.status for row in EXIT_STATUSES}
    assert {str(cls.exit_status) for cls in subclasses(errors.BtrsyncError)} <= statuses


@pytest.mark.parametrize(
    ("name", "command"), list(every_command()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_explains_itself_and_each_of_its_options(
    name: str, command: click.Command, run: Callable[..., Run]
) -> None:
    status, out, _ = run(*name.split(), "--help")
    assert status == 0
    if not isinstance(command, click.Group):
        assert "Examples" in out and f"btrsync {name}" in out.split("Examples")[1]
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_the_overview_names_every_command_and_imports_none(run: Callable[..., Run]) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert all(f"  {name} " in out for name in COMMANDS)


def test_the_version_is_told(run: Callable[..., Run]) -> None:
    assert run("--version") == (0, f"btrsync {btrsync.__version__}\n", "")


@pytest.mark.parametrize("name", sorted(manual.pages()))
def test_the_manual_page_is_current(name: str, golden: Callable[[str], Any]) -> None:
    golden(f"../../docs/man/{name}").check(manual.pages()[name])


@pytest.mark.parametrize(
    "arguments",
    [["nosuch"], ["sync", "--nosuch"], ["config", "sample", "nosuch"], ["serve"], ["serve", "a", "b"], []],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_2_and_the_usage(
    arguments: list[str], run: Callable[..., Run]
) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("Usage: btrsync")


def test_a_relative_root_of_a_server_is_a_wrong_command_line(run: Callable[..., Run]) -> None:
    status, _, err = run("serve", "workstation", "--root", "MirrorRoot")
    assert status == 2 and "begin it with /" in err


def test_a_wrong_configuration_ends_with_3_and_all_that_is_wrong(
    run: Callable[..., Run], golden: Callable[[str], Any]
) -> None:
    status, out, err = run("sync", "--config", INVALID / "client-unknown-keys.toml")
    assert (status, out) == (3, "")
    golden("wrong-configuration.txt").check(err.replace(f"{INVALID}/", ""))


@pytest.mark.parametrize("command", ["sync", "list", "status"])
def test_a_missing_configuration_ends_with_3_and_how_to_get_one(
    command: str, tmp_path: Path, run: Callable[..., Run]
) -> None:
    file = tmp_path / "btrsync.toml"
    status, out, err = run(command, "--config", file)
    assert (status, out) == (3, "")
    assert err == (
        f"btrsync: {file}: there is no such file\n"
        f"  hint: btrsync config sample client > {file}, then edit it; or name another with --config\n"
    )


@pytest.mark.parametrize("command", ["sync", "list", "status"])
def test_who_is_not_root_is_told_so_and_nothing_is_done(
    command: str, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    status, out, err = run(command, "--config", VALID / "client-smallest.toml")
    assert (status, out) == (10, "")
    assert "only root may" in err and f"hint: sudo btrsync {command}" in err


def test_an_unknown_job_or_target_ends_with_3_and_names_those_there_are(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for command in ("sync", "list", "status"):
        status, _, err = run(command, "hoem", "--target", "ubs", "--config", VALID / "client-smallest.toml")
        assert status == 3
        assert "'hoem'" in err and "home" in err and "'ubs'" in err and "usb" in err


def fail_in_sample(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Plant a mistake in a command."""

    def read_sample(which: str) -> str:
        raise error

    monkeypatch.setattr(config_command, "read_sample", read_sample)


def test_a_bug_is_three_lines_and_no_traceback(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, golden: Callable[[str], Any]
) -> None:
    fail_in_sample(monkeypatch, ValueError("no such\n  thing"))
    status, out, err = run("config", "sample")
    assert (status, out) == (70, "")
    assert len(err.splitlines()) == 3
    golden("bug.txt").check(err)


def test_the_traceback_is_shown_when_asked_for(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in_sample(monkeypatch, ValueError("planted"))
    status, _, err = run("config", "sample", "--traceback")
    assert status == 70 and "Traceback (most recent call last)" in err and "in read_sample" in err
    monkeypatch.setenv("BTRSYNC_TRACEBACK", "1")
    status, _, err = run("config", "sample")
    assert status == 70 and "Traceback (most recent call last)" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_contexts_clean_up_and_ends_with_128_and_its_number(
    number: signal.Signals, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def read_sample(which: str) -> str:
        try:
            os.kill(os.getpid(), number)
        finally:
            # A second one must not cut the clean-up short.
            os.kill(os.getpid(), number)
            done.append(which)
        return ""

    monkeypatch.setattr(config_command, "read_sample", read_sample)
    before = signal.getsignal(number)
    status, out, err = run("config", "sample")
    assert done == ["client"]
    assert (status, out, err) == (128 + number, "", f"btrsync: stopped by {number.name}\n")
    assert signal.getsignal(number) == before


def test_a_signal_that_was_ignored_before_stays_ignored(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_sample(which: str) -> str:
        os.kill(os.getpid(), signal.SIGHUP)
        return which

    monkeypatch.setattr(config_command, "read_sample", read_sample)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("config", "sample") == (0, "client", "")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_right_configuration_is_told_to_be_right(run: Callable[..., Run]) -> None:
    file = VALID / "client-everything.toml"
    status, out, err = run("config", "check", "--config", file)
    assert (status, out) == (0, f"{file}: 2 jobs, 3 targets, no mistakes\n")
    assert err == (
        f"btrsync: warning: {file}: targets.daisy.key: /root/.ssh/btrsync: No such file or directory;"
        " ssh-keygen(1) makes a key\n"
    )
    server = VALID / "server-everything.toml"
    assert run("config", "check", "--server", "--config", server) == (
        0, f"{server}: root /MirrorRoot/btrsync, 2 clients, no mistakes\n", "",
    )  # fmt: skip


def test_a_check_for_a_program_is_one_line_of_json(run: Callable[..., Run]) -> None:
    file = INVALID / "client-two-jobs-one-name.toml"
    status, out, err = run("config", "check", "--json", "--config", file)
    assert (status, err) == (3, "")
    found = json.loads(out)
    assert (found["ok"], found["file"], len(found["problems"]), found["warnings"]) == (
        False,
        str(file),
        1,
        [],
    )
    status, out, _ = run("config", "check", "--json", "--config", VALID / "client-smallest.toml")
    assert (status, json.loads(out)["ok"]) == (0, True)


def test_the_samples_are_printed_as_they_are_installed(run: Callable[..., Run]) -> None:
    for which in ("client", "server"):
        text = (ROOT / f"btrsync/data/{which}.toml").read_text(encoding="utf-8")
        assert run("config", "sample", which) == (0, text, "")


def complete(words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What the shell is offered for the last of `words`."""
    monkeypatch.setenv("_BTRSYNC_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    with pytest.raises(SystemExit):
        main([])
    out, err = capfd.readouterr()
    assert err == ""
    return [line.partition(",")[2] for line in out.splitlines() if line]


def test_the_shell_completes_commands_jobs_and_targets(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = VALID / "client-everything.toml"
    assert complete("btrsync s", monkeypatch, capfd) == ["sync", "status", "serve"]
    assert complete(f"btrsync sync --config {file} ", monkeypatch, capfd) == ["root", "share"]
    assert complete(f"btrsync status --config {file} sh", monkeypatch, capfd) == ["share"]
    assert complete(f"btrsync list --config {file} --target ", monkeypatch, capfd) == [
        "daisy",
        "rose",
        "usb.2-b_c",
    ]


def test_the_shell_completes_nothing_where_the_configuration_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for text in ("jobs = 1", "[jobs", "\0"):
        (tmp_path / "c.toml").write_text(text)
        assert complete(f"btrsync sync --config {tmp_path / 'c.toml'} ", monkeypatch, capfd) == []
    assert complete(f"btrsync sync --config {tmp_path} ", monkeypatch, capfd) == []


@given(st.text())
def test_what_a_client_asked_ssh_for_is_logged_short_and_printable(text: str) -> None:
    found = printable_command(text)
    assert found.isascii() and (found.isprintable() or not found)
    assert len(found) <= 200 * len(r"\U0001f600")


def test_an_ordinary_command_is_logged_as_it_is() -> None:
    assert printable_command("btrsync serve other; id") == "btrsync serve other; id"
    assert printable_command("a\nb\x1b[31m") == r"a\nb\x1b[31m"
    assert printable_command("x" * 300) == "x" * 200


def row(name: str, day: int, where: Any, *, is_latest_common: bool = False, remark: str = "") -> SnapshotRow:
    return SnapshotRow(
        name=name, uuid=UUID(int=day), created=NOW + timedelta(days=day - 9), where=where,
        is_latest_common=is_latest_common, remark=remark,
    )  # fmt: skip


IN_SYNC = JobSurvey(
    job="share", target="daisy",
    snapshots=(row("snapshot-old", 1, "both"), row("snapshot-2", 2, "both", is_latest_common=True)),
)  # fmt: skip
BEHIND = JobSurvey(
    job="share", target="usb",
    snapshots=(
        row("snapshot-old", 1, "both", is_latest_common=True, remark="named first on the target"),
        row("snapshot-2", 2, "source"),
    ),
)  # fmt: skip
FAR_BEHIND = JobSurvey(
    job="share", target="rose", snapshots=(*BEHIND.snapshots, row("snapshot-3", 3, "source"))
)
PARTIAL = PartialRow(
    snapshot="snapshot-4", uuid=UUID(int=4), data_bytes=600 << 20, total_bytes=2 << 30, percent=29,
    made=NOW - timedelta(hours=5),
)  # fmt: skip
NEVER = JobSurvey(job="home", target="daisy", snapshots=(row("snapshot-1", 1, "source"),))
APART = JobSurvey(
    job="home", target="usb", snapshots=(row("other", 1, "target"), row("snapshot-1", 2, "source"))
)
EMPTY = JobSurvey(job="empty", target="daisy")
UNREACHABLE = JobSurvey(job="home", target="rose", error="rose.local does not resolve\nto any address")
SURVEYS = [IN_SYNC, BEHIND, FAR_BEHIND, NEVER, APART, EMPTY, UNREACHABLE]


def test_a_list_is_aligned_columns_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], golden: Callable[[str], Any]
) -> None:
    cut = JobSurvey(job="music", target="daisy", partials=(PARTIAL,))
    show_surveys([*SURVEYS, cut], as_json=False)
    out, err = capsys.readouterr()
    golden("list.txt").check(f"{out}--- stderr\n{err}")


def test_a_list_for_a_program_is_one_line_of_json(
    capsys: pytest.CaptureFixture[str], golden: Callable[[str], Any]
) -> None:
    cut = msgspec.structs.replace(BEHIND, partials=(PARTIAL,))
    show_surveys([cut, UNREACHABLE], as_json=True)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    golden("list.json").check(json.dumps(json.loads(line), indent=2) + "\n")


@pytest.mark.parametrize(
    ("survey", "words", "is_served"),
    [
        (IN_SYNC, "in sync", True),
        (BEHIND, "1 snapshot behind", True),
        (FAR_BEHIND, "2 snapshots behind", True),
        (NEVER, "never synced", False),
        (EMPTY, "never synced", False),
        (APART, "nothing in common: it has backups, and none is of a snapshot that is here", False),
        (UNREACHABLE, "unreachable: rose.local does not resolve to any address", False),
    ],
    ids=["in sync", "behind", "far behind", "never", "empty", "apart", "unreachable"],
)
def test_a_status_says_how_a_target_stands(survey: JobSurvey, words: str, is_served: bool) -> None:
    found = judge(survey, NOW)
    assert (format_state(found, NOW), found.is_served) == (words, is_served)


def test_a_status_tells_of_a_cut_transfer_its_share_of_the_data_and_its_age() -> None:
    uncounted = msgspec.structs.replace(PARTIAL, total_bytes=None, percent=None)
    cut = msgspec.structs.replace(FAR_BEHIND, partials=(PARTIAL, uncounted))
    assert format_state(judge(cut, NOW), NOW) == (
        "2 snapshots behind; snapshot-4: partial, 29 % of 2.0 GiB, 5 h 0 min old;"
        " snapshot-4: partial, 600.0 MiB, 5 h 0 min old"
    )
    first = msgspec.structs.replace(NEVER, partials=(PARTIAL,))
    assert judge(first, NOW).partials == first.partials
    assert not judge(first, NOW).is_served


def test_a_status_has_the_age_of_the_latest_common_snapshot() -> None:
    found = judge(FAR_BEHIND, NOW)
    assert (found.latest_snapshot, found.latest_common) == ("snapshot-3", "snapshot-old")
    assert found.age_seconds == timedelta(days=8).total_seconds()


def test_every_golden_file_is_one_that_a_test_names() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for path in (Path(__file__).parent / "golden").iterdir():
        assert f'golden("{path.name}")' in tests, f"{path} is stale"
