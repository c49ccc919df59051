"""The scenario: two hosts ready for a sync, and what looks at them."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import faults, sshd, tree
from harness.command import CommandFailed
from harness.scenario import CLIENT_FILE, SERVER_ROOT, Job, Target, TwoHosts, format_toml

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.requires("host", "veth", "btrfs", "sshd")

SMALL_BYTES = 256 << 20


@pytest.fixture
def both() -> Iterator[TwoHosts]:
    with TwoHosts(members=1, size_bytes=SMALL_BYTES, source_size_bytes=SMALL_BYTES) as made:
        yield made


@pytest.fixture
def synced(both: TwoHosts) -> str:
    """Return the name of a snapshot that was sent."""
    (both.source() / "tree").mkdir()
    tree.generate(both.source() / "tree", 1, "tiny")
    return str(both.sync().outcome()["snapshot"])


def test_a_sync_is_sent_as_it_stands(both: TwoHosts, synced: str) -> None:
    assert both.snapshots() == [synced] and both.backups() == [synced]
    assert both.differences(synced) == []
    assert both.bytes_on_link() > 10_000


def test_the_array_is_that_of_the_original(both: TwoHosts) -> None:
    mounts = [line.split() for line in Path(f"/proc/{both.daisy.pid}/mounts").read_text().splitlines()]
    options = next(words[3] for words in mounts if words[1] == "/MirrorRoot").split(",")
    assert {"noatime", "autodefrag", "compress-force=lzo", "subvol=/mirror"} <= set(options)
    root = both.daisy.path(SERVER_ROOT).stat()
    assert (stat.S_IMODE(root.st_mode), root.st_uid) == (0o700, 0)


def test_the_key_opens_nothing_but_the_forced_command(both: TwoHosts) -> None:
    said = both.workstation.run(
        ["ssh", "-o", "BatchMode=yes", "-i", "/root/.ssh/btrsync", "daisy", "touch /root/by-the-client"],
        ok=None,
        timeout_s=30,
    )
    assert said.stdout.startswith("btrsync"), "the tool's banner"
    assert not both.daisy.path("/root/by-the-client").exists()
    assert "forced-command (key-option)" in both.sshd.log_text()


def test_a_planted_difference_is_found(both: TwoHosts, synced: str) -> None:
    backup = both.backup_directory() / synced
    both.daisy.run(
        ["btrfs", "property", "set", "-f", f"{SERVER_ROOT}/workstation/share/{synced}", "ro", "false"]
    )
    os.chmod(backup / "tree/data", 0o700)
    (found,) = both.differences(synced)
    assert found.startswith("tree/data: mode")


def test_hidden_names_of_the_server_are_seen(both: TwoHosts, synced: str) -> None:
    (both.backup_directory() / ".incoming-left").mkdir()
    assert both.backups() == [".incoming-left", synced]


@pytest.mark.parametrize("touch", ["make", "chmod", "rename"])
def test_the_listing_of_the_server_shows_that_it_was_touched(both: TwoHosts, synced: str, touch: str) -> None:
    before = both.server_listing()
    assert both.server_listing() == before
    directory = both.backup_directory()
    if touch == "make":
        (directory.parent / "more").mkdir()
    elif touch == "chmod":
        directory.chmod(0o711)
    else:
        (directory / synced).rename(directory / "renamed")
    assert both.server_listing() != before


def test_a_failed_sync_can_be_looked_at(both: TwoHosts) -> None:
    both.link.cut()
    run = both.sync(
        "--config", both.write_client_file(Path("/etc/btrsync/short.toml"), connect_timeout_s=1), ok=None
    )
    both.link.restore()
    assert run.returncode == 5
    assert run.outcome()["error"]["exit_status"] == 5
    with pytest.raises(LookupError, match="no outcome for share at nowhere"):
        run.outcome("share", "nowhere")
    with pytest.raises(CommandFailed):
        both.sync("no-such-job")


def test_a_running_sync_can_be_watched(both: TwoHosts) -> None:
    (both.source() / "noise").write_bytes(os.urandom(4 << 20))
    both.link.slow(8_000_000)
    with both.syncing() as process:
        faults.wait_for_process(both.daisy, "btrfs receive")
        assert process.poll() is None
        assert process.wait(60) == 0


def test_rsa_keys_open_the_same_door() -> None:
    with TwoHosts(members=1, size_bytes=SMALL_BYTES, source_size_bytes=SMALL_BYTES, kind="rsa") as both:
        assert both.workstation.read_text("/root/.ssh/btrsync.pub").startswith("ssh-rsa ")
        assert both.sync().outcome()["result"] == "sent"


def test_several_jobs_and_targets_anywhere() -> None:
    """Outside of the one mount, one below the other, with snapshots elsewhere, to a local disk, to a second port."""
    outer = Job("outer", Path("/data"), Path("/snapshots of data/outer"), ("daisy", "usb"))
    inner = Job("inner", Path("/data/in ner"), Path("/data/in ner/.snapshots"), ("offsite",))
    targets = (
        Target(client="one", host="daisy.example.org", key_file=Path("/root/.ssh/one")),
        Target("offsite", client="two", key_file=Path("/root/.ssh/two"), port=2222),
        Target("usb", path=Path("/mnt/u sb/btrsync")),
    )
    with TwoHosts(jobs=(inner, outer), targets=targets, members=1, source_mount=None) as both:
        run = both.sync()
        for job, target in (("outer", "daisy"), ("outer", "usb"), ("inner", "offsite")):
            name = run.outcome(job, target)["snapshot"]
            assert both.backups(job, target) == [name]
            assert both.differences(name, job, target) == []
        listed = [line.split()[0] for line in both.server_listing()]
        assert {"one/outer", "two/inner"} <= set(listed)


def test_a_mount_over_the_interpreter_and_the_clone_hides_neither() -> None:
    needed = [path for path in TwoHosts().workstation.binds if len(Path(path).parts) > 2]
    if not needed:
        pytest.skip("everything that runs the tool lies in directories of the system")
    covering = Path("/", Path(needed[0]).parts[1])
    job = Job("all", covering, covering / ".snapshots")
    with TwoHosts(jobs=[job], members=1, source_mount=None) as both:
        assert both.sync().outcome("all")["result"] == "sent"


def test_the_configuration_says_what_the_scenario_is(both: TwoHosts) -> None:
    table = tomllib.loads(both.workstation.read_text(CLIENT_FILE))
    assert table["jobs"]["share"]["subvolume"] == "/home/foo/share"
    assert table["targets"]["daisy"] == {"host": "daisy", "port": 22, "key": "/root/.ssh/btrsync"}


@pytest.mark.parametrize("value", ['a"b\\c', "日本", 7, True, ["x=y", "z"], "\x7f\t"])
def test_toml_is_read_back_as_it_was(value: object) -> None:
    assert tomllib.loads(format_toml({("targets", "daisy.local"): {"key": value}})) == {
        "targets": {"daisy.local": {"key": value}}
    }


def test_what_fails_half_way_is_taken_down() -> None:
    both = TwoHosts(members=1, size_bytes=SMALL_BYTES, sshd_options=["NoSuchKeyword yes"])
    with pytest.raises((CommandFailed, sshd.SshdFailed)):
        both.__enter__()
    assert not both.workstation.is_alive and not both.daisy.is_alive
