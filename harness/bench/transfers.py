"""Rows of full transfers: against the raw pipe, with and without checkpoints, and their CPU."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from harness import wait
from harness.bench import accounts, sources, stage
from harness.bench.figures import FIGURES
from harness.bench.peers import RawPipe
from harness.bench.row import absolute, paired, timed
from harness.scenario import SERVER_ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.bench.row import Row
    from harness.bench.stage import Stage
    from harness.command import Process
    from harness.scenario import TwoHosts

MIB = 1 << 20
CPU_RUNS = 3


def full_mixed(on: Stage) -> Row:
    """A mixed tree; generated, with every kind of node."""
    return against_raw(on, "full-mixed", mixed_hosts(on))


def many_small_files(on: Stage) -> Row:
    """Little data and many commands: what costs is the metadata."""
    fill = functools.partial(sources.small_files, scale=on.scale)
    return against_raw(on, "many-small-files", on.hosts("small-files", fill, gib=4))


def one_large_file(on: Stage) -> Row:
    """Bytes that do not compress: what costs is moving them."""
    size_bytes = round(sources.LARGE_FILE_BYTES * on.scale)
    fill = functools.partial(sources.noise, size_bytes=size_bytes)
    both = on.hosts("large-file", fill, gib=5)
    row = against_raw(on, "one-large-file", both)
    counted = accounts.Counted(both)
    gib = counted.sync() / stage.GIB
    cpu_s = counted.take(both.workstation) + counted.take(both.daisy)
    stage.forget(both)
    return replace(row, details={"CPU of btrsync's own processes, s per GiB": [cpu_s / gib]})


def against_raw(on: Stage, name: str, both: TwoHosts) -> Row:
    """Full syncs of what is there against the raw pipe; the first one, not counted, tells the flags."""
    first = stage.sync(both, "sent", "-vv")
    stage.forget(both)
    raw = RawPipe(both, first)
    return paired(
        name, functools.partial(full_sync, both), raw.full,
        pairs=on.pairs, target=FIGURES[name].target, baseline=raw.words,
    )  # fmt: skip


def checkpointing(on: Stage) -> Row:
    """The same transfer with a checkpoint every 256 MiB and with none."""
    both = mixed_hosts(on)
    often_bytes = max(4 * MIB, round(256 * MIB * on.scale))

    def often() -> float:
        stage.set_server(both, checkpoint_bytes=often_bytes)
        return full_sync(both)

    def never() -> float:
        stage.set_server(both, checkpoint_bytes=0, checkpoint_seconds=0)
        return full_sync(both)

    # The first one, not counted, shows that there are checkpoints.
    stage.set_server(both, checkpoint_bytes=often_bytes)
    backups = both.daisy.path(SERVER_ROOT / "workstation/share")
    with both.syncing() as process:
        wait.until(
            lambda: any(name.startswith(".partial-") for name in names_in(backups)) or is_over(process),
            timeout_s=stage.LONG_S,
            what="a checkpoint",
            interval_s=0.002,
        )
        if is_over(process):
            raise AssertionError(f"the transfer ended without a checkpoint: {process.completed()}")
        process.wait(stage.LONG_S)
    stage.forget(both)
    row = paired(
        "checkpointing", often, never,
        pairs=on.pairs, target=FIGURES["checkpointing"].target, baseline="the same without checkpoints",
    )  # fmt: skip
    stage.set_server(both)
    return row


def is_over(process: Process) -> bool:
    """Return whether a process has ended."""
    return process.poll() is not None


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory, none if it is not there."""
    return [path.name for path in directory.iterdir()] if directory.exists() else []


def cpu_per_gib(on: Stage) -> Row:
    """CPU of the client and of `serve`, without btrfs, ssh and sshd, for each GiB on the wire.

    Of the mixed tree, whose many commands cost more than its bytes; `one-large-file` has its own beside it.
    """
    both = mixed_hosts(on)
    counted = accounts.Counted(both)
    sides: dict[str, list[float]] = {"client, s per GiB": [], "serve, s per GiB": []}

    def ours() -> float:
        gib = counted.sync() / stage.GIB
        stage.forget(both)
        for samples, host in zip(sides.values(), (both.workstation, both.daisy), strict=True):
            samples.append(counted.take(host) / gib)
        return sum(samples[-1] for samples in sides.values())

    target = FIGURES["cpu-per-gib"].target
    runs = min(on.pairs, CPU_RUNS)
    return absolute("cpu-per-gib", ours, runs=runs, target=target, unit="s CPU per GiB", details=sides)


def mixed_hosts(on: Stage) -> TwoHosts:
    """Return the two hosts of all rows about the mixed tree."""
    return on.hosts("mixed", functools.partial(sources.mixed, scale=on.scale), gib=6)


def full_sync(both: TwoHosts) -> float:
    """Return the seconds of one full sync, and undo it."""
    stage.settle(both)
    seconds = timed(lambda: stage.sync(both, "sent"))
    stage.forget(both)
    return seconds


ROWS: dict[str, Callable[[Stage], Row]] = {
    "full-mixed": full_mixed,
    "checkpointing": checkpointing,
    "cpu-per-gib": cpu_per_gib,
    "one-large-file": one_large_file,
    "many-small-files": many_small_files,
}
