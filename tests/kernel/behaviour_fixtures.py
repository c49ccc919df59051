"""The fixtures of the behaviours: two mounted filesystems, and a notebook for each test."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.filesystem import Array, mount
from tests.kernel import behaviour as records
from tests.kernel.trial import JSON_VARIABLE, Pair, Trial, versions

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1 << 30


@pytest.fixture(scope="module")
def behaviour_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two filesystems of one member each, mounted as an ordinary machine and as the mirror mount theirs.

    Not for the whole session: a namespace that some other test makes would hold the mounts.
    """
    directory = tmp_path_factory.mktemp("behaviours")
    with ExitStack() as stack:
        mounted: list[tuple[Path, Path]] = []
        # commit=300: no periodic commit falls between a write and a look at the generation.
        for name, options in (("source", "relatime,commit=300"), ("target", "noatime")):
            backing, path = directory / f"{name}-disks", directory / name
            backing.mkdir()
            path.mkdir()
            wanted = Array(members=1, size_bytes=2 * GIB, label=name, directory=backing)
            array = stack.enter_context(wanted)
            stack.enter_context(mount(array, path, options=options, subvolume=None))
            mounted.append((path, array.devices[0]))
        (source, source_device), (target, target_device) = mounted
        yield Pair(source, source_device, target, target_device)


@pytest.fixture(scope="session")
def behaviour_records() -> Iterator[list[records.Record]]:
    """Every record of this session; written as JSON at its end where the environment asks for it."""
    seen: list[records.Record] = []
    yield seen
    if file := os.environ.get(JSON_VARIABLE):
        Path(file).write_text(json.dumps(records.as_json(seen, versions()), indent=1))


@pytest.fixture
def trial(
    request: pytest.FixtureRequest,
    behaviour_pair: Pair,
    behaviour_records: list[records.Record],
    tmp_path: Path,
) -> Iterator[Trial]:
    """A notebook, and directories of the test's own on both filesystems; what it mounted is unmounted."""
    record = records.Record(records.behaviour_of(request.function))
    behaviour_records.append(record)
    tried = Trial(record, behaviour_pair, f"trial-{len(behaviour_records):03}", tmp_path)
    yield tried
    tried.umount_all()
