"""What a behaviour is tried on: a pair of btrfs filesystems, and a notebook for what they said.

`/source` and `/target` in the records are directories of the test's own on two filesystems, `/work` one that
is on neither.
"""

from __future__ import annotations

import ctypes
import difflib
import errno
import fcntl
import functools
import os
import platform
import random
import re
import shlex
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast
from uuid import UUID

import pytest

from harness import command, manifest
from harness.loop import LoopDevice
from tests.kernel import behaviour as records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = Path(__file__).parents[2] / "docs" / "behaviours.md"
JSON_VARIABLE = "BTRSYNC_BEHAVIOURS_JSON"
PHOTO_BYTES = 3_000_000
CRASHABLE_BYTES = 256 << 20
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
# _IOR(0x94, 60, struct btrfs_ioctl_get_subvol_info_args): include/uapi/linux/btrfs.h
_SUBVOL_INFO_BYTES, _CTRANSID_AT = 504, 344
_GET_SUBVOL_INFO = 2 << 30 | _SUBVOL_INFO_BYTES << 16 | 0x94 << 8 | 60

Test = TypeVar("Test", bound="Callable[..., None]")


@dataclass(frozen=True, slots=True)
class Shown:
    """The fields of one subvolume, under the kernel's names; otransid is "Gen at creation" in `show`."""

    id: int
    uuid: UUID
    received_uuid: UUID | None
    generation: int
    ctransid: int
    otransid: int
    rtransid: int
    is_readonly: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Two mounted filesystems: the one that is sent from, and the one that receives."""

    source: Path
    source_device: Path
    target: Path
    target_device: Path


class Trial:
    """One behaviour being tried: runs commands, writes down what they said and what is the case."""

    def __init__(self, record: records.Record, pair: Pair, name: str, work: Path) -> None:
        self.record = record
        self.pair = pair
        self.source = pair.source / name
        self.target = pair.target / name
        self.work = work
        self._names: list[tuple[str, str]] = []
        for path, shown in ((self.source, "/source"), (self.target, "/target"), (self.work, "/work")):
            path.mkdir(exist_ok=True)
            self.call(path, shown)
        # Where a command wants the whole filesystem.
        self.call(pair.source, "/source")
        self.call(pair.target, "/target")
        self._name = name

    def call(self, path: Path, shown: str) -> Path:
        """Have `path` appear in the record as `shown`."""
        self._names.append((str(path), shown))
        return path

    def run(self, *argv: str | Path, status: int = 0) -> str:
        """Run a command, write it down, require its exit status; return all it said."""
        words = [str(word) for word in argv]
        done = command.run(words, ok=None)
        return self._written_down(shlex.join(words), done, status)

    def shell(self, line: str, status: int = 0) -> str:
        """Run a line as a person would type it, where redirections and pipes are what is tried."""
        return self._written_down(line, command.run(["sh", "-c", line], ok=None), status)

    def _written_down(self, line: str, done: command.Completed, status: int) -> str:
        said = done.stdout + done.stderr
        words = tuple(self._normal(each.rstrip()) for each in said.splitlines() if each.strip())
        self.record.steps.append(records.Step(self._normal(line), done.returncode, words))
        assert done.returncode == status, f"{line}: exit status {done.returncode}, not {status}: {said}"
        return said

    def note(self, what: str, error: OSError | None) -> None:
        """Write down a system call that no command makes, and how it ended."""
        result = f"{errno.errorcode[error.errno or 0]} ({error.strerror})" if error else "0"
        self.record.steps.append(records.Step(f"{self._normal(what)} = {result}", 0))

    def holds(self, sentence: str, condition: object) -> None:
        """Write down a fact about the filesystem, and fail if it is not one."""
        self.record.facts[sentence] = bool(condition)
        assert condition, f"not so: {sentence}"

    def same_tree(self, one: Path, other: Path) -> bool:
        """Whether two trees agree in everything that a mirror must keep; says on stdout in what they differ."""
        differences = manifest.difference(manifest.read(one), manifest.read(other))
        print("\n".join(differences))
        return not differences

    # -- the usual steps

    def mkdir(self, path: Path) -> Path:
        """Make a directory."""
        self.run("mkdir", path)
        return path

    def share(self, name: str = "share") -> Path:
        """Make the usual subvolume: a letter, a photo of 3 MB that does not compress, a link to it."""
        path = self.source / name
        self.run("btrfs", "subvolume", "create", path)
        (path / "letters").mkdir()
        (path / "letters" / "first").write_text("Dear reader,\n")
        (path / "photo").write_bytes(random.Random(1).randbytes(PHOTO_BYTES))
        (path / "link").symlink_to("letters/first")
        return path

    def snapshot(self, of: Path, to: Path, *, readonly: bool = True) -> Path:
        """Take a snapshot with the stock command."""
        self.run("btrfs", "subvolume", "snapshot", *(["-r"] if readonly else []), of, to)
        return to

    def send(self, snapshot: Path, send_parent: Path | None = None, *options: str, to: str = "") -> Path:
        """Send a snapshot into a file of /work; by default one named after it."""
        stream = self.work / (to or f"{snapshot.name}.stream")
        parent = ["-p", str(send_parent)] if send_parent else []
        self.run("btrfs", "send", *options, *parent, "-f", stream, snapshot)
        return stream

    def receive(self, stream: Path, into: Path | None = None, *options: str, status: int = 0) -> str:
        """Receive a stream out of a file; by default into /target."""
        return self.run("btrfs", "receive", *options, "-f", stream, into or self.target, status=status)

    @contextmanager
    def mounted(self, device: Path, where: str, options: str) -> Iterator[Path]:
        """The filesystem of `device` mounted once more, at /work/`where`."""
        path = self.work / where
        path.mkdir()
        self.run("mount", "-o", options, device, path)
        try:
            yield path
        finally:
            self.run("umount", path)

    def umount_all(self) -> None:
        """Unmount whatever is mounted below /work; nothing is, after a test that went well."""
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in reversed(points):
            if Path(point).is_relative_to(self.work):
                command.run(["umount", point])

    def inside(self, *path: str) -> str:
        """Return the path of something below this test's directory, from the filesystem's top level."""
        return "/".join((self._name, *path))

    def _normal(self, text: str) -> str:
        # From the top level of the filesystem, or of a chroot, paths have no mountpoint in front.
        text = records.normal(text, self._names)
        return text.replace(f"={self._name}/", "=").replace(f"{self._name}/", "").replace(self._name, "")


class CrashableDisk:
    """A filesystem of its own at /work/disk, whose machine can crash: `with CrashableDisk(trial) as disk`.

    A crash is a copy of the disk as it is, mounted instead of the original: what was on disk is there, what
    was in memory is not. Nothing may be writing at that moment.
    """

    def __init__(self, trial: Trial) -> None:
        self.root = trial.work / "disk"
        self._trial = trial
        self._stack = ExitStack()
        self._disk: LoopDevice

    def __enter__(self) -> Self:
        self.root.mkdir()
        self._disk = self._stack.enter_context(LoopDevice(CRASHABLE_BYTES))
        self._stack.callback(self._trial.umount_all)
        command.run(["mkfs.btrfs", "--quiet", self._disk.device])
        self._mount()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self._trial.umount_all()
            self._forget()

    def crash(self) -> None:
        """Lose what is in memory only."""
        copy = self._stack.enter_context(LoopDevice(CRASHABLE_BYTES))
        # Copied before anything is unmounted, for that would write.
        shutil.copyfile(self._disk.backing_file, copy.backing_file)
        command.run(["umount", self.root])
        # Two devices with one UUID: the kernel must know one of them only.
        self._forget()
        self._disk = copy
        self._mount()
        self._trial.record.steps.append(records.Step("(crash)", 0))

    def _mount(self) -> None:
        # commit=300: the test alone says when something is written.
        command.run(["mount", "-o", "noatime,commit=300", self._disk.device, self.root])

    def _forget(self) -> None:
        command.run(["btrfs", "device", "scan", "--forget", self._disk.device])


# ----------------------------------------------------------------------------- state, read not changed


def show(path: Path) -> Shown:
    """Read a subvolume's fields from `btrfs subvolume show`, which changes nothing."""
    said = command.run(["btrfs", "subvolume", "show", str(path)]).stdout
    fields = dict(re.findall(r"^\t([A-Z][^:]*):\s+(.*?)\s*$", said, flags=re.MULTILINE))
    received = fields["Received UUID"]
    return Shown(
        id=int(fields["Subvolume ID"]),
        uuid=UUID(fields["UUID"]),
        received_uuid=None if received == "-" else UUID(received),
        generation=int(fields["Generation"]),
        ctransid=_ctransid(path),
        otransid=int(fields["Gen at creation"]),
        rtransid=int(fields["Receive transid"]),
        is_readonly="readonly" in fields["Flags"],
    )


def _ctransid(path: Path) -> int:
    # The one field that `show` leaves out. Source: struct btrfs_ioctl_get_subvol_info_args.
    answer = bytearray(_SUBVOL_INFO_BYTES)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
    try:
        fcntl.ioctl(descriptor, _GET_SUBVOL_INFO, answer)
    finally:
        os.close(descriptor)
    return int.from_bytes(answer[_CTRANSID_AT : _CTRANSID_AT + 8], "little")


def is_subvolume(path: Path) -> bool:
    """Whether a path is the root of a subvolume: only such a directory has the inode number 256."""
    return path.lstat().st_ino == 256


def sync(path: Path) -> None:
    """Commit the filesystem that holds `path`."""
    command.run(["btrfs", "filesystem", "sync", str(path)])


def rename(old: Path, new: Path, flags: int) -> OSError | None:
    """Call renameat2 with `flags`; return its error, None if it went well."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), ctypes.c_uint(flags)) == 0:
        return None
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def rename_noreplace(old: Path, new: Path) -> OSError | None:
    """Rename unless the new name is taken."""
    return rename(old, new, _RENAME_NOREPLACE)


def rename_exchange(one: Path, other: Path) -> OSError | None:
    """Let two names change places in one step."""
    return rename(one, other, _RENAME_EXCHANGE)


@functools.cache
def versions() -> records.Versions:
    """Return the versions of the kernel and of the programs whose words are recorded."""
    progs = command.run(["btrfs", "--version"]).stdout.split()
    coreutils = command.run(["mv", "--version"]).stdout.splitlines()[0].split()
    kernel = re.match(r"\d+\.\d+", platform.release())
    return records.Versions(
        kernel=kernel[0] if kernel else platform.release(),
        btrfs_progs=progs[1].removeprefix("v"),
        coreutils=coreutils[-1],
    )


# -------------------------------------------------------------------------------- against the page


def behaviour(test: Test) -> Test:
    """Make a test a behaviour: when it has passed, its record must be what the page says."""

    @functools.wraps(test)
    def tried(*, trial: Trial, **others: Any) -> None:
        test(trial=trial, **others)
        if not os.environ.get(JSON_VARIABLE):
            compare_with_page(trial.record)

    tried.__dict__["is_behaviour"] = True
    return cast("Test", tried)


def compare_with_page(record: records.Record) -> None:
    """Fail, with the difference, if docs/behaviours.md does not say what was seen.

    On the versions that the page was written on every word counts. On others programs may say it in
    other words, so there the commands, their exit statuses and the facts are compared.
    """
    __tracebackhide__ = True
    page = PAGE.read_text() if PAGE.exists() else ""
    told = records.sections_of(page).get(record.behaviour.name, "")
    seen = records.format_record(record)
    if records.written_on(page) != versions().key:
        told, seen = records.without_words(told), records.without_words(seen)
    if told != seen:
        lines = difflib.unified_diff(
            told.splitlines(),
            seen.splitlines(),
            "docs/behaviours.md",
            f"seen on {versions().key}",
            lineterm="",
        )
        pytest.fail(
            "\n".join([*lines, "", "If this is right: python -m tests.kernel.behaviours_page"]), pytrace=False
        )
