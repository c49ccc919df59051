"""Which connection of a run may be used, and which never again."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from btrsync.config import ClientConfig, TargetConfig
from btrsync.connections import Connections
from btrsync.errors import UnreachableError
from btrsync.remote import Remote
from btrsync.report import NullReporter

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_greeting_that_the_machine_cut_short_leaves_no_connection_that_looks_open_and_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def greet(_remote: Remote, _on_waiting: Callable[[str], None]) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Remote, "greet", greet)
    config = ClientConfig(targets={"daisy": TargetConfig(host="daisy")}, jobs={}, file=Path("/nowhere"))
    connections = Connections(config, ["daisy"], "run", is_look_only=False, report=NullReporter())
    connections._started = float("inf")  # never so old that it is made anew
    with pytest.raises(OSError, match="Too many open files"):
        connections.open("daisy")
    with pytest.raises(UnreachableError, match="did not come to its end"):
        connections.open("daisy")
