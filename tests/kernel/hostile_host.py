"""A server for hostile clients: a rehearsal host with a btrfs, a canary, a device and another client's backup."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING
from uuid import uuid4

from btrsync.protocol import OUR_VERSIONS, Hello, Inventory
from btrsync.system import btrfs, process
from btrsync.wire import Wire
from harness.filesystem import Array, mount
from harness.host import Host
from harness.loop import LoopDevice
from tests.kernel import hostile_streams
from tests.kernel.hostile_streams import CANARY, EVIL, MEMORY_BYTES, OUTSIDE, SECRET_BYTES, Harm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

    from harness import command

ROOT = "/MirrorRoot"
ATTACKER = f"{ROOT}/mallory/job"
VICTIM = f"{ROOT}/victim/job"
CANARY_WORDS = "nobody wrote here\n"
SECRET = b"secret!\n" * (SECRET_BYTES // 8)
DEVICE_BYTES = 1 << 20
MEASURE = (
    "import resource, subprocess, sys\n"
    "status = subprocess.run(sys.argv[1:]).returncode\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    "sys.exit(status)"
)


class HostileHost:
    """The host; `place` is what the attacker knows of it. `hostile_host` makes one."""

    def __init__(self, host: Host, device: Path) -> None:
        self.host = host
        self.place = hostile_streams.Place(uuid4(), uuid4(), os.stat(device).st_rdev)
        self._device = device

    def prepare(self) -> None:
        """Make everything as if no attack had been."""
        shutil.rmtree(self.host.path(OUTSIDE), ignore_errors=True)
        self.host.write_text(CANARY, CANARY_WORDS)
        attacker, victim = self.host.path(ATTACKER), self.host.path(VICTIM)
        for client in (attacker, victim):
            client.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in attacker.iterdir():
            if path.is_dir():
                btrfs.delete_subvolume(path)
            else:
                path.unlink()
        if (victim / "gone").exists():
            (victim / "gone").rename(victim / "secret")
        if not (victim / "secret").exists():
            secret = hostile_streams.FILE + hostile_streams.write(b"file", SECRET) + hostile_streams.END
            self.receive(hostile_streams.head(self.place.secret, path=b"secret") + secret, VICTIM)
        with open(self._device, "r+b") as device:
            device.write(bytes(4096))

    def receive(
        self, stream: bytes, directory: str, *flags: str, ok: tuple[int, ...] | None = (0,)
    ) -> command.Completed:
        return self.host.run(
            [sys.executable, "-I", "-S", "-c", MEASURE, "btrfs", "receive", *flags, directory],
            input=stream,
            ok=ok,
        )

    def harm(self, received: command.Completed) -> Harm:
        """Return the worst that a receive into the attacker's directory has done."""
        evil = self.host.path(ATTACKER) / "evil"
        outside = sorted(os.listdir(self.host.path(OUTSIDE)))
        beside = [path for path in self.host.path(ATTACKER).iterdir() if path != evil]
        with open(self._device, "rb") as device:
            is_device_written = device.read(len(EVIL)) == EVIL
        found = {
            Harm.CANARY: self.host.read_text(CANARY) != CANARY_WORDS
            or self.host.path(CANARY).stat().st_mode & 0o7777 != 0o644,
            Harm.PLANTED: outside != ["canary"],
            Harm.DEVICE: is_device_written,
            Harm.LEAK: (evil / "file").exists() and (evil / "file").read_bytes() == SECRET,
            Harm.SECOND: any(path.is_dir() for path in beside),
            Harm.SIBLING: bool(beside) or os.listdir(self.host.path(VICTIM)) != ["secret"],
            Harm.MEMORY: int(received.stdout.split()[-1]) << 10 > MEMORY_BYTES * 3 // 4,
            Harm.ACCEPTED: received.returncode == 0 and self.is_readonly("evil"),
        }
        return next((harm for harm, is_so in found.items() if is_so), Harm.NONE)

    def is_untouched(self) -> bool:
        """Whether nothing outside the attacker's own directory has changed."""
        with open(self._device, "rb") as device:
            is_device_empty = not any(device.read(4096))
        mode = self.host.path(CANARY).stat().st_mode & 0o7777
        return (
            is_device_empty
            and (self.host.read_text(CANARY), mode) == (CANARY_WORDS, 0o644)
            and os.listdir(self.host.path(OUTSIDE)) == ["canary"]
        )

    def listing(self) -> dict[str, tuple[UUID, UUID | None, bool] | bytes]:
        """All that lies in the clients' directories, hidden ones too: subvolumes by UUIDs, files by content."""
        root = self.host.path(ROOT)
        return {
            str(path.relative_to(root)): self._entry(path)
            for pattern in ("*/*/*", "*/*/.*")
            for path in root.glob(pattern)
        }

    def _entry(self, path: Path) -> tuple[UUID, UUID | None, bool] | bytes:
        if not path.is_dir():
            # How often receive failed to go on from a partial is counted in its record.
            return re.sub(rb'"failures":\d+', b"", path.read_bytes())
        found = btrfs.subvolume(path)
        return found.uuid, found.received_uuid, found.is_readonly

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[Wire, Inventory]]:
        """A client with mallory's key, which has said hello; hanging up ends it."""
        argv = self.host.enter_argv([sys.executable, "-m", "btrsync", "serve", "--root", ROOT, "mallory"])
        child_read, write_fd = os.pipe()
        read_fd, child_write = os.pipe()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, read_fd)
            hang_up = stack.enter_context(contextlib.ExitStack())
            hang_up.callback(os.close, write_fd)
            try:
                server = stack.enter_context(process.spawn(argv, stdin=child_read, stdout=child_write))
            finally:
                os.close(child_read)
                os.close(child_write)
            wire = stack.enter_context(Wire(read_fd, write_fd, peer="server"))
            wire.greet(OUR_VERSIONS)
            wire.send(Hello(uuid4().hex, "test", "0", 2))
            assert isinstance(wire.receive(), Hello)
            inventory = wire.receive()
            assert isinstance(inventory, Inventory), inventory
            yield wire, inventory
            hang_up.close()
            server.wait(timeout_s=15)

    def is_readonly(self, name: str) -> bool:
        return btrfs.subvolume(self.host.path(ATTACKER) / name).is_readonly


@contextlib.contextmanager
def hostile_host() -> Iterator[HostileHost]:
    with (
        LoopDevice(DEVICE_BYTES) as disk,
        Array(members=1) as array,
        Host("daisy") as host,
        mount(array, ROOT, host=host),
    ):
        yield HostileHost(host, disk.device)
