"""The scenario itself: a workstation that is mirrored and daisy, the server, ready for `sync`."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness import manifest, sshd, wait
from harness.filesystem import GIB, OPTIONS, Array
from harness.host import Host
from harness.netns import Link
from harness.scenario import disks
from harness.scenario.encrypted import EncryptedArray
from harness.scenario.parts import (
    CLIENT_FILE,
    SERVER_FILE,
    SERVER_ROOT,
    Job,
    Synced,
    Target,
    format_toml,
    installed_btrsync,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from harness.command import Completed, Process
    from harness.manifest import Manifest

SUBVOLUME_INODE = 256


class TwoHosts:
    """A workstation that is mirrored, and daisy, the server: ready for `sync` when entered.

    jobs, targets: what the client's configuration says. members, size_bytes: daisy's array, mounted
    at /MirrorRoot. source_size_bytes: the one-member btrfs of the workstation, mounted at
    `source_mount`; a job below that gets a subvolume there, any other is mounted at its own place.
    directory: where the disks' backing files lie; None is in memory. is_encrypted: daisy's disks are
    for an array on plain dm-crypt, where the kernel has it; nothing is made of them before
    `encrypted.create()` and `encrypted.open()`. kind: of the clients' keys.
    permit_root_login, sshd_options: for daisy's sshd. options: mount options of all arrays.
    lower: the roots of the two hosts, of other releases for example.
    """

    def __init__(  # noqa: PLR0913 - each by name and with a default
        self,
        *,
        jobs: Sequence[Job] = (Job(),),
        targets: Sequence[Target] = (Target(),),
        members: int = 4,
        size_bytes: int = GIB,
        source_size_bytes: int = GIB,
        source_mount: Path | None = Path("/home/foo"),
        directory: Path | None = None,
        kind: sshd.Kind = "ed25519",
        permit_root_login: str = "forced-commands-only",
        sshd_options: Sequence[str] = (),
        options: str = OPTIONS,
        is_encrypted: bool = False,
        lower: tuple[Path, Path] = (Path("/"), Path("/")),
    ) -> None:
        """Only remember what is wanted; entering makes it."""
        self.jobs = {job.name: job for job in jobs}
        self.targets = {target.name: target for target in targets}
        self.workstation = Host("workstation", lower=lower[0])
        self.daisy = Host("daisy", lower=lower[1])
        self.link = Link(self.workstation, self.daisy)
        ports = {target.port for target in targets if target.path is None} - {22}
        self.sshd = sshd.Sshd(
            self.daisy,
            permit_root_login=permit_root_login,
            options=[*sshd_options, *(f"Port {port}" for port in sorted(ports))],
        )
        self.members = members
        self.size_bytes = size_bytes
        self.is_encrypted = is_encrypted
        self.array = Array(members, size_bytes, directory=directory)
        self.encrypted = EncryptedArray(self.daisy, members, size_bytes, directory=directory, options=options)
        self.source_array = Array(1, source_size_bytes, label="HomeBtr", directory=directory)
        self.source_mount = source_mount
        self.options = options
        self.kind = kind
        self.btrsync_path = installed_btrsync()
        self._directory = directory
        self._stack = contextlib.ExitStack()

    # ------------------------------------------------------------------------------- building

    def __enter__(self) -> Self:
        """Make all of it; what fails half-way is undone."""
        with contextlib.ExitStack() as stack:
            self._stack = stack
            stack.enter_context(self.workstation)
            stack.enter_context(self.daisy)
            stack.enter_context(self.link)
            self._add_disks()
            self._give_keys()
            self.write_client_file()
            stack.enter_context(self.sshd)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Take all of it down, in reverse order."""
        self._stack.close()

    def _add_disks(self) -> None:
        if self.is_encrypted:
            self._stack.enter_context(self.encrypted)
        else:
            self.daisy.write_text(SERVER_FILE, f'root = "{SERVER_ROOT}"\n')
            self._stack.enter_context(self.array)
            self._stack.enter_context(disks.mounted_array(self.daisy, self.array, options=self.options))
        self._stack.enter_context(self.source_array)
        on_workstation = disks.workstation_disks(
            self.workstation,
            self.source_array,
            self.jobs.values(),
            self.targets.values(),
            source_mount=self.source_mount,
            size_bytes=self.size_bytes,
            directory=self._directory,
            options=self.options,
        )
        self._stack.enter_context(on_workstation)

    def client_key(self, client: str = "workstation") -> sshd.Key:
        """Return the key of one client of daisy: the same as long as this process runs."""
        return sshd.Key(self.kind, f"root@{client}")

    def forced_command(self, client: str = "workstation") -> str:
        """Return the command that a client's key is bound to."""
        return f"{self.btrsync_path} serve {client}"

    def _give_keys(self) -> None:
        remote = [target for target in self.targets.values() if target.path is None]
        for client, key_file in sorted({(target.client, target.key_file) for target in remote}):
            self.client_key(client).install(self.workstation, key_file)
        for client in sorted({target.client for target in remote}):
            sshd.authorize(self.daisy, self.client_key(client), command=self.forced_command(client))
        names = {target.host for target in remote} - {"daisy", "daisy.local"}
        if names:
            line = f"{self.link.addresses[1]}\t{' '.join(sorted(names))}\n"
            self.workstation.append_text("/etc/hosts", line)
        for port in sorted({target.port for target in remote}):
            sshd.trust(self.workstation, self.daisy, port=port, names=sorted(names))

    def write_client_file(self, path: Path = CLIENT_FILE, **changes: object) -> Path:
        """Write the client's configuration; changes: keys of every target behind ssh, replaced."""
        tables: dict[tuple[str, ...], dict[str, object]] = {}
        for target in self.targets.values():
            table: dict[str, object] = dict(target.settings)
            if target.path is not None:
                table |= {"path": target.path}
            else:
                table |= {"host": target.host, "port": target.port, "key": target.key_file, **changes}
            tables["targets", target.name] = table
        for job in self.jobs.values():
            tables["jobs", job.name] = {
                "subvolume": job.subvolume,
                "snapshots": job.snapshots,
                "targets": list(job.targets),
                **job.settings,
            }
        self.workstation.write_text(path, format_toml(tables))
        return path

    # -------------------------------------------------------------------------------- running

    def btrsync(
        self, *words: str | Path, ok: Collection[int] | None = (0,), timeout_s: float = 120
    ) -> Completed:
        """Run the installed `btrsync` on the workstation; as `Host.run` in all else."""
        return self.workstation.run([self.btrsync_path, *words], ok=ok, timeout_s=timeout_s)

    def sync(self, *words: str | Path, ok: Collection[int] | None = (0,), timeout_s: float = 120) -> Synced:
        """Run `btrsync sync --json WORDS` on the workstation and return what it reported."""
        return Synced.of(self.btrsync("sync", "--json", *words, ok=ok, timeout_s=timeout_s))

    @contextlib.contextmanager
    def syncing(self, *words: str | Path) -> Iterator[Process]:
        """Start `btrsync sync --json WORDS` and yield it; `Synced.of(process.completed())` at its end."""
        with self.workstation.spawn([self.btrsync_path, "sync", "--json", *words]) as process:
            yield process

    def restore_link(self, *, timeout_s: float = 30) -> None:
        """Undo a cut and wait until the workstation can connect to daisy again.

        The kernel may still hold it against daisy that it did not answer (a neighbour entry that
        failed): for some seconds a connection then ends with "No route to host" (measured).
        """
        self.link.restore()
        address = (self.link.addresses[1], self.sshd.port)
        program = f"import socket; socket.create_connection({address!r}, 5).close()"
        wait.until(
            lambda: self.workstation.run([sys.executable, "-I", "-c", program], ok=None).returncode == 0,
            timeout_s=timeout_s,
            what=f"a connection to {self.daisy.name} after the link was restored",
            interval_s=0.1,
        )

    # -------------------------------------------------------------------------------- looking

    def source(self, job: str = "share") -> Path:
        """Return a job's subvolume as seen from here."""
        return self.workstation.path(self.jobs[job].subvolume)

    def snapshots(self, job: str = "share") -> list[str]:
        """Return the names of the subvolumes in a job's snapshot directory, sorted."""
        return _subvolume_names(self.workstation.path(self.jobs[job].snapshots))

    def snapshot_path(self, name: str, job: str = "share") -> Path:
        """Return one snapshot of a job as seen from here."""
        return self.workstation.path(self.jobs[job].snapshots) / name

    def backup_directory(self, job: str = "share", target: str = "daisy") -> Path:
        """Return the directory with a job's backups at a target, as seen from here; it may be missing."""
        wanted = self.targets[target]
        if wanted.path is not None:
            return self.workstation.path(wanted.path / job)
        return self.daisy.path(SERVER_ROOT / wanted.client / job)

    def backups(self, job: str = "share", target: str = "daisy") -> list[str]:
        """Return every name in a job's directory at a target, hidden ones too, sorted."""
        directory = self.backup_directory(job, target)
        return sorted(os.listdir(directory)) if directory.exists() else []

    def source_manifest(self, name: str, job: str = "share") -> Manifest:
        """Return the manifest of one snapshot on the workstation."""
        return manifest.read(self.snapshot_path(name, job))

    def backup_manifest(self, name: str, job: str = "share", target: str = "daisy") -> Manifest:
        """Return the manifest of one backup at a target."""
        return manifest.read(self.backup_directory(job, target) / name)

    def differences(self, name: str, job: str = "share", target: str = "daisy") -> list[str]:
        """Return how a backup differs from its snapshot, one sentence each; empty when equal.

        All counts but the time of the root directory, which stock send and receive do not keep. Of a
        nested subvolume nothing at all may be at the target, not even an empty directory.
        """
        backup = self.backup_manifest(name, job, target)
        found = manifest.difference(
            manifest.without_root_time(self.source_manifest(name, job)),
            manifest.without_root_time(backup),
            names=("the snapshot", "the backup"),
        )
        return found + [f"{manifest.escape(path)}: a subvolume at the target" for path in backup.left_out]

    def server_listing(self) -> list[str]:
        """Return all that lies below the server's root, down to the backups but not into them.

        One line each, with mode, inode, size and time of change: equal listings mean that nothing
        was touched.
        """
        return list(_list_tree(self.daisy.path(SERVER_ROOT), Path()))

    def bytes_on_link(self) -> int:
        """Return the bytes that have left the workstation over the link, from /proc/PID/net/dev."""
        for line in Path(f"/proc/{self.workstation.pid}/net/dev").read_text().splitlines():
            name, colon, counters = line.partition(":")
            if colon and name.strip() == self.link.interface:
                return int(counters.split()[8])
        raise LookupError(f"{self.workstation.name} has no interface {self.link.interface}")


def _subvolume_names(directory: Path) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and os.lstat(entry.path).st_ino == SUBVOLUME_INODE
        )


def _list_tree(directory: Path, below: Path) -> Iterator[str]:
    for path in sorted(directory.iterdir()):
        status = path.lstat()
        words = f"{below / path.name} {stat.filemode(status.st_mode)} {status.st_ino} {status.st_size}"
        if status.st_ino == SUBVOLUME_INODE:
            # Without its ctime, which was seen to change by itself: a rename sets it in memory only.
            yield words
            continue
        yield f"{words} {status.st_ctime_ns}"
        if stat.S_ISDIR(status.st_mode):
            yield from _list_tree(path, below / path.name)
