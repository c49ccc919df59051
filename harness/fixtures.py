"""Pytest fixtures: two lines each over the harness's context managers. Each lasts one test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.filesystem import Array, mount
from harness.host import Host
from harness.loop import LoopDevice
from harness.netns import Link
from harness.sshd import Sshd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["array", "daisy", "daisy_sshd", "link", "loop_device", "mirror_root", "workstation"]


@pytest.fixture
def loop_device() -> Iterator[LoopDevice]:
    """A loop device of 256 MiB. Example: `mkfs(loop_device.device)`."""
    with LoopDevice(256 << 20) as loop:
        yield loop


@pytest.fixture
def array() -> Iterator[Array]:
    """The original's array: four members of 1 GiB, data single, metadata raid1, not mounted."""
    with Array() as made:
        yield made


@pytest.fixture
def workstation() -> Iterator[Host]:
    """The host with the data."""
    with Host("workstation") as made:
        yield made


@pytest.fixture
def daisy() -> Iterator[Host]:
    """The host with the backups."""
    with Host("daisy") as made:
        yield made


@pytest.fixture
def link(workstation: Host, daisy: Host) -> Iterator[Link]:
    """The cable between the two: 10.77.0.1 and 10.77.0.2."""
    with Link(workstation, daisy) as made:
        yield made


@pytest.fixture
def daisy_sshd(daisy: Host, link: Link) -> Iterator[Sshd]:  # noqa: ARG001 - it needs the cable
    """A real sshd on daisy, root by forced command only."""
    with Sshd(daisy) as made:
        yield made


@pytest.fixture
def mirror_root(daisy: Host, array: Array) -> Iterator[Path]:
    """The array mounted at daisy:/MirrorRoot; the path as seen from the test."""
    with mount(array, "/MirrorRoot", host=daisy) as path:
        yield path
