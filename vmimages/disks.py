"""The disks of one machine, in a directory of its own that goes when the machine is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmimages import accel, results, work
from vmimages.boot import Boot, Drive
from vmimages.running import give

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmimages.image import BackendName, Image
    from vmimages.link import End

PREFIX = "btrsync-vm-"
YOUNG_S = 60.0
"""A directory is not swept before it is so old: its owner may not have locked it yet."""


class Disks:
    """A directory with the work disk, the results disk, blank disks and the console of one machine.

    sizes: of the blank disks, in bytes. tree, extra, wheels: as for `work.pack`. kept: the directory
    to use, made if it is not there, and left with all that is in it; by default a temporary one, which
    goes when the context is left, and when its owner was killed with the next that is made.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (),
        *,
        tree: Path | None = None,
        extra: Mapping[str, bytes] | None = None,
        wheels: Sequence[Path] = (),
        kept: Path | None = None,
    ) -> None:
        """Only remember; entering makes them."""
        self.sizes = tuple(sizes)
        self._tree, self._extra, self._wheels = tree, extra, tuple(wheels)
        self._kept = kept
        self._lock = -1
        self._path: Path | None = None

    def __enter__(self) -> Self:
        """Make the disks, and sweep those of the dead."""
        sweep()
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove them, unless they are to be kept."""
        if self._path is not None and self._kept is None:
            shutil.rmtree(self._path)
        self._path = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _make(self) -> None:
        if self._kept is None:
            self._path = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        else:
            self._kept.mkdir(parents=True, exist_ok=True)
            self._path = self._kept.resolve()
        give(self._path)
        work.pack(self._path / "work.tar", tree=self._tree, extra=self._extra, wheels=self._wheels)
        wanted = (results.DISK_BYTES, *self.sizes)
        for path, size in zip((self.results, *self.blank), wanted, strict=True):
            if not path.exists():
                results.make_disk(path, size)
            give(path)

    @property
    def path(self) -> Path:
        """The directory."""
        if self._path is None:
            raise ValueError("a machine is used by `with Machine(…) as machine`")
        return self._path

    @property
    def console(self) -> Path:
        """The file with all that was said on the console, over all boots."""
        return self.path / "console"

    @property
    def results(self) -> Path:
        """The results disk."""
        return self.path / "results"

    @property
    def blank(self) -> tuple[Path, ...]:
        """The blank disks."""
        return tuple(self.path / f"disk{number + 1}" for number in range(len(self.sizes)))

    def boot(
        self,
        image: Image,
        backend: BackendName,
        *,
        words: Sequence[str],
        control_fd: int,
        memory_mib: int,
        link: End | None = None,
        has_terminal: bool = False,
        wanted_accel: accel.Choice = "auto",
    ) -> Boot:
        """Return one boot of an image with these disks. wanted_accel: for QEMU, see accel.choose."""
        address = () if link is None else (f"btrsync.address={link.address}",)
        return Boot(
            kernel=image.kernels[backend],
            drives=(
                Drive(image.root_disk, is_readonly=True),
                Drive(self.path / "work.tar", is_readonly=True),
                Drive(self.results),
                *(Drive(path) for path in self.blank),
            ),
            words=(*words, *address),
            control_fd=control_fd,
            directory=self.path,
            memory_mib=memory_mib,
            link_fd=None if link is None else link.socket.fileno(),
            mac="" if link is None else link.mac,
            has_terminal=has_terminal,
            accel=accel.choose(image, wanted_accel).accel if backend == "qemu" else "tcg",
        )


def sweep() -> None:
    """Remove the directories of machines whose owner was killed: those that nobody has locked."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < YOUNG_S:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(fd)
