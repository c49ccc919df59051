"""daisy's array on plain dm-crypt: made, opened and closed by `btrsync array`, as her configuration says."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness import dmcrypt, ledger
from harness.filesystem import LABEL
from harness.identity import run_prefix
from harness.loop import LoopDevice
from harness.scenario.parts import MIRROR_ROOT, SERVER_FILE, SERVER_ROOT, format_toml, installed_btrsync

if TYPE_CHECKING:
    from collections.abc import Collection

    from harness.command import Completed
    from harness.host import Host

NAME = "mirror"
KEY_FILE = Path("/etc/btrsync/array-key")
BY_ID = Path("/dev/disk/by-id")
ARRAY_S = 300.0
BTRFS_CONTROL = Path("/dev/btrfs-control")
BTRFS_CONTROL_NUMBER = os.makedev(10, 234)
"""Source: include/linux/miscdevice.h, MISC_MAJOR and BTRFS_MINOR."""


class EncryptedArray:
    """`members` disks of daisy, a key, and the configuration that names them; nothing is made of them yet.

    Entered, daisy has the disks under names that stay; `create` and `open` then do what a user does.
    What is open goes with the context, and after a SIGKILL with daisy's mount.
    """

    def __init__(
        self, daisy: Host, members: int, size_bytes: int, *, directory: Path | None, options: str
    ) -> None:
        """Only remember what is wanted; entering attaches the disks. options: of the mount."""
        self.daisy = daisy
        self.disks: tuple[LoopDevice, ...] = ()
        self.members = tuple(BY_ID / f"ata-rehearsal-{number}" for number in range(1, members + 1))
        # Not the original's bare names, which the machine's own mappings may have.
        prefix = f"{run_prefix()}btrdm_"
        self.mappings = tuple(f"{prefix}{number:02}" for number in range(1, members + 1))
        self._wanted = tuple(
            LoopDevice(size_bytes, directory, f"{LABEL}-{number}") for number in range(1, members + 1)
        )
        self._settings: dict[str, object] = {
            "members": list(self.members),
            "mount_point": MIRROR_ROOT,
            "cipher": dmcrypt.CIPHER,
            "key_size_bits": dmcrypt.KEY_BITS,
            "key_file": KEY_FILE,
            "mapping_prefix": prefix,
            "label": LABEL,
            "options": f"{options},subvol=mirror",
        }
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Attach the disks, and write daisy's configuration and a random key."""
        with contextlib.ExitStack() as stack:
            self.disks = tuple(stack.enter_context(disk) for disk in self._wanted)
            for disk, member in zip(self.disks, self.members, strict=True):
                inside = self.daisy.add_device(disk.device)
                link = self.daisy.root / member.relative_to("/")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(inside)
            # Members are made known to the kernel through it, as udev does on a real machine.
            control = self.daisy.root / BTRFS_CONTROL.relative_to("/")
            os.mknod(control, stat.S_IFCHR | 0o600, BTRFS_CONTROL_NUMBER)
            tables: dict[tuple[str, ...], dict[str, object]] = {("arrays", NAME): self._settings}
            self.daisy.write_text(SERVER_FILE, f'root = "{SERVER_ROOT}"\n\n{format_toml(tables)}')
            dmcrypt.write_key(self.daisy.path(KEY_FILE))
            for name, disk in zip(self.mappings, self.disks, strict=True):
                entry = ledger.acquire("mapping", name=name, device=str(disk.device))
                stack.callback(ledger.release, entry)
            stack.callback(self._close_at_the_end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is open, and let the disks go."""
        self._stack.close()

    def btrsync(self, *words: str | Path, ok: Collection[int] | None = (0,)) -> Completed:
        """Run `btrsync array WORDS` on daisy; as `Host.run` in all else."""
        argv: list[str | Path] = [installed_btrsync(), "array", *words]
        return self.daisy.run(argv, ok=ok, timeout_s=ARRAY_S, env=dmcrypt.ENVIRONMENT)

    def create(self) -> Completed:
        """Make the array of the configuration out of the disks, each of which is named."""
        return self.btrsync("create", NAME, "--yes", "--wipe", *self.members)

    def open(self) -> Completed:
        """Open and mount it; the directory for all clients is made if it is not there."""
        opened = self.btrsync("open", NAME)
        for name in self.mappings:
            # From here on they go with the mount, whoever is killed.
            self.daisy.run(dmcrypt.close_argv(name), env=dmcrypt.ENVIRONMENT)
        # Which takes the nodes away at once, where no udevd does it with the mappings.
        self.daisy.run(["dmsetup", "mknodes", "--", *self.mappings], env=dmcrypt.ENVIRONMENT)
        self.daisy.path(SERVER_ROOT).mkdir(mode=0o700, exist_ok=True)
        return opened

    def close(self) -> Completed:
        """Unmount it and close its mappings."""
        for name in self.mappings:
            argv = ["cryptsetup", "close", "--cancel-deferred", name]
            self.daisy.run(argv, env=dmcrypt.ENVIRONMENT)
        return self.btrsync("close", NAME)

    def swap_key(self, key: bytes) -> bytes:
        """Put another key into the key file, and return the one that was there."""
        file = self.daisy.path(KEY_FILE)
        before = file.read_bytes()
        file.unlink()
        dmcrypt.write_key(file, key)
        return before

    def status(self) -> dict[str, Any]:
        """Return what `btrsync array status --json` tells of it, well or not."""
        told: dict[str, Any] = json.loads(self.btrsync("status", NAME, "--json", ok=(0, 1)).stdout)
        found: dict[str, Any] = told["arrays"][0]
        return found

    def sectors_written(self) -> list[int]:
        """Return how many sectors were written to each disk so far.

        Source: Documentation/block/stat.rst, field 7.
        """
        return [
            int(Path(f"/sys/block/{disk.device.name}/stat").read_text().split()[6]) for disk in self.disks
        ]

    def _close_at_the_end(self) -> None:
        if not self.daisy.is_alive:
            return
        for name in self.mappings:
            self.daisy.run(
                ["cryptsetup", "close", "--cancel-deferred", name], ok=None, env=dmcrypt.ENVIRONMENT
            )
        self.btrsync("close", NAME)
