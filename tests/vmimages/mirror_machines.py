"""Machines that mirror over a real sshd: what each end is told, and what its trees are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness import manifest
from harness.command import CommandFailed, Completed
from harness.sshd import Key, authorized_line, host_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.manifest import Manifest
    from vmimages.machine import Machine

LIVE = "/source/live"
SNAPSHOTS = "/source/snapshots"
ROOT = "/MirrorRoot/btrsync"
BACKUPS = f"{ROOT}/workstation/share"
SYNC = ["btrsync", "sync", "--json", "-vv"]
SYNC_S = 120.0

_MANIFESTS = """
import sys
from pathlib import Path
from harness import manifest
for path in sys.argv[1:]:
    for line in manifest.format_lines(manifest.read(Path(path))):
        print(line)
"""


def write(machine: Machine, path: str, text: str) -> None:
    """Write a file that root alone may read, with the directories above it."""
    script = 'mkdir -p "$(dirname "$0")" && umask 077 && cat > "$0"'
    said = machine.execute(["sh", "-c", script, path], input=text)
    if said.returncode != 0:
        raise CommandFailed(said, f"{path} cannot be written on {machine.name}")


def configure_client(machine: Machine, address: str, server: str) -> None:
    """Tell the client of its one job, and of the server at `address`, with the server's key."""
    kind, key = host_key(server, "ed25519").public.split()[:2]
    write(machine, "/etc/btrsync/key", Key().private)
    write(machine, "/etc/btrsync/known_hosts", f"{address} {kind} {key}\n")
    config = (
        f'[targets.daisy]\nhost = "{address}"\nkey = "/etc/btrsync/key"\n'
        'known_hosts = "/etc/btrsync/known_hosts"\n'
        f'[jobs.share]\nsubvolume = "{LIVE}"\nsnapshots = "{SNAPSHOTS}"\ntargets = ["daisy"]\n'
    )
    write(machine, "/etc/btrsync/btrsync.toml", config)


def configure_server(machine: Machine, settings: str = "") -> None:
    """Tell the server of its root, and give it sshd's keys and the forced command."""
    write(machine, "/etc/btrsync/server.toml", f'root = "{ROOT}"\n{settings}')
    write(machine, "/etc/ssh/host_key", host_key(machine.name, "ed25519").private)
    line = authorized_line(Key(), command="/usr/local/bin/btrsync serve workstation")
    write(machine, "/etc/ssh/authorized_keys", line + "\n")
    lines = [
        "HostKey /etc/ssh/host_key",
        "AuthorizedKeysFile /etc/ssh/authorized_keys",
        "PermitRootLogin forced-commands-only",
        "UsePAM no",
    ]
    write(machine, "/etc/ssh/sshd_config.d/10-btrsync.conf", "\n".join(lines) + "\n")


def make_source(machine: Machine, device: str, *, seed: int) -> None:
    """Make and mount the sender's filesystem, with a tree of every kind of node."""
    machine.succeed(
        f"mkfs.btrfs -q -f {device} && mkdir -p /source && mount {device} /source",
        f"btrfs -q subvolume create {LIVE} && mkdir {LIVE}/data {SNAPSHOTS}",
        f"cd /work && python3 -m harness.tree generate {LIVE}/data --size tiny --seed {seed}",
    )


def change(machine: Machine, *, seed: int, bulk_bytes: int) -> None:
    """Change the tree as life does, and write so much that no compression makes smaller."""
    machine.succeed(
        f"cd /work && python3 -m harness.tree mutate {LIVE}/data churn --seed {seed} &&"
        f" rm -f {LIVE}/bulk-* && head -c {bulk_bytes} /dev/urandom > {LIVE}/bulk-{seed}"
    )


def sync(machine: Machine) -> Completed:
    """Run `btrsync sync` to its end, whatever that is."""
    return machine.execute(SYNC, timeout_s=SYNC_S)


def outcome(completed: Completed) -> dict[str, Any]:
    """Return what a sync reported of its only job; the sync must have succeeded."""
    if completed.returncode != 0:
        raise CommandFailed(completed, f"sync ended with status {completed.returncode}")
    found: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])["outcomes"][0]
    return found


def names(machine: Machine, directory: str) -> list[str]:
    """Return what lies in a directory, hidden names too; nothing where it is not there."""
    return machine.succeed(f"ls -A {directory} 2>/dev/null || true").split()


def manifests(machine: Machine, paths: Sequence[str]) -> list[Manifest]:
    """Return the manifests of whole trees in the machine, read there in one go."""
    said = machine.execute(["python3", "-c", _MANIFESTS, *paths], cwd="/work")
    if said.returncode != 0:
        raise CommandFailed(said, f"a tree on {machine.name} cannot be read")
    found = list(_split(said.stdout))
    assert len(found) == len(paths)
    return found


def _split(text: str) -> Iterator[Manifest]:
    lines: list[str] = []
    for line in text.splitlines():
        lines.append(line)
        if line.startswith('{"entries"'):
            # Stock receive does not restore the time of the root directory in every case.
            yield manifest.without_root_time(manifest.parse_lines(lines))
            lines = []
