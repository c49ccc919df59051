"""A fetch whose link is lost, and not made anew at the first attempt."""

from __future__ import annotations

import types
from typing import Any

import pytest

from btrsync.errors import UnreachableError
from btrsync.fetch import _Fetch
from btrsync.report import JobOutcome


class Link:
    """Connections whose `failing` first renewals fail; nothing may be asked of one that is not greeted.

    cuts: how often it is cut in a transfer; is_advancing: each time, a part more has come by then.
    """

    def __init__(self, failing: int = 0, *, cuts: int = 1, is_advancing: bool = False) -> None:
        self.failing = failing
        self.cuts = cuts
        self.is_advancing = is_advancing
        self.fetch: Any = None
        self.remote = types.SimpleNamespace(is_lost=False)
        self.is_greeted = True
        self.asked = 0

    def open(self, _name: str) -> Any:
        return self.remote

    def reopen(self, _name: str) -> Any:
        if self.failing:
            self.failing -= 1
            raise UnreachableError("no answer")
        self.remote.is_lost, self.is_greeted = False, True
        return self.remote

    def attempt(self, _remote: Any) -> JobOutcome:
        assert self.is_greeted
        self.asked += 1
        if self.asked <= self.cuts:
            self.fetch._has_advanced = self.is_advancing
            self.remote.is_lost, self.is_greeted = True, False
            raise UnreachableError("the link was cut")
        return JobOutcome(job="job", target="daisy", result="fetched")


def persist(link: Link, monkeypatch: pytest.MonkeyPatch) -> JobOutcome:
    target = types.SimpleNamespace(retries=3, retry_pause_s=0, rate_limit_bytes=None, rate_limits=())
    config: Any = types.SimpleNamespace(targets={"daisy": target})
    options: Any = types.SimpleNamespace(job="job")
    fetching = _Fetch(config, options, "daisy", types.SimpleNamespace(step=lambda *_: None))
    link.fetch = fetching
    monkeypatch.setattr(fetching, "_attempt", link.attempt)
    return fetching._persist(link)  # type: ignore[arg-type]


def test_nothing_is_asked_of_a_connection_that_was_not_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(failing=2)
    assert persist(link, monkeypatch).result == "fetched"
    assert link.asked == 2


def test_a_link_that_does_not_come_back_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError, match="no answer"):
        persist(Link(failing=9), monkeypatch)


def test_only_the_tries_that_get_no_further_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError, match="was cut"):
        persist(Link(cuts=9), monkeypatch)
    assert persist(Link(cuts=9, is_advancing=True), monkeypatch).result == "fetched"
