"""Who is lent which session of a target, and who makes the connection anew when one is lost."""

from __future__ import annotations

import contextlib
import select
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self, cast
from uuid import uuid4

import pytest

from btrsync.config import TargetConfig
from btrsync.errors import IntegrityError, UnreachableError
from btrsync.pool import Pool
from btrsync.report import NullReporter
from btrsync.wire import StopAskedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from btrsync.errors import BtrsyncError
    from btrsync.remote import Remote, Sharing

WAIT_S = 10.0
LOST = UnreachableError("the link is gone")


class Session:
    """What a pool sees of a remote; `Line.refuses` makes its greeting fail."""

    def __init__(self, line: Line, number: int) -> None:
        self.number = number
        self.may_hold: set[UUID] = set()
        self.is_lost = False
        self._line = line

    def __enter__(self) -> Self:
        self.is_lost = False
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._line.said.append(f"close {self.number}")

    def renew(self) -> None:
        self.close()
        self.__enter__()

    def greet(self, _on_waiting: Callable[[str], None]) -> None:
        if error := self._line.refuses.get(self.number):
            raise error
        self._line.said.append(f"greet {self.number}")


class Line(NullReporter):
    """A target, all that was said to it, and what was warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warnings: list[str] = []
        self.refuses: dict[int, BtrsyncError] = {}
        self.sessions: list[Session] = []

    def make(self, number: int, _sharing: Sharing) -> Remote:
        self.sessions.append(Session(self, number))
        return cast("Remote", self.sessions[-1])

    def open(self, _name: str) -> Remote:
        self.sessions[0].greet(lambda _holder: None)
        return cast("Remote", self.sessions[0])

    def reopen(self, name: str) -> Remote:
        self.sessions[0].renew()
        return self.open(name)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@contextlib.contextmanager
def pool_of(line: Line, limit: int) -> Iterator[Pool]:
    with Pool("daisy", TargetConfig(host="daisy"), limit, make=line.make, opener=line, report=line) as pool:
        yield pool


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Other jobs."""
    with ThreadPoolExecutor(4) as made:
        yield made


def is_told_to_end(pool: Pool) -> bool:
    poller = select.poll()
    poller.register(pool.stop_fd, select.POLLIN)
    return bool(poller.poll(0))


def test_a_session_is_made_when_a_second_job_wants_one_and_lent_again_when_it_is_free() -> None:
    line = Line()
    with pool_of(line, 2) as pool:
        with pool.lease() as one:
            first = one.open("daisy")
        with pool.lease() as one, pool.lease() as other:
            assert one.open("daisy") is first
            assert other.open("daisy") is not first
        assert line.said == ["greet 0", "greet 1"]
    assert line.said[2:] == ["close 1", "close 0"]


def test_a_job_too_many_waits_for_one_that_ends(threads: ThreadPoolExecutor) -> None:
    line = Line()
    with pool_of(line, 1) as pool, pool.lease() as late:
        with pool.lease() as one:
            first = one.open("daisy")
            waiting = threads.submit(late.open, "daisy")
            with pytest.raises(TimeoutError):
                waiting.result(0.1)
        assert waiting.result(WAIT_S) is first


def test_a_session_that_is_refused_is_told_once_and_not_tried_again(threads: ThreadPoolExecutor) -> None:
    line = Line()
    line.refuses[1] = UnreachableError("no more sessions")
    with pool_of(line, 4) as pool, pool.lease() as late, pool.lease() as later:
        with pool.lease() as one:
            one.open("daisy")
            waiting = [threads.submit(lease.open, "daisy") for lease in (late, later)]
            with pytest.raises(TimeoutError):
                waiting[0].result(0.1)
        done, _ = futures.wait(waiting, WAIT_S, futures.FIRST_COMPLETED)
        assert len(done) == 1
        (warning,) = line.warnings
        assert "1 at once and no more" in warning
        assert "no more sessions" in warning
        assert len(line.sessions) == 2
        pool.stop()


def test_where_the_first_one_fails_every_job_is_told_why() -> None:
    line = Line()
    line.refuses[0] = LOST
    with pool_of(line, 2) as pool:
        for _ in range(2):
            with pool.lease() as lease, pytest.raises(UnreachableError, match="the link is gone"):
                lease.open("daisy")


def test_a_lost_session_ends_all_and_the_connection_is_made_anew_when_nobody_uses_one(
    threads: ThreadPoolExecutor,
) -> None:
    line = Line()
    with pool_of(line, 2) as pool, pool.lease() as one, pool.lease() as other:
        one.open("daisy")
        other.open("daisy")
        assert not is_told_to_end(pool)
        other.lose("daisy", LOST)
        assert is_told_to_end(pool)
        assert isinstance(pool.stop_error(), UnreachableError)
        anew = threads.submit(other.reopen, "daisy")
        with pytest.raises(TimeoutError):
            # One is at work still: its server would meet a new session of its own run.
            anew.result(0.1)
        one.lose("daisy", pool.stop_error())
        one.reopen("daisy")
        anew.result(WAIT_S)
        assert not is_told_to_end(pool)
        assert line.said[2:5] == ["close 1", "close 0", "greet 0"]
        assert line.said.count("greet 0") == line.said.count("greet 1") == 2


def test_a_try_that_fails_fails_all_who_wait_for_it_and_who_gives_up_leaves_it_to_the_others() -> None:
    line = Line()
    with pool_of(line, 2) as pool, pool.lease() as one:
        with pool.lease() as other:
            one.open("daisy")
            other.open("daisy")
            one.lose("daisy", LOST)
            other.lose("daisy", LOST)
            line.refuses[0] = UnreachableError("still gone")
            with pytest.raises(UnreachableError, match="still gone"):
                other.reopen("daisy")
        line.refuses.clear()
        one.reopen("daisy")
        with pool.lease() as third:
            third.open("daisy")


def test_a_connection_that_is_gone_again_is_made_anew_before_the_sessions_over_it() -> None:
    line = Line()
    with pool_of(line, 2) as pool, pool.lease() as one, pool.lease() as other:
        one.open("daisy")
        other.open("daisy")
        one.lose("daisy", LOST)
        other.lose("daisy", LOST)
        line.refuses[1] = LOST
        with pytest.raises(UnreachableError):
            other.reopen("daisy")
        line.refuses.clear()
        line.said.clear()
        other.reopen("daisy")
        greeted = [word for word in line.said if word.startswith("greet")]
        assert greeted == ["greet 0", "greet 1"]


def test_when_all_have_given_up_the_next_job_is_told_why() -> None:
    line = Line()
    with pool_of(line, 2) as pool:
        with pool.lease() as one:
            one.open("daisy")
            one.lose("daisy", LOST)
        with pool.lease() as late, pytest.raises(UnreachableError, match="the link is gone"):
            late.open("daisy")


def test_a_session_that_is_of_no_use_any_more_hinders_no_other() -> None:
    line = Line()
    with pool_of(line, 2) as pool, pool.lease() as one:
        with pool.lease() as other:
            first = one.open("daisy")
            other.open("daisy").is_lost = True
            other.lose("daisy", IntegrityError("it said nonsense"))
        assert not is_told_to_end(pool)
        with pool.lease() as third:
            assert third.open("daisy") not in (first, line.sessions[1])


def test_a_stop_ends_every_wait(threads: ThreadPoolExecutor) -> None:
    line = Line()
    with pool_of(line, 1) as pool, pool.lease() as one, pool.lease() as late:
        one.open("daisy")
        one.lose("daisy", LOST)
        pause, turn = threads.submit(one.pause, 3600.0), threads.submit(late.open, "daisy")
        pool.stop()
        with pytest.raises(StopAskedError):
            pause.result(WAIT_S)
        with pytest.raises(StopAskedError):
            turn.result(WAIT_S)
        with pytest.raises(StopAskedError):
            one.reopen("daisy")
        assert is_told_to_end(pool)
        assert isinstance(pool.stop_error(), StopAskedError)


def test_what_a_session_that_is_gone_has_sent_is_remembered() -> None:
    line = Line()
    with pool_of(line, 2) as pool, pool.lease() as one:
        sent = uuid4()
        with pool.lease() as other:
            one.open("daisy")
            other.open("daisy").may_hold.add(sent)
        one.lose("daisy", LOST)
        one.reopen("daisy")
        assert pool.may_hold(sent)
        assert not pool.may_hold(uuid4())
