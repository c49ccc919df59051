"""The row of two jobs at once: what it gains over one after the other, on the same line and disks."""

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

SCALE = 0.25
"""Of the mixed tree, for each of the two."""
JOBS = tuple(
    Job(name, Path("/home/foo", name), Path("/home/foo", name, "snapshots")) for name in ("share", "music")
)


def parallel_two(on: Stage) -> Row:
    """Full syncs of two subvolumes with `parallel = 2` against `parallel = 1`, over one connection each."""
    fill = functools.partial(sources.mixed, scale=SCALE * on.scale)
    both = on.hosts("parallel", fill, gib=4, jobs=JOBS)
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
        "parallel-two", functools.partial(full_sync, 2), functools.partial(full_sync, 1),
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


ROWS: dict[str, Callable[[Stage], Row]] = {"parallel-two": parallel_two}
