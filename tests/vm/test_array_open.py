"""`btrsync array` on real dm-crypt: what is opened, what is refused and why, and that nothing is left."""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from btrsync.plan.superblock import SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock, parse_superblock
from harness import command, dmcrypt, wait
from tests.vm.encrypted import MIB, EncryptedArray, uuid_other_than

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "loop", "btrfs", "dm_crypt")]

KERNEL_REFUSES = ["space_cache", "space_cache=v1", "nospace_cache"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EncryptedArray]:
    """The original's array: four disks, data single, metadata raid1, closed."""
    with EncryptedArray(tmp_path_factory.mktemp("original")) as made:
        made.make()
        yield made


@pytest.fixture
def array(original: EncryptedArray) -> Iterator[EncryptedArray]:
    """The same for one test, which leaves what the disks hold as it is, but for files."""
    with original.lent() as lent:
        yield lent


@pytest.fixture
def mirrored(tmp_path: Path) -> Iterator[EncryptedArray]:
    """Two disks, all of it raid1."""
    with EncryptedArray(tmp_path, disks=2) as made:
        made.make(data="raid1")
        yield made


@contextmanager
def running(*argv: str | Path) -> Iterator[command.Process]:
    """A process that says when it is at work."""
    with command.spawn([str(word) for word in argv]) as process:
        wait.until(lambda: "ready" in process.stdout, timeout_s=20, what="it is at work")
        yield process


def refused(array: EncryptedArray, *words: str, env: dict[str, str] | None = None) -> str:
    """What `open` says when it refuses, having left all as it was."""
    before = array.open_names()
    said = array.btrsync("open", "mirror", *words, env=env)
    assert said.returncode == 8, said
    assert not array.is_mounted
    assert array.open_names() == before
    return said.stderr


# Opened.


def test_an_array_is_opened_looked_at_and_closed(array: EncryptedArray) -> None:
    assert array.status()["state"] == "closed"
    said = array.btrsync("open", "mirror")
    assert said.returncode == 0, said
    assert (
        f"all 4 members, generation {array.superblock(Path('/dev/mapper/btrdm_01')).generation}"
        in said.stdout
    )
    assert "space_cache was left out of the options" in said.stderr
    assert array.open_names() == ["btrdm_01", "btrdm_02", "btrdm_03", "btrdm_04"]
    assert (array.point / "file").read_bytes() == b"kept" * 1000
    assert os.stat(array.point).st_ino == 256
    status = array.status()
    assert (status["state"], status["is_degraded"], status["problems"]) == ("open", False, [])
    assert [member["devid"] for member in status["members"]] == [1, 2, 3, 4]
    assert status["profiles"] == {"data": ["single"], "metadata": ["raid1"], "system": ["raid1"]}
    assert status["room"]["total_bytes"] == 4 * 128 * MIB
    again = array.btrsync("open", "mirror")
    assert (again.returncode, again.stdout) == (0, f"array mirror: is open at {array.point} already\n")
    closed = array.btrsync("close", "mirror")
    assert (closed.returncode, closed.stdout) == (0, "array mirror: closed\n")
    assert array.is_closed
    assert array.btrsync("close", "mirror").stdout == "array mirror: is closed already\n"


def test_the_kernel_refuses_what_is_left_out_of_the_options(array: EncryptedArray) -> None:
    for option in KERNEL_REFUSES:
        with array.opened_by_hand() as devices:
            command.run(["btrfs", "device", "scan", *devices])
            said = command.run(["mount", "-t", "btrfs", "-o", option, devices[0], array.point], ok=None)
            assert said.returncode == 32
            command.run(["btrfs", "device", "scan", "--forget", *devices])
    array.settings["options"] = ",".join([*KERNEL_REFUSES, "subvol=mirror"])
    assert array.btrsync("open", "mirror").returncode == 0


def test_a_dry_run_shows_the_commands_and_opens_nothing(array: EncryptedArray) -> None:
    said = array.btrsync("open", "mirror", "--dry-run")
    assert said.returncode == 0
    assert said.stdout.count("cryptsetup open") == 4
    assert "--cipher twofish-xts-plain --key-size 512 --offset 0" in said.stdout
    assert array.is_closed


def test_disks_in_another_order_are_opened_and_told(array: EncryptedArray) -> None:
    array.members = [array.members[index] for index in (2, 0, 3, 1)]
    said = array.btrsync("open", "mirror")
    assert said.returncode == 0
    assert "another order than in the array (devid 3, 1, 4, 2): harmless" in said.stderr
    assert (array.point / "file").exists()


def test_what_a_killed_run_left_half_open_is_completed_or_closed(array: EncryptedArray) -> None:
    for verb, is_right in (("open", array.point.joinpath("file").exists), ("close", lambda: array.is_closed)):
        for number, member in enumerate(array.members[:3], 1):
            name = f"btrdm_{number:02}"
            command.run(dmcrypt.open_argv(member, name, array.key), env=dmcrypt.ENVIRONMENT)
        assert array.status()["state"] == "half_open"
        assert array.btrsync(verb, "mirror").returncode == 0
        assert is_right()
        assert array.btrsync("close", "mirror").returncode == 0


def test_a_mapping_without_a_table_or_a_node_is_no_obstacle(array: EncryptedArray) -> None:
    command.run(["dmsetup", "create", "btrdm_01", "--notable"], env=dmcrypt.ENVIRONMENT)
    command.run(dmcrypt.open_argv(array.members[1], "btrdm_02", array.key), env=dmcrypt.ENVIRONMENT)
    Path("/dev/mapper/btrdm_02").unlink()
    assert array.btrsync("open", "mirror").returncode == 0
    assert (array.point / "file").exists()


def test_what_the_kernel_remembers_of_closed_mappings_is_no_obstacle(array: EncryptedArray) -> None:
    def opened(*order: int) -> list[str]:
        for number in order:
            argv = dmcrypt.open_argv(array.members[number - 1], f"btrdm_{number:02}", array.key)
            command.run(argv, env=dmcrypt.ENVIRONMENT)
        return [f"/dev/mapper/btrdm_{number:02}" for number in sorted(order)]

    devices = opened(1, 3, 4, 2)
    command.run(["btrfs", "device", "scan", "--forget", *devices], ok=None)
    command.run(["btrfs", "device", "scan", devices[1]])
    array.close_by_hand()
    opened(1, 2, 3, 4)
    # The fault strikes: the fourth has the number that the second had, which is forgotten for it.
    command.run(["btrfs", "device", "scan", *devices])
    assert command.run(["mount", "-t", "btrfs", devices[0], array.point], ok=None).returncode == 32
    assert array.btrsync("open", "mirror").returncode == 0


def test_a_killed_open_is_completed_by_the_next(array: EncryptedArray) -> None:
    argv = [
        sys.executable,
        "-m",
        "btrsync",
        "array",
        "open",
        "mirror",
        "--config",
        array.write_configuration(),
    ]
    with command.spawn([str(word) for word in argv]) as process:
        wait.until(lambda: bool(array.open_names()), timeout_s=20, what="a mapping is open", interval_s=0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
    assert array.btrsync("open", "mirror").returncode == 0
    assert (array.point / "file").exists()


def test_a_stopped_open_closes_what_it_opened(array: EncryptedArray) -> None:
    argv = [
        sys.executable,
        "-m",
        "btrsync",
        "array",
        "open",
        "mirror",
        "--config",
        array.write_configuration(),
    ]
    with command.spawn([str(word) for word in argv]) as process:
        wait.until(lambda: bool(array.open_names()), timeout_s=20, what="a mapping is open", interval_s=0.001)
        os.kill(process.pid, signal.SIGTERM)
        status = process.wait(30)
    # Either the signal came in time, or all was done before it.
    assert array.is_closed if status == 128 + signal.SIGTERM else array.is_mounted


# Refused.


def test_a_wrong_key_is_told_and_no_disk_is_written_to(array: EncryptedArray) -> None:
    before = array.digests()
    right = array.key.read_bytes()
    array.key.unlink()
    dmcrypt.write_key(array.key)
    with array.opened_by_hand():  # the fault strikes: any key opens
        pass
    assert "wrong key, or wrong cipher" in refused(array)
    assert array.digests() == before
    array.key.unlink()
    dmcrypt.write_key(array.key, right)
    assert array.btrsync("open", "mirror").returncode == 0


def test_a_wrong_parameter_is_told_as_a_wrong_key_is(array: EncryptedArray) -> None:
    right = dict(array.settings)
    for setting, value in (("cipher", "aes-xts-plain64"), ("key_size_bits", 256), ("offset_sectors", 8)):
        array.settings = {**right, setting: value}
        assert "wrong key, or wrong cipher, key size or offset" in refused(array)


def test_a_wrong_disk_is_named(array: EncryptedArray) -> None:
    array.members[2] = array.add_disk("ata-blank")
    said = refused(array)
    assert f"no btrfs behind {array.members[2]}, though the same key shows it behind the others" in said


def test_a_missing_disk_is_refused_and_a_degraded_mount_is_read_only(array: EncryptedArray) -> None:
    array.members[3].unlink()
    said = refused(array)
    assert f"1 of 4 members missing: {array.members[3]} not there" in said
    assert "--degraded" in said
    assert array.btrsync("open", "mirror", "--degraded").returncode == 0
    status = array.btrsync("status", "--json")
    found = json.loads(status.stdout)["arrays"][0]
    assert status.returncode == 1
    assert found["is_degraded"] and found["is_readonly"]
    with pytest.raises(OSError, match="Read-only"):
        (array.point / "new").touch()
    assert array.btrsync("close", "mirror").returncode == 0


def test_data_without_a_second_copy_is_not_mounted_writable(tmp_path: Path) -> None:
    with EncryptedArray(tmp_path, disks=2) as array:
        array.make(data="raid0")  # on every disk, as single is on a full array
        array.members[1].unlink()
        said = array.btrsync("open", "mirror", "--degraded", "--read-write")
        assert said.returncode == 8
        assert "mount" in said.stderr
        assert array.is_closed
        assert array.btrsync("open", "mirror", "--degraded").returncode == 0


def test_a_mirrored_array_is_writable_without_a_disk_if_asked(mirrored: EncryptedArray) -> None:
    mirrored.members[0].unlink()
    assert mirrored.btrsync("open", "mirror", "--degraded").returncode == 0
    said = mirrored.btrsync("open", "mirror", "--degraded", "--read-write")
    assert (said.returncode, said.stdout) == (
        0,
        f"array mirror: is open at {mirrored.point} and writable now\n",
    )
    (mirrored.point / "new").write_text("written")


def made_stale(array: EncryptedArray) -> Path:
    """Give the last disk what it held several generations ago, as if it had been away since."""
    # Not by a degraded mount: of two disks it would write into new chunks that only the other one has.
    away = array.members[-1]
    copy = array.directory / "before"
    command.run(["dd", f"if={away}", f"of={copy}", "bs=1M", "iflag=direct"])
    with array.mounted_by_hand() as point:
        for number in range(4):
            (point / "mirror" / f"later-{number}").write_bytes(os.urandom(MIB // 4))
            command.run(["btrfs", "filesystem", "sync", point])
    command.run(["dd", f"if={copy}", f"of={away}", "bs=1M", "oflag=direct"])
    copy.unlink()
    return away


def test_a_stale_disk_is_refused_and_named_though_it_would_mount(mirrored: EncryptedArray) -> None:
    away = made_stale(mirrored)
    said = refused(mirrored)
    assert f"{away} is " in said
    assert "generations behind: the array was written without it" in said
    # Left out, what was written without it is there.
    assert mirrored.btrsync("open", "mirror", "--degraded").returncode == 0
    assert mirrored.open_names() == ["btrdm_01"]
    assert (mirrored.point / "later-3").stat().st_size == MIB // 4
    assert mirrored.btrsync("close", "mirror").returncode == 0
    # The fault strikes: the kernel takes it up without a word.
    accepted = mirrored.btrsync("open", "mirror", "--accept-stale")
    assert accepted.returncode == 0
    assert "btrsync array scrub mirror" in accepted.stderr
    scrubbed = command.run(["btrfs", "scrub", "start", "-B", mirrored.point], ok=None)
    assert scrubbed.returncode == 0
    status = mirrored.status()
    assert sum(sum(member["errors"].values()) for member in status["members"]) > 0
    assert any("has counted errors" in problem for problem in status["problems"])
    assert status["last_scrub"]["corrected_errors"] > 0


def test_one_generation_apart_is_a_power_cut_and_is_opened(mirrored: EncryptedArray) -> None:
    saved: dict[int, bytes] = {}
    with mirrored.mounted_by_hand() as point:
        for number in range(3):
            (point / "mirror" / f"later-{number}").write_text("x")
            command.run(["btrfs", "filesystem", "sync", point])
            block = directly_read(Path("/dev/mapper/btrdm_02"))
            found = parse_superblock(block)
            assert isinstance(found, Superblock)
            saved[found.generation] = block
    with mirrored.opened_by_hand() as devices:
        newest = mirrored.superblock(devices[0]).generation
        # As if the power had gone when the last commit had written one superblock of three.
        with devices[1].open("r+b") as file:
            file.seek(SUPERBLOCK_OFFSET)
            file.write(saved[newest - 1])
    said = mirrored.btrsync("open", "mirror")
    assert said.returncode == 0
    assert f"{mirrored.members[1]} one generation behind, as after a power cut" in said.stderr
    assert "btrsync array scrub mirror" in said.stderr


def directly_read(device: Path) -> bytes:
    """The superblock as it lies on the device, whatever the page cache holds."""
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, SUPERBLOCK_BYTES) as block:  # O_DIRECT wants whole pages
            assert os.preadv(fd, [block], SUPERBLOCK_OFFSET) == SUPERBLOCK_BYTES
            return bytes(block)
    finally:
        os.close(fd)


def test_another_array_is_refused_with_its_uuid(array: EncryptedArray) -> None:
    array.settings["uuid"] = str(uuid_other_than(array.uuid))
    assert f"{array.uuid} ('MirrorBtr')" in refused(array)


def test_without_a_uuid_nothing_is_mounted_and_the_found_one_is_told(array: EncryptedArray) -> None:
    array.settings["uuid"] = None
    assert f'uuid = "{array.uuid}"' in refused(array)


def test_a_disk_of_another_array_under_the_same_key_is_named(array: EncryptedArray) -> None:
    stranger = array.add_disk("ata-stranger")
    with array.opened_by_hand([stranger]) as devices:
        command.run(["mkfs.btrfs", "-q", "-L", "other", devices[0]])
    array.members[1] = stranger
    assert f"{stranger}: " in refused(array)


def test_a_copy_of_a_member_is_refused(array: EncryptedArray) -> None:
    copy = array.add_disk("ata-copy")
    command.run(["dd", f"if={array.members[0]}", f"of={copy}", "iflag=direct", "oflag=direct", "bs=1M"])
    array.members[1] = copy
    assert "devid 1: one is a copy" in refused(array)


def test_two_names_of_one_disk_are_refused(array: EncryptedArray) -> None:
    other = array.directory / "by-id" / "wwn-1"
    other.symlink_to(array.loops[0].device)
    array.members[1] = other
    assert f"{array.members[0]} and {other} are one disk" in refused(array)


def test_a_disk_that_is_open_under_another_name_is_told(array: EncryptedArray) -> None:
    command.run(dmcrypt.open_argv(array.members[1], "byhand_2", array.key), env=dmcrypt.ENVIRONMENT)
    assert "cryptsetup close /dev/mapper/byhand_2" in refused(array)


def test_a_mapping_of_another_disk_under_our_name_is_told(array: EncryptedArray) -> None:
    command.run(dmcrypt.open_argv(array.members[1], "btrdm_01", array.key), env=dmcrypt.ENVIRONMENT)
    assert "the mapping btrdm_01 is open already, and lies on the device" in refused(array)


def test_a_mount_that_fails_leaves_nothing(array: EncryptedArray) -> None:
    array.settings["options"] = "subvol=nowhere"
    assert "mount" in refused(array)
    array.settings["options"] = ""
    array.point.rmdir()
    assert "is no directory" in refused(array)


def test_another_filesystem_at_the_mount_point_is_not_covered(array: EncryptedArray) -> None:
    command.run(["mount", "-t", "tmpfs", "other", array.point])
    try:
        said = array.btrsync("open", "mirror")
        assert (said.returncode, "other is mounted at" in said.stderr) == (8, True)
        assert array.open_names() == []
    finally:
        command.run(["umount", array.point])


# Keys.


def test_a_short_open_or_foreign_key_file_is_refused(array: EncryptedArray) -> None:
    right = array.key.read_bytes()
    array.key.chmod(0o644)
    assert "has mode 0644" in refused(array)
    array.key.chmod(0o600)
    os.chown(array.key, 1000, 0)
    assert "belongs to user 1000" in refused(array)
    os.chown(array.key, 0, 0)
    array.key.write_bytes(right[:40])
    assert "holds 40 bytes, and a key of 512 bits needs 64" in refused(array)
    array.key.write_bytes(right + b"and more")  # a longer one is cropped
    assert array.btrsync("open", "mirror").returncode == 0


def test_a_passphrase_and_a_key_file_of_the_same_bytes_are_two_keys(tmp_path: Path) -> None:
    settings = {"passphrase_file": str(tmp_path / "key"), "key_file": None, "hash": "sha512"}
    with EncryptedArray(tmp_path, disks=2, **settings) as array:
        array.key.unlink()
        phrase = b"x" * 64
        dmcrypt.write_key(array.key, phrase)
        for number, member in enumerate(array.members, 1):
            # As one would type it.
            argv = [
                "cryptsetup",
                "open",
                "--type",
                "plain",
                "--cipher",
                "twofish-xts-plain",
                "--key-size",
                "512",
            ]
            argv += ["--hash", "sha512", str(member), f"btrdm_{number:02}"]
            command.run(argv, input=phrase + b"\n", env=dmcrypt.ENVIRONMENT)
        nodes = ["/dev/mapper/btrdm_01", "/dev/mapper/btrdm_02"]
        command.run(["mkfs.btrfs", "-q", "-U", str(array.uuid), *nodes])
        for node in nodes:
            command.run(["cryptsetup", "close", node], env=dmcrypt.ENVIRONMENT)
        array.settings["options"] = ""
        assert array.btrsync("open", "mirror").returncode == 0
        assert array.btrsync("close", "mirror").returncode == 0
        array.settings |= {"passphrase_file": None, "hash": None, "key_file": str(array.key)}
        assert "wrong key" in refused(array)


def test_a_credential_of_systemd_is_a_key(array: EncryptedArray) -> None:
    credentials = array.directory / "credentials"
    credentials.mkdir()
    dmcrypt.write_key(credentials / "mirror-key", array.key.read_bytes())
    array.settings |= {"key_file": None, "key_credential": "mirror-key"}
    assert "$CREDENTIALS_DIRECTORY is not set" in refused(array)
    said = array.btrsync("open", "mirror", env={"CREDENTIALS_DIRECTORY": str(credentials)})
    assert said.returncode == 0, said
    assert array.btrsync("close", "mirror").returncode == 0


def test_a_key_is_in_no_argv_and_no_log(array: EncryptedArray) -> None:
    array.key.unlink()
    key = b"0123456789abcdef" * 4
    dmcrypt.write_key(array.key, key)
    said = array.btrsync("open", "mirror", "-vv", "--traceback")
    assert "cryptsetup open" in said.stderr
    assert key.decode() not in said.stderr + said.stdout
    assert key.hex() not in said.stderr + said.stdout


def test_a_luks2_array_is_opened_and_a_wrong_passphrase_told(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"cipher": None, "key_size_bits": None, "key_file": None, "options": ""}
    with EncryptedArray(
        tmp_path, disks=2, type="luks2", passphrase_file=str(tmp_path / "phrase"), **settings
    ) as array:
        phrase = dmcrypt.write_key(tmp_path / "phrase", b"correct horse")
        quick = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
        for number, member in enumerate(array.members, 1):
            format_argv: list[str | Path] = [
                "cryptsetup",
                "luksFormat",
                "-q",
                "--type",
                "luks2",
                *quick,
                "--key-file",
                phrase,
                member,
            ]
            command.run(format_argv, env=dmcrypt.ENVIRONMENT)
            open_argv: list[str | Path] = [
                "cryptsetup",
                "open",
                "--key-file",
                phrase,
                member,
                f"btrdm_{number:02}",
            ]
            command.run(open_argv, env=dmcrypt.ENVIRONMENT)
        nodes = ["/dev/mapper/btrdm_01", "/dev/mapper/btrdm_02"]
        command.run(["mkfs.btrfs", "-q", "-U", str(array.uuid), *nodes])
        for node in nodes:
            command.run(["cryptsetup", "close", node], env=dmcrypt.ENVIRONMENT)
        assert array.btrsync("open", "mirror").returncode == 0
        assert array.status()["problems"] == []
        assert array.btrsync("open", "mirror").returncode == 0
        assert array.btrsync("close", "mirror").returncode == 0
        phrase.unlink()
        dmcrypt.write_key(phrase, b"wrong horse")
        said = array.btrsync("open", "mirror")
        assert said.returncode == 6
        assert "No key available with this passphrase" in said.stderr
        assert array.is_closed


# Closing.


def test_an_array_in_use_is_not_closed_and_the_user_is_named(array: EncryptedArray) -> None:
    assert array.btrsync("open", "mirror").returncode == 0
    code = f"import os, time; os.chdir({str(array.point)!r}); print('ready', flush=True); time.sleep(600)"
    with running(sys.executable, "-c", code) as process:
        said = array.btrsync("close", "mirror")
        assert said.returncode == 8
        assert f"in use by pid {process.pid} (python3" in said.stderr
        assert array.is_mounted
    assert array.btrsync("close", "mirror").returncode == 0
    assert array.is_closed


def test_an_open_file_in_a_subvolume_and_a_mapped_one_count_as_use(array: EncryptedArray) -> None:
    assert array.btrsync("open", "mirror").returncode == 0
    command.run(["btrfs", "subvolume", "create", array.point / "inner"])
    (array.point / "inner" / "file").write_bytes(b"x" * 4096)
    for hold in (
        "f = open('inner/file'); os.chdir('/')",
        "f = open('inner/file', 'rb'); m = mmap.mmap(f.fileno(), 4096, prot=mmap.PROT_READ); f.close(); os.chdir('/')",
    ):
        code = f"import os, mmap, time; os.chdir({str(array.point)!r}); {hold}; print('ready', flush=True); time.sleep(600)"
        with running(sys.executable, "-c", code) as process:
            assert f"pid {process.pid}" in array.btrsync("close", "mirror").stderr
            assert array.is_mounted


def test_a_loop_device_on_the_array_counts_as_use(array: EncryptedArray) -> None:
    assert array.btrsync("open", "mirror").returncode == 0
    image = array.point / "image"
    image.touch()
    os.truncate(image, MIB)
    loop = command.run(["losetup", "--find", "--show", image]).stdout.strip()
    try:
        said = array.btrsync("close", "mirror")
        assert (said.returncode, f"{loop}, a loop device on {image}" in said.stderr) == (8, True)
    finally:
        command.run(["losetup", "--detach", loop])
    assert array.btrsync("close", "mirror").returncode == 0


def test_a_second_mount_is_named_and_nothing_is_unmounted(array: EncryptedArray) -> None:
    assert array.btrsync("open", "mirror").returncode == 0
    again = array.directory / "again"
    again.mkdir()
    command.run(["mount", "--bind", array.point, again])
    try:
        said = array.btrsync("close", "mirror")
        assert (said.returncode, f"umount {again}" in said.stderr) == (8, True)
        assert array.is_mounted
    finally:
        command.run(["umount", again])
    assert array.btrsync("close", "mirror").returncode == 0


def test_another_mount_namespace_that_holds_it_is_named(array: EncryptedArray) -> None:
    assert array.btrsync("open", "mirror").returncode == 0
    script = "echo ready; exec sleep 600"
    with running("unshare", "--mount", "--propagation", "private", "sh", "-c", script) as process:
        said = array.btrsync("close", "mirror")
        assert said.returncode == 8
        assert f"pid {process.pid}" in said.stderr
        assert array.open_names() != []
    assert array.btrsync("close", "mirror").returncode == 0
    assert array.is_closed
