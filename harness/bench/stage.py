"""Two hosts ready to be measured, kept for the next row where that wants the same."""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness.bench import product
from harness.scenario import SERVER_FILE, SERVER_ROOT, Job, Target, TwoHosts, format_toml

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.scenario import Synced

GIB = 1 << 30
LONG_S = 240
UNTRIED = Target(settings={"retries": 0})
"""A transfer that breaks ends the run: what is measured is the run after it."""


@functools.cache
def product_command() -> Path:
    """Return the installed command, installed once in a run."""
    return product.installed()


class Stage:
    """The rows of one run: how often and how large to measure, and the hosts of the present row.

    pairs: of each row; scale: of what is mirrored, 1 for a figure that counts.
    """

    def __init__(self, pairs: int, scale: float) -> None:
        self.pairs = pairs
        self.scale = scale
        self._key = ""
        self._both: TwoHosts | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the present hosts down."""
        self._key = ""
        self._stack.close()

    def hosts(
        self,
        key: str,
        fill: Callable[[Path], None] | None = None,
        *,
        gib: float = 1,
        members: int = 1,
        target: Target | None = None,
        jobs: Sequence[Job] = (Job(),),
    ) -> TwoHosts:
        """Return two hosts with the tool as a user has it, the same as before for the same `key`.

        fill: fills the directory `data` of each job's subvolume. gib: of the source's disk, and of each
        member of daisy's array.
        """
        if self._both is None or key != self._key:
            self.clear()
            size_bytes = round(gib * GIB)
            both = TwoHosts(
                members=members,
                size_bytes=size_bytes,
                source_size_bytes=size_bytes,
                jobs=jobs,
                targets=[target or Target()],
            )
            both.btrsync_path = product_command()
            self._both = self._stack.enter_context(both)
            if fill is not None:
                for job in jobs:
                    data = both.source(job.name) / "data"
                    data.mkdir()
                    fill(data)
                settle(both)
            self._key = key
        return self._both


def settle(both: TwoHosts) -> None:
    """Put on the disks of both hosts what is still in memory: no row writes another one's bytes."""
    both.workstation.run(["btrfs", "filesystem", "sync", "/home/foo"], timeout_s=LONG_S)
    both.daisy.run(["btrfs", "filesystem", "sync", "/MirrorRoot"], timeout_s=LONG_S)


def sync(both: TwoHosts, result: str, *words: str | Path) -> Synced:
    """Run `btrsync sync` as a user does, and see that it did what is being measured."""
    synced = both.sync(*words, timeout_s=LONG_S)
    outcome = synced.outcome()
    if outcome["result"] != result:
        raise AssertionError(f"expected {result}: {json.dumps(outcome)}")
    return synced


def forget(both: TwoHosts) -> None:
    """Delete what a full sync made on both sides, and wait for the cleaners, so that runs are alike."""
    backups = SERVER_ROOT / "workstation/share"
    snapshots = Path("/home/foo/share/snapshots")
    delete(both, [snapshots / name for name in both.snapshots()], [backups / name for name in both.backups()])


def delete(both: TwoHosts, near: list[Path], far: list[Path]) -> None:
    """Delete subvolumes of the workstation and of daisy, wait for both cleaners, and settle."""
    for host, paths, root in ((both.workstation, near, "/home/foo"), (both.daisy, far, "/MirrorRoot")):
        subvolumes = [path for path in paths if path.suffix != ".json"]
        records = [path for path in paths if path.suffix == ".json"]
        if subvolumes:
            host.run(["btrfs", "subvolume", "delete", "-c", *subvolumes], timeout_s=LONG_S)
        if records:
            host.run(["rm", *records])
        host.run(["btrfs", "subvolume", "sync", "-s", "1", root], timeout_s=LONG_S)
    settle(both)


def set_server(both: TwoHosts, **settings: object) -> None:
    """Write the server's configuration with further keys."""
    both.daisy.write_text(SERVER_FILE, format_toml({}) + format_settings({"root": SERVER_ROOT, **settings}))


def format_settings(settings: dict[str, object]) -> str:
    """Return keys of no table as TOML."""
    return "".join(f"{key} = {json.dumps(value, default=str)}\n" for key, value in settings.items())


def commands_of(synced: Synced, program: str) -> list[list[str]]:
    """Return the commands that a run with `-vv` said it started, without what stands before `program`.

    program: its words, like "btrfs send". Raises LookupError if it said of none.
    """
    wanted = program.split()
    found = []
    for line in synced.stderr.splitlines():
        _, plus, words = line.partition("+ ")
        argv = shlex.split(words) if plus else []
        for at in range(len(argv) - len(wanted) + 1):
            if argv[at : at + len(wanted)] == wanted:
                found.append(argv[at:])
                break
    if not found:
        raise LookupError(f"it said nothing of {program}: {synced.stderr[-2000:]}")
    return found
