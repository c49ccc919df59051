"""An array of encrypted disks as a user has it: loop devices below names that stay, a key, a configuration."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID, uuid4

from btrsync.plan.superblock import Superblock, parse_superblock
from harness import command, dmcrypt
from harness.loop import LoopDevice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MIB = 1 << 20
BTRSYNC = [sys.executable, "-m", "btrsync"]
ORIGINAL = {"cipher": "twofish-xts-plain", "key_size_bits": 512}
PREFIX = "btrdm_"


class EncryptedArray:
    """Four disks, or as many as told, which `make` turns into the original's array.

    directory: for names, key, configuration and mount point. settings: keys of [arrays.mirror] that
    differ from the original's; None takes one away.
    """

    def __init__(self, directory: Path, *, disks: int = 4, **settings: Any) -> None:
        self.directory = directory
        self.point = directory / "MirrorRoot"
        self.key = directory / "key"
        self.uuid = uuid4()
        self._stack = contextlib.ExitStack()
        self._count = disks
        self.loops: list[LoopDevice] = []
        self.members: list[Path] = []
        self.settings: dict[str, Any] = {
            **ORIGINAL,
            "key_file": str(self.key),
            "uuid": str(self.uuid),
            "mount_point": str(self.point),
            "mapping_prefix": PREFIX,
            "options": "noatime,autodefrag,compress-force=lzo,space_cache,subvol=mirror",
        } | settings

    def __enter__(self) -> Self:
        self.point.mkdir()
        (self.directory / "by-id").mkdir()
        dmcrypt.write_key(self.key)
        for number in range(self._count):
            self.add_disk(f"ata-{number + 1}")
        self.members = sorted((self.directory / "by-id").iterdir())
        return self

    def __exit__(self, *_: object) -> None:
        self.close_by_hand()
        self._stack.close()

    def close_by_hand(self) -> None:
        while self.is_mounted:
            command.run(["umount", self.point])
        for name in self.open_names():
            command.run(["dmsetup", "remove", name], env=dmcrypt.ENVIRONMENT)

    @contextlib.contextmanager
    def lent(self) -> Iterator[Self]:
        """The array for a test that changes settings, key and names of disks, but not what the disks hold."""
        key, settings, members, loops = self.key.read_bytes(), dict(self.settings), self.members, self.loops
        links = {member: member.readlink() for member in members}
        self.members, self.loops = [*members], [*loops]
        with contextlib.ExitStack() as added:
            before, self._stack = self._stack, added
            try:
                yield self
            finally:
                self.close_by_hand()
                self._stack = before
                self.settings, self.members, self.loops = settings, members, loops
                self.key.unlink()
                dmcrypt.write_key(self.key, key)
                for link in (self.directory / "by-id").iterdir():
                    link.unlink()
                for link, disk in links.items():
                    link.symlink_to(disk)
                self.point.mkdir(exist_ok=True)

    def add_disk(self, name: str) -> Path:
        """A further disk, under a name that stays."""
        loop = self._stack.enter_context(LoopDevice(128 * MIB, None, name))
        self.loops.append(loop)
        path = self.directory / "by-id" / name
        path.symlink_to(loop.device)
        return path

    # What a person does by hand.

    @contextlib.contextmanager
    def opened_by_hand(self, members: Sequence[Path] | None = None) -> Iterator[list[Path]]:
        """The mappings, opened by cryptsetup as the original's script did, and closed again."""
        wanted = self.members if members is None else members
        with dmcrypt.mappings(wanted, self.key, cipher=self.settings["cipher"]) as mappings:
            yield [mapping.device for mapping in mappings]

    @contextlib.contextmanager
    def mounted_by_hand(self, members: Sequence[Path] | None = None, options: str = "") -> Iterator[Path]:
        with self.opened_by_hand(members) as devices:
            command.run(["btrfs", "device", "scan", *devices])
            words = ",".join(filter(None, ["subvolid=5", options]))
            command.run(["mount", "-t", "btrfs", "-o", words, devices[0], self.point])
            try:
                yield self.point
            finally:
                command.run(["umount", self.point])
                command.run(["btrfs", "device", "scan", "--forget", *devices])

    def make(self, *, data: str = "single", metadata: str = "raid1", csum: str = "crc32c") -> None:
        """mkfs.btrfs on the mappings, the subvolume, and a file in it; closed again."""
        with self.opened_by_hand() as devices:
            profiles = ["--data", data, "--metadata", metadata, "--csum", csum]
            command.run(["mkfs.btrfs", "-q", "-L", "MirrorBtr", "-U", str(self.uuid), *profiles, *devices])
        with self.mounted_by_hand() as point:
            command.run(["btrfs", "subvolume", "create", point / "mirror"])
            (point / "mirror" / "file").write_bytes(b"kept" * 1000)

    # What btrsync is told, and how things stand.

    def write_configuration(self) -> Path:
        members = ", ".join(json.dumps(str(member)) for member in self.members)
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.settings.items() if value is not None]
        text = "\n".join([f'root = "{self.point}"', "[arrays.mirror]", f"members = [{members}]", *lines])
        path = self.directory / "server.toml"
        path.write_text(text + "\n")
        return path

    def btrsync(self, *words: str, env: dict[str, str] | None = None) -> command.Completed:
        """`btrsync array WORDS`; the status is the caller's to look at."""
        argv = [*BTRSYNC, "array", *words, "--config", str(self.write_configuration())]
        return command.run(argv, ok=None, env=env or {}, timeout_s=120)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.btrsync("status", "--json").stdout)["arrays"][0]
        return found

    @staticmethod
    def open_names() -> list[str]:
        argv = ["dmsetup", "info", "--columns", "--noheadings", "--options", "name"]
        found = command.run(argv, env=dmcrypt.ENVIRONMENT).stdout.split()
        return sorted(name for name in found if name.startswith((PREFIX, "byhand")))

    @property
    def is_mounted(self) -> bool:
        return os.path.ismount(self.point)

    @property
    def is_closed(self) -> bool:
        return not self.is_mounted and not self.open_names()

    def digests(self) -> list[str]:
        """The bytes of every disk, to see that none was written to."""
        for loop in self.loops:
            # What dm-crypt wrote went past the page cache of the disk.
            command.run(["blockdev", "--flushbufs", loop.device])
        return [hashlib.sha256(loop.device.read_bytes()).hexdigest() for loop in self.loops]

    @staticmethod
    def superblock(mapping: Path) -> Superblock:
        with mapping.open("rb") as file:
            file.seek(65536)
            found = parse_superblock(file.read(4096))
        assert isinstance(found, Superblock), found
        return found


def uuid_other_than(uuid: UUID) -> UUID:
    return UUID(int=uuid.int ^ 1)
