"""The rows: what is measured, against what, and the target."""

from __future__ import annotations

import functools
import json
import resource
from typing import TYPE_CHECKING

from harness import command, sshd, tree
from harness.bench import product
from harness.bench.row import absolute, paired, timed
from harness.scenario import SERVER_ROOT, TwoHosts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.bench.row import Row
    from harness.host import Host

GIB = 1 << 30
BTRBK_KEY = "/root/.ssh/btrbk"
RAW_KEY = "/root/.ssh/raw"
BTRBK_FILTER = "/usr/share/btrbk/scripts/ssh_filter_btrbk.sh"
MANY_SNAPSHOTS = 1000


def nothing_changed(pairs: int) -> Row:
    """A timer's common run: nothing to do, over ssh. btrbk by its own filter script, `onchange`."""
    with two_hosts(members=1) as both:
        fill(both, "small")
        prepare_btrbk(both)
        run_btrbk(both)
        both.sync()
        before = both.backups()

        def ours() -> float:
            return timed(lambda: expect_result(both, "nothing_changed"))

        row = paired(
            "nothing-changed", ours, lambda: timed(lambda: run_btrbk(both)),
            pairs=pairs, target=0.35, baseline="btrbk run, snapshot_create onchange",
        )  # fmt: skip
        if both.backups() != before:
            raise AssertionError("something was sent though nothing changed")
        return row


def serve_ready(pairs: int) -> Row:
    """CPU of `btrsync serve` from its start until it has said its banner, both read from the kernel."""
    with two_hosts(members=1) as both:

        def ours() -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            # It says its banner before it reads, then meets end of file and ends.
            done = command.run([both.btrsync_path, "serve", "workstation"], input="", ok=None)
            if not done.stdout.startswith("btrsync wire"):
                raise AssertionError(f"no banner: {done}")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)

        return absolute("serve-ready", ours, runs=pairs, target=150.0, unit="ms CPU")


def full_mixed(pairs: int, size: str = "large") -> Row:
    """A full sync of a mixed tree over ssh, against the raw pipe, which is made to sync too."""
    with two_hosts(members=2, size_bytes=6 * GIB, source_size_bytes=6 * GIB) as both:
        fill(both, size)
        both.workstation.run(["btrfs", "filesystem", "sync", "/home/foo"])
        raw = prepare_raw(both)

        def ours() -> float:
            seconds = timed(lambda: expect_result(both, "sent", "--full"))
            forget(both)
            return seconds

        def theirs() -> float:
            both.workstation.run(["btrfs", "subvolume", "snapshot", "-r", "/home/foo/share", "/home/foo/raw"])
            seconds = timed(lambda: both.workstation.run(raw, timeout_s=600))
            both.workstation.run(["btrfs", "subvolume", "delete", "/home/foo/raw"])
            both.daisy.run(["btrfs", "subvolume", "delete", "-c", "/MirrorRoot/raw/raw"])
            both.daisy.run(["btrfs", "subvolume", "sync", "/MirrorRoot"], timeout_s=600)
            return seconds

        return paired(
            "full-mixed", ours, theirs, pairs=pairs, target=1.05,
            baseline="btrfs send | ssh | btrfs receive, then btrfs filesystem sync",
        )  # fmt: skip


def many_snapshots(pairs: int) -> Row:
    """Inventory and plan with 1,000 snapshots on either side: a whole dry run, ssh and all."""
    with two_hosts(members=1) as both:
        both.sync()
        first = both.snapshots()[0]
        backups = SERVER_ROOT / "workstation/share"
        multiply(both.workstation, "/home/foo/share", "/home/foo/share/snapshots", "-r")
        # Writable ones: a read-only snapshot of a backup would carry its received UUID, and be refused.
        multiply(both.daisy, backups / first, backups)

        def ours() -> float:
            return timed(lambda: both.btrsync("sync", "--dry-run"))

        return absolute("many-snapshots", ours, runs=pairs, target=1.0, unit="s")


ROWS: dict[str, Callable[[int], Row]] = {
    "nothing-changed": nothing_changed,
    "serve-ready": serve_ready,
    "full-mixed": full_mixed,
    "many-snapshots": many_snapshots,
}
SMALL_ROWS = ("nothing-changed", "serve-ready")
"""What runs without --rows: seconds, not minutes."""


@functools.cache
def product_command() -> Path:
    """Return the installed command, installed once in a run."""
    return product.installed()


def two_hosts(**options: int) -> TwoHosts:
    """Return the two hosts to enter, both with the tool as a user has it."""
    both = TwoHosts(**options)  # type: ignore[arg-type]
    both.btrsync_path = product_command()
    return both


def fill(both: TwoHosts, size: str) -> None:
    """Generate a tree in the subvolume of the job, the same in every run."""
    data = both.source() / "data"
    data.mkdir()
    tree.generate(data, 1, size)


def multiply(host: Host, source: str | Path, directory: str | Path, *options: str) -> None:
    """Make a thousand snapshots of `source` in `directory`, by `btrfs subvolume snapshot OPTIONS`."""
    line = 'for i in $(seq -w "$3"); do btrfs -q subvolume snapshot "${@:4}" "$1" "$2/many-$i"; done'
    argv = ["bash", "-ec", line, "multiply", source, directory, str(MANY_SNAPSHOTS), *options]
    host.run(argv, timeout_s=300)


def expect_result(both: TwoHosts, result: str, *words: str) -> None:
    """Run `btrsync sync` as a user does, and see that it did what is being measured."""
    outcome = both.sync(*words, timeout_s=600).outcome()
    if outcome["result"] != result:
        raise AssertionError(f"expected {result}: {json.dumps(outcome)}")


def forget(both: TwoHosts) -> None:
    """Delete what a full sync made on both sides, and wait for the cleaner, so that pairs are alike."""
    for name in both.snapshots():
        both.workstation.run(["btrfs", "subvolume", "delete", f"/home/foo/share/snapshots/{name}"])
    for name in both.backups():
        both.daisy.run(["btrfs", "subvolume", "delete", "-c", SERVER_ROOT / "workstation/share" / name])
    both.daisy.run(["btrfs", "subvolume", "sync", "/MirrorRoot"], timeout_s=600)


def prepare_raw(both: TwoHosts) -> list[str | Path]:
    """Let the workstation send by the plain pipe; return the command. A key is bound to the receive."""
    both.daisy.path("/MirrorRoot/raw").mkdir()
    key = sshd.Key("ed25519", "raw")
    key.install(both.workstation, RAW_KEY)
    receive = "btrfs receive /MirrorRoot/raw && btrfs filesystem sync /MirrorRoot/raw"
    sshd.authorize(both.daisy, key, command=receive)
    pipe = f"set -o pipefail; btrfs send -q /home/foo/raw | ssh -o BatchMode=yes -i {RAW_KEY} daisy"
    return ["bash", "-c", pipe]


def prepare_btrbk(both: TwoHosts) -> None:
    """Configure btrbk for a like subvolume and the same server, restricted by its own filter script.

    A subvolume of its own: each tool's snapshot moves the generation that the other one looks at.
    """
    both.workstation.run(["btrfs", "subvolume", "snapshot", "/home/foo/share", "/home/foo/other"])
    both.workstation.path("/home/foo/btrbk").mkdir()
    both.daisy.path("/MirrorRoot/btrbk").mkdir()
    key = sshd.Key("ed25519", "btrbk")
    key.install(both.workstation, BTRBK_KEY)
    sshd.authorize(both.daisy, key, command=f"{BTRBK_FILTER} --target --delete --info")
    both.workstation.write_text(
        "/etc/btrbk/bench.conf",
        f"ssh_identity {BTRBK_KEY}\n"
        "snapshot_create onchange\n"
        "snapshot_preserve_min latest\n"
        "target_preserve_min latest\n"
        "lockfile /run/btrbk.lock\n"
        "volume /home/foo\n"
        "  snapshot_dir btrbk\n"
        "  subvolume other\n"
        "    target ssh://daisy/MirrorRoot/btrbk\n",
    )


def run_btrbk(both: TwoHosts) -> None:
    """Run btrbk once, as its timer does."""
    both.workstation.run(["btrbk", "-q", "-c", "/etc/btrbk/bench.conf", "run"], timeout_s=120)
