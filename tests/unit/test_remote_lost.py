"""Whose words explain a connection that is lost: those of an ssh that ended, where it did."""

from __future__ import annotations

import types
from typing import Any
from uuid import uuid4

import pytest

from btrsync import sending
from btrsync.config import TargetConfig
from btrsync.errors import BtrsyncError, Exit, UnreachableError
from btrsync.remote import Remote, UncertainError
from btrsync.wire import ClosedError


class Transfer:
    """One whose stream has ended, and that fails then."""

    has_begun = has_ended = True
    sent_bytes = 0
    kept_bytes = None
    error: BtrsyncError

    def __init__(self, *_: object) -> None:
        pass

    def run(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "is_asked", "words"),
    [
        (ClosedError("daisy closed the connection"), True, "Broken pipe"),
        (UnreachableError("lost in the transfer of another job"), False, "lost in the transfer of another job"),
    ],
    ids=["the other end closed it", "we gave it up"],
)  # fmt: skip
def test_only_where_the_other_end_closed_it_is_ssh_waited_for(
    error: BtrsyncError, is_asked: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(timeout_s: float) -> Exit:
        waits.append(timeout_s)
        return Exit(("ssh", "daisy"), 255, "client_loop: send disconnect: Broken pipe\n")

    monkeypatch.setattr(Transfer, "error", error, raising=False)
    monkeypatch.setattr(sending, "Sending", Transfer)
    remote: Any = Remote("daisy", TargetConfig(host="daisy"), run_id="run", software="", is_look_only=False)
    remote._wire, remote._process = None, types.SimpleNamespace(wait=wait)
    order: Any = types.SimpleNamespace(begin=types.SimpleNamespace(uuid=uuid4(), name="s1", job="job"))
    with pytest.raises(UncertainError, match=words):
        remote.send(order, None)
    assert bool(waits) is is_asked
    assert remote.is_lost
