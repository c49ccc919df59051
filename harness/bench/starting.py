"""Rows of what is no transfer: how `serve` starts, and a dry run with many snapshots."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from harness import command
from harness.bench import stage
from harness.bench.row import absolute, timed
from harness.scenario import SERVER_ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.bench.row import Row
    from harness.bench.stage import Stage
    from harness.host import Host

MANY_SNAPSHOTS = 1000


def serve_ready(on: Stage) -> Row:
    """CPU of `btrsync serve` from its start until it has said its banner, both read from the kernel."""
    path = stage.product_command()

    def ours() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        # It says its banner before it reads, then meets end of file and ends.
        done = command.run([path, "serve", "workstation"], input="", ok=None)
        if not done.stdout.startswith("btrsync wire"):
            raise AssertionError(f"no banner: {done}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)

    ours()
    return absolute("serve-ready", ours, runs=on.pairs, target=150.0, unit="ms CPU")


def many_snapshots(on: Stage) -> Row:
    """Inventory and plan with 1,000 snapshots on either side: a whole dry run, ssh and all."""
    both = on.hosts("many-snapshots")
    both.sync()
    first = both.snapshots()[0]
    backups = SERVER_ROOT / "workstation/share"
    multiply(both.workstation, "/home/foo/share", "/home/foo/share/snapshots", "-r")
    # Writable ones: a read-only snapshot of a backup would carry its received UUID, and be refused.
    multiply(both.daisy, backups / first, backups)

    def ours() -> float:
        return timed(lambda: both.btrsync("sync", "--dry-run"))

    ours()
    return absolute("many-snapshots", ours, runs=on.pairs, target=1.0, unit="s")


def multiply(host: Host, source: str | Path, directory: str | Path, *options: str) -> None:
    """Make a thousand snapshots of `source` in `directory`, by `btrfs subvolume snapshot OPTIONS`."""
    line = 'for i in $(seq -w "$3"); do btrfs -q subvolume snapshot "${@:4}" "$1" "$2/many-$i"; done'
    argv = ["bash", "-ec", line, "multiply", source, directory, str(MANY_SNAPSHOTS), *options]
    host.run(argv, timeout_s=300)


ROWS: dict[str, Callable[[Stage], Row]] = {"serve-ready": serve_ready, "many-snapshots": many_snapshots}
