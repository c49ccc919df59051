"""The rows of two jobs at once: what it gains over one after the other, on the same line and disks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from harness.bench import sources, stage
from harness.bench.row import paired, timed
from harness.scenario import SERVER_ROOT, Job

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.bench.row import Row
    from harness.bench.stage import Stage
    from harness.scenario import TwoHosts

SMALL_SCALE = 0.5
"""Of the tree of small files, for each of the two: 25,000."""
NOISE_BYTES = 256 << 20
NOISE_FILES = 64
LINE_BITS = 400_000_000
JOBS = tuple(
    Job(name, Path("/home/foo", name), Path("/home/foo", name, "snapshots")) for name in ("share", "music")
)


def parallel_two(on: Stage) -> Row:
    """Little data and many commands: `btrfs receive` makes files, on one core for each job."""
    fill = functools.partial(sources.small_files, scale=SMALL_SCALE * on.scale)
    return against_one(on, "parallel-two", on.hosts("parallel-small", fill, gib=4, jobs=JOBS))


def parallel_two_large(on: Stage) -> Row:
    """Bytes that do not compress: either of them keeps two cores busy alone."""
    return against_one(on, "parallel-two-large", large_hosts(on))


def parallel_two_400mbit(on: Stage) -> Row:
    """The same over a line that either of them fills alone."""
    both = large_hosts(on)
    both.link.slow(LINE_BITS)
    try:
        return against_one(on, "parallel-two-400mbit", both)
    finally:
        both.link.normal()


def large_hosts(on: Stage) -> TwoHosts:
    """Return two hosts with two jobs that have noise, each."""
    fill = functools.partial(sources.noise, size_bytes=round(NOISE_BYTES * on.scale), files=NOISE_FILES)
    return on.hosts("parallel-large", fill, gib=4, jobs=JOBS)


def against_one(on: Stage, name: str, both: TwoHosts) -> Row:
    """Full syncs of two subvolumes with `parallel = 2` against `parallel = 1`, over one connection each."""
    files = {
        number: both.write_client_file(Path(f"/root/parallel-{number}.toml"), parallel=number)
        for number in (1, 2)
    }

    def full_sync(number: int) -> float:
        stage.settle(both)
        seconds = timed(lambda: sync(both, files[number]))
        forget(both)
        return seconds

    full_sync(2)
    return paired(
        name, functools.partial(full_sync, 2), functools.partial(full_sync, 1),
        pairs=on.pairs, target=None, baseline="one job after the other",
    )  # fmt: skip


def sync(both: TwoHosts, file: Path) -> None:
    """Sync both jobs, and see that both were sent."""
    synced = both.sync("--config", file, timeout_s=stage.LONG_S)
    results = [outcome["result"] for outcome in synced.outcomes]
    if results != ["sent", "sent"]:
        raise AssertionError(f"expected two jobs sent: {synced}")


def forget(both: TwoHosts) -> None:
    """Delete what both jobs made on both sides."""
    near = [job.snapshots / name for job in JOBS for name in both.snapshots(job.name)]
    root = SERVER_ROOT / "workstation"
    stage.delete(both, near, [root / job.name / name for job in JOBS for name in both.backups(job.name)])


ROWS: dict[str, Callable[[Stage], Row]] = {
    "parallel-two": parallel_two,
    "parallel-two-large": parallel_two_large,
    "parallel-two-400mbit": parallel_two_400mbit,
}
