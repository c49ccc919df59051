"""Fixtures for the tests over a real sshd: two lines each, and a limit on every test's time."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.network import mirror

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from harness.scenario import TwoHosts

LIMIT_S = 150


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """A run that never ends fails its test, not the session."""

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the test took more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def both() -> Iterator[TwoHosts]:
    """A workstation with a tiny tree, and daisy."""
    with mirror.small() as made:
        yield made
