"""The rehearsal as a person or a program starts it, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness import command, loop, processes, wait

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.requires("host", "veth", "tbf", "btrfs", "sshd", "containment")

REHEARSE = Path(sys.executable).with_name("btrsync-rehearse")
STEPS = [
    "first full sync",
    "incremental sync",
    "renamed parents",
    "nothing changed",
    "cut link",
    "resume after a cut",
    "wrong key",
    "hostile stream refused",
]
UNCONTAINED = {"BTRSYNC_CONTAINED": ""}
"""As if it were started from a shell: it makes a containment of its own."""

USERS_CONFIG = """
[targets.offsite]
host = "backup.example.org"
port = 2222
key = "/root/.ssh/no-such-key"
known_hosts = "/nowhere"
ssh_options = ["ServerAliveInterval=2", "ServerAliveCountMax=1"]

[targets."us.b"]
path = "/mnt/usb disk/btrsync"

[jobs.documents]
subvolume = "/srv/my documents"
snapshots = "/srv/snap"
targets = ["offsite", "us.b"]
snapshot_name = "documents-%Y%m%d%H%M%S"
"""


def rehearse(*words: str | Path, ok: int = 0, env: dict[str, str] | None = None) -> command.Completed:
    return command.run([REHEARSE, *words], ok=(ok,), timeout_s=140, env=env)


def last_line(said: command.Completed) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory for the disks, by whose name the loop devices of this test are told from others."""
    path = tmp_path / "disks"
    path.mkdir()
    yield path
    assert list(path.iterdir()) == []


def disks_in(directory: Path) -> list[str]:
    return [name for name in loop.attached().values() if str(directory) in name]


def test_a_whole_rehearsal_holds_and_says_so(directory: Path) -> None:
    said = rehearse("--size", "small", "--json", env=UNCONTAINED | {"TMPDIR": str(directory)})
    report = last_line(said)
    assert report["ok"] is True
    assert [step["name"] for step in report["steps"]] == STEPS
    assert all(step["ok"] and step["seconds"] > 0 and step["detail"] for step in report["steps"])
    sent = {step["name"]: step["bytes_sent"] for step in report["steps"]}
    assert sent["first full sync"] > sent["incremental sync"] > 0
    halves = sent["cut link"], sent["resume after a cut"]
    assert all(8_000_000 < half < 20_000_000 for half in halves)
    assert sum(halves) > 20_000_000
    assert sent["nothing changed"] == sent["wrong key"] == sent["hostile stream refused"] == 0
    assert report["kernel"] == os.uname().release
    assert report["btrfs_progs"][0].isdigit() and report["openssh"][0].isdigit()
    assert said.stdout.count("\n") == 1, "the words went to standard error"
    assert f"all {len(STEPS)} steps hold" in said.stderr
    assert disks_in(directory) == []


def test_the_words_for_a_person_end_with_the_table(directory: Path) -> None:
    said = rehearse("--size", "small", "--steps", "nothing changed", env={"TMPDIR": str(directory)})
    lines = said.stdout.splitlines()
    assert lines[0].startswith("Rehearsal: nothing of this machine's own is changed")
    assert "dm-crypt" in said.stdout
    heading = lines.index("step               sent  seconds  MB/s  verdict")
    assert [line.split("  ")[0] for line in lines[heading + 1 : heading + 3]] == STEPS[:1] + STEPS[3:4]
    assert "all 2 steps hold" in lines
    assert "\x1b" not in said.stdout and said.stderr == ""


def test_a_copy_of_real_data_is_rehearsed_and_the_original_untouched(tmp_path: Path) -> None:
    source = tmp_path / "real data"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("real\n" * 1000)
    (source / "link").symlink_to("sub/file")
    os.link(source / "sub" / "file", source / "twice")
    paths = [source, *sorted(source.rglob("*"))]
    # Each is looked at once before, so that `relatime` has nothing left to update.
    before = {path: _times(path) for path in paths}
    before = {path: _times(path) for path in paths}
    said = rehearse("--source", source, "--steps", "incremental sync", "--json", env=UNCONTAINED)
    assert last_line(said)["ok"] is True
    assert "which is only read" in said.stderr
    assert {path: _times(path) for path in paths} == before
    assert sorted(source.rglob("*")) == paths[1:]


def _times(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    if not path.is_symlink() and path.is_dir():
        list(path.iterdir())
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_atime_ns)


def test_the_users_own_configuration_is_rehearsed(tmp_path: Path) -> None:
    file = tmp_path / "btrsync.toml"
    file.write_text(USERS_CONFIG)
    said = rehearse("--config", file, "--size", "small", "--json")
    report = last_line(said)
    assert report["ok"] is True and [step["name"] for step in report["steps"]] == STEPS
    assert "job documents: /srv/my documents, snapshots in /srv/snap" in said.stderr
    assert "backup.example.org is the rehearsal host daisy" in said.stderr
    assert not Path("/srv/my documents").exists() and not Path("/mnt/usb disk").exists()


def test_steps_without_their_subject_are_left_out_aloud(tmp_path: Path) -> None:
    file = tmp_path / "btrsync.toml"
    file.write_text(USERS_CONFIG.replace('["offsite", "us.b"]', '["us.b"]'))
    said = rehearse("--config", file, "--size", "small", "--json", "--steps", "nothing changed,cut link")
    assert [step["name"] for step in last_line(said)["steps"]] == ["first full sync", "nothing changed"]
    assert "cut link: every target of this configuration is a local disk" in said.stderr


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--steps", "cut lin"], 2, "there is no step 'cut lin'"),
        (["--source", "/no such"], 2, "--source: /no such is not there"),
        (["--source", "/etc/passwd"], 2, "--source: /etc/passwd is not a directory"),
        (["--config", "/no-such.toml"], 3, "/no-such.toml: there is no such file"),
    ],
)
def test_bad_input_gets_one_sentence(words: list[str], status: int, sentence: str) -> None:
    said = rehearse(*words, ok=status)
    assert sentence in said.stderr and "Traceback" not in said.stderr
    assert said.stdout == ""


def test_a_configuration_that_the_tool_finds_wrong_is_named_in_its_words(tmp_path: Path) -> None:
    file = tmp_path / "btrsync.toml"
    file.write_text(USERS_CONFIG.replace("snapshots =", "snapshot ="))
    said = rehearse("--config", file, ok=3)
    assert "jobs.documents.snapshot: unknown key; did you mean snapshots?" in said.stderr


def test_a_setting_that_leads_out_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "btrsync.toml"
    file.write_text(USERS_CONFIG.replace("ServerAliveCountMax=1", "ProxyCommand=ssh real nc %h %p"))
    said = rehearse("--config", file, ok=3)
    assert "targets.offsite.ssh_options: ProxyCommand=ssh real nc %h %p cannot be rehearsed" in said.stderr


def test_without_root_it_goes_to_a_guest_and_says_so() -> None:
    # Who may enter every directory, for this clone may lie in one of root's.
    entering = [word for kind in ("inh", "ambient") for word in (f"--{kind}-caps", "+dac_read_search")]
    argv: list[str | Path] = ["setpriv", "--reuid", "65534", "--clear-groups", *entering, REHEARSE]
    said = command.run([*argv, "--source", "/srv"], ok=(2,), env=UNCONTAINED)
    assert said.stderr.splitlines() == [
        "btrsync-rehearse: not root, so the rehearsal is held in a guest, as by --vm bookworm",
        "btrsync-rehearse: --source: this machine's own files do not get into a guest",
        "btrsync-rehearse: hint: only root can do that on this machine itself: sudo ./rehearse",
    ]


def test_disks_without_room_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    command.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", tmp_path])
    try:
        said = rehearse("--size", "small", ok=3, env={"TMPDIR": str(tmp_path)})
    finally:
        command.run(["umount", tmp_path])
    assert f"{tmp_path} has 67.1 MB free, and this rehearsal needs about" in said.stderr
    said = rehearse(ok=3, env={"TMPDIR": "/no such"})
    assert "/no such: the disks of the rehearsal cannot be put there" in said.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["first full sync", "the link was cut"])
def test_a_rehearsal_that_is_ended_leaves_nothing(directory: Path, number: int, moment: str) -> None:
    env = UNCONTAINED | {"TMPDIR": str(directory)}
    with command.spawn([REHEARSE, "--size", "small", "--steps", "cut link"], env=env) as process:

        def is_there() -> bool:
            assert process.poll() is None, process.stdout + process.stderr
            return moment in process.stdout

        wait.until(is_there, timeout_s=60, what=f"{moment!r} in what it says")
        tree = processes.descendants(process.pid)
        os.kill(process.pid, number)
        status = process.wait(20)
        assert status == (-number if number == signal.SIGKILL else 128 + number)
        if number != signal.SIGKILL:
            name = signal.Signals(number).name
            assert f"stopped by {name}; everything has been taken down" in process.stderr
            assert "Traceback" not in process.stderr
        wait.until(lambda: not disks_in(directory), timeout_s=10, what="no loop device left")
        wait.until(
            lambda: not [pid for pid in tree if _is_alive(pid, tree[pid].argv)],
            timeout_s=10,
            what="no process left",
        )


def _is_alive(pid: int, argv: tuple[str, ...]) -> bool:
    now = processes.read(pid)
    return now is not None and now.argv == argv and bool(argv)


def test_kept_hosts_can_be_entered_and_go_with_ctrl_c(directory: Path) -> None:
    env = UNCONTAINED | {"TMPDIR": str(directory)}
    argv: list[str | Path] = [REHEARSE, "--size", "small", "--steps", "first full sync", "--keep"]
    with command.spawn(argv, env=env) as process:
        wait.until(lambda: "Ctrl-C here" in process.stdout, timeout_s=60, what="the hosts kept up")
        lines = [line.split() for line in process.stdout.splitlines() if " -m harness enter " in line]
        assert [line[-1] for line in lines] == ["workstation", "daisy"]
        for line in lines:
            said = command.run([*line, "hostname"])
            assert said.stdout == f"{line[-1]}\n"
        process.signal(signal.SIGINT)
        assert process.wait(20) == 0, "the verdict of the steps, for they held"
    assert disks_in(directory) == []


def test_output_that_nobody_reads_ends_it(directory: Path) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    try:
        with command.spawn(
            [REHEARSE, "--size", "small"], stdout=write_fd, env=UNCONTAINED | {"TMPDIR": str(directory)}
        ) as process:
            assert process.wait(30) == 128 + signal.SIGPIPE
            assert "Traceback" not in process.stderr
    finally:
        os.close(write_fd)
    assert disks_in(directory) == []
