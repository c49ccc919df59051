"""What btrsync is measured against: the raw pipe, btrbk and rsync, over the same link and sshd.

All are measured to the same end state, on disk at daisy: btrsync acknowledges nothing else, so a
`btrfs filesystem sync` there is counted after each of the others.
Host commands used: `bash`, `btrfs`, `btrbk`, `rsync`, `ssh`.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from harness import sshd
from harness.bench import stage
from harness.bench.row import timed
from harness.scenario import KEY_FILE

if TYPE_CHECKING:
    from harness.scenario import Synced, TwoHosts

RAW_KEY = Path("/root/.ssh/raw")
RAW_SNAPSHOT = Path("/home/foo/raw")
RAW_DIRECTORY = Path("/MirrorRoot/raw")
BTRBK_KEY = Path("/root/.ssh/btrbk")
BTRBK_CONFIG = Path("/etc/btrbk/bench.conf")
BTRBK_FILTER = "/usr/share/btrbk/scripts/ssh_filter_btrbk.sh"
BTRBK_SNAPSHOTS = Path("/home/foo/btrbk")
BTRBK_DIRECTORY = Path("/MirrorRoot/btrbk")
RSYNC_KEY = Path("/root/.ssh/rsync")
RSYNC_DIRECTORY = Path("/MirrorRoot/rsync")


class RawPipe:
    """`btrfs send | ssh | btrfs receive` of a snapshot made before, with the flags that btrsync uses.

    synced: a run of `btrsync sync -vv`, which tells how it called btrfs and ssh. `words`: what is run,
    for people.
    """

    def __init__(self, both: TwoHosts, synced: Synced) -> None:
        self._both = both
        key = sshd.Key("ed25519", "raw")
        key.install(both.workstation, RAW_KEY)
        both.daisy.path(RAW_DIRECTORY).mkdir()
        receive = f"btrfs receive {RAW_DIRECTORY} && btrfs filesystem sync {RAW_DIRECTORY}"
        sshd.authorize(both.daisy, key, command=receive)
        sends = [argv for argv in stage.commands_of(synced, "btrfs send") if "--no-data" not in argv]
        send = [*sends[-1][:-1], str(RAW_SNAPSHOT)]
        ssh = [word.replace(str(KEY_FILE), str(RAW_KEY)) for word in stage.commands_of(synced, "ssh -T")[0]]
        self._line = f"{shlex.join(send)} | {shlex.join(ssh)}"
        self.words = f"{shlex.join(send)} | ssh | btrfs receive, then btrfs filesystem sync"

    def full(self) -> float:
        """Return the seconds of one full send, sync included, and undo it."""
        both = self._both
        both.workstation.run(["btrfs", "subvolume", "snapshot", "-r", "/home/foo/share", RAW_SNAPSHOT])
        stage.settle(both)
        argv = ["bash", "-o", "pipefail", "-c", self._line]
        seconds = timed(lambda: both.workstation.run(argv, timeout_s=stage.LONG_S))
        stage.delete(both, [RAW_SNAPSHOT], [RAW_DIRECTORY / RAW_SNAPSHOT.name])
        return seconds


class Btrbk:
    """btrbk for a like subvolume and the same server, restricted by its own filter script.

    A subvolume of its own, `other`: each tool's snapshot moves the generation that the other looks at.
    settings: lines of its configuration besides those that say what and where. `alone_s`: seconds of
    each run before the sync that is counted.
    """

    def __init__(self, both: TwoHosts, *settings: str) -> None:
        self._both = both
        self.alone_s: list[float] = []
        self.subvolume = both.workstation.path("/home/foo/other")
        if not self.subvolume.exists():
            both.workstation.run(["btrfs", "subvolume", "snapshot", "/home/foo/share", "/home/foo/other"])
            both.workstation.path(BTRBK_SNAPSHOTS).mkdir()
            both.daisy.path(BTRBK_DIRECTORY).mkdir()
            key = sshd.Key("ed25519", "btrbk")
            key.install(both.workstation, BTRBK_KEY)
            sshd.authorize(both.daisy, key, command=f"{BTRBK_FILTER} --target --delete --info")
        lines = [
            *settings,
            f"ssh_identity {BTRBK_KEY}",
            "lockfile /run/btrbk.lock",
            "volume /home/foo",
            f"  snapshot_dir {BTRBK_SNAPSHOTS.name}",
            f"  subvolume {self.subvolume.name}",
            f"    target ssh://daisy{BTRBK_DIRECTORY}",
        ]
        both.workstation.write_text(BTRBK_CONFIG, "\n".join([*lines, ""]))

    def run(self) -> float:
        """Run it as its timer does; return the seconds, with a sync at the server."""
        return run_and_sync(self.alone_s, self._both, ["btrbk", "-q", "-c", BTRBK_CONFIG, "run"])

    def forget(self) -> None:
        """Delete its snapshots and backups."""
        both = self._both
        near = sorted(both.workstation.path(BTRBK_SNAPSHOTS).iterdir())
        far = sorted(both.daisy.path(BTRBK_DIRECTORY).iterdir())
        stage.delete(
            both,
            [BTRBK_SNAPSHOTS / path.name for path in near],
            [BTRBK_DIRECTORY / path.name for path in far],
        )


class Rsync:
    """rsync of the job's `data` into a directory on the same array, by a key that allows it."""

    def __init__(self, both: TwoHosts) -> None:
        self._both = both
        self.alone_s: list[float] = []
        key = sshd.Key("ed25519", "rsync")
        key.install(both.workstation, RSYNC_KEY)
        both.daisy.path(RSYNC_DIRECTORY).mkdir()
        sshd.authorize(both.daisy, key, command="exec $SSH_ORIGINAL_COMMAND")

    def run(self) -> float:
        """Return the seconds of one run, with a sync at the server."""
        argv: list[str | Path] = [
            "rsync", "-aHAX", "--numeric-ids", "--delete",
            "-e", f"ssh -o BatchMode=yes -o IdentitiesOnly=yes -i {RSYNC_KEY}",
            "/home/foo/share/data/", f"daisy:{RSYNC_DIRECTORY}/",
        ]  # fmt: skip
        return run_and_sync(self.alone_s, self._both, argv)


def run_and_sync(alone_s: list[float], both: TwoHosts, argv: list[str | Path]) -> float:
    """Run a command on the workstation and sync daisy's array; return the seconds of both.

    The seconds of the command alone are added to `alone_s`.
    """
    alone_s.append(timed(lambda: both.workstation.run(argv, timeout_s=stage.LONG_S)))
    sync = ["btrfs", "filesystem", "sync", "/MirrorRoot"]
    return alone_s[-1] + timed(lambda: both.daisy.run(sync, timeout_s=stage.LONG_S))
