"""How often a transfer is tried again: as often as is configured without getting any further."""

from __future__ import annotations

import types
from typing import Any

import pytest

from btrsync.delivery import Delivery
from btrsync.errors import UnreachableError
from btrsync.report import JobOutcome

RETRIES = 3


class Line:
    """A target that is lost in each try but the last; `kept_bytes`: what it has when it is there again."""

    def __init__(self, kept_bytes: list[int]) -> None:
        self.kept_bytes = kept_bytes
        self.pauses: list[float] = []
        self.remote = types.SimpleNamespace(is_lost=False, sent_bytes=0, partials={})

    def open(self, _name: str) -> Any:
        return self.remote

    def lose(self, *_: object) -> None:
        pass

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def reopen(self, _name: str) -> Any:
        self.remote.is_lost = False
        offset_bytes = self.kept_bytes.pop(0)
        self.remote.partials = {"job": (types.SimpleNamespace(offset_bytes=offset_bytes),)}
        return self.remote

    def attempt(self, *_: object) -> JobOutcome:
        if self.kept_bytes:
            self.remote.is_lost = True
            raise UnreachableError("the link was cut")
        return JobOutcome(job="job", target="daisy", result="sent")


def persist(line: Line, monkeypatch: pytest.MonkeyPatch) -> JobOutcome:
    config: Any = types.SimpleNamespace(retries=RETRIES, retry_pause_s=5)
    anything: Any = types.SimpleNamespace(is_full=False, step=lambda *_: None, inventory=lambda: None)
    delivery = Delivery(
        "job", "daisy",
        config=(anything, config), wishes=anything, source=anything, maker=anything,
        line=line, report=anything,
    )  # fmt: skip
    monkeypatch.setattr(delivery, "_attempt", line.attempt)
    (outcome,) = delivery.outcomes(anything)
    return outcome


def test_a_transfer_that_gets_further_each_time_is_tried_as_often_as_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Line(kept_bytes=[100, 200, 300, 400, 500, 600])
    outcome = persist(line, monkeypatch)
    assert outcome.result == "sent"
    assert "tried again 6 times" in outcome.detail
    assert line.pauses == [5] * 6


@pytest.mark.parametrize(
    "kept_bytes", [[0] * 9, [100] * 9, [100, 200, 50, 100, 200, 50, 100, 200]], ids=["none", "the same", "in circles"]
)  # fmt: skip
def test_one_that_gets_no_further_is_given_up(kept_bytes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(list(kept_bytes))
    with pytest.raises(UnreachableError):
        persist(line, monkeypatch)
    assert line.pauses[-RETRIES:] == [5, 10, 20]
    assert line.kept_bytes
