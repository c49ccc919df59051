"""The disks of a scenario: daisy's array, the workstation's sources, its targets without a network."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from harness import filesystem
from harness.filesystem import Array
from harness.scenario.parts import MIRROR_ROOT, SERVER_ROOT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from harness.host import Host
    from harness.scenario.parts import Job, Target

UNDER_BINDS = Path("/run/btrsync-binds")


@contextlib.contextmanager
def mounted_array(daisy: Host, array: Array, *, options: str) -> Iterator[Path]:
    """The array at daisy:/MirrorRoot, with the directory for all clients; yields that."""
    with filesystem.mount(array, MIRROR_ROOT, host=daisy, options=options):
        root = daisy.path(SERVER_ROOT)
        root.mkdir(mode=0o700)
        yield root


@contextlib.contextmanager
def workstation_disks(
    host: Host,
    sources: Array,
    jobs: Collection[Job],
    targets: Collection[Target],
    *,
    source_mount: Path | None,
    size_bytes: int,
    directory: Path | None,
    options: str,
) -> Iterator[None]:
    """Every mount of the workstation, outer ones first, and in them subvolumes and snapshot directories.

    sources: the file system of all jobs, mounted at `source_mount` where the jobs below get a
    subvolume, and at the place of each other job. A target with a path gets a file system of its
    own, of `size_bytes`, mounted at the parent of that path.
    """
    points: dict[Path, tuple[Array, str | None]] = {}
    if source_mount is not None:
        points[source_mount] = (sources, None)
    inside = {job.name for job in jobs if source_mount is not None and source_mount in job.subvolume.parents}
    for job in jobs:
        if job.name not in inside:
            points[job.subvolume] = (sources, f"job-{job.name}")
    for job in jobs:
        if not any(job.snapshots.is_relative_to(point) for point in points):
            points[job.snapshots] = (sources, f"snapshots-{job.name}")
    with contextlib.ExitStack() as stack:
        for target in targets:
            if target.path is not None and target.path.parent not in points:
                label = f"LocalBtr{len(points)}"
                local = stack.enter_context(Array(1, size_bytes, label=label, directory=directory))
                points[target.path.parent] = (local, None)
        for point in sorted(points, key=lambda path: len(path.parts)):
            array, subvolume = points[point]
            stack.enter_context(_kept_in_sight(host, point))
            mounted = filesystem.mount(array, point, host=host, options=options, subvolume=subvolume)
            stack.enter_context(mounted)
            stack.enter_context(_shown_again(host, point))
        for job in sorted(jobs, key=lambda job: len(job.subvolume.parts)):
            if job.name in inside:
                host.path(job.subvolume.parent).mkdir(parents=True, exist_ok=True)
                host.run(["btrfs", "subvolume", "create", job.subvolume])
        local_paths = [target.path for target in targets if target.path is not None]
        for wanted in [job.snapshots for job in jobs] + local_paths:
            host.path(wanted).mkdir(parents=True, exist_ok=True)
        yield


def covered_binds(host: Host, point: Path) -> list[Path]:
    """Return what a host needs to run the tool and a mount at `point` would hide."""
    return [path for path in map(Path, host.binds) if point in path.parents]


@contextlib.contextmanager
def _kept_in_sight(host: Host, point: Path) -> Iterator[None]:
    """What the mount at `point` will hide, bound aside: a clone of this repository below /home, say."""
    with contextlib.ExitStack() as stack:
        for path in covered_binds(host, point):
            stack.enter_context(_bound(host, path, UNDER_BINDS / path.relative_to("/")))
        yield


@contextlib.contextmanager
def _shown_again(host: Host, point: Path) -> Iterator[None]:
    """What the mount at `point` has hidden, shown at its own place again."""
    with contextlib.ExitStack() as stack:
        for path in covered_binds(host, point):
            stack.enter_context(_bound(host, UNDER_BINDS / path.relative_to("/"), path))
        yield


@contextlib.contextmanager
def _bound(host: Host, path: Path, point: Path) -> Iterator[None]:
    host.path(point).mkdir(parents=True, exist_ok=True)
    host.run(["mount", "--bind", path, point])
    try:
        yield
    finally:
        if host.is_alive:
            host.run(["umount", point])
