"""`btrsync array create` on real dm-crypt: what is seen on the disks, what is refused, what a cut leaves."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from harness import command, dmcrypt
from tests.vm.making import FSTAB, ArrayToMake

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "loop", "btrfs", "dm_crypt")]

MIB = 1 << 20
GROUP = "MirrorVG"


@pytest.fixture
def array(tmp_path: Path) -> Iterator[ArrayToMake]:
    with ArrayToMake(tmp_path) as made:
        yield made


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[ArrayToMake]:
    """Two disks: half the time of four, where their number does not matter."""
    with ArrayToMake(tmp_path, disks=2) as made:
        yield made


def refused(array: ArrayToMake, *words: str | Path) -> str:
    """What `create` says when it refuses, having written to nothing."""
    before = array.digests(), array.configuration.read_bytes(), FSTAB.read_bytes(), array.open_names()
    said = array.create(*words)
    assert said.returncode == 10, said
    assert (
        array.digests(),
        array.configuration.read_bytes(),
        FSTAB.read_bytes(),
        array.open_names(),
    ) == before
    assert not array.is_unfinished
    return said.stderr


# Made.


def test_four_disks_become_the_originals_array(array: ArrayToMake) -> None:
    dry = array.create("--dry-run", "--wipe", *array.members)
    assert dry.returncode == 0
    assert "one disk lost is data lost" in dry.stdout
    assert "raid1c3 would survive the loss of two disks" in dry.stdout
    assert "nobody could be asked" in refused(array, "--wipe", *array.members)
    said = array.create(*array.wipe_all())
    assert said.returncode == 0, said
    uuid = array.table["uuid"]
    assert said.stdout == f"array mirror: made, {uuid}; now: btrsync array open mirror\n"
    assert "space_cache was left out" in said.stderr
    assert array.is_closed and not array.is_unfinished
    proc, old, new = FSTAB.read_text().splitlines()
    assert proc == "proc /proc proc defaults 0 0"
    assert old.startswith("# replaced by btrsync array create: UUID=0123456-7890-acbd-ef01-234567890ab")
    options = "noauto,noatime,autodefrag,compress-force=lzo,subvol=mirror"
    assert new == f"UUID={uuid} {array.point} btrfs {options} 0 0"
    assert FSTAB.with_name("fstab.btrsync~").read_text().splitlines()[1].startswith("UUID=0123456")
    before = array.digests()
    again = array.create(*array.wipe_all())
    assert (again.returncode, again.stdout) == (0, f"array mirror: is there, {uuid}; nothing was changed\n")
    assert array.digests() == before
    assert array.btrsync("open", "mirror").returncode == 0
    status = json.loads(array.btrsync("status", "--json").stdout)["arrays"][0]
    assert status["profiles"] == {"data": ["single"], "metadata": ["raid1"], "system": ["raid1"]}
    assert (status["state"], status["problems"]) == ("open", [])
    assert command.run(["btrfs", "filesystem", "label", array.point]).stdout == "MirrorBtr\n"
    assert command.run(["mount", "-o", "remount", array.point]).returncode == 0  # by the line in fstab


def test_luks2_disks_become_an_array(tmp_path: Path) -> None:
    with ArrayToMake(tmp_path, disks=1, type="luks2", cipher="aes-xts-plain64") as array:
        assert array.create(*array.wipe_all()).returncode == 0
        assert "crypto_LUKS" in command.run(["wipefs", "--noheadings", array.members[0]]).stdout


def test_what_lies_before_the_offset_is_left_alone(tmp_path: Path) -> None:
    with ArrayToMake(tmp_path, disks=1, offset_sectors=8 * MIB // 512) as array:
        command.run(["sfdisk", "-q", "--no-reread", array.members[0]], input="label: gpt\n")
        with array.members[0].open("rb") as file:
            before = file.read(8 * MIB)
        assert array.create(*array.wipe_all()).returncode == 0
        with array.members[0].open("rb") as file:
            assert file.read(8 * MIB) == before
        assert array.btrsync("open", "mirror").returncode == 0


# Seen.


def test_what_a_disk_holds_is_told_in_words(array: ArrayToMake, tmp_path: Path) -> None:
    table, swap, noise, blank = array.members
    command.run(["sfdisk", "-q", "--no-reread", table], input="label: gpt\n,50M,L\n")
    command.run(["partx", "--add", table])
    with (tmp_path / "xfs").open("wb") as file:
        file.truncate(400 * MIB)
    command.run(["mkfs.xfs", "-q", "-L", "slave", tmp_path / "xfs"])
    command.run(["dd", f"if={tmp_path}/xfs", f"of={table.resolve()}p1", "bs=1M", "count=1", "status=none"])
    command.run(["mkswap", "-L", "paging", swap])
    command.run(["dd", "if=/dev/urandom", f"of={noise}", "bs=1M", "count=1", "seek=60", "status=none"])
    said = array.create("--dry-run").stdout
    assert f"{table} is {table.resolve()}, 128.0 MiB: partition table (gpt)\n" in said
    assert f'{table.resolve()}p1, 50.0 MiB: XFS "slave"\n' in said
    assert 'swap space "paging"' in said
    assert f"{noise} is {noise.resolve()}, 128.0 MiB: no signature, and not blank: encrypted" in said
    assert f"{blank} is {blank.resolve()}, 128.0 MiB: zeros wherever it was looked at" in said
    assert array.create(*array.wipe_all()).returncode == 0
    assert command.run(["wipefs", "--noheadings", *array.members]).stdout == ""
    command.run(["partx", "--delete", "--nr", "1", table])


def test_active_lvm_is_named_or_ended(array: ArrayToMake, tmp_path: Path) -> None:
    slave = tmp_path / "MirrorSlave"
    slave.mkdir()
    first, second, *_ = array.members
    with ExitStack() as undo:
        env = dmcrypt.ENVIRONMENT
        command.run(["pvcreate", "-q", first.resolve(), second.resolve()], env=env)
        command.run(["vgcreate", "-q", GROUP, first.resolve(), second.resolve()], env=env)
        undo.callback(command.run, ["vgchange", "-q", "-a", "n", GROUP], env=env, ok=None)
        command.run(["lvcreate", "-q", "-Zn", "-Wn", "-n", "Mirror-LV", "-l", "100%FREE", GROUP], env=env)
        mapped = Path("/dev/mapper/MirrorVG-Mirror--LV")
        command.run(["mkfs.ext4", "-q", mapped])
        command.run(["mount", "-o", "ro,noload", mapped, slave])
        undo.callback(command.run, ["umount", slave], ok=None)
        said = refused(array, *array.wipe_all())
        assert "physical volume of LVM, volume group MirrorVG, active" in said
        assert f"ext4; mounted at {slave}" in said
        assert f"umount -- {slave}; --deactivate runs that" in said
        assert "vgchange --activate n -- MirrorVG; --deactivate runs that" in said
        assert slave.is_mount()
        ended = array.create(*array.wipe_all(), "--deactivate")
        assert ended.returncode == 0, ended
        assert not slave.is_mount()
        assert not mapped.exists()
        assert "LVM2" not in command.run(["wipefs", *array.members]).stdout
    assert array.btrsync("open", "mirror").returncode == 0


def test_lvm_behind_the_key_is_seen_and_let_go_of(pair: ArrayToMake) -> None:
    env = dmcrypt.ENVIRONMENT
    with pair.opened_by_hand() as devices:
        # The original's disks before the change: LVM and XFS, behind the same key.
        command.run(["pvcreate", "-q", *devices], env=env)
        command.run(["vgcreate", "-q", GROUP, *devices], env=env)
        command.run(["lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "LV", "-l", "100%FREE", GROUP], env=env)
    assert "behind the configured key: physical volume of LVM, volume group MirrorVG, not" in refused(pair)
    # As a killed look leaves them, and udev has activated the group.
    for number, member in enumerate(pair.members, 1):
        command.run(dmcrypt.open_argv(member, f"btrdm_look_{number:02}", pair.key), env=env)
    command.run(["vgchange", "-q", "-a", "y", GROUP], env=env)
    assert len(pair.open_names()) == 2
    assert pair.create(*pair.wipe_all()).returncode == 0
    assert pair.is_closed
    assert pair.btrsync("open", "mirror").returncode == 0


# Refused.


def test_an_array_that_the_key_shows_must_be_named(pair: ArrayToMake) -> None:
    pair.make()  # another than the one configured, which is none yet
    said = refused(pair, *pair.wipe_all())
    assert f"the btrfs {pair.uuid} ('MirrorBtr') is on {pair.members[0]}, behind the configured key" in said
    assert f'write uuid = "{pair.uuid}"' in said
    assert "no disk shows the btrfs" in refused(pair, *pair.wipe_all(), "--wipe-array", str(uuid4()))
    with pair.opened_by_hand():
        # Another mapping of it, by another name: a use to be ended before.
        assert pair.open_names() == ["btrdm_01", "btrdm_02"]
        assert str(pair.uuid) in refused(pair, *pair.wipe_all())
    assert pair.create(*pair.wipe_all(), "--wipe-array", str(pair.uuid)).returncode == 0
    assert pair.table["uuid"] != str(pair.uuid)


def test_this_very_array_with_a_disk_overwritten_is_not_made_anew(pair: ArrayToMake) -> None:
    assert pair.create(*pair.wipe_all()).returncode == 0
    assert pair.btrsync("open", "mirror").returncode == 0
    (pair.point / "file").write_bytes(b"kept")
    assert pair.btrsync("close", "mirror").returncode == 0
    command.run(["dd", "if=/dev/urandom", f"of={pair.members[1]}", "bs=1M", "count=1", "status=none"])
    uuid = pair.table["uuid"]
    said = refused(pair, *pair.wipe_all())
    assert "this very array, though not complete: no btrfs behind" in said
    anew = pair.create(*pair.wipe_all(), "--wipe-array", uuid)
    assert anew.returncode == 0
    # A member of the old one in a drawer must not be taken for one of the new.
    assert pair.table["uuid"] != uuid


def test_a_btrfs_in_the_clear_must_be_named(pair: ArrayToMake) -> None:
    uuid = str(uuid4())
    command.run(["mkfs.btrfs", "-q", "-U", uuid, pair.members[0].resolve()])
    said = refused(pair, *pair.wipe_all())
    assert f"the btrfs {uuid} is on {pair.members[0].resolve()}" in said
    assert pair.create(*pair.wipe_all(), "--wipe-array", uuid).returncode == 0


def test_a_disk_of_an_array_with_another_key_shows_nothing_and_must_be_named(pair: ArrayToMake) -> None:
    pair.make()
    pair.key.unlink()
    dmcrypt.write_key(pair.key)
    said = refused(pair, "--yes", "--wipe", pair.members[0])
    assert said.count("no signature, and not blank: encrypted without a header, perhaps") == 2
    assert f"all that is on {pair.members[1]} would be lost, and --wipe does not name it" in said


def test_disks_that_are_one_or_lie_on_one_another_or_are_anothers_are_refused(pair: ArrayToMake) -> None:
    first, second = pair.members
    alias = first.with_name("wwn-1")
    alias.symlink_to(first.resolve())
    foreign = second.with_name("foreign")
    text = pair.configuration.read_text()
    pair.configuration.write_text(text.replace(f'"{second}"', f'"{alias}"'))
    assert f"{first} and {alias} are one disk" in refused(pair, *pair.wipe_all()[:-1])
    foreign.symlink_to(second.resolve())
    other = text.partition("[arrays.mirror]")[2].replace("btrdm_", "other_").replace("MirrorRoot", "Other")
    other = other.replace(f'"{first}", "{second}"', f'"{foreign}"')
    pair.configuration.write_text(f"{text}\n[arrays.other]\n{other}")
    assert f"{second} is a member of arrays.other" in refused(pair, *pair.wipe_all())
    pair.configuration.write_text(text)
    command.run(["sfdisk", "-q", "--no-reread", first], input="label: gpt\n,50M,L\n")
    command.run(["partx", "--add", first])
    part = Path(f"{first.resolve()}p1")
    try:
        pair.configuration.write_text(text.replace(f'"{second}"', f'"{part}"'))
        said = refused(pair, "--yes", "--uneven", "--wipe", first, part)
        assert f"{part} lies on {first}, the whole disk" in said
    finally:
        command.run(["partx", "--delete", "--nr", "1", first])


def test_the_disk_that_holds_the_key_is_never_written_to(pair: ArrayToMake, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    command.run(["mkfs.ext4", "-q", pair.members[0].resolve()])
    command.run(["mount", pair.members[0].resolve(), kept])
    try:
        dmcrypt.write_key(kept / "key", pair.key.read_bytes())
        pair.configuration.write_text(pair.configuration.read_text().replace(str(pair.key), f"{kept}/key"))
        command.run(["sync"])
        said = pair.create(*pair.wipe_all(), "--deactivate")
        assert said.returncode == 10
        assert f"{pair.members[0]} holds {kept}/key, without which the array cannot be opened" in said.stderr
        assert kept.is_mount()
    finally:
        command.run(["umount", kept])


# Cut short.

HALF_MADE = "dd if=/dev/zero of=/dev/mapper/btrdm_02 bs=4096 seek=16 count=1 conv=fsync"
"""The superblocks are written one after another, and the magic comes last."""
CUTS = {
    "before the mappings open": ("cryptsetup", "*open*ata-2*btrdm_02", "", True),
    "before mkfs": ("mkfs.btrfs", "*", "", False),
    "between the superblocks of mkfs": ("mkfs.btrfs", "*", HALF_MADE, True),
    "after mkfs": ("mkfs.btrfs", "*", "true", False),
    "before the subvolume": ("btrfs", "*scan*/dev/mapper/btrdm_01*/dev/mapper/btrdm_02", "", True),
}
"""The program that is started then and its words, what is done after it, and whether its mappings go too."""


@pytest.mark.parametrize("cut", CUTS)
def test_a_create_that_was_cut_is_gone_on_with(pair: ArrayToMake, cut: str) -> None:
    program, words, after, loses_power = CUTS[cut]
    with pair.killed_at(program, words, after=after) as env:
        said = pair.create(*pair.wipe_all(), env=env)
    assert said.returncode == -9, said
    if loses_power:
        pair.close_by_hand()
    recorded = pair.table["uuid"]
    assert pair.is_unfinished == (cut != "before the subvolume")
    again = pair.create(*pair.wipe_all())
    assert again.returncode == 0, again
    assert pair.table["uuid"] == recorded
    assert not pair.is_unfinished
    assert FSTAB.read_text().count(f"UUID={recorded}") == 1
    opened = pair.btrsync("open", "mirror")
    assert opened.returncode == 0, opened
    assert pair.point.stat().st_ino == 256


def test_what_a_cut_create_left_is_not_open(pair: ArrayToMake) -> None:
    with pair.killed_at("mkfs.btrfs", "*", after=HALF_MADE) as env:
        assert pair.create(*pair.wipe_all(), env=env).returncode == -9
    pair.close_by_hand()
    said = pair.btrsync("open", "mirror")
    assert said.returncode == 8
    # And without its disks named, the next run does not go on either.
    assert "--wipe does not name" in pair.create("--yes").stderr
