"""Disks that are about to become an array, and runs that are killed at a step of a test's choice."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness import command
from harness.loop import LoopDevice
from tests.vm.encrypted import BTRSYNC, EncryptedArray

if TYPE_CHECKING:
    from collections.abc import Iterator

FSTAB = Path("/etc/fstab")
STATE = Path("/var/lib/btrsync")
ORIGINAL_FSTAB = """\
proc /proc proc defaults 0 0
UUID=0123456-7890-acbd-ef01-234567890ab {point}           btrfs   noauto,noatime,autodefrag,compress-force=lzo,space_cache,subvol=mirror 0 0
"""


class ArrayToMake(EncryptedArray):
    """Blank disks and a configuration without a UUID, which is written once: `btrsync array create` changes it."""

    def __init__(self, directory: Path, *, disks: int = 4, **settings: Any) -> None:
        super().__init__(directory, disks=disks, **({"uuid": None, "label": "MirrorBtr"} | settings))
        self.configuration = directory / "server.toml"
        self.fstab_before: bytes | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        self.fstab_before = FSTAB.read_bytes() if FSTAB.exists() else None
        FSTAB.write_text(ORIGINAL_FSTAB.format(point=self.point))
        self.write_configuration()
        return self

    def __exit__(self, *exception: object) -> None:
        FSTAB.unlink(missing_ok=True)
        if self.fstab_before is not None:
            FSTAB.write_bytes(self.fstab_before)
        shutil.rmtree(STATE, ignore_errors=True)
        super().__exit__(*exception)

    def btrsync(self, *words: str | Path, env: dict[str, str] | None = None) -> command.Completed:
        """`btrsync array WORDS`, with the configuration as it stands."""
        argv = [*BTRSYNC, "array", *map(str, words), "--config", str(self.configuration)]
        return command.run(argv, ok=None, env=env or {}, timeout_s=120)

    def create(self, *words: str | Path, env: dict[str, str] | None = None) -> command.Completed:
        return self.btrsync("create", "mirror", *words, env=env)

    def wipe_all(self) -> list[str | Path]:
        return ["--yes", "--wipe", *self.members]

    @property
    def table(self) -> dict[str, Any]:
        """What the configuration says of the array now."""
        table: dict[str, Any] = tomllib.loads(self.configuration.read_text())["arrays"]["mirror"]
        return table

    @property
    def is_unfinished(self) -> bool:
        return (STATE / "array-mirror.creating").exists()

    def larger_disk(self, name: str, size_bytes: int) -> Path:
        loop = self._stack.enter_context(LoopDevice(size_bytes, None, name))
        self.loops.append(loop)
        path = self.directory / "by-id" / name
        path.symlink_to(loop.device)
        return path

    def digests(self) -> list[str]:
        """What every disk holds, without its holes: much less to read than all of it."""
        found = []
        for loop in self.loops:
            command.run(["blockdev", "--flushbufs", loop.device])
            digest = hashlib.sha256()
            with loop.backing_file.open("rb") as file:
                end = 0
                with contextlib.suppress(OSError):  # ENXIO: no more data
                    while True:
                        start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                        end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                        digest.update(b"%d" % start + os.pread(file.fileno(), end - start, start))
            found.append(digest.hexdigest())
        return found

    @contextlib.contextmanager
    def killed_at(self, program: str, words: str, *, after: str = "") -> Iterator[dict[str, str]]:
        """The environment in which btrsync is killed as it starts `program` with these words, once.

        after: a shell command; with it the program is run to its end first, then that.
        """
        directory = self.directory / "killing"
        directory.mkdir()
        real = shutil.which(program)
        run = f'{real} "$@" </dev/null >/dev/null 2>&1; {after}; ' if after else ""
        script = (
            f'#!/bin/sh\ncase "$*" in {words}) if mkdir {directory}/struck 2>/dev/null; then\n'
            f"{run}kill -KILL $PPID; exit 1; fi;; esac\n"
            f'exec {real} "$@"\n'
        )
        (directory / program).write_text(script)
        (directory / program).chmod(0o755)
        try:
            yield {"PATH": f"{directory}:{os.environ['PATH']}"}
            assert (directory / "struck").is_dir(), f"{program} {words} was never run"
        finally:
            shutil.rmtree(directory)
