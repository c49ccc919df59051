"""What `btrsync array` does below dm-crypt, on real arrays of loop devices: proof, scan, mount, users."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from btrsync.errors import StorageError
from btrsync.plan.array_open import MemberView, judge, mount_options
from btrsync.plan.superblock import Superblock
from btrsync.system import btrfs_devices, mounting, users
from btrsync.system.dmcrypt import Encryption, Key, checked_key, device_number
from harness import command, wait
from harness.filesystem import Array, mount
from harness.loop import LoopDevice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.requires("root", "loop", "btrfs")

MIB = 1 << 20


@pytest.fixture
def pair() -> Iterator[Array]:
    """Two members, all of it raid1, known to nobody."""
    with Array(2, 128 * MIB, data="raid1", label="pair") as made:
        btrfs_devices.forget(made.devices)
        yield made


def superblocks(array: Array) -> list[Superblock]:
    found = [btrfs_devices.read_superblock(device) for device in array.devices]
    assert all(isinstance(one, Superblock) for one in found)
    return [one for one in found if isinstance(one, Superblock)]


@pytest.mark.parametrize("csum", ["crc32c", "xxhash", "sha256", "blake2"])
def test_the_superblocks_of_mkfs_are_read_whatever_their_checksum(csum: str) -> None:
    with Array(2, 128 * MIB, label="sums", mkfs_options=["--csum", csum]) as array:
        found = superblocks(array)
        assert [one.devid for one in found] == [1, 2]
        assert {one.fsid for one in found} == {array.uuid}
        assert {(one.num_devices, one.label, one.nodesize) for one in found} == {(2, "sums", 16384)}
        assert len({one.generation for one in found}) == 1
        assert found[0].has_free_space_tree
        assert found[0].csum_type.startswith(csum)
        views = [MemberView(str(device), one) for device, one in zip(array.devices, found, strict=True)]
        assert judge(views, array.uuid).is_whole


def test_an_empty_disk_and_a_small_one_show_no_superblock(tmp_path: Path) -> None:
    with LoopDevice(MIB) as loop:
        assert btrfs_devices.read_superblock(loop.device) == "no_magic"
    small = tmp_path / "small"
    small.write_bytes(b"x" * 100)
    assert btrfs_devices.read_superblock(small) == "too_short"
    with pytest.raises(StorageError, match="cannot read"):
        btrfs_devices.read_superblock(tmp_path / "nowhere")


@pytest.mark.kernel_errors_expected  # a mount without a member
def test_only_after_a_scan_of_its_members_an_array_is_mounted(pair: Array, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="mount"):
        mounting.mount(pair.devices[1], tmp_path, ["noatime"])
    btrfs_devices.scan(pair.devices)
    options, notes = mount_options("noatime,space_cache", superblocks(pair)[0])
    assert notes
    mounting.mount(pair.devices[1], tmp_path, options)
    try:
        assert btrfs_devices.mounted_fsid(tmp_path) == pair.uuid
        members = btrfs_devices.mounted_members(tmp_path)
        assert [(one.devid, one.is_missing, sum(one.errors)) for one in members] == [
            (1, False, 0),
            (2, False, 0),
        ]
        kinds = {(one.kind, one.profile) for one in btrfs_devices.allocations(tmp_path)}
        assert kinds == {("data", "raid1"), ("metadata", "raid1"), ("system", "raid1")}
        numbers = [device_number(device) for device in pair.devices]
        assert [one.mount_point for one in mounting.btrfs_mounts(numbers)] == [tmp_path]
        assert mounting.btrfs_mounts(["1:2"]) == []
    finally:
        mounting.unmount(tmp_path)
    assert btrfs_devices.mounted_fsid(tmp_path) != pair.uuid


@pytest.mark.kernel_errors_expected  # a mount without a member
def test_a_missing_member_is_seen_though_the_kernel_knew_it_before(pair: Array, tmp_path: Path) -> None:
    with mount(pair, tmp_path / "m", options="", subvolume=None):
        pass
    btrfs_devices.forget(pair.devices[1:])
    with pytest.raises(StorageError, match="mount"):
        mounting.mount(pair.devices[0], tmp_path / "m", [])
    mounting.mount(pair.devices[0], tmp_path / "m", ["degraded", "ro"])
    try:
        members = btrfs_devices.mounted_members(tmp_path / "m")
        assert [one.is_missing for one in members] == [False, True]
        mounting.remount(tmp_path / "m", ["rw"])
        (tmp_path / "m" / "file").touch()
    finally:
        mounting.unmount(tmp_path / "m")


@pytest.mark.parametrize("use", ["os.chdir(point)", "f = open(point + '/inner/file')", "MAPPED"])
def test_who_uses_a_mount_is_named_through_subvolumes_and_mappings(
    use: str, pair: Array, tmp_path: Path
) -> None:
    mapped = "f = open(point + '/inner/file', 'rb'); m = mmap.mmap(f.fileno(), 4096, prot=1); f.close()"
    numbers = [device_number(device) for device in pair.devices]
    with mount(pair, tmp_path / "m", options="", subvolume=None) as point:
        command.run(["btrfs", "subvolume", "create", point / "inner"])
        (point / "inner" / "file").write_bytes(b"x" * 4096)
        assert users.users_of(numbers) == []
        use = use.replace("MAPPED", mapped)
        code = f"import os, mmap, time; point = {str(point)!r}; {use}; print('ready', flush=True); time.sleep(99)"
        with command.spawn([sys.executable, "-c", code]) as process:
            wait.until(lambda: "ready" in process.stdout, timeout_s=20, what="the user is at work")
            assert [user.pid for user in users.users_of(numbers)] == [process.pid]
            with pytest.raises(StorageError, match="busy"):
                mounting.unmount(point)


def test_a_loop_device_on_the_array_is_a_user(pair: Array, tmp_path: Path) -> None:
    with mount(pair, tmp_path / "m", options="", subvolume=None) as point:
        (point / "image").touch()
        os.truncate(point / "image", MIB)
        loop = command.run(["losetup", "--find", "--show", point / "image"]).stdout.strip()
        try:
            found = users.users_of([device_number(device) for device in pair.devices])
            assert [str(user) for user in found] == [f"{loop}, a loop device on {point / 'image'}"]
        finally:
            command.run(["losetup", "--detach", loop])


def test_another_mount_namespace_that_holds_it_is_named(pair: Array, tmp_path: Path) -> None:
    numbers = [device_number(device) for device in pair.devices]
    with mount(pair, tmp_path / "m", options="", subvolume=None):
        assert users.namespaces_of(numbers) == []
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 99"]
        with command.spawn(argv) as process:
            wait.until(lambda: "ready" in process.stdout, timeout_s=20, what="the namespace is there")
            assert [user.pid for user in users.namespaces_of(numbers)] == [process.pid]


# Keys.

PLAIN = Encryption(type="plain", cipher="aes-xts-plain64", key_size_bits=512)


def key_file(path: Path, content: bytes = b"k" * 64, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o400, 0o600])
def test_a_key_of_roots_alone_is_fit(mode: int, tmp_path: Path) -> None:
    with checked_key(Key(key_file(tmp_path / "key", mode=mode)), PLAIN) as fd:
        assert os.fstat(fd).st_size == 64


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"k" * 64, 0o640, "has mode 0640"),
        (b"k" * 64, 0o604, "has mode 0604"),
        (b"k" * 63, 0o600, "holds 63 bytes, and a key of 512 bits needs 64"),
        (b"", 0o600, "is empty"),
    ],
)
def test_an_unfit_key_file_is_refused_with_the_reason(
    content: bytes, mode: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match=words) as caught:
        with checked_key(Key(key_file(tmp_path / "key", content, mode)), PLAIN):
            pass
    assert not content or content.decode() not in str(caught.value)


def test_a_key_of_another_user_and_one_that_is_no_file_are_refused(tmp_path: Path) -> None:
    key = key_file(tmp_path / "key")
    os.chown(key, 1000, 0)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, words in (
        (key, "belongs to user 1000"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path / "nowhere", "no such file"),
    ):
        with pytest.raises(StorageError, match=words):
            with checked_key(Key(path), PLAIN):
                pass


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"a\nb", "more than one line"),
        (b"x" * 513, "longer than 512"),
    ],
)
def test_an_unfit_passphrase_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=words):
        with checked_key(Key(key_file(tmp_path / "phrase", content), is_passphrase=True), PLAIN):
            pass


@pytest.mark.parametrize("content", [b"x", b"x\n", b"x" * 512 + b"\n"])
def test_a_passphrase_of_one_line_is_fit(content: bytes, tmp_path: Path) -> None:
    with checked_key(Key(key_file(tmp_path / "phrase", content), is_passphrase=True), PLAIN) as fd:
        assert fd >= 0
