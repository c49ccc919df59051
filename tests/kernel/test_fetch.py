"""`btrsync fetch` on real filesystems: what was mirrored comes back whole, and nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest

from btrsync.plan.fetching import can_clone_from_original
from btrsync.stream.rewriting import Rewriter
from btrsync.system import btrfs
from btrsync.system.beneath import FilesBeneath
from harness import command, manifest, tree, wait
from tests.kernel.cutting import first_of
from tests.kernel.local_mirror import LocalMirror, local_mirror
from tests.kernel.send_stream import CLONE, WRITE, commands_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.manifest import Manifest

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

PROTOCOLS = {
    "protocol 1": ["--proto", "1"],
    "protocol 2": ["--proto", "2"],
    "compressed protocol 2": ["--proto", "2", "--compressed-data"],
}
EDITED_BYTES = 1_000_000


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[LocalMirror]:
    with local_mirror(tmp_path) as made:
        yield made


def fetch(mirror: LocalMirror, *words: str, status: int = 0) -> dict[str, Any]:
    """Fetch the job, and return the outcome; its failure is one sentence."""
    done = mirror.btrsync("fetch", "job", "--json", *words)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    (outcome,) = json.loads(done.stdout.splitlines()[-1])["outcomes"]
    assert isinstance(outcome, dict)
    return outcome


def message(outcome: dict[str, Any]) -> str:
    return f"{outcome['error']['message']}\n{outcome['error']['hint']}"


def synced(mirror: LocalMirror) -> str:
    """Mirror what there is; return the snapshot's name."""
    done = mirror.sync("--always")
    assert done.returncode == 0, done.stderr
    return str(done.outcome["snapshot"])


def planted(mirror: LocalMirror, seed: int) -> None:
    """Generate a tree with every kind of node."""
    (mirror.live / "data").mkdir()
    tree.generate(mirror.live / "data", seed, "tiny")


def seen(path: Path) -> Manifest:
    return manifest.without_root_time(manifest.read(path))


def lost(mirror: LocalMirror, *names: str) -> None:
    for name in names:
        btrfs.delete_subvolume(mirror.snapshots / name)


def listing(directory: Path) -> dict[str, object]:
    """All that lies in a directory, with what tells whether it is still the same."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_mode)
        for path in directory.iterdir()
    }


def edited_copy(live: Path, name: str = "big") -> None:
    """`cp; edit; mv`, which makes clones from the parent."""
    command.run(["cp", "--reflink=always", live / name, live / "tmp"])
    with (live / "tmp").open("r+b") as file:
        file.seek(5000)
        file.write(b"edited")
    (live / "tmp").rename(live / name)


def test_the_latest_backup_comes_back_whole_where_nothing_is_left(mirror: LocalMirror) -> None:
    planted(mirror, 1)
    name = synced(mirror)
    before = seen(mirror.snapshots / name)
    lost(mirror, name)
    at_server = listing(mirror.backups)
    would = fetch(mirror, "--dry-run")
    assert (would["result"], would["snapshot"], would["kind"]) == ("would_fetch", name, "full")
    assert os.listdir(mirror.snapshots) == []
    outcome = fetch(mirror)
    assert (outcome["result"], outcome["snapshot"], outcome["kind"]) == ("fetched", name, "full")
    assert outcome["bytes_written"] == would["bytes_written"] > 0
    assert os.listdir(mirror.snapshots) == [name]
    assert manifest.difference(before, seen(mirror.snapshots / name)) == []
    found = btrfs.subvolume(mirror.snapshots / name)
    assert found.is_readonly
    assert found.received_uuid == btrfs.subvolume(mirror.backups / name).received_uuid
    assert listing(mirror.backups) == at_server, "a fetch changes nothing at the server"


def test_an_older_backup_goes_elsewhere_and_the_latest_is_here_already(mirror: LocalMirror) -> None:
    older = synced(mirror)
    mirror.change("second")
    latest = synced(mirror)
    before = seen(mirror.snapshots / older)
    outcome = fetch(mirror)
    assert (outcome["result"], outcome["snapshot"]) == ("present", latest)
    elsewhere = mirror.snapshots.parent / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    outcome = fetch(mirror, "--snapshot", older, "--to", str(elsewhere))
    assert (outcome["result"], outcome["kind"]) == ("fetched", "full"), "no parent lies in that directory"
    assert manifest.difference(before, seen(elsewhere / older)) == []
    another = mirror.snapshots.parent / "another"
    another.mkdir()
    outcome = fetch(mirror, "--snapshot", older, "--to", str(another), status=10)
    assert "received elsewhere on this filesystem" in message(outcome)
    assert os.listdir(another) == []


def test_only_what_changed_comes_back_and_the_next_sync_goes_on_from_it(mirror: LocalMirror) -> None:
    planted(mirror, 2)
    (mirror.live / "bulk").write_bytes(os.urandom(3_000_000))
    first = synced(mirror)
    tree.mutate(mirror.live / "data", 3, ["reflinks-between", "reflinks-within", "name-rotation"])
    second = synced(mirror)
    before = seen(mirror.snapshots / second)
    lost(mirror, second)
    outcome = fetch(mirror)
    assert (outcome["kind"], outcome["send_parent"]) == ("incremental", first)
    assert outcome["bytes_sent"] < 2_000_000
    assert manifest.difference(before, seen(mirror.snapshots / second)) == []
    lost(mirror, first)
    edited_copy(mirror.live, "bulk")
    done = mirror.sync()
    assert (done.outcome["kind"], done.outcome["send_parent"]) == ("incremental", second)
    mirror.assert_mirrored()
    third = str(done.outcome["snapshot"])
    before = seen(mirror.snapshots / third)
    lost(mirror, third)
    outcome = fetch(mirror)
    assert outcome["send_parent"] == second
    assert manifest.difference(before, seen(mirror.snapshots / third)) == []
    assert outcome["detail"] == "", (
        "its parent came back itself: every version of btrfs-progs clones from that"
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_clone_from_an_original_is_written_as_data_where_receive_cannot_make_it(
    mirror: LocalMirror, protocol: str, tmp_path: Path
) -> None:
    (mirror.live / "big").write_bytes(os.urandom(EDITED_BYTES))
    first = synced(mirror)
    edited_copy(mirror.live)
    second = synced(mirror)
    before = seen(mirror.snapshots / second)
    lost(mirror, second)
    argv: list[str | Path] = ["btrfs", "send", "--quiet", *PROTOCOLS[protocol]]
    argv += ["-p", mirror.backups / first, "-f", tmp_path / "stream", mirror.backups / second]
    command.run(argv)
    stream = (tmp_path / "stream").read_bytes()
    assert CLONE in {each.type for each in commands_of(stream)}
    stock = command.run(["btrfs", "receive", "-e", "-C", mirror.snapshots], input=stream, ok=None)
    # Which of the two this machine has, its btrfs-progs tell: Debian 12 has the one, 13 the other.
    is_able = can_clone_from_original(btrfs.progs_version())
    left = btrfs.subvolume(mirror.snapshots / second)
    if is_able:
        assert stock.returncode == 0, stock.stderr
        assert left.is_readonly
    else:
        assert stock.returncode == 1
        assert "did not find source subvol" in stock.stderr
        assert (left.is_readonly, left.received_uuid) == (False, None), "a writable half is left"
    lost(mirror, second)

    head = first_of(stream)
    with FilesBeneath(mirror.snapshots / first) as files:
        rewriter = Rewriter(head.stream_version, head.uuid, files.read, limit_bytes=EDITED_BYTES)
        made = stream[: head.size_bytes] + b"".join(rewriter.feed(stream[head.size_bytes :], 0))
    assert 0 < rewriter.written_bytes < EDITED_BYTES
    assert {CLONE, WRITE} & {each.type for each in commands_of(made)} == {WRITE}
    command.run(["btrfs", "receive", "-e", "-C", mirror.snapshots], input=made)
    assert manifest.difference(before, seen(mirror.snapshots / second)) == []
    lost(mirror, second)

    outcome = fetch(mirror)
    assert (outcome["kind"], outcome["send_parent"]) == ("incremental", first)
    is_told = "of clones from the parent were written as data: btrfs-progs" in outcome["detail"]
    assert is_told != is_able
    assert outcome["bytes_sent"] < EDITED_BYTES // 2
    assert (outcome["bytes_written"] > EDITED_BYTES // 2) != is_able
    assert manifest.difference(before, seen(mirror.snapshots / second)) == []


def cut_send(directory: Path, size_bytes: int) -> Path:
    """A directory with a `btrfs` whose send breaks off after so many bytes."""
    real = shutil.which("btrfs")
    directory.mkdir()
    script = directory / "btrfs"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *--no-data*) exec {real} "$@" ;; send*) {real} "$@" | head -c {size_bytes}; exit 1 ;; esac\n'
        f'exec {real} "$@"\n'
    )
    script.chmod(0o755)
    return directory


def test_a_fetch_that_was_cut_goes_on_where_it_ended(
    mirror: LocalMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mirror.live / "big").write_bytes(os.urandom(EDITED_BYTES))
    first = synced(mirror)
    edited_copy(mirror.live)
    for number in range(20):
        (mirror.live / f"file-{number:02}").write_bytes(os.urandom(100_000))
    second = synced(mirror)
    before = seen(mirror.snapshots / second)
    lost(mirror, second)
    # The user's own, whatever it is called.
    command.run(["btrfs", "subvolume", "create", mirror.snapshots / ".partial-mine"])
    command.run(["btrfs", "subvolume", "create", mirror.snapshots / ".incoming-mine"])
    (mirror.snapshots / ".partial-mine.json").write_text("mine")
    command.run(["btrfs", "subvolume", "create", mirror.snapshots / ".incoming-0123456789abcdef"])
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{cut_send(tmp_path / 'cut', 1_200_000)}:{os.environ['PATH']}")
        outcome = fetch(mirror, status=6)
        assert "btrfs send" in message(outcome)
    mine = {".partial-mine", ".incoming-mine", ".partial-mine.json", first}
    kept = set(os.listdir(mirror.snapshots)) - mine
    (partial,) = [name for name in kept if not name.endswith(".json")]
    assert kept == {partial, f"{partial}.json"}
    # It carries the received UUID of a whole backup: a sync that took it for a parent would lose files.
    done = mirror.sync("--dry-run")
    assert (done.outcome["result"], done.outcome["send_parent"]) == ("would_send", first)
    assert partial not in mirror.btrsync("list").stdout
    outcome = fetch(mirror)
    assert outcome["result"] == "fetched"
    assert outcome["resumed_from_bytes"] > 500_000
    assert outcome["bytes_sent"] < 2_000_000
    assert set(os.listdir(mirror.snapshots)) == {*mine, second}
    assert manifest.difference(before, seen(mirror.snapshots / second)) == []
    mirror.change("third")
    assert mirror.sync().outcome["kind"] == "incremental"
    mirror.assert_mirrored()


def test_what_cannot_be_fetched_is_one_sentence_and_changes_nothing(mirror: LocalMirror) -> None:
    assert "holds no backup of job job" in message(fetch(mirror, status=10))
    name = synced(mirror)
    lost(mirror, name)
    assert "holds no backup nosuch" in message(fetch(mirror, "--snapshot", "nosuch", status=10))
    (mirror.snapshots / name).mkdir()
    assert "is there already, and is something else" in message(fetch(mirror, status=10))
    (mirror.snapshots / name).rmdir()
    plain = mirror.target.parent.parent / "plain"
    plain.mkdir()
    assert "is not on a btrfs filesystem" in message(fetch(mirror, "--to", str(plain), status=8))
    assert "is not there" in message(fetch(mirror, "--to", f"{plain}/nosuch", status=8))
    mirror.snapshots.chmod(0o777)
    assert "only root can write" in message(fetch(mirror, status=8))
    mirror.snapshots.chmod(0o755)
    backup = mirror.backups / name
    btrfs.set_readonly(backup, False)
    assert "it is no backup" in message(fetch(mirror, "--snapshot", name, status=10))
    assert os.listdir(mirror.snapshots) == []
    assert stat.S_IMODE(mirror.snapshots.stat().st_mode) == 0o755


def limit_rate(mirror: LocalMirror, rate_bytes: int) -> None:
    lines = mirror.config.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("rate_limit_bytes")]
    mirror.config.write_text("".join([kept[0], f"rate_limit_bytes = {rate_bytes}\n", *kept[1:]]))


def test_a_fetch_keeps_to_the_rate_of_its_target_and_stops_at_once_all_the_same(mirror: LocalMirror) -> None:
    (mirror.live / "bulk").write_bytes(os.urandom(3_000_000))
    name = synced(mirror)
    before = seen(mirror.snapshots / name)
    lost(mirror, name)
    limit_rate(mirror, 20_000)
    with command.spawn(
        [sys.executable, "-m", "btrsync", "fetch", "job", "--config", mirror.config]
    ) as process:
        wait.until(lambda: os.listdir(mirror.snapshots), timeout_s=10, what="the first of it")
        process.terminate()
        process.wait(5)
    assert name not in os.listdir(mirror.snapshots)
    limit_rate(mirror, 1_000_000)
    outcome = fetch(mirror)
    assert 1_500_000 < outcome["bytes_sent"] < 3_100_000
    assert outcome["seconds"] > 1.2
    assert manifest.difference(before, seen(mirror.snapshots / name)) == []


def test_where_a_part_of_it_lies_elsewhere_that_is_said_and_how_to_go_on(
    mirror: LocalMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mirror.live / "bulk").write_bytes(os.urandom(EDITED_BYTES))
    name = synced(mirror)
    lost(mirror, name)
    elsewhere = mirror.snapshots.parent / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{cut_send(tmp_path / 'cut', 600_000)}:{os.environ['PATH']}")
        fetch(mirror, "--to", str(elsewhere), status=6)
    (partial,) = [found for found in os.listdir(elsewhere) if not found.endswith(".json")]
    said = message(fetch(mirror, status=10))
    assert f"has left a part of it elsewhere on this filesystem, as elsewhere/{partial}" in said
    assert "name its directory with --to" in said
    assert fetch(mirror, "--to", str(elsewhere))["resumed_from_bytes"] > 0
    assert os.listdir(elsewhere) == [name]


def test_into_a_directory_that_is_mounted_by_itself_or_cannot_be_written_nothing_is_fetched(
    mirror: LocalMirror, tmp_path: Path
) -> None:
    name = synced(mirror)
    lost(mirror, name)
    point = tmp_path / "point"
    point.mkdir()
    command.run(["mount", "--bind", mirror.snapshots, point])
    try:
        said = message(fetch(mirror, "--to", str(point), status=8))
        assert "btrfs receive finds no send parent" in said
        assert fetch(mirror, "--to", str(point), "--dry-run")["result"] == "would_fetch"
    finally:
        command.run(["umount", point])
    source = mirror.snapshots.parent
    command.run(["mount", "-o", "remount,ro", source])
    try:
        said = message(fetch(mirror, status=8))
        assert f"{source} is mounted read-only" in said
    finally:
        command.run(["mount", "-o", "remount,rw", source])
    assert os.listdir(mirror.snapshots) == []


def test_what_goes_wrong_here_is_not_said_to_be_on_the_server(
    mirror: LocalMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost(mirror, synced(mirror))
    real, script = shutil.which("btrfs"), tmp_path / "failing" / "btrfs"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\n[ "$1" = receive ] || exec {real} "$@"\n'
        "cat > /dev/null; echo 'ERROR: it struck' >&2; exit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    said = message(fetch(mirror, status=6))
    assert "it struck" in said
    assert "kept at the receiving end" in said
    assert "server" not in said


def test_files_of_a_parent_are_read_beneath_it_only(mirror: LocalMirror) -> None:
    inside, outside = mirror.live / "inside", mirror.live.parent / "outside"
    outside.write_text("secret")
    inside.mkdir()
    (inside / "file").write_text("0123456789")
    (inside / "link").symlink_to("../../outside")
    (mirror.live / "door").symlink_to("inside")
    os.mkfifo(mirror.live / "pipe")
    command.run(["btrfs", "subvolume", "create", mirror.live / "nested"])
    (mirror.live / "nested" / "file").write_text("another subvolume")
    with FilesBeneath(mirror.live) as files:
        assert files.read(b"inside/file", 3, 4) == b"3456"
        for path in (
            b"../outside",
            b"inside/link",
            b"door/file",
            b"pipe",
            b"nested/file",
            b"/etc/passwd",
            b"inside",
            b"inside/../inside/file",
            b"",
        ):
            with pytest.raises(Exception, match="from which it is cloned"):
                files.read(path, 0, 1)
        with pytest.raises(Exception, match="it ends before"):
            files.read(b"inside/file", 3, 8)
        assert files.read(b"inside/file", 0, 10) == b"0123456789"


def test_a_fetch_that_is_asked_to_stop_when_all_is_received_commits_it(
    mirror: LocalMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(mirror, 9)
    name = synced(mirror)
    before = seen(mirror.snapshots / name)
    lost(mirror, name)
    real, script = shutil.which("btrfs"), tmp_path / "stopping" / "btrfs"
    script.parent.mkdir()
    # It has become of what `btrsync fetch` started, by exec: its parent is that.
    script.write_text(
        f'#!/bin/sh\n[ "$1" = receive ] || exec {real} "$@"\n{real} "$@"; status=$?\n'
        f"kill -TERM $PPID; touch {script}.stopped; exit $status\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    done = mirror.btrsync("fetch", "job")
    assert script.with_name("btrfs.stopped").exists()
    assert done.returncode != 0, "the signal takes effect afterwards"
    assert os.listdir(mirror.snapshots) == [name]
    assert manifest.difference(before, seen(mirror.snapshots / name)) == []
