"""`btrsync array add`, `replace` and `scrub` on real dm-crypt: healthy, missing, stale and cut short."""

from __future__ import annotations

import json
import os
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness import command, dmcrypt, wait
from tests.vm.encrypted import BTRSYNC
from tests.vm.making import ArrayToMake

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "loop", "btrfs", "dm_crypt")]

MIB = 1 << 20
UUID = "7ebc7d8d-35c6-4d98-8457-3323c242e9fe"


@pytest.fixture
def array(tmp_path: Path) -> Iterator[ArrayToMake]:
    """Three disks, all of it raid1, open, with some data; a replacement needs room that is not allocated."""
    with ArrayToMake(tmp_path, disks=3) as made:
        made.settings["uuid"] = str(made.uuid)
        made.write_configuration()
        made.make(data="raid1")
        assert made.btrsync("open", "mirror").returncode == 0
        write(made, "data")
        yield made


def write(array: ArrayToMake, name: str) -> None:
    """Write a file, in several transactions."""
    for number in range(4):
        (array.point / f"{name}-{number}").write_bytes(os.urandom(MIB))
        command.run(["btrfs", "filesystem", "sync", array.point])


def done(array: ArrayToMake, *words: str | Path) -> str:
    said = array.btrsync(*words)
    assert said.returncode == 0, said
    return said.stdout + said.stderr


def refused(array: ArrayToMake, *words: str | Path) -> str:
    before = array.digests(), array.configuration.read_bytes(), array.open_names()
    said = array.btrsync(*words)
    assert said.returncode in (8, 10), said
    assert (array.digests(), array.configuration.read_bytes(), array.open_names()) == before
    return said.stderr


def status(array: ArrayToMake) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(array.btrsync("status", "--json").stdout)["arrays"][0]
    return found


def assert_whole(array: ArrayToMake, *, disks: int = 3) -> None:
    """It is complete, scrubs clean, and comes back after a close with nothing to look at."""
    done(array, "close", "mirror")
    assert f"all {disks} members" in done(array, "open", "mirror")
    assert "no errors" in done(array, "scrub", "mirror")
    found = status(array)
    assert (found["problems"], len(found["members"])) == ([], disks)
    assert (found["last_scrub"]["is_finished"], found["last_scrub"]["corrected_errors"]) == (True, 0)


def test_a_disk_is_added_and_a_cut_leaves_an_array_that_opens(array: ArrayToMake) -> None:
    new = array.add_disk("new")
    assert "say so with --wipe" in refused(array, "add", "mirror", new, "--yes")
    assert f"{array.members[0]} is a member already" in done(array, "add", "mirror", array.members[0])
    with array.killed_at("btrfs", "'device add'*") as env:
        assert array.btrsync("add", "mirror", new, "--wipe", "--yes", env=env).returncode == -9
    array.close_by_hand()
    assert array.table["members"][-1] == str(new)
    assert f"{new} left out: no btrfs there" in done(array, "open", "mirror")
    assert "is a member now" in done(array, "add", "mirror", new, "--wipe", "--yes")
    assert_whole(array, disks=4)


def test_a_disk_is_replaced_by_a_larger_one_which_is_used_wholly(array: ArrayToMake) -> None:
    old, other, third = array.members
    new = array.larger_disk("new", 400 * MIB)
    small = array.larger_disk("small", 64 * MIB)
    assert "the disk in whose place it comes" in refused(
        array, "replace", "mirror", old, small, "--wipe", "--yes"
    )
    assert "is none of its members" in refused(array, "replace", "mirror", small, new, "--wipe", "--yes")
    assert "is a member already" in refused(array, "replace", "mirror", old, other, "--wipe", "--yes")
    assert f"{new} is the member with devid 1 now" in done(
        array, "replace", "mirror", old, new, "--wipe", "--yes"
    )
    assert array.table["members"] == [str(new), str(other), str(third)]
    assert array.open_names() == ["btrdm_01", "btrdm_02", "btrdm_03"]
    assert status(array)["members"][0]["total_bytes"] == 400 * MIB
    assert_whole(array)


@pytest.mark.parametrize("is_reopened", [True, False], ids=["reopened", "open"])
def test_a_replacement_that_was_cut_is_gone_on_with(array: ArrayToMake, is_reopened: bool) -> None:
    old, other, third = array.members
    new = array.add_disk("new")
    with array.killed_at("btrfs", "'replace start'*", after="true") as env:
        assert array.btrsync("replace", "mirror", old, new, "--wipe", "--yes", env=env).returncode == -9
    assert array.table["members"] == [str(old), str(other), str(third), str(new)]
    if is_reopened:
        # While the kernel copies, the command that began it keeps the array in use.
        wait.until(
            lambda: array.btrsync("close", "mirror").returncode == 0, timeout_s=60, what="it can be closed"
        )
        done(array, "open", "mirror")
    done(array, "replace", "mirror", old, new, "--wipe", "--yes")
    assert array.table["members"] == [str(new), str(other), str(third)]
    assert_whole(array)


def test_a_missing_disk_is_replaced(array: ArrayToMake) -> None:
    old, other, third = array.members
    new = array.add_disk("new")
    done(array, "close", "mirror")
    link = old.readlink()
    old.unlink()
    done(array, "open", "mirror", "--degraded")
    assert "it is mounted read-only" in refused(array, "replace", "mirror", old, new, "--wipe", "--yes")
    assert "it is mounted read-only" in refused(array, "add", "mirror", new, "--wipe", "--yes")
    done(array, "open", "mirror", "--degraded", "--read-write")
    assert "it is degraded, and is made whole first" in refused(
        array, "add", "mirror", new, "--wipe", "--yes"
    )
    write(array, "later")
    done(array, "replace", "mirror", old, new, "--wipe", "--yes")
    assert array.table["members"] == [str(new), str(other), str(third)]
    command.run(
        ["btrfs", "balance", "start", "-dconvert=raid1,soft", "-mconvert=raid1,soft", "-f", array.point]
    )
    assert_whole(array)
    old.symlink_to(link)


def test_a_stale_disk_is_given_back_as_a_new_one(array: ArrayToMake) -> None:
    old, *_ = array.members
    done(array, "close", "mirror")
    link = old.readlink()
    old.unlink()
    done(array, "open", "mirror", "--degraded", "--read-write")
    write(array, "later")
    done(array, "close", "mirror")
    old.symlink_to(link)
    assert "generations behind" in array.btrsync("open", "mirror").stderr
    done(array, "open", "mirror", "--degraded", "--read-write")
    # As udev does when a mapping of it appears: the kernel takes it for no more missing.
    command.run(dmcrypt.open_argv(old, "udev", array.key), env=dmcrypt.ENVIRONMENT)
    command.run(["btrfs", "device", "scan", "/dev/mapper/udev"])
    command.run(["dmsetup", "remove", "udev"], env=dmcrypt.ENVIRONMENT)
    assert status(array)["is_degraded"]
    again: list[str | Path] = ["replace", "mirror", old, old, "--wipe", "--yes"]
    assert f"name it too: --wipe-array {array.uuid}" in refused(array, *again)
    done(array, *again, "--wipe-array", str(array.uuid))
    command.run(
        ["btrfs", "balance", "start", "-dconvert=raid1,soft", "-mconvert=raid1,soft", "-f", array.point]
    )
    assert_whole(array)


def test_a_scrub_that_repaired_something_ends_with_1_and_status_tells(array: ArrayToMake) -> None:
    assert "no errors" in done(array, "scrub", "mirror")
    allocated = [member["allocated_bytes"] for member in status(array)["members"]]
    done(array, "close", "mirror")
    damaged = array.members[max(range(3), key=lambda index: allocated[index])]
    with array.opened_by_hand([damaged]) as (mapping,):
        # Around the superblocks, of which one error each would be counted.
        for words in (["seek=2", "count=60"], ["seek=66", "count=60"]):
            command.run(["dd", "if=/dev/urandom", f"of={mapping}", "bs=1M", *words, "conv=fsync"])
    done(array, "open", "mirror")
    # The fault strikes: btrfs itself ends with 0.
    said = array.btrsync("scrub", "mirror")
    assert said.returncode == 1, said
    assert "errors corrected, 0 not correctable" in said.stdout
    found = status(array)
    assert found["last_scrub"]["corrected_errors"] > 0
    assert any("the last scrub found" in problem for problem in found["problems"])
    assert array.btrsync("status").returncode == 1
    command.run(["btrfs", "device", "stats", "-z", array.point])
    assert "no errors" in done(array, "scrub", "mirror")
    done(array, "close", "mirror")
    assert "it is not open" in array.btrsync("scrub", "mirror").stderr


def test_a_replacement_that_breaks_off_takes_the_new_disk_back(tmp_path: Path) -> None:
    # The kernel sets chunks read-only before it copies them, and has no room for others here.
    with ArrayToMake(tmp_path, disks=2, uuid=UUID) as array:
        array.uuid = uuid.UUID(UUID)
        array.make(data="raid1")
        new = array.add_disk("new")
        done(array, "open", "mirror")
        before = array.configuration.read_bytes(), array.open_names()
        said = array.btrsync("replace", "mirror", array.members[0], new, "--wipe", "--yes")
        assert (said.returncode, "broke off" in said.stderr) == (8, True), said
        assert (array.configuration.read_bytes(), array.open_names()) == before


def test_a_scrub_that_is_stopped_stops_in_the_kernel_and_is_gone_on_with(array: ArrayToMake) -> None:
    speeds = list(Path(f"/sys/fs/btrfs/{array.uuid}/devinfo").glob("*/scrub_speed_max"))
    assert speeds
    for name in ("more", "and-more", "and-yet-more"):
        write(array, name)
    for speed in speeds:
        speed.write_text(str(MIB))
    argv = [*BTRSYNC, "array", "scrub", "mirror", "--config", str(array.configuration)]
    with command.spawn(argv) as process:
        wait.until(lambda: "about" in process.stderr, timeout_s=30, what="it is at work")
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    found = status(array)["last_scrub"]
    assert (found["is_canceled"], found["is_finished"]) == (True, False)
    for speed in speeds:
        speed.write_text("0")
    assert "no errors" in done(array, "scrub", "mirror", "--resume")
    assert status(array)["last_scrub"]["is_finished"]
