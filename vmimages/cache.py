"""Where images and the packages they are made of are kept, and who may change that now."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmimages.errors import VmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VARIABLE = "BTRSYNC_VMIMAGES_CACHE"
ASIDE = ".aside-"


def default() -> Path:
    """Return the cache's directory: $BTRSYNC_VMIMAGES_CACHE, else root's or the user's own."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/cache/btrsync-vmimages")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "btrsync-vmimages"


class Cache:
    """A directory with everything that is downloaded or built.

    `debs/SHA256.deb` and `wheels/` are what was downloaded, `apt/SUITE/` is apt's private state,
    `resolved/NAME.json` is which packages an image has now; `roots/NAME/KEY/` holds an image but for
    the guest's own files, `images/NAME/KEY/` the image ready to boot. Directories under their final
    name are complete: all are made aside and renamed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.debs = path / "debs"
        self.wheels = path / "wheels"
        self.apt = path / "apt"
        self.resolved = path / "resolved"
        self.roots = path / "roots"
        self.images = path / "images"

    def ensure(self) -> None:
        """Make the directories. Raises VmError if that cannot be."""
        try:
            for folder in (self.debs, self.wheels, self.apt, self.resolved, self.roots, self.images):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = f"set {VARIABLE} to a directory that you may write to"
            raise VmError(
                f"the cache {self.path} cannot be made: {error.strerror or error}", hint=hint
            ) from None

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[None]:
        """Be the only one that changes the cache; waits for another who does.

        What a killed builder left behind is removed first. The lock goes with the process. What is
        made meanwhile can be read by all: a guest runs as a user of its own.
        """
        umask = os.umask(0o022)
        try:
            yield from self._locked(say)
        finally:
            os.umask(umask)

    def _locked(self, say: Callable[[str], None]) -> Iterator[None]:
        self.ensure()
        descriptor = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another builder to finish with {self.path}")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            self.remove_asides()
            yield
        finally:
            os.close(descriptor)

    def remove_asides(self) -> None:
        """Remove what was being made when its builder was killed; only under the lock."""
        for aside in self.path.glob(f"{ASIDE}*"):
            remove(aside)

    @contextlib.contextmanager
    def aside(self) -> Iterator[Path]:
        """Yield a new directory on the cache's filesystem, removed on leaving if it is still there."""
        path = Path(tempfile.mkdtemp(prefix=ASIDE, dir=self.path))
        path.chmod(0o755)
        try:
            yield path
        finally:
            remove(path)


def remove(path: Path) -> None:
    """Remove a tree, also one whose directories may not be written to, as packages have them."""
    if not path.exists():
        return
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o755)
    # A child of a killed builder may still be writing there: what it leaves is removed next time.
    shutil.rmtree(path, ignore_errors=True)


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the `count` most recently used subdirectories."""
    if not folder.is_dir():
        return
    entries = sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in entries[count:]:
        remove(entry)
